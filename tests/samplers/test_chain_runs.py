"""What is kept of chains between calls: the same images for less work, and never another model's."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.guidance.thresholding import Thresholded
from scoreline.nn.mlp import MLP
from scoreline.samplers.chain_runs import MOST, ModelMark, lanes_of
from scoreline.samplers.denoising_mcmc import ChainSample, DenoisingMCMC
from scoreline.samplers.level_prediction import LevelPredictor

SHORT: dict[str, Any] = {"start_steps": 4, "burn_in": 1, "settle": 1, "emissions": 6, "chains": 3, "steps": 2}
MEANS = torch.tensor([[-1.0, 0.4, 0.3], [0.8, 1.0, -0.5], [0.2, -1.2, 0.9]], dtype=torch.float64)


def mixture(**more: Any) -> Mixture:
    return Mixture(EDM(), MEANS, 0.1, labels=torch.tensor([0, 1, 2]), num_classes=3, **more)


def make(sampler: DenoisingMCMC, model: Denoiser, indices: Any, seed: int = 0, shape: Any = (3,)) -> ChainSample:
    sample = sampler(model, Noise(seed).at(indices, shape, dtype=torch.float64))
    assert isinstance(sample, ChainSample)
    return sample


def test_lanes_and_emissions() -> None:
    labels = torch.tensor([0, 1, 0, 0])
    lanes, emission = lanes_of(np.array([1, 1, 4, 13]), Cond(labels=labels), 3, 2)
    assert [number for number, _ in lanes] == [1, 1, 1, 3 * 2 + 1]
    assert emission.tolist() == [0, 0, 1, 0]
    assert lanes[0] == lanes[2] != lanes[1]


@pytest.mark.parametrize("size", [1, 2, 5, 18])
def test_batches_in_turn_walk_every_chain_once(size: int) -> None:
    """Two lives of three chains: 36 images, in batches of any size, cost what they cost together."""
    model = mixture()
    whole = make(DenoisingMCMC(**SHORT), model, range(36))
    sampler, parts = DenoisingMCMC(**SHORT), []
    for start in range(0, 36, size):
        parts.append(make(sampler, model, range(start, min(start + size, 36))))
    assert (torch.cat([part.x for part in parts]) - whole.x).abs().max() < 1e-10
    assert all(part.nfe == whole.nfe for part in parts)
    spent = sum(part.spent * len(part.x) for part in parts) / 36
    assert spent == pytest.approx(whole.spent) == pytest.approx(whole.nfe)
    assert not sampler._kept.lanes, "chains at their end are not kept"


def test_earlier_images_are_made_again_from_the_beginning() -> None:
    model, sampler = mixture(), DenoisingMCMC(**SHORT)
    whole = make(sampler, model, range(18)).x
    for indices in ([7, 8], [15], [1], [16, 2]):
        assert (make(sampler, model, indices).x - whole[indices]).abs().max() < 1e-10


def test_given_conditions_are_told_apart() -> None:
    model, sampler = mixture(), DenoisingMCMC(**SHORT)
    for labels in ([0, 1, 2], [1, 1, 2], [0, 0, 0]):
        given = model.given(Cond(labels=torch.tensor(labels)))
        for indices in (range(3), range(3, 6), range(9, 12)):
            fresh = make(DenoisingMCMC(**SHORT), given, indices).x
            assert (make(sampler, given, indices).x - fresh).abs().max() < 1e-10


def test_another_model_seed_or_setting_begins_anew() -> None:
    labels = Cond(labels=torch.tensor([0, 1, 2]))
    plain = mixture()
    sampler = DenoisingMCMC(**SHORT)
    for model, seed in (
        (plain, 0),
        (mixture(perturbation=0.8), 0),
        (plain, 1),
        (ClassifierFree(plain, 2.0), 0),
        (ClassifierFree(plain, 3.0), 0),
        (Thresholded(plain), 0),
    ):
        make(sampler, model.given(labels), range(3), seed)
        later = make(sampler, model.given(labels), range(3, 6), seed)
        assert later.spent < later.nfe + 1, "it went on"
        fresh = make(DenoisingMCMC(**SHORT), model.given(labels), range(3, 6), seed)
        assert (later.x - fresh.x).abs().max() < 1e-10
    sampler.eta = 0.5
    fresh = make(DenoisingMCMC(eta=0.5, **SHORT), plain, range(6, 9))
    assert (make(sampler, plain, range(6, 9)).x - fresh.x).abs().max() < 1e-10
    sampler.steps = 4
    fresh = make(DenoisingMCMC(eta=0.5, **{**SHORT, "steps": 4}), plain, range(9, 12))
    assert (make(sampler, plain, range(9, 12)).x - fresh.x).abs().max() < 1e-10


def network(seed: int = 0) -> Preconditioned:
    torch.manual_seed(seed)
    return Preconditioned(MLP(in_shape=(1, 4, 4), width=16), EDM()).eval()


def test_changed_weights_begin_anew() -> None:
    torch.manual_seed(1)
    held = LevelPredictor(in_shape=[1, 4, 4], channels=[4], levels=20, sigma_max=5.0).eval()
    model, sampler = network(), DenoisingMCMC(**SHORT).holding(held)
    make(sampler, model, range(3), shape=(1, 4, 4))
    mark = ModelMark(model)
    assert mark.fits(model)
    assert mark.fits(model.given(None))
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    assert not mark.fits(model)
    fresh = make(DenoisingMCMC(**SHORT).holding(held), model, range(3, 6), shape=(1, 4, 4))
    again = make(sampler, model, range(3, 6), shape=(1, 4, 4))
    assert torch.equal(again.x, fresh.x)
    assert again.spent == fresh.spent


def test_a_mark_tells_models_apart_and_keeps_none_alive() -> None:
    model = network()
    mark = ModelMark(model)
    assert not mark.fits(network())
    assert not mark.fits(model.on(EDM(t_max=20.0)))
    assert not mark.fits(model.train())
    assert mark.fits(model.eval())
    model.schedule = EDM()
    assert not mark.fits(model)
    with torch.inference_mode():
        frozen = network()
    assert not ModelMark(frozen).fits(frozen), "its weights count no changes"
    sampler, used = DenoisingMCMC(**SHORT), mixture()
    make(sampler, used, range(2))
    seen = weakref.ref(used)
    del used
    gc.collect()
    assert seen() is None


def test_another_predictor_begins_anew() -> None:
    model, sampler = network(), DenoisingMCMC(**SHORT)
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        held = LevelPredictor(in_shape=[1, 4, 4], channels=[4], levels=20, sigma_max=5.0).eval()
        one = sampler.holding(held)
        make(one, model, range(3), shape=(1, 4, 4))
        later = make(one, model, range(3, 6), shape=(1, 4, 4))
        fresh = make(sampler.holding(held), model, range(3, 6), shape=(1, 4, 4))
        assert torch.equal(later.x, fresh.x)
        made.append(later.x)
    assert not torch.equal(*made)


def test_a_sampler_that_was_used_can_be_copied_and_sent() -> None:
    model, sampler = mixture(), DenoisingMCMC(**SHORT)
    first = make(sampler, model, range(3)).x
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert not other._kept.lanes
        assert torch.equal(make(other, model, range(3)).x, first)
    assert sampler._kept.lanes


def test_only_so_many_lanes_are_kept() -> None:
    model, sampler = mixture(), DenoisingMCMC(**SHORT)
    make(sampler, model, [18 * life for life in range(30)])
    assert len(sampler._kept.lanes) == MOST * 3
