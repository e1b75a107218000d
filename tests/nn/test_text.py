"""Texts as conditions: numbers of bytes, the transformer's tokens, and networks that hold an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoreline.core.artefact import load_artefact, save_artefact
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.diffusion.denoising import Denoising
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.nn.clip import CLIPTextEncoder
from scoreline.nn.clip_tokenizer import CLIPTokenizer
from scoreline.nn.discriminator import TapDiscriminator
from scoreline.nn.text import ByteTransformer, TextConditioned, byte_ids, text_network, tokens_of, told_texts
from scoreline.nn.unet import UNet
from scoreline.samplers.generator import Sampled
from scoreline.samplers.heun import Heun

TEXTS = ["a three", "seven", None]


def noisy(module: Any) -> Any:
    """Layers that start at zero would make every answer the same."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return module.eval()


def unet(size: int = 8, **settings: Any) -> UNet:
    return UNet(in_shape=(1, 4, 4), base_channels=8, channel_mult=(1,), num_blocks=1, attention=(4,), context_dim=size,
                **settings)  # fmt: skip


@pytest.fixture
def reading() -> TextConditioned:
    torch.manual_seed(0)
    return noisy(TextConditioned(unet(), ByteTransformer(width=8, depth=1, length=8)))


def test_a_text_is_its_bytes() -> None:
    assert byte_ids(["é"], 4).tolist() == [[1, 0xC3 + 2, 0xA9 + 2, 0, 0]]
    assert byte_ids(["\x00\xff".replace("\xff", "~")], 2).tolist() == [[1, 2, 128]]


@pytest.mark.parametrize("texts, said", [
    ([""], "is empty"),
    (["  "], "is empty"),
    (["a three four"], "has 12 bytes, 8 fit"),
    (["ééééé"], "has 10 bytes"),
    ([], "at least one"),
    ("three", "list of texts"),
])  # fmt: skip
def test_texts_that_are_refused(texts: Any, said: str) -> None:
    for encoder in (ByteTransformer(width=4, length=8).ids, lambda t: byte_ids(t, 8)):
        with pytest.raises(InputError, match=said):
            encoder(texts)


def test_the_tokens_of_the_transformer() -> None:
    torch.manual_seed(0)
    net = noisy(ByteTransformer(width=8, depth=2, heads=2, length=8))
    cond = net.encode(TEXTS)
    assert cond.tokens is not None
    assert cond.mask is not None
    assert cond.tokens.shape == (3, 9, 8)
    assert cond.mask.sum(1).tolist() == [8, 6, 1]
    # What follows a text changes nothing, its order and its letters do.
    short = net.context(byte_ids(["seven"], 5))[0]
    assert torch.allclose(short, cond.tokens[1:2, :6], atol=1e-6)
    assert not torch.allclose(net.encode(["neves"]).tokens[:, :6], short, atol=1e-3)
    # By hand: embedding and position, one pre-norm block.
    one = noisy(ByteTransformer(width=8, depth=1, heads=2, length=8))
    block, ids = one.blocks[0], byte_ids(["8 bytes!"], 8)
    x = one.embedding.weight[ids] + one.position
    q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, 2)  # type: ignore[operator, union-attr]
    heads = [torch.softmax(a @ b.mT / 2.0, -1) @ c for a, b, c in zip(q.split(4, 2), k.split(4, 2), v.split(4, 2))]
    x = x + block.attn.proj(torch.cat(heads, 2))  # type: ignore[operator, union-attr]
    x = x + block.mlp(block.norm2(x))  # type: ignore[operator]
    assert torch.allclose(one.context(ids)[0], one.norm(x), atol=1e-5)
    with pytest.raises(InputError, match="at most 9"):
        one.context(torch.ones(1, 10, dtype=torch.int64))
    for bad in ({"width": 5, "heads": 2}, {"length": 0}):
        with pytest.raises(InputError):
            ByteTransformer(**bad)


def test_a_network_reads_what_its_encoder_says(reading: TextConditioned) -> None:
    x, t = torch.randn(3, 1, 4, 4), torch.ones(3)
    told = Cond(tokens=reading.told(TEXTS))
    out = reading(x, t, told)
    apart = reading.encoder.encode(TEXTS)
    assert torch.equal(out, reading.net(x, t, apart))
    assert not torch.allclose(out[:1], reading(x[:1], t[:1], told_texts(reading, ["seven"])), atol=1e-4)
    null = reading.null(told)
    assert null.tokens is not None
    assert torch.equal(null.tokens, reading.told([None] * 3))
    assert torch.equal(reading(x, t, null)[2], out[2])
    assert not torch.allclose(reading(x, t, null)[:2], out[:2], atol=1e-4)
    with pytest.raises(InputError, match="takes captions"):
        reading(x, t)
    assert reading.accepts == {"tokens"}
    assert TapDiscriminator(reading)(x, t, told).shape == (3, 16)
    assert set(reading.trace(x, t, told, TapDiscriminator(reading).trunk.plan)[1]) == {"middle"}


def test_networks_that_do_not_fit_an_encoder() -> None:
    with pytest.raises(InputError, match="context_dim=8"):
        TextConditioned(UNet(in_shape=(1, 4, 4), base_channels=8, channel_mult=(1,), num_blocks=1, attention=()),
                        ByteTransformer(width=8))  # fmt: skip
    with pytest.raises(InputError, match="size 8"):
        TextConditioned(unet(6), ByteTransformer(width=8))
    with pytest.raises(InputError, match="no captions"):
        told_texts(Preconditioned(unet(), EDM()), ["three"])


def captions(texts: list[str], label: Tensor | None = None, count: int = 64) -> Batch:
    draws = Noise(0).at(range(count), (1, 4, 4))
    extras = {"caption": tuple(texts[i % len(texts)] for i in range(count))}
    return Batch(draws.normal(step=9), label, torch.arange(count), extras=extras, draws=draws)


def test_denoising_tells_captions_and_drops_some(reading: TextConditioned) -> None:
    method = Denoising(Preconditioned(reading, EDM()), p_uncond=0.3)
    batch = captions(["a three", "", "seven"])
    shared = method.prepare(batch, 0)
    assert shared.cond is not None
    told = tokens_of(reading, batch)
    assert told is not None
    dropped = batch.draws.uniform(step=0, part=2) < 0.3  # type: ignore[union-attr]
    want = torch.where(dropped[:, None, None], reading.told([None]), told)
    assert torch.equal(shared.cond.tokens, want)
    assert torch.equal(told[1:2], reading.told([None]))
    assert 0.15 < dropped.float().mean() < 0.45
    loss = method.loss(batch, shared, 0)["loss"]
    loss.backward()
    assert all(p.grad is not None for p in reading.parameters())
    assert reading.encoder.embedding.weight.grad.abs().max() > 0
    with pytest.raises(InputError, match="captions: digits"):
        method.prepare(Batch(batch.image, None, batch.index, draws=batch.draws), 0)
    assert tokens_of(Preconditioned(unet(), EDM()), batch) is None


def test_it_is_saved_with_its_encoder(reading: TextConditioned, tmp_path: Path) -> None:
    model = Preconditioned(reading, EDM())
    save_artefact(tmp_path / "model.safetensors", model)
    again = load_artefact(tmp_path / "model.safetensors")[0]
    assert text_network(again.on(EDM())) is again.net
    cond = told_texts(again, ["a three", "seven"])
    images = [Sampled(m, Heun(steps=3)).generate(range(2), Noise(0), cond) for m in (model, again)]
    assert torch.equal(*images)


def test_clips_tower_is_an_encoder_that_stays_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tower = CLIPTextEncoder(width=8, depth=1, heads=1, length=6, vocabulary=516, dim=4)
    tokenizer = CLIPTokenizer([("t", "h"), ("th", "e</w>")])
    monkeypatch.setattr(CLIPTokenizer, "load", classmethod(lambda cls: tokenizer))
    texts = ["the a", None]
    ids = tower.ids(texts)
    assert ids.tolist() == [[514, 513, 320, 515, 0, 0], [514, 515, 0, 0, 0, 0]]
    cond = tower.encode(texts)
    assert cond.mask is not None
    assert cond.tokens is not None
    assert cond.mask.sum(1).tolist() == [4, 2]
    ends = cond.tokens[torch.arange(2), torch.tensor([3, 1])] @ tower.text_projection
    assert torch.allclose(ends, tower(ids), atol=1e-6)
    net = TextConditioned(unet(), tower).requires_grad_(True)
    assert not any(p.requires_grad for p in tower.parameters())
    assert all(p.requires_grad for p in net.net.parameters())
    assert net(torch.zeros(2, 1, 4, 4), torch.ones(1), Cond(tokens=net.told(texts))).shape == (2, 1, 4, 4)
    with pytest.raises(InputError, match="is empty"):
        tower.ids([""])


def test_prompts_are_known_by_number(tmp_path: Path) -> None:
    prompts = ["a three", "seven", "one"]
    net = noisy(TextConditioned(unet(), ByteTransformer(width=8, depth=1, length=8), prompts))
    assert net.num_classes == 3
    x, t = torch.randn(4, 1, 4, 4), torch.rand(4)
    numbers = torch.tensor([1, 0, 3, 2])  # 3 is no caption
    by_number, told = net(x, t, Cond(labels=numbers)), net.told(["seven", "a three", None, "one"])
    assert torch.equal(by_number, net(x, t, Cond(tokens=told)))
    # Captions go before numbers, and any caption may be given.
    assert torch.equal(net(x, t, Cond(tokens=told, labels=torch.zeros(4, dtype=torch.int64))), by_number)
    assert not torch.equal(net(x, t, Cond(tokens=net.told(["two"] * 4))), by_number)
    silent = Cond(labels=torch.full((4,), 3))
    for cond in (Cond(labels=numbers), Cond(tokens=told), Cond(tokens=told, labels=numbers)):
        without = net.null(cond)
        assert [name for name, _ in without.items()] == [name for name, _ in cond.items()]
        assert torch.equal(net(x, t, without), net(x, t, silent))
    save_artefact(tmp_path / "m.safetensors", Preconditioned(net, EDM()))
    again, _ = load_artefact(tmp_path / "m.safetensors")
    assert (again.num_classes, again.net.prompts) == (3, prompts)
    assert again.net.over(unet()).prompts == prompts
    assert torch.equal(again.net(x, t, Cond(labels=numbers)), by_number)


def test_prompts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="each once"):
        TextConditioned(unet(), ByteTransformer(width=8), ["one", "two", "one"])
    with pytest.raises(InputError, match="is empty"):
        TextConditioned(unet(), ByteTransformer(width=8), ["one", " "])
    net = TextConditioned(unet(), ByteTransformer(width=8), ["one"])
    with pytest.raises(InputError, match="takes captions"):
        net(torch.zeros(1, 1, 4, 4), torch.zeros(1), None)
