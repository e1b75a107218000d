"""Workflow files: what they say, what they refuse, and what their coalitions make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.load import model_path
from scoreline.core.noise import Noise
from scoreline.data import load_images
from scoreline.data.grid import write_png
from scoreline.evaluate.sampling import sample_to
from scoreline.explain.attribute import attribute
from scoreline.explain.workflow import Workflow, read_workflow, workflows

SMALL: dict[str, Any] = {
    "artwork": {"source": "digits", "split": "test", "labels": [3], "post": [{"shift": [0, 1]}]},
    "neutral": {"model": "noise", "sampler": "ddim", "nfe": 2},
    "components": {
        "model": {"model": "digits"},
        "prompt": {"labels": [3, 8]},
        "finishing": {"post": [{"shift": [0, 1]}, "mirror"]},
    },
    "images": 6,
    "seed_sets": [0],
    "features": "pixels",
}


def read(folder: Path, **changes: Any) -> Workflow:
    given = {**SMALL, **changes}
    file = folder / "workflow.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in given.items() if value is not None}, sort_keys=False))
    return read_workflow(str(file))


def on(*names: str) -> frozenset[str]:
    return frozenset(names)


def test_the_shipped_workflows_read_and_their_coalitions_fit() -> None:
    assert "threes" in workflows()
    for name in workflows():
        workflow = read_workflow(name)
        assert workflow.title
        assert workflow.about
        workflow.check([on(), on(*workflow.changes)])
        assert workflow.images >= 500
        assert len(workflow.seed_sets) >= 3


def test_the_artwork_is_what_the_file_says(tmp_path: Path) -> None:
    workflow = read(tmp_path)
    test = load_images("digits", split="test")
    assert test.labels is not None
    threes = test.batch([i for i, label in enumerate(test.labels) if label == 3]).image
    assert torch.equal(workflow.artwork[..., 1:], threes[..., :-1])
    assert (workflow.artwork[..., 0] == -1).all()
    few = read(tmp_path, artwork={"source": "digits", "labels": 3, "count": 5})
    assert len(few.artwork) == 5


def test_components_in_words(tmp_path: Path) -> None:
    model, prompt, finishing = read(tmp_path).components
    assert (model.present, model.absent) == ("model digits", "pixel noise")
    assert (prompt.present, prompt.absent) == ("class 3,8", "all classes in turn")
    assert finishing.present == "shift 0, 1; mirror"


def test_a_coalition_is_the_neutral_workflow_changed_by_its_components(tmp_path: Path) -> None:
    workflow = read(tmp_path)
    full = workflow.make(on("model", "prompt", "finishing"), Noise(5))
    plain = workflow.make(on("model", "prompt"), Noise(5))
    assert torch.equal(full, torch.nn.functional.pad(plain, (1, 0), value=-1)[..., :-1].flip(-1))
    # What `scoreline sample` makes with these settings and this seed.
    sample_to(
        tmp_path / "s.npz", "digits", "ddim", range(6), nfe=2, noise_seed=5, labels="3,8", device="cpu", quiet=True
    )
    sampled = load_images(str(tmp_path / "s.npz")).batch(range(6)).image
    torch.testing.assert_close(plain, sampled, atol=1 / 127, rtol=0)
    assert not torch.equal(plain, workflow.make(on("model"), Noise(5)))
    assert not torch.equal(plain, workflow.make(on("model", "prompt"), Noise(6)))


def test_finishing_steps_of_several_components_add_up_in_the_order_of_the_file(tmp_path: Path) -> None:
    components = {"first": {"post": [{"brightness": 1}]}, "second": {"post": ["invert"]}}
    workflow = read(tmp_path, components=components, neutral={"post": ["mirror"]})
    plain = workflow.make(on(), Noise(0))
    torch.testing.assert_close(workflow.make(on("second", "first"), Noise(0)), -(plain + 1).clamp(-1, 1))
    torch.testing.assert_close(workflow.make(on("second"), Noise(0)), -plain)
    assert workflow.components[1].absent == "mirror"


def test_the_stand_in_for_a_model_is_noise_of_the_data(tmp_path: Path) -> None:
    workflow = read(tmp_path, images=400, artwork={"source": "digits", "labels": [3]})
    noise = workflow.make(on(), Noise(0))
    digits = load_images("digits").batch(range(1797)).image
    # Noise beyond black and white is cut off.
    expected = (digits.mean() + digits.std() * torch.randn(100_000)).clamp(-1, 1)
    assert noise.mean() == pytest.approx(expected.mean().item(), abs=0.03)
    assert noise.std() == pytest.approx(expected.std().item(), abs=0.03)
    assert torch.equal(noise, workflow.make(on("prompt"), Noise(0)))


def test_coalitions_of_equal_images_are_known_before_they_are_made(tmp_path: Path) -> None:
    workflow = read(tmp_path)
    assert workflow.same(on()) == workflow.same(on("prompt"))  # noise has no classes
    assert workflow.same(on("finishing")) == workflow.same(on("prompt", "finishing"))
    names = [on(), on("model"), on("model", "prompt"), on("finishing"), on("model", "finishing"), on(*workflow.changes)]
    assert len({workflow.same(active) for active in names}) == 6


def test_another_model_or_data_set_is_not_taken_for_the_same(tmp_path: Path) -> None:
    one = read(tmp_path).same(on())
    assert read(tmp_path, artwork={"source": "digits", "split": "train"}).same(on()) != one  # other noise
    copies = {}
    for name in ("digits", "digits-eps"):
        copies[name] = tmp_path / name / "model.safetensors"
        copies[name].parent.mkdir()
        copies[name].write_bytes(model_path(name).read_bytes())
    texts = [read(tmp_path, components={"m": {"model": str(path)}}).same(on("m")) for path in copies.values()]
    digests = [json.loads(text)[1] for text in texts]
    assert len(set(digests)) == 2
    assert all(len(digest) == 64 for digest in digests)


def test_a_json_file_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(SMALL))
    assert read_workflow(str(file)).changes == read(tmp_path).changes


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"picture": 1}, "did you mean"),
        ({"components": None}, "is missing"),
        ({"artwork": None}, "is missing"),
        ({"components": ["model"]}, "name: {setting: value}"),
        ({"components": {"model": {}}}, "settings it changes"),
        ({"components": {"a": {"modell": "digits"}}}, "did you mean 'model'"),
        ({"components": {"a": {"model": "digts"}}}, "did you mean 'digits'"),
        ({"components": {"a": {"nfe": 2}, "b": {"nfe": 3}}}, "component a already"),
        ({"components": {"a": {"nfe": 0}}}, "1 or more"),
        ({"components": {"a": {"sampler": "huen"}}}, "did you mean 'heun'"),
        ({"components": {"a": {"guidance": "strong"}}}, "give a number"),
        ({"components": {"a": {"labels": 3}}}, "list of classes"),
        ({"components": {"a": {"clip": "yes please"}}}, "true or false"),
        ({"components": {"a": {"post": [{"blur": -1}]}}}, "above 0"),
        ({"artwork": {"split": "test"}}, "source"),
        ({"artwork": {"source": "digits", "labels": [11]}}, "no image"),
        ({"artwork": {"source": "digits", "count": 0}}, "1797"),
        ({"artwork": {"source": "digit"}}, "did you mean 'digits'"),
        ({"images": 1}, "2 or more"),
        ({"seed_sets": [-1]}, "from 0 on"),
        ({"owners": ["a"]}, "owner: "),
        ({"folders": "x"}, "without neutral"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        read(tmp_path, **changes)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such file"):
        read_workflow(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="did you mean 'threes'"):
        read_workflow("three")
    for text in ("a: [", "- 1", ""):
        (tmp_path / "broken.yaml").write_text(text)
        with pytest.raises(ArtefactError):
            read_workflow(str(tmp_path / "broken.yaml"))


@pytest.mark.parametrize(
    "components, word",
    [
        ({"model": {"model": "digits"}, "prompt": {"labels": [12]}}, r"0 to 9.*\(coalition model \+ prompt\)"),
        ({"model": {"model": "digits"}, "solver": {"sampler": "dpm-solver++2m"}}, r"needs at least.*\+ solver\)"),
    ],
)
def test_what_cannot_run_is_refused_before_work(tmp_path: Path, components: dict[str, Any], word: str) -> None:
    read(tmp_path, components=components)
    with pytest.raises(InputError, match=word):
        attribute(str(tmp_path / "workflow.yaml"), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def finished(folder: Path, levels: dict[str, float], count: int = 12) -> None:
    """A folder of PNGs for each coalition, of noise around a grey level."""
    from scoreline.data.grid import picture_grid

    for name, level in levels.items():
        (folder / name).mkdir(parents=True)
        images = (level + 0.2 * Noise(0).at(range(count), (1, 8, 8)).normal()).clamp(-1, 1)
        for i, image in enumerate(images):
            write_png(folder / name / f"{i}.png", picture_grid(image[None], scale=1, pad=0).convert("L"))


def test_finished_images_may_come_from_folders(tmp_path: Path) -> None:
    finished(tmp_path / "made", {"nothing": -0.5, "lora": 0.0, "prompt": -0.4, "lora + prompt": 0.1})
    finished(tmp_path, {"art": 0.2})
    read(tmp_path, components=["lora", "prompt"], folders="made", neutral=None, seed_sets=None, images=None,
         artwork={"source": "./art"})  # fmt: skip
    results = attribute(str(tmp_path / "workflow.yaml"), tmp_path / "out", quiet=True)
    assert results["images"] == 12
    first = results["attributions"][0]
    values = {row["component"]: row["phi"] for row in first["contributions"]}
    assert values["lora"]["mean"] > values["prompt"]["mean"] > 0
    assert values["lora"]["sd"] > 0  # by the bootstrap, as there is one seed set
    assert "100 joint bootstrap" in first["spread"]
    with pytest.raises(InputError, match="one set"):
        attribute(str(tmp_path / "workflow.yaml"), tmp_path / "other", seed_sets=[0, 1], quiet=True)
    with pytest.raises(InputError, match="as they are"):
        attribute(str(tmp_path / "workflow.yaml"), tmp_path / "other", images=5, quiet=True)
    (tmp_path / "made/lora").rename(tmp_path / "made/elsewhere")
    with pytest.raises(ArtefactError, match="folder of coalition lora"):
        attribute(str(tmp_path / "workflow.yaml"), tmp_path / "other", quiet=True)
    assert not (tmp_path / "other").exists()
