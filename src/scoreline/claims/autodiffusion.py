"""The claim of system 07, measured on digits: searched steps are better than uniform ones at equal cost.

Li et al. 2023 (arXiv 2309.10438). The denoiser is exact: the optimal one of the 1797 digits, in closed form, clipped to
[-1, 1]; nothing is trained. DDIM on 4 and 6 of 1000 steps, on the linear and the cosine table. Frechet distance of 1000
samples to the data on the 64 pixels (floor for as many perfect samples: about 0.127). Evaluations of a search have 300
samples with noise of their own, as in the paper; reported is the mean over three further seeds of noise.

The rule, from the plan of this claim: confirmed when evolution is below the best uniform grid (leading, linspace,
trailing) by 15 % or more at 4 steps, in the median over search seeds. Asked for each table; in part if on one of them.
Whether evolution is better than as many random candidates is no promise of the paper's that this size can settle; it is
told among the findings, as are the values at 6 steps and by how much the search itself saw too good a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.noise import derive
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.schedules import Discrete
from scoreline.search.autodiffusion import Evolution, RandomSearch
from scoreline.search.candidates import Space, grid_steps
from scoreline.search.engine import Genotype, search
from scoreline.search.objective import Objective
from scoreline.search.steps import planned_of

__all__ = ["CLAIM", "AutoDiffusion"]

TABLES = ("linear", "cosine")
STEPS = (4, 6)
UNIFORM = ("leading", "linspace", "trailing")
SEARCHED = ("random", "evolution")
GAIN = 0.15

# Population and generations of the plan; the shares of children are the paper's.
POPULATION, PARENTS, MUTANTS, CROSSOVERS, GENERATIONS = 15, 3, 7, 4, 5
EVALUATIONS = {"laptop": 75, "smoke": 16}
SAMPLES = {"laptop": 300, "smoke": 70}
REPORTED = {"laptop": (1000, 3), "smoke": (70, 1)}


def _name(table: str, steps: int, how: str) -> str:
    return f"{table}-{steps} {how}"


class AutoDiffusion(Claim):
    """Evolution over time steps against uniform grids and random search, with the exact denoiser of the digits."""

    system = "07"
    statement = "Searched time steps give far better images than uniform ones at the same few evaluations."
    arms = tuple(_name(t, k, how) for t in TABLES for k in STEPS for how in (*UNIFORM, *SEARCHED))
    seeds = (0, 1, 2, 3, 4)
    seconds: Mapping[str, float] = {"laptop": 60.0, "smoke": 4.0}
    shrunk = (
        "8x8 digits and their exact denoiser in place of ADM on ImageNet 64x64 with classifier guidance",
        "75 evaluations of 300 samples in place of 550 of 5000",
        "Frechet distance on 64 pixels of 1000 samples and three seeds of noise in place of FID of 50,000",
        "time steps alone: an exact denoiser has no layers to leave out",
    )

    def weight(self, arm: str, scale: str) -> float:
        images = SAMPLES[scale] * EVALUATIONS[scale] if arm.endswith(SEARCHED) else 0
        return images + REPORTED[scale][0] * REPORTED[scale][1]

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        where, how = arm.split(" ")
        table, steps = where.split("-")[0], int(where.split("-")[1])
        objective: Objective = memo(table, lambda: _objective(table, seed, scale))
        spent, seen = 0.0, None
        if how in UNIFORM:
            genotype: Genotype = {"steps": grid_steps(how, steps)}
        else:
            space, evaluations = Space.of_steps(1000, steps), EVALUATIONS[scale]
            draws = derive(seed, "autodiffusion", where, how)
            searcher: Evolution | RandomSearch = RandomSearch(space, evaluations=evaluations, seed=draws)
            if how == "evolution":
                searcher = Evolution(
                    space, population=POPULATION, parents=PARENTS, mutants=MUTANTS, crossovers=CROSSOVERS,
                    generations=GENERATIONS, evaluations=evaluations, seed=draws,
                )  # fmt: skip
            done = search(searcher, objective)
            spent = float(sum(row["result"]["nfe"] for row in done)) * SAMPLES[scale]
            seen, best = searcher.top[0]
            genotype = best.genotype()
        count, repeats = REPORTED[scale]
        noise = [derive(seed, "autodiffusion", "report", i) for i in range(repeats)]
        (row,) = objective.report([genotype], noise, count)
        return {
            "frechet_distance": row["mean"], "seen_in_search": seen, "nfe": row["nfe"],
            "search_evaluations": spent, BUDGET: 0,
        }  # fmt: skip

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        parts = []
        for table in TABLES:
            gains = _gains(numbers, table, 4)
            shown = ", ".join(f"{gain:.0%}" for gain in gains)
            best = {how: median(_values(numbers, table, 4, how)) for how in (*UNIFORM, "evolution")}
            seen = ", ".join(f"{how} {value:.3g}" for how, value in best.items())
            parts.append(
                Part(
                    f"on the {table} table at 4 steps evolution is below the best uniform grid by 15 % or more",
                    median(gains) >= GAIN,
                    f"{median(gains):.0%} in the median of {shown}; medians: {seen}",
                )
            )
        return settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        said = []
        for table in TABLES:
            for steps in STEPS:
                evolution, random = (median(_values(numbers, table, steps, how)) for how in ("evolution", "random"))
                pairs = zip(_values(numbers, table, steps, "evolution"), _values(numbers, table, steps, "random"))
                wins, gains = sum(a < b for a, b in pairs), _gains(numbers, table, steps)
                said.append(
                    f"{table}, {steps} steps: evolution {evolution:.3g}, random search of as many evaluations "
                    f"{random:.3g}; evolution is better in {wins} of {len(gains)} seeds; "
                    f"against the best uniform grid {median(gains):.0%}."
                )
        return said


def _values(numbers: Numbers, table: str, steps: int, how: str) -> list[float]:
    return [v for v in numbers[_name(table, steps, how)]["frechet_distance"] if v is not None]


def _gains(numbers: Numbers, table: str, steps: int) -> list[float]:
    """1 - evolution / best uniform grid, seed by seed, both with the same noise."""
    uniform = zip(*(_values(numbers, table, steps, how) for how in UNIFORM), strict=True)
    pairs = zip(_values(numbers, table, steps, "evolution"), uniform, strict=True)
    return [1 - evolution / min(others) for evolution, others in pairs]


def _objective(table: str, seed: int, scale: str) -> Objective:
    """The distance of DDIM's samples to all digits, on pixels, with the digits' own optimal denoiser."""
    digits = load_images("digits")
    model = Empirical(Discrete(betas=table), digits.batch(range(len(digits))).image)
    return Objective(
        model, planned_of(model, "ddim"), data="digits", features="pixels", clip=True, count=SAMPLES[scale],
        noise_seed=derive(seed, "autodiffusion", "search"), noise="fresh",
    )  # fmt: skip


CLAIM = AutoDiffusion()
