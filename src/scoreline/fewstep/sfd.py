"""Score forgetting distillation: a one-step generator that no longer makes some classes, learned without data.

    x   = G(sigma_start z, c)           c kept, drawn evenly;        x_f = G(sigma_start z', c_f)      c_f forgotten
    L_s = mean sum|eps - eps_s(x_t, t, c)|^2 + lambda_s mean sum|eps - eps_s(x_f,t, t, c_f)|^2        (the critic)
    L_g = mean l(D_r(c), D_s(c); x)          + lambda_g mean l(D_r(c_o), D_s(c_f); x_f)               (the generator)
    l   = sum_{C,H,W} (D_r - D_s)[(D_r - x) - alpha (D_r - D_s)]/omega      SiD's loss, gradients through both networks
The last term is the paper's: the teacher is asked for the override class c_o, the critic for the forgotten one, so that
requests for c_f follow the teacher's law of c_o. Nothing is drawn but conditions and noise.

An iteration is one update of the critic, then one of the generator with the same conditions and fresh z, t, eps. Losses
are sums over pixels and gradients are clipped entry by entry: the learning rates are tied to both. Only the network
that is updated drops units. t is uniform over the entries 38 ... 711 of the linear table of 1000 (sigma 0.137 to 13.0),
the generator starts at 440 (sigma 2.5023); other schedules take the same signal-to-noise ratios. A critic of another
kind than eps learns in its own: mean sum|F - target|^2.

Without forgotten classes, or with lambda 0, this is SiD. No value of these losses says how good images are.

Reference: Chen, Zhang and Zhou 2024 (Score Forgetting Distillation, arXiv 2409.11219), and its released code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import Draws
from scoreline.core.schedule import Schedule
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import Discrete
from scoreline.fewstep.matching import Matched, Matching, critic_of
from scoreline.fewstep.mean_map import MeanMap, mean_map
from scoreline.fewstep.sid import sid_loss
from scoreline.fewstep.teachers import guided_teacher, innermost

__all__ = ["FIRST", "LAST", "OVERRIDES", "SFD", "START", "Concepts", "Requests", "forgetting_levels", "forgetting_loss"]
__all__ += ["kept_classes", "override_labels", "pseudo_labels", "score_loss"]

FIRST, START, LAST = 38, 440, 712
"""Entries of the table: least level, the generator's, and the end of the levels, which is not drawn."""
OVERRIDES = ("random", "argmax", "sampled")


def forgetting_levels(
    schedule: Schedule, first: int = FIRST, last: int = LAST, betas: str = "linear"
) -> NDArray[np.float64]:
    """Times of a schedule at the signal-to-noise ratios of entries first ... last - 1 of a table of 1000, ascending.

    On the table itself they are first, first + 1, ..., last - 1.

    Args:
        schedule: of teacher and critic; a discrete one gives the nearest levels it knows.
        first: first entry, counted from 0.
        last: end of the entries, itself left out.
        betas: name of the table; "quadratic" is that of Stable Diffusion, where the paper takes 20 to 980 and 625.

    Raises:
        InputError: the entries are out of order, or the schedule has not all of these levels.

    >>> from scoreline.diffusion.schedules import EDM
    >>> forgetting_levels(EDM())[[0, START - FIRST, -1]].round(3).tolist()
    [0.137, 2.502, 13.013]
    """
    if not 0 <= first < last <= 1000:
        raise InputError("levels", (first, last), "give entries of the table, 0 <= first < last <= 1000")
    table = Discrete(betas=betas)
    times = schedule.time(table.lam(np.arange(first, last, dtype=np.float64)))
    # Rounding must not push the ends of a table out of it; what is further away is refused.
    slack = 1e-6 * (schedule.t_max - schedule.t_min)
    if times.min() < schedule.t_min - slack or times.max() > schedule.t_max + slack:
        mend = f"reach times from {times.min():.4g} to {times.max():.4g}, the schedule knows {schedule.t_min:.4g} to "
        raise InputError("levels", (first, last), f"{mend}{schedule.t_max:.4g}")
    return np.asarray(schedule.snap(times.clip(schedule.t_min, schedule.t_max)), dtype=np.float64)


def kept_classes(num_classes: int | None, forget: Sequence[int], override: int | Sequence[int] | str) -> list[int]:
    """The classes that are kept; every mistake in what to forget is refused here.

    Args:
        num_classes: of the model.
        forget: classes to be forgotten; none is a distillation of all.
        override: see :class:`SFD`.

    Raises:
        InputError: the model has no classes; a class that it does not know, or twice; all of them; an override that is
            forgotten itself, unknown, or not one for each forgotten class.

    >>> kept_classes(4, [0, 2], override=1)
    [1, 3]
    """
    if num_classes is None:
        raise InputError("model", None, "knows no classes; forgetting needs a class-conditional model")
    wrong = [c for c in forget if not 0 <= c < num_classes]
    if wrong or len(set(forget)) < len(forget):
        raise InputError("classes", wrong or list(forget), f"the model knows 0 to {num_classes - 1}; give each once")
    kept = [c for c in range(num_classes) if c not in forget]
    if not kept:
        raise InputError("classes", list(forget), "are all that the model knows; keep at least one")
    if isinstance(override, str):
        if override not in OVERRIDES:
            raise unknown_name("override", override, OVERRIDES)
        return kept
    given = [override] if isinstance(override, int) else list(override)
    bad = [c for c in given if c not in kept]
    if bad:
        raise InputError("override", bad[0], f"must be a class that is kept: {', '.join(map(str, kept))}")
    if len(given) not in (1, len(forget)):
        raise InputError("override", given, f"give one class, or one for each of the {len(forget)} forgotten ones")
    return kept


def override_labels(kept: Tensor, draws: Draws, part: int) -> Tensor:
    """Random overrides, (B,): uniform over the kept classes, anew for each image.

    Args:
        kept: (K,) int64 classes, or positions in a list of conditions.
        draws: of the images.
        part: of the draw.
    """
    return kept[draws.integers(len(kept), part=part)]


def pseudo_labels(logits: Tensor, forgotten: Sequence[int] | Tensor, uniform: Tensor | None = None) -> Tensor:
    """The class that a classifier sees, with the logits of the forgotten ones set to -inf, (B,) int64.

    Args:
        logits: (B, C).
        forgotten: classes that are never the answer.
        uniform: (B,) on [0, 1), with which the class is drawn from the softmax; None takes the largest logit.

    >>> pseudo_labels(torch.tensor([[5.0, 1.0, 2.0]]), [0]).tolist()
    [2]
    """
    barred = torch.as_tensor(forgotten, device=logits.device)
    logits = logits.index_fill(1, barred, -torch.inf)
    if uniform is None:
        return logits.argmax(1)
    cumulated = logits.double().softmax(1).cumsum(1)
    # A barred class has no width: where its bound is met exactly, the count goes on to the next class.
    found = (cumulated <= uniform[:, None] * cumulated[:, -1:]).sum(1)
    return found.clamp_max(logits.shape[1] - 1)


def score_loss(answer: Tensor, target: Tensor) -> Tensor:
    """sum_{C,H,W} |eps_s - eps|^2 of each image, (B,): a sum, not a mean.

    Args:
        answer: what the critic says, (B, ...).
        target: the noise, or what else a network of its kind should say.
    """
    return (answer - target).square().flatten(1).sum(1)


def forgetting_loss(
    x: Tensor,
    x_t: Tensor,
    t: Tensor,
    teacher: Denoiser,
    critic: Denoiser,
    override: Cond,
    forgotten: Cond,
    alpha: float = 1.2,
) -> Tensor:
    """l(c_o, c_f) of each image, (B,): SiD's loss with the teacher told c_o and the critic told c_f.

    Both networks are asked inside the graph. Conditions may be anything that the networks take, labels or tokens of
    texts. With the same conditions in both places it is the loss of what is kept.

    Args:
        x: images that the generator made when asked for c_f, (B, *shape), with their graph.
        x_t: the same with noise, (B, *shape).
        t: levels, (B,), in the time of both networks.
        teacher, critic: the networks.
        override, forgotten: c_o and c_f, (B,) conditions.
        alpha: 1.2; 1 on Stable Diffusion.
    """
    return sid_loss(x, teacher(x_t, t, override).mean, critic(x_t, t, forgotten).mean, alpha)


@dataclass(frozen=True)
class Concepts:
    """What to forget where conditions are no classes: lists of conditions, such as tokens of prompts.

    Attributes:
        kept: (K,) conditions that are kept.
        forgotten: (F,) conditions with the concept.
        override: (F,) the same ones with the safe concept in its place, row by row.
    """

    kept: Cond
    forgotten: Cond
    override: Cond


@dataclass(frozen=True)
class Requests:
    """The conditions of a turn, (B,) each; `override` is None where a classifier finds it."""

    kept: Cond
    forgotten: Cond | None
    override: Cond | None


class SFD(Matching):
    """Score forgetting distillation; without `forget`, SiD.

    Args:
        student, teacher, critic, lr, critic_lr, optimizer, settings, clip, ratio: see
            :class:`scoreline.fewstep.matching.Matching`.
        forget: classes to be forgotten; none distils all classes.
        override: the safe class, or one for each forgotten one; "random" draws from the kept classes for every image,
            "argmax" and "sampled" ask `classifier` what the critic's clean image shows.
        classifier: images -> logits (B, C), for these two.
        concepts: conditions to be forgotten in place of classes.
        forget_weight: lambda_g, of the generator's term on forgotten requests; 0 leaves it out.
        critic_forget_weight: lambda_s, of the critic's, without which it would know nothing of c_f; 0 leaves it out.
        keep_weight: of both networks' terms on kept requests, 1 in the paper; 0 leaves them out.
        alpha: of SiD's loss.
        through: whether gradients go through teacher and critic; without, the gradient is Diff-Instruct's.
        levels: (first, last), entries of the table from which t is drawn, the last one left out.
        start: entry of the generator.
        betas: the table, see :func:`forgetting_levels`.
        guidance: strength s of teacher and critic, in training and in the loss; 1 or None for none. The paper's kappa
            of Stable Diffusion, 4.5.
        clip_value: largest absolute gradient entry.

    Raises:
        InputError: see :func:`kept_classes`; or a setting is out of range.
    """

    def __init__(
        self,
        student: MeanMap,
        teacher: Denoiser,
        critic: Denoiser | None = None,
        *,
        forget: Sequence[int] = (),
        override: int | Sequence[int] | str = "random",
        classifier: nn.Module | None = None,
        concepts: Concepts | None = None,
        forget_weight: float = 0.01,
        critic_forget_weight: float = 0.01,
        keep_weight: float = 1.0,
        alpha: float = 1.2,
        through: bool = True,
        levels: Sequence[int] = (FIRST, LAST),
        start: int = START,
        betas: str = "linear",
        guidance: float | None = None,
        ratio: int = 1,
        lr: float | Callable[[int], float] = 1e-5,
        critic_lr: float | Callable[[int], float] = 1e-5,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        settings: dict[str, Any] | None = None,
        clip: float | None = None,
        clip_value: float | None = 1.0,
    ) -> None:
        if concepts is None:
            kept = kept_classes(_classes(student, teacher), forget, override)
            concepts = _classes_as_concepts(kept, list(forget), override)
        elif forget or override != "random":
            raise InputError("forget", list(forget), "classes and concepts exclude one another; give one of them")
        for name, weight in (("keep", keep_weight), ("forget", forget_weight), ("critic forget", critic_forget_weight)):
            if weight < 0:
                raise InputError(f"{name} weight", weight, "must not be negative")
        if (override in ("argmax", "sampled")) != (classifier is not None):
            mend = 'override "argmax" and "sampled" ask one, others none; give both or neither'
            raise InputError("classifier", None if classifier is None else type(classifier).__name__, mend)
        if len(levels) != 2:
            raise InputError("levels", list(levels), "give the first entry and the end")
        times = forgetting_levels(student.schedule, levels[0], levels[1], betas)
        begin = float(forgetting_levels(student.schedule, start, start + 1, betas)[0])
        super().__init__(
            student, teacher, _critic(teacher) if critic is None else critic, ratio=ratio, start=begin,
            guidance=guidance, lr=lr, critic_lr=critic_lr, optimizer=optimizer,
            settings={"betas": (0.0, 0.999)} if settings is None else settings, clip=clip, clip_value=clip_value,
        )  # fmt: skip
        student.begin(begin, scaled=True)
        self.register_buffer("times", torch.from_numpy(times), persistent=False)
        self.times: Tensor
        self._fields = {part: self._keep(part, cond) for part, cond in vars(concepts).items()}
        self.forget, self.override, self.classifier = list(forget), override, classifier
        self.alpha, self.through = alpha, through
        anything = len(concepts.forgotten.items()[0][1]) > 0
        self.weights = (keep_weight, forget_weight if anything else 0.0)
        self.critic_weights = (keep_weight, critic_forget_weight if anything else 0.0)
        if not any(self.weights) or not any(self.critic_weights):
            raise InputError("weights", (self.weights, self.critic_weights), "leave nothing to learn")
        # The guided critic is a view of the critic's own parameters; in a tuple it is not counted a second time.
        self._asked = (guided_teacher(self.critic, guidance),)
        self.updates = self.updates[::-1]

    def _keep(self, part: str, cond: Cond) -> list[str]:
        for name, value in cond.items():
            self.register_buffer(f"{part}_{name}", value, persistent=False)
        return [name for name, _ in cond.items()]

    def conditions(self, part: str) -> Cond:
        """All conditions that are "kept", "forgotten" or "override", on the method's device."""
        return Cond(**{name: getattr(self, f"{part}_{name}") for name in self._fields[part]})

    @staticmethod
    def student_of(teacher: Denoiser | None, net: nn.Module | None = None) -> MeanMap:
        """See :func:`scoreline.fewstep.mean_map.mean_map`; a copy of the teacher's network keeps its dropout."""
        return mean_map(teacher, _twin(teacher) if net is None else net)

    def frozen(self) -> tuple[nn.Module, ...]:
        return (self.teacher,) if self.classifier is None else (self.teacher, self.classifier)

    def level(self, draws: Draws, part: int) -> Tensor:
        return self.times[draws.integers(len(self.times), part=part)]

    def critic_level(self, draws: Draws, part: int) -> Tensor:
        return self.level(draws, part)

    def prepare(self, batch: Any, step: int) -> Any:
        """The :class:`Requests` of the turn, the same for critic and generator."""
        kept, forgotten = self.conditions("kept"), self.conditions("forgotten")
        count, own = len(kept.items()[0][1]), batch.draws.derived("forget")
        asked = kept[batch.draws.integers(count, part=1)]
        if not (self.weights[1] or self.critic_weights[1]):
            return Requests(asked, None, None)
        rows = own.integers(len(forgotten.items()[0][1]), part=1)
        override = None
        if self.override == "random" and self.forget:
            override = Cond(labels=override_labels(kept.labels, own, 7))  # type: ignore[arg-type]
        elif self.classifier is None:
            override = self.conditions("override")[rows]
        return Requests(asked, forgotten[rows], override)

    def sides(
        self, batch: Any, turn: Requests, weights: tuple[float, float]
    ) -> list[tuple[str, Draws, Any, Any, float]]:
        """What there is to learn from: (name, draws, condition asked for, condition the teacher is told, weight)."""
        draws = batch.draws.reshaped(self.student.shape)
        both = [
            ("keep", draws, turn.kept, turn.kept, weights[0]),
            ("forget", draws.derived("forget"), turn.forgotten, turn.override, weights[1]),
        ]
        return [side for side in both if side[-1]]

    def generated(self, noise: Tensor, cond: Cond) -> Tensor:
        """x = G(sigma_start z, c)."""
        start = self.start_levels[0]
        return self.student.answer(noise * self.schedule.prior(start), start, cond)

    def student_loss(self, batch: Any, turn: Any, step: int) -> dict[str, Tensor]:
        self.student.train()
        self.critic.eval()
        total = torch.zeros((), device=self.times.device)
        parts: dict[str, Tensor] = {}
        for name, draws, asked, told, weight in self.sides(batch, turn, self.weights):
            m = self.match(self.generated(draws.normal(), asked), draws, asked, told)
            loss = self.term(m)
            total = total + weight * loss
            parts |= {name: loss.detach(), f"{name} gap": (m.fake - m.real).detach().square().mean().sqrt()}
        return {"loss": total, **parts}

    def match(self, x: Tensor, draws: Draws, cond: Cond | None, told: Cond | None, part: int = 2) -> Matched:
        """One noised version of each image, seen by the critic, told `cond`, and by the teacher, told `told`."""
        x_t, t, noise = self.noised(x, self.level, draws, part)
        with nullcontext() if self.through else torch.no_grad():
            fake = self._asked[0](x_t, t, cond).mean
            told = self.seen(fake, draws) if told is None else told
            real = self.teacher(x_t, t, told).mean
        return Matched(x, x_t, t, noise, real, fake)

    def term(self, m: Matched) -> Tensor:
        return sid_loss(m.x, m.real, m.fake, self.alpha).mean()

    def seen(self, fake: Tensor, draws: Draws) -> Cond:
        """The override that the classifier finds in the critic's clean images."""
        assert self.classifier is not None
        with torch.no_grad():
            logits = self.classifier(fake.clamp(-1, 1))
        chance = draws.uniform(part=8) if self.override == "sampled" else None
        return Cond(labels=pseudo_labels(logits, self.forget, chance))

    def critic_loss(self, batch: Any, turn: Any, step: int) -> dict[str, Tensor]:
        self.student.eval()
        self.critic.train()
        total = torch.zeros((), device=self.times.device)
        parts: dict[str, Tensor] = {}
        for name, draws, asked, _, weight in self.sides(batch, turn, self.critic_weights):
            with torch.no_grad():
                x = self.generated(draws.normal(part=4), asked)
            loss = self.denoising(x, draws, asked, 5)
            total, parts[name] = total + weight * loss, loss.detach()
        return {"loss": total, **parts}

    def denoising(self, x: Tensor, draws: Draws, cond: Cond | None, part: int) -> Tensor:
        x_t, t, noise = self.noised(x, self.critic_level, draws, part)
        target = innermost(self.critic).target(x, x_t, t, noise)  # type: ignore[operator]
        return score_loss(self._asked[0](x_t, t, cond).raw, target).mean()


def _twin(model: Denoiser | None) -> nn.Module | None:
    """A copy of the network inside a model, dropout included; None where it cannot be taken as it is."""
    inner = None if model is None else innermost(model)
    if not isinstance(inner, Preconditioned) or isinstance(inner, MeanMap) or inner.learned_variance:
        return None
    return copy.deepcopy(inner.net)


def _critic(teacher: Denoiser) -> Preconditioned:
    """The critic: the teacher's network with its dropout, to be trained on the generator's images."""
    net, inner = _twin(teacher), innermost(teacher)
    if net is None or not isinstance(inner, Preconditioned):
        return critic_of(teacher)
    kind, sigma_data, time_input = inner.kind, inner.sigma_data, inner.time_input
    return Preconditioned(
        net.requires_grad_(True), inner.schedule, kind=kind, sigma_data=sigma_data, time_input=time_input
    )


def _classes(student: Denoiser, teacher: Denoiser) -> int | None:
    return None if student.num_classes is None else teacher.num_classes


def _classes_as_concepts(kept: list[int], forget: list[int], override: int | Sequence[int] | str) -> Concepts:
    given = [] if isinstance(override, str) else [override] if isinstance(override, int) else list(override)
    if len(given) == 1:
        given = given * len(forget)
    labels = (torch.tensor(values, dtype=torch.int64) for values in (kept, forget, given))
    return Concepts(*(Cond(labels=values) for values in labels))
