"""Converted checkpoints give the numbers of a small implementation of their networks written here, tensor by tensor."""

from __future__ import annotations

import collections
import math
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline import load
from scoreline.bridges.convert import convert
from scoreline.bridges.foreign_unets import qkv_in_our_order
from scoreline.core.cond import Cond
from scoreline.core.errors import ArtefactError, InputError
from scoreline.diffusion.schedules import Discrete


class Params(dict):
    """Tensors by name, made at first use: a run of a network makes its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            spread = 0.5 / math.sqrt(max(math.prod(shape[1:]), 1)) if len(shape) > 1 else 0.3
            self[name] = torch.randn(shape, generator=self.generator) * spread * 2
        assert tuple(self[name].shape) == shape, name
        return self[name]

    def conv(self, name: str, x: Tensor, out: int, kernel: int = 3, **more: Any) -> Tensor:
        weight = self(f"{name}.weight", out, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self(f"{name}.bias", out), padding=kernel // 2, **more)

    def linear(self, name: str, x: Tensor, out: int, bias: bool = True) -> Tensor:
        return F.linear(x, self(f"{name}.weight", out, x.shape[1]), self(f"{name}.bias", out) if bias else None)

    def norm(self, name: str, x: Tensor, groups: int, eps: float) -> Tensor:
        c = x.shape[1]
        return F.group_norm(x, groups, 1 + self(f"{name}.weight", c), self(f"{name}.bias", c), eps)


def ones_added(params: Params) -> dict[str, Tensor]:
    """Weights of norms are kept as their distance from 1 above."""
    norms = {n for n in params if n.endswith("weight") and params[n].dim() == 1}
    return {n: v + 1 if n in norms else v for n, v in params.items()}


def features(t: Tensor, channels: int, last: int, cosine_first: bool) -> Tensor:
    w = 10000.0 ** (-torch.arange(channels // 2) / (channels // 2 - last))
    angles = t[:, None] * w
    parts = [angles.cos(), angles.sin()]
    return torch.cat(parts if cosine_first else parts[::-1], 1)


# --- EDM's networks, from their description ---------------------------------------------------------------------------


def fir(x: Tensor, taps: list[int], up: bool) -> Tensor:
    f = torch.tensor(taps, dtype=torch.float32)
    f = (f[:, None] * f / f.sum() ** 2 * (4 if up else 1)).expand(x.shape[1], 1, -1, -1)
    pad = (len(taps) - 1) // 2
    do = F.conv_transpose2d if up else F.conv2d
    return do(x, f, stride=2, padding=pad, groups=x.shape[1])


def edm_block(p: Params, name: str, x: Tensor, emb: Tensor, out: int, c: dict, move: str = "", attend: bool = False):
    song, eps = c["song"], 1e-6 if c["song"] else 1e-5
    taps = c.get("resample_filter", [1, 1])

    def moved(h: Tensor) -> Tensor:
        return fir(h, taps, move == "up") if move else h

    def norm(part: str, h: Tensor) -> Tensor:
        return p.norm(f"{name}.{part}", h, min(32, h.shape[1] // 4), eps)

    h = p.conv(f"{name}.conv0", moved(F.silu(norm("norm0", x))), out)
    params = p.linear(f"{name}.affine", emb, out if song else 2 * out)[:, :, None, None]
    if song:
        h = F.silu(norm("norm1", h + params))
    else:
        scale, shift = params.chunk(2, 1)
        h = F.silu(norm("norm1", h) * (1 + scale) + shift)
    h = p.conv(f"{name}.conv1", h, out)
    side = moved(x)
    if x.shape[1] != out or (move and song):
        side = p.conv(f"{name}.skip", side, out, 1)
    x = (h + side) * (math.sqrt(0.5) if song else 1)
    if attend:
        heads = 1 if song else out // 64
        qkv = p.conv(f"{name}.qkv", norm("norm2", x), 3 * out, 1)
        # Channel (head, i, j) is entry i of q, k or v, as j says.
        q, k, v = qkv.reshape(len(x), heads, out // heads, 3, -1).unbind(3)
        weights = torch.einsum("bhcq,bhck->bhqk", q, k / math.sqrt(out // heads)).softmax(-1)
        x = (p.conv(f"{name}.proj", torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(x.shape), out, 1) + x) * (
            math.sqrt(0.5) if song else 1
        )
    return x


def edm_net(p: Params, c: dict, x: Tensor, t: Tensor, labels: Tensor | None = None, augment: Tensor | None = None):
    song, base, res = c["song"], c["model_channels"], c["img_resolution"]
    width = base * c.get("channel_mult_noise", 1)
    if c.get("embedding_type") == "fourier":
        angles = t[:, None] * p("map_noise.freqs", width // 2) * 2 * math.pi
        h = torch.cat([angles.sin(), angles.cos()], 1)
    else:
        h = features(t, width, 1 if song else 0, not song)
    onehot = None if labels is None else F.one_hot(labels, c["label_dim"]).float()
    if song and onehot is not None:
        h = h + p.linear("map_label", onehot * math.sqrt(c["label_dim"]), width)
    if augment is not None:
        h = h + p.linear("map_augment", augment, width, bias=False)
    h = p.linear("map_layer1", F.silu(p.linear("map_layer0", h, 4 * base)), 4 * base)
    if not song and onehot is not None:
        h = h + p.linear("map_label", onehot, 4 * base, bias=False)
    emb = F.silu(h)
    mult, blocks, attn = c["channel_mult"], c["num_blocks"], c["attn_resolutions"]
    skips, side = [], x
    for level, m in enumerate(mult):
        r = f"{res >> level}x{res >> level}"
        if level == 0:
            x = p.conv(f"enc.{r}_conv", x, base)
        else:
            x = edm_block(p, f"enc.{r}_down", x, emb, x.shape[1], c, "down")
            if c.get("encoder_type") == "residual":
                full = F.conv2d(side, p(f"enc.{r}_aux_residual.weight", x.shape[1], side.shape[1], 3, 3), padding=2)
                taps = torch.tensor(c["resample_filter"], dtype=torch.float32)
                f = (taps[:, None] * taps / taps.sum() ** 2).expand(full.shape[1], 1, -1, -1)
                aux = F.conv2d(full, f, stride=2, groups=full.shape[1])
                x = side = (x + aux + p(f"enc.{r}_aux_residual.bias", x.shape[1])[:, None, None]) / math.sqrt(2)
        skips.append(x)
        for i in range(blocks):
            x = edm_block(p, f"enc.{r}_block{i}", x, emb, base * m, c, attend=res >> level in attn)
            skips.append(x)
    for level, m in reversed(list(enumerate(mult))):
        r = f"{res >> level}x{res >> level}"
        if level == len(mult) - 1:
            x = edm_block(p, f"dec.{r}_in0", x, emb, x.shape[1], c, attend=True)
            x = edm_block(p, f"dec.{r}_in1", x, emb, x.shape[1], c)
        else:
            x = edm_block(p, f"dec.{r}_up", x, emb, x.shape[1], c, "up")
        for i in range(blocks + 1):
            attend = res >> level in attn and (not song or i == blocks)
            x = edm_block(p, f"dec.{r}_block{i}", torch.cat([x, skips.pop()], 1), emb, base * m, c, attend=attend)
    r = f"{res}x{res}"
    norm, conv = (f"dec.{r}_aux_norm", f"dec.{r}_aux_conv") if song else ("out_norm", "out_conv")
    x = F.silu(p.norm(norm, x, min(32, x.shape[1] // 4), 1e-6 if song else 1e-5))
    return p.conv(conv, x, c["out_channels"])


# --- and their files: persistent classes with their source ------------------------------------------------------------

SOURCE = "import os\nos.makedirs({!r})\nraise SystemExit('the source of the file was run')\n"


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that pickling looks names up in."""
    for module, name in (("torch_utils.persistence", "_reconstruct_persistent_obj"), ("dnnlib.util", "EasyDict")):
        made = types.ModuleType(module)
        if name == "EasyDict":
            made.EasyDict = type(name, (dict,), {"__module__": module})  # type: ignore[attr-defined]
        else:
            exec(f"def {name}(meta): raise AssertionError('called')", made.__dict__)
            made.__dict__[name].__module__ = module
        monkeypatch.setitem(sys.modules, module.partition(".")[0], types.ModuleType(module.partition(".")[0]))
        monkeypatch.setitem(sys.modules, module, made)


def easy(values: dict) -> dict:
    return sys.modules["dnnlib.util"].EasyDict(values)


class Persistent:
    """Pickles as an object of a persistent class."""

    def __init__(self, name: str, state: dict, source: str = "") -> None:
        self.name, self.state, self.source = name, state, source

    def __reduce__(self) -> tuple:
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.name, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,), None


def module_state(tensors: dict[str, Tensor], source: str, kwargs: dict | None = None) -> dict:
    """The attributes of a module whose children are made of dotted names; `enc` and `dec` are plain ModuleDicts."""
    own = {k: v for k, v in tensors.items() if "." not in k}
    children: dict[str, Any] = {}
    for head in dict.fromkeys(k.partition(".")[0] for k in tensors if "." in k):
        inner = {k[len(head) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{head}.")}
        state = module_state(inner, source)
        if head in ("enc", "dec"):
            made = nn.ModuleDict()
            made.__dict__["_modules"] = state["_modules"]
            children[head] = made
        else:
            children[head] = Persistent("Layer", state, source)
    buffers = {k: own.pop(k) for k in list(own) if k in ("freqs", "resample_filter")}
    return {
        "training": False,
        "_parameters": collections.OrderedDict((k, nn.Parameter(v)) for k, v in own.items()),
        "_buffers": collections.OrderedDict(buffers),
        "_modules": collections.OrderedDict(children),
        "_init_args": (),
        "_init_kwargs": easy(kwargs or {}),
    }


def write_edm(path: Path, p: Params, c: dict, *, wrapper: str = "EDMPrecond", marker: Path, **precond: Any) -> Path:
    source = SOURCE.format(str(marker))
    kwargs = {k: v for k, v in c.items() if k != "song"}
    tensors = ones_added(p)
    # The resampling filters are buffers of the file and constants of ours.
    tensors |= {f"{n.removesuffix('.conv0.weight')}.conv0.resample_filter": torch.ones(1, 1, 2, 2)
                for n in p if n.endswith("_down.conv0.weight")}  # fmt: skip
    model = Persistent("SongUNet" if c["song"] else "DhariwalUNet", module_state(tensors, source, kwargs), source)
    state = module_state({}, source, {"img_resolution": c["img_resolution"], **precond})
    state["_modules"]["model"] = model
    import numpy as np

    whole = {
        "ema": Persistent(wrapper, state, source),
        "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2, "weights": np.arange(3.0)}, source),
        "augment_pipe": None,
        "dataset_kwargs": easy({"class_name": "training.dataset.ImageFolderDataset", "path": "x"}),
        "scale": np.sqrt(0.5),
    }
    path.write_bytes(pickle.dumps(whole))
    return path


SONG = {
    "song": True, "img_resolution": 8, "in_channels": 2, "out_channels": 2, "label_dim": 3, "augment_dim": 4,
    "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 2, "attn_resolutions": [4], "dropout": 0.13,
    "embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard", "decoder_type": "standard",
    "resample_filter": [1, 1],
}  # fmt: skip
NCSN = SONG | {
    "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1],
    "augment_dim": 0, "label_dim": 0, "channel_mult": [2, 1, 2], "attn_resolutions": [4, 2],
}  # fmt: skip
ADM = {
    "song": False, "img_resolution": 8, "in_channels": 2, "out_channels": 2, "label_dim": 5, "augment_dim": 0,
    "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4, 32], "dropout": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("c", [SONG, NCSN, ADM], ids=["ddpmpp", "ncsnpp", "adm"])
def test_edm_networks(c, tmp_path, nvidia, monkeypatch):
    x = torch.randn(3, 2, 8, 8, generator=torch.manual_seed(1))
    labels = torch.tensor([0, 2, 1]) if c["label_dim"] else None
    augment = torch.randn(3, 4) if c["augment_dim"] else None
    sigma, sd = torch.tensor([0.3, 2.0, 11.0]), 0.6
    p = Params()
    s = sigma[:, None, None, None]
    with torch.no_grad():
        raw = edm_net(p, c, x / (s**2 + sd**2).sqrt(), sigma.log() / 4, labels, augment)
        want = sd**2 / (s**2 + sd**2) * x + s * sd / (s**2 + sd**2).sqrt() * raw
    marker = tmp_path / "it-ran"
    file = write_edm(tmp_path / "net.pkl", p, c, marker=marker, sigma_data=sd)
    for name in ("torch_utils.persistence", "torch_utils", "dnnlib.util", "dnnlib"):
        monkeypatch.delitem(sys.modules, name)
    out = tmp_path / "net.safetensors"
    result = convert(file, out)
    assert not marker.exists()
    assert (result["layout"], result["shape"]) == ("edm", [2, 8, 8])
    model = load(out)
    assert model.header["card"]["converted_from"] == "net.pkl"
    assert len(model.header["card"]["sha256"]) == 64
    assert (model.schedule.t_min, model.schedule.t_max, model.sigma_data) == (0.002, 80.0, sd)
    written = model.header["args"]["net"]["args"]
    assert written["dropout"] == c["dropout"]  # for who trains it on
    assert written["norm_eps"] == (1e-6 if c["song"] else 1e-5)  # too small a matter to show in the numbers
    cond = Cond(labels=labels, augment=augment)
    with torch.no_grad():
        got = model(x, sigma.double(), cond).mean
    assert torch.allclose(got, want, atol=2e-5), (got - want).abs().max()
    if labels is not None:
        with torch.no_grad():
            assert (model(x, sigma.double(), cond.replace(labels=labels.flip(0))).mean - got).abs().max() > 1e-3


@pytest.mark.parametrize("given", [{}, {"beta_min": 0.3, "beta_d": 11.0, "epsilon_t": 1e-3}])
def test_vp_preconditioning_of_edm(tmp_path, nvidia, given):
    """D = x - sigma F(x/sqrt(sigma^2 + 1), 999 t(sigma)), sigma^2 = exp(beta_d t^2/2 + beta_min t) - 1."""
    c, p = SONG | {"label_dim": 0, "augment_dim": 0}, Params()
    x, t = torch.randn(2, 2, 8, 8), torch.tensor([0.3, 0.8])
    span, low = given.get("beta_d", 19.9), given.get("beta_min", 0.1)
    sigma = ((0.5 * span * t**2 + low * t).exp() - 1).sqrt()[:, None, None, None]
    with torch.no_grad():
        want = x - sigma * edm_net(p, c, x / (sigma**2 + 1).sqrt(), 999 * t)
    file = write_edm(tmp_path / "vp.pkl", p, c, wrapper="VPPrecond", marker=tmp_path / "ran", **given)
    convert(file, tmp_path / "vp.safetensors", layout="edm")
    model = load(tmp_path / "vp.safetensors")
    with torch.no_grad():
        got = model(x / (sigma**2 + 1).sqrt(), t.double()).mean
    assert torch.allclose(got, want, atol=2e-4)
    assert model.schedule.t_min == given.get("epsilon_t", 1e-5)


@pytest.mark.parametrize("given", [{}, {"sigma_min": 0.05, "sigma_max": 50.0}])
def test_ve_preconditioning_of_edm(tmp_path, nvidia, given):
    """D = x + sigma F(x, ln(sigma/2))."""
    p, x, sigma = Params(), torch.randn(3, 2, 8, 8), torch.tensor([0.05, 1.7, 40.0])
    s = sigma[:, None, None, None]
    with torch.no_grad():
        want = x * s + s * edm_net(p, NCSN, x * s, (sigma / 2).log())
    file = write_edm(tmp_path / "ve.pkl", p, NCSN, wrapper="VEPrecond", marker=tmp_path / "ran", **given)
    assert convert(file, tmp_path / "ve.safetensors")["preconditioning"] == "VEPrecond"
    model = load(tmp_path / "ve.safetensors")
    schedule = model.schedule
    assert (schedule.sigma_min, schedule.sigma_max) == (given.get("sigma_min", 0.02), given.get("sigma_max", 100.0))
    assert schedule.sigma(schedule.t_max) == pytest.approx(schedule.sigma_max)
    t = schedule.time(-sigma.double().log())
    with torch.no_grad():
        assert torch.allclose(model(x * s, t).mean, want, rtol=1e-4, atol=1e-4)
        assert torch.allclose(model(x[:1] * 0.05, float(t[0])).mean, want[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", [{}, {"M": 60, "C_1": 0.2, "C_2": 0.05}])
def test_iddpm_preconditioning_of_edm(tmp_path, nvidia, given):
    """D = x - sigma F(x/sqrt(sigma^2 + 1), M - 1 - j) at the levels sigma = u_j."""
    c = ADM | {"out_channels": 4, "label_dim": 0}
    M, C_1, C_2 = given.get("M", 1000), given.get("C_1", 0.001), given.get("C_2", 0.008)
    u, bar = torch.zeros(M + 1, dtype=torch.float64), lambda j: math.sin(0.5 * math.pi * j / M / (C_2 + 1)) ** 2
    for j in range(M, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / max(bar(j - 1) / bar(j), C_1) - 1).sqrt()
    p, x, j = Params(), torch.randn(3, 2, 8, 8), torch.tensor([M - 1, M // 2, M // 9])
    sigma = u[j].float()[:, None, None, None]
    with torch.no_grad():
        raw = edm_net(p, c, x, (M - 1 - j).float())
        want = x * (sigma**2 + 1).sqrt() - sigma * raw[:, :2]
    file = write_edm(tmp_path / "iddpm.pkl", p, c, wrapper="iDDPMPrecond", marker=tmp_path / "ran", **given)
    convert(file, tmp_path / "iddpm.safetensors")
    model = load(tmp_path / "iddpm.safetensors")
    t = (M - 1 - j).double()
    levels = model.schedule.sigma(t) / model.schedule.alpha(t)
    assert torch.allclose(levels, u[j], rtol=1e-9)
    assert model.schedule.T == M
    with torch.no_grad():
        post = model(x, t)
    assert torch.allclose(post.mean, want, rtol=1e-4, atol=1e-4)
    assert torch.allclose(post.mix, raw[:, 2:], atol=2e-5)
    if not given:
        assert torch.allclose(torch.tensor(model.schedule.betas), torch.tensor(Discrete(betas="cosine").betas))


def test_what_edm_files_may_lack(tmp_path, nvidia):
    p, x, t = Params(), torch.randn(1, 2, 8, 8), torch.tensor([0.1])
    c = SONG | {"label_dim": 0, "augment_dim": 0}
    edm_net(p, c, x, t)
    marker, out = tmp_path / "ran", tmp_path / "x.safetensors"

    convert(write_edm(tmp_path / "x.pkl", p, c, marker=marker), out)
    assert load(out).sigma_data == 0.5  # EDM's own where the file does not say
    out.unlink()

    def refused(error: type[Exception], words: str, **changes: Any) -> None:
        file = write_edm(tmp_path / "x.pkl", changes.pop("p", p), c | changes.pop("c", {}), marker=marker, **changes)
        with pytest.raises(error, match=words):
            convert(file, out)
        assert not out.exists()

    refused(InputError, "preconditioning 'VEPrecon'.*did you mean 'VEPrecond'", wrapper="VEPrecon")
    refused(InputError, "sigma_min", wrapper="VEPrecond", sigma_min=200.0)
    refused(InputError, "C_1", wrapper="iDDPMPrecond", C_1=2.0)
    refused(InputError, "999 t", wrapper="VPPrecond", M=500)
    refused(InputError, "did you mean 'num_blocks'", c={"num_block": 2})
    refused(InputError, "standard and residual", c={"encoder_type": "skip"})
    refused(ArtefactError, "has no tensor enc.8x8_block2", c={"num_blocks": 3})
    refused(ArtefactError, "the network wants", c={"num_blocks": 1})
    refused(ArtefactError, "the network wants", c={"model_channels": 32})
    other = Params()
    other.update(p)
    other["surplus.weight"] = torch.ones(3, 3)
    refused(ArtefactError, r"surplus\.weight has no place", p=other)


# --- OpenAI's ---------------------------------------------------------------------------------------------------------


def adm_block(p: Params, name: str, x: Tensor, emb: Tensor, out: int, move: str = "") -> Tensor:
    def moved(h: Tensor) -> Tensor:
        return F.avg_pool2d(h, 2) if move == "down" else F.interpolate(h, scale_factor=2.0) if move else h

    h = p.conv(f"{name}.in_layers.2", moved(F.silu(p.norm(f"{name}.in_layers.0", x, 32, 1e-5))), out)
    scale, shift = p.linear(f"{name}.emb_layers.1", F.silu(emb), 2 * out)[:, :, None, None].chunk(2, 1)
    h = F.silu(p.norm(f"{name}.out_layers.0", h, 32, 1e-5) * (1 + scale) + shift)
    h = p.conv(f"{name}.out_layers.3", h, out)
    side = moved(x)
    return h + (p.conv(f"{name}.skip_connection", side, out, 1) if x.shape[1] != out else side)


def adm_attention(p: Params, name: str, x: Tensor, legacy: bool) -> Tensor:
    b, c, height, width = x.shape
    heads = c // 64
    h = p.norm(f"{name}.norm", x, 32, 1e-5).flatten(2)
    qkv = F.conv1d(h, p(f"{name}.qkv.weight", 3 * c, c, 1), p(f"{name}.qkv.bias", 3 * c))
    parts = qkv.reshape(b, heads, 3, 64, -1).unbind(2) if legacy else qkv.reshape(b, 3, heads, 64, -1).unbind(1)
    q, k, v = parts
    h = torch.einsum("bhqk,bhck->bhcq", torch.einsum("bhcq,bhck->bhqk", q, k / 8).softmax(-1), v).reshape(b, c, -1)
    h = F.conv1d(h, p(f"{name}.proj_out.weight", c, c, 1), p(f"{name}.proj_out.bias", c))
    return x + h.view(b, c, height, width)


def adm_net(p: Params, x: Tensor, t: Tensor, labels: Tensor | None, out: int, legacy: bool) -> Tensor:
    base, attend = 128, (4,)
    blocks, mult = (2, (1, 1)) if legacy else (1, (1, 2))
    emb = p.linear("time_embed.0", features(t, base, 0, True), 4 * base)
    emb = p.linear("time_embed.2", F.silu(emb), 4 * base)
    if labels is not None:
        emb = emb + p("label_emb.weight", 6, 4 * base)[labels]
    x = p.conv("input_blocks.0.0", x, base)
    skips, i = [x], 1
    for level, m in enumerate(mult):
        if level:
            x = adm_block(p, f"input_blocks.{i}.0", x, emb, x.shape[1], "down")
            skips.append(x)
            i += 1
        for _ in range(blocks):
            x = adm_block(p, f"input_blocks.{i}.0", x, emb, base * m)
            if x.shape[2] in attend:
                x = adm_attention(p, f"input_blocks.{i}.1", x, legacy)
            skips.append(x)
            i += 1
    x = adm_block(p, "middle_block.0", x, emb, x.shape[1])
    x = adm_block(p, "middle_block.2", adm_attention(p, "middle_block.1", x, legacy), emb, x.shape[1])
    i = 0
    for level, m in reversed(list(enumerate(mult))):
        for k in range(blocks + 1):
            x = adm_block(p, f"output_blocks.{i}.0", torch.cat([x, skips.pop()], 1), emb, base * m)
            there = 1
            if x.shape[2] in attend:
                x, there = adm_attention(p, f"output_blocks.{i}.1", x, legacy), 2
            if level and k == blocks:
                x = adm_block(p, f"output_blocks.{i}.{there}", x, emb, x.shape[1], "up")
            i += 1
    return p.conv("out.2", F.silu(p.norm("out.0", x, 32, 1e-5)), out)


X = torch.randn(2, 2, 8, 8, generator=torch.manual_seed(4))
LABELS = torch.tensor([1, 5])


@pytest.fixture(scope="module")
def consistency(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Path]:
    p = Params()
    with torch.no_grad():
        adm_net(p, X, torch.ones(2), LABELS, 2, legacy=False)
    file = tmp_path_factory.mktemp("openai") / "cd.pt"
    torch.save(collections.OrderedDict(ones_added(p)), file)
    return p, file


@pytest.mark.parametrize("layout", ["consistency", "consistency-teacher"])
def test_consistency_models(consistency, layout, tmp_path):
    p, file = consistency
    out = tmp_path / "cd.safetensors"
    assert convert(file, out, layout=layout, size=8)["num_classes"] == 6
    model = load(out)
    sigma, sd, low = torch.tensor([0.5, 30.0]), 0.5, 0.002 if layout == "consistency" else 0.0
    s = sigma[:, None, None, None]
    with torch.no_grad():
        raw = adm_net(p, X / (s**2 + sd**2).sqrt(), 250 * sigma.log(), LABELS, 2, legacy=False)
        want = sd**2 / ((s - low) ** 2 + sd**2) * X + (s - low) * sd / (s**2 + sd**2).sqrt() * raw
    cond = Cond(labels=LABELS)
    with torch.no_grad():
        if layout == "consistency":
            assert torch.allclose(model.jump(X, sigma.double(), 0.0, cond), want, atol=5e-4)
            assert torch.allclose(model.jump(X, 0.002, 0.0, cond), X, atol=1e-6)  # at sigma_min it is the identity
            with pytest.raises(InputError, match="sample it with jumps"):
                model(X, 0.002, cond)
        else:
            post = model(X, sigma.double(), cond)
            assert torch.allclose(post.mean, want, atol=5e-4), (post.mean - want).abs().max()
            assert torch.allclose(post.eps, (X - want) / s, atol=1e-3)


def test_guided_diffusion(tmp_path):
    p = Params()
    t = torch.tensor([10.0, 700.0])
    with torch.no_grad():
        raw = adm_net(p, X, t, None, 4, legacy=True)
    # The format that torch wrote before 1.6, which some published files still have.
    torch.save(ones_added(p), tmp_path / "adm.pt", _use_new_zipfile_serialization=False)
    out = tmp_path / "adm.safetensors"
    result = convert(tmp_path / "adm.pt", out, size=8, betas="cosine")
    assert result["layout"] == "guided-diffusion"
    model = load(out)
    with torch.no_grad():
        post = model(X, t.double())
    assert torch.allclose(post.eps, raw[:, :2], atol=2e-5)
    assert torch.allclose(post.mix, raw[:, 2:], atol=2e-5)
    assert model.schedule.betas[-1] == 0.999
    assert model.header["args"]["net"]["args"]["norm_eps"] == 1e-5  # too small a matter to show in the numbers


def test_what_openai_files_do_not_tell(consistency, tmp_path):
    p, file = consistency
    out = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="say --from consistency or consistency-teacher"):
        convert(file, out, size=8)
    with pytest.raises(InputError, match="say --size 64"):
        convert(file, out, layout="consistency")
    with pytest.raises(InputError, match="did you mean 'consistency'"):
        convert(file, out, layout="consistancy", size=8)
    with pytest.raises(InputError, match=r"divide|factor"):
        convert(file, out, layout="consistency", size=7)
    with pytest.raises(InputError, match="head_channels"):
        convert(file, out, layout="consistency", size=8, head_channels=60)
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        convert(file, tmp_path / "x.pt", layout="consistency", size=8)
    state = ones_added(p)
    for change, words in (
        (lambda s: s.pop("middle_block.1.qkv.bias"), r"has no tensor middle_block\.1\.qkv\.bias"),
        (lambda s: s.update({"more": torch.ones(1)}), "more has no place"),
        (lambda s: s.update({"out.0.bias": torch.ones(3)}), "the network wants"),
        (lambda s: s.update({"out.0.bias": "x"}), "is no state dict"),
    ):
        broken = dict(state)
        change(broken)
        torch.save(broken, tmp_path / "broken.pt")
        with pytest.raises(ArtefactError, match=words):
            convert(tmp_path / "broken.pt", out, layout="consistency", size=8)
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(ArtefactError, match="of no known layout"):
        convert(tmp_path / "other.pt", out)
    with pytest.raises(InputError, match="input_blocks"):
        convert(tmp_path / "other.pt", out, layout="consistency", size=8)
    with pytest.raises(ArtefactError, match="no network of EDM"):
        convert(tmp_path / "other.pt", out, layout="edm")
    assert not out.exists()


def test_orders_of_queries_keys_and_values():
    heads, width = 2, 3
    ours = torch.arange(3 * heads * width).view(3, heads, width)
    flat = ours.reshape(-1)
    assert torch.equal(qkv_in_our_order(ours.permute(1, 2, 0).reshape(-1), heads, "interleaved"), flat)
    assert torch.equal(qkv_in_our_order(ours.permute(1, 0, 2).reshape(-1), heads, "legacy"), flat)
    assert torch.equal(qkv_in_our_order(flat, heads, "split"), flat)
