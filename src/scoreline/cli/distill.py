"""`scoreline distill METHOD`: a student that makes an image in one to four evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from scoreline.core.names import TABLE

TAKES_COMMAND = TAKES_QUIET = True
EXAMPLE = "scoreline distill cd --teacher digits --out runs/cd"

# Methods, and papers of several stages, whose presets stand under names of their own.
_PRESETS = (Path(__file__).resolve().parent.parent / "presets").glob("*-digits.yaml")
_METHODS = sorted(
    {name for name, path in TABLE["method"].items() if path.startswith("scoreline.fewstep.")}
    | {path.stem.removesuffix("-digits") for path in _PRESETS}
)


def run(
    method: str,
    teacher: str | None = None,
    preset: str = "digits",
    out: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    data: str | None = None,
    pairs: str | None = None,
    pair_count: int | None = None,
    processes: int = 1,
    share: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    dtype: Literal["float32", "bf16", "fp16"] = "float32",
    accumulate: int = 1,
    checkpoint_every: int = 500,
    sample_every: int | None = None,
    skip_nonfinite: int = 0,
    dry_run: bool = False,
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a student of a model. The same command again goes on from the last checkpoint.

    Args:
        method: METHODS; or a .yaml file of the form of the presets.
        teacher: built-in name or path of a model, or a pipeline folder; nothing takes the preset's.
        preset: settings to start from, digits (a minute or two on two cores) or cifar10 (a GPU, the paper's settings).
        out: folder of the run; nothing takes runs/<method>-<preset>.
        steps: training steps of every stage instead of the preset's.
        batch_size: images a step, instead of the preset's.
        lr: peak learning rate instead of the preset's.
        seed: seed instead of the preset's.
        data: data set instead of the preset's.
        pairs: folder of pairs from scoreline pairs, for methods that learn from them; nothing makes them.
        pair_count: how many pairs are made, instead of the preset's.
        processes: processes that make pairs at once, or train the students of a partition.
        share: train this one student of a partition, 0 to K-1, and join those that are there (for several machines).
        device: where to run; auto takes CUDA or MPS where there is one.
        dtype: precision; fp16 on CUDA only.
        accumulate: parts into which a batch is cut, to save memory.
        checkpoint_every: steps between checkpoints.
        sample_every: steps between sample grids; nothing takes the preset's.
        skip_nonfinite: how many non-finite updates may be left out before the run stops.
        dry_run: print the resolved run and stop.
    """
    from scoreline.core.load import load
    from scoreline.fewstep.distill import distill
    from scoreline.fewstep.recipe import read_recipe

    changes = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed, "data": data}
    changes = {key: value for key, value in changes.items() if value is not None}
    from_file = method.endswith((".yaml", ".yml"))
    recipe = read_recipe(method, preset=None if from_file else preset, teacher=teacher, changes=changes)
    result = distill(
        recipe, out, pairs=pairs, pair_count=pair_count, processes=processes, share=share, device=device,
        precision=dtype, accumulate=accumulate, checkpoint_every=checkpoint_every, sample_every=sample_every,
        skip_nonfinite=skip_nonfinite, dry_run=dry_run, command=command, quiet=quiet,
    )  # fmt: skip
    strengths = result.get("guidance_weight") or {}
    if strengths.get("interval") and result["picture"] and load(result["model"]).num_classes is not None:
        from scoreline.report.guidance_report import write_guidance_report

        result["page"] = str(write_guidance_report(result["model"], result["folder"], recipe.teacher))
    return result


# The help lists the methods that there are.
run.__doc__ = (run.__doc__ or "").replace("METHODS", f"one of {', '.join(_METHODS)}")


def show(result: dict[str, Any]) -> None:
    if "resolved" in result:
        import json

        print(json.dumps(result["resolved"], indent=1, default=str))
        return
    for stage in result["stages"]:
        losses = ", ".join(f"{name} {value:.4g}" for name, value in stage["losses"].items())
        told = "".join(f", {name} {value:.4g}" for name, value in stage["measured"].items())
        print(f"{stage['name']}: {stage['steps']} steps, {losses or 'nothing left to do'}{told}: {stage['model']}")
    if result.get("missing"):
        left = ", ".join(map(str, result["missing"]))
        print(f"students {left} are not there yet; train each with --share, or leave it out; then all are joined")
        return
    print(f"student: {result['model']}" + (f", pictures: {result['picture']}" if result["picture"] else ""))
    if "page" in result:
        print(f"the same noise at several guidance weights: {result['page']}")
