"""The transformer block against torch's own layer; the input of vision transformers against Pillow."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from scoreline.core.errors import InputError
from scoreline.nn.vit import PATCH_RESIZES, Block, PatchInput, fast_copy, quick_gelu

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module) -> nn.Module:
    """Every parameter random, so that none is without effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("eps, activation", [(1e-5, quick_gelu), (1e-1, nn.functional.gelu)])
@torch.no_grad()
def test_a_block_is_torchs_pre_norm_layer(eps: float, activation) -> None:
    block = shaken(Block(24, 3, eps=eps, activation=activation))
    theirs = nn.TransformerEncoderLayer(
        24, 3, 96, dropout=0.0, activation=activation, layer_norm_eps=eps, batch_first=True, norm_first=True
    )
    pairs = {
        "self_attn.in_proj": block.attn.qkv, "self_attn.out_proj": block.attn.proj, "linear1": block.mlp.fc1,
        "linear2": block.mlp.fc2, "norm1": block.norm1, "norm2": block.norm2,
    }  # fmt: skip
    state = {}
    for name, layer in pairs.items():
        joint = "_" if name.endswith("in_proj") else "."
        state |= {f"{name}{joint}weight": layer.weight, f"{name}{joint}bias": layer.bias}
    theirs.load_state_dict(state)
    x = noise(2, 5, 24)
    torch.testing.assert_close(block(x), theirs(x), rtol=1e-5, atol=1e-5)
    back = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(block(x, back), theirs(x, src_mask=~back), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(block(x), block(x, back))


@torch.no_grad()
def test_layer_scale_multiplies_each_branch() -> None:
    plain, scaled = Block(8, 2), Block(8, 2, layer_scale=True)
    scaled.load_state_dict(plain.state_dict(), strict=False)
    x = noise(1, 3, 8)
    torch.testing.assert_close(scaled(x), plain(x))
    scaled.ls1.gamma.copy_(noise(8))
    scaled.ls2.gamma.zero_()
    expected = x + scaled.ls1.gamma * plain.attn(plain.norm1(x), None)
    torch.testing.assert_close(scaled(x), expected)


def test_quick_gelu() -> None:
    assert quick_gelu(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0, 1 / (1 + np.exp(-1.702))])


@torch.no_grad()
def test_a_fast_copy_is_another_network_of_another_type(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(Block(8, 2))
    half = fast_copy(net, False, torch.bfloat16)
    assert half[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert net[0].mlp.fc1.weight.dtype == torch.float32
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, dynamic: compiled.append(self))
    made = fast_copy(net, True, None)
    assert compiled == [made[0]]
    with pytest.raises(InputError, match="bfloat16"):
        fast_copy(net, False, torch.float16)


# --- the input ---------------------------------------------------------------------------------------------------


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_images(levels: np.ndarray) -> Tensor:
    return torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 127.5 - 1


def normalised(levels: np.ndarray) -> Tensor:
    unit = levels.astype(np.float64) / 255
    return torch.from_numpy((unit - np.array(MEAN)) / np.array(STD)).permute(2, 0, 1)[None].float()


def test_input_is_pillows_bicubic_on_uint8() -> None:
    levels = picture(31, 20)
    expected = np.asarray(Image.fromarray(levels).resize((16, 16), Image.Resampling.BICUBIC))
    torch.testing.assert_close(PatchInput(16, MEAN, STD)(as_images(levels)), normalised(expected))


@pytest.mark.parametrize("resize", PATCH_RESIZES)
def test_input_crops_the_centre_square_before_or_after_it_resizes(resize: str) -> None:
    levels = picture(29, 20)

    def resized(part: np.ndarray, width: int, height: int) -> np.ndarray:
        if resize == "pil-bicubic":
            return np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.BICUBIC))
        channels = [Image.fromarray(part[..., c].astype(np.float32)).resize((width, height), 3) for c in range(3)]
        return np.stack([np.asarray(c).clip(0, 255) for c in channels], 2)

    def given(crop: str, x: np.ndarray) -> Tensor:
        return PatchInput(16, MEAN, STD, crop=crop, resize=resize)(as_images(x))

    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(given("before", levels), normalised(resized(levels[4:24], 16, 16)), **tolerance)
    # the shorter side becomes 16, the longer 29 x 16 / 20 = 23.2, cut to 23; of the 3.5 above, 4 go
    torch.testing.assert_close(given("after", levels), normalised(resized(levels, 16, 23)[4:20]), **tolerance)
    sideways = levels.transpose(1, 0, 2).copy()
    torch.testing.assert_close(given("after", sideways), normalised(resized(sideways, 23, 16)[:, 4:20]), **tolerance)
    torch.testing.assert_close(given("before", sideways), normalised(resized(sideways[:, 4:24], 16, 16)), **tolerance)
    torch.testing.assert_close(given("none", levels), normalised(resized(levels, 16, 16)), **tolerance)
    square = picture(20, 20)
    assert torch.equal(given("before", square), given("after", square))


def test_input_is_named_and_travels_light() -> None:
    given = PatchInput(16, MEAN, STD, crop="after")
    assert given.name == "pil-bicubic 16, centre-crop after"
    assert PatchInput(16, MEAN, STD, resize="clean").name == "clean 16"
    assert len(pickle.dumps(given)) < 1000


def test_clean_input_is_not_rounded() -> None:
    levels = picture(31, 20)
    channels = [Image.fromarray(levels[..., c].astype(np.float32)).resize((16, 16), 3) for c in range(3)]
    expected = np.stack([np.asarray(c).clip(0, 255) for c in channels], 2)
    torch.testing.assert_close(
        PatchInput(16, MEAN, STD, resize="clean")(as_images(levels)), normalised(expected), rtol=1e-5, atol=1e-5
    )


def test_input_refuses_bad_names_and_images() -> None:
    with pytest.raises(InputError, match="'clean'"):
        PatchInput(16, MEAN, STD, resize="cleen")
    with pytest.raises(InputError, match="'before'"):
        PatchInput(16, MEAN, STD, crop="bfore")
    with pytest.raises(InputError, match="uint8-round"):
        PatchInput(16, MEAN, STD, quantisation="round")
    with pytest.raises(InputError, match="uint8 pictures"):
        PatchInput(16, MEAN, STD, quantisation="none")
    PatchInput(16, MEAN, STD, resize="clean", quantisation="none")
    with pytest.raises(InputError, match="channels"):
        PatchInput(16, MEAN, STD)(torch.zeros(1, 1, 4, 4))
