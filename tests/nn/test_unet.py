"""The U-Net: published sizes, plan laws, conditions, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.nn.embeddings import TimeFeatures
from scoreline.nn.plan import Plan
from scoreline.nn.unet import Joint, UNet
from scoreline.nn.unet_presets import UNET_PRESETS, unet_preset

DIGITS: dict[str, Any] = {"in_shape": (1, 8, 8), "base_channels": 16, "channel_mult": (1, 2), "num_blocks": 1}
DIGITS |= {"attention": (4,)}
# One network for every way in which blocks, resampling, attention and embeddings differ.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": DIGITS,
    "classes": DIGITS | {"num_classes": 10},
    "adm": DIGITS | {"modulation": "scale-shift", "head_channels": 8, "init": "default", "time_features": "cos-sin"},
    "ddpm": DIGITS | {"resampling": "conv", "num_classes": 3, "labels": "separate"},
    "ddpmpp": DIGITS | {"decoder_attention": "last", "rescale": True, "resampling_projection": True},
    "ncsnpp": DIGITS
    | {"rescale": True, "resampling_filter": (1, 3, 3, 1), "input_pyramid": True, "time_features": "fourier"},
    "ncsnpp256": DIGITS | {"rescale": True, "resampling_filter": (1, 3, 3, 1), "input_skip": True, "output_skip": True},
    "ctm": DIGITS | {"second_time": True},
    "text": DIGITS | {"context_dim": 6},
    "wide": DIGITS | {"base_channels": 48, "modulation": "scale-shift"},
}


def alive(settings: dict[str, Any], seed: int = 0) -> UNet:
    """A network whose zero layers are not zero, in evaluation mode."""
    torch.manual_seed(seed)
    net = UNet(**settings).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def inputs(net: UNet, batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Cond]:
    """A batch with every condition that the network takes."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *net.in_shape, generator=g)
    t = torch.randn(batch, *((2,) if net.second_time else ()), generator=g)
    cond = Cond()
    if net.num_classes is not None:
        cond = cond.replace(labels=torch.arange(batch) % (net.num_classes + 1))
    if "tokens" in net.accepts:
        tokens = torch.randn(batch, 5, 6, generator=g)
        cond = cond.replace(tokens=tokens, mask=torch.arange(5) < torch.arange(2, 2 + batch)[:, None])
    return x, t, cond


def count(settings: dict[str, Any]) -> int:
    """Trainable parameters, counted without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(**settings).parameters() if p.requires_grad)


# --------------------------------------------------------------------------------------------------- published sizes

check = pytest.mark.check
COUNTS = [
    pytest.param("edm-ddpmpp-cifar10", {}, 55_732_739, marks=check(system=34, number=9)),
    pytest.param("ctm-cifar10", {}, 60_395_267, marks=check(system=34, number=9)),
    pytest.param("edm-ddpmpp-cifar10", {"augment_dim": 9}, 55_733_891, marks=check(system=22, number=3)),
    pytest.param("adm-imagenet64", {}, 295_899_267, marks=check(system=22, number=3)),
    pytest.param("adm-imagenet64", {}, 295_899_267, marks=[check(system=19, number=10), check(system=32, number=6)]),
    pytest.param("edm-ncsnpp-cifar10", {}, 56_397_827, marks=check(system=19, number=10)),
    pytest.param("rfpp-ffhq64", {}, 62_761_091, marks=check(system=19, number=10)),
    pytest.param("ddpmpp-continuous-cifar10", {}, 61_804_419, marks=check(system=13, number=9)),
    pytest.param("ncsnpp-continuous-cifar10", {}, 62_758_787, marks=check(system=15, number=4)),
    pytest.param("ncsnpp-continuous-cifar10", {"num_blocks": 8}, 107_586_947, marks=check(system=15, number=4)),
    pytest.param("ddpmpp-continuous-cifar10", {}, 61_804_419, marks=check(system=15, number=4)),
    pytest.param("ddpmpp-continuous-cifar10", {"num_blocks": 8}, 106_632_579, marks=check(system=15, number=4)),
    pytest.param("ddpm-continuous-cifar10", {}, 35_218_947, marks=check(system=15, number=4)),
    pytest.param("ncsnpp-continuous-celebahq256", {}, 65_574_421, marks=check(system=15, number=4)),
    ("ddpm-cifar10", {}, 35_746_307),
    pytest.param("progressive-cifar10", {}, 60_004_099, marks=check(system=17, number=10)),
    pytest.param("progressive-imagenet64-both", {}, 295_905_222, marks=check(system=17, number=10)),
    pytest.param("sfd-cifar10", {}, 38_632_323, marks=check(system=36, number=8)),
    pytest.param("sfd-stl10", {}, 83_159_683, marks=check(system=36, number=8)),
    pytest.param("ddpmpp-continuous-cifar10", {}, 61_804_419, marks=check(system=31, number=8)),
    pytest.param("slimflow-28m", {}, 27_906_179, marks=check(system=31, number=8)),
    pytest.param("slimflow-16m", {}, 15_707_235, marks=check(system=31, number=8)),
    pytest.param("slimflow-7m", {}, 6_989_891, marks=check(system=31, number=8)),
    pytest.param("slimflow-3m", {}, 3_437_123, marks=check(system=31, number=8)),
    pytest.param("slimflow-3m", {"in_shape": (3, 64, 64)}, 3_536_195, marks=check(system=31, number=8)),
]


@pytest.mark.parametrize("name, changes, parameters", COUNTS)
def test_published_parameter_counts(name, changes, parameters):
    assert count(unet_preset(name, **changes)) == parameters


def test_every_preset_is_counted():
    counted = {case.values[0] if hasattr(case, "values") else case[0] for case in COUNTS}
    assert set(UNET_PRESETS) - counted == {"edm-ddpmpp-ffhq64"}


def test_the_output_pyramid_adds_upsampled_heads_and_the_input_skip_projects_the_downsampled_input():
    net = alive(VARIANTS["ncsnpp256"])
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.7])
    with torch.no_grad():
        low, high = net.heads.values()
        seen = []
        for head in (low, high):
            head.register_forward_hook(lambda module, given, out: seen.append(out))
        out = net(x, t)
        assert [v.shape[-1] for v in seen] == [4, 8]
        assert torch.allclose(out, net.widen(seen[0]) + seen[1], atol=1e-6)
        # A flat image stays flat through the resampling, so that the filters sum to one.
        flat = net.widen(net.shrink(torch.ones(1, 1, 8, 8)))
        assert torch.allclose(flat[..., 3:5, 3:5], torch.ones(2, 2), atol=1e-6)
        (projection,) = net.pyramid.values()
        given = []
        projection.register_forward_hook(lambda module, args, out: given.append(args[0]))
        net(x, t)
        assert torch.allclose(given[0], net.shrink(x))
    assert not hasattr(net, "output")


def test_one_form_of_the_input_pyramid_at_a_time():
    with pytest.raises(InputError, match="input_skip"):
        UNet(**DIGITS, input_pyramid=True, input_skip=True)


def test_fourier_frequencies_are_frozen_state():
    with torch.device("meta"):
        net = UNet(**unet_preset("ncsnpp-continuous-cifar10"))
    assert {name: b.numel() for name, b in net.named_buffers() if name in net.state_dict()} == {
        "embedding.features.frequencies": 128
    }


@pytest.mark.check(system=22, number=2)
@pytest.mark.parametrize(
    "name, joints", [("adm-imagenet64", 16), ("edm-ddpmpp-cifar10", 15), ("edm-ddpmpp-ffhq64", 20)]
)
def test_number_of_joints(name, joints):
    with torch.device("meta"):
        net = UNet(**unet_preset(name))
    assert len(net.joints) == joints
    if name == "adm-imagenet64":
        skip = [joint.skip for joint in net.joints]
        assert skip == [768, 768, 768, 576, 576, 576, 576, 384, 384, 384, 384, 192, 192, 192, 192, 192]
        assert [joint.resolution for joint in net.joints] == [8] * 4 + [16] * 4 + [32] * 4 + [64] * 4
        assert net.joints[4] == Joint(16, 768, 576)
    if name == "edm-ddpmpp-cifar10":
        assert [joint.skip for joint in net.joints] == [256] * 14 + [128]


@pytest.mark.check(system=7, number=5)
def test_adm_has_58_layers():
    lsun = unet_preset("adm-imagenet64", in_shape=(3, 256, 256), channel_mult=(1, 1, 2, 2, 4, 4), num_blocks=2)
    with torch.device("meta"):
        assert UNet(**unet_preset("adm-imagenet64")).num_layers == 58
        assert UNet(**lsun).num_layers == 58


# --------------------------------------------------------------------------------------------------------- plan laws


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.check(system=22, number=1)
@pytest.mark.check(system=7, number=5)
def test_plans_that_change_nothing_are_bit_identical(name):
    net = alive(VARIANTS[name])
    x, t, cond = inputs(net)
    k = len(net.joints)
    plain = net(x, t, cond)
    for plan in (None, Plan(), Plan(skip_scale=(1.0,) * k, hidden_scale=(1.0,) * k), Plan(taps=("bottleneck",))):
        out, _ = net.trace(x, t, cond, plan)
        assert torch.equal(out, plain)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.check(system=7, number=5)
def test_dropping_every_layer_keeps_the_shape(name):
    net = alive(VARIANTS[name])
    x, t, cond = inputs(net)
    out, _ = net.trace(x, t, cond, Plan(drop=frozenset(range(net.num_layers))))
    assert out.shape == net(x, t, cond).shape
    # Nothing that is left sees the noise level or the conditions.
    other, _ = net.trace(x, t + 1, net.null(cond), Plan(drop=frozenset(range(net.num_layers))))
    assert torch.equal(out, other)


def test_each_dropped_layer_matters_and_attention_becomes_the_identity():
    net = alive(VARIANTS["text"])
    x, t, cond = inputs(net)
    names = [f"layer.{i}" for i in range(net.num_layers)]
    plain, taps = net.trace(x, t, cond, Plan(taps=tuple(names)))
    kinds = [
        type(layer).__name__ for part in (net.encoder, net.middle, net.decoder) for s in part for layer in s.layers()
    ]
    assert kinds.count("CrossAttention") == kinds.count("Attention") == 4
    for i, kind in enumerate(kinds):
        out, dropped = net.trace(x, t, cond, Plan(drop={i}, taps=(names[i],)))
        assert not torch.equal(out, plain)
        if kind != "ResBlock":
            assert torch.equal(dropped[names[i]], taps[names[i - 1]])


def test_a_plan_leaves_nothing_behind():
    net = alive(VARIANTS["classes"])
    x, t, cond = inputs(net)
    plain = net(x, t, cond)
    k = len(net.joints)
    tuned, _ = net.trace(x, t, cond, Plan(drop={2}, skip_scale=(0.5,) * k))
    assert not torch.equal(tuned, plain)
    assert torch.equal(net(x, t, cond), plain)


def test_joint_factors_scale_what_is_concatenated():
    net = alive(VARIANTS["plain"])
    x, t, cond = inputs(net)
    k = len(net.joints)
    names = tuple(f"joint.{i}.{side}" for i in range(k) for side in ("hidden", "skip"))
    _, plain = net.trace(x, t, cond, Plan(taps=names))
    for i in range(k):
        assert plain[f"joint.{i}.hidden"].shape[1:] == (net.joints[i].hidden, *[net.joints[i].resolution] * 2)
        assert plain[f"joint.{i}.skip"].shape[1:] == (net.joints[i].skip, *[net.joints[i].resolution] * 2)
        factors = tuple(0.5 if j == i else 1.0 for j in range(k))
        _, skip = net.trace(x, t, cond, Plan(skip_scale=factors, taps=names))
        _, hidden = net.trace(x, t, cond, Plan(hidden_scale=factors, taps=names))
        assert torch.equal(skip[f"joint.{i}.skip"], 0.5 * plain[f"joint.{i}.skip"])
        assert torch.equal(skip[f"joint.{i}.hidden"], plain[f"joint.{i}.hidden"])
        assert torch.equal(hidden[f"joint.{i}.hidden"], 0.5 * plain[f"joint.{i}.hidden"])
    # The deepest joint reads the last skip of the encoder, the top one the input convolution.
    _, ends = net.trace(x, t, cond, Plan(taps=("bottleneck", "input", "middle", *names)))
    assert torch.equal(ends["joint.0.skip"], ends["bottleneck"])
    assert torch.equal(ends["joint.0.hidden"], ends["middle"])
    assert torch.equal(ends[f"joint.{k - 1}.skip"], ends["input"])


@pytest.mark.check(system=22, number=5)
def test_a_pure_joint_is_affine_in_rho_and_a_mixed_one_is_not():
    # Joints 0 and 1 read 256 + 256 (32 groups of 16: pure) and 256 + 128 (32 groups of 12: the 22nd mixes) channels.
    settings = DIGITS | {"base_channels": 128, "channel_mult": (2,), "attention": (), "in_shape": (1, 4, 4)}
    net = alive(settings | {"middle_attention": False}).double()
    x, t, cond = (v.double() if isinstance(v, Tensor) else v for v in inputs(net))
    first = next(i for i, s in enumerate(net.decoder)) + len(net.encoder) + len(net.middle)
    assert [(j.hidden, j.skip) for j in net.joints] == [(256, 256), (256, 128)]

    def deviation(joint: int) -> float:
        name = f"layer.{first + joint}"

        def output(rho: float) -> Tensor:
            factors = tuple(rho if j == joint else 1.0 for j in range(2))
            return net.trace(x, t, cond, Plan(skip_scale=factors, taps=(name,)))[1][name]

        low, middle, high = output(0.4), output(0.7), output(1.0)
        return ((low + high) / 2 - middle).abs().max().item() / (high - low).abs().max().item()

    assert deviation(0) < 2e-4
    assert deviation(1) > 1e-3


def test_stop_ends_the_pass_after_the_last_tap():
    net = alive(VARIANTS["text"])
    x, t, cond = inputs(net)
    ran: list[Any] = []
    hooks = [m.register_forward_hook(lambda m, i, o: ran.append(m)) for m in (net.middle[0], net.output)]
    for name in ("input", "bottleneck", "embedding", *net.taps[1::4]):
        whole = net.trace(x, t, cond, Plan(taps=(name,)))[1][name]
        ran.clear()
        out, taps = net.trace(x, t, cond, Plan(taps=(name,), stop=True))
        assert out is None
        assert torch.equal(taps[name], whole)
        assert net.output not in ran
        if name in ("input", "bottleneck", "layer.0", "embedding"):
            assert not ran
    for hook in hooks:
        hook.remove()


def test_a_plan_that_does_not_fit_is_refused():
    net = UNet(**DIGITS)
    x, t, _ = inputs(net)
    for plan in (Plan(drop={net.num_layers}), Plan(skip_scale=(1.0,)), Plan(taps=("bottle",))):
        with pytest.raises(InputError):
            net.trace(x, t, None, plan)


def test_attention_maps_are_softmaxes_inside_the_graph():
    net = alive(VARIANTS["text"] | {"head_channels": 16})
    x, t, cond = inputs(net)
    out, taps = net.trace(x, t, cond, Plan(taps=("attention.0", "attention.1")))
    own, cross = taps["attention.0"], taps["attention.1"]
    assert own.shape == (3, 2, 16, 16)
    assert cross.shape == (3, 2, 16, 5)
    torch.testing.assert_close(cross.sum(-1), torch.ones(3, 2, 16))
    assert cross[0, :, :, 2:].abs().max() == 0  # the first image has two tokens
    torch.testing.assert_close(out, net(x, t, cond), rtol=1e-4, atol=1e-5)
    gradient = torch.autograd.grad(out.sum(), cross)[0]
    assert gradient.abs().max() > 0


# ------------------------------------------------------------------------------------------ conditions and behaviour


@pytest.mark.parametrize("name", VARIANTS)
def test_images_do_not_see_each_other(name):
    net = alive(VARIANTS[name])
    x, t, cond = inputs(net)
    whole = net(x, t, cond)
    single = torch.cat([net(x[i : i + 1], t[i : i + 1], cond[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_parameter(name):
    net = alive(VARIANTS[name]).train()
    x, t, cond = inputs(net)
    net(x, t, cond).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


def test_one_time_serves_the_whole_batch():
    for name in ("plain", "adm", "ctm", "classes", "ddpm", "wide"):
        net = alive(VARIANTS[name])
        x, t, cond = inputs(net)
        torch.testing.assert_close(net(x, t[:1], cond), net(x, t[:1].expand_as(t), cond))


def test_both_times_count():
    net = alive(VARIANTS["ctm"])
    x, t, cond = inputs(net)
    plain = net(x, t, cond)
    for column in (0, 1):
        moved = t.clone()
        moved[:, column] += 1
        assert not torch.allclose(net(x, moved, cond), plain)
    assert not torch.allclose(net(x, t.flip(1), cond), plain)


@pytest.mark.parametrize("labels", ["input", "output", "output-bias", "separate"])
@pytest.mark.parametrize("null", ["zero", "learned"])
def test_labels_and_their_null(labels, null):
    net = alive(DIGITS | {"num_classes": 3, "labels": labels, "null_label": null})
    x, t, _ = inputs(net, 4)
    x, t = x[:1].expand_as(x), t[:1]
    out = net(x, t, Cond(labels=torch.arange(4)))
    assert all(not torch.allclose(out[i], out[j]) for i in range(4) for j in range(i))
    nothing = net(x, t, net.null(Cond(labels=torch.arange(4))))
    torch.testing.assert_close(nothing, out[3:].expand_as(out))
    # Class weights: one-hot weights are labels; with a zero null, no weight is no label.
    weights = net(x, t, Cond(labels=torch.eye(4)[:, :3]))
    torch.testing.assert_close(weights[:3], out[:3])
    if null == "zero" and labels != "separate":
        torch.testing.assert_close(weights[3], out[3])
    with pytest.raises(IndexError):
        net(x, t, Cond(labels=torch.tensor([0, 1, 2, 4])))


def test_other_conditions_enter():
    settings = DIGITS | {"vector_dim": 5, "image_channels": 2, "weight_input": True, "augment_dim": 9}
    net = alive(settings)
    x, t, _ = inputs(net)
    torch.manual_seed(3)
    cond = Cond(
        vector=torch.randn(3, 5), image=torch.randn(3, 2, 8, 8), weight=torch.rand(3), augment=torch.randn(3, 9)
    )
    plain = net(x, t, cond)
    for name, value in cond.items():
        assert not torch.allclose(net(x, t, cond.replace(**{name: value + 1})), plain), name
    torch.testing.assert_close(
        net(x, t, cond.replace(augment=None)), net(x, t, cond.replace(augment=torch.zeros(3, 9)))
    )
    null = net.null(cond)
    assert null.vector.abs().max() == 0
    assert torch.equal(null.image, cond.image)
    # A new guidance-strength input leaves the start unchanged.
    fresh = UNet(**settings)
    assert torch.equal(fresh(x, t, cond), fresh(x, t, cond.replace(weight=cond.weight + 1)))


def test_masked_tokens_do_not_count_and_no_tokens_are_null_tokens():
    net = alive(VARIANTS["text"])
    x, t, cond = inputs(net)
    changed = torch.where(cond.mask[..., None], cond.tokens, cond.tokens + 1)
    torch.testing.assert_close(net(x, t, cond.replace(tokens=changed)), net(x, t, cond))
    assert not torch.allclose(net(x, t, cond.replace(mask=None)), net(x, t, cond))
    none = net(x, t, cond.replace(mask=torch.zeros(3, 5, dtype=torch.bool)))
    torch.testing.assert_close(none, net(x, t, net.null(cond)))


def test_start_is_nearly_zero_as_published():
    for name, bound in (("ddpmpp", 1e-3), ("adm", 0.0)):
        torch.manual_seed(0)
        net = UNet(**VARIANTS[name])
        x, t, cond = inputs(net)
        assert net(x, t, cond).abs().max() <= bound


def test_channels_last_inference_gives_the_same_images():
    net = alive(VARIANTS["wide"])
    x, t, cond = inputs(net)
    with torch.no_grad():
        fast = net(x, t, cond)
        assert net.trace(x, t, cond, Plan(taps=("input",)))[1]["input"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast, net(x, t, cond), rtol=1e-4, atol=1e-5)


def test_dropout_only_while_training():
    net = alive(DIGITS | {"dropout": 0.5})
    x, t, _ = inputs(net)
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))


def test_time_features_closed_form_and_precision():
    t = torch.tensor([0.7, 812.0])
    sin_cos = TimeFeatures(6, "sin-cos")(t)
    want = [math.sin(0.7), math.sin(0.7 / 100), math.sin(0.7 / 1e4), math.cos(0.7), math.cos(0.007), math.cos(7e-5)]
    torch.testing.assert_close(sin_cos[0], torch.tensor(want))
    cos_sin = TimeFeatures(4, "cos-sin", scale=2.0)(t)
    torch.testing.assert_close(
        cos_sin[0], torch.tensor([math.cos(1.4), math.cos(0.014), math.sin(1.4), math.sin(0.014)])
    )
    fourier = TimeFeatures(64, "fourier", fourier_scale=1.0)
    torch.testing.assert_close(fourier(t).square().sum(1), torch.full((2,), 32.0))
    # Half precision must not round the frequencies: at t = 812 that would be a wrong phase.
    half = TimeFeatures(64, "sin-cos").to(torch.bfloat16)
    torch.testing.assert_close(half(t), TimeFeatures(64, "sin-cos")(t))


def test_other_precisions():
    net = alive(VARIANTS["ncsnpp"])
    x, t, cond = inputs(net)
    single = net(x, t, cond)
    torch.testing.assert_close(net.double()(x.double(), t.double(), cond).float(), single, rtol=1e-4, atol=1e-4)
    assert net.bfloat16()(x.bfloat16(), t, cond).dtype == torch.bfloat16


def test_learned_variance_and_state_round_trip():
    net, twin = alive(VARIANTS["ncsnpp"] | {"out_channels": 2}), UNet(**VARIANTS["ncsnpp"], out_channels=2).eval()
    x, t, cond = inputs(net)
    twin.load_state_dict(net.state_dict())
    assert net(x, t, cond).shape == (3, 2, 8, 8)
    assert torch.equal(twin(x, t, cond), net(x, t, cond))


def test_compiles_as_one_graph():
    net = alive(VARIANTS["text"] | {"num_classes": 3})
    x, t, cond = inputs(net)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, cond), net(x, t, cond))


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, thing",
    [
        ({"in_shape": (8, 8)}, "in_shape"),
        ({"in_shape": (1, 9, 8)}, "in_shape"),
        ({"base_channels": 10}, "base_channels"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"attention": (16,)}, "attention resolution"),
        ({"head_channels": 5}, "head_channels"),
        ({"dropout": 1.0}, "dropout"),
        ({"modulation": "film"}, "modulation"),
        ({"resampling_filter": (1, 2, 1)}, "resampling filter"),
        ({"labels": "inputs", "num_classes": 3}, "labels"),
        ({"num_classes": 0}, "num_classes"),
        ({"time_features": "sine"}, "time features"),
        ({"init": "kaiming"}, "init"),
    ],
)
def test_impossible_settings_are_refused(changes, thing):
    with pytest.raises(InputError) as error:
        UNet(**(DIGITS | changes))
    assert error.value.thing == thing


def test_inputs_that_do_not_fit_are_refused():
    plain, classes, ctm = (UNet(**VARIANTS[name]) for name in ("plain", "classes", "ctm"))
    x, t, _ = inputs(plain)
    labels = Cond(labels=torch.zeros(3, dtype=torch.int64))
    cases: list[tuple[Any, ...]] = [
        (plain, x[:, :, :4], t, None, "input shape"),
        (plain, x, t[:2], None, "time shape"),
        (plain, x, t[:, None], None, "time shape"),
        (ctm, x, t, None, "time shape"),
        (plain, x, t, labels, "takes no conditions"),
        (classes, x, t, None, "num_classes for none"),
        (classes, x, t, Cond(labels=torch.zeros(2, dtype=torch.int64)), "labels shape"),
    ]
    for net, *args, message in cases:
        with pytest.raises(InputError, match=message):
            net(*args)
    with pytest.raises(InputError, match="labels"):
        classes.null(None)
    assert plain.null(None) == Cond()


def test_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'adm-imagenet64'"):
        unet_preset("adm-imagenet-64")
