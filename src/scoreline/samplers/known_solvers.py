"""Published solvers as points of the decision space of the unified sampling framework, Liu et al. 2024.

DDIM, DPM-Solver (singlestep and multistep), DPM-Solver++, DEIS in lambda, UniPC and iPNDM, each as the list of its
decisions (arXiv 2312.07243, section 3 and appendix).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from scoreline.samplers.solver_schedule import Step, one_of

__all__ = ["KNOWN", "Solver", "known_solver", "singlestep_groups", "uniform"]


@dataclass(frozen=True)
class Solver:
    """A solver that makes the same decisions at every step, as far as the visited points allow.

    Args:
        prediction: see :class:`Step`.
        order: Taylor order once enough points are visited.
        scalings: scaling by Taylor order, where there is one.
        corrector: of every step but the last; None for none.
        corrector_scalings: scaling inside the corrector, by the order of its predictor.
        single: a singlestep method: this many steps belong together, the last of them starts where the first did.
        lower_order_final: on a run to the clean end the last q - 1 steps go down to order q - 1, ..., 1.
        convergence: its order of convergence.
    """

    prediction: str
    order: int
    scalings: tuple[tuple[int, str], ...] = ()
    corrector: str | None = None
    corrector_scalings: tuple[tuple[int, str], ...] = ()
    single: int = 1
    lower_order_final: bool = False
    convergence: int = 1


def _unipc(p: int, bh: str) -> Solver:
    # In systems of one unknown UniPC sets the weight 1/2 instead of solving; B(h) survives there only.
    return Solver("data", p, ((2, bh),), "pseudo", ((1, bh),), lower_order_final=True, convergence=p + 1)


KNOWN: dict[str, Solver] = {
    "ddim": Solver("data", 1),
    "dpm-solver-1": Solver("noise", 1),
    "dpm-solver-2": Solver("noise", 2, ((2, "dpmsolver-2"),), single=2, convergence=2),
    "dpm-solver-3": Solver("noise", 2, single=3, convergence=3),
    "dpm-solver-2m": Solver("noise", 2, ((2, "dpmsolver-2"),), convergence=2),
    "dpm-solver-3m": Solver("noise", 3, ((2, "dpmsolver-2"),), convergence=3),
    "dpm-solver++2s": Solver("data", 2, ((2, "dpmsolver-2"),), single=2, convergence=2),
    "dpm-solver++2m": Solver("data", 2, ((2, "dpmsolver-2"),), convergence=2),
    "dpm-solver++3m": Solver("data", 3, ((2, "dpmsolver-2"),), convergence=3),
    **{f"deis-{r}": Solver("noise", r + 1, convergence=r + 1) for r in (1, 2, 3)},
    **{f"unipc-{p}": _unipc(p, "unipc-bh2") for p in (1, 2, 3)},
    **{f"unipc-{p}-bh1": _unipc(p, "unipc-bh1") for p in (1, 2, 3)},
    "ipndm": Solver("noise", 4, ((2, "adams"), (3, "adams"), (4, "adams")), convergence=2),
}


def known_solver(name: str, lam: Sequence[float] | np.ndarray, *, variant: str = "paper") -> tuple[Step, ...]:
    """The decisions of a published solver, one a step.

    Args:
        name: of `KNOWN`: ddim and dpm-solver-1; dpm-solver-2, -3 and dpm-solver++2s (singlestep, whose intermediate
            points are visited points like all others); dpm-solver-2m, -3m, dpm-solver++2m, ++3m (multistep); deis-r
            with a polynomial of degree r in lambda; unipc-p and unipc-p-bh1 with their corrector; ipndm.
        lam: (S+1,) lambda at every visited time; +inf at the clean end, -inf where no signal is left.
        variant: "released" halves the second derivative of the third-order DPM-Solvers, as their code does.

    Raises:
        InputError: an unknown name or variant.
    """
    one_of("solver", name, sorted(KNOWN))
    one_of("variant", variant, ("paper", "released"))
    solver = KNOWN[name]
    if variant == "released" and name in ("dpm-solver-3m", "dpm-solver++3m"):
        solver = Solver(**{**asdict(solver), "scalings": (*solver.scalings, (3, "dpmsolver-3-released"))})
    return uniform(solver, lam)


def uniform(solver: Solver, lam: Sequence[float] | np.ndarray) -> tuple[Step, ...]:
    """The decisions of a solver that does the same at every step.

    The order of step i is at most i + 1. Steps to the clean end, where h is infinite, and steps from a level without
    signal are of first order, and no other step uses such a level; the scaling "adams" needs none of this.

    Args:
        solver: the decisions.
        lam: (S+1,) lambda at every visited time.
    """
    lam = np.asarray(lam, dtype=np.float64)
    count = len(lam) - 1
    if solver.single > 1:
        groups = singlestep_groups(count, solver.single, np.isfinite(lam))
        return tuple(step for size in groups for step in _single(solver, size))
    # Weights of even steps do not look at lambda.
    adams = "adams" in dict(solver.scalings).values()
    steps = []
    for i in range(count):
        usable = 0
        while usable <= i and (adams or np.isfinite(lam[i - usable])):
            usable += 1
        order = min(solver.order, usable) if adams or np.isfinite(lam[i + 1]) else 1
        if solver.lower_order_final and not np.isfinite(lam[-1]):
            order = min(order, count - i)
        order = max(order, 1)
        extra = tuple(range(-2, -order - 1, -1))
        corrector = solver.corrector if i < count - 1 and np.isfinite(lam[i : i + 2]).all() else None
        steps.append(
            Step(
                solver.prediction,
                order,
                -1,
                (extra,) * (order - 1),
                dict(solver.scalings).get(order),
                corrector=corrector,
                corrector_scaling=dict(solver.corrector_scalings).get(order) if corrector else None,
            )
        )
    return tuple(steps)


def singlestep_groups(count: int, size: int, finite: Sequence[bool] | np.ndarray) -> list[int]:
    """How `count` steps are put into groups of `size`: the steps with an infinite h alone, what is left over last.

    Args:
        count: number of steps.
        size: of a whole group.
        finite: (count+1,) whether lambda is finite at each visited time.

    >>> singlestep_groups(6, 2, [True] * 6 + [False])
    [2, 2, 1, 1]
    """
    head, tail = int(not finite[0]), int(not finite[-1] and count > int(not finite[0]))
    inner = count - head - tail
    whole, rest = divmod(inner, size)
    return [1] * head + [size] * whole + ([rest] if rest else []) + [1] * tail


def _single(solver: Solver, size: int) -> list[Step]:
    """DPM-Solver of `size` evaluations: every stage starts where the group does and looks at the stage before it."""
    steps = [Step(solver.prediction)]
    for stage in range(1, size):
        # In a group of two the weight of the last stage is that of the midpoint rule; in a group of three Taylor's.
        scaling = dict(solver.scalings).get(2) if solver.single == 2 else "dpmsolver-2" if size == 2 else None
        steps.append(Step(solver.prediction, 2, -1 - stage, ((-1,),), scaling))
    return steps
