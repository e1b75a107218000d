"""How far each convention moves a Frechet distance and its kin: the figures of docs/what-your-fid-means.md.

Two sources, neither downloaded: the 1,797 real digits with samples of the shipped model, in the features of the shipped
digits network and in pixels; and tiles of scikit-learn's two photographs, in pixels and in Inception, which is randomly
initialised (seed 0, its tap of 192 features) unless weights are given. One process, a few minutes on two cores.

    python benchmarks/effects.py [--weights FILE] [--tiles N] [--quick] [--json FILE] [--page FILE]

--page writes the tables into a page: each stands under its line `% effects: name`, and under `% effects: end` a line
that names the Inception network.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

import scoreline as sl
from common import markdown, placed, save
from scoreline.core.cost import machine
from scoreline.data import load_images
from scoreline.data.transforms import from_uint8, resize, to_uint8
from scoreline.evaluate.protocols import digits_net
from scoreline.metrics import (
    fid_infinity,
    frechet_distance,
    frechet_interval,
    inception_score,
    kernel_distance,
    polynomial_mmd,
    prdc,
)
from scoreline.metrics.frechet import METHODS
from scoreline.nn.inception import Inception2015
from scoreline.nn.resizing import RESIZES, InceptionInput

CUT, SIDE = 160, 64  # tiles of 160 pixels, shrunk to 64
Table = dict[str, Any]


def table(head: list[str], rows: list[list[Any]]) -> Table:
    """Figures as they are; :func:`markdown` rounds them."""
    return {"head": head, "rows": rows}


def distance(real: Tensor, generated: Tensor, method: Any = "symmetric") -> float:
    """Frechet distance without the warning about few rows, which the page is about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return frechet_distance(real, generated, method=method)


# --- digits ------------------------------------------------------------------------------------------------------


def everything(images: Any) -> Tensor:
    """All images of a set, (N, C, H, W)."""
    return torch.cat([batch.image for batch in images.batches(500)])


@torch.no_grad()
def sampled(count: int) -> Tensor:
    """Digits of the shipped model: DPM-Solver++(2M), 10 evaluations, classes in turn, seed 0."""
    model = sl.load("digits")
    parts = []
    for numbers in torch.arange(count).split(250):
        noise = sl.Noise(0).at(numbers.tolist(), model.shape)
        given = model.given(sl.Cond(labels=torch.as_tensor(noise.numbers) % 10))
        parts.append(sl.DPMSolverPP2M(nfe=10)(given, noise).x.float())
    return torch.cat(parts).clamp(-1, 1)


def digits(quick: bool) -> dict[str, Table]:
    """Every table that needs no Inception."""
    net = digits_net()
    train, test = (everything(load_images("digits", split=part)) for part in ("train", "test"))
    made = sampled(100 if quick else 1000)
    shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def of_net(x: Tensor) -> Tensor:
        return net.features(x)

    def of_pixels(x: Tensor) -> Tensor:
        return x.flatten(1)

    networks: dict[str, Callable[[Tensor], Tensor]] = {"pixels (64)": of_pixels, "digits network (64)": of_net}
    n = min(500, len(made))
    first, real = made[:n], train[shuffled[:n]]
    tables = {}

    rows: list[list[Any]] = []
    for name, features in networks.items():
        value, interval = frechet_interval(features(test), features(first))
        floor = distance(features(test), features(real))
        rows.append([name, value, interval.low, interval.high, floor, value / floor])
    head = ["features", "FD, samples", "95 % from", "to", f"FD, {n} other real digits", "ratio"]
    tables["network"] = table(head, rows)

    rows = []
    everyone = torch.cat([train, test])
    features, pixels = of_net(everyone), everyone.flatten(1)
    for count in (50, 100, 200, 400, 800):
        found = []
        for seed in range(3 if quick else 10):
            order = torch.randperm(len(everyone), generator=torch.Generator().manual_seed(seed))
            a, b = order[:count], order[count : 2 * count]
            fds = [distance(f[a], f[b]) for f in (pixels, features)]
            found.append([*fds, 1000 * polynomial_mmd(features[a], features[b])])
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
        rows.append([count, mean[0], mean[1], mean[1] * count, mean[2], spread[2]])
    tables["count"] = table(
        ["images a side", "FD, pixels", "FD, digits network", "that times n", "KID x 1000", "its sd"], rows
    )

    generated = of_net(made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        limits = [fid_infinity(of_net(reference), generated) for reference in (test, everyone)]
    rows = [
        [f"{kind}, {len(reference)} images", len(made), limit.distances[-1], limit.value]
        for kind, reference, limit in zip(("test", "train and test"), (test, everyone), limits)
    ]
    tables["infinity"] = table(["reference", "samples", "FD", "FD infinity"], rows)

    references = {"test, 500": test, "test, first 250": test[:250], "train, 1297": train, "both, 1797": everyone}
    rows = [[name, *(distance(f(x), f(first)) for f in networks.values())] for name, x in references.items()]
    tables["reference"] = table(["reference", *(f"FD, {name}" for name in networks)], rows)

    bytes_ = {
        "as floats": first,
        "rounded to 256 levels": from_uint8(to_uint8(first)),
        "truncated to 256 levels": from_uint8(to_uint8(first, rounding="truncate")),
        "rounded to the data's 17 levels": ((first + 1) * 8).round() / 8 - 1,
    }
    rows = [[name, *(distance(f(test), f(x)) for f in networks.values())] for name, x in bytes_.items()]
    tables["quantisation"] = table(["samples", *(f"FD, {name}" for name in networks)], rows)

    sizes = (n, 60, 40, 20)
    exact = [distance(of_pixels(test[:count]), of_pixels(first[:count])) for count in sizes]
    rows = [["symmetric: FD", *exact]]
    for method in METHODS[1:]:
        line: list[Any] = [f"{method}: relative difference"]
        for count, value in zip(sizes, exact):
            try:
                line.append(distance(of_pixels(test[:count]), of_pixels(first[:count]), method) / value - 1)
            except ArithmeticError as error:
                line.append(f"refused: {error}")
        rows.append(line)
    tables["root"] = table(["root, pixels (64)", *(f"n = {count}" for count in sizes)], rows)

    with torch.no_grad():
        logits = net.head(generated)  # type: ignore[operator]
    spreads = {
        "torch-fidelity: shuffled, 10 splits": inception_score(logits),
        "in order, 10 splits, remainder dropped": inception_score(logits, mode="drop-remainder"),
        "one split": inception_score(logits, splits=1),
        "guided-diffusion: chunks of 5000": inception_score(logits, mode="guided-diffusion"),
    }
    rows = [[name, s.mean, s.std] for name, s in spreads.items()]
    tables["inception-score"] = table(["convention", "score of the digits network", "std over splits"], rows)

    half = min(len(test), len(generated))
    rows = []
    for size in (20,) if quick else (50, 100, 200):
        spread = kernel_distance(of_net(test), generated[:half], subset_size=size)
        rows.append([f"100 subsets of {size}", 1000 * spread.mean, 1000 * spread.std])
    rows.append(["whole sets", 1000 * polynomial_mmd(of_net(test), generated[:half]), "-"])
    biased = polynomial_mmd(of_net(test), generated[:half], estimator="biased")
    rows.append(["whole sets, biased", 1000 * biased, "-"])
    tables["kid"] = table(["KID x 1000", "mean", "std over subsets"], rows)

    rows = []
    for name, settings in {
        "prdc: <, k = 5": {"mode": "prdc"},
        "Kynkaanniemi, ADM: <=, k = 3": {"mode": "kynkaanniemi"},
        "<, k = 3": {"mode": "prdc", "k": 3},
    }.items():
        rows.append([name, *prdc(of_net(test), generated[:half], **settings)])  # type: ignore[arg-type]
    rows.append(["prdc, sides swapped", *prdc(generated[:half], of_net(test))])
    tables["prdc"] = table(["convention", "precision", "recall", "density", "coverage"], rows)
    return tables


# --- photographs -------------------------------------------------------------------------------------------------


def tiles(count: int, seed: int) -> Tensor:
    """Random tiles of 160 pixels of both photographs as levels, (count, 3, 160, 160), uint8; half of them mirrored."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    rng, found = np.random.default_rng(seed), []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        top, left = (int(rng.integers(0, length - CUT + 1)) for length in photograph.shape[:2])
        tile = photograph[top : top + CUT, left : left + CUT]
        found.append(tile[:, ::-1] if rng.random() < 0.5 else tile)
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Images through a JPEG file of that quality (Pillow's defaults otherwise)."""
    found = []
    for image in to_uint8(x).permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        found.append(np.asarray(Image.open(file)))
    return from_uint8(torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2))


def shrunk(levels: Tensor, rule: str) -> Tensor:
    """Tiles of 64 pixels, by several filters, rounded to uint8 as a saved file is."""
    x = from_uint8(levels)
    if rule == "bicubic, antialiased":
        small = resize(x, SIDE, SIDE)
    elif rule == "bilinear, antialiased":
        small = resize(x, SIDE, SIDE, filter="bilinear")
    else:
        mode = rule.split(",")[0]
        corners = {} if mode == "nearest" else {"align_corners": False}
        small = interpolate(x, (SIDE, SIDE), mode=mode, **corners).clamp(-1, 1)  # type: ignore[arg-type]
    return from_uint8(to_uint8(small))


def photographs(count: int, weights: Path | None) -> tuple[dict[str, Table], str]:
    """Tables of resizing and file formats, each change applied to the same tiles, and the network's name."""
    tap = "2048" if weights else "192"

    if weights:
        net = Inception2015.load(weights, tap=tap)
    else:
        torch.manual_seed(0)
        net = Inception2015(tap).fast()

    @torch.no_grad()
    def of_inception(x: Tensor, rule: str = "tf1") -> Tensor:
        prepare = InceptionInput(rule, "uint8-round", "pytorch" if rule == "pytorch" else "tf")
        return torch.cat([net.activations(prepare(part), [tap])[tap] for part in x.split(16)])

    first, second = tiles(count, 1), tiles(count, 2)
    base, other = (shrunk(levels, "bicubic, antialiased") for levels in (first, second))
    reference, independent = of_inception(base), of_inception(other)
    floor, pixel_floor = distance(reference, independent), distance(base.flatten(1), other.flatten(1))
    results: dict[str, Table] = {}

    def moved(x: Tensor) -> list[float]:
        return [
            distance(reference, of_inception(x)) / floor,
            distance(base.flatten(1), x.flatten(1)) / pixel_floor,
        ]

    columns = ["moves Inception FD by", "moves pixel FD by"]
    rules = ["bilinear, antialiased", "nearest", "bilinear, not antialiased", "bicubic, not antialiased"]
    rows: list[list[Any]] = [[rule, *moved(shrunk(first, rule))] for rule in rules]
    results["shrinking"] = table(["images shrunk by", *columns], rows)
    rows = [[f"JPEG {quality}", *moved(jpeg(base, quality))] for quality in (95, 90, 75, 50)]
    results["jpeg"] = table(["images saved as", *columns], rows)

    rows = []
    for rule in RESIZES:
        own, others = (reference, independent) if rule == "tf1" else (of_inception(x, rule) for x in (base, other))
        rows.append([rule, distance(reference, own) / floor, distance(own, others) / floor])
    results["resize"] = table(["rule to 299 pixels", "same images, tf1 against it", "two sets, both by it"], rows)
    name = "Inception-2015" if weights else "randomly initialised Inception-2015 (seed 0)"
    return results, f"{name}, tap {tap}, {count} tiles a set"


# --- the record and the page -------------------------------------------------------------------------------------


def written(page: str, record: dict[str, Any]) -> str:
    """The page with each table in its place."""
    tables = {name: markdown(shown["head"], shown["rows"]) for name, shown in record["tables"].items()}
    return placed(page, "effects", tables | {"end": f"The Inception here: {record['network']}."})


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--weights", type=Path, metavar="FILE", help="published Inception-2015 weights (then tap 2048)")
    made.add_argument("--tiles", type=int, default=200, help="photograph tiles a set (default 200; quick 2)")
    made.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    made.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    made.add_argument("--page", type=Path, metavar="FILE", help="write the tables into this page")
    chosen = made.parse_args(argv)
    if chosen.tiles < 2:
        made.error(f"--tiles {chosen.tiles}: a set needs at least 2")
    if chosen.weights is not None and not chosen.weights.is_file():
        made.error(f"--weights {chosen.weights}: no such file")
    start = time.perf_counter()
    found = digits(chosen.quick)
    pictures, network = photographs(2 if chosen.quick else chosen.tiles, chosen.weights)
    record = {
        "quick": chosen.quick,
        "network": network,
        "tables": found | pictures,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
    }
    for name, shown in record["tables"].items():
        print(f"\n{name}\n{markdown(shown['head'], shown['rows'])}")
    print(f"\n{network}; {record['seconds']} s")
    if chosen.json is not None:
        save(chosen.json, json.dumps(record, indent=1) + "\n")
    if chosen.page is not None:
        save(chosen.page, written(chosen.page.read_text(encoding="utf-8"), record))
    return record


if __name__ == "__main__":
    main()
