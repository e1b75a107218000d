"""`scoreline score`: two sets of images, or statistics of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scoreline.data import load_images
from scoreline.metrics import frechet_distance


def digits(split: str) -> torch.Tensor:
    images = load_images("digits", split=split)
    return images.batch(range(len(images))).image


def write_folder(folder: Path, pictures: np.ndarray, suffix: str = ".png", **settings: Any) -> None:
    folder.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:04d}{suffix}", **settings)


@pytest.fixture
def noise(tmp_path: Path) -> np.ndarray:
    """100 grey pictures of 8x8 noise, in noise.npz, noise.npy and the folder noise."""
    pictures = np.random.default_rng(0).integers(0, 256, (100, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", arr_0=pictures[..., None])
    np.save(tmp_path / "noise.npy", pictures)
    write_folder(tmp_path / "noise", pictures)
    return pictures


def values(answer: Any) -> dict[str, float]:
    assert answer.code == 0, answer.err
    return {score["name"]: score["value"] for score in answer.json["scores"]}


PIXELS = ("--features", "pixels", "--json")


def test_two_parts_of_the_digits(scoreline: Any) -> None:
    command = [
        "score",
        "--real",
        "digits",
        "--generated",
        "digits",
        "--generated-split",
        "train",
        "--features",
        "pixels",
    ]
    answer = scoreline(*command, "--json")
    found = values(answer)
    assert list(found) == ["fd-pixel", "fd-infinity", "kid", "precision", "recall", "density", "coverage"]
    assert found["fd-pixel"] == pytest.approx(
        frechet_distance(digits("test").flatten(1), digits("train").flatten(1)), rel=1e-6
    )
    assert abs(found["kid"]) < 0.01
    assert found["precision"] > 0.9
    score = answer.json["scores"][0]
    assert score["interval"]["low"] < score["value"] < score["interval"]["high"]
    assert score["protocol"]["reference_split"] == "test"
    assert (score["protocol"]["reference_count"], score["protocol"]["generated_count"]) == (500, 1297)
    # The floor draws from the training digits with replacement, so it lies somewhat above the distance of all of them.
    assert 1 < answer.json["floor"]["fd-pixel"] / found["fd-pixel"] < 2
    assert answer.err == ""
    text = scoreline(*command, "--metrics", "fd,prdc").out
    for words in ("95 % interval", "fd-pixel", "precision", "higher", "lower", "floor", "protocol: frechet-distance"):
        assert words in text


@pytest.mark.parametrize("generated", ["./noise", "noise.npz", "noise.npy"])
def test_folders_and_array_files_are_the_same_pictures(
    scoreline: Any, noise: np.ndarray, generated: str, tmp_path: Path
) -> None:
    found = values(scoreline("score", "--real", "digits", "--generated", generated, "--metrics", "fd", *PIXELS))
    wanted = frechet_distance(digits("test").flatten(1), torch.from_numpy(noise.reshape(100, 64) / 127.5 - 1).float())
    assert found["fd-pixel"] == pytest.approx(wanted, rel=1e-5)


def test_every_metric(scoreline: Any, noise: np.ndarray) -> None:
    command = ["score", "--real", "digits", "--generated", "noise.npz", "--metrics", "fd,kid,prdc,fd-infinity"]
    found = values(scoreline(*command, *PIXELS))
    assert {"fd-infinity", "kid", "coverage"} <= set(found)
    assert found["fd-infinity"] < found["fd-pixel"]
    assert found["kid"] > 1
    assert found["coverage"] == 0


def test_which_set_is_real_matters(scoreline: Any) -> None:
    options = ["--real", "digits", "--generated", "digits", "--metrics", "prdc"]
    one = values(scoreline("score", *options, "--generated-split", "train", *PIXELS))
    two = values(scoreline("score", *options, "--real-split", "train", "--generated-split", "test", *PIXELS))
    assert (one["precision"], one["recall"]) == (two["recall"], two["precision"])
    assert one["precision"] > one["recall"]


def test_what_sample_makes_can_be_scored(scoreline: Any, tiny: str) -> None:
    scoreline("sample", tiny, "--nfe", "5", "--seeds", "0:80", "--out", "made")
    scoreline("sample", tiny, "--nfe", "5", "--seeds", "0:80", "--out", "made.npz")
    both = [
        values(scoreline("score", "--real", "digits", "--generated", name, "--metrics", "fd", *PIXELS))
        for name in ("./made", "made.npz")
    ]
    assert both[0] == both[1]


def test_saved_statistics_give_the_same_distance(scoreline: Any, noise: np.ndarray, tmp_path: Path) -> None:
    command = ["score", "--real", "digits", "--generated", "noise.npz", "--metrics", "fd", *PIXELS]
    direct = values(scoreline(*command, "--save-statistics", "real.npz"))["fd-pixel"]
    with np.load(tmp_path / "real.npz") as arrays:
        assert (arrays["mu"].shape, arrays["sigma"].shape) == ((64,), (64, 64))
        np.testing.assert_allclose(arrays["mu"], digits("test").flatten(1).double().mean(0), atol=1e-6)
        np.testing.assert_allclose(arrays["sigma"], np.cov(digits("test").flatten(1).numpy().T), atol=1e-6)
    for real, generated in (("real.npz", "noise.npz"), ("noise.npz", "real.npz")):
        answer = scoreline("score", "--real", real, "--generated", generated, *PIXELS)
        assert values(answer)["fd-pixel"] == pytest.approx(direct, rel=1e-5)
        counts = [answer.json["scores"][0]["protocol"][f"{side}_count"] for side in ("reference", "generated")]
        assert counts == ([500, 100] if real == "real.npz" else [100, 500])
    assert values(scoreline("score", "--real", "real.npz", "--generated", "real.npz", "--json"))[
        "fd-pixel"
    ] == pytest.approx(0, abs=1e-6)


def test_statistics_of_others_are_read_and_their_gaps_named(scoreline: Any, noise: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", mu=np.zeros(64), sigma=np.eye(64))
    answer = scoreline("score", "--real", "other.npz", "--generated", "noise.npz", *PIXELS)
    assert values(answer)["fd-pixel"] > 0
    assert any("do not say which network" in warning for warning in answer.json["warnings"])
    both = scoreline("score", "--real", "other.npz", "--generated", "other.npz", "--json")
    assert any("do not say which network" in warning for warning in both.json["warnings"])


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "64"),
        ({"mu": np.zeros(64), "sigma": np.eye(63)}, "sigma"),
        ({"mu": np.full(64, np.nan), "sigma": np.eye(64)}, "NaN"),
        ({"mu": np.zeros(64), "sigma": np.eye(64), "features": "inception-2015", "weights": "x"}, "inception-2015"),
        ({"mu": np.zeros(64), "sigma": np.eye(64), "features": "pixels", "weights": "x"}, "other weights"),
    ],
)
def test_statistics_that_do_not_fit(
    scoreline: Any, noise: np.ndarray, tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    scoreline("score", "--real", "s.npz", "--generated", "noise.npz", *PIXELS).fails(2, "statistics", words)


def test_statistics_of_two_networks(scoreline: Any, tmp_path: Path) -> None:
    for name, features, d in (("a", "pixels", 4), ("b", "digits", 4), ("c", "pixels", 5)):
        np.savez(tmp_path / f"{name}.npz", mu=np.zeros(d), sigma=np.eye(d), features=features, weights="none")
    scoreline("score", "--real", "a.npz", "--generated", "b.npz").fails(2, "real pixels, generated digits")
    scoreline("score", "--real", "a.npz", "--generated", "c.npz").fails(2, "same number of features")


def test_unlike_sets_are_refused(scoreline: Any, noise: np.ndarray, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "large.npz", arr_0=rng.integers(0, 256, (30, 16, 16, 1), dtype=np.uint8))
    np.savez(tmp_path / "colour.npz", arr_0=rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8))
    for other, shape in (("large.npz", "1x16x16"), ("colour.npz", "3x8x8")):
        scoreline("score", "--real", "digits", "--generated", other, *PIXELS).fails(2, "1x8x8", shape)
    assert values(
        scoreline("score", "--real", "digits", "--generated", "large.npz", "--size", "8", "--metrics", "fd", *PIXELS)
    )


def test_features_that_are_not_finite(scoreline: Any, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoreline.nn.features import Pixels

    monkeypatch.setattr(Pixels, "features", lambda self, x: x.flatten(1) * float("nan"))
    answer = scoreline("score", "--real", "digits", "--generated", "noise.npz", *PIXELS)
    answer.fails(2, "finite")


def test_images_that_are_not_finite(scoreline: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "bad.npy", np.full((5, 1, 8, 8), np.nan, np.float32))
    scoreline("score", "--real", "digits", "--generated", "bad.npy", *PIXELS).fails(2, "bad.npy", "NaN")


def test_too_few_images_are_warned_of(scoreline: Any, noise: np.ndarray) -> None:
    command = ["score", "--real", "digits", "--generated", "noise.npz", "--metrics", "fd", *PIXELS]
    (warning,) = [w for w in scoreline(*command).json["warnings"] if "few images" in w]
    assert "500 real, 100 generated" in warning
    np.save("few.npy", noise[:10])
    command[4] = "few.npy"
    assert any("rank deficient" in w for w in scoreline(*command).json["warnings"])
    np.save("one.npy", noise[:1])
    command[4] = "one.npy"
    scoreline(*command).fails(2, "generated")


def test_jpeg_against_png_is_warned_of(scoreline: Any, noise: np.ndarray, tmp_path: Path) -> None:
    write_folder(tmp_path / "jpeg", noise, ".jpg", quality=75)

    def warned(real: str, generated: str) -> bool:
        answer = scoreline("score", "--real", real, "--generated", generated, "--metrics", "fd", *PIXELS)
        assert answer.code == 0
        return any("JPEG" in warning for warning in answer.json["warnings"])

    assert warned("./noise", "./jpeg")
    assert warned("./jpeg", "./noise")
    assert not warned("./jpeg", "./jpeg")
    assert not warned("./noise", "noise.npz")


@pytest.mark.parametrize(
    "options, code, words",
    [
        (["--generated", "digits"], 2, "--real"),
        (["--real", "digits"], 2, "--generated"),
        (["--real", "digits", "--generated", "digitz"], 2, "did you mean 'digits'?"),
        (["--real", "digits", "--generated", "./nowhere"], 1, "no such file or folder"),
        (["--real", "digits", "--generated", "digits", "--metrics", "fdd"], 2, "metric 'fdd': did you mean 'fd'?"),
        (["--real", "digits", "--generated", "digits", "--metrics", ","], 2, "give at least one"),
        (["--real", "digits", "--generated", "digits", "--metrics", "is", "--features", "pixels"], 2, "class outputs"),
        (["--real", "digits", "--generated", "digits", "--features", "inception"], 2, "did you mean 'inception-2015'?"),
        (["--real", "digits", "--generated", "digits", "--batch-size", "0"], 2, "batch_size 0"),
        (["--real", "digits", "--generated", "digits", "--save-statistics", "s.txt"], 2, "s.txt"),
        (["--real", "digits", "--generated", "digits", "--generated-split", "tset"], 2, "did you mean 'test'?"),
        (["digits", "digits"], 2, "--real, --generated"),
        (["--real", "digits", "--generated", "digits", "--mode", "pytorch_fid"], 2, "did you mean 'pytorch-fid'?"),
        (["--real", "digits", "--generated", "digits", "--mode", "clean"], 2, "the features are digits"),
        (["--real", "digits", "--generated", "digits", "--weights", "w.pth"], 2, "digits has none to be read"),
        (["--real", "digits", "--generated", "digits", "--dtype", "bf16"], 2, "digits runs in float32"),
        (["--real", "digits", "--generated", "digits", "--compile"], 2, "digits is not compiled"),
        (["--real", "digits", "--generated", "digits", "--workers", "-1"], 2, "workers -1"),
        (["--real", "digits", "--generated", "digits", "--seed", "-1"], 2, "seed -1"),
        (["--real", "digits", "--generated", "digits", "--device", "gpu"], 2, "device"),
        (["--real", "digits", "--generated", "digits", "--metrics", "sfid"], 2, "spatial features of inception-2015"),
        (
            ["--real", "digits", "--generated", "digits", "--compare-to", "digits", "--compare-split", "train"],
            2,
            "1797",
        ),
        (
            ["--real", "digits", "--generated", "digits", "--save-statistics", "s.npz", "--statistics-layout", "edn"],
            2,
            "did you mean 'edm'?",
        ),
    ],
)
def test_refusals(scoreline: Any, options: list[str], code: int, words: str) -> None:
    scoreline("score", *options).fails(code, words)


def test_without_the_weights_the_real_network_is_refused(
    scoreline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path))
    pictures = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", arr_0=pictures)
    answer = scoreline("score", "--real", "c.npz", "--generated", "c.npz")
    answer.fails(1, "nception")
    assert "pixels" in answer.err


def test_a_damaged_array_file(scoreline: Any, noise: np.ndarray, tmp_path: Path) -> None:
    whole = (tmp_path / "noise.npz").read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        scoreline("score", "--real", "digits", "--generated", "cut.npz", *PIXELS).fails(1, "cut.npz")


def test_with_the_shipped_network(scoreline: Any) -> None:
    command = ["score", "--real", "digits", "--generated", "digits", "--generated-split", "train", "--metrics", "fd,is"]
    found = values(scoreline(*command, "--json"))
    assert list(found) == ["fd-digits", "is", "fd-pixel"]
    assert 5 < found["is"] < 10


def test_two_generators_side_by_side(scoreline: Any, noise: np.ndarray, tmp_path: Path) -> None:
    better = (load_images("digits", split="train").batch(range(100)).image[:, 0] + 1).mul(127.5).round()
    np.save(tmp_path / "better.npy", better.numpy().astype(np.uint8))
    command = ["score", "--real", "digits", "--generated", "better.npy", "--compare-to", "noise.npy"]
    command += ["--metrics", "fd,prdc", "--features", "pixels"]
    text = scoreline(*command[:7], "--metrics", "fd", "--features", "pixels").out
    (row,) = [
        line for line in text.splitlines() if line.startswith("fd-pixel") and line.rstrip().endswith("better.npy")
    ]
    assert "< 0.0001" in row
    assert "p: two-sided paired test" in text
    rows = scoreline(*command, "--json").json["comparison"]
    assert [row["name"] for row in rows][:2] == ["fd-pixel", "fd-infinity"]
    assert rows[0]["interval"]["low"] < rows[0]["difference"] < rows[0]["interval"]["high"] < 0
    command = [*command[:5], "--compare-to", "better.npy", "--metrics", "fd", "--features", "pixels"]
    alike = scoreline(*command)
    assert "cannot tell" in alike.out


def test_the_real_sets_statistics_in_the_layout_of_others(scoreline: Any, noise: np.ndarray, tmp_path: Path) -> None:
    command = ["score", "--real", "digits", "--generated", "noise.npz", "--metrics", "fd", *PIXELS]
    direct = values(scoreline(*command, "--save-statistics", "s.npz", "--statistics-layout", "clean-fid"))["fd-pixel"]
    with np.load(tmp_path / "s.npz") as arrays:
        assert set(arrays.files) == {"mu", "sigma"}
    found = values(scoreline("score", "--real", "s.npz", "--generated", "noise.npz", *PIXELS))
    assert found["fd-pixel"] == pytest.approx(direct, rel=1e-9)
    scoreline(*command, "--save-statistics", "t.npz", "--statistics-layout", "guided-diffusion").fails(2, "sfid")
    assert not (tmp_path / "t.npz").exists()


def test_results_are_written_where_asked(scoreline: Any, noise: np.ndarray, own_cache: Path) -> None:
    command = ["score", "--real", "digits", "--generated", "noise.npz", "--metrics", "fd", *PIXELS]
    answer = scoreline(*command, "--out", "results", "--no-cache")
    assert json.loads(Path("results/results.json").read_text()) == answer.json
    assert not own_cache.exists()


def test_images_and_stored_features_of_the_same_network(scoreline: Any, noise: np.ndarray) -> None:
    np.save("features.npy", noise.reshape(100, 64) / 127.5 - 1)
    images = values(scoreline("score", "--real", "digits", "--generated", "noise.npy", "--metrics", "fd", *PIXELS))
    stored = scoreline("score", "--real", "digits", "--generated", "features.npy", "--metrics", "fd", *PIXELS)
    assert values(stored)["fd-pixel"] == pytest.approx(images["fd-pixel"], rel=1e-5)
    assert any("do not say which network" in warning for warning in stored.json["warnings"])
    command = ["score", "--real", "digits", "--generated", "features.npy", *PIXELS]
    scoreline(*command, "--metrics", "cmmd").fails(2, "cmmd", "clip-vit-l-14-336")
    np.save("features.npy", np.zeros((100, 60)))
    scoreline("score", "--real", "digits", "--generated", "features.npy", *PIXELS).fails(2, "60", "pixels has 64")


def test_a_mode_reaches_the_network_and_the_root(
    scoreline: Any, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the real network; grey images get the three channels that it takes."""
    from scoreline.core.encoder import Encoder
    from scoreline.nn.inception import Inception2015

    asked: list[dict[str, Any]] = []

    class Small(Encoder):
        dim, tap = 3, "2048"
        protocol = {"features": "inception-2015", "tap": "2048", "weights": "x"}  # noqa: RUF012

        def features(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[1] == 3
            return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3)), x.std((1, 2, 3))], 1)

    def load(weights: Any = None, **settings: Any) -> Encoder:
        asked.append({"weights": weights, **settings})
        return Small()

    monkeypatch.setattr(Inception2015, "load", load)
    command = ["score", "--real", "digits", "--generated", "noise.npz", "--features", "inception-2015", "--json"]
    command += ["--metrics", "fd,kid"]
    found = {}
    for mode, resize, root, kid in (
        ("pytorch-fid", "pytorch", "sqrtm", "torch-fidelity"),
        ("clean", "clean", "sqrtm-clean", "clean-fid"),
        ("torch-fidelity", "tf1", "eigvals", "torch-fidelity"),
    ):
        answer = scoreline(*command, "--mode", mode, "--weights", "w.safetensors")
        found[mode] = values(answer)["fid"]
        assert (asked[-1]["resize"], asked[-1]["weights"]) == (resize, "w.safetensors")
        protocols = {score["name"]: score["protocol"] for score in answer.json["scores"]}
        assert protocols["fid"]["method"] == root
        assert protocols["kid"]["method"] == f"unbiased, {kid}"
        assert any("grey images, given three equal channels" in warning for warning in answer.json["warnings"])
    assert found["clean"] == pytest.approx(found["torch-fidelity"], rel=1e-9)
    scoreline(*command)
    assert asked[-1] == {"weights": None}


def test_all_taps_of_one_network_in_one_pass(
    scoreline: Any, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with three taps; statistics in guided-diffusion's layout give FID and sFID again."""
    from collections.abc import Sequence

    from scoreline.core.encoder import Encoder
    from scoreline.metrics import inception_score
    from scoreline.nn.inception import Inception2015

    passes = []

    class Small(Encoder):
        dim, tap, tap_names = 4, "2048", ("2048", "sfid", "logits", "logits-no-bias")  # type: ignore[assignment]
        protocol = {"features": "inception-2015", "tap": "2048", "weights": "x"}  # noqa: RUF012

        def activations(self, prepared: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
            passes.append(tuple(names))
            rows = prepared[:, 0].flatten(1)
            taps = {"2048": rows[:, :4], "sfid": rows[:, 10:16], "logits": 9 * rows, "logits-no-bias": 3 * rows[:, :5]}
            return {name: taps[name] for name in names}

    monkeypatch.setattr(Inception2015, "load", lambda weights=None, **settings: Small())
    command = ["score", "--generated", "noise.npz", "--features", "inception-2015", "--json", "--no-cache"]
    options = ["--save-statistics", "s.npz", "--statistics-layout", "guided-diffusion"]
    found = values(scoreline(*command, "--real", "digits", "--metrics", "fd,sfid,is", *options))
    # 500 real images in two batches, 100 generated ones in one, and the floor
    assert passes[:3] == [("2048", "sfid"), ("2048", "sfid"), ("2048", "sfid", "logits-no-bias")]
    real, made = digits("test").flatten(1), torch.from_numpy(noise.reshape(100, 64) / 127.5 - 1).float()
    assert found["fid"] == pytest.approx(frechet_distance(real[:, :4], made[:, :4]), rel=1e-5)
    assert found["sfid"] == pytest.approx(frechet_distance(real[:, 10:16], made[:, 10:16]), rel=1e-5)
    assert found["is"] == pytest.approx(inception_score(3 * made[:, :5]).mean, rel=1e-5)
    again = values(scoreline(*command, "--real", "s.npz", "--metrics", "fd,sfid"))
    assert again == pytest.approx({"fid": found["fid"], "sfid": found["sfid"]}, rel=1e-9)
    scoreline(*command, "--real", "s.npz", "--metrics", "fd,is").fails(2, "Frechet distance only")
    np.savez("t.npz", mu=np.zeros(4), sigma=np.eye(4))
    scoreline(*command, "--real", "t.npz", "--metrics", "sfid").fails(2, "mu_s and sigma_s")


@pytest.fixture
def tiny_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The largest CLIP made small, its random weights stored under the published names."""
    from safetensors.torch import save_file

    from scoreline.nn import clip

    sizes = {"width": 64, "depth": 2, "patch": 14, "size": 28, "dim": 16}
    monkeypatch.setitem(clip.CLIP_MODELS, "clip-vit-l-14-336", (sizes, {"width": 64}))
    torch.manual_seed(0)
    state = {}
    for name, value in clip.CLIPImageEncoder(**sizes).state_dict().items():
        for ours, theirs in (
            ("blocks.", "transformer.resblocks."), (".attn.qkv.", ".attn.in_proj_"), (".attn.proj.", ".attn.out_proj."),
            (".norm1.", ".ln_1."), (".norm2.", ".ln_2."), (".fc1.", ".c_fc."), (".fc2.", ".c_proj."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        state[f"visual.{name}"] = value
    save_file(state, tmp_path / "clip.safetensors")
    return tmp_path / "clip.safetensors"


def test_cmmd_of_colour_pictures(scoreline: Any, tiny_clip: Path, tmp_path: Path) -> None:
    """From folders of pictures through CLIP's tower to the number that its own functions give."""
    from scoreline.metrics import cmmd
    from scoreline.nn.clip import CLIPImageEncoder

    rng = np.random.default_rng(0)
    sets = {"a": rng.integers(0, 256, (30, 20, 20, 3)), "b": rng.integers(60, 200, (25, 20, 20, 3))}
    for name, pictures in sets.items():
        write_folder(tmp_path / name, pictures.astype(np.uint8))
    command = ["score", "--real", "./a", "--generated", "./b", "--features", "clip-vit-l-14-336"]
    answer = scoreline(*command, "--metrics", "cmmd", "--weights", str(tiny_clip), "--json")
    net = CLIPImageEncoder.load(tiny_clip)
    rows = [net(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1) for x in sets.values()]
    assert values(answer)["cmmd"] == pytest.approx(cmmd(*rows), rel=1e-4)
    (score,) = answer.json["scores"]
    assert score["interval"]["low"] < score["value"] < score["interval"]["high"]
    assert score["protocol"]["features"] == "clip-vit-l-14-336"
    assert score["protocol"]["weights"] == net.weights_sha256


def test_cmmd_beside_another_networks_distance(
    scoreline: Any, tiny_clip: Path, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grey digits go to their own network for fd and, in three equal channels, to CLIP for cmmd."""
    from scoreline.metrics import cmmd
    from scoreline.nn.clip import CLIPImageEncoder

    net = CLIPImageEncoder.load(tiny_clip)
    monkeypatch.setattr(CLIPImageEncoder, "load", lambda *_, **__: net)
    found = values(scoreline("score", "--real", "digits", "--generated", "noise.npz", "--metrics", "fd,cmmd", "--json"))
    made = torch.from_numpy(noise).float()[:, None] / 127.5 - 1
    rows = [net(x.expand(-1, 3, -1, -1)) for x in (digits("test"), made)]
    assert found["cmmd"] == pytest.approx(cmmd(*rows), rel=1e-4)
    assert found["fd-digits"] > 0
