"""The claim of system 26, measured on digits: shifted times undo exposure bias without training.

Li, Qu, Yao, Sun & Moens 2024 (arXiv 2305.15583). The model is the exact one of the training digits (1297 images), each
smoothed by a Gaussian of variance 0.02; its noise estimate is multiplied by b to imitate exposure bias. Samples are
scored against the same digits by the Frechet distance of pixels.

The rule, from the plan of this claim, at 10 steps of DDIM on the linear table of 1000, distances averaged over seeds:
- for b = 1.05 and b = 1.02 the printed rule lowers DDIM's distance with each of four settings of window and cut-off;
- without bias (b = 1) none of them raises it by more than 10 %.
Refuted if no setting gains at b = 1.05. The released target shift, epsilon scaling by the true b, the rule calibrated
by the variance of noised data, and 20 steps are told beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.denoiser import Denoiser
from scoreline.core.noise import Noise, derive
from scoreline.core.sampler import Sampler
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.schedules import Discrete
from scoreline.guidance.epsilon_scaling import EpsilonScaling, ScaledNoise
from scoreline.guidance.time_shift import TimeShift
from scoreline.guidance.variance_rule import image_variance
from scoreline.metrics.frechet import frechet_distance

__all__ = ["ARMS", "CLAIM", "TimeShiftClaim"]

BIASES = (1.0, 1.02, 1.05)
STEPS = (10, 20)
SETTINGS = ((20, 200), (40, 200), (40, 300), (80, 300))
SMOOTHING = 0.02**0.5
GRID = "leading"  # as in the released code
COUNT = {"laptop": 1000, "smoke": 96}


@dataclass(frozen=True)
class Arm:
    """One sampler on one biased model.

    Args:
        how: "ddim", "paper w t_c", "target w t_c", "calibrated w t_c" or "scaling".
        bias: b.
        steps: of DDIM.
    """

    how: str
    bias: float
    steps: int = 10

    @property
    def name(self) -> str:
        return f"{self.how} b={self.bias:g} steps={self.steps}"

    def make(self, variance: float) -> Sampler:
        """The sampler; `variance` is that within an image of the data."""
        word, *numbers = self.how.split()
        window, cutoff = map(int, numbers) if numbers else (0, 0)
        if word == "scaling":
            return EpsilonScaling(scale=self.bias, steps=self.steps, grid=GRID)
        return TimeShift(
            window=window, cutoff=cutoff, mode="official_target" if word == "target" else "paper",
            variance=variance if word == "calibrated" else 0.0, steps=self.steps, grid=GRID,
        )  # fmt: skip


PAPER = tuple(f"paper {w} {c}" for w, c in SETTINGS)
HOWS = ("ddim", *PAPER, "target 40 300", "calibrated 40 0", "scaling")
ARMS = {arm.name: arm for arm in (Arm(how, b, steps) for steps in STEPS for b in BIASES for how in HOWS)}


class TimeShiftClaim(Claim):
    """DDIM with shifted times against DDIM, on exact and biased models of digits."""

    system = "26"
    statement = "Choosing each step's time by the state's variance reduces exposure bias without training."
    arms = tuple(ARMS)
    seconds: Mapping[str, float] = {"laptop": 22.0, "smoke": 1.0}
    shrunk = (
        "8x8 digits and their exact noise predictor, times a constant, in place of trained networks on CIFAR-10",
        "1000 samples and the Gaussian of their pixels in place of 50,000 and Inception",
        "the variance within a digit is 0.56, within an image of CIFAR-10 about 0.25; the rule assumes it small",
    )

    def weight(self, arm: str, scale: str) -> float:
        return float(ARMS[arm].steps)

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        how = ARMS[arm]
        model, data, variance = memo("model", _model)
        draws = memo("noise", lambda: Noise(derive(seed, "time-shift")).at(range(COUNT[scale]), model.shape))
        sampler, view = how.make(variance), ScaledNoise(model, 1 / how.bias)
        out: dict[str, float | None] = {"nfe": float(how.steps), "variance_gap": None, BUDGET: 0.0}
        if isinstance(sampler, TimeShift):
            trace = sampler.trace(view, draws)
            x = trace.x
            # How far the states' variance is from that of noised data, 1 - abar (1 - var x_0), on the way.
            abar = torch.as_tensor(model.schedule.alpha(trace.times) ** 2)
            gap = trace.variance.mean(1) - (1 - abar * (1 - variance))
            out["variance_gap"] = float(gap[1:-1].abs().mean())
        else:
            x = sampler(view, draws).x
        out["frechet_distance"] = frechet_distance(data.flatten(1).double(), x.flatten(1).double())
        return out

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        def distance(how: str, bias: float) -> float:
            return mean(v for v in numbers[Arm(how, bias).name]["frechet_distance"] if v is not None)

        plain = {b: distance("ddim", b) for b in BIASES}
        shifted = {b: [distance(how, b) for how in PAPER] for b in BIASES}
        parts = [
            Part(
                f"with a bias of {b:g} the rule lowers the distance with each of four settings, at 10 steps",
                all(value < plain[b] for value in shifted[b]),
                f"{plain[b]:.3g} to {min(shifted[b]):.3g} ... {max(shifted[b]):.3g}",
            )
            for b in (1.05, 1.02)
        ]
        parts.append(
            Part(
                "without bias none of them raises it by more than 10 %",
                max(shifted[1.0]) <= 1.1 * plain[1.0],
                f"{plain[1.0]:.3g} to {min(shifted[1.0]):.3g} ... {max(shifted[1.0]):.3g}",
            )
        )
        if all(value >= plain[1.05] for value in shifted[1.05]):
            return "refuted", parts
        return settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        def value(how: str, bias: float, steps: int = 10, name: str = "frechet_distance") -> float:
            return mean(v for v in numbers[Arm(how, bias, steps).name][name] if v is not None)

        target, plain = value("target 40 300", 1.05), value("ddim", 1.05)
        word = "worse" if target > plain else "not worse"
        best = min(PAPER, key=lambda how: value(how, 1.05))
        twenty = [value(how, 1.05, 20) for how in PAPER]
        gaps = [value(how, 1.05, name="variance_gap") for how in ("ddim", best)]
        return [
            f"The released target shift (window 40, cut-off 300) is {word} than DDIM at b = 1.05 and 10 steps: "
            f"{target:.3g} against {plain:.3g}.",
            f"Epsilon scaling by the true b, which needs no search but the true b: {value('scaling', 1.05):.3g} at "
            f"b = 1.05, {value('scaling', 1.02):.3g} at b = 1.02.",
            f"Compared with the variance of noised data instead (window 40, no cut-off): "
            f"{value('calibrated 40 0', 1.05):.3g}, {value('calibrated 40 0', 1.02):.3g} and "
            f"{value('calibrated 40 0', 1.0):.3g} at b = 1.05, 1.02 and 1.",
            f"At 20 steps and b = 1.05: DDIM {value('ddim', 1.05, 20):.3g}, the rule {min(twenty):.3g} ... "
            f"{max(twenty):.3g}.",
            f"The states' variance is off that of noised data by {gaps[0]:.3g} with DDIM and {gaps[1]:.3g} with "
            f"{best} (mean over steps, b = 1.05): the shift "
            + ("pulls it back." if gaps[1] < gaps[0] else "does not pull it back."),
        ]


def _model() -> tuple[Denoiser, torch.Tensor, float]:
    data: Any = load_images("digits", split="train")
    images = data.batch(range(len(data))).image
    return Empirical(Discrete(betas="linear"), images, smoothing=SMOOTHING), images, image_variance(images)


CLAIM = TimeShiftClaim()
