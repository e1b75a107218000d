"""The predictor of the S^3 search: which of two solver schedules is better, from their decisions alone.

Liu et al. 2024 (arXiv 2312.07243). Every step is embedded (its times by sinusoids, discrete decisions by tables), a GRU
reads the sequence, an MLP turns its last state into a number P, larger for worse. It is trained on all pairs of known
schedules of the same budget, with the ranking hinge
    sum over score_i < score_j of max(0, m - (P_j - P_i)).
One predictor serves all budgets: the sequence is as long as the schedule, and only equals are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from scoreline.core.noise import derive
from scoreline.core.schedule import Schedule
from scoreline.samplers.solver_schedule import AFS, CORRECTORS, MAX_ORDER, PREDICTIONS, SCALINGS, SolverSchedule

__all__ = ["SchedulePredictor", "encode", "fit_predictor", "kendall_tau", "ranking_loss"]

# The discrete decisions of a step and how many values each has.
TABLES = (MAX_ORDER + 1, len(PREDICTIONS), 5, 5, len(SCALINGS) + 1, len(CORRECTORS) + 1, len(AFS) + 1)


def encode(plans: Sequence[SolverSchedule], schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """Schedules as padded sequences.

    Args:
        plans: N schedules, S the most steps of any.
        schedule: whose lambda places the times.

    Returns:
        (numbers (N, S, 3 + J): lambda at the start and end of the step, linear scaling, what the J skip coefficients
        lack of 1; decisions (N, S, 7) int64; lengths (N,) int64).
    """
    longest = max(len(p.steps) for p in plans)
    joints = max(len(p.skips or ()) for p in plans)
    numbers = np.zeros((len(plans), longest, 3 + joints))
    decisions = np.zeros((len(plans), longest, len(TABLES)), dtype=np.int64)
    with np.errstate(divide="ignore"):
        for n, plan in enumerate(plans):
            lam = np.clip(schedule.lam(np.array(plan.times)), -12.0, 12.0)
            for i, step in enumerate(plan.steps):
                numbers[n, i, :3] = lam[i], lam[i + 1], step.linear
                numbers[n, i, 3:] = 1 - np.array(plan.skips) if plan.skips else 0
                decisions[n, i] = (
                    step.order, PREDICTIONS.index(step.prediction), min(-step.start, 4),
                    min(len(step.points[0]), 4) if step.points else 0,
                    0 if step.scaling is None else 1 + SCALINGS.index(step.scaling),
                    0 if step.corrector is None else 1 + CORRECTORS.index(step.corrector),
                    0 if plan.afs is None else 1 + AFS.index(plan.afs),
                )  # fmt: skip
    lengths = torch.tensor([len(p.steps) for p in plans])
    return torch.from_numpy(numbers).float(), torch.from_numpy(decisions), lengths


class SchedulePredictor(nn.Module):
    """(N,) predicted badness of encoded schedules.

    Args:
        width: of the embeddings, the GRU and the MLP.
        joints: number of skip coefficients of a schedule.
    """

    frequencies: Tensor

    def __init__(self, *, width: int = 32, joints: int = 0) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, 8) for count in TABLES)
        self.register_buffer("frequencies", torch.pi / 12 * 2.0 ** torch.arange(4))
        self.embed = nn.Linear(8 * len(TABLES) + 16 + 3 + joints, width)
        self.read = nn.GRU(width, width, batch_first=True)
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, numbers: Tensor, decisions: Tensor, lengths: Tensor) -> Tensor:
        """Args: see :func:`encode`."""
        angles = numbers[..., :2, None] * self.frequencies
        parts = [angles.sin().flatten(-2), angles.cos().flatten(-2), numbers[..., :2] / 5, 10 * numbers[..., 2:]]
        parts += [table(decisions[..., k]) for k, table in enumerate(self.tables)]
        states, _ = self.read(self.embed(torch.cat(parts, dim=-1)).tanh())
        last = states[torch.arange(len(lengths)), lengths - 1]
        return self.head(last)[:, 0]


def ranking_loss(predicted: Tensor, scores: Tensor, groups: Tensor, *, margin: float = 0.1) -> Tensor:
    """Mean over pairs of one group with score_i < score_j of max(0, margin - (P_j - P_i)).

    Args:
        predicted: (N,) P.
        scores: (N,) true scores, smaller is better.
        groups: (N,) only equals are compared.
        margin: m.

    >>> ranking_loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]), torch.tensor([5, 5])).item()
    0.0
    """
    pairs = (scores[:, None] < scores) & (groups[:, None] == groups)
    hinge = (margin - (predicted - predicted[:, None])).clamp_min(0)
    return (hinge * pairs).sum() / pairs.sum().clamp_min(1)


def kendall_tau(
    predicted: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray, groups: Sequence[int]
) -> float:
    """(concordant - discordant)/(all) over pairs of one group with different scores; NaN without pairs.

    >>> kendall_tau([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [4, 4, 4])
    0.3333333333333333
    """
    p, s, g = np.asarray(predicted), np.asarray(scores), np.asarray(groups)
    pairs = (s[:, None] < s) & (g[:, None] == g)
    agree = np.sign(p - p[:, None])
    return float(agree[pairs].mean()) if pairs.any() else float("nan")


def fit_predictor(
    plans: Sequence[SolverSchedule],
    scores: Sequence[float] | np.ndarray,
    schedule: Schedule,
    *,
    seed: int = 0,
    steps: int = 60,
    margin: float = 0.1,
    lr: float = 1e-2,
) -> SchedulePredictor:
    """Train a predictor on all known schedules; the same on every machine and thread count up to rounding.

    Args:
        plans, scores: what is known; infinite scores rank last.
        schedule: of the times.
        seed: of the initial weights.
        steps: of Adam, on all pairs at once.
        margin: of the hinge.
        lr: learning rate, falling to zero.
    """
    numbers, decisions, lengths = encode(plans, schedule)
    groups = torch.tensor([p.nfe() for p in plans])
    # Only the order counts.
    true = torch.as_tensor(np.nan_to_num(np.asarray(scores, dtype=np.float64), posinf=1e300))
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "schedule-predictor") % 2**63)
        net = SchedulePredictor(joints=numbers.shape[-1] - 3)
        optimizer = torch.optim.Adam(net.parameters(), lr=lr, weight_decay=1e-4)
        for i in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - i / steps)
            loss = ranking_loss(net(numbers, decisions, lengths), true, groups, margin=margin)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums of small tensors in one order, whatever the number of threads outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
