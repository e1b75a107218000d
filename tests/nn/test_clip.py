"""CLIP: counts, both towers against torch's own layers at published names, the tokenizer, loading."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.score import Protocol
from scoreline.nn import clip
from scoreline.nn.clip import CLIP_MODELS, CLIPImageEncoder, CLIPTextEncoder
from scoreline.nn.clip_tokenizer import CLIPTokenizer
from scoreline.nn.pretrained import PRETRAINED

IMAGE = {"width": 24, "depth": 2, "heads": 3, "patch": 4, "size": 12, "dim": 10}
TEXT = {"width": 16, "depth": 2, "heads": 2, "length": 9, "vocabulary": 30, "dim": 10}


def block(width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one block under OpenAI's names."""
    return {
        "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
        "ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
    }  # fmt: skip


def published() -> dict[str, Tensor]:
    """Random tensors of a tiny CLIP under OpenAI's names, with what its files hold besides."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (24,), "visual.positional_embedding": (10, 24), "visual.proj": (24, 10),
        "visual.conv1.weight": (24, 3, 4, 4), "visual.ln_pre.weight": (24,), "visual.ln_pre.bias": (24,),
        "visual.ln_post.weight": (24,), "visual.ln_post.bias": (24,),
        "token_embedding.weight": (30, 16), "positional_embedding": (9, 16), "text_projection": (16, 10),
        "ln_final.weight": (16,), "ln_final.bias": (16,), "logit_scale": (),
    }  # fmt: skip
    for i in range(2):
        shapes |= {f"visual.transformer.resblocks.{i}.{name}": shape for name, shape in block(24).items()}
        shapes |= {f"transformer.resblocks.{i}.{name}": shape for name, shape in block(16).items()}
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    sizes = {"input_resolution": 12, "context_length": 9, "vocab_size": 30}
    return state | {name: torch.tensor(value) for name, value in sizes.items()}


def as_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as transformers names and splits them."""
    found = {
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(10)[None],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_projection.weight": state["text_projection"].T,
        "logit_scale": state["logit_scale"],
    }
    for part in ("weight", "bias"):
        found[f"vision_model.pre_layrnorm.{part}"] = state[f"visual.ln_pre.{part}"]
        found[f"vision_model.post_layernorm.{part}"] = state[f"visual.ln_post.{part}"]
        found[f"text_model.final_layer_norm.{part}"] = state[f"ln_final.{part}"]
        for theirs, ours in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
            for i in range(2):
                a, b = f"{theirs}.encoder.layers.{i}", f"{ours}.resblocks.{i}"
                for letter, value in zip("qkv", state[f"{b}.attn.in_proj_{part}"].chunk(3)):
                    found[f"{a}.self_attn.{letter}_proj.{part}"] = value
                found[f"{a}.self_attn.out_proj.{part}"] = state[f"{b}.attn.out_proj.{part}"]
                for j in (1, 2):
                    found[f"{a}.layer_norm{j}.{part}"] = state[f"{b}.ln_{j}.{part}"]
                found[f"{a}.mlp.fc1.{part}"] = state[f"{b}.mlp.c_fc.{part}"]
                found[f"{a}.mlp.fc2.{part}"] = state[f"{b}.mlp.c_proj.{part}"]
    return {name: value.contiguous() for name, value in found.items()}


def layers(state: dict[str, Tensor], prefix: str, heads: int) -> list[nn.TransformerEncoderLayer]:
    """torch's own layers with a tower's tensors."""
    names = {
        "self_attn.in_proj_weight": "attn.in_proj_weight", "self_attn.in_proj_bias": "attn.in_proj_bias",
        "self_attn.out_proj.weight": "attn.out_proj.weight", "self_attn.out_proj.bias": "attn.out_proj.bias",
        "linear1.weight": "mlp.c_fc.weight", "linear1.bias": "mlp.c_fc.bias",
        "linear2.weight": "mlp.c_proj.weight", "linear2.bias": "mlp.c_proj.bias",
        "norm1.weight": "ln_1.weight", "norm1.bias": "ln_1.bias",
        "norm2.weight": "ln_2.weight", "norm2.bias": "ln_2.bias",
    }  # fmt: skip
    made = []
    for i in range(2):
        tensors = {theirs: state[f"{prefix}transformer.resblocks.{i}.{ours}"] for theirs, ours in names.items()}
        width = len(tensors["norm1.weight"])
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation=lambda x: x / (1 + torch.exp(-1.702 * x)),
            batch_first=True, norm_first=True,
        )  # fmt: skip
        layer.load_state_dict(tensors)
        made.append(layer.train())  # dropout is 0; eval mode may take another, fused route
    return made


def literal_image(state: dict[str, Tensor], x: Tensor) -> Tensor:
    patches = F.unfold(x, 4, stride=4).transpose(1, 2) @ state["visual.conv1.weight"].flatten(1).T
    h = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), patches], 1)
    h = h + state["visual.positional_embedding"]
    h = F.layer_norm(h, (24,), state["visual.ln_pre.weight"], state["visual.ln_pre.bias"])
    for layer in layers(state, "visual.", 3):
        h = layer(h)
    return (
        F.layer_norm(h[:, 0], (24,), state["visual.ln_post.weight"], state["visual.ln_post.bias"])
        @ state["visual.proj"]
    )


def literal_text(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    h = state["token_embedding.weight"][tokens] + state["positional_embedding"][: tokens.shape[1]]
    mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
    for layer in layers(state, "", 2):
        h = layer(h, src_mask=mask)
    h = F.layer_norm(h, (16,), state["ln_final.weight"], state["ln_final.bias"])
    return torch.stack([row[ids.tolist().index(29)] for row, ids in zip(h, tokens)]) @ state["text_projection"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLIP_MODELS, "clip-vit-b-32", (IMAGE, TEXT))


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
TOKENS = torch.tensor([[28, 3, 7, 29, 0, 0, 0], [28, 5, 5, 1, 2, 6, 29]])


def test_the_published_sizes() -> None:
    published = {"clip-vit-l-14-336": 427_944_193, "clip-vit-l-14": 427_616_513, "clip-vit-b-32": 151_277_313}
    assert set(CLIP_MODELS) == set(published)
    for name, (image, text) in CLIP_MODELS.items():
        with torch.device("meta"):
            towers = CLIPImageEncoder(**image), CLIPTextEncoder(**text)
        count = sum(p.numel() for tower in towers for p in tower.parameters())
        assert count + 1 == published[name]  # and the temperature of training
    with torch.device("meta"):
        defaults = CLIPImageEncoder(), CLIPTextEncoder()
        named = CLIPImageEncoder(**CLIP_MODELS["clip-vit-l-14-336"][0])
    assert [v.shape for v in defaults[0].state_dict().values()] == [v.shape for v in named.state_dict().values()]
    assert (defaults[0].dim, defaults[0].preprocess.size, defaults[0].preprocess.crop) == (768, 336, "before")
    assert sum(p.numel() for p in defaults[1].parameters()) == 123_650_304


@pytest.mark.parametrize("named", ["openai", "transformers", "torchscript-like"])
@torch.no_grad()
def test_towers_against_torchs_layers(small: None, named: str, tmp_path: Path) -> None:
    state = published()
    if named == "torchscript-like":  # OpenAI's files hold half precision
        file = tmp_path / "clip.pt"
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, file)
        state = {k: v.half().float() for k, v in state.items()}
    else:
        file = tmp_path / "clip.safetensors"
        save_file(state if named == "openai" else as_transformers(state), file)
    image = CLIPImageEncoder.load(file, model="clip-vit-b-32", trusted=True)
    text = CLIPTextEncoder.load(file, model="clip-vit-b-32", trusted=True)
    assert image.proj.dtype == text.text_projection.dtype == torch.float32
    found = image.activations(X, ["embedding"])["embedding"]
    torch.testing.assert_close(found, literal_image(state, X), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(text(TOKENS), literal_text(state, TOKENS), rtol=1e-4, atol=1e-4)
    alone = TOKENS[:1, :4]  # what comes after the end token does not matter
    torch.testing.assert_close(text(TOKENS)[:1], text(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_loading_protocol_and_precision(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = PRETRAINED["clip-vit-b-32"]
    file = tmp_path / entry.file
    torch.save(published(), file)
    with pytest.raises(ArtefactError, match="trusted=True"):
        CLIPImageEncoder.load(file, model="clip-vit-b-32")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(PRETRAINED, "clip-vit-b-32", replace(entry, sha256=digest))
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path))
    net = CLIPImageEncoder.load(model="clip-vit-b-32")
    protocol = Protocol(metric="cmmd", **net.protocol)
    assert (protocol.features, protocol.tap, protocol.weights) == ("clip-vit-b-32", "embedding", digest)
    assert protocol.resize == "pil-bicubic 12, centre-crop before"
    x = torch.rand(2, 3, 30, 17) * 2 - 1
    assert net.features(x).shape == (2, 10)
    assert torch.equal(net.features(x[..., :17]), net.features(x[..., :17].clone()))
    torch.testing.assert_close(
        net.features(x), net.features(x[:, :, 6:23])
    )  # (30 - 17) / 2 = 6.5, to even: the centre square, nothing else
    half = net.fast(dtype=torch.bfloat16)
    assert half.protocol["precision"] == "bfloat16"
    assert half.features(x).dtype == torch.float32
    monkeypatch.setitem(PRETRAINED, "clip-vit-l-14", replace(entry, sha256=digest))
    monkeypatch.setitem(CLIP_MODELS, "clip-vit-l-14", (IMAGE | {"width": 12}, TEXT))
    with pytest.raises(ArtefactError, match="not this network"):
        CLIPImageEncoder.load(file, model="clip-vit-l-14")
    with pytest.raises(InputError, match="did you mean 'clip-vit-b-32'"):
        CLIPTextEncoder.load(file, model="clip-vit-b32")
    with pytest.raises(InputError, match="at most 9"):
        CLIPTextEncoder(**TEXT)(torch.zeros(1, 10, dtype=torch.int64))
    with pytest.raises(InputError, match="patch"):
        CLIPImageEncoder(**(IMAGE | {"size": 13}))
    with pytest.raises(InputError, match="heads"):
        CLIPImageEncoder(**(IMAGE | {"heads": 5}))
    assert clip.MEAN == (0.48145466, 0.4578275, 0.40821073)
    assert clip.STD == (0.26862954, 0.26130258, 0.27577711)


# --- the tokenizer -----------------------------------------------------------------------------------------------

MERGES = [("t", "h"), ("c", "a"), ("th", "e</w>"), ("ca", "t</w>"), ("a", "t</w>"), ("'", "s</w>")]
TOKENIZER = CLIPTokenizer(MERGES)
LETTER = {symbol: TOKENIZER.ids[symbol] for symbol in "abcdefghijklmnopqrstuvwxyz"}


def ids(*symbols: str) -> list[int]:
    return [TOKENIZER.ids[symbol] for symbol in symbols]


def test_symbols_are_numbered_as_published() -> None:
    # the first printable byte, the last, the first that is not printable; all again as ends of words; the merges
    assert ids("!", "~", "¡", "ÿ", chr(256), chr(323)) == [0, 93, 94, 187, 188, 255]
    assert ids("!</w>", "a</w>", "th", "cat</w>", "'s</w>") == [256, 320, 512, 515, 517]
    assert ids("<|startoftext|>", "<|endoftext|>") == [518, 519]


def test_words_merge_in_the_order_of_the_table() -> None:
    assert TOKENIZER.encode("The CAT") == ids("the</w>", "cat</w>")
    assert TOKENIZER.encode("cathe") == ids("ca", "the</w>")
    assert TOKENIZER.encode("that") == ids("th", "at</w>")
    assert TOKENIZER.encode("cat's") == ids("cat</w>", "'s</w>")
    assert TOKENIZER.encode("a") == ids("a</w>")
    assert TOKENIZER.encode("thth") == ids("th", "t", "h</w>")


def test_text_is_cut_into_letters_numbers_and_the_rest() -> None:
    assert TOKENIZER.encode("a1b22!?c_d") == ids("a</w>", "1</w>", "b</w>", "2</w>", "2</w>", "!", "?</w>", "c</w>",
                                                 "_</w>", "d</w>")  # fmt: skip
    assert TOKENIZER.encode("  a \n\t b ") == ids("a</w>", "b</w>")
    assert TOKENIZER.encode("") == []
    assert TOKENIZER.encode("é") == ids("Ã", "©</w>")  # its two bytes
    assert TOKENIZER.encode("e\u0301") == TOKENIZER.encode("é")
    assert TOKENIZER.encode("a &amp;amp; b") == ids("a</w>", "&</w>", "b</w>")
    assert TOKENIZER.encode("!'s") == ids("!", "'</w>", "s</w>")
    assert TOKENIZER.encode("we'll") == ids("w", "e</w>", "'", "l", "l</w>")
    assert TOKENIZER.encode("a<|endoftext|>") == ids("a</w>", "<|endoftext|>")
    shouting = CLIPTokenizer(MERGES, repair=lambda text: text.replace("“", '"'))
    assert shouting.encode("“") == TOKENIZER.encode('"')


def test_rows_start_end_and_fill_up() -> None:
    rows = TOKENIZER(["the cat", "a"], length=5)
    assert rows.tolist() == [[518, *ids("the</w>", "cat</w>"), 519, 0], [518, 320, 519, 0, 0]]
    assert rows.dtype == torch.int64
    with pytest.raises(InputError, match="has 6 tokens, 5 fit"):
        TOKENIZER(["a a a a"], length=5)
    assert TOKENIZER(["a a a a"], length=5, truncate=True).tolist() == [[518, 320, 320, 320, 519]]
    with pytest.raises(InputError, match="brackets"):
        TOKENIZER("a cat")


@torch.no_grad()
def test_texts_are_embedded_with_their_tokens() -> None:
    net = CLIPTextEncoder(**(TEXT | {"vocabulary": 520}))
    torch.testing.assert_close(
        net.embed(["the cat", "a"], TOKENIZER), net(TOKENIZER(["the cat", "a"], length=9)), rtol=0, atol=0
    )
    with pytest.raises(InputError, match="9 fit"):
        net.embed(["a" * 20], TOKENIZER)
    assert net.embed(["a" * 20], TOKENIZER, truncate=True).shape == (1, 10)


def test_merges_are_read_from_the_published_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = "#version\n" + "\n".join(" ".join(pair) for pair in MERGES)
    file = tmp_path / PRETRAINED["clip-merges"].file
    file.write_bytes(gzip.compress((table + "\nx y" * 50_000).encode()))
    with pytest.raises(ArtefactError, match="trusted=True"):
        CLIPTokenizer.load(file)
    read = CLIPTokenizer.load(file, trusted=True)
    assert read.encode("The cat") == TOKENIZER.encode("The cat")
    assert (read.ids["<|startoftext|>"], read.ids["<|endoftext|>"]) == (49406, 49407)
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ArtefactError, match=r"bpe_simple_vocab_16e6\.txt\.gz"):
        CLIPTokenizer.load()
    for content in (b"no gzip", gzip.compress(b"#version\nonly-one-symbol\n"), gzip.compress(b"\xff\xfe")):
        file.write_bytes(content)
        with pytest.raises(ArtefactError):
            CLIPTokenizer.load(file, trusted=True)
