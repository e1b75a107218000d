"""Scores of anomaly maps: the numbers are those of the functions, and models are compared on the same images only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.score import Score
from scoreline.data.anomaly_maps import AnomalySet
from scoreline.evaluate.anomaly import FORMAT, score_anomaly_maps
from scoreline.metrics.aupimo import aupimo
from scoreline.metrics.per_image import boxplot_statistics, compare_models
from scoreline.metrics.pixel_curves import aupr, aupro, auroc, image_auroc

BOUNDS = (2e-3, 2e-2)
NAMES = [f"image-{i:02d}" for i in range(14)]


def a_set(strength: float, seed: int = 0, **changes: Any) -> AnomalySet:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(14, 24, 24, dtype=torch.bool)
    masks[6:, 4:12, 3:14] = True
    shift = strength * (1 + torch.arange(14) % 5)[:, None, None]
    maps = torch.randn(14, 24, 24, generator=generator, dtype=torch.float64) + shift * masks
    return AnomalySet(NAMES, list(maps), list(masks), 0, 0)._replace(**changes)


MODELS = {"weak": a_set(0.5), "strong": a_set(1.0, seed=1), "middle": a_set(0.7, seed=2)}


@pytest.fixture(scope="module")
def scored() -> Any:
    return score_anomaly_maps(MODELS, "masks", fpr_bounds=BOUNDS, route="exact", quiet=True)


def test_the_scores_are_those_of_the_functions(scored: Any) -> None:
    results = scored[0]
    assert results["format"] == FORMAT
    assert [m["name"] for m in results["models"]] == list(MODELS)
    for model, found in zip(results["models"], MODELS.values()):
        given = found.maps, found.masks
        expected = aupimo(*given, fpr_bounds=BOUNDS, route="exact")
        values = {name: score["value"] for name, score in model["scores"].items()}
        assert values == {
            "aupimo": expected.mean, "aupro": aupro(*given), "auroc": auroc(*given), "aupr": aupr(*given),
            "image-auroc": image_auroc(*given),
        }  # fmt: skip
        assert model["per_image"][:6] == [None] * 6
        assert model["per_image"][6:] == expected.scores[6:].tolist()
        interval = model["scores"]["aupimo"]["interval"]
        assert interval["low"] < expected.mean < interval["high"]
        statistics = boxplot_statistics(expected.scores)
        assert [(s["name"], s["image"]) for s in model["statistics"]] == [(s.name, NAMES[s.image]) for s in statistics]
    assert [image["anomalous"] for image in results["images"]] == [False] * 6 + [True] * 8
    assert results["counts"] == {"normal": 6, "anomalous": 8}
    json.dumps(results, allow_nan=False)


def test_the_comparison_is_that_of_the_per_image_scores(scored: Any) -> None:
    results = scored[0]
    scores = {m["name"]: [float("nan") if v is None else v for v in m["per_image"]] for m in results["models"]}
    expected = compare_models(scores)
    assert results["comparison"]["models"] == list(expected.models)
    assert results["comparison"]["models"][0] == "strong"
    assert results["comparison"]["confidence"][0][1:] == expected.confidence[0, 1:].tolist()
    assert results["comparison"]["confidence"][0][0] is None
    t = score_anomaly_maps(MODELS, "masks", fpr_bounds=BOUNDS, route="exact", test="t", quiet=True)[0]["comparison"]
    assert t["test"] == "t"
    assert t["merit"][0] == pytest.approx(results["models"][1]["scores"]["aupimo"]["value"])
    alone = score_anomaly_maps({"weak": MODELS["weak"]}, "", fpr_bounds=BOUNDS, route="exact", quiet=True)[0]
    assert alone["comparison"] is None


def test_scores_compare_only_under_one_protocol(scored: Any) -> None:
    def score(**options: Any) -> Score:
        given = {"fpr_bounds": BOUNDS, "route": "exact", "quiet": True} | options
        models = given.pop("models", {"weak": MODELS["weak"]})
        return Score.from_dict(score_anomaly_maps(models, "masks", **given)[0]["models"][0]["scores"]["aupimo"])

    one = Score.from_dict(scored[0]["models"][1]["scores"]["aupimo"])
    assert one.better_than(score())
    other_masks = [*MODELS["weak"].masks[:-1], MODELS["weak"].masks[-1].flip(0)]
    for options in (
        {"fpr_bounds": (2e-3, 1e-2)},
        {"route": "fast"},
        {"models": {"weak": MODELS["weak"]._replace(masks=other_masks)}},
    ):
        with pytest.raises(InputError, match="were not measured alike"):
            one.compare(score(**options))


def test_curves_and_exhibits(scored: Any) -> None:
    results, curves, exhibits = scored
    for name, curve in curves.items():
        assert curve.tpr.shape == (8, len(curve.fpr))
        assert (np.diff(curve.fpr) < 0).all()
        assert not np.isnan(curve.tpr).any()
        shown = [e for e in exhibits if e.model == name]
        assert [e.score for e in shown] == sorted(e.score for e in shown)
        statistics = next(m for m in results["models"] if m["name"] == name)["statistics"]
        assert {e.image for e in shown} == {s["image"] for s in statistics}
        normal = torch.cat([m.flatten() for m in MODELS[name].maps[:6]])
        for exhibit in shown:
            rates = [float((normal >= level).double().mean()) for level in exhibit.levels]
            assert rates == pytest.approx([BOUNDS[1], BOUNDS[0]], abs=1 / len(normal))
            assert torch.equal(exhibit.scores, MODELS[name].maps[NAMES.index(exhibit.image)])


def test_warnings_reach_the_reader() -> None:
    models = {"a": a_set(1.0, resized=3, unmasked=6)}
    results = score_anomaly_maps(models, "masks", fpr_bounds=BOUNDS, num_thresholds=900, force=True, quiet=True)[0]
    text = "\n".join(results["warnings"])
    assert "a: 3 of 14 maps were enlarged" in text
    assert "6 of 14 images have no mask and count as normal" in text
    assert "300 are advised" in text


def test_models_on_other_images_are_refused() -> None:
    other = [*NAMES[:-1], "image-99"]
    with pytest.raises(InputError, match=r"'b': are not those of a: .*'image-13'"):
        score_anomaly_maps({"a": a_set(1.0), "b": a_set(1.0, names=other)}, "m", fpr_bounds=BOUNDS, quiet=True)
    masks = [m.clone() for m in MODELS["weak"].masks]
    masks[9][0, 0] = True
    with pytest.raises(InputError, match="masks differ"):
        score_anomaly_maps({"a": a_set(1.0), "b": a_set(1.0, masks=masks)}, "m", fpr_bounds=BOUNDS, quiet=True)


def test_options_are_refused_before_any_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any, **options: Any) -> None:
        raise AssertionError("read before it was refused")

    monkeypatch.setattr("scoreline.evaluate.anomaly.read_anomaly_set", never)
    models = {"a": str(tmp_path)}
    for options, match in [
        ({"fpr_bounds": (1e-2, 1e-3)}, "fpr_bounds"),
        ({"num_thresholds": 1}, "num_thresholds"),
        ({"route": "exact", "num_thresholds": 9}, "exact route"),
        ({"fpr_limit": 0.0}, "fpr_limit"),
    ]:
        with pytest.raises(InputError, match=match):
            score_anomaly_maps(models, "m", quiet=True, **options)  # type: ignore[arg-type]
    with pytest.raises(ArtefactError, match="no such folder"):
        score_anomaly_maps(models | {"b": str(tmp_path / "nowhere")}, "m", quiet=True)
