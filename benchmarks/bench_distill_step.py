"""What a training turn of each few-step method costs beyond its network evaluations.

One turn (batch, noise, teacher, student, target, critic, optimizer, moving average) is timed against the same forwards
and backwards of the same networks run alone, on the same inputs. Which those are is recorded from a turn by hooks on
the networks. A 32 px class-conditional U-Net of 6-7M parameters, batch 32; aim: at most 1.10.

    python benchmarks/bench_distill_step.py --methods cd,ict --rounds 5
"""

from __future__ import annotations

import inspect
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

import common
from scoreline.core.artefact import build
from scoreline.core.cost import Call, evaluations
from scoreline.core.errors import InputError
from scoreline.core.method import Method
from scoreline.core.names import lookup
from scoreline.core.noise import Noise
from scoreline.data.pair_store import Pairs
from scoreline.fewstep.distill import networks
from scoreline.fewstep.recipe import few_step_methods
from scoreline.train.loop import Loop

AIM = 1.10
STEPS = 1000
# A turn's share of everything else does not depend on how many evaluations it makes by default.
CHEAP: dict[str, dict[str, Any]] = {"ctm": {"teacher_steps": 2, "points": 8}, "dmd2": {"ratio": 2}}
# Feature networks of distances are not under test.
PLAIN = {"distance": "squared", "premetric": "huber"}


def teacher_of(quick: bool) -> Any:
    net: dict[str, Any] = {"in_shape": [3, 32, 32], "base_channels": 64, "channel_mult": [1, 2, 2], "num_blocks": 2}
    net |= {"attention": [16], "num_classes": 10}
    if quick:
        net = {"in_shape": [3, 8, 8], "width": 16, "depth": 1, "num_classes": 10}
    described = {"kind": "network", "name": "mlp" if quick else "unet", "args": net}
    torch.manual_seed(0)
    schedule = {"kind": "schedule", "name": "edm", "args": {}}
    model = build({"kind": "denoiser", "name": "preconditioned", "args": {"net": described, "schedule": schedule}})
    with torch.no_grad():
        for parameter in model.parameters():  # layers that start at zero would pass no gradient on
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model


def method_of(name: str, teacher: Any) -> Method:
    cls: Any = lookup("method", name)
    known = inspect.signature(cls).parameters
    settings = {key: value for key, value in (PLAIN | CHEAP.get(name, {})).items() if key in known}
    settings |= {"steps": STEPS} if "steps" in known else {}
    settings |= {"teacher": teacher} if "teacher" in known else {}
    method: Method = cls(cls.student_of(teacher), **settings)
    return method


def data_of(name: str, shape: tuple[int, ...], batch: int) -> list[Any]:
    """Data sets to try: methods take images, or pairs, and say so when the first batch comes."""
    noise = Noise(0).at(range(2 * batch), shape).normal()
    image, label = (0.5 * noise).clamp(-1, 1), torch.arange(2 * batch) % 10
    return [Pairs(noise, image, label, num_classes=10), (image, label)]


def loop_of(name: str, method: Method, shape: tuple[int, ...], batch: int) -> Loop:
    """A loop over whatever data the method takes; one turn was made."""
    reasons = []
    for data in data_of(name, shape, batch):
        loop = Loop(
            method, data, batch_size=batch, seed=0, device=torch.device("cpu"), autocast=None, accumulate=1, ema=0.999,
            skip_nonfinite=0,
        )  # fmt: skip
        loop.train_mode()
        try:
            loop.turn(0)
        except (InputError, KeyError) as error:
            reasons.append(str(error))
            continue
        return loop
    raise SystemExit(f"{name}: {'; '.join(reasons)}")


def detached(value: Any) -> Any:
    """An argument without its graph; what asked for gradients asks again."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    return value


def replay(calls: Sequence[Call], nets: dict[str, nn.Module]) -> None:
    """The same forwards and backwards, alone."""
    asked = [p for net in nets.values() for p in net.parameters() if p.requires_grad]
    for net in nets.values():
        net.zero_grad(set_to_none=True)
    for call in calls:
        if not call.weights:
            nets[call.name].requires_grad_(False)
        with torch.set_grad_enabled(call.graph):
            out = getattr(nets[call.name], call.method)(*map(detached, call.args), **call.kwargs)
        raw = out[0] if isinstance(out, (tuple, list)) else out
        if call.back and raw.requires_grad:
            raw.backward(torch.ones_like(raw))
        for parameter in asked:
            parameter.requires_grad_(True)


def measure(name: str, chosen: Any) -> dict[str, Any]:
    teacher = teacher_of(chosen.quick)
    batch = 4 if chosen.quick else chosen.batch
    method = method_of(name, teacher)
    loop = loop_of(name, method, tuple(teacher.shape), batch)
    nets = networks(method)
    # Updates that are not made on every turn come round once in so many.
    cycle = math.lcm(*(update.every for update in method.updates), *(update.unless or 1 for update in method.updates))
    with evaluations(nets, calls=True) as counted:
        for step in range(cycle):
            loop.turn(cycle + step)
    turn = iter(range(2 * cycle, 10**9))

    def turns() -> None:
        for _ in range(cycle):
            loop.turn(next(turn))

    race = common.race(
        {"alone": lambda: replay(counted.calls, nets), "turn": turns},
        chosen.rounds, warmup=1, clock=time.process_time if chosen.cpu_time else time.perf_counter,
    )  # fmt: skip
    ratio = race.ratio("turn", "alone")
    made = [f"{call.name} {'forward, backward' if call.back else 'forward'}" for call in counted.calls]
    return {
        "method": name, "turn": race.median("turn") / cycle, "alone": race.median("alone") / cycle, "ratio": ratio,
        "calls": made, "turns": cycle, "forward": counted.forward / batch / cycle,
        "backward": counted.backward / batch / cycle,
        "parameters": sum(p.numel() for p in teacher.parameters()), "batch": batch, "aim": AIM, "met": ratio <= AIM,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = common.parser(__doc__, rounds=7)
    made.add_argument("--methods", default=None, help="separated by commas (default: all few-step methods)")
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--cpu-time", action="store_true", help="the processor's seconds, on a machine that others use")
    chosen = common.options(made, argv)
    names = few_step_methods() if chosen.methods is None else chosen.methods.split(",")
    before = common.load()
    rows = []
    for name in names:
        rows.append(measure(name, chosen))
        print(f"{name}: {rows[-1]['ratio']:.3f}", flush=True)
    head = ["method", "forwards", "backwards", "alone, s", "turn, s", "turn/alone"]
    cells = [[r["method"], r["forward"], r["backward"], r["alone"], r["turn"], r["ratio"]] for r in rows]
    print(common.table(head, cells))
    return common.finish("bench_distill_step", chosen, {"cpu_time": chosen.cpu_time, "rows": rows}, before)


if __name__ == "__main__":
    main()
