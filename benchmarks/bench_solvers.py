"""How near samplers come to the converged ODE for 5 to 20 network evaluations: ours beside diffusers'.

Three models: the shipped `digits` (EDM) and `digits-eps` (a table of betas), and a mixture of Gaussians whose noise
prediction is exact (VP). Every sampler runs on the same noise with each of the same four grids; the grid with the least
median error is chosen on noise A and reported on noise B. The error of an image is its root mean square difference to
the image that the ODE leads to from the same noise. Theirs are diffusers' schedulers on the same denoiser, their step
arithmetic untouched, at the same levels (`scoreline.bridges.diffusers_samplers`). Frechet distances with 95 %
intervals stand beside the errors without an aim: at 8x8 they reward blur.

What was searched for one model and budget stands apart and does not count: the plans of `scoreline search` in --plans,
which saw neither noise and carry the commands that made them, and any other setting (--also).

    python benchmarks/bench_solvers.py [--nfe 5,8,10,15,20] [--also SPEC,...] [--plans DIR] [--threads 2] [--quick]
        [--json FILE]
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from common import finish, load, options, parser, peer_module, table
from scoreline import load as load_model
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.moments import Moments
from scoreline.core.names import lookup, names
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.schedules import VP
from scoreline.evaluate.compare import rmse_per_image
from scoreline.evaluate.progress import progress
from scoreline.evaluate.protocols import features_of, pick_encoder
from scoreline.evaluate.specs import check_fit, labels_for, make_sampler
from scoreline.metrics.frechet_intervals import frechet_interval
from scoreline.samplers import calibrations
from scoreline.samplers.model_statistics import ModelStatistics

AIM, AIMED = 0.7, (5, 10)
SEED_A, SEED_B = 101, 202
PLANS = Path(__file__).resolve().parent / "plans"
# Steps of the exact ODE, within 3e-6 of 1000 steps. On a table of levels all are visited; 300 of them are 1e-3 off.
FINE = 256
# Settings of the listed samplers worth an arm of their own; every sampler takes part with its defaults as well.
VARIANTS = (
    "deis:degree=2", "deis:family=rhoab", "deis:family=rhoab:degree=2", "deis:family=ipndm", "deis:family=log-rho",
    "deis:family=log-rho:degree=2", "deis:family=rhork",
    "dpm-solver++3m:variant=released", "dpm-solver-v3:solver_order=3", "dpm-solver-v3:solver_order=3:pseudo=true",
    "dpm-solver-v3:corrector=false", "pndm:kind=s", "unipc:solver_order=3",
    "unipc:solver=bh1",
)  # fmt: skip
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM-Solver++(2M)": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "DPM-Solver++(3M)": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "UniPC(2)": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "UniPC(3)": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "DEIS(2)": ("DEISMultistepScheduler", {"solver_order": 2}),
    "DEIS(3)": ("DEISMultistepScheduler", {"solver_order": 3}),
}
QUICK = ("ddim", "heun", "dpm-solver++2m")
Make = Callable[[int, str], Sampler]


@dataclass
class Subject:
    """A model, its four grids, and what Frechet distances on it are measured in."""

    name: str
    model: Denoiser
    grids: tuple[str, ...]
    features: Callable[[Tensor], Tensor]
    real: Moments
    known: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def images(
        self, sampler: Sampler, seed: int, count: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """The first `count` images of a seed and their cost."""
        model = self.model.given(labels_for(range(count), self.model.num_classes))
        sample = sampler(model, Noise(seed).at(range(count), model.shape, dtype=dtype))
        return (sample.x.clamp(-1, 1) if len(model.shape) == 3 else sample.x), sample.nfe

    def truth(self, seed: int, count: int) -> Tensor:
        """The images that the ODE leads to, made once."""
        if (seed, count) not in self.known:
            self.known[seed, count] = self.images(exact(self.model), seed, count, torch.float64)[0]
        return self.known[seed, count]


def mixture(*, calibrated: bool = False) -> Subject:
    """Eight Gaussians in 16 dimensions, of spread 0.1 to 0.3 around centres of size about 1.

    DPM-Solver-v3 wants statistics of its model, which the shipped ones have; here they are estimated, if asked for.
    """
    generator = torch.Generator().manual_seed(7)
    means = torch.randn(8, 16, generator=generator) * 0.8
    spreads = torch.linspace(0.1, 0.3, 8)
    model = Mixture(VP(), means, spreads**2)
    which = torch.randint(8, (20_000,), generator=generator)
    points = means[which] + spreads[which, None] * torch.randn(20_000, 16, generator=generator)
    if calibrated:
        statistics = ModelStatistics.calibrate(model, (points, None), samples=1024, batch_size=1024)
        calibrations.save("dpm-solver-v3", model, statistics)
    return Subject("mixture", model, ("time", "karras", "logsnr", "quadratic"), lambda x: x, Moments.of(points))


def digits(name: str) -> Subject:
    """A shipped model; Frechet distances in the features of the digits network, against the whole set."""
    model, images = load_model(name), load_images("digits")
    encoder = pick_encoder("auto", images)
    real = Moments.of(features_of(encoder, images.batch(range(len(images))).image))
    last = "trailing" if model.schedule.known is not None else "quadratic"
    return Subject(name, model, ("time", "karras", "logsnr", last), lambda x: features_of(encoder, x), real)


def ours(quick: bool) -> tuple[dict[str, Make], dict[str, str]]:
    """Every deterministic solver of the table by its spec, and why others are left out."""
    arms: dict[str, Make] = {}
    left: dict[str, str] = {}
    for spec in [*names("sampler"), *VARIANTS]:
        name = spec.partition(":")[0]
        if quick and spec not in QUICK:
            continue
        settings = inspect.signature(lookup("sampler", name).__init__).parameters
        try:
            sampler = make_sampler(spec, steps=20)
        except InputError as error:
            left[spec] = str(error)
            continue
        if "of" in settings or "plan" in settings:
            left[spec] = "stands around another sampler, or carries a plan"
        elif sampler.stochastic or sampler.order is None:
            left[spec] = "adds noise"
        else:
            arms[spec] = _ours(spec)
    return arms, left


def _ours(spec: str) -> Make:
    joined = spec + ("" if "grid=" in spec else ":grid={}")
    return lambda nfe, grid: make_sampler(joined.format(grid), nfe=nfe)


def planned_arms(model: str, folder: Path) -> dict[str, Make]:
    """The searched plans of a model, files MODEL-steps-NFE.json and MODEL-solver-NFE.json, each at its own budget."""
    arms: dict[str, Make] = {}
    for space, spec in (("steps", "planned:of={of}:plan="), ("solver", "usf:plan=")):
        files = {int(file.stem.rpartition("-")[2]): file for file in sorted(folder.glob(f"{model}-{space}-*.json"))}
        if not files:
            continue
        content = {nfe: json.loads(file.read_text(encoding="utf-8")) for nfe, file in files.items()}
        of = {str(found.get("card", {}).get("sampler", "")) for found in content.values()}
        if len(of) > 1:
            raise InputError("plans", sorted(of), f"the plans {model}-{space} are of one sampler")
        spec = spec.format(of=of.pop())

        def make(nfe: int, grid: str, spec: str = spec, files: dict[int, Path] = files) -> Sampler:
            if nfe not in files:
                raise InputError("nfe", nfe, f"plans were searched for {', '.join(map(str, files))} evaluations")
            return make_sampler(f"{spec}{files[nfe]}", nfe=nfe)

        arms[spec.partition(":plan")[0]] = make
    return arms


def exact(model: Denoiser) -> Sampler:
    """The sampler that stands for the ODE: steps fine enough, down to the cleanest level.

    The grid "trailing" leaves out the cleanest levels of a table; with 192 steps it ends 0.003 beside the ODE.
    """
    known = model.schedule.known
    grid, steps = ("logsnr", FINE) if known is None else ("time", len(known))
    return make_sampler(f"dpm-solver++3m:grid={grid}", steps=steps)


def diffusers_arms(quick: bool) -> dict[str, Make]:
    """diffusers' schedulers on our denoisers."""
    peer_module("diffusers")
    from scoreline.bridges.diffusers_samplers import DiffusersSampler

    chosen = {name: value for name, value in PEERS.items() if not quick or name in ("DDIM", "UniPC(2)")}
    return {
        name: (lambda nfe, grid, c=cls, s=settings: DiffusersSampler(c, s, nfe=nfe, grid=grid))
        for name, (cls, settings) in chosen.items()
    }


def measure(
    subject: Subject,
    arms: Mapping[str, Make],
    budgets: Sequence[int],
    counts: tuple[int, int],
    step: Callable[..., Any],
    grids: Sequence[str] | None = None,
) -> dict[str, dict[int, dict[str, Any]]]:
    """Errors and Frechet distances of every arm at every budget; what cannot run there is left out with the reason."""
    truth = {seed: subject.truth(seed, count) for seed, count in zip((SEED_A, SEED_B), counts, strict=True)}
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name, make in arms.items():
        found[name] = {}
        for nfe in budgets:
            tried: dict[str, float] = {}
            reason = ""
            for grid in grids or subject.grids:
                try:
                    check_fit(make(nfe, grid), subject.model)
                    images, _ = subject.images(make(nfe, grid), SEED_A, counts[0])
                except InputError as error:
                    reason = str(error)
                    continue
                error_a = rmse_per_image(images, truth[SEED_A]).median()
                tried[grid] = float(error_a) if error_a.isfinite() else float("inf")
            if not tried:
                found[name][nfe] = {"reason": reason}
                continue
            grid = min(tried, key=lambda g: tried[g])
            images, spent = subject.images(make(nfe, grid), SEED_B, counts[1])
            errors = rmse_per_image(images, truth[SEED_B])
            if not images.isfinite().all():
                found[name][nfe] = {"reason": f"images of noise B are not finite on grid {grid}"}
                continue
            low, middle, high = torch.quantile(errors, torch.tensor([0.25, 0.5, 0.75]).to(errors)).tolist()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # few images: said once, on top
                groups = min(20, counts[1] // 3)
                distance, interval = frechet_interval(subject.real, subject.features(images.float()), groups=groups)
            found[name][nfe] = {
                "grid": grid, "rmse": middle, "quartiles": [low, high], "chosen_on": tried, "nfe": spent,
                "frechet": distance, "interval": [interval.low, interval.high],
            }  # fmt: skip
            step(1, f"{subject.name} {name} {nfe}")
    return found


def best(found: Mapping[str, Mapping[int, Mapping[str, Any]]], nfe: int) -> tuple[str, float] | None:
    """The arm of least error at a budget."""
    ran = {name: rows[nfe]["rmse"] for name, rows in found.items() if "rmse" in rows.get(nfe, {})}
    name = min(ran, key=lambda n: ran[n]) if ran else None
    return None if name is None else (name, ran[name])


def shown(title: str, found: Mapping[str, Mapping[int, Mapping[str, Any]]], budgets: Sequence[int], what: str) -> None:
    rows = []
    for name, at in sorted(found.items(), key=lambda item: item[1].get(budgets[-1], {}).get("rmse", float("inf"))):
        cells: list[object] = [name]
        for nfe in budgets:
            value = at[nfe]
            if "rmse" not in value:
                cells.append("-")
            elif what == "rmse":
                cells.append(f"{value['rmse']:.2e} {value['grid']}")
            else:
                cells.append(f"{value['frechet']:.3g} [{value['interval'][0]:.3g}, {value['interval'][1]:.3g}]")
        rows.append(cells)
    print(table([title, *(f"NFE {nfe}" for nfe in budgets)], rows))


@torch.no_grad()
def main(
    argv: Sequence[str] | None = None, peers: Callable[[bool], dict[str, Make]] = diffusers_arms
) -> dict[str, Any]:
    made = parser(__doc__, rounds=1)
    made.add_argument("--nfe", default="5,8,10,15,20", help="budgets (default 5,8,10,15,20)")
    made.add_argument("--models", default="digits,digits-eps,mixture", help="default digits,digits-eps,mixture")
    made.add_argument("--also", default="", metavar="SPEC,...", help="searched or tuned samplers, shown apart")
    made.add_argument("--plans", type=Path, default=PLANS, metavar="DIR", help="searched plans, shown apart")
    made.add_argument("--images", type=int, default=200, help="images of noise B; a fifth of them on noise A")
    chosen = options(made, argv)
    budgets = [5] if chosen.quick else [int(text) for text in chosen.nfe.split(",")]
    counts = (2, 12) if chosen.quick else (max(chosen.images // 5, 2), chosen.images)
    subjects = ["mixture"] if chosen.quick else chosen.models.split(",")
    mine, left = ours(chosen.quick)
    sides = {"ours": mine, "theirs": peers(chosen.quick)}
    sides["apart"] = {spec: _ours(spec) for spec in chosen.also.split(",") if spec}
    before, result = load(), {"budgets": budgets, "images": counts, "left_out": left, "models": {}}
    plans = {name: planned_arms(name, chosen.plans) for name in subjects}
    total = (sum(map(len, plans.values())) + sum(map(len, sides.values())) * len(subjects)) * len(budgets)
    # What is estimated for the mixture is nobody's to find later.
    kept = tempfile.TemporaryDirectory(prefix="scoreline-bench-")
    os.environ["SCORELINE_CACHE"] = kept.name
    with kept, progress("solvers", total, quiet=False) as step:
        for name in subjects:
            subject = mixture(calibrated=not chosen.quick) if name == "mixture" else digits(name)
            if chosen.quick:
                subject.grids = subject.grids[1:3]
            found = {side: measure(subject, arms, budgets, counts, step) for side, arms in sides.items()}
            # A plan brings its own levels.
            found["apart"] |= measure(subject, plans[name], budgets, counts, step, ("plan",))
            summary: dict[str, Any] = {"grids": subject.grids, **found, "ratios": {}}
            for nfe in budgets:
                first, second = best(found["ours"], nfe), best(found["theirs"], nfe)
                if first and second:
                    ratio = first[1] / second[1]
                    summary["ratios"][nfe] = {"ours": first[0], "theirs": second[0], "ratio": ratio}
            result["models"][name] = summary
    print(f"median RMSE to the converged ODE over {counts[1]} images, grid chosen on {counts[0]} others")
    for name, summary in result["models"].items():
        for side in ("ours", "theirs", "apart"):
            if summary[side]:
                shown(f"{name}, {side}", summary[side], budgets, "rmse")
        for nfe, row in summary["ratios"].items():
            aim = f" (aim {AIM})" if nfe in AIMED else ""
            print(f"{name} at {nfe}: ours {row['ours']}, theirs {row['theirs']}, ratio {row['ratio']:.2f}{aim}")
        print()
    print("Frechet distances [95 % interval for the draw of images], no aim: at 8x8 they reward blur")
    for name, summary in result["models"].items():
        shown(name, {**summary["ours"], **summary["theirs"], **summary["apart"]}, budgets, "frechet")
        print()
    for name, summary in result["models"].items():
        for spec, at in {**summary["ours"], **summary["theirs"], **summary["apart"]}.items():
            for nfe, value in at.items():
                if "reason" in value:
                    print(f"did not run: {name}, {spec} at {nfe}: {value['reason']}")
    for spec, reason in left.items():
        print(f"left out: {spec}: {reason}")
    aimed = [row["ratio"] for s in result["models"].values() for nfe, row in s["ratios"].items() if nfe in AIMED]
    result["median_ratio"] = median(aimed) if aimed else None
    return finish("solvers", chosen, result, before)


if __name__ == "__main__":
    main()
