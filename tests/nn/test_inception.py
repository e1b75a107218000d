"""Inception-2015: counts, shapes, the rules in which it differs, its fast form and its weights."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.names import kind_and_name
from scoreline.core.score import Protocol
from scoreline.nn import inception
from scoreline.nn.inception import TAPS, Inception2015
from scoreline.nn.inception_blocks import average
from scoreline.nn.pretrained import PRETRAINED


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net() -> Inception2015:
    """Random weights of a size that keeps activations alive through 94 layers."""
    torch.manual_seed(0)
    net = Inception2015()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return net


# --- counts and shapes -------------------------------------------------------------------------------------------


@pytest.mark.check(system=0, number=8)
def test_counts() -> None:
    with torch.device("meta"):
        net = Inception2015(tap="sfid")
    parameters = list(net.parameters())
    assert len(parameters) == 284
    assert sum(p.numel() for p in parameters) == 23_850_960
    assert sum(p.numel() for p in parameters) - sum(p.numel() for p in net.fc.parameters()) == 21_785_568
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 94
    assert net.dim == 2023
    assert all(m.eps == 1e-3 for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(m.bias is None for m in net.modules() if isinstance(m, nn.Conv2d))


def test_activation_shapes() -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        net = Inception2015()
        for name, child in net.named_children():
            child.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
        found = net.activations(torch.empty(2, 3, 299, 299), list(TAPS))
    assert {name: shape for name, shape in shapes.items() if name != "fc"} == {
        "Conv2d_1a_3x3": (32, 149, 149),
        "Conv2d_2a_3x3": (32, 147, 147),
        "Conv2d_2b_3x3": (64, 147, 147),
        "Conv2d_3b_1x1": (80, 73, 73),
        "Conv2d_4a_3x3": (192, 71, 71),
        "Mixed_5b": (256, 35, 35),
        "Mixed_5c": (288, 35, 35),
        "Mixed_5d": (288, 35, 35),
        "Mixed_6a": (768, 17, 17),
        "Mixed_6b": (768, 17, 17),
        "Mixed_6c": (768, 17, 17),
        "Mixed_6d": (768, 17, 17),
        "Mixed_6e": (768, 17, 17),
        "Mixed_7a": (1280, 8, 8),
        "Mixed_7b": (2048, 8, 8),
        "Mixed_7c": (2048, 8, 8),
    }
    assert {name: tuple(value.shape) for name, value in found.items()} == {n: (2, d) for n, d in TAPS.items()}


def test_names_of_the_published_weights() -> None:
    """Names by which the ported file holds its tensors; a sample from every kind of block."""
    names = set(Inception2015().state_dict())
    expected = {
        "Conv2d_1a_3x3.conv.weight", "Conv2d_4a_3x3.bn.running_var", "Mixed_5b.branch1x1.bn.running_mean",
        "Mixed_5c.branch5x5_2.conv.weight", "Mixed_5d.branch3x3dbl_3.bn.weight", "Mixed_5d.branch_pool.bn.bias",
        "Mixed_6a.branch3x3.conv.weight", "Mixed_6a.branch3x3dbl_1.conv.weight", "Mixed_6b.branch7x7_3.conv.weight",
        "Mixed_6e.branch7x7dbl_5.conv.weight", "Mixed_7a.branch7x7x3_4.conv.weight", "Mixed_7a.branch3x3_2.bn.weight",
        "Mixed_7b.branch3x3_2a.conv.weight", "Mixed_7c.branch3x3dbl_3b.conv.weight", "fc.weight", "fc.bias",
    }  # fmt: skip
    assert expected <= names
    # 94 x (weight, batch norm's weight, bias, mean, variance and counter) + head
    assert len(names) == 94 * 6 + 2


# --- what is particular to this network --------------------------------------------------------------------------


def test_average_pool_leaves_the_padding_out_of_the_divisor() -> None:
    x = noise(1, 2, 4, 5)
    out = average(x)
    for i in range(4):
        for j in range(5):
            window = x[0, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            torch.testing.assert_close(out[0, :, i, j], window.mean((1, 2)))


def literal_conv(x: Tensor, block: nn.Module, padding: tuple[int, int] = (0, 0), stride: int = 1) -> Tensor:
    """Convolution as a sum over kernel offsets, batch norm from its definition, ReLU."""
    w, bn = block.conv.weight, block.bn
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    rows = (x.shape[2] - w.shape[2]) // stride + 1
    columns = (x.shape[3] - w.shape[3]) // stride + 1
    out = torch.zeros(len(x), len(w), rows, columns)
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            part = x[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride]
            out += torch.einsum("nchw,oc->nohw", part[:, :, :rows, :columns], w[:, :, i, j])
    shape = (1, -1, 1, 1)
    out = (out - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + 0.001).sqrt()
    return (out * bn.weight.view(shape) + bn.bias.view(shape)).clamp(min=0)


def literal_pool(x: Tensor, maximum: bool) -> Tensor:
    out = torch.empty_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            window = x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].flatten(2)
            out[:, :, i, j] = window.amax(2) if maximum else window.mean(2)
    return out


@torch.no_grad()
def test_block_at_17_against_a_literal_one(net: Inception2015) -> None:
    b, x = net.Mixed_6b, noise(1, 768, 4, 5)
    c = literal_conv
    b7 = c(c(c(x, b.branch7x7_1), b.branch7x7_2, (0, 3)), b.branch7x7_3, (3, 0))
    b77 = c(c(c(x, b.branch7x7dbl_1), b.branch7x7dbl_2, (3, 0)), b.branch7x7dbl_3, (0, 3))
    b77 = c(c(b77, b.branch7x7dbl_4, (3, 0)), b.branch7x7dbl_5, (0, 3))
    expected = torch.cat([c(x, b.branch1x1), b7, b77, c(literal_pool(x, False), b.branch_pool)], 1)
    torch.testing.assert_close(b(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, inputs, maximum", [("Mixed_7b", 1280, False), ("Mixed_7c", 2048, True)])
@torch.no_grad()
def test_blocks_at_8_against_a_literal_one(net: Inception2015, name: str, inputs: int, maximum: bool) -> None:
    b, x = getattr(net, name), noise(1, inputs, 3, 3) - 0.5
    c = literal_conv
    b3, b33 = c(x, b.branch3x3_1), c(c(x, b.branch3x3dbl_1), b.branch3x3dbl_2, (1, 1))
    expected = [c(x, b.branch1x1), c(b3, b.branch3x3_2a, (0, 1)), c(b3, b.branch3x3_2b, (1, 0))]
    expected += [c(b33, b.branch3x3dbl_3a, (0, 1)), c(b33, b.branch3x3dbl_3b, (1, 0))]
    expected += [c(literal_pool(x, maximum), b.branch_pool)]
    torch.testing.assert_close(b(x), torch.cat(expected, 1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_blocks_at_35_and_reductions_against_literal_ones(net: Inception2015) -> None:
    c = literal_conv
    b, x = net.Mixed_5b, noise(1, 192, 5, 6)
    b5, b3 = c(c(x, b.branch5x5_1), b.branch5x5_2, (2, 2)), c(x, b.branch3x3dbl_1)
    b3 = c(c(b3, b.branch3x3dbl_2, (1, 1)), b.branch3x3dbl_3, (1, 1))
    expected = torch.cat([c(x, b.branch1x1), b5, b3, c(literal_pool(x, False), b.branch_pool)], 1)
    torch.testing.assert_close(b(x), expected, rtol=1e-4, atol=1e-4)
    b, x = net.Mixed_6a, noise(1, 288, 7, 7) - 0.5
    b3 = c(c(c(x, b.branch3x3dbl_1), b.branch3x3dbl_2, (1, 1)), b.branch3x3dbl_3, stride=2)
    pooled = literal_pool(x, True)[:, :, 1:-1:2, 1:-1:2]
    torch.testing.assert_close(b(x), torch.cat([c(x, b.branch3x3, stride=2), b3, pooled], 1), rtol=1e-4, atol=1e-4)
    b, x = net.Mixed_7a, noise(1, 768, 5, 5) - 0.5
    b7 = c(c(c(x, b.branch7x7x3_1), b.branch7x7x3_2, (0, 3)), b.branch7x7x3_3, (3, 0))
    expected = [c(c(x, b.branch3x3_1), b.branch3x3_2, stride=2), c(b7, b.branch7x7x3_4, stride=2)]
    expected += [literal_pool(x, True)[:, :, 1:-1:2, 1:-1:2]]
    torch.testing.assert_close(b(x), torch.cat(expected, 1), rtol=1e-4, atol=1e-4)


def test_taps_share_one_pass_and_stop_early(net: Inception2015) -> None:
    x = noise(2, 3, 40, 40) * 2 - 1
    found = net.taps(x, list(TAPS))
    assert {name: value.shape[1] for name, value in found.items()} == TAPS
    torch.testing.assert_close(net.features(x[:1]), found["2048"][:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["logits"] - found["logits-no-bias"], net.fc.bias.expand(2, -1), rtol=0, atol=1e-5)
    assert not torch.equal(found["2048"][0], found["2048"][1])
    # sFID: the convolution inside Mixed_6d.branch1x1, before batch norm and ReLU: it has negative values
    inside: dict[str, Tensor] = {}
    hooks = [
        net.Mixed_6c.register_forward_hook(lambda _, __, out: inside.update(mixed_5=out)),
        net.Mixed_7a.register_forward_hook(lambda *_: inside.update(late=torch.empty(0))),
    ]
    sfid = net.taps(x[:1], ["sfid"])["sfid"]
    for hook in hooks:
        hook.remove()
    assert "late" not in inside
    convolved = net.Mixed_6d.branch1x1.conv(inside["mixed_5"])
    torch.testing.assert_close(sfid.view(1, 7, 17, 17), convolved[:, :7])
    assert (sfid < 0).any()


def test_features_do_not_depend_on_the_batch_or_on_train(net: Inception2015) -> None:
    x = noise(3, 3, 91, 91) * 2 - 1
    net.train()
    assert not any(module.training for module in net.modules())
    both = net.activations(x, ["2048"])["2048"]
    alone = torch.cat([net.activations(row[None], ["2048"])["2048"] for row in x])
    torch.testing.assert_close(alone, both, rtol=1e-4, atol=1e-5)
    assert not both.requires_grad


# --- the fast form -----------------------------------------------------------------------------------------------


def close(ours: dict[str, Tensor], reference: dict[str, Tensor], rtol: float = 1e-5) -> None:
    """Equal to `rtol` of each tap's norm, image by image."""
    assert list(ours) == list(reference)
    for name, value in reference.items():
        error = (ours[name] - value).norm(dim=1) / value.norm(dim=1)
        assert float(error.max()) < rtol, name


def test_folding_by_hand(net: Inception2015) -> None:
    block = net.Mixed_5b.branch5x5_2
    folded = block.folded()
    bn = block.bn
    scale = bn.weight[3] / (bn.running_var[3] + 1e-3).sqrt()
    torch.testing.assert_close(folded.conv.weight[3], block.conv.weight[3] * scale)
    torch.testing.assert_close(folded.conv.bias[3], bn.bias[3] - bn.running_mean[3] * scale)
    x = noise(2, 48, 6, 7)
    torch.testing.assert_close(folded(x), block(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_fast_form_gives_the_same_features(net: Inception2015) -> None:
    x, before = noise(2, 3, 139, 139) * 2 - 1, net.protocol
    for module in net.modules():  # a trained network's batch norms have weights and biases that matter
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    names = list(TAPS)
    plain, fast = net.activations(x, names), net.fast()
    found = fast.activations(x, names)
    close(found, plain)
    assert (found["sfid"] < 0).any()
    assert net.protocol != before
    assert fast.protocol == net.protocol
    assert not net.folded
    assert fast.fast().folded
    convolutions = [m for m in fast.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 94
    assert all(m.bias is not None and m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())


@torch.no_grad()
def test_half_precision_only_on_request_and_labelled(net: Inception2015, monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(1, 3, 75, 75) * 2 - 1
    half = net.fast(dtype=torch.bfloat16)
    assert half.protocol["precision"] == "bfloat16"
    assert net.fast().protocol["precision"] == "float32"
    plain = net.activations(x, ["sfid", "2048", "logits"])
    monkeypatch.setattr(inception, "_bfloat16_pays", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = half.activations(x, ["sfid", "2048", "logits"])
    assert all(value.dtype == torch.float32 for value in found.values())
    close(found, plain, rtol=5e-2)
    assert not torch.equal(found["2048"], plain["2048"])
    assert torch.equal(half.fc.weight, net.fc.weight)
    monkeypatch.setattr(inception, "_bfloat16_pays", lambda: False)
    with pytest.warns(UserWarning, match="float32 is faster here"):
        half.activations(x, ["64"])
    with pytest.raises(InputError, match="bfloat16"):
        net.fast(dtype=torch.float16)


@torch.no_grad()
def test_compiling_keeps_one_batch_size_and_stays_behind(net: Inception2015, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def compile(function, *, dynamic):
        assert dynamic is False
        return lambda x, names: (sizes.append(len(x)), function(x, names))[1]

    monkeypatch.setattr(torch, "compile", compile)
    x = noise(3, 3, 75, 75) * 2 - 1
    compiled = net.fast(compile=True)
    close(compiled.activations(x, ["192"]), net.activations(x, ["192"]))
    close(compiled.activations(x[:1], ["192"]), net.activations(x[:1], ["192"]))
    assert sizes == [3, 3]
    assert pickle.loads(pickle.dumps(compiled)).activations(x[:1], ["64"])["64"].shape == (1, 64)
    assert sizes == [3, 3]


def test_preprocessing_travels_without_the_network(net: Inception2015) -> None:
    travelled = pickle.dumps(net.preprocess)
    assert len(travelled) < 1000
    x = noise(2, 3, 20, 20) * 2 - 1
    assert torch.equal(pickle.loads(travelled)(x), net.preprocess(x))
    assert net.tap_names == tuple(TAPS)


# --- weights -----------------------------------------------------------------------------------------------------


def test_weights_load_whole(net: Inception2015, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the step counters, which older files lack; the test below has them."""
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    entry = PRETRAINED["inception-2015"]
    file = tmp_path / entry.file
    torch.save(state, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ArtefactError, match="trusted=True"):
        Inception2015.load(file)
    monkeypatch.setitem(PRETRAINED, "inception-2015", replace(entry, sha256=digest))
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path))
    loaded = Inception2015.load(resize="clean", scaling="pytorch")
    assert loaded.folded
    assert loaded.protocol["weights"] == digest
    assert Protocol(metric="fid", **loaded.protocol).resize == "clean, pytorch scaling"
    x = noise(1, 3, 75, 75) * 2 - 1
    names = ["64", "192", "sfid", "768", "2048", "logits"]
    close(loaded.activations(x, names), net.activations(x, names))


def test_safetensors_load_without_trust(net: Inception2015, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "weights.safetensors"
    save_file(net.state_dict(), file)
    assert torch.equal(Inception2015.load(file).fc.weight, net.fc.weight)


def test_other_files_are_refused(net: Inception2015, tmp_path: Path) -> None:
    weights = len(net.state_dict()) - 94  # less the counters
    cases = {
        f"{weights - 1} tensors missing, 0 unknown, 0 of": {"fc.bias": net.fc.bias},
        f"{weights - 1} tensors missing, 0 unknown, 1 of": {"fc.bias": torch.zeros(1000)},
        f"{weights} tensors missing, 1 unknown, 0 of": {"AuxLogits.fc.weight": torch.zeros(1)},
        "dictionary": [1, 2],
    }
    for words, state in cases.items():
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(ArtefactError, match=words):
            Inception2015.load(tmp_path / "w.pth", trusted=True)
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(ArtefactError, match="truncated"):
        Inception2015.load(tmp_path / "w.pth", trusted=True)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"fc.weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ArtefactError):
        Inception2015.load(tmp_path / "w.pth", trusted=True)
    assert not (tmp_path / "ran").exists()


def test_protocol_and_bad_arguments(net: Inception2015) -> None:
    assert net.protocol["weights"] != Inception2015().protocol["weights"]  # untrained nets are not alike
    assert net.protocol == net.protocol
    assert kind_and_name(Inception2015) == ("encoder", "inception-2015")
    for argument, words in (
        ({"tap": "2049"}, "2048"),
        ({"resize": "claen"}, "clean"),
        ({"quantisation": "x"}, "uint8"),
    ):
        with pytest.raises(InputError, match=words):
            Inception2015(**argument)
    with pytest.raises(InputError, match="expand"):
        net.features(torch.zeros(1, 1, 8, 8))
    with pytest.raises(InputError, match="range"):
        net.features(torch.full((1, 3, 8, 8), 2.0))
    with pytest.raises(InputError, match="sfid"):
        net.taps(torch.zeros(1, 3, 8, 8), ["sfd"])
