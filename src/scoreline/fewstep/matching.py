"""Matching distributions: a student, a frozen teacher, and a critic that follows the student's images.

Three networks start from the same weights: the student G makes images, the teacher knows the score of the data, the
critic (the "fake" or "online" score) learns the score of what G makes. A discriminator on features may be a fourth.

    x = G(sigma_start z, c)                                     c uniform over the classes that are wanted
    x_t = alpha_t x + sigma_t eps                               t of a table of a thousand, 2% to 98%
    D_r = teacher(x_t, t, c), guided where wanted               D_f = critic(x_t, t, c), never guided
    student    term(x, x_t, t, eps, D_r, D_f) + lambda_g mean softplus(-d(x_s, s, c))
    critic     mean |F(x_t, t) - target|^2 in its own kind, x detached, t of the whole table
               + lambda_d (mean softplus(d(fake)) + mean softplus(-d(real)))
The critic is updated on every turn, the student on every `ratio`-th (two time scales). What a paper adds is its `term`,
and, where gradients go through the two networks, `through`.

Neither the student's nor the critic's loss says how good images are: the first is the norm of a normalised gradient,
the second follows a moving target. What does is the distance between samples, which the training writes beside the
pictures.

Reference: Luo et al. 2023 (Diff-Instruct); Yin et al. 2024 (DMD, arXiv 2311.18828; DMD2, arXiv 2405.14867).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.method import Method, Update
from scoreline.core.noise import Draws, Noise, derive
from scoreline.core.schedule import spread
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.fewstep.adversarial import discriminator_loss, generator_loss
from scoreline.fewstep.mean_map import MeanMap, level_table, mean_map
from scoreline.fewstep.teachers import check_alike, guided_teacher, innermost
from scoreline.nn.discriminator import TapDiscriminator
from scoreline.samplers.generator import Sampled
from scoreline.samplers.jumps import Jumps
from scoreline.train.lr import Sparse

__all__ = ["HEADS_ON", "Matched", "Matching", "Turn", "critic_of", "index_range", "matching_direction"]
__all__ += ["matching_surrogate"]

HEADS_ON = ("critic", "teacher")
FLOOR = 1e-6


def index_range(count: int = 1000, low: float = 0.02, high: float = 0.98) -> tuple[int, int]:
    """First and last entry of the table from which the levels of matching are drawn, both included: 20 and 980 of 1000.

    Args:
        count: entries of the table.
        low, high: shares of it, 0 to 1.

    Raises:
        InputError: the shares are out of order or leave [0, 1].

    Reference: Yin et al. 2024, the released code.

    >>> index_range(), index_range(low=0.0, high=1.0)
    ((20, 980), (0, 999))
    """
    if not 0 <= low < high <= 1:
        raise InputError("levels", (low, high), "give shares of the table, 0 <= low < high <= 1")
    return int(low * count + 0.5), min(int(high * count + 0.5), count - 1)


def matching_direction(
    x: Tensor, real: Tensor, fake: Tensor, weight: Tensor | None = None, *, floor: float | None = FLOOR
) -> Tensor:
    """g = h (D_f - D_r)/mean_{C,H,W}|x - D_r|, (B, ...), without a graph; descending along it moves x to the teacher's.

    Args:
        x: the student's images, clean.
        real, fake: the teacher's and the critic's answers at the same x_t.
        weight: h of each image, (B,); None is 1.
        floor: least value of the mean; None leaves g unnormalised (Diff-Instruct's form).

    Reference: Yin et al. 2024 (DMD), eq. 8, in the released code's form.
    """
    with torch.no_grad():
        g = fake - real
        if floor is not None:
            g = g / spread((x - real).abs().flatten(1).mean(1).clamp_min(floor), x)
        return g if weight is None else g * spread(weight, x)


def matching_surrogate(x: Tensor, direction: Tensor) -> Tensor:
    """0.5 mean |x - stopgrad(x - g)|^2 over all entries: its gradient in x is g/numel; its value says nothing else.

    Args:
        x: the student's images, with their graph.
        direction: g, of the same shape.
    """
    return 0.5 * (x - (x - direction).detach()).square().mean()


@dataclass
class Turn:
    """What the updates of one turn share.

    `x` stands at `level`, where the student starts; `cond` and `told` are the student's and the teacher's conditions.
    `made` are this turn's images, detached, as the student's update left them for the critic's.
    """

    x: Tensor
    level: float
    cond: Cond | None
    told: Cond | None
    labels: Tensor | None
    made: Tensor | None = None


@dataclass(frozen=True)
class Matched:
    """Images, one noised version of each, and what the two networks say of it.

    Attributes:
        x: the student's images, (B, *shape), with their graph.
        x_t, t, noise: x noised to the levels t, (B,).
        real, fake: D_r and D_f, (B, *shape); with a graph through x_t where the method asks for it.
    """

    x: Tensor
    x_t: Tensor
    t: Tensor
    noise: Tensor
    real: Tensor
    fake: Tensor


def critic_of(model: Denoiser) -> Preconditioned:
    """A critic: a copy of the network inside a model, to be trained on the student's images.

    Args:
        model: the teacher, or any denoiser with a network.

    Raises:
        InputError: it has no network; a critic of one's own can then be given.
    """
    inner = innermost(model)
    if not isinstance(inner, Preconditioned):
        raise InputError(
            "critic", type(inner).__name__, "has no network to copy; give a critic: a denoiser of one's own"
        )
    plain = mean_map(inner)
    return Preconditioned(
        plain.net, plain.schedule, kind=plain.kind, sigma_data=plain.sigma_data, time_input=plain.time_input
    )


class Matching(Method):
    """The turn that distribution matching shares; a paper's class adds `term`.

    Args:
        student: the generator, see :func:`scoreline.fewstep.mean_map.mean_map`.
        teacher: any denoiser of the same images.
        critic: a denoiser with a network; None copies the teacher's.
        ratio: the student is updated on every so many-th turn.
        critic_rests: whether the critic leaves out the turns on which the student is updated.
        start: the student's noisiest level; None leaves t_max.
        student_steps: N, steps that the student is made for; more than one are trained on inputs of its own making.
        simulate: whether those inputs are simulated, or noised real images (what DMD2 shows to be worse).
        levels: (low, high), shares of the table from which t of the matching is drawn.
        guidance: strength s of the teacher's guidance, 1 or None for none.
        classes: the classes that are drawn, e.g. [0, 3]; None draws all.
        matching_weight: of `term`; 0 leaves the teacher out.
        gan_weight, critic_gan_weight: of the adversarial terms of student and critic; 0 leaves the discriminator out.
        heads_on: whose features the discriminator sees: "critic", which its loss then trains too, or "teacher".
        taps: names of the features; None takes the bottleneck.
        discriminator: `d(x, t, cond)` -> logits instead.
        lr, critic_lr: learning rates, or functions of the turn (the critic's: of its updates).
        optimizer, settings, clip, clip_value: of both, see :class:`scoreline.core.method.Update`.

    Raises:
        InputError: a setting is out of range, or student, teacher and critic do not fit.
    """

    sampler = "jumps"
    made_for: tuple[int, ...] | None = (1,)
    through = False
    """Whether gradients of the term go through teacher and critic to x_t."""
    other_terms = False
    """Whether a student learns without matching and without an adversary, too."""

    def __init__(
        self,
        student: MeanMap,
        teacher: Denoiser,
        critic: Denoiser | None = None,
        *,
        ratio: int = 5,
        critic_rests: bool = False,
        start: float | None = None,
        student_steps: int = 1,
        simulate: bool = True,
        levels: Sequence[float] = (0.02, 0.98),
        guidance: float | None = None,
        classes: Sequence[int] | None = None,
        matching_weight: float = 1.0,
        gan_weight: float = 0.0,
        critic_gan_weight: float = 1e-2,
        heads_on: str = "critic",
        taps: Sequence[str] | None = None,
        discriminator: nn.Module | None = None,
        lr: float | Callable[[int], float] = 2e-6,
        critic_lr: float | Callable[[int], float] = 2e-6,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        settings: dict[str, Any] | None = None,
        clip: float | None = 10.0,
        clip_value: float | None = None,
    ) -> None:
        super().__init__()
        if ratio < 1 or (critic_rests and ratio < 2):
            raise InputError("ratio", ratio, "counts turns, 1 or more, and 2 or more where the critic rests")
        if heads_on not in HEADS_ON:
            raise unknown_name("heads_on", heads_on, HEADS_ON)
        idle = matching_weight == gan_weight == 0 and not self.other_terms
        if idle or min(matching_weight, gan_weight, critic_gan_weight) < 0:
            given = (matching_weight, gan_weight, critic_gan_weight)
            raise InputError("weights", given, "must not be negative, and the student needs matching or an adversary")
        if not isinstance(student, MeanMap):
            raise InputError("student", type(student).__name__, "must be a MeanMap; make it with student_of")
        check_alike(student, teacher)
        if start is not None:
            student.begin(start)
        self.student, self.schedule = student, student.schedule
        self.teacher: Denoiser = guided_teacher(teacher.on(self.schedule), guidance)
        self.critic = critic_of(teacher) if critic is None else critic.requires_grad_(True)
        check_alike(self.critic, teacher)
        if self.critic.num_classes != student.num_classes:
            mend = (
                f"has {self.critic.num_classes} classes, the student {student.num_classes}; give a critic of the same"
            )
            raise InputError("critic", type(self.critic).__name__, mend)
        if type(self.critic.schedule) is not type(self.schedule):
            raise InputError("critic", type(self.critic.schedule).__name__, "needs the student's schedule")
        self.start_levels = [float(t) for t in student.levels(student_steps)]
        self.made_for, self.simulate = (student_steps,), simulate
        self.classes = _wanted(classes, student, teacher)
        if self.classes is not None:
            self.register_buffer("class_table", torch.tensor(self.classes), persistent=False)
        self.class_table: Tensor
        table = level_table(self.schedule)
        self.register_buffer("table", torch.from_numpy(table), persistent=False)
        self.table: Tensor
        self.first, self.last = index_range(len(table), *levels)
        self.matching_weight, self.gan_weight, self.critic_gan_weight = matching_weight, gan_weight, critic_gan_weight
        if gan_weight and discriminator is None:
            seen = self.critic if heads_on == "critic" else _plain(teacher.on(self.schedule))
            discriminator = TapDiscriminator(
                seen, taps, head="strided", trained="all" if heads_on == "critic" else "heads"
            )  # fmt: skip
        self.discriminator = discriminator if gan_weight else None
        rules: dict[str, Any] = {"optimizer": optimizer, "settings": settings or {}}
        rules |= {"clip": clip, "clip_value": clip_value}
        moved = (self.critic,) if self.discriminator is None else (self.critic, self.discriminator)
        rate, rest = Sparse(lr, ratio) if callable(lr) else lr, ratio if critic_rests else None
        self.updates = [
            Update(student.net, self.student_loss, ratio, lr=rate, name="student", **rules),
            Update(moved, self.critic_loss, lr=critic_lr, name="critic", unless=rest, **rules),
        ]

    def term(self, m: Matched) -> Tensor:
        """What the student minimises beside the adversarial term: a scalar whose gradient reaches x."""
        raise NotImplementedError

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> MeanMap:
        """See :func:`scoreline.fewstep.mean_map.mean_map`."""
        return mean_map(teacher, net)

    def frozen(self) -> tuple[nn.Module, ...]:
        if isinstance(self.discriminator, TapDiscriminator) and self.discriminator.frozen_trunk:
            return (self.teacher, self.discriminator.trunk)
        return (self.teacher,)

    def averaged(self) -> nn.Module:
        return self.student.net

    def prepare(self, batch: Any, step: int) -> Turn:
        draws = batch.draws.reshaped(self.student.shape)
        labels = self.labels(batch)
        cond, told = labelled(self.student, labels), self.told(labels, len(draws))
        number = derive(draws.seed, "simulated steps") % len(self.start_levels)  # one for the whole batch
        x = draws.normal() * self.student.prior(self.start_levels[0])
        if number and not self.simulate:
            self.real(batch, "inputs that are not simulated")
            x = self.schedule.marginal(batch.image, self.start_levels[number], draws.normal(step=number))
            cond, labels = labelled(self.student, batch.label), None if labels is None else batch.label
            return Turn(x, self.start_levels[number], cond, self.told(labels, len(draws)), labels)
        with torch.no_grad():
            for k in range(number):
                clean = self.student.answer(x, self.start_levels[k], cond)
                x = self.schedule.marginal(clean, self.start_levels[k + 1], draws.normal(step=k + 1))
        return Turn(x, self.start_levels[number], cond, told, labels)

    def labels(self, batch: Any) -> Tensor | None:
        """Classes of this turn's images, uniform over those wanted, (B,); draw (0, 1) of each."""
        if self.classes is None:
            return None
        return self.class_table[batch.draws.integers(len(self.classes), part=1)]

    def told(self, labels: Tensor | None, count: int) -> Cond | None:
        """The teacher's conditions: without labels that nothing is known, where it knows classes."""
        return labelled(self.teacher, self.table.new_full((count,), -1).long() if labels is None else labels)

    def level(self, draws: Draws, part: int) -> Tensor:
        """Levels of the matching, (B,): uniform over the entries first ... last of the table."""
        return self.table[self.first + draws.integers(self.last - self.first + 1, part=part)]

    def critic_level(self, draws: Draws, part: int) -> Tensor:
        """Levels at which critic and discriminator learn, (B,): uniform over the whole table."""
        return self.table[draws.integers(len(self.table), part=part)]

    def noised(self, x: Tensor, level: Callable[[Draws, int], Tensor], draws: Draws, part: int) -> tuple[Tensor, ...]:
        """(x_t, t, noise) by the draws (0, part) and (0, part + 1) of each image."""
        t, noise = level(draws, part), draws.normal(part=part + 1)
        return self.schedule.marginal(x, t, noise), t, noise

    def match(self, x: Tensor, draws: Draws, cond: Cond | None, told: Cond | None, part: int = 2) -> Matched:
        """One noised version of each image, seen by teacher and critic."""
        x_t, t, noise = self.noised(x, self.level, draws, part)
        with nullcontext() if self.through else torch.no_grad():
            real, fake = self.teacher(x_t, t, told).mean, self.critic(x_t, t, cond).mean
        return Matched(x, x_t, t, noise, real, fake)

    def student_loss(self, batch: Any, turn: Turn, step: int) -> dict[str, Tensor]:
        draws = batch.draws.reshaped(self.student.shape)
        x = self.student.answer(turn.x, turn.level, turn.cond)
        turn.made = x.detach()
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=x.device)
        if self.matching_weight:
            m = self.match(x, draws, turn.cond, turn.told)
            parts["matching"] = self.term(m)
            parts["gap"] = (m.fake - m.real).detach().square().mean().sqrt()
            total = total + self.matching_weight * parts["matching"]
        if self.discriminator is not None:
            x_s, s, _ = self.noised(x, self.critic_level, draws, 4)
            parts["fooled"] = generator_loss(self.discriminator(x_s, s, turn.cond), "softplus")
            total = total + self.gan_weight * parts["fooled"]
        return {"loss": total, **{name: value.detach() for name, value in parts.items()}}

    def critic_loss(self, batch: Any, turn: Turn, step: int) -> dict[str, Tensor]:
        draws = batch.draws.reshaped(self.student.shape)
        x = self.made(turn)
        denoising = self.denoising(x, draws, turn.cond, 6)
        if self.discriminator is None:
            return {"loss": denoising}
        seen = self.real(batch, "an adversary")
        fake, s, _ = self.noised(x, self.critic_level, draws, 8)
        real, r, _ = self.noised(batch.image, self.critic_level, draws, 10)
        logits = self.discriminator(torch.cat([fake, real]), torch.cat([s, r]), _both(turn.cond, seen)).chunk(2)
        judged = discriminator_loss(logits[1], logits[0], "softplus")
        total = denoising + self.critic_gan_weight * judged
        return {"loss": total, "denoising": denoising.detach(), "discriminator": judged.detach()}

    def real(self, batch: Any, wanted_by: str) -> Cond | None:
        """Conditions of the batch's real images.

        Raises:
            InputError: it has none, or no labels where the student is told some.
        """
        if tuple(batch.image.shape[1:]) != tuple(self.student.shape):
            raise InputError("data", None, f"{wanted_by} needs real images of shape {tuple(self.student.shape)}")
        if self.student.num_classes is not None and batch.label is None:
            raise InputError("labels", None, f"the student is told classes; {wanted_by} needs images with labels")
        return labelled(self.student, batch.label)

    def made(self, turn: Turn) -> Tensor:
        """This turn's images, without a graph: those of the student's update, or new ones where it had none."""
        if turn.made is None:
            with torch.no_grad():
                turn.made = self.student.answer(turn.x, turn.level, turn.cond)
        return turn.made

    def denoising(self, x: Tensor, draws: Draws, cond: Cond | None, part: int) -> Tensor:
        """The critic's loss on images: mean |F(x_t, t) - target|^2 in its own kind (EDM's weight included)."""
        x_t, t, noise = self.noised(x, self.critic_level, draws, part)
        target = innermost(self.critic).target(x, x_t, t, noise)  # type: ignore[operator]
        return (self.critic(x_t, t, cond).raw - target).square().mean()

    def pictures(self, count: int) -> dict[str, Tensor]:
        """What to look at during training, by name: the student's images, noised ones, and what both networks see.

        Args:
            count: images of each, at fixed noise and labels.
        """
        draws = Noise(0).at(range(count), self.student.shape, device=self.table.device)
        labels = None if self.classes is None else self.class_table[torch.arange(count) % len(self.classes)]
        cond, told = labelled(self.student, labels), self.told(labels, count)
        with torch.no_grad():
            start = self.start_levels[0]
            x = self.student.answer(draws.normal() * self.student.prior(start), start, cond)
            level = self.table[(self.first + self.last) // 2].expand(count)
            x_t = self.schedule.marginal(x, level, draws.normal(step=1))
            return {
                "student": x,
                "noised": x_t / spread(self.schedule.alpha(level), x),
                "teacher sees": self.teacher(x_t, level, told).mean,
                "critic sees": self.critic(x_t, level, cond).mean,
            }

    def result(self) -> Sampled:
        return Sampled(self.student.eval(), Jumps(steps=len(self.start_levels)))


def labelled(model: Denoiser, labels: Tensor | None) -> Cond | None:
    """Labels as the conditions of a model; None for a model without classes. -1 means no label."""
    if model.num_classes is None or labels is None:
        return None
    return Cond(labels=torch.where(labels < 0, model.num_classes, labels))


def _wanted(classes: Sequence[int] | None, student: Denoiser, teacher: Denoiser) -> list[int] | None:
    known = teacher.num_classes
    if classes is None:  # a student without classes makes all of them, which the teacher without a label knows
        return None if known is None or student.num_classes is None else list(range(known))
    if known is None or student.num_classes is None:
        raise InputError("classes", list(classes), "teacher and student must be class-conditional")
    wrong = [c for c in classes if not 0 <= c < known]
    if wrong or not classes or len(set(classes)) < len(classes):
        raise InputError("classes", wrong or list(classes), f"the teacher knows 0 to {known - 1}; give each once")
    return [int(c) for c in classes]


def _both(a: Cond | None, b: Cond | None) -> Cond | None:
    return a.cat(b) if a is not None and b is not None else None


def _plain(model: Denoiser) -> Denoiser:
    """The model itself under its views, as a discriminator taps it, in the coordinates of `model`."""
    inner = innermost(model)
    if not isinstance(inner, Preconditioned):
        raise InputError("teacher", type(inner).__name__, "has no network to tap; give a discriminator of one's own")
    if inner.schedule is model.schedule:
        return inner
    return Preconditioned(
        inner.net, model.schedule, kind=inner.kind, sigma_data=inner.sigma_data, time_input=inner.time_input,
        learned_variance=inner.learned_variance,
    )  # fmt: skip
