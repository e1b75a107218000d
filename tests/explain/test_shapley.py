"""Games whose values are known, and the laws that make Shapley's value what it is."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.explain.shapley import (
    banzhaf,
    interaction,
    leave_one_out,
    merged,
    orders,
    owen,
    shapley,
    shapley_weights,
    single_gain,
    tabulate,
    visited,
)

GLOVES = [0.0, 0, 0, 0, 0, 1, 1, 1]
TIGHT = {"rtol": 0, "atol": 1e-12}


def random_game(n: int, seed: int = 0) -> Tensor:
    return torch.randn(2**n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unanimity(n: int, team: int) -> Tensor:
    return torch.tensor([float(mask & team == team) for mask in range(2**n)], dtype=torch.float64)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, **TIGHT)


@pytest.mark.check(system=5, number=1)
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_weights_sum_to_one_over_the_coalitions_of_the_others(n: int) -> None:
    weights = shapley_weights(n)
    assert sum(math.comb(n - 1, k) * weight for k, weight in enumerate(weights)) == 1
    assert all(isinstance(weight, Fraction) for weight in weights)
    # A mean over orders: W_k is the chance that exactly one given set of k players comes before.
    assert weights[0] == Fraction(1, n)


@pytest.mark.check(system=5, number=2)
def test_an_additive_game_gives_everyone_their_own() -> None:
    n = 5
    own = random_game(n)[:n]
    table = torch.tensor([sum(own[i] for i in range(n) if mask >> i & 1) for mask in range(2**n)], dtype=torch.float64)
    for value in (shapley(table, n).values, banzhaf(table, n), leave_one_out(table, n), single_gain(table, n)):
        close(value, own)


@pytest.mark.check(system=5, number=3)
@pytest.mark.parametrize("team", [0b00001, 0b01010, 0b11101, 0b11111])
def test_a_unanimity_game_is_shared_in_equal_parts_by_its_team(team: int) -> None:
    size = team.bit_count()
    expected = torch.tensor([team >> i & 1 for i in range(5)], dtype=torch.float64) / size
    close(shapley(unanimity(5, team), 5).values, expected)


@pytest.mark.check(system=5, number=4)
@given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(-3, 3))
def test_linearity_and_efficiency(seed: int, a: float, b: float) -> None:
    v, w = random_game(4, seed), random_game(4, seed + 1)
    both = shapley(a * v + b * w, 4)
    close(both.values, a * shapley(v, 4).values + b * shapley(w, 4).values)
    close(both.values.sum(), (a * v + b * w)[-1] - (a * v + b * w)[0])
    assert both.residual < 1e-12


@pytest.mark.check(system=5, number=4)
def test_symmetry_and_dummy() -> None:
    # Utility depends on how many of players 0 and 2 take part; player 1 adds 0 everywhere.
    worth = {0: 0.0, 1: 1.7, 2: 9.0}
    table = [worth[(mask & 1) + (mask >> 2 & 1)] for mask in range(8)]
    values = shapley(table, 3).values
    assert values[0] == values[2] == 4.5
    assert values[1] == 0


@pytest.mark.check(system=5, number=5)
def test_a_constant_changes_nothing_and_only_gains_count() -> None:
    distance = random_game(4).abs() * 100
    close(shapley(distance + 12.5, 4).values, shapley(distance, 4).values)
    close(shapley(-distance, 4).values, shapley(distance[0] - distance, 4).values)


@pytest.mark.check(system=5, number=6)
def test_the_glove_game() -> None:
    close(shapley(GLOVES, 3).values, tensor(1 / 6, 1 / 6, 2 / 3))
    close(banzhaf(GLOVES, 3), tensor(1 / 4, 1 / 4, 3 / 4))
    close(leave_one_out(GLOVES, 3), tensor(0, 0, 1))
    close(single_gain(GLOVES, 3), tensor(0, 0, 0))


@pytest.mark.check(system=5, number=7)
def test_all_orders_give_the_subset_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    table = random_game(4)
    every = [list(order) for order in itertools.permutations(range(4))]
    monkeypatch.setattr("scoreline.explain.shapley.orders", lambda *_, **__: every)
    sampled = shapley(table, 4, method="permutation", antithetic=False)
    close(sampled.values, shapley(table, 4).values)
    assert sampled.evaluations == 16


@pytest.mark.check(system=5, number=7)
@pytest.mark.parametrize("antithetic", [False, True])
def test_sampled_orders_lie_within_their_errors(antithetic: bool) -> None:
    table = random_game(6)
    exact = shapley(table, 6)
    generator = torch.Generator().manual_seed(1)
    found = shapley(table, 6, method="permutation", samples=400, generator=generator, antithetic=antithetic)
    off = (found.values - exact.values).abs() / found.error
    assert off.max() < 5
    assert off.max() > 0.05  # errors are neither zero nor absurdly wide
    assert found.residual < 1e-12  # every order is efficient
    assert exact.error.tolist() == [0] * 6


def test_the_stated_errors_are_those_seen_over_repetitions() -> None:
    table = random_game(4, 3)
    for antithetic in (False, True):
        runs = [
            shapley(table, 4, method="permutation", samples=20, generator=torch.Generator().manual_seed(s),
                    antithetic=antithetic)
            for s in range(300)
        ]  # fmt: skip
        seen = torch.stack([run.values for run in runs]).std(0)
        stated = torch.stack([run.error for run in runs]).square().mean(0).sqrt()
        torch.testing.assert_close(stated, seen, rtol=0.2, atol=0)


def test_antithetic_orders_are_reversed_pairs_and_help_where_order_matters() -> None:
    drawn = orders(5, 10)
    assert [order[::-1] for order in drawn[::2]] == drawn[1::2]
    assert drawn == orders(5, 10) != orders(5, 10, generator=torch.Generator().manual_seed(1))
    # In a game that is quadratic in the number of players a pair cancels all of the spread.
    table = [mask.bit_count() ** 2 for mask in range(32)]
    assert shapley(table, 5, method="permutation", samples=20).error.max() < 1e-12
    assert shapley(table, 5, method="permutation", samples=20, antithetic=False).error.max() > 0.1


@pytest.mark.check(system=5, number=8)
def test_renaming_the_players_renames_the_values() -> None:
    n, table = 4, random_game(4)
    renamed = [2, 0, 3, 1]  # player i is called renamed[i]
    other = torch.empty_like(table)
    for mask in range(2**n):
        other[sum(1 << renamed[i] for i in range(n) if mask >> i & 1)] = table[mask]
    where = torch.tensor(renamed)
    for value in (lambda t: shapley(t, n).values, lambda t: banzhaf(t, n), lambda t: leave_one_out(t, n)):
        close(value(other)[where], value(table))
    close(interaction(other, n)[where][:, where], interaction(table, n))


def test_the_bit_of_a_player_is_its_number() -> None:
    assert shapley(lambda mask: float(mask >> 2 & 1), 3).values.tolist() == [0, 0, 1]


@pytest.mark.check(system=5, number=9)
def test_equal_utilities_give_exactly_nothing() -> None:
    assert shapley([0.1 + 0.2] * 16, 4).values.tolist() == [0] * 4
    assert shapley([0.1 + 0.2] * 16, 4, method="permutation").values.tolist() == [0] * 4


@pytest.mark.check(system=5, number=10)
def test_interactions_of_additive_and_unanimity_games() -> None:
    own = random_game(4)[:4].tolist()
    additive = [sum(w for i, w in enumerate(own) if mask >> i & 1) for mask in range(16)]
    close(interaction(additive, 4), torch.zeros(4, 4, dtype=torch.float64))
    pair = interaction(unanimity(4, 0b0101), 4)
    assert pair[0, 2] == pair[2, 0] == pytest.approx(1, abs=1e-12)
    assert pair.abs().sum() == pytest.approx(2, abs=1e-12)
    # A team of three: I = 1 / (|T| - 1) for its pairs.
    assert interaction(unanimity(5, 0b01011), 5)[0, 3] == pytest.approx(0.5, abs=1e-12)
    # A pair that does the same job replaces each other.
    assert interaction([0, 1, 1, 1], 2)[0, 1] == -1
    assert interaction([0, 5], 1).tolist() == [[0]]


def test_a_merged_player_is_not_the_sum_of_its_members() -> None:
    grouped = merged(GLOVES, 3, [[0, 1], [2]])
    assert grouped.tolist() == [0, 0, 0, 1]
    close(shapley(grouped, 2).values, tensor(1 / 2, 1 / 2))  # against 1/3 and 2/3 apart


def test_owen_values_of_the_glove_game() -> None:
    # Members of the left-hand cartel share its half.
    close(owen(GLOVES, 3, [[0, 1], [2]]), tensor(1 / 4, 1 / 4, 1 / 2))
    close(owen(GLOVES, 3, [[0, 2], [1]]), tensor(1 / 4, 0, 3 / 4))


def test_owen_splits_what_the_group_gets_and_reduces_to_shapley() -> None:
    table, n = random_game(5), 5
    groups = [[0, 3], [1, 2, 4]]
    values = owen(table, n, groups)
    among = shapley(merged(table, n, groups), 2).values
    close(torch.stack([values[group].sum() for group in groups]), among)
    for trivial in ([[0, 1, 2, 3, 4]], [[i] for i in range(n)]):
        close(owen(table, n, trivial), shapley(table, n).values)


def test_a_function_is_asked_once_for_each_coalition() -> None:
    asked: list[int] = []

    def game(mask: int) -> float:
        asked.append(mask)
        return float(mask.bit_count())

    assert shapley(game, 4).evaluations == 16
    assert sorted(asked) == list(range(16))
    asked.clear()
    found = shapley(game, 5, method="permutation", samples=6)
    assert len(asked) == len(set(asked)) == found.evaluations
    assert sorted(asked) == visited(orders(5, 6))
    asked.clear()
    leave_one_out(game, 14)
    assert len(asked) == 15


def test_a_mapping_of_what_orders_visit_is_enough() -> None:
    drawn = orders(14, 8)
    known = {mask: float(mask.bit_count()) for mask in visited(drawn)}
    assert len(known) < 120
    assert shapley(known, 14, method="permutation", samples=8).values.tolist() == [1] * 14
    with pytest.raises(InputError, match="has no utility"):
        shapley({0: 0.0, 3: 1.0}, 2)


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: shapley([0, 1, 2], 2), "4 coalitions"),
        (lambda: shapley([0.0, math.nan], 1), "finite"),
        (lambda: shapley(lambda mask: math.inf, 1), "finite"),
        (lambda: shapley([0, 1], 1, method="permutations"), "did you mean 'permutation'"),
        (lambda: shapley([0, 1], 1, method="permutation", samples=5), "pairs"),
        (lambda: shapley([0, 1], 1, method="permutation", samples=1, antithetic=False), "at least 2"),
        (lambda: shapley([], 0), "at least 1 player"),
        (lambda: shapley(lambda mask: 0.0, 21), "permutation"),
        (lambda: tabulate([[0, 1]], 1), "2 coalitions"),
        (lambda: owen(GLOVES, 3, [[0, 1]]), "one group"),
        (lambda: merged(GLOVES, 3, [[0, 1], [2], []]), "one group"),
        (lambda: merged(GLOVES, 3, [[0, 1], [1, 2]]), "one group"),
    ],
)
def test_refusals(call, word: str) -> None:
    with pytest.raises(InputError, match=word):
        call()
