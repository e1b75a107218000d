"""What a sampler costs besides the network: from network output to next network input, ours against diffusers'.

Both sides run the same levels at 16x3x32x32 around a network that returns a ready tensor at once. Ours is
`Sampler.step` on a `Preconditioned` eps-model of the linear DDPM table; theirs is `scale_model_input`, the same network
and `scheduler.step`. What is done once a run (coefficients, `set_timesteps`) and the drawing of noise are timed apart,
"floor" is one linear combination of two tensors. The results of both sides are compared as well.

    python benchmarks/bench_sampler_step.py [--steps 20] [--rounds 40] [--threads 2] [--quick] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common import finish, load, options, parser, peer_module, race, table
from scoreline.core.noise import Noise
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import Discrete
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.deis import DEIS
from scoreline.samplers.dpm_solver_pp import DPMSolverPP2M
from scoreline.samplers.unipc import UniPC

SHAPE = (16, 3, 32, 32)
AIMS = {"ddim": 3.0, "dpm-solver++2m": 3.0, "deis": 5.0, "unipc": 5.0}
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddim": DDIM,
    "dpm-solver++2m": DPMSolverPP2M,
    "deis": partial(DEIS, family="log-rho", degree=1, grid="trailing"),
    "unipc": partial(UniPC, solver_order=2, grid="trailing"),
}
# Where a run of theirs does not end at the clean image: the entry of the table at which it ends.
ENDS = {"deis": 0.0}


class Ready(nn.Module):
    """A network that costs nothing: it returns the tensor it was given."""

    num_classes = None

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.in_shape = tuple(out.shape[1:])
        self.out = nn.Parameter(out, requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.out

    def trace(self, x: Tensor, t: Tensor, cond: Any, plan: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.out, {}


class Side(NamedTuple):
    """One side of the race: `prepare` is done once a run, `run` are all its steps."""

    prepare: Callable[[], Any]
    run: Callable[[Any], Tensor]


def our_side(name: str, net: Ready, x: Tensor, steps: int) -> Side:
    """All steps of our sampler of that name from `x`."""
    sampler = SAMPLERS[name](steps=steps)
    denoiser = Preconditioned(net, Discrete(), kind="eps").eval()

    def prepare() -> Rows:
        times = sampler.times(denoiser.schedule)
        times[-1] = ENDS.get(name, times[-1])
        return sampler.coefficients(denoiser.schedule, times)

    def run(rows: Rows) -> Tensor:
        state = State(x)
        for row in rows:
            state = sampler.step(denoiser, state, row)
        return state.x

    return Side(prepare, run)


def diffusers_side(name: str, net: Ready, x: Tensor, steps: int) -> Side:
    """The same levels under diffusers' scheduler."""
    diffusers = peer_module("diffusers")
    common = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "trailing"}
    scheduler = {
        "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False, **common),
        "dpm-solver++2m": lambda: diffusers.DPMSolverMultistepScheduler(solver_order=2, **common),
        "deis": lambda: diffusers.DEISMultistepScheduler(solver_order=2, **common),
        "unipc": lambda: diffusers.UniPCMultistepScheduler(solver_order=2, **common),
    }[name]()

    def prepare() -> Any:
        scheduler.set_timesteps(steps)
        return scheduler.timesteps

    def run(times: Any) -> Tensor:
        sample = x
        for t in times:
            out = net(scheduler.scale_model_input(sample, t), t)
            sample = scheduler.step(out, t, sample, return_dict=False)[0]
        return sample

    return Side(prepare, run)


@torch.no_grad()
def main(argv: Sequence[str] | None = None, peer: Callable[..., Side] = diffusers_side) -> dict[str, Any]:
    made = parser(__doc__, rounds=40)
    made.add_argument("--steps", type=int, default=20, help="steps of a run (default 20)")
    chosen = options(made, argv)
    steps = 5 if chosen.quick else chosen.steps
    generator = torch.Generator().manual_seed(0)
    x, out = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    net, before = Ready(out), load()
    result: dict[str, Any] = {"shape": list(SHAPE), "steps": steps, "samplers": {}}
    rows = []
    for name in SAMPLERS:
        ours, theirs = our_side(name, net, x, steps), peer(name, net, x, steps)
        sides = {"ours": ours.run, "peer": theirs.run, "floor": lambda _: _floor(x, out, steps)}
        prepare = {"ours": ours.prepare, "peer": theirs.prepare, "floor": lambda: None}
        timed = race(sides, chosen.rounds, prepare=prepare, warmup=2)
        once = race({"ours": ours.prepare, "peer": theirs.prepare}, min(chosen.rounds, 10))
        difference = float((timed.values["ours"] - timed.values["peer"]).abs().max() / timed.values["peer"].abs().max())
        micro = {side: timed.median(side) / steps * 1e6 for side in sides}
        result["samplers"][name] = {
            "microseconds": micro,
            "ratio": timed.ratio("peer", "ours"),
            "aim": AIMS[name],
            "relative_difference": difference,
            "once_milliseconds": {side: once.median(side) * 1e3 for side in ("ours", "peer")},
        }
        rows.append([name, *micro.values(), timed.ratio("peer", "ours"), AIMS[name], f"{difference:.0e}"])
    print(f"sampler cost a step without the network, {'x'.join(map(str, SHAPE))}, {steps} steps, microseconds")
    print(table(["sampler", "ours", "diffusers", "floor", "ratio", "aim", "difference"], rows))
    draws = Noise(0).at(range(SHAPE[0]), SHAPE[1:])
    noise = race({"ours": lambda: draws.normal(1), "peer": lambda: torch.randn(SHAPE)}, chosen.rounds)
    result["noise_microseconds"] = {side: noise.median(side) * 1e6 for side in ("ours", "peer")}
    shown = result["noise_microseconds"]
    print(f"drawing noise: {shown['ours']:.0f} (a stream an image), torch.randn {shown['peer']:.0f} microseconds")
    for name, figures in result["samplers"].items():
        once_ms = figures["once_milliseconds"]
        print(f"once a run, {name}: ours {once_ms['ours']:.2f}, diffusers {once_ms['peer']:.2f} milliseconds")
    return finish("sampler_step", chosen, result, before)


def _floor(x: Tensor, out: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        x = (x * 0.9).add_(out, alpha=0.1)
    return x


if __name__ == "__main__":
    main()
