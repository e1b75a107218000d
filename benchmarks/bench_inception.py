"""Inception-2015's forward pass: ours made fast against pytorch-fid's network with the same random weights.

All sides in turn in one process on the same prepared images (N, 3, 299, 299). Where pytorch-fid is not installed our
own network as trained (batch norms of their own, no channels-last) takes its place, and the record says so. Float32
features must equal the peer's to 1e-5 relative; bfloat16 is faster, coarser and labelled. Compiling is timed apart.

    python benchmarks/bench_inception.py [--batch 50] [--rounds 5] [--compiled] [--quick] [--json FILE]

The peer: pip install pytorch-fid (in an environment that also has scoreline).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common import finish, load, options, parser, race, table
from scoreline.nn.inception import Inception2015

AIMS = {"float32": 1.7, "float32 compiled": 2.2, "bfloat16": 3.3, "bfloat16 compiled": 4.1}  # times the peer
AGREEMENT = 1e-5
Peer = Callable[[Inception2015], Callable[[Tensor], Tensor]]


def network() -> Inception2015:
    """Random weights and batch statistics of a size that keeps activations alive through all layers."""
    torch.manual_seed(0)
    net = Inception2015()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return net


def pool(net: Inception2015) -> Callable[[Tensor], Tensor]:
    """The forward pass to the features of the FID."""
    return lambda x: net.activations(x, ["2048"])["2048"]


def stand_in(net: Inception2015) -> Callable[[Tensor], Tensor]:
    """Our own network as trained: what is fast about ours is left out."""
    return pool(net)


def pytorch_fid(net: Inception2015) -> Callable[[Tensor], Tensor]:
    """pytorch-fid's network, handed our weights where it would download its own."""
    module = importlib.import_module("pytorch_fid.inception")
    module.load_state_dict_from_url = lambda *_, **__: net.state_dict()
    theirs = module.InceptionV3([3], resize_input=False, normalize_input=False).eval().requires_grad_(False)
    return lambda x: theirs(x)[0].flatten(1)


def find_peer() -> tuple[str, Peer]:
    """pytorch-fid where it can be imported, else the stand-in."""
    try:
        importlib.import_module("pytorch_fid.inception")
    except (ImportError, RuntimeError):  # torchvision raises the latter beside another torch than its own
        return "stand-in", stand_in
    return "pytorch-fid", pytorch_fid


@torch.inference_mode()
def measure(batch: int, side: int, rounds: int, compiled: bool, name: str, peer: Peer) -> dict[str, Any]:
    """Seconds a batch of every side, how far each one's features are from the peer's, and what compiling took."""
    net = network()
    x = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sides = {name: peer(net), "float32": pool(net.fast()), "bfloat16": pool(net.fast(dtype=torch.bfloat16))}
    compile_seconds = {}
    if compiled:
        for label, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
            run = sides[f"{label} compiled"] = pool(net.fast(compile=True, dtype=dtype))
            start = time.perf_counter()
            run(x)
            compile_seconds[label] = time.perf_counter() - start
    timed = race({label: lambda run=run: run(x) for label, run in sides.items()}, rounds)
    exact = timed.values[name]
    return {
        "peer": name,
        "batch": batch,
        "side": side,
        "seconds": timed.summary(name),
        "faster": {label: 1 / timed.ratio(label, name) for label in sides},
        "images_per_second": {label: batch / timed.median(label) for label in sides},
        "relative_difference": {
            label: float(((value - exact).norm(dim=1) / exact.norm(dim=1)).max())
            for label, value in timed.values.items()
        },
        "compile_seconds": compile_seconds,
    }


def main(argv: Sequence[str] | None = None, *, peer: Peer | None = None) -> dict[str, Any]:
    made = parser(__doc__, rounds=5)
    made.add_argument("--batch", type=int, default=50, help="images a batch (default 50; quick 2)")
    made.add_argument("--compiled", action="store_true", help="also through torch.compile (a minute or two each)")
    chosen = options(made, argv)
    batch, side, before = 2 if chosen.quick else chosen.batch, 75 if chosen.quick else 299, load()
    name, found = find_peer() if peer is None else ("stand-in", peer)
    result = measure(batch, side, chosen.rounds, chosen.compiled, name, found)
    print(f"forward to the 2048 features, batches of {batch} x 3 x {side} x {side}; the peer is {name}")
    rows = [
        [
            label,
            result["images_per_second"][label],
            result["faster"][label],
            AIMS.get(label, "-"),
            f"{result['relative_difference'][label]:.1e}",
        ]
        for label in result["seconds"]
    ]
    print(table(["side", "images/s", "times the peer", "aim", "difference"], rows))
    for label, seconds in result["compile_seconds"].items():
        print(f"compiling {label} took {seconds:.0f} s, in no ratio")
    result["equal"] = all(
        result["relative_difference"][label] < AGREEMENT for label in result["seconds"] if label.startswith("float32")
    )
    print(f"float32 features {'equal' if result['equal'] else 'DIFFER FROM'} the peer's, {AGREEMENT:.0e} relative")
    return finish("inception", chosen, result, before)


if __name__ == "__main__":
    main()
