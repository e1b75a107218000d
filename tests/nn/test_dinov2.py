"""DINOv2: counts, names, an independent network at the same weights, position embeddings, loading."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.score import Protocol
from scoreline.nn import dinov2
from scoreline.nn.dinov2 import DINOv2
from scoreline.nn.pretrained import PRETRAINED

SMALL = {"width": 24, "depth": 2, "heads": 3, "patch": 4, "trained_size": 20}


def published(width: int = 24, depth: int = 2, patch: int = 4, grid: int = 5) -> dict[str, Tensor]:
    """Random tensors under the names and shapes of the published file."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, 1 + grid * grid, width), "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    for i in range(depth):
        for name, shape in {
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,), "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,), "ls1.gamma": (width,), "ls2.gamma": (width,),
            "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,),
        }.items():  # fmt: skip
            shapes[f"blocks.{i}.{name}"] = shape
    generator = torch.Generator().manual_seed(0)
    return {name: 0.4 * torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def literal(state: dict[str, Tensor], x: Tensor, heads: int, positions: Tensor) -> Tensor:
    """The class token from the formulas, a head and an image at a time."""

    def norm(h: Tensor, name: str) -> Tensor:
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return h * state[f"{name}.weight"] + state[f"{name}.bias"]

    weight = state["patch_embed.proj.weight"]
    width, patch = len(weight), weight.shape[2]
    out = []
    for image in x:
        tokens = [state["cls_token"][0, 0]]
        for top in range(0, image.shape[1], patch):
            for left in range(0, image.shape[2], patch):
                piece = image[:, top : top + patch, left : left + patch]
                tokens.append(weight.flatten(1) @ piece.flatten() + state["patch_embed.proj.bias"])
        h = torch.stack(tokens) + positions
        for i in range(sum(name.endswith("ls1.gamma") for name in state)):
            b = f"blocks.{i}"
            q, k, v = (norm(h, f"{b}.norm1") @ state[f"{b}.attn.qkv.weight"].T + state[f"{b}.attn.qkv.bias"]).chunk(
                3, 1
            )
            size = width // heads
            parts = []
            for j in range(heads):
                a, c, d = (t[:, j * size : (j + 1) * size] for t in (q, k, v))
                parts.append((a @ c.T / size**0.5).softmax(1) @ d)
            joined = torch.cat(parts, 1) @ state[f"{b}.attn.proj.weight"].T + state[f"{b}.attn.proj.bias"]
            h = h + state[f"{b}.ls1.gamma"] * joined
            m = norm(h, f"{b}.norm2") @ state[f"{b}.mlp.fc1.weight"].T + state[f"{b}.mlp.fc1.bias"]
            m = m * 0.5 * (1 + torch.erf(m / 2**0.5))
            m = m @ state[f"{b}.mlp.fc2.weight"].T + state[f"{b}.mlp.fc2.bias"]
            h = h + state[f"{b}.ls2.gamma"] * m
        out.append(norm(h, "norm")[0])
    return torch.stack(out)


def test_the_published_size() -> None:
    with torch.device("meta"):
        net = DINOv2()
    assert sum(p.numel() for p in net.parameters()) == 304_368_640
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert shapes["pos_embed"] == (1, 1370, 1024)
    assert shapes["blocks.23.attn.qkv.weight"] == (3072, 1024)
    assert net.dim == 1024
    assert net.preprocess.size == 224


@torch.no_grad()
def test_against_a_literal_network_at_the_trained_size() -> None:
    net, state = DINOv2(**SMALL, size=20), published()
    net.load_state_dict(state)  # the published names, all of them
    x = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(2))
    found = net.activations(x, ["cls"])["cls"]
    torch.testing.assert_close(found, literal(state, x, 3, state["pos_embed"][0]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_positions_are_sampled_as_in_the_released_code() -> None:
    """Bicubic (a = -0.75) at (i + 1/2) / scale - 1/2 with scale (n + 0.1) / grid, edges repeated, by loops."""
    net, state = DINOv2(**SMALL, size=12), published()
    net.load_state_dict(state)
    grid = state["pos_embed"][0, 1:].view(5, 5, 24)

    def kernel(t: float) -> float:
        t = abs(t)
        return 1.25 * t**3 - 2.25 * t**2 + 1 if t <= 1 else -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    def weights(n: int) -> Tensor:
        rows = torch.zeros(n, 5)
        for i in range(n):
            source = (i + 0.5) / ((n + 0.1) / 5) - 0.5
            base = int(source // 1)
            for j in range(base - 1, base + 3):
                rows[i, min(max(j, 0), 4)] += kernel(source - j)
        return rows

    expected = torch.einsum("ia,jb,abc->ijc", weights(3), weights(3), grid).reshape(9, 24)
    found = net.positions(3, 3)
    torch.testing.assert_close(found[0, 1:], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[:, 0], state["pos_embed"][:, 0])
    by_size = F.interpolate(grid.permute(2, 0, 1)[None], (3, 3), mode="bicubic")
    assert (found[0, 1:].T.view(24, 3, 3) - by_size[0]).abs().max() > 1e-3  # what others make of it
    x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(net.activations(x, ["cls"])["cls"], literal(state, x, 3, found[0]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_loading_and_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = {**DINOv2.__init__.__wrapped__.__kwdefaults__, **SMALL, "size": 12}
    monkeypatch.setattr(DINOv2.__init__.__wrapped__, "__kwdefaults__", defaults)
    entry, state = PRETRAINED["dinov2-vit-l-14"], published()
    file = tmp_path / entry.file
    torch.save(state, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ArtefactError, match="trusted=True"):
        DINOv2.load(file)
    monkeypatch.setitem(PRETRAINED, "dinov2-vit-l-14", replace(entry, sha256=digest))
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path))
    net = DINOv2.load(resize="clean")
    protocol = Protocol(metric="fd", **net.protocol)
    assert (protocol.features, protocol.tap, protocol.weights) == ("dinov2-vit-l-14", "cls", digest)
    assert (protocol.resize, protocol.precision) == ("clean 12", "float32")
    x = torch.rand(2, 3, 30, 17) * 2 - 1
    assert net.features(x).shape == (2, 24)
    assert torch.equal(net.features(x), net.activations(net.preprocess(x), ["cls"])["cls"])
    half = net.fast(dtype=torch.bfloat16)
    assert half.protocol["precision"] == "bfloat16"
    assert half.features(x).dtype == torch.float32
    torch.testing.assert_close(half.features(x), net.features(x), rtol=0.1, atol=0.1)
    del state["norm.bias"]
    torch.save(state, file)
    with pytest.raises(ArtefactError, match=r"norm\.bias.*1 tensors missing"):
        DINOv2.load(file, trusted=True)


def test_bad_arguments() -> None:
    for arguments, words in (
        ({"size": 225}, "multiple of the patch"),
        ({"trained_size": 0}, "trained_size"),
        ({"width": 25}, "multiple of heads"),
        ({"resize": "bicubic"}, "pil-bicubic"),
    ):
        with pytest.raises(InputError, match=words):
            DINOv2(**(SMALL | {"size": 20} | arguments))
    net = DINOv2(**SMALL, size=20)
    with pytest.raises(InputError, match="tap"):
        net.activations(torch.zeros(1, 3, 20, 20), ["clss"])
    assert isinstance(net.blocks[0], nn.Module)
    assert dinov2.MEAN == (0.485, 0.456, 0.406)
    assert dinov2.STD == (0.229, 0.224, 0.225)
