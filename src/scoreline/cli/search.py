"""`scoreline search MODEL`: the levels, layers, solver or skip scales that are best for a budget."""

from __future__ import annotations

from typing import Any, Literal

TAKES_COMMAND = TAKES_QUIET = True
EXAMPLE = "scoreline search digits-eps --space steps --nfe 5 --clip --out plan"


def run(
    model: str,
    space: Literal["steps", "solver", "skips"] = "steps",
    nfe: str = "10",
    out: str = "search",
    evaluations: int = 200,
    workers: str = "1",
    metric: Literal["fd", "kid", "rmse"] = "fd",
    sampler: str = "ddim",
    layers: bool = False,
    max_prune: float = 0.1,
    cost: Literal["layers", "macs", "seconds"] = "layers",
    variant: Literal["paper", "released"] = "paper",
    method: Literal["s3", "evolution"] | None = None,
    joints: bool = False,
    count: int = 500,
    report_count: int = 1000,
    report_seeds: str = "0,1,2",
    noise: Literal["fixed", "fresh"] = "fixed",
    seed: int = 0,
    guidance: float | None = None,
    clip: bool = False,
    labels: str | None = None,
    data: str | None = None,
    features: Literal["auto", "digits", "inception-2015", "pixels"] = "auto",
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Search how to sample a model at a budget, and report with noise that the search did not see.

    Args:
        model: built-in name (see `scoreline models`) or path of a .safetensors artefact.
        space: steps: the noise levels, with --layers also what to leave out at each (AutoDiffusion); solver: levels,
            orders and predictions of a multistep solver (USF); skips: the scale of the skip joints (Skip-Tuning).
        nfe: network evaluations an image that a run may cost, guidance counted; several, as 5,10, are searched one by
            one, each with a front and a plan of its own in OUT/nfe-5, OUT/nfe-10.
        out: folder for plan, results and picture; run again, the same command goes on where it stopped.
        evaluations: candidates that are scored, by the search and by the random search beside it each; for skips all
            of a fixed list are.
        workers: 1 for this process, a number of processes, ray, or ray:ADDRESS.
        metric: fd: Frechet distance of features; kid: kernel distance; rmse: distance of each image to the converged
            ODE at the same noise.
        sampler: whose levels are searched, for steps and skips.
        layers: for steps, also search which layers of the network to leave out; what is saved buys more levels.
        max_prune: largest share of layers left out at a level.
        cost: what the budget is counted in, with --layers: layers executed, MACs, or seconds as measured here.
        variant: the search as in the paper, or as in the released code; for steps and solver.
        method: for solver: s3, with the predictor of scores, or evolution alone; nothing takes s3, and evolution
            with --variant released.
        joints: for solver, also search the scales of the network's skip joints, the same at every level.
        count: images a candidate.
        report_count: images a seed of what is reported.
        report_seeds: seeds of what is reported, separated by commas or as a range 0:3.
        noise: the same for all candidates, or fresh for each.
        seed: seed of the search.
        guidance: strength s of classifier-free guidance; 1 or nothing for none. It doubles the evaluations.
        clip: keep the predicted clean image in [-1, 1].
        labels: classes to ask for, as 0,1,7; none for no class; nothing for all in turn.
        data: reference data set, or an .npz file with mu and sigma; nothing takes the one in the model's card.
        features: feature network; auto takes digits for 8x8 grey images and inception-2015 elsewhere.
    """
    from scoreline.cli.compare import numbers
    from scoreline.core.errors import InputError
    from scoreline.search.workflow import Workflow

    _only_for(space, "steps", layers=layers, cost=cost != "layers")
    _only_for(space, "steps or solver", variant=variant != "paper")
    _only_for(space, "solver", method=method is not None, joints=joints)
    _only_for(space, "steps or skips", sampler=sampler != "ddim")
    if space == "skips" and noise == "fresh":
        raise InputError("--noise", noise, "is for --space steps or solver")
    _only_for("layers" if layers else "steps alone", "layers", cost=cost != "layers", max_prune=max_prune != 0.1)
    workflow = Workflow(
        model, out, evaluations=evaluations, workers=workers, metric=metric, data=data, features=features, count=count,
        report_count=report_count, report_seeds=numbers(report_seeds, "report_seeds"), noise=noise, guidance=guidance,
        clip=clip, labels=labels, seed=seed, quiet=quiet,
    )  # fmt: skip
    budgets = numbers(nfe, "nfe")
    if len(set(budgets)) < len(budgets):
        raise InputError("nfe", nfe, "give distinct budgets")
    for budget in budgets:
        _check(space, workflow, budget, sampler, joints)

    def searched(budget: int, at: Any) -> dict[str, Any]:
        results: dict[str, Any]
        if space == "steps":
            from scoreline.search.steps import search_steps

            results = search_steps(
                at, nfe=budget, of=sampler, layers=layers, max_prune=max_prune, cost=cost, variant=variant,
                command=command,
            )  # fmt: skip
        elif space == "solver":
            from scoreline.search.solvers import search_solvers

            results = search_solvers(
                at, nfe=budget, variant=variant, method=method, joints=joints, command=command
            )  # fmt: skip
        else:
            results = _skips(at, budget, sampler)
        if results.get("progress"):
            from scoreline.report.search_plots import write_search_plot

            results["files"].append(str(write_search_plot(results, at.folder / "search.png")))
        return {"space": space, **results}

    if len(budgets) == 1:
        return searched(budgets[0], workflow)
    found = {budget: searched(budget, workflow.at(workflow.folder / f"nfe-{budget}")) for budget in budgets}
    return {"space": space, "budgets": found}


def _check(space: str, workflow: Any, nfe: int, sampler: str, joints: bool) -> None:
    """Refuse a budget before the search of another one begins."""
    if space == "solver":
        from scoreline.search.solvers import solver_space

        solver_space(workflow, nfe, joints=joints)
    elif space == "steps":
        from scoreline.search.steps import step_count

        step_count(workflow, nfe, sampler)
    else:
        from scoreline.evaluate.specs import check_fit, make_sampler

        check_fit(make_sampler(sampler, nfe=nfe), workflow.model)


def _skips(workflow: Any, nfe: int, sampler: str) -> dict[str, Any]:
    """The sweep over the scales of skip joints, in the form of the other searches."""
    import shlex

    from scoreline.search.skip_sweep import skip_sweep

    one = workflow.objective
    found = skip_sweep(
        one.model, of=sampler, nfe=nfe, metric=one.metric, data=one.data, split=one.split, features=one.features,
        count=one.count, noise_seed=one.noise_seed, report_seeds=workflow.report_seeds,
        report_count=workflow.report_count, guidance=one.guidance, clip=one.clip, labels=one.labels,
        out=workflow.folder, workers=workflow.workers, quiet=workflow.quiet,
    )  # fmt: skip
    tuned = ", ".join(f"{name} {value:g}" for name, value in found["chosen"].items())
    rows = [{"name": "untuned", **found["report"]["plain"], "genotype": {}}]
    if found["gain"] != 0:
        rows.append({"name": f"skip-tuning, {tuned}", **found["report"]["chosen"], "genotype": found["chosen"]})
    use = ["scoreline", "sample", str(one.model), "--sampler", found["sampler"], "--nfe", str(nfe), "--out", "images"]
    use += (["--clip"] if one.clip else []) + ([f"--guidance={one.guidance:g}"] if one.guidance is not None else [])
    return {
        "model": found["model"], "settings": workflow.settings(), "rows": rows, "candidates": found["candidates"],
        "files": [str(workflow.folder / "skips.json")], "use": shlex.join(use),
    }  # fmt: skip


def _only_for(chosen: str, wanted: str, **given: bool) -> None:
    """Refuse options that the chosen search does not look at."""
    from scoreline.core.errors import InputError

    for name, used in given.items():
        if used and chosen not in wanted.split(" or "):
            where = "--layers" if wanted == "layers" else f"--space {wanted}"
            raise InputError(f"--{name.replace('_', '-')}", None, f"is for {where}")


def show(results: dict[str, Any]) -> None:
    for found in results.get("budgets", {"": results}).values():
        _show(found)


def _show(results: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from scoreline.cli.terminal import console
    from scoreline.report.numbers import human_count, human_number, human_seconds

    rows = results["rows"]
    best = min(rows, key=lambda row: row["mean"])
    settings = results["settings"]
    title = f"{results['model']}: {settings['metric']}, {settings['report_count']} images a seed, unseen noise"
    table = Table(title=Text(title), caption=Text("bold: best   [ ]: 95 % interval over seeds"))
    table.add_column("how")
    for name in (settings["metric"], "evaluations", "MACs/image", "time/image"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    table.add_column(Text("levels" + (" (layers left out)" if settings.get("max_prune") else "")))
    for row in rows:
        value = Text(human_number(row["mean"]), style="bold green" if row is best else "")
        value.append(f" [{human_number(row['low'])}, {human_number(row['high'])}]", style="not bold dim")
        table.add_row(
            Text(row["name"]), value, Text(f"{row['nfe']:g}"), Text(human_count(row["macs"])),
            Text(human_seconds(row["seconds"])), Text(_plan_text(row)),
        )  # fmt: skip
    screen = console()
    screen.print(table)
    for path in results["files"]:
        screen.print(f"written: {path}", markup=False, soft_wrap=True)
    if results.get("use"):
        screen.print(f"use it:  {results['use']}", markup=False, soft_wrap=True)


def _plan_text(row: dict[str, Any]) -> str:
    from scoreline.report.numbers import human_number

    genotype = row.get("genotype", {})
    if not isinstance(genotype.get("steps", [{}])[0], int):
        # The plan of a solver is too long for a line; its times say where it stops.
        return " ".join(human_number(t, 3) for t in genotype.get("times", []))
    drop = genotype.get("drop") or [[]] * len(genotype["steps"])
    shown = [f"{step}" + (f" (-{len(out)})" if out else "") for step, out in zip(genotype["steps"], drop)]
    return " ".join(shown[::-1])
