"""`scoreline train`: from a preset or a config file, resumable."""

from __future__ import annotations

from typing import Any, Literal

TAKES_COMMAND = TAKES_QUIET = True
EXAMPLE = "scoreline train digits --steps 1000 --out runs/try"


def run(
    config: str,
    out: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    data: str | None = None,
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
    """Train a model. The same command again goes on from the last checkpoint.

    Args:
        config: a preset (digits, digits-eps, digits-net, ict-digits, ...) or a .yaml file of the same form.
        out: folder of the run; nothing takes runs/<name>.
        steps: training steps instead of the config's.
        batch_size: images a step, instead of the config's.
        lr: peak learning rate instead of the config's.
        seed: seed instead of the config's.
        data: data set instead of the config's.
        device: where to run; auto takes CUDA or MPS where there is one.
        dtype: precision; fp16 on CUDA only.
        accumulate: parts into which a batch is cut, to save memory.
        checkpoint_every: steps between checkpoints.
        sample_every: steps between sample grids; nothing takes the config's.
        skip_nonfinite: how many non-finite updates may be left out before the run stops.
        dry_run: print the resolved run and stop.
    """
    from scoreline.core.errors import InputError
    from scoreline.train.recipe import is_student_recipe, recipe_file, train

    given = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed, "data": data}
    changes = {key: value for key, value in given.items() if value is not None}
    if is_student_recipe(recipe_file(config)):
        from scoreline.fewstep.distill import distill
        from scoreline.fewstep.recipe import read_recipe

        recipe = read_recipe(config, changes=changes)
        if recipe.teacher is not None:
            raise InputError("config", config, "has a teacher; use scoreline distill")
        return distill(
            recipe, out, device=device, precision=dtype, accumulate=accumulate, checkpoint_every=checkpoint_every,
            sample_every=sample_every, skip_nonfinite=skip_nonfinite, dry_run=dry_run, command=command, quiet=quiet,
        )  # fmt: skip
    return train(
        config, out, changes, device=device, precision=dtype,
        accumulate=accumulate, checkpoint_every=checkpoint_every, sample_every=sample_every,
        skip_nonfinite=skip_nonfinite, dry_run=dry_run, command=command, quiet=quiet,
    )  # fmt: skip


def show(result: dict[str, Any]) -> None:
    if "resolved" in result:
        import json

        print(json.dumps(result["resolved"], indent=1, default=str))
        return
    if "stages" in result:
        from scoreline.cli import distill

        distill.show(result)
        return
    losses = ", ".join(f"{name} {value:.4g}" for name, value in result["losses"].items())
    print(f"{result['steps']} steps, {losses or 'nothing left to do'}: {result['model']}")
