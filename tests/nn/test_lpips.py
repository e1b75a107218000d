"""LPIPS: the formula written out at the same weights, laws, published names, refusals."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError
from scoreline.nn.lpips import LPIPS, LPIPS_NETS, lpips
from scoreline.nn.pretrained import PRETRAINED

# torchvision's numbers of the convolutions: (channels in, out, kernel, stride, padding), and after which ReLUs it taps
ALEX = {0: (3, 64, 11, 4, 2), 3: (64, 192, 5, 1, 2), 6: (192, 384, 3, 1, 1), 8: (384, 256, 3, 1, 1),
        10: (256, 256, 3, 1, 1)}  # fmt: skip
VGG = {n: (i, o, 3, 1, 1) for n, i, o in (
    (0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256),
    (17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512),
)}  # fmt: skip
TAPPED = {"alex": (0, 3, 6, 8, 10), "vgg": (2, 7, 14, 21, 28)}
POOLS = {"alex": (2, 5), "vgg": (4, 9, 16, 23)}


def published(net: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random tensors under the names of the two published files."""
    generator = torch.Generator().manual_seed(0)
    backbone, linear = {}, {}
    for n, (i, o, k, _, _) in (ALEX if net == "alex" else VGG).items():
        backbone[f"features.{n}.weight"] = torch.randn(o, i, k, k, generator=generator) * (2 / (i * k * k)) ** 0.5
        backbone[f"features.{n}.bias"] = 0.1 * torch.randn(o, generator=generator)
    backbone["classifier.6.bias"] = torch.zeros(1000)
    for j, n in enumerate(TAPPED[net]):
        channels = len(backbone[f"features.{n}.bias"])
        linear[f"lin{j}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
    return backbone, linear


def literal(net: str, x: Tensor, y: Tensor) -> Tensor:
    """The distance from its formula, from the published names."""
    backbone, linear = published(net)
    convolutions = ALEX if net == "alex" else VGG
    mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total = torch.zeros(len(x))
    a, b = ((t - mean.view(3, 1, 1)) / std.view(3, 1, 1) for t in (x, y))
    layer = 0
    for n in range(max(convolutions) + 1):
        if n in POOLS[net]:
            a, b = (F.max_pool2d(t, 3 if net == "alex" else 2, 2) for t in (a, b))
        if n in convolutions:
            _, _, _, stride, padding = convolutions[n]
            w, c = backbone[f"features.{n}.weight"], backbone[f"features.{n}.bias"]
            a, b = (F.conv2d(t, w, c, stride, padding).clamp(min=0) for t in (a, b))
        if n in TAPPED[net]:
            unit = [t / ((t * t).sum(1, keepdim=True).sqrt() + 1e-10) for t in (a, b)]
            squares = (unit[0] - unit[1]) ** 2
            total += torch.einsum("nchw,c->nhw", squares, linear[f"lin{layer}.model.1.weight"].flatten()).mean((1, 2))
            layer += 1
    assert layer == 5
    return total


def loaded(net: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> LPIPS:
    for name, state in zip(("alexnet" if net == "alex" else "vgg16", f"lpips-{net}"), published(net)):
        entry = PRETRAINED[name]
        torch.save(state, folder / entry.file)
        digest = hashlib.sha256((folder / entry.file).read_bytes()).hexdigest()
        monkeypatch.setitem(PRETRAINED, name, replace(entry, sha256=digest))
    monkeypatch.setenv("SCORELINE_CACHE", str(folder))
    return LPIPS.load(net)


def pair(count: int = 2, size: int = 35) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.rand(count, 3, size, size + 4, generator=generator) * 2 - 1 for _ in range(2))
    return x, y


@pytest.mark.parametrize("net", LPIPS_NETS)
@pytest.mark.check(system=0, number=7)
def test_the_formula_at_published_names(net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(net, tmp_path, monkeypatch)
    x, y = pair()
    torch.testing.assert_close(lpips(x, y, model), literal(net, x, y), rtol=1e-4, atol=1e-6)
    assert torch.equal(lpips(x, x, model), torch.zeros(2))
    torch.testing.assert_close(lpips(x, y, model), lpips(y, x, model))
    assert model.name == f"lpips-{net}"
    assert len(model.weights_sha256.split(", ")) == 2
    assert not any(p.requires_grad for p in model.parameters())


def test_images_are_independent_and_gradients_reach_them() -> None:
    model, (x, y) = LPIPS("alex"), pair(3)
    both = lpips(x, y, model)
    alone = torch.cat([lpips(x[i : i + 1], y[i : i + 1], model) for i in range(3)])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-6)
    x = x.clone().requires_grad_()
    lpips(x, y, model).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    for parameter in model.features.parameters():  # no channel is alive anywhere: the root has no slope there
        parameter.data.zero_()
    x.grad = None
    lpips(x, y, model).sum().backward()
    assert bool(x.grad.isfinite().all())


def test_counts_of_the_backbones() -> None:
    with torch.device("meta"):
        counts = {net: sum(p.numel() for p in LPIPS(net).features.parameters()) for net in LPIPS_NETS}
        linear = {net: sum(p.numel() for p in LPIPS(net).weights) for net in LPIPS_NETS}
    assert counts == {"alex": 2_469_696, "vgg": 14_714_688}
    assert linear == {"alex": 1152, "vgg": 1472}


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = LPIPS("alex"), pair()
    for a, b, words in (
        (x * 127.5 + 127.5, y, "range"),
        (x, y * float("nan"), "range"),
        (x, y[..., :-1], "one shape"),
        (x[:, :1], y[:, :1], "channels"),
        (x[..., :30], y[..., :30], "at least 31"),
    ):
        with pytest.raises(InputError, match=words):
            lpips(a, b, model)
    with pytest.warns(UserWarning, match=r"look like \[0, 1\]"):
        lpips(x.abs(), y.abs(), model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lpips(x, y.abs(), model)
    lpips(x[..., :31, :31], y[..., :31, :31], model)
    with pytest.raises(InputError, match="did you mean 'alex'"):
        LPIPS("alexnet")
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ArtefactError, match=PRETRAINED["vgg16"].file):
        LPIPS.load("vgg")
    torch.save(published("alex")[0], tmp_path / "a.pth")
    torch.save(published("vgg")[1], tmp_path / "l.pth")
    with pytest.raises(ArtefactError, match="of another shape"):
        LPIPS.load("alex", tmp_path / "a.pth", tmp_path / "l.pth", trusted=True)
