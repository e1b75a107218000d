"""Games among n players, and the ways to divide what all of them reach together.

A game v gives every coalition S of the players 0 ... n - 1 a number; a coalition is written as a bitmask, bit i set
when player i takes part. Shapley (1953) divides v(N) - v(empty) by the mean marginal over all orders of the players,

    phi_i = sum_{S without i} |S|! (n - |S| - 1)! / n!  (v(S + i) - v(S)),

exactly from all 2^n utilities, or from sampled orders. Beside it stand Banzhaf's mean over coalitions, leave-one-out,
the gain of a player alone, the pairwise interaction index (Grabisch & Roubens 1999) and Owen's value (1977) for players
that belong together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name

__all__ = ["EXACT_UP_TO", "Game", "Shapley", "banzhaf", "interaction", "leave_one_out", "merged", "orders", "owen"]
__all__ += ["shapley", "shapley_weights", "single_gain", "tabulate", "visited"]

Game = Tensor | Sequence[float] | Mapping[int, float] | Callable[[int], float]
"""Utilities by bitmask: a table of 2^n numbers, a mapping that holds those asked for, or a function of the mask."""

EXACT_UP_TO = 12
"""Players up to which CopyScope asks for all coalitions (4,096 utilities)."""

_MOST = 20


class Shapley(NamedTuple):
    """Shapley values and how well they are known.

    Args:
        values: (n,) float64.
        error: (n,) standard errors from sampling orders; 0 where all coalitions were counted.
        residual: |sum of values - (v(N) - v(empty))|, relative to the largest utility: round-off, if all is well.
        evaluations: how many different coalitions were looked at.
    """

    values: Tensor
    error: Tensor
    residual: float
    evaluations: int


def shapley_weights(n: int) -> list[Fraction]:
    """Weights of a marginal by the size of the coalition that is joined, W_k = k! (n - k - 1)! / n!, exact.

    Args:
        n: players, at least 1.

    Returns:
        W_0 ... W_{n-1}; over all coalitions of the other players they sum to 1.

    >>> [str(weight) for weight in shapley_weights(3)]
    ['1/3', '1/6', '1/3']
    """
    _check_count(n)
    return [Fraction(math.factorial(k) * math.factorial(n - k - 1), math.factorial(n)) for k in range(n)]


def tabulate(game: Game, n: int) -> Tensor:
    """All 2^n utilities, (2^n,) float64; a function is asked once for each mask.

    Raises:
        InputError: too many players, a table of another size, a coalition that is missing or not finite.
    """
    _check_count(n, most=_MOST)
    if isinstance(game, Tensor) or (isinstance(game, Sequence) and not callable(game)):
        table = torch.as_tensor(game, dtype=torch.float64).detach().cpu()
        if table.shape != (2**n,):
            raise InputError("table", tuple(table.shape), f"{n} players have {2**n} coalitions, one number each")
        if not torch.isfinite(table).all():
            raise InputError("table", "not finite", "every utility is a finite number")
        return table
    value = _cached(game)
    return torch.tensor([value(mask) for mask in range(2**n)], dtype=torch.float64)


def shapley(
    game: Game,
    n: int,
    *,
    method: Literal["exact", "permutation"] = "exact",
    samples: int | None = None,
    generator: torch.Generator | None = None,
    antithetic: bool = True,
) -> Shapley:
    """Shapley values of a game.

    exact: phi_i = sum_{S without i} |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)).
    permutation: the mean marginal over `samples` random orders, se_i = sqrt(var_i / samples); with `antithetic` every
    order is followed by its reverse, and the variance is that of the means of such pairs.

    Args:
        game: utilities by bitmask; each is asked for once.
        n: players; exact up to 20.
        method: "exact" or "permutation".
        samples: orders, even with `antithetic`; None takes 200 n.
        generator: of the orders; None takes one of seed 0.
        antithetic: see above.

    Raises:
        InputError: an unknown method, a table of another size, too few samples, a utility that is not finite.

    Reference: Shapley 1953; Castro et al. 2009; antithetic orders: Mitchell et al. 2022.

    >>> [round(x, 12) for x in shapley([0, 0, 0, 0, 0, 1, 1, 1], 3).values.tolist()]  # two left gloves, one right
    [0.166666666667, 0.166666666667, 0.666666666667]
    """
    _check_count(n)
    if method == "exact":
        table = tabulate(game, n)
        weights = torch.tensor([float(w) for w in shapley_weights(n)], dtype=torch.float64)
        values = torch.stack([(weights[sizes] * gains).sum() for gains, sizes in _marginals(table, n)])
        return Shapley(values, torch.zeros(n, dtype=torch.float64), _residual(values, table[0], table[-1]), len(table))
    if method != "permutation":
        raise unknown_name("method", method, ["exact", "permutation"])
    if not (callable(game) or isinstance(game, Mapping)):
        game = dict(enumerate(tabulate(game, n).tolist()))
    value = _cached(game)
    drawn = orders(n, samples, generator=generator, antithetic=antithetic)
    marginals = torch.empty(len(drawn), n, dtype=torch.float64)
    seen = {0}
    for row, order in enumerate(drawn):
        mask = 0
        for player in order:
            joined = mask | 1 << player
            marginals[row, player] = value(joined) - value(mask)
            mask = joined
            seen.add(mask)
    values = marginals.mean(0)
    independent = marginals.unflatten(0, (-1, 2)).mean(1) if antithetic else marginals
    error = independent.std(0) / math.sqrt(len(independent))
    return Shapley(values, error, _residual(values, value(0), value(2**n - 1)), len(seen))


def orders(
    n: int, samples: int | None = None, *, generator: torch.Generator | None = None, antithetic: bool = True
) -> list[list[int]]:
    """Random orders of the players; with `antithetic` every second one is the reverse of the one before.

    Raises:
        InputError: fewer than two independent draws, or an odd number of antithetic orders.
    """
    _check_count(n)
    count = 200 * n if samples is None else samples
    least = 4 if antithetic else 2
    if count < least or (antithetic and count % 2):
        mend = "antithetic orders come in pairs, at least two of them" if antithetic else "at least 2 are needed"
        raise InputError("samples", count, mend)
    generator = generator or torch.Generator().manual_seed(0)
    drawn: list[list[int]] = []
    while len(drawn) < count:
        order = torch.randperm(n, generator=generator).tolist()
        drawn += [order, order[::-1]] if antithetic else [order]
    return drawn


def visited(drawn: Sequence[Sequence[int]]) -> list[int]:
    """The masks that some orders pass through, sorted: what has to be known before they can be averaged."""
    masks = {0}
    for order in drawn:
        masks.update(itertools.accumulate((1 << player for player in order), lambda a, b: a | b))
    return sorted(masks)


def banzhaf(game: Game, n: int) -> Tensor:
    """Mean marginal over all coalitions of the others, (n,): sum_S (v(S + i) - v(S)) / 2^{n-1}. Not efficient.

    Reference: Banzhaf 1965.
    """
    return torch.stack([gains.mean() for gains, _ in _marginals(tabulate(game, n), n)])


def leave_one_out(game: Game, n: int) -> Tensor:
    """What the whole loses without a player, (n,): v(N) - v(N - i). Needs n + 1 utilities. Not efficient."""
    value, full = _value(game, n), 2**n - 1
    return torch.tensor([value(full) - value(full ^ 1 << i) for i in range(n)], dtype=torch.float64)


def single_gain(game: Game, n: int) -> Tensor:
    """What a player reaches alone, (n,): v({i}) - v(empty). Needs n + 1 utilities. Not efficient."""
    value = _value(game, n)
    return torch.tensor([value(1 << i) - value(0) for i in range(n)], dtype=torch.float64)


def interaction(game: Game, n: int) -> Tensor:
    """Shapley interaction index of every pair, (n, n) symmetric with zeros on the diagonal.

    I_ij = sum_{S without i, j} |S|! (n - |S| - 2)! / (n - 1)!  (v(S + i + j) - v(S + i) - v(S + j) + v(S)):
    above 0 two players need each other, below 0 they replace each other.

    Reference: Grabisch & Roubens 1999.
    """
    table = tabulate(game, n)
    # The weights are those of a game of n - 1 players, the pair counting as one.
    weights = torch.tensor([float(w) for w in shapley_weights(max(n - 1, 1))], dtype=torch.float64)
    masks = torch.arange(2**n)
    sizes = _sizes(n)
    index = torch.zeros(n, n, dtype=torch.float64)
    for i, j in itertools.combinations(range(n), 2):
        a, b = 1 << i, 1 << j
        rest = masks[masks & (a | b) == 0]
        change = table[rest | a | b] - table[rest | a] - table[rest | b] + table[rest]
        index[i, j] = index[j, i] = (weights[sizes[rest]] * change).sum()
    return index


def merged(game: Game, n: int, groups: Sequence[Sequence[int]]) -> Tensor:
    """The game among groups, (2^m,): each group acts as one player, all of its members or none.

    The Shapley value of such a player is in general NOT the sum of its members' own Shapley values.

    Raises:
        InputError: the groups are no partition of the players.
    """
    table = tabulate(game, n)
    blocks = _blocks(groups, n)
    masks = torch.arange(2 ** len(blocks))
    return table[sum(((masks >> k & 1) * block for k, block in enumerate(blocks)), torch.zeros_like(masks))]


def owen(game: Game, n: int, groups: Sequence[Sequence[int]]) -> Tensor:
    """Owen's value, (n,): Shapley among groups, and Shapley inside each group of what it gets.

    For i in group B, with m groups and b members of B,

        sum_H sum_T  h! (m - h - 1)! / m!  t! (b - t - 1)! / b!  (v(Q + T + i) - v(Q + T)),

    H over sets of h other groups, Q their members, T over sets of t other members of B. The members of a group share
    what the group gets as a merged player; one group, or n groups of one, give Shapley's value.

    Raises:
        InputError: the groups are no partition of the players.

    Reference: Owen 1977.
    """
    table = tabulate(game, n)
    blocks = _blocks(groups, n)
    values = torch.zeros(n, dtype=torch.float64)
    outer = shapley_weights(len(blocks))
    for k, members in enumerate(groups):
        others = blocks[:k] + blocks[k + 1 :]
        inner = shapley_weights(len(members))
        for player in members:
            rest = [1 << other for other in members if other != player]
            values[player] = math.fsum(
                float(outer[len(h)] * inner[len(t)]) * float(table[sum(h) + sum(t) + (1 << player)] - table[sum(h + t)])
                for h in _subsets(others)
                for t in _subsets(rest)
            )
    return values


def _subsets(items: Sequence[int]) -> list[tuple[int, ...]]:
    return [chosen for size in range(len(items) + 1) for chosen in itertools.combinations(items, size)]


def _blocks(groups: Sequence[Sequence[int]], n: int) -> list[int]:
    """The mask of each group."""
    if sorted(player for group in groups for player in group) != list(range(n)) or not all(groups):
        raise InputError("groups", [list(group) for group in groups], f"each of the {n} players is in one group")
    return [sum(1 << player for player in group) for group in groups]


def _sizes(n: int) -> Tensor:
    """How many players each mask holds, (2^n,)."""
    masks = torch.arange(2**n)
    return sum((masks >> i & 1 for i in range(n)), torch.zeros_like(masks))


def _marginals(table: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    """For each player the marginals v(S + i) - v(S) over all S without i, and the sizes of these S."""
    masks, sizes = torch.arange(2**n), _sizes(n)
    without = [masks[masks >> i & 1 == 0] for i in range(n)]
    return [(table[rest | 1 << i] - table[rest], sizes[rest]) for i, rest in enumerate(without)]


def _residual(values: Tensor, empty: Tensor | float, full: Tensor | float) -> float:
    total = float(full) - float(empty)
    return abs(float(values.sum()) - total) / max(abs(float(full)), abs(float(empty)), abs(total), 1e-300)


def _value(game: Game, n: int) -> Callable[[int], float]:
    _check_count(n)
    if callable(game) or isinstance(game, Mapping):
        return _cached(game)
    return tabulate(game, n).tolist().__getitem__


def _cached(game: Mapping[int, float] | Callable[[int], float]) -> Callable[[int], float]:
    """The utility of a mask, asked for once and finite."""
    known: dict[int, float] = {}

    def value(mask: int) -> float:
        if mask not in known:
            if isinstance(game, Mapping):
                if mask not in game:
                    raise InputError("coalition", bin(mask), "has no utility in the mapping that was given")
                found = float(game[mask])
            else:
                found = float(game(mask))
            if not math.isfinite(found):
                raise InputError(f"utility of coalition {mask:b}", found, "every utility is a finite number")
            known[mask] = found
        return known[mask]

    return value


def _check_count(n: int, most: int | None = None) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError("n", n, "a game has at least 1 player")
    if most is not None and n > most:
        raise InputError("n", n, f"all coalitions of up to {most} players can be counted; use method='permutation'")
