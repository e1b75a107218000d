"""Our U-Net against diffusers' `UNet2DModel` at equal multiply-accumulates and equal attention resolutions.

Two pairs: "ddpm", the same architecture on both sides (DDPM's CIFAR-10 network, parameter for parameter), and "edm",
EDM's three-level design against the closest settings of the peer. Forward without gradients, then forward and backward,
each in turn in one process; with --compiled both sides also under `torch.compile`, whose own time is printed apart and
takes minutes. The ratio is that of images per second.

    python benchmarks/bench_unet.py [--base 128] [--batch 8] [--compiled] [--rounds 7] [--quick] [--json FILE]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common import finish, load, options, parser, peer_module, race, table
from scoreline.core.cost import count_macs
from scoreline.nn.unet import UNet

SIZE, ATTENTION = 32, 16
AIM = 1.4  # eager forward
# Our settings, and the peer's channels as multiples of ours: MACs agree within 2 % at every width.
DESIGNS: dict[str, dict[str, Any]] = {
    "ddpm": {"channel_mult": (1, 2, 2, 2), "resampling": "conv", "decoder_attention": "each"},
    "edm": {"channel_mult": (2, 2, 2), "resampling": "block", "decoder_attention": "last"},
}
Call = Callable[[], Tensor]


def our_net(design: str, base: int) -> UNet:
    """Our network of that design."""
    return UNet(in_shape=(3, SIZE, SIZE), base_channels=base, num_blocks=2, attention=(ATTENTION,), **DESIGNS[design])


def diffusers_net(design: str, base: int) -> nn.Module:
    """The peer's network of that design, its output the plain tensor."""
    diffusers = peer_module("diffusers")
    diffusers.utils.logging.set_verbosity_error()
    widths = tuple(base * mult for mult in DESIGNS[design]["channel_mult"])
    here = [SIZE >> level == ATTENTION for level in range(len(widths))]
    inner = diffusers.UNet2DModel(
        sample_size=SIZE,
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in here),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(here)),
        attention_head_dim=widths[here.index(True)],  # a single head, as ours
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_num_groups=min(32, base // 4),
    )
    return Plain(inner, [SIZE >> level for level, attends in enumerate(here) if attends])


class Plain(nn.Module):
    """A network of diffusers called like ours."""

    def __init__(self, inner: nn.Module, attention: list[int]) -> None:
        super().__init__()
        self.inner, self.attention = inner, attention

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner(x, t, return_dict=False)[0]


def forward(net: Callable[..., Tensor], x: Tensor, t: Tensor) -> Call:
    """One forward pass without gradients, a single time for the batch."""

    def run() -> Tensor:
        with torch.no_grad():
            return net(x, t)

    return run


def forward_backward(module: nn.Module, net: Callable[..., Tensor], x: Tensor, t: Tensor) -> Call:
    """One pass forwards and backwards, a time for each image."""
    times = t.expand(len(x)).contiguous()

    def run() -> Tensor:
        module.zero_grad(set_to_none=True)
        loss = net(x, times).square().mean()
        loss.backward()
        return loss.detach()

    return run


def measure(pair: dict[str, nn.Module], batch: int, rounds: int, *, compiled: bool) -> dict[str, Any]:
    """Images per second of both sides and their ratio, by pass; under `torch.compile` with what compiling took."""
    x = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    t = torch.full((1,), 500.0)
    result: dict[str, Any] = {}
    for task in ("forward", "forward+backward"):
        runs, seconds = {}, {}
        for side, module in pair.items():
            module.train(task != "forward")
            net = torch.compile(module) if compiled else module
            runs[side] = forward(net, x, t) if task == "forward" else forward_backward(module, net, x, t)
            start = time.perf_counter()
            runs[side]()
            seconds[side] = time.perf_counter() - start
        timed = race(runs, rounds)
        result[task] = {
            "images_per_second": {side: batch / timed.median(side) for side in runs},
            "best_images_per_second": {side: batch / timed.best(side) for side in runs},
            "ratio": timed.ratio("peer", "ours"),
        }
        if compiled:
            result[task]["compile_seconds"] = seconds
    return result


def main(argv: Sequence[str] | None = None, peer: Callable[[str, int], nn.Module] = diffusers_net) -> dict[str, Any]:
    made = parser(__doc__, rounds=7)
    made.add_argument("--base", type=int, default=128, help="channels of the first convolution (default 128)")
    made.add_argument("--batch", type=int, default=8, help="images a call (default 8)")
    made.add_argument("--design", choices=sorted(DESIGNS), action="append", help="only this pair; may be repeated")
    made.add_argument("--compiled", action="store_true", help="also under torch.compile (C++ compiler; minutes)")
    chosen = options(made, argv)
    base, batch = (16, 1) if chosen.quick else (chosen.base, chosen.batch)
    before = load()
    result: dict[str, Any] = {"base_channels": base, "batch": batch, "aim_eager_forward": AIM, "designs": {}}
    rows = []
    for design in chosen.design or list(DESIGNS):
        torch.manual_seed(0)
        pair = {"ours": our_net(design, base), "peer": peer(design, base)}
        x, t = torch.zeros(1, 3, SIZE, SIZE), torch.full((1,), 500.0)
        macs = {side: count_macs(net.eval(), x, t) for side, net in pair.items()}
        attention = {"ours": [ATTENTION], "peer": getattr(pair["peer"], "attention", [ATTENTION])}
        figures: dict[str, Any] = {
            "macs": macs,
            "macs_difference": macs["ours"] / macs["peer"] - 1,
            "parameters": {side: sum(p.numel() for p in net.parameters()) for side, net in pair.items()},
            "attention_resolutions": attention,
        }
        print(f"{design}: GMACs an image {macs['ours'] / 1e9:.4f} and {macs['peer'] / 1e9:.4f}", end=" ")
        print(f"({100 * figures['macs_difference']:+.2f} %), attention at {attention['ours']} and {attention['peer']}")
        if abs(figures["macs_difference"]) > 0.02 or attention["ours"] != attention["peer"]:
            raise SystemExit(f"{design}: no fair pair at base {base}: MACs must agree within 2 %, attention exactly")
        for mode in ("eager", "compiled") if chosen.compiled else ("eager",):
            figures[mode] = measure(pair, batch, chosen.rounds, compiled=mode == "compiled")
            for task, f in figures[mode].items():
                each = f["images_per_second"]
                aim = AIM if (mode, task) == ("eager", "forward") else "-"
                compiling = "/".join(f"{s:.0f} s" for s in f.get("compile_seconds", {}).values()) or "-"
                rows.append([f"{design} {mode} {task}", each["ours"], each["peer"], f["ratio"], aim, compiling])
        result["designs"][design] = figures
    print(f"images per second, batch {batch}, base {base}; first call when compiled: ours/diffusers")
    print(table(["pair", "ours", "diffusers", "ratio", "aim", "compiling"], rows))
    return finish("unet", chosen, result, before)


if __name__ == "__main__":
    main()
