"""Partitions of captions: quadrants of their embeddings, a router for any caption, and students trained for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scoreline.core.artefact import read_header, save_artefact
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.distill import distill
from scoreline.fewstep.recipe import read_recipe
from scoreline.fewstep.text_shares import QuadrantRouter, TextRouter, pooled_texts, quadrants, text_router, text_shares
from scoreline.nn.text import ByteTransformer, TextConditioned
from scoreline.nn.unet import UNet
from scoreline.samplers.generator import Sampled
from scoreline.samplers.jumps import Jumps
from scoreline.train.recipe import read_recipe as read_training

PROMPTS: list[str] = read_training("digits-text")["model"]["args"]["net"]["args"]["prompts"]


def reading(prompts: list[str]) -> Preconditioned:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(in_shape=(1, 8, 8), base_channels=8, channel_mult=(1,), num_blocks=1, attention=(8,), context_dim=8)
        model = Preconditioned(TextConditioned(net, ByteTransformer(width=8, depth=1, length=32), prompts), EDM())
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "reads.safetensors"
    save_artefact(path, reading(PROMPTS), card={"data": "digits", "caption_settings": {"captions": "digits"}})
    return str(path)


def test_quadrants_of_texts() -> None:
    rows = torch.randn(401, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 3, 1, 1, 1, 1]) + 2
    for nested in (False, True):
        router = quadrants(rows, nested=nested)
        number = router(Cond(vector=rows))
        sizes = torch.bincount(number, minlength=4)
        # Halves of the first component to a prompt; quarters where the second medians are those of the halves.
        assert abs(int(sizes[2:].sum()) - 200) <= 1
        assert (sizes - 100).abs().max() <= (1 if nested else 25)
        # The axes are the two widest directions here, their largest entries positive.
        expected = 2 * (rows[:, 0] > rows[:, 0].median()).long() + (rows[:, 1] > rows[:, 1].median()).long()
        assert (number == expected).float().mean() > (0.85 if nested else 0.9)
        assert (router.axes.diagonal() > 0.9).all()
    tokens = rows[:, None].expand(-1, 3, -1).clone()
    mask = torch.tensor([True, True, False]).expand(401, 3)
    tokens[:, 0] += 1
    tokens[:, 1] -= 1
    tokens[:, 2] = 99
    assert torch.equal(router(Cond(tokens=tokens, mask=mask)), number)
    assert torch.equal(router(Cond(tokens=rows[:, None])), number)
    for cond, word in ((None, "vector or tokens"), (Cond(vector=rows[:, :3]), "embeddings of 6")):
        with pytest.raises(InputError, match=word):
            router(cond)
    for bad in (rows[:3], torch.arange(12.0)[:, None] * torch.ones(2), torch.full((6, 2), torch.nan)):
        with pytest.raises(InputError, match="embeddings"):
            quadrants(bad)
    with pytest.raises(InputError, match="two directions"):
        QuadrantRouter([0.0, 0.0], [[1.0, 0.0]], [0.0, 0.0, 0.0])


def test_every_caption_has_one_student(teacher: str) -> None:
    model: Any = load(teacher)
    router = text_router(model, {"by": "quadrants", "nested": True})
    shares = text_shares(router)
    assert sorted(k for share in shares for k in share) == list(range(50))
    assert {len(share) for share in shares} == {12, 13}
    # The same captions go the same way by number and in words, and a pooled embedding is the mean over its tokens.
    words, numbers = Cond(tokens=model.net.told(PROMPTS)), Cond(labels=torch.arange(50))
    assert torch.equal(router(words), router(numbers))
    tokens, mask = model.net.encoder.context(model.net.encoder.ids(PROMPTS[:1]))
    pooled = pooled_texts(model.net.encoder, model.net.encoder.ids(PROMPTS))
    assert torch.allclose(pooled[0], tokens[0, mask[0]].mean(0), atol=1e-6)
    assert torch.equal(router(numbers), quadrants(pooled, nested=True)(Cond(vector=pooled)))
    plain = text_shares(text_router(model, {"by": "quadrants"}))
    assert len(plain[0] + plain[1]) == 25


def test_students_of_captions_are_trained_and_joined(teacher: str, tmp_path: Path) -> None:
    changes = {"steps": 2, "batch_size": 4}
    recipe = read_recipe("msd", preset="digits-text", teacher=teacher, changes=changes)
    done = distill(recipe, tmp_path / "run", device="cpu", quiet=True)
    assert done["missing"] == []
    card = read_header(done["model"])["card"]
    assert (card["partition"]["by"], card["caption_settings"]) == ("quadrants", {"captions": "digits"})
    routed: Any = load(done["model"])
    assert isinstance(routed.router, TextRouter)
    shares = card["partition"]["shares"]
    assert text_shares(routed.router) == shares
    # Each caption is answered by its student, by number and in words; the students differ.
    numbers = torch.tensor([share[0] for share in shares])
    generator = Sampled(routed, Jumps(steps=1))
    by_number = generator.generate(range(4), Noise(0), Cond(labels=numbers))
    words = Cond(tokens=routed.students[0].net.told([PROMPTS[k] for k in numbers]))
    assert torch.equal(generator.generate(range(4), Noise(0), words), by_number)
    for k in range(4):
        own = Sampled(load(str(tmp_path / f"run/share-{k}/model.safetensors")), Jumps(steps=1))
        alone = own.generate([k], Noise(0), Cond(labels=numbers[k : k + 1]))
        assert torch.allclose(alone[0], by_number[k], atol=1e-5)
    with pytest.raises(InputError, match="no student"):
        generator.generate(range(1), Noise(0), Cond(labels=torch.tensor([50])))
    with pytest.raises(InputError, match="give captions"):
        routed.router(None)


@pytest.mark.each("partition, model, words", [
    ({"by": "quadrants", "students": 3}, "reads", "are four"),
    ({"by": "quadrants", "nestd": True}, "reads", "nested"),
    ({"by": "quadrants"}, "digits", "reads captions|shares out captions"),
])  # fmt: skip
def test_partitions_that_do_not_fit_are_refused(
    teacher: str, partition: dict[str, Any], model: str, words: str, tmp_path: Path
) -> None:
    recipe = read_recipe("msd", preset="digits-text", teacher=teacher if model == "reads" else model)
    recipe.partition = partition
    with pytest.raises(InputError, match=words):
        distill(recipe, tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()
