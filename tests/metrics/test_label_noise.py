"""The noise algebra against its closed forms, against counting, and against what breaks it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoreline.core.errors import InputError
from scoreline.metrics.binary_curves import Cells, auroc
from scoreline.metrics.binormal import Binormal
from scoreline.metrics.imbalance import METRICS, kappa, mcc, npv, precision, youden_j
from scoreline.metrics.label_noise import (
    annotate,
    annotated_prevalence,
    correct_auroc,
    corrected_cells,
    flip_probability,
    j_factor,
    mcc_factor,
    noise_correct,
    noisy_cells,
    posterior,
    true_prevalence,
    unbiased_loss,
)

PI = 492 / 284807
SHARE = st.floats(0.02, 0.98)
NOISE = st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)).filter(lambda e: e[0] + e[1] < 0.95)
DRAWS = torch.rand(2, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T, F = DRAWS[0], DRAWS[1]


@pytest.mark.check(system=27, number=3)
@given(SHARE, SHARE, SHARE, st.floats(0, 1), st.floats(0, 1))
def test_noisy_cells_keep_their_sums(pi: float, t: float, f: float, e1: float, e0: float) -> None:
    cells = noisy_cells(pi, t, f, e1, e0)
    assert float(sum(cells)) == pytest.approx(1, abs=1e-15)
    assert float(cells.tp + cells.fn) == pytest.approx(float(annotated_prevalence(pi, e1, e0)), abs=1e-15)
    assert float(cells.tp + cells.fp) == pytest.approx(pi * t + (1 - pi) * f, abs=1e-15)
    alpha, beta = posterior(pi, e1, e0)
    if cells.tp + cells.fn > 0 and cells.fp + cells.tn > 0:
        assert float(cells.tp / (cells.tp + cells.fn)) == pytest.approx(float(alpha * t + (1 - alpha) * f), abs=1e-12)
        assert float(cells.fp / (cells.fp + cells.tn)) == pytest.approx(float(beta * t + (1 - beta) * f), abs=1e-12)


def test_the_cells_are_those_of_an_enumeration() -> None:
    pi, t, f, e1, e0 = 0.3, 0.8, 0.1, 0.2, 0.05
    found = {(a, d): 0.0 for a in (0, 1) for d in (0, 1)}
    for y, prior in ((1, pi), (0, 1 - pi)):
        for a in (0, 1):
            wrong = e1 if y else e0
            for d in (0, 1):
                rate = t if y else f
                found[a, d] += prior * (wrong if a != y else 1 - wrong) * (rate if d else 1 - rate)
    expected = [found[1, 1], found[0, 1], found[1, 0], found[0, 0]]
    assert [float(c) for c in noisy_cells(pi, t, f, e1, e0)] == pytest.approx(expected, abs=1e-15)


@pytest.mark.check(system=27, number=4)
def test_no_noise_pure_noise_and_swapped_classes() -> None:
    pi = 0.07
    clean = Cells(pi * T, (1 - pi) * F, pi * (1 - T), (1 - pi) * (1 - F))
    assert all(torch.allclose(a, b, atol=1e-16) for a, b in zip(noisy_cells(pi, T, F), clean))
    for e1 in (0.1, 0.3, 0.5, 0.9):
        nothing = noisy_cells(pi, T, F, e1, 1 - e1)
        assert float(youden_j(nothing, 0.0).abs().max()) < 1e-13
        assert float(mcc(nothing, 0.0).abs().max()) < 1e-12
    swapped = noisy_cells(pi, T, F, 1.0, 1.0)
    assert torch.allclose(youden_j(swapped, 0.0), -youden_j(clean, 0.0), atol=1e-14)
    assert torch.allclose(mcc(swapped, 0.0), -mcc(clean, 0.0), atol=1e-14)


@pytest.mark.check(system=27, number=5)
@given(st.sampled_from([0.5, 0.1, 0.01, PI]), NOISE)
def test_one_factor_for_every_classifier(pi: float, noise: tuple[float, float]) -> None:
    e1, e0 = noise
    q, seen = 1 - pi, pi * (1 - e1) + (1 - pi) * e0
    clean, noisy = noisy_cells(pi, T, F), noisy_cells(pi, T, F, e1, e0)
    j = (1 - e0 - e1) * pi * q / (seen * (1 - seen))
    m = (1 - e0 - e1) * (pi * q / (seen * (1 - seen))) ** 0.5
    assert torch.allclose(youden_j(noisy, 0.0), j * youden_j(clean, 0.0), atol=1e-12)
    assert torch.allclose(mcc(noisy, 0.0), m * mcc(clean, 0.0), atol=1e-11)
    assert float(j_factor(pi, e1, e0)) == pytest.approx(j, rel=1e-12)
    assert float(mcc_factor(pi, e1, e0)) == pytest.approx(m, rel=1e-12)
    alpha, beta = posterior(pi, e1, e0)
    assert float(alpha - beta) == pytest.approx(j, abs=1e-14)
    # Precision and NPV are lines in their clean values, so their rankings stay too.
    assert torch.allclose(precision(noisy, 0.0), e0 + (1 - e0 - e1) * precision(clean, 0.0), atol=1e-12)
    assert torch.allclose(npv(noisy, 0.0), e1 + (1 - e0 - e1) * npv(clean, 0.0), atol=1e-12)


def test_factors_turn_with_the_classes() -> None:
    assert float(mcc_factor(0.2, 1.0, 1.0)) == pytest.approx(-1)
    assert float(j_factor(0.2, 1.0, 1.0)) == pytest.approx(-1)


@pytest.mark.check(system=27, number=8)
def test_a_thousandth_of_false_alarms_spoils_a_third_of_the_positives() -> None:
    assert round(float(posterior(PI, 0.0, 0.001).alpha), 4) == 0.6338
    assert float(posterior(PI, 0.1, 0.0).alpha) == 1.0
    assert float(posterior(PI, 0.1, 0.0).beta) == pytest.approx(0.1 * PI / (1 - 0.9 * PI))
    assert round(Binormal().auroc, 6) == 0.973898


@pytest.mark.check(system=27, number=9)
@given(st.sampled_from([0.5, 0.1, 0.01, PI]), NOISE.filter(lambda e: sum(e) < 0.8))
def test_known_noise_is_taken_out_again(pi: float, noise: tuple[float, float]) -> None:
    e1, e0 = noise
    cells = noisy_cells(pi, T, F, e1, e0)
    for given_pi in (pi, None):
        t, f = noise_correct(cells, e1, e0, prevalence=given_pi)
        # With pi estimated, its rounding error is amplified by 1/(pi (1 - e1 - e0)).
        tolerance = 1e-12 if given_pi else 1e-12 + 1e-15 / pi / (1 - e1 - e0)
        assert float((t - T).abs().max()) < tolerance
        assert float((f - F).abs().max()) < tolerance
    back = corrected_cells(Cells(*(1000 * c for c in cells)), e1, e0)
    for found, wanted in zip(back, noisy_cells(pi, T, F)):
        assert torch.allclose(found, 1000 * wanted, atol=1e-8)
    assert float(true_prevalence(annotated_prevalence(pi, e1, e0), e1, e0)) == pytest.approx(pi, abs=1e-14)


@pytest.mark.check(system=27, number=10)
@pytest.mark.parametrize("e1, e0", [(0.0, 0.0), (0.3, 0.01), (0.0, 0.5)])
def test_an_answer_that_ignores_the_truth_is_worth_nothing_at_any_noise(e1: float, e0: float) -> None:
    cells = noisy_cells(PI, T, T, e1, e0)
    for metric in (mcc, youden_j, kappa):
        assert float(metric(cells, 0.0).abs().max()) < 1e-12
    y = annotate(torch.arange(4000) < 400, e1, e0, seed=1)
    scores = torch.rand(4000, generator=torch.Generator().manual_seed(2))
    assert auroc(scores, y) == pytest.approx(0.5, abs=0.05)
    assert auroc(torch.zeros(4000), y) == 0.5


def test_auroc_is_drawn_towards_one_half_by_the_same_factor() -> None:
    pi, e1, e0 = 0.05, 0.2, 0.03
    s, y = Binormal(1.5, 1.0).sample(10_000, 190_000, seed=0)
    noisy = auroc(s, annotate(y, e1, e0, seed=1))
    assert noisy - 0.5 == pytest.approx(float(j_factor(pi, e1, e0)) * (auroc(s, y) - 0.5), abs=0.006)
    back = correct_auroc(noisy, annotated_prevalence(pi, e1, e0), e1, e0)
    assert float(back) == pytest.approx(auroc(s, y), abs=0.01)


def test_drawn_labels_have_the_rates_asked_for() -> None:
    y = torch.arange(200_000) < 100_000
    a = annotate(y, 0.3, 0.02, seed=4)
    assert float((~a[y]).double().mean()) == pytest.approx(0.3, abs=0.005)
    assert float(a[~y].double().mean()) == pytest.approx(0.02, abs=0.002)
    assert torch.equal(a, annotate(y, 0.3, 0.02, seed=4))
    assert not torch.equal(a, annotate(y, 0.3, 0.02, seed=5))
    assert torch.equal(annotate(y, 0.0, 0.0), y)
    # Scores that somebody drew from the same seed say nothing about the errors.
    theirs = torch.rand(200_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert float(theirs[a ^ y].mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(annotate(y, 1.0, 1.0), ~y)


def test_errors_around_a_score_keep_the_rates_and_break_the_invariance() -> None:
    s, y = Binormal().sample(20_000, 80_000, seed=0)
    flip = flip_probability(s, y, 0.1, 0.02, center=2.0, width=1.0)
    assert float(flip[y].mean()) == pytest.approx(0.1, abs=1e-12)
    assert float(flip[~y].mean()) == pytest.approx(0.02, abs=1e-12)
    for i in (3, 7, 30_000, 90_000):
        of_class = flip[y == y[i]] / flip[i]
        distance = ((s - 2.0).abs() - (s[i] - 2.0).abs())[y == y[i]]
        assert torch.allclose(of_class, (-distance).exp(), rtol=1e-9)
    a = annotate(y, 0.1, 0.02, scores=s, center=2.0, width=1.0)
    assert float((a ^ y)[y].double().mean()) == pytest.approx(0.1, abs=0.01)
    # Expected cells of the same model, and the ranking of MCC that it turns.
    pi, tau = 0.2, torch.tensor([1.0, 2.0, 3.0])
    hard = Binormal().hard_cells(tau, pi, 0.1, 0.02)
    drawn = [torch.stack([(a & (s >= x)).double().mean() for x in tau]),
             torch.stack([(~a & (s >= x)).double().mean() for x in tau])]  # fmt: skip
    assert torch.allclose(hard.tp, drawn[0], atol=0.004)
    assert torch.allclose(hard.fp, drawn[1], atol=0.004)
    ratio = mcc(hard, 0.0) / mcc(Binormal().cells(tau, pi), 0.0)
    assert float(ratio.max() - ratio.min()) > 0.02
    wide = Binormal().hard_cells(tau, pi, 0.1, 0.02, width=1e7)
    assert all(torch.allclose(x, z, atol=1e-7) for x, z in zip(wide, Binormal().cells(tau, pi, 0.1, 0.02)))


@pytest.mark.parametrize("y", [0, 1])
def test_the_expected_corrected_loss_is_the_loss_of_the_truth(y: int) -> None:
    loss, (e1, e0) = {0: 0.3, 1: 1.7}, (0.2, 0.05)
    chance = {1: 1 - e1, 0: e1} if y else {1: e0, 0: 1 - e0}  # of each annotation
    mean = sum(
        chance[a]
        * float(unbiased_loss(torch.tensor([loss[a]]), torch.tensor([loss[1 - a]]), torch.tensor([a == 1]), e1, e0))
        for a in (0, 1)
    )
    assert mean == pytest.approx(loss[y], abs=1e-6)


def test_correction_of_a_finite_sample_stays_between_0_and_1() -> None:
    few = Cells(*map(torch.tensor, (5, 0, 20, 1000)))
    t, f = noise_correct(few, 0.1, 0.01)
    raw = noise_correct(few, 0.1, 0.01, clip=False)
    assert 0 <= float(t) <= 1
    assert float(f) == 0.0 > float(raw.f)


def test_refusals() -> None:
    cells = noisy_cells(0.1, 0.8, 0.1, 0.2, 0.1)
    with pytest.raises(InputError, match="sum to less than 1"):
        noise_correct(cells, 0.6, 0.4)
    with pytest.raises(InputError, match="false alarms alone explain"):
        noise_correct(cells, 0.2, 0.5)
    with pytest.raises(InputError, match="misses alone explain"):
        noise_correct(noisy_cells(0.9, 0.8, 0.1), 0.2, 0.0)
    with pytest.raises(InputError, match="share lies in"):
        noisy_cells(1.2, 0.5, 0.5)
    with pytest.raises(InputError, match="all three"):
        annotate(torch.tensor([0, 1]), 0.1, 0.1, width=1.0)
    with pytest.raises(InputError, match="larger width"):
        flip_probability(torch.tensor([0.0, 9.0]), torch.tensor([0, 0]), 0.0, 0.9, center=0.0, width=0.1)
    with pytest.raises(InputError, match="width"):
        flip_probability(torch.tensor([0.0, 9.0]), torch.tensor([0, 1]), 0.1, 0.1, center=0.0, width=0.0)
    with pytest.raises(InputError, match="both classes"):
        j_factor(0.0, 0.0, 0.0)
    assert METRICS["mcc"] is mcc
