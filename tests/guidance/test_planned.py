"""Plans for runs: stored, refused, and sampled with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.artefact import build, describe
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.noise import Noise
from scoreline.core.schedule import Time
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, Discrete
from scoreline.evaluate.specs import check_fit, make_sampler
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.guidance.planned import Planned, RunPlan, read_plan, write_plan
from scoreline.nn.plan import Plan
from scoreline.nn.unet import UNet
from scoreline.nn.unet_presets import unet_preset
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.rk45 import RK45

PUBLISHED = [94, 217, 354, 574, 834, 944]  # the paper's six steps for ImageNet 64x64
PLAN = {"times": [float(t) for t in PUBLISHED[::-1]], "drop": [], "schedule": None}


def small(**changes: Any) -> UNet:
    torch.manual_seed(0)
    net = UNet(in_shape=(1, 8, 8), base_channels=16, channel_mult=(1, 2), num_blocks=1, attention=(4,), **changes)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def model(**changes: Any) -> Preconditioned:
    return Preconditioned(small(**changes), Discrete(), kind="eps").eval()


class Watched(UNet):
    """Writes down the time inputs that it sees, and the plan it is under."""

    def trace(self, x: Tensor, t: Tensor, cond: Cond | None = None, plan: Any = None) -> Any:
        self.seen.append((t.tolist(), None if plan is None else set(plan.drop)))
        return super().trace(x, t, cond, plan)


def watched() -> Preconditioned:
    net = small()
    net.__class__ = Watched
    net.seen = []  # type: ignore[assignment]
    return Preconditioned(net, Discrete(), kind="eps").eval()


@pytest.mark.check(system=7, number=3)
def test_the_network_sees_the_steps_of_the_base_process_descending_once_each() -> None:
    denoiser = watched()
    sample = Planned(plan=PLAN)(denoiser, Noise(0).at(range(2), (1, 8, 8)))
    assert [t for (t,), _ in denoiser.net.seen] == PUBLISHED[::-1]  # type: ignore[union-attr]
    assert sample.nfe == 6
    assert list(sample.times) == [*PUBLISHED[::-1], -1.0]


@pytest.mark.check(system=7, number=4)
def test_ddim_over_all_steps_maps_noise_to_the_data() -> None:
    data = Gaussian(Discrete(), torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.25, 0.04]))
    whole = Planned(plan={"times": [float(t) for t in range(999, -1, -1)]})
    x = whole(data, Noise(0).at(range(20_000), (2,), dtype=torch.float64)).x
    assert x.mean(0).tolist() == pytest.approx([0.5, -1.0], rel=0.02)
    assert x.var(0).tolist() == pytest.approx([0.25, 0.04], rel=0.02)


@pytest.mark.check(system=7, number=4)
def test_the_single_last_step_returns_the_clean_image_that_the_model_sees() -> None:
    means = torch.linspace(-1, 1, 24, dtype=torch.float64).view(3, 8)
    data = Mixture(Discrete(), means, 0.05)
    draws = Noise(1).at(range(4), (8,), dtype=torch.float64)
    start = draws.normal() * float(data.schedule.sigma(999.0))
    x = Planned(plan={"times": [999.0]})(data, draws).x
    assert torch.allclose(x, data(start, 999.0).mean, atol=1e-12)


@pytest.mark.check(system=7, number=5)
@pytest.mark.parametrize("changes", [
    {},
    {"in_shape": (3, 256, 256), "base_channels": 256, "channel_mult": (1, 1, 2, 2, 4, 4), "num_blocks": 2,
     "num_classes": None},
], ids=["imagenet64", "lsun256"])  # fmt: skip
def test_both_adm_networks_have_58_layers(changes: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert UNet(**unet_preset("adm-imagenet64", **changes)).num_layers == 58


@pytest.mark.check(system=7, number=5)
def test_skipping_all_keeps_the_shape_and_skipping_none_every_bit() -> None:
    # ADM's settings, narrow and on small images: 58 layers too.
    torch.manual_seed(0)
    net = UNet(**unet_preset("adm-imagenet64", base_channels=32, head_channels=8, in_shape=(3, 32, 32),
                             attention=(16, 8, 4), num_classes=None)).eval()  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    assert net.num_layers == 58
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([500.0])
    with torch.no_grad():
        plain = net(x, t)
        assert torch.equal(net.trace(x, t, None, Plan())[0], plain)
        nothing = net.trace(x, t, None, Plan(drop=frozenset(range(58))))[0]
        one = net.trace(x, t, None, Plan(drop=frozenset([7])))[0]
    assert nothing is not None
    assert one is not None
    assert nothing.shape == plain.shape
    assert not torch.equal(one, plain)
    assert not torch.equal(nothing, plain)


def test_a_plan_without_left_out_layers_is_the_sampler_at_those_times() -> None:
    denoiser, draws = model(), Noise(0).at(range(3), (1, 8, 8))
    for of in ("ddim", "dpm-solver++2m", "heun"):
        inner = make_sampler(of)
        expected = inner(denoiser, draws, times=[*PLAN["times"], -1.0])
        got = Planned(plan=PLAN, of=of)(denoiser, draws)
        assert torch.equal(got.x, expected.x)
        assert got.nfe == expected.nfe
    assert torch.equal(Planned(steps=7)(denoiser, draws).x, DDIM(steps=7)(denoiser, draws).x)
    stochastic = Planned(plan=PLAN, of=DDIM(eta=1.0))
    assert stochastic.stochastic
    assert torch.equal(stochastic(denoiser, draws).x, DDIM(eta=1.0)(denoiser, draws, times=[*PLAN["times"], -1.0]).x)


def test_each_step_leaves_out_its_own_layers() -> None:
    drop = [[], [0, 3], [], [5], [1], []]
    denoiser = watched()
    sample = Planned(plan={**PLAN, "drop": drop})(denoiser, Noise(0).at(range(2), (1, 8, 8)))
    assert [out or set() for _, out in denoiser.net.seen] == [set(d) for d in drop]  # type: ignore[union-attr]
    assert sample.nfe == sample.nfe_max == 6  # a call with layers left out is a call
    # By hand: the model under a plan at that step, the whole one elsewhere.
    bare, x = model(), Noise(0).at(range(2), (1, 8, 8)).normal()
    x = x * float(bare.schedule.prior(PLAN["times"][0]))
    rows = DDIM().coefficients(bare.schedule, np.array([*PLAN["times"], -1.0]))
    with torch.no_grad():
        for row, out in zip(rows, drop):
            view = bare.under(Plan(drop=frozenset(out))) if out else bare
            x = view(x, row.t).combine(row.a, row.b)
    assert torch.allclose(sample.x, x, atol=1e-5)


def test_a_guided_model_leaves_out_layers_too_and_counts_twice() -> None:
    denoiser = ClassifierFree(model(num_classes=10), 2.0)
    given = denoiser.given(Cond(labels=torch.tensor([1, 2])))
    draws = Noise(0).at(range(2), (1, 8, 8))
    whole = Planned(plan=PLAN)(given, draws)
    pruned = Planned(plan={**PLAN, "drop": [[2]] * 6})(given, draws)
    assert whole.nfe == pruned.nfe == 12
    assert not torch.allclose(whole.x, pruned.x, atol=1e-3)


def test_stored_and_read(tmp_path: Path) -> None:
    plan = RunPlan(PLAN["times"], ((),) * 5 + ((4, 2),), describe(Discrete()))  # type: ignore[arg-type]
    path = tmp_path / "plan.json"
    write_plan(path, plan, belongs_to="abc", card={"command": "x"})
    assert read_plan(path) == plan
    header = json.loads(path.read_text())
    assert header["format"] == "scoreline/1"
    assert (header["kind"], header["belongs_to"]) == ("plan", "abc")
    sampler = make_sampler(f"planned:plan={path}:of=ddim", nfe=8)
    assert list(sampler.times(Discrete())) == [*PLAN["times"], -1.0]
    assert check_fit(sampler, model()) == 6
    # It can be described and made again, from the file or by value.
    for sampler in (Planned(plan=str(path)), Planned(plan=plan.plain(), of=DDIM(eta=0.5))):
        again = build(json.loads(json.dumps(describe(sampler))))
        assert again.run_plan == plan
        assert repr(again).split("(")[0] == "Planned"
    header["args"]["times"][0] = 998.0
    path.write_text(json.dumps(header))
    with pytest.raises(ArtefactError, match="fingerprint"):
        read_plan(path)
    path.write_text("{}")
    with pytest.raises(ArtefactError, match="not written by scoreline search"):
        Planned(plan=str(path))
    with pytest.raises(ArtefactError, match="no such file"):
        Planned(plan=str(tmp_path / "other.json"))
    with pytest.raises(InputError, match="must end in"):
        write_plan(tmp_path / "plan.txt", plan)


def test_what_does_not_fit_is_refused_before_any_evaluation() -> None:
    class Never(Denoiser):
        schedule, shape = Discrete(), (1, 8, 8)

        def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
            raise AssertionError("was evaluated")

    draws = Noise(0).at(range(2), (1, 8, 8))
    with pytest.raises(InputError, match="costs 6"):
        Planned(plan=PLAN, nfe=5)(Never(), draws)
    with pytest.raises(InputError, match="the plan has 6"):
        Planned(plan=PLAN, steps=5)
    with pytest.raises(InputError, match="made for edm"):
        Planned(plan={"times": [3.0, 1.0], "schedule": describe(EDM())})(Never(), draws)
    with pytest.raises(InputError, match="time"):
        Planned(plan={"times": [1500.0, 3.0]})(Never(), draws)
    with pytest.raises(InputError, match="no layers"):
        Planned(plan={"times": [500.0, 3.0], "drop": [[0], []]})(Never(), draws)
    with pytest.raises(InputError, match="layers are numbered 0 to"):
        check_fit(Planned(plan={"times": [500.0, 3.0], "drop": [[], [99]]}), model())
    with pytest.raises(InputError, match="in 2 steps"):
        Planned(plan={"times": [500.0, 3.0], "drop": [[], [1]]})(model(), draws, times=[500.0, 3.0, 1.0, -1.0])
    with pytest.raises(InputError, match="needs at least 3 steps"):
        Planned(plan={"times": [500.0, 3.0]}, of="dpm-solver++2m")
    with pytest.raises(InputError, match="makes steps of its own"):
        Planned(of=RK45(rtol=1e-4))


@pytest.mark.parametrize("plan", [
    {}, {"times": []}, {"times": [1.0, 2.0]}, {"times": [3.0, 3.0]}, {"times": [3.0], "drop": [[], []]},
    {"times": ["a"]}, {"times": [3.0], "drop": [5]}, {"times": [3.0], "layers": [[]]}, {"times": [float("nan")]},
])  # fmt: skip
def test_plans_that_are_none(plan: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="plan"):
        Planned(plan=plan)
