"""Whatever has a line in the table of names: it imports, it is what its line says, it can be described, saved
and loaded, and it answers for an image whatever the batch.

`SMALL` says how to construct a small one of what cannot be made without arguments. A newly listed thing with no entry
(and without defaults) fails here, not silently.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scoreline.core.artefact import build, describe, load_artefact, save_artefact
from scoreline.core.denoiser import Denoiser
from scoreline.core.encoder import Encoder
from scoreline.core.errors import InputError
from scoreline.core.flow_map import FlowMap
from scoreline.core.method import Method
from scoreline.core.names import TABLE, kind_and_name, lookup, names
from scoreline.core.sampler import Sampler
from scoreline.core.schedule import Schedule

IMAGE = (1, 8, 8)
FILES = {"model"}  # kinds whose lines name files that ship with the package, not import paths


def _unet(**more: Any) -> nn.Module:
    return lookup("network", "unet")(
        in_shape=IMAGE, base_channels=32, channel_mult=(1, 2), num_blocks=1, attention=(4,), **more
    )


def _edm(shape: tuple[int, ...] = IMAGE) -> Denoiser:
    net = lookup("network", "mlp")(in_shape=shape, width=32)
    return lookup("denoiser", "preconditioned")(net, lookup("schedule", "edm")())


def _consistency() -> Denoiser:
    net = lookup("network", "mlp")(in_shape=IMAGE, width=32)
    return lookup("denoiser", "consistency")(net, lookup("schedule", "edm")())


def _flow() -> Denoiser:
    net = lookup("network", "mlp")(in_shape=IMAGE, width=32)
    return lookup("denoiser", "preconditioned")(net, lookup("schedule", "flow")(), kind="flow")


def _eps(net: nn.Module) -> Denoiser:
    return lookup("denoiser", "preconditioned")(net, lookup("schedule", "discrete")(), kind="eps")


def _latent_consistency() -> Denoiser:
    return lookup("denoiser", "latent-consistency")(_unet(), lookup("schedule", "discrete")(), points=50)


def _guided_consistency() -> Denoiser:
    net = lookup("network", "mlp")(in_shape=IMAGE, width=32)
    return lookup("denoiser", "guided-consistency")(net, lookup("schedule", "discrete")())


def _trajectory() -> Denoiser:
    net = lookup("network", "mlp")(in_shape=IMAGE, width=32, second_time=True)
    return lookup("denoiser", "trajectory")(net, lookup("schedule", "edm")())


def _matching(name: str, **settings: Any) -> Any:
    teacher = _edm()
    cls = lookup("method", name)
    return cls(cls.student_of(teacher), teacher, **settings)


def _forgetting() -> Any:
    net = lookup("network", "mlp")(in_shape=IMAGE, width=32, num_classes=3)
    teacher, cls = lookup("denoiser", "preconditioned")(net, lookup("schedule", "edm")()), lookup("method", "sfd")
    return cls(cls.student_of(teacher), teacher, forget=[0], override=1)


def _text_conditioned() -> nn.Module:
    net = _unet_reading(8)
    return lookup("text", "conditioned")(net, lookup("text", "bytes")(width=8, depth=1, length=6))


def _unet_reading(size: int) -> nn.Module:
    return lookup("network", "unet")(
        in_shape=IMAGE, base_channels=16, channel_mult=(1,), num_blocks=1, attention=(8,), context_dim=size
    )


def _labelled() -> Denoiser:
    net = lookup("network", "mlp")(in_shape=IMAGE, width=32, num_classes=10)
    return lookup("denoiser", "preconditioned")(net, lookup("schedule", "edm")())


def _told() -> Denoiser:
    net = lookup("network", "mlp")(in_shape=IMAGE, width=32, weight_input=True)
    vp = lookup("schedule", "vp")()
    return lookup("denoiser", "distilled-guidance")(lookup("denoiser", "preconditioned")(net, vp, kind="v"))


SMALL: dict[tuple[str, str], Callable[[], Any]] = {
    ("text", "clip"): lambda: lookup("text", "clip")(width=8, depth=1, heads=1, length=4, vocabulary=12, dim=4),
    ("text", "conditioned"): lambda: _text_conditioned(),
    ("adapter", "lora"): lambda: lookup("adapter", "lora")({"a.b": [4, 3], "c": [4, 3, 3, 3]}, rank=2),
    ("network", "unet"): lambda: _unet(),
    ("network", "dit"): lambda: lookup("network", "dit")(in_shape=IMAGE, width=32, depth=2, heads=2),
    ("network", "mlp"): lambda: lookup("network", "mlp")(in_shape=IMAGE, width=32),
    ("network", "kl-autoencoder"): lambda: lookup("network", "kl-autoencoder")(in_shape=IMAGE, channel_mult=(1, 2)),
    ("denoiser", "preconditioned"): lambda: lookup("denoiser", "preconditioned")(_unet(), lookup("schedule", "edm")()),
    ("denoiser", "on-schedule"): lambda: SMALL["denoiser", "preconditioned"]().on(lookup("schedule", "vp")()),
    ("denoiser", "consistency"): lambda: lookup("denoiser", "consistency")(_unet(), lookup("schedule", "edm")()),
    ("denoiser", "latent-consistency"): lambda: _latent_consistency(),
    ("denoiser", "guided-consistency"): lambda: _guided_consistency(),
    ("denoiser", "trajectory"): lambda: _trajectory(),
    ("denoiser", "mean-map"): lambda: lookup("denoiser", "mean-map")(_unet(), lookup("schedule", "edm")()),
    ("denoiser", "distilled-guidance"): lambda: _told(),
    ("denoiser", "noising"): lambda: lookup("denoiser", "noising")(_told()),
    ("denoiser", "two-heads"): lambda: lookup("denoiser", "two-heads")(
        _unet(out_channels=2), lookup("schedule", "vp")()
    ),
    ("denoiser", "routed"): lambda: lookup("denoiser", "routed")(
        [lookup("denoiser", "mean-map")(_unet(), lookup("schedule", "edm")())],
        lookup("router", "classes")([[0]]),
    ),
    ("router", "classes"): lambda: lookup("router", "classes")([[0, 2], [1]]),
    ("router", "quadrants"): lambda: lookup("router", "quadrants")([0.5, 0.0], [[1.0, 0.0], [0.0, 1.0]], [0.0] * 3),
    ("router", "texts"): lambda: lookup("router", "texts")(
        lookup("text", "bytes")(width=2, heads=1, depth=0), ["a", "b"], [0.5, 0.0], [[1.0, 0.0], [0.0, 1.0]], [0.0] * 3
    ),
    ("denoiser", "gaussian"): lambda: lookup("denoiser", "gaussian")(
        lookup("schedule", "vp")(), torch.zeros(IMAGE), 0.5
    ),
    ("denoiser", "mixture"): lambda: lookup("denoiser", "mixture")(
        lookup("schedule", "vp")(), torch.linspace(-1, 1, 192).view(3, *IMAGE), 0.1
    ),
    ("denoiser", "empirical"): lambda: lookup("denoiser", "empirical")(
        lookup("schedule", "vp")(), torch.linspace(-1, 1, 192).view(3, *IMAGE), smoothing=0.2
    ),
    ("denoiser", "latent"): lambda: lookup("denoiser", "latent")(
        _edm((4, 4, 4)), lookup("network", "kl-autoencoder")(in_shape=IMAGE, channel_mult=(1, 2)), scale=0.7
    ),
    ("calibration", "denoising-mcmc"): lambda: lookup("calibration", "denoising-mcmc")(
        in_shape=list(IMAGE), channels=[4, 4], levels=12, sigma_max=20.0
    ),
    ("calibration", "dpm-solver-v3"): lambda: lookup("calibration", "dpm-solver-v3")(
        shape=list(IMAGE), nodes=4, low=-2.0, high=3.0
    ),
    ("latents", "ode-latents"): lambda: lookup("latents", "ode-latents")(shape=[2, *IMAGE]),
    ("encoder", "dinov2-vit-l-14"): lambda: lookup("encoder", "dinov2-vit-l-14")(
        width=16, depth=1, heads=2, trained_size=28, size=28
    ),
    ("encoder", "clip-vit-l-14-336"): lambda: lookup("encoder", "clip-vit-l-14-336")(
        width=16, depth=1, heads=2, size=28, dim=8
    ),
    ("method", "denoising"): lambda: lookup("method", "denoising")(_edm()),
    ("method", "classification"): lambda: lookup("method", "classification")(lookup("encoder", "digits")()),
    ("method", "noisy-classification"): lambda: lookup("method", "noisy-classification")(
        lookup("classifier", "noisy-classifier")(width=16, depth=1)
    ),
    ("method", "ict"): lambda: lookup("method", "ict")(_consistency(), steps=4, s1=20, target_ema=0.5),
    ("method", "ct"): lambda: lookup("method", "ct")(_consistency(), steps=4),
    ("method", "cd"): lambda: lookup("method", "cd")(_consistency(), _edm(), steps=4),
    ("method", "rectified-flow"): lambda: lookup("method", "rectified-flow")(_flow()),
    ("method", "flow-distillation"): lambda: lookup("method", "flow-distillation")(_flow(), _edm(), online=2),
    ("method", "annealed-reflow"): lambda: lookup("method", "annealed-reflow")(_flow(), _edm(), steps=4, online=2),
    ("method", "flow-guided-distillation"): lambda: lookup("method", "flow-guided-distillation")(
        _flow(), _edm(), online=2
    ),
    ("method", "progressive"): lambda: lookup("method", "progressive")(
        lookup("method", "progressive").student_of(_edm()), _edm(), n=2
    ),
    ("method", "guidance-distillation"): lambda: lookup("method", "guidance-distillation")(
        lookup("method", "guidance-distillation").student_of(_labelled()), _labelled()
    ),
    ("method", "teacher-matching"): lambda: lookup("method", "teacher-matching")(_edm(), _edm()),
    ("method", "rfpp"): lambda: lookup("method", "rfpp")(_flow(), _edm(), premetric="huber", inversion=2),
    ("method", "ctm"): lambda: lookup("method", "ctm")(
        _trajectory(), _edm(), points=4, teacher_steps=2, distance="squared", dsm_weight=1.0
    ),
    ("method", "adversarial-consistency"): lambda: lookup("method", "adversarial-consistency")(
        _latent_consistency(), _eps(_unet())
    ),
    ("method", "dmd2"): lambda: _matching("dmd2", ratio=2, gan_weight=0.1, student_steps=2),
    ("method", "f-distill"): lambda: _matching("f-distill", divergence="kl", ratio=2),
    ("method", "diff-instruct"): lambda: _matching("diff-instruct"),
    ("method", "dmd"): lambda: _matching("dmd", regression=0.0),
    ("method", "sim"): lambda: _matching("sim"),
    ("method", "sid"): lambda: _matching("sid"),
    ("method", "sfd"): lambda: _forgetting(),
    ("method", "scott"): lambda: lookup("method", "scott")(
        _guided_consistency(), _eps(lookup("network", "mlp")(in_shape=IMAGE, width=32)), guidance=None
    ),
    ("discriminator", "taps"): lambda: lookup("discriminator", "taps")(_unet()),
    ("discriminator", "features"): lambda: lookup("discriminator", "features")(lookup("encoder", "digits")()),
    ("discriminator", "pairs"): lambda: lookup("discriminator", "pairs")(_unet()),
    ("method", "kl-autoencoding"): lambda: lookup("method", "kl-autoencoding")(SMALL["network", "kl-autoencoder"]()),
}
BASES = {"schedule": Schedule, "sampler": Sampler, "denoiser": Denoiser, "encoder": Encoder, "method": Method}
LISTED = [(kind, name) for kind in TABLE if kind not in FILES for name in names(kind)]
CLASSES = [(kind, name) for kind, name in LISTED if kind not in ("grid", "bridge")]  # those are functions
NETWORKS = [(kind, name) for kind, name in LISTED if kind == "network"]
DENOISERS = [(kind, name) for kind, name in LISTED if kind == "denoiser"]
# Twenty million parameters: its own tests ask it.
LARGE = {("encoder", "inception-2015")}
MODULES = [c for c in CLASSES if c[0] in ("network", "denoiser", "encoder") and c not in LARGE]


def small(kind: str, name: str) -> Any:
    torch.manual_seed(0)
    if (kind, name) in SMALL:
        thing = SMALL[kind, name]()
    else:
        try:
            thing = lookup(kind, name)()
        except (TypeError, InputError) as error:
            pytest.fail(f"{kind} {name!r} cannot be made without arguments; give it an entry in SMALL ({error})")
    if isinstance(thing, nn.Module):
        # Layers that start at zero would make every answer the same.
        with torch.no_grad():
            for parameter in thing.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        thing.eval()
    return thing


def test_small_names_things_that_exist() -> None:
    assert set(SMALL) <= set(LISTED)


@pytest.mark.parametrize("kind, name", LISTED)
def test_every_line_is_what_it_says(kind: str, name: str) -> None:
    thing = lookup(kind, name)
    assert kind_and_name(thing) == (kind, name) if inspect.isclass(thing) else callable(thing)
    assert inspect.getdoc(thing)
    assert thing.__name__ in getattr(inspect.getmodule(thing), "__all__", ())
    if kind in BASES:
        assert issubclass(thing, BASES[kind])


@pytest.mark.parametrize("kind", sorted(FILES & set(TABLE)))
def test_files_are_named_as_such(kind: str) -> None:
    for name in names(kind):
        assert TABLE[kind][name].endswith(".safetensors")
        with pytest.raises(InputError):
            lookup(kind, name)  # a file is no class; a header that says so must not crash


@pytest.mark.parametrize("kind, name", CLASSES)
def test_constructors_take_no_open_keywords(kind: str, name: str) -> None:
    parameters = inspect.signature(lookup(kind, name)).parameters
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())


@pytest.mark.parametrize("kind, name", [c for c in CLASSES if c not in LARGE])
def test_what_is_recorded_survives_a_description(kind: str, name: str) -> None:
    thing = small(kind, name)
    if not hasattr(thing, "_arguments"):
        # Made from tensors or modules: it must say so, not write half a description.
        with pytest.raises(InputError, match="not recorded"):
            describe(thing)
        assert kind != "network", "models are saved with the description of their network; decorate it with `recorded`"
        return
    text = json.dumps(describe(thing))
    again = build(json.loads(text))
    assert type(again) is type(thing)
    assert json.dumps(describe(again)) == text
    assert set(describe(thing)["args"]) == set(inspect.signature(type(thing)).parameters)


@pytest.mark.parametrize("kind, name", MODULES)
def test_what_is_saved_is_loaded(kind: str, name: str, tmp_path: Path) -> None:
    thing = small(kind, name)
    if not hasattr(thing, "_arguments"):
        return
    path = tmp_path / "thing.safetensors"
    mark = save_artefact(path, thing)
    again, header = load_artefact(path, kind=kind)
    assert header["name"] == name
    assert header["fingerprint"] == mark
    mine, theirs = thing.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert save_artefact(tmp_path / "again.safetensors", again) == mark


@pytest.mark.parametrize("kind, name", MODULES)
def test_a_deep_copy_is_independent_and_described_alike(kind: str, name: str) -> None:
    thing = small(kind, name)
    twin = copy.deepcopy(thing)
    before = [p.clone() for p in thing.parameters()]
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, thing.parameters()))
    if hasattr(thing, "_arguments"):
        assert describe(twin) == describe(thing)


@pytest.mark.parametrize("kind, name", [c for c in NETWORKS if c[1] != "kl-autoencoder"])
def test_a_network_answers_for_an_image_whatever_the_batch(kind: str, name: str) -> None:
    net = small(kind, name)
    x, t = torch.randn(4, *IMAGE), torch.linspace(0.1, 2.0, 4)
    with torch.no_grad():
        whole = net(x, t)
        assert (net(x.flip(0), t.flip(0)).flip(0) - whole).abs().max() < 1e-4
        for i in range(4):
            assert (net(x[i : i + 1], t[i : i + 1]) - whole[i : i + 1]).abs().max() < 1e-4
        assert (net(x, t[:1]) - net(x, t[:1].expand(4))).abs().max() < 1e-5
    assert whole.std() > 1e-4
    assert (net(x, t + 1) - whole).abs().max() > 1e-6, "the network does not see the time"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind, name", DENOISERS)
def test_a_denoiser_answers_for_an_image_whatever_the_batch(kind: str, name: str, dtype: torch.dtype) -> None:
    model = small(kind, name)
    schedule = model.schedule
    t = torch.tensor(schedule.time(torch.linspace(-1, 1, 4).double().numpy()))
    x = torch.randn(4, *model.shape, dtype=dtype)
    with torch.no_grad():
        if isinstance(model, FlowMap) and not model.scored:
            whole = model.jump(x, t, model.end)
            for i in range(4):
                assert (model.jump(x[i : i + 1], float(t[i]), model.end) - whole[i : i + 1]).abs().max() < 1e-4
            assert whole.dtype == dtype
            return
        post = model(x, t)
        for i in range(4):
            alone = model(x[i : i + 1], float(t[i]))
            for part in ("mean", "eps", "score"):
                both = getattr(post, part)[i : i + 1], getattr(alone, part)
                assert (both[0] - both[1]).abs().max() < 1e-4
                assert both[0].dtype == both[1].dtype == dtype
                assert both[0].shape == (1, *model.shape)
