"""From a folder of JPEGs to a FID: scoreline against pytorch-fid and torch-fidelity, one random network for all.

Every side runs in a process of its own, round after round, on the same pictures and the same weights: it decodes,
resizes, runs the network and takes the distance to a second folder. Images per second are those of the pass over the
folder; the distance is timed apart (the peers' roots take long), and so is compilation. Features are compared entry by
entry with the peer whose conventions were followed. Peers that cannot be imported are left out, in a line.

    python benchmarks/bench_folder_to_fid.py [--count 1000] [--full] [--eager] [--rounds 1] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from common import finish, load, options, parser, table
from scoreline.core.encoder import Encoder
from scoreline.data import load_images
from scoreline.evaluate.extraction import Network, extract
from scoreline.evaluate.processes import Processes
from scoreline.metrics import frechet_distance
from scoreline.nn.inception import Inception2015
from scoreline.nn.resizing import fid_mode

# side -> the peer whose features it must give
OURS = {
    "ours": "pytorch-fid",
    "ours, torch-fidelity's input": "torch-fidelity",
    "ours compiled": "pytorch-fid",
    "ours bf16": None,
    "ours bf16 compiled": None,
}
PEERS = ("pytorch-fid", "torch-fidelity")
WEIGHTS = "weights.pth"
Result = dict[str, Any]


def make_pictures(folder: Path, count: int, side: int, seed: int) -> None:
    """Smooth coloured noise as JPEGs of quality 90: the digits' or photographs' content would not change the time."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        noise.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)


def random_weights(path: Path) -> None:
    """He-initialised weights, whose features have the size that trained ones have."""
    torch.manual_seed(0)
    net = Inception2015()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(net.state_dict(), path)


def our_encoder(name: str, work: Path) -> tuple[Encoder, float]:
    """The network of one of our sides, and the seconds that compiling it took."""
    how = fid_mode(OURS[name] or "pytorch-fid")
    net = Inception2015.load(
        work / WEIGHTS, resize=how.resize, quantisation=how.quantisation, scaling=how.scaling, trusted=True
    )
    net = net.fast(compile="compiled" in name, dtype=torch.bfloat16 if "bf16" in name else torch.float32)
    start = time.perf_counter()
    if "compiled" in name:
        with torch.inference_mode():
            net.activations(torch.zeros(32, 3, 299, 299), ["2048"])
    return net, time.perf_counter() - start


def run_ours(name: str, work: Path, workers: int, encoder: Encoder | None = None) -> Result:
    """One of our sides: extraction as `scoreline score` does it, and the symmetric root."""
    compiling = 0.0
    if encoder is None:
        encoder, compiling = our_encoder(name, work)
    tap, sets, start = encoder.tap, [], time.perf_counter()
    for role in ("made", "real"):
        images = load_images(str(work / role), channels=3)
        folder = Path(tempfile.mkdtemp(dir=work))
        taken = extract(
            images, [Network(encoder, {tap: True})], folder, name=role, batch_size=32, workers=workers,
            team=Processes(), advance=lambda n, text: None,
        )[f"0.{tap}"]  # fmt: skip
        sets.append(taken.moments if taken.count > encoder.dim else taken.sample)
        if role == "made":
            passed = time.perf_counter() - start
            np.save(work / f"{name}.npy", taken.all_rows().numpy())
    middle = time.perf_counter()
    value = frechet_distance(sets[1], sets[0])
    return {"pass": passed, "distance": time.perf_counter() - middle, "compile": compiling, "fid": value}


def run_pytorch_fid(work: Path, workers: int) -> Result:
    """pytorch-fid's own functions, its network filled with our weights."""
    import_torchvision()
    inception = importlib.import_module("pytorch_fid.inception")
    score = importlib.import_module("pytorch_fid.fid_score")
    inception.load_state_dict_from_url = lambda *_, **__: torch.load(work / WEIGHTS, weights_only=True)
    model = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    statistics = []
    start = time.perf_counter()
    for role in ("made", "real"):
        files = sorted((work / role).iterdir())
        features = score.get_activations(files, model, batch_size=50, num_workers=workers)
        statistics += [np.mean(features, axis=0), np.cov(features, rowvar=False)]
        if role == "made":
            passed = time.perf_counter() - start
            np.save(work / "pytorch-fid.npy", features)
    middle = time.perf_counter()
    value = float(score.calculate_frechet_distance(*statistics))
    return {"pass": passed, "distance": time.perf_counter() - middle, "compile": 0.0, "fid": value}


def run_torch_fidelity(work: Path, workers: int) -> Result:
    """torch-fidelity's own functions, its network filled with our weights; it chooses its workers itself."""
    import_torchvision()
    datasets = importlib.import_module("torch_fidelity.datasets")
    utils = importlib.import_module("torch_fidelity.utils")
    fid = importlib.import_module("torch_fidelity.metric_fid")
    network = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    extractor = network("bench", ["2048"], feature_extractor_weights_path=str(work / WEIGHTS))
    extractor.eval()
    statistics = []
    start = time.perf_counter()
    for role in ("made", "real"):
        files = datasets.ImagesPathDataset([str(path) for path in sorted((work / role).iterdir())])
        features = utils.get_featuresdict_from_dataset(files, extractor, 64, False, workers == 0, False)["2048"]
        statistics.append(fid.fid_features_to_statistics(features))
        if role == "made":
            passed = time.perf_counter() - start
            np.save(work / "torch-fidelity.npy", features.numpy())
    middle = time.perf_counter()
    value = fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    return {"pass": passed, "distance": time.perf_counter() - middle, "compile": 0.0, "fid": float(value)}


def import_torchvision() -> None:
    """torchvision, whose compiled operators are not needed here and may belong to another build of torch."""
    with contextlib.suppress(ImportError, RuntimeError):
        importlib.import_module("torchvision")
        return
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    register = torch.library.register_fake

    def skipping(op: Any, *args: Any, **settings: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register(op, *args, **settings)

    torch.library.register_fake = skipping
    try:
        importlib.import_module("torchvision")
    finally:
        torch.library.register_fake = register


def run_side(name: str, work: Path, workers: int) -> Result:
    """One side in this process, with the peak memory of it and of its largest worker."""
    if name == "pytorch-fid":
        result = run_pytorch_fid(work, workers)
    elif name == "torch-fidelity":
        result = run_torch_fidelity(work, workers)
    else:
        result = run_ours(name, work, workers)
    unit = 1 if sys.platform == "darwin" else 1024
    for key, who in (("peak_bytes", resource.RUSAGE_SELF), ("peak_bytes_of_a_worker", resource.RUSAGE_CHILDREN)):
        result[key] = resource.getrusage(who).ru_maxrss * unit
    return result


def apart(name: str, work: Path, workers: int, threads: int | None) -> Result:
    """One side in a process of its own; its error is shown where it fails."""
    out = work / "result.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--only", name, "--work", str(work), "--workers", str(workers)]
    command += [] if threads is None else ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if not out.exists():
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(out.read_text())


def agreement(work: Path, ours: str, peer: str) -> float:
    """Largest difference of a feature, relative to the largest feature of its image."""
    a, b = np.load(work / f"{ours}.npy"), np.load(work / f"{peer}.npy")
    return float((np.abs(a - b).max(axis=1) / np.abs(b).max(axis=1)).max())


def main(argv: Sequence[str] | None = None, sides: Mapping[str, Callable[[Path], Result]] | None = None) -> Result:
    made = parser(__doc__, rounds=1)
    made.add_argument("--count", type=int, default=None, help="pictures in the folder (default 1000; quick 10)")
    made.add_argument("--full", action="store_true", help="5000 pictures")
    made.add_argument("--side", type=int, default=256, help="their height and width (default 256)")
    made.add_argument("--eager", action="store_true", help="leave out what is compiled")
    made.add_argument("--workers", type=int, default=1, help="processes that decode (default 1)")
    made.add_argument("--only", choices=(*OURS, *PEERS), help=argparse.SUPPRESS)
    made.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    chosen = options(made, argv)
    if chosen.only:
        result = run_side(chosen.only, chosen.work, chosen.workers)
        (chosen.work / "part").write_text(json.dumps(result))
        os.replace(chosen.work / "part", chosen.work / "result.json")
        return result
    count = chosen.count or (10 if chosen.quick else 5000 if chosen.full else 1000)
    before, found = load(), {}
    warnings.simplefilter("ignore", UserWarning)  # fewer pictures than features, which is meant here
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_pictures(work / "made", count, 48 if chosen.quick else chosen.side, 0)
        make_pictures(work / "real", 8, 48 if chosen.quick else chosen.side, 1)
        if sides is None:
            random_weights(work / WEIGHTS)
            here = [p for p in PEERS if importlib.util.find_spec(p.replace("-", "_")) is not None]
            for peer in PEERS:
                if peer not in here:
                    print(f"{peer} is not installed, and left out: pip install {peer}")
            names = ["ours"] if chosen.quick else [n for n in OURS if not (chosen.eager and "compiled" in n)]
            if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                print("this CPU has no bfloat16 instructions, which makes bf16 several times slower: left out")
                names = [n for n in names if "bf16" not in n]
            chosen_sides = {
                n: (lambda where, n=n: apart(n, where, chosen.workers, chosen.threads)) for n in [*names, *here]
            }
        else:
            chosen_sides = dict(sides)
        rounds: dict[str, list[Result]] = {side: [] for side in chosen_sides}
        for i in range(chosen.rounds):
            for side in list(chosen_sides) if i % 2 == 0 else list(reversed(list(chosen_sides))):
                rounds[side].append(chosen_sides[side](work))
        agree = {
            f"{ours} to {peer}": agreement(work, ours, peer)
            for ours, peer in OURS.items()
            if peer is not None and ours in rounds and peer in rounds
        }
    for side, results in rounds.items():
        figures = {key: median(r[key] for r in results) for key in ("pass", "distance", "compile", "fid")}
        figures |= {key: max(r.get(key, 0) for r in results) for key in ("peak_bytes", "peak_bytes_of_a_worker")}
        found[side] = figures | {"images_per_second": count / figures["pass"]}
    rows = [
        [side, f["images_per_second"], *(_ratio(rounds, side, peer) for peer in PEERS), f["pass"], f["distance"],
         f["compile"], f["peak_bytes"] / 2**20, f"{f['fid']:.8g}"]
        for side, f in found.items()
    ]  # fmt: skip
    print(f"{count} JPEGs of {48 if chosen.quick else chosen.side} pixels to FID, {chosen.workers} decoding processes")
    print(table(["side", "images/s", "x pytorch-fid", "x torch-fidelity", "pass s", "distance s", "compile s", "MiB",
                 "FID"], rows))  # fmt: skip
    for pair, value in agree.items():
        print(f"features of {pair}: within {value:.1e} (aim 1e-5)")
    return finish("folder_to_fid", chosen, {"count": count, "sides": found, "agreement": agree}, before)


def _ratio(rounds: Mapping[str, Sequence[Result]], side: str, peer: str) -> float | str:
    """How many times the peer's images per second: the median over rounds."""
    if peer not in rounds or side == peer:
        return "-"
    return median(p["pass"] / s["pass"] for s, p in zip(rounds[side], rounds[peer], strict=True))


if __name__ == "__main__":
    main()
