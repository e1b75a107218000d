"""MSD: one teacher distilled into K students, each for a share of the conditions; one of them runs for a request.

    V_1, ..., V_K   a partition of the conditions: disjoint, of equal size, neighbours together
    k(y)            the router, a fixed look-up: classes by a table, texts by the quadrant of their embedding
    G_k = Distill(teacher, F(D, V_k)),   x = G_{k(y)}(sigma_start z, y)
F keeps the labels that are drawn and the real images of the share. Pairs of noise and image are not filtered: every
student regresses on all of them. A label stays what it was for the teacher, it is not counted within the share.
Students share no weights; each is trained as if it were alone, by any method that makes students, so that K at a batch
of B/K cost in all what one costs at B. A student of another architecture is first fitted to the teacher's answers
(:mod:`scoreline.fewstep.teacher_matching`). Samples of all students are scored as one set, never each share on its own.

How evenly a partition shares the load is seen in the scatter of the conditions within a share: it falls with K where
neighbours stay together, and stays where they are dealt out.

Reference: Song, Lorraine, Nie, Kreis & Lucas 2025 (Multi-student Diffusion Distillation, arXiv 2410.23274).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoreline.core.artefact import describe, recorded
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.flow_map import FlowMap
from scoreline.core.noise import derive
from scoreline.core.schedule import Time, spread

__all__ = ["ClassRouter", "QuadrantRouter", "Routed", "check_shares", "clustered_shares", "consecutive_shares"]
__all__ += ["dm_gradient", "interleaved_shares", "of_classes", "quadrants", "random_shares", "within_share_scatter"]

Shares = list[list[int]]


def consecutive_shares(num_classes: int, students: int) -> Shares:
    """Neighbouring classes together: k(y) = floor(y K / C), which is y // (C/K) where K divides C.

    Args:
        num_classes: C.
        students: K, 1 to C.

    Raises:
        InputError: more students than classes, or none.

    >>> consecutive_shares(8, 4)
    [[0, 1], [2, 3], [4, 5], [6, 7]]
    """
    _check_count(num_classes, students)
    return _grouped([y * students // num_classes for y in range(num_classes)], students)


def interleaved_shares(num_classes: int, students: int) -> Shares:
    """Neighbours dealt out: k(y) = y mod K, the partition that reduces the load least where neighbours are alike.

    >>> interleaved_shares(8, 4)
    [[0, 4], [1, 5], [2, 6], [3, 7]]
    """
    _check_count(num_classes, students)
    return _grouped([y % students for y in range(num_classes)], students)


def random_shares(num_classes: int, students: int, seed: int = 0) -> Shares:
    """Shares of the sizes of :func:`consecutive_shares`, filled at random.

    Args:
        num_classes: C.
        students: K, 1 to C.
        seed: of the order.
    """
    order = np.random.default_rng(derive(seed, "shares")).permutation(num_classes)
    return [sorted(int(order[y]) for y in share) for share in consecutive_shares(num_classes, students)]


def clustered_shares(embeddings: Tensor, students: int, seed: int = 0) -> Shares:
    """Classes whose embeddings are alike: k-means, then the assignment to its centres of least total squared distance
    in which shares differ by one class at most.

    Args:
        embeddings: (C, D), one a class, e.g. means of images or rows of a label embedding.
        students: K, 1 to C.
        seed: of the k-means.

    Returns:
        K lists of classes, in the order of their smallest one.

    Raises:
        InputError: more students than classes, or embeddings of another form.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans

    if embeddings.dim() != 2 or not bool(torch.isfinite(embeddings).all()):
        raise InputError("embeddings", tuple(embeddings.shape), "give one finite row for each class, (C, D)")
    count = len(embeddings)
    _check_count(count, students)
    rows = embeddings.detach().double().cpu().numpy()
    fitted = KMeans(students, n_init=10, random_state=derive(seed, "clusters") % 2**32).fit(rows)
    apart = ((rows[:, None] - fitted.cluster_centers_) ** 2).sum(-1)
    # Every centre has floor(C/K) places, and as many of them one more as are left over; which, the cost decides. Places
    # that must be filled are cheaper than those that may be by more than all distances together.
    least, most = count // students, -(-count // students)
    base = apart.sum() + 1.0
    places = np.concatenate([np.repeat(apart, least, axis=1), *([apart + base] if most > least else [])], axis=1)
    owner = np.concatenate([np.repeat(np.arange(students), least), *([np.arange(students)] if most > least else [])])
    row, column = linear_sum_assignment(places)
    return sorted(_grouped(owner[column[np.argsort(row)]].tolist(), students))


def check_shares(shares: Sequence[Sequence[int]], num_classes: int) -> NDArray[np.int64]:
    """The router's table k(y), (C,); refused unless every class stands in exactly one share.

    Args:
        shares: K lists of classes.
        num_classes: C.

    Raises:
        InputError: a share is empty, a class is left out, stands twice, or does not exist.

    >>> check_shares([[0, 2], [1]], 3).tolist()
    [0, 1, 0]
    """
    table = np.full(num_classes, -1, dtype=np.int64)
    for k, share in enumerate(shares):
        if not len(share):
            raise InputError("partition", f"share {k}", "is empty; give each student a class, or take fewer students")
        for y in share:
            if not isinstance(y, int) or isinstance(y, bool) or not 0 <= y < num_classes:
                raise InputError("partition", f"class {y} in share {k}", f"the classes are 0 to {num_classes - 1}")
            if table[y] >= 0:
                raise InputError(
                    "partition", f"class {y}", f"stands in shares {table[y]} and {k}; give each class once"
                )
            table[y] = k
    left = np.flatnonzero(table < 0).tolist()
    if left:
        shown = ", ".join(map(str, left[:8])) + (", ..." if len(left) > 8 else "")
        raise InputError("partition", f"classes {shown}", "are left out; give every class to one student")
    return table


def within_share_scatter(means: Tensor, shares: Sequence[Sequence[int]]) -> float:
    """(1/C) sum_k sum_{y in V_k} |m_y - mean of V_k|^2: what one student of the partition has to cover, on the average.

    Args:
        means: (C, D), where the conditions lie.
        shares: the partition.
    """
    check_shares(shares, len(means))
    rows = [means[list(share)].double() for share in shares]
    return float(sum((row - row.mean(0)).square().sum() for row in rows) / len(means))


def of_classes(source: Any, classes: Sequence[int]) -> Any:
    """F(D, V): images whose label lies in a share, which keep their labels and numbers; pairs in memory alike.

    Args:
        source: :class:`scoreline.data.images.Images` or :class:`scoreline.data.pair_store.Pairs`.
        classes: V.

    Raises:
        InputError: the set has no labels, or holds nothing of these classes.
    """
    from scoreline.data.pair_store import Pairs

    given = source.label if isinstance(source, Pairs) else getattr(source, "labels", None)
    labels = None if given is None else np.asarray(given)
    if labels is None or labels.ndim != 1:
        raise InputError("classes", list(classes), f"{getattr(source, 'name', 'the data')} has no class for each image")
    rows = np.flatnonzero(np.isin(labels, np.asarray(classes)))
    if len(rows) == 0:
        raise InputError("classes", list(classes), f"{source.name} holds no image of them")
    if not isinstance(source, Pairs):
        return source.subset(rows)
    assert source.label is not None
    at = torch.from_numpy(rows)
    kept = Pairs(
        source.noise[at], source.image[at], source.label[at], num_classes=source.num_classes, flips=source.flips,
        name=source.name,
    )  # fmt: skip
    kept.index = source.index[rows]
    return kept


def quadrants(embeddings: Tensor, *, nested: bool = False) -> QuadrantRouter:
    """Four shares of embedded texts: the signs of their first two principal components, thresholds at the medians.

    Args:
        embeddings: (N, D) pooled embeddings of the prompts that are trained on, N at least 4.
        nested: take the second median within each half of the first component, so that the four shares are equal to
            a prompt; medians of the whole make halves equal, not quarters.

    Raises:
        InputError: too few embeddings, or all on a line.
    """
    if embeddings.dim() != 2 or len(embeddings) < 4 or embeddings.shape[1] < 2:
        raise InputError(
            "embeddings", tuple(embeddings.shape), "give at least four rows of two numbers or more, (N, D)"
        )
    rows = embeddings.detach().double().cpu()
    centre = rows.mean(0)
    covariance = (rows - centre).T @ (rows - centre) / len(rows)
    if not bool(torch.isfinite(covariance).all()):
        raise InputError("embeddings", tuple(embeddings.shape), "are not finite")
    sizes, columns = torch.linalg.eigh(covariance)  # ascending
    if sizes[-2] <= 1e-12 * sizes[-1]:
        raise InputError("embeddings", tuple(embeddings.shape), "lie on a line; there is no second component")
    axes = columns[:, [-1, -2]].T
    # A component's sign is arbitrary: its largest entry is made positive.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    at = (rows - centre) @ axes.T
    first = _median(at[:, 0])
    upper = at[:, 0] > first
    second = [_median(at[~upper, 1]), _median(at[upper, 1])] if nested else [_median(at[:, 1])] * 2
    return QuadrantRouter(centre.tolist(), axes.tolist(), [first, *second])


@recorded
class ClassRouter(nn.Module):
    """k(y) by a table of classes.

    Args:
        shares: K lists of classes, a partition of 0 to C-1.

    Raises:
        InputError: see :func:`check_shares`.
    """

    def __init__(self, shares: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.students, self.num_classes = len(shares), sum(len(share) for share in shares)
        table = check_shares(shares, self.num_classes)
        self.register_buffer("table", torch.from_numpy(table), persistent=False)
        self.table: Tensor

    def forward(self, cond: Cond | None) -> Tensor:
        """Number of the student of each image, (B,) 0 to K-1.

        Raises:
            InputError: there are no labels, or one is none of the classes ("no label" is nobody's).
        """
        if cond is None or cond.labels is None:
            raise InputError("condition", None, "students have a share of the classes each; give labels")
        labels = cond.labels.to(self.table.device)
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            raise InputError("label", int(wrong[0]), f"has no student; the classes are 0 to {self.num_classes - 1}")
        return self.table[labels]


@recorded
class QuadrantRouter(nn.Module):
    """k = 2 [a_1 > m_1] + [a_2 > m_2], a = (e - centre) axes^T of the pooled embedding e of a text.

    Args:
        centre: D numbers.
        axes: two directions of D numbers each.
        thresholds: (m_1, m_2 where a_1 <= m_1, m_2 where a_1 > m_1); the last two are the same unless nested.

    Raises:
        InputError: the numbers do not fit together.
    """

    def __init__(self, centre: Sequence[float], axes: Sequence[Sequence[float]], thresholds: Sequence[float]) -> None:
        super().__init__()
        if len(axes) != 2 or len(thresholds) != 3 or {len(axis) for axis in axes} != {len(centre)}:
            raise InputError("axes", len(axes), "give two directions as long as the centre, and three thresholds")
        self.students = 4
        for name, value in (("centre", centre), ("axes", axes), ("thresholds", thresholds)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64), persistent=False)
        self.centre: Tensor
        self.axes: Tensor
        self.thresholds: Tensor

    def forward(self, cond: Cond | None) -> Tensor:
        """Number of the student of each text, (B,) 0 to 3; tokens without a pooled vector are averaged.

        Raises:
            InputError: there is no text, or its embedding has another size.
        """
        if cond is not None and cond.vector is not None:
            pooled = cond.vector.double()
        elif cond is not None and cond.tokens is not None:
            tokens = cond.tokens.double()
            seen = torch.ones_like(tokens[..., :1]) if cond.mask is None else cond.mask.unsqueeze(-1).to(tokens)
            pooled = (tokens * seen).sum(1) / seen.sum(1).clamp_min(1)
        else:
            raise InputError("condition", None, "students have a share of the texts each; give a vector or tokens")
        if pooled.shape[1] != len(self.centre):
            raise InputError("embedding", pooled.shape[1], f"texts were shared out by embeddings of {len(self.centre)}")
        first, second = ((pooled - self.centre) @ self.axes.T).unbind(1)
        above = first > self.thresholds[0]
        limit = torch.where(above, self.thresholds[2], self.thresholds[1])
        return 2 * above.long() + (second > limit).long()


@recorded
class Routed(FlowMap):
    """K students as one model: each image is sent to the student of its condition.

    Args:
        students: K of the same images, classes, schedule and form; flow maps, or denoisers.
        router: whose share a condition is in.

    Raises:
        InputError: their number, images, classes or schedules differ.
    """

    def __init__(self, students: Sequence[Denoiser], router: ClassRouter | QuadrantRouter) -> None:
        super().__init__()
        if len(students) != router.students:
            raise InputError("students", len(students), f"the conditions are shared out among {router.students}")
        first = students[0]
        for k, other in enumerate(students):
            for thing in ("shape", "num_classes", "evaluations"):
                a, b = getattr(first, thing), getattr(other, thing)
                if a != b:
                    raise InputError(f"student {k}", b, f"student 0 has {thing} {a}; all need the same")
            if type(other) is not type(first) or describe(other.schedule) != describe(first.schedule):
                raise InputError(f"student {k}", type(other).__name__, "has another form or schedule than student 0")
        if len(students) > 1 and isinstance(router, ClassRouter) and first.num_classes != router.num_classes:
            mend = f"the partition is one of {router.num_classes} classes"
            raise InputError("students", f"{first.num_classes} classes", mend)
        self.students, self.router = nn.ModuleList(students), router
        self.schedule, self.shape, self.num_classes = first.schedule, tuple(first.shape), first.num_classes
        self.evaluations = first.evaluations
        self.scored, self.end = True, first.schedule.clean
        if isinstance(first, FlowMap):
            self.scored, self.anywhere, self.end = first.scored, first.anywhere, first.end

    def levels(self, steps: int) -> Any:
        found = [np.asarray(student.levels(steps)) for student in self._maps()]
        for k, levels in enumerate(found):
            if not np.array_equal(levels, found[0]):
                mend = f"student 0 starts its steps at {found[0].tolist()}; train all with the same settings"
                raise InputError(f"student {k}", levels.tolist(), mend)
        return found[0]

    def jump(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        maps, out = self._maps(), torch.empty_like(x)
        ask = lambda k, rows, given: maps[k].jump(x[rows], _at(t, rows), _at(s, rows), given)  # noqa: E731
        for rows, part in self._sent(len(x), cond, ask):
            out[rows] = part
        return out

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        if not self.scored:
            return super().posterior(x, t, cond)

        ask = lambda k, rows, given: self.students[k](x[rows], _at(t, rows), given)  # noqa: E731
        parts = self._sent(len(x), cond, ask)
        raw = torch.empty_like(x)
        for rows, part in parts:
            raw[rows] = part.raw
        mean, eps = (
            tuple(_gathered([(rows, getattr(part, name)[i]) for rows, part in parts], x) for i in (0, 1))
            for name in ("_mean", "_eps")
        )
        return Posterior(x, raw, mean=mean, eps=eps, sigma=spread(self.schedule.sigma(t), x))

    def check(self, times: Time) -> None:
        for student in self._each():
            student.check(times)

    def decode(self, x: Tensor) -> Tensor:
        return self._each()[0].decode(x)

    def null(self, cond: Cond) -> Cond:
        if len(self.students) == 1:
            return self._each()[0].null(cond)
        raise InputError("null condition", type(self).__name__, "no student has it; each knows its own share")

    def _each(self) -> list[Denoiser]:
        return list(self.students)  # type: ignore[arg-type]

    def _maps(self) -> list[FlowMap]:
        maps = [student for student in self._each() if isinstance(student, FlowMap)]
        if len(maps) < len(self.students):
            raise InputError("model", type(self.students[0]).__name__, "does not jump; sample these students by heun")
        return maps

    def _sent(
        self, count: int, cond: Cond | None, ask: Callable[[int, Tensor, Cond | None], Any]
    ) -> list[tuple[Tensor, Any]]:
        """(places, answer) of the students whose share is asked for; the others are left alone."""
        cond = self._given if cond is None else cond
        if len(self.students) == 1:  # whatever it is asked, there is nobody else
            return [(torch.arange(count), ask(0, torch.arange(count), cond))]
        number = self.router(cond)
        out = []
        for k in number.unique().tolist():
            rows = (number == k).nonzero()[:, 0]
            out.append((rows, ask(k, rows, None if cond is None else cond[rows])))
        return out


def dm_gradient(x: Tensor, x_t: Tensor, real: Tensor, fake: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """w_t alpha_t (s_fake - s_real), (B, ...): distribution matching as the paper writes it, by scores.

    s = -(x_t - alpha mu)/sigma^2,   w_t = sigma^2/alpha C S/|mu_teacher - x|_1;   it is alpha times the direction of
    :func:`scoreline.fewstep.matching.matching_direction`, which is the form that trains.

    Args:
        x: the student's images, clean, (B, *shape).
        x_t: x noised.
        real, fake: mu of teacher and critic at x_t.
        alpha, sigma: (B,) of the levels.

    Reference: Yin et al. 2024 (DMD), eqs. 7 and 8.
    """
    a, s = spread(alpha, x), spread(sigma, x)
    s_real, s_fake = -(x_t - a * real) / s**2, -(x_t - a * fake) / s**2
    norm = spread((real - x).abs().flatten(1).sum(1), x)
    w = s**2 / a * x[0].numel() / norm
    return w * a * (s_fake - s_real)


def _check_count(num_classes: int, students: int) -> None:
    if not 1 <= students <= num_classes:
        raise InputError("students", students, f"must be 1 to {num_classes}, the number of classes")


def _grouped(numbers: Sequence[int], students: int) -> Shares:
    return [[y for y, k in enumerate(numbers) if k == share] for share in range(students)]


def _median(values: Tensor) -> float:
    return float(values.quantile(0.5))  # halfway between the two middle values: as many lie above as below


def _at(t: Time, rows: Tensor) -> Time:
    return t[rows] if isinstance(t, Tensor) and t.dim() else t


def _gathered(parts: Sequence[tuple[Tensor, Any]], x: Tensor) -> Any:
    """A coefficient of all images from those of the students; a number where it is the same for all."""
    values = [value for _, value in parts]
    if not any(isinstance(value, Tensor) for value in values) and len(set(values)) == 1:
        return values[0]
    whole = x.new_empty(len(x), *[1] * (x.dim() - 1))
    for rows, value in parts:
        whole[rows] = value.to(x) if isinstance(value, Tensor) else value
    return whole
