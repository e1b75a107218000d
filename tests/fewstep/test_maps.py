"""Flow maps: boundaries, scalings by hand, what is refused, and sampling by jumps."""

from __future__ import annotations

import math

import pytest
import torch

from scoreline.core.artefact import load_artefact, save_artefact
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.diffusion.schedules import EDM, VP, Discrete
from scoreline.fewstep.maps import (
    ConsistencyFunction,
    GaussianMap,
    LatentConsistency,
    Trajectory,
    boundary_scalings,
    latent_scalings,
)
from scoreline.nn.mlp import MLP
from scoreline.samplers.jumps import Jumps

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.01, 0.1, 0.7, 2.0, 9.0, 80.0], dtype=torch.float64)


def net(**settings):
    torch.manual_seed(1)
    return MLP(in_shape=(3,), width=16, depth=1, **settings)


def test_boundary_scalings():
    sigma = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    skip, out, scale = boundary_scalings(sigma)
    assert torch.allclose(skip, 0.25 / ((sigma - 0.002) ** 2 + 0.25))
    assert torch.allclose(out * scale.reciprocal(), (sigma - 0.002) * 0.5)
    assert torch.allclose(scale**-2, sigma**2 + 0.25)


def test_latent_scalings():
    skip, out = latent_scalings(19.0)
    assert skip == pytest.approx(0.25 / (190**2 + 0.25))
    assert out == pytest.approx(190 / math.sqrt(190**2 + 0.25))


def test_a_consistency_function_is_the_identity_at_its_end_and_the_formula_elsewhere():
    model = ConsistencyFunction(net(), EDM())
    assert torch.equal(model.answer(X, 0.002), X)
    skip, out, scale = (c.float()[:, None] for c in boundary_scalings(T))
    raw = model.net(X * scale, T.log().float() / 4)
    assert torch.allclose(model.answer(X, T), skip * X + out * raw, atol=1e-5)
    assert torch.equal(model.jump(X, T, 0.0), model.answer(X, T))


def test_latent_consistency_is_the_identity_at_its_end_and_the_denoiser_far_from_it():
    model = LatentConsistency(net(), Discrete(betas="linear", T=1000))
    assert torch.equal(model.answer(X, 0.0), X)
    t = torch.full((6,), 700.0, dtype=torch.float64)
    alpha, sigma = float(model.schedule.alpha(700.0)), float(model.schedule.sigma(700.0))
    clean = (X - sigma * model.net(X, t.float())) / alpha
    skip, out = latent_scalings(700.0)
    assert torch.allclose(model.answer(X, t), skip * X + out * clean, rtol=1e-4, atol=1e-4)
    assert LatentConsistency(net(), VP()).time_scaling == 1e4


def test_a_trajectory_function_stands_still_at_s_equal_t_and_is_a_denoiser():
    model = Trajectory(net(second_time=True), EDM())
    assert torch.allclose(model.jump(X, T, T), X, atol=1e-6)
    # a jump to s keeps s/t of x; what is added is g
    s = 0.3 * T
    inner = model.inner(X, T, s)
    assert torch.allclose(model.jump(X, T, s), 0.3 * X + 0.7 * inner, atol=1e-5)
    skip, out = 0.25 / (T**2 + 0.25), T * 0.5 / (T**2 + 0.25).sqrt()
    raw = model.net((X / (T**2 + 0.25).sqrt().float()[:, None]), torch.stack([T.log() / 4, s.log() / 4], 1).float())
    assert torch.allclose(inner, skip.float()[:, None] * X + out.float()[:, None] * raw, atol=1e-5)
    post = model(X, T)
    assert torch.allclose(post.mean, model.inner(X, T, T), atol=1e-5)
    assert torch.allclose(post.score, (post.mean - X) / T.float()[:, None] ** 2, rtol=1e-3, atol=1e-3)
    # below the end means the end
    assert torch.equal(model.jump(X, T, 0.0), model.jump(X, T, 0.002))


def test_conditions_reach_the_jump():
    model = Trajectory(net(second_time=True, num_classes=4), EDM())
    ones, twos = Cond(labels=torch.ones(6).long()), Cond(labels=torch.full((6,), 2))
    assert torch.equal(model.given(ones).jump(X, 2.0, 0.5), model.jump(X, 2.0, 0.5, ones))
    assert not torch.equal(model.jump(X, 2.0, 0.5, twos), model.jump(X, 2.0, 0.5, ones))


def test_what_is_refused():
    model = ConsistencyFunction(net(), EDM())
    with pytest.raises(InputError, match="sample it with jumps"):
        model(X, 1.0)
    with pytest.raises(InputError, match="jumps to its end only"):
        model.jump(X, 2.0, 1.0)
    with pytest.raises(InputError, match="alpha = 1"):
        ConsistencyFunction(net(), VP())
    with pytest.raises(InputError, match="second_time=True"):
        Trajectory(net(), EDM())


def test_a_map_comes_back_from_its_file(tmp_path):
    model = Trajectory(net(second_time=True), EDM(), sigma_data=0.7)
    save_artefact(tmp_path / "map.safetensors", model)
    again, header = load_artefact(tmp_path / "map.safetensors", kind="denoiser")
    assert header["name"] == "trajectory"
    assert torch.equal(again.jump(X, 2.0, 0.5), model.jump(X, 2.0, 0.5))


def test_the_exact_map_of_a_gaussian_jumps_to_the_same_place_in_any_number_of_steps():
    model = GaussianMap(EDM(), torch.tensor([0.5, -1.0], dtype=torch.float64), 0.25)
    x = Noise(0).at(range(4), (2,), dtype=torch.float64).normal() * 80
    assert torch.allclose(model.jump(model.jump(x, 80.0, 3.0), 3.0, 0.0), model.jump(x, 80.0, 0.0), atol=1e-12)


def test_a_consistency_function_starts_its_second_jump_where_it_is_told_to():
    model = ConsistencyFunction(net(), EDM(), middle=0.821)
    assert model.levels(2).tolist() == [80.0, 0.821]
    assert model.levels(1).tolist() == [80.0]
    assert model.levels(3)[1] != 0.821
    assert ConsistencyFunction(net(), EDM()).levels(2)[1] == pytest.approx(2.515, abs=1e-3)
    sample = Jumps(steps=2)(model.eval(), Noise(0).at(range(2), (3,)))
    assert list(sample.times) == [80.0, 0.821, 0.0]
    with pytest.raises(InputError, match="middle"):
        ConsistencyFunction(net(), EDM(), middle=80.0)
