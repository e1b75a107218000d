"""The claim of system 22, measured on digits: damped skip connections give better images in few steps.

Ma et al. 2024 (arXiv 2402.15170). One class-conditional U-Net in EDM's preconditioning is trained for each seed on the
training split; all arms of a seed share it. Every arm may choose one setting for each number of steps by the Frechet
distance on latents A, the untuned network among its choices, and is told on latents B; all choose among equally many.

The rule, from the plan of this claim:
- confirmed: at N <= 5 some rho_b < 1 lowers the reported distance by >= 10 % in all training seeds, the gain shrinks as
  N grows, pixel loss rises and feature loss falls.
- refuted: the best rho_b is 1, or the gain is gone on latents B. A null is plausible at this scale: the networks are
  small and briefly trained. Networks that draw no digits (label accuracy below one half) tell nothing either way.
The pixel loss is said to rise if it does on average over the noise levels of `LEVELS`, in every seed; likewise the
feature loss is said to fall. Both are measured at the best rho_b < 1 of the smallest N, found on latents A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.classify.plain import accuracy
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.noise import Noise, derive
from scoreline.core.sampler import Sampler
from scoreline.data import load_images
from scoreline.diffusion.denoising import Denoising
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.evaluate.protocols import FrechetProtocol, digits_net, features_of
from scoreline.guidance.skip_tuning import SkipTuned, SkipTuning, denoising_losses, joint_count, skip_plan
from scoreline.nn.unet import UNet
from scoreline.samplers.heun import Heun
from scoreline.train import fit
from scoreline.train.lr import Cosine

__all__ = ["ARMS", "CLAIM", "LEVELS", "STEPS", "Setting", "SkipTuningClaim"]

STEPS = (3, 5, 8, 18)
LEVELS = (0.5, 1.0, 2.0, 5.0, 10.0)
SIGMA_DATA = 0.75


@dataclass(frozen=True)
class Setting:
    """One way to sample with Heun.

    Args:
        rho: factor of the deepest joint; 1 leaves the network alone.
        side: "skip" or "hidden".
        s_churn: of the sampler.
        t_max: largest noise level.
    """

    rho: float = 1.0
    side: str = "skip"
    s_churn: float = 0.0
    t_max: float = 80.0

    def make(self, steps: int) -> Sampler:
        """The sampler, of `steps` levels."""
        inner = Heun(s_churn=self.s_churn)
        return inner if self.rho == 1 else SkipTuning(of=inner, rho=self.rho, side=self.side)


PLAIN = Setting()
BELOW = (0.5, 0.6, 0.7, 0.8, 0.9)
ARMS: dict[str, tuple[Setting, ...]] = {
    "plain": (PLAIN,),
    "skip": (PLAIN, *(Setting(rho=rho) for rho in BELOW)),
    "wrong direction": (PLAIN, Setting(rho=1.1), Setting(rho=1.2)),
    "hidden": (PLAIN, *(Setting(rho=rho, side="hidden") for rho in BELOW)),
    # As many trials as "skip" has, spent on the sampler.
    "sampler": (PLAIN, Setting(s_churn=1.0), Setting(s_churn=4.0), Setting(t_max=40.0), Setting(t_max=20.0),
                Setting(s_churn=2.0, t_max=40.0)),
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        base: channels of the U-Net.
        blocks: residual blocks a level.
        steps: of its training, at batch 128.
        select: images a choice on latents A.
        report: images a seed of latents B.
        seeds: seeds of latents B.
        most: a run of more steps than this is cut to it (the smoke test only).
    """

    base: int
    blocks: int
    steps: int
    select: int
    report: int
    seeds: int
    most: int = 1000


SIZES = {
    "laptop": Scale(base=16, blocks=1, steps=1500, select=400, report=400, seeds=2),
    "smoke": Scale(base=4, blocks=1, steps=2, select=70, report=70, seeds=1, most=2),
}
BATCH, PEAK_LR, AVERAGE = 128, 3e-3, 0.995


class SkipTuningClaim(Claim):
    """Skip-tuning against the untuned network, the wrong direction, the other side and a tuned sampler."""

    system = "22"
    statement = "Scaling down a trained U-Net's skip connections improves few-step sampling without training."
    arms = tuple(ARMS)
    seeds = (0, 1, 2)
    seconds: Mapping[str, float] = {"laptop": 420.0, "smoke": 8.0}
    shrunk = (
        "8x8 digits, 1297 training images, in place of ImageNet 64x64",
        "a U-Net of base 16, multipliers (1, 2), one block a level, 1500 steps of 128 images, in place of base 32 and "
        "two blocks",
        "400 images a choice and 2 x 400 a report, in the 64 features of the digits classifier, in place of 1000 and "
        "5 x 1000",
    )

    def weight(self, arm: str, scale: str) -> float:
        # The first arm trains; sampling dominates the others.
        return 40.0 if arm == "plain" else 2.0 + len(ARMS[arm])

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        sizes = SIZES[scale]
        model = memo("model", lambda: _trained(seed, sizes))
        protocol = memo("protocol", _protocol)
        out: dict[str, float | None] = {BUDGET: 3 * sizes.steps * BATCH}
        best_below = {}
        for steps in STEPS:
            n = min(steps, sizes.most)
            scores = [
                memo(f"A {how} {n}", partial(_distance, model, how, n, seed, 0, sizes, protocol)) for how in ARMS[arm]
            ]
            chosen = ARMS[arm][scores.index(min(scores))]
            told = [
                memo(f"B {chosen} {n} {i}", partial(_distance, model, chosen, n, seed, i, sizes, protocol))
                for i in range(1, sizes.seeds + 1)
            ]
            out[f"distance_{steps}"] = mean(told)
            out[f"selected_{steps}"] = min(scores)
            out[f"rho_{steps}"] = chosen.rho
            if arm == "skip":
                best_below[steps] = ARMS[arm][1 + scores[1:].index(min(scores[1:]))].rho
        if arm == "plain":
            images, labels = _images(model, PLAIN, min(STEPS[-1], sizes.most), seed, 1, sizes.report)
            out["label_accuracy"] = accuracy(digits_net(), images, labels)  # type: ignore[arg-type]
            out |= _losses(model, None, seed)
        elif arm == "skip":
            rho = best_below[STEPS[0]]
            out |= {"rho_of_losses": rho} | _losses(model, rho, seed)
        return out

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        draws = mean(_known(numbers["plain"]["label_accuracy"])) >= 0.5
        gains = {n: _gains(numbers, n) for n in STEPS}
        few = max((n for n in STEPS if n <= 5), key=lambda n: min(gains[n]))
        shown = ", ".join(f"{mean(gains[n]):+.1%} at N = {n}" for n in STEPS)
        anywhere = max(mean(gains[n]) for n in STEPS if n <= 5) > 0
        shrinks = max(mean(gains[n]) for n in STEPS if n <= 5) > mean(gains[STEPS[-1]])
        pixel, feature = _loss_ratios(numbers, "pixel"), _loss_ratios(numbers, "feature")
        said = "mean ratio to the untuned network over noise levels 0.5 to 10, in each seed"

        def judged(holds: bool) -> bool | None:
            return holds if draws else None

        parts = [
            Part(
                "at N = 3 or 5 some rho below 1 lowers the reported distance by at least 10 % in all training seeds",
                judged(min(gains[few]) >= 0.1 - 1e-12),
                f"at N = {few}: " + ", ".join(f"{gain:+.1%}" for gain in gains[few]) + "; positive is better",
            ),
            Part(
                "the gain shrinks as N grows",
                judged(shrinks) if anywhere else None,
                f"mean gain {shown}",
            ),
            Part("the pixel loss rises", judged(min(pixel) > 1), f"{said}: {', '.join(f'{v:.3f}' for v in pixel)}"),
            Part(
                "the feature loss falls", judged(max(feature) < 1), f"{said}: {', '.join(f'{v:.3f}' for v in feature)}"
            ),
        ]
        return ("refuted" if draws and not anywhere else settle(parts)), parts

    def findings(self, numbers: Numbers) -> list[str]:
        out = []
        for arm in ("wrong direction", "hidden", "sampler"):
            gains = ", ".join(f"{mean(_gains(numbers, n, arm)):+.1%} at {n}" for n in STEPS)
            out.append(f"Gain of the arm {arm!r} on latents B: {gains}.")
        chosen = ", ".join(f"{n}: {'/'.join(f'{rho:g}' for rho in _known(numbers['skip'][f'rho_{n}']))}" for n in STEPS)
        return [*out, f"Factors chosen on latents A (N: one a seed): {chosen}."]


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _gains(numbers: Numbers, steps: int, arm: str = "skip") -> list[float]:
    """1 - distance(arm)/distance(plain) of each seed."""
    pairs = zip(_known(numbers[arm][f"distance_{steps}"]), _known(numbers["plain"][f"distance_{steps}"]), strict=True)
    return [1 - ours / plain for ours, plain in pairs]


def _loss_ratios(numbers: Numbers, kind: str) -> list[float]:
    """Loss of the tuned network by that of the untuned one, mean over noise levels, of each seed."""
    levels = [
        [a / b for a, b in zip(*(_known(numbers[arm][f"{kind}_{level:g}"]) for arm in ("skip", "plain")), strict=True)]
        for level in LEVELS
    ]
    return [mean(seed) for seed in zip(*levels, strict=True)]


def _protocol() -> FrechetProtocol:
    return FrechetProtocol(digits_net(), load_images("digits", split="test"), split="test", conditions="labels-uniform")


def _trained(seed: int, sizes: Scale) -> Denoiser:
    data = load_images("digits", split="train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "skip-tuning") % 2**63)
        net = UNet(
            in_shape=data.shape, base_channels=sizes.base, channel_mult=(1, 2), num_blocks=sizes.blocks, attention=(4,),
            decoder_attention="last", rescale=True, num_classes=10,
        )  # fmt: skip
    rate = Cosine(PEAK_LR, sizes.steps, warmup=min(50, sizes.steps - 1))
    method = Denoising(Preconditioned(net, EDM(), kind="edm", sigma_data=SIGMA_DATA), p_uncond=0.0, lr=rate)
    return fit(method, data, steps=sizes.steps, batch_size=BATCH, seed=seed, ema=AVERAGE).result()


def _images(model: Denoiser, how: Setting, steps: int, seed: int, latents: int, count: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 10
    grid = EDM(t_max=how.t_max)
    times = Heun(steps=steps).times(grid)
    draws = Noise(derive(seed, "skip-tuning", "latents", latents)).at(range(count), model.shape)
    sample = how.make(steps)(model.given(Cond(labels=labels)), draws, times=times)
    return sample.x.clamp(-1, 1), labels


def _distance(
    model: Denoiser, how: Setting, steps: int, seed: int, latents: int, sizes: Scale, protocol: FrechetProtocol
) -> float:
    """Frechet distance to the test images; latents 0 are A, the others B."""
    count = sizes.report if latents else sizes.select
    images = _images(model, how, steps, seed, latents, count)[0]
    return protocol.distance(features_of(protocol.encoder, images))


def _losses(model: Denoiser, rho: float | None, seed: int) -> dict[str, float | None]:
    """Pixel and feature loss on the test images, at each noise level, with the same noise for every arm."""
    batch = load_images("digits", split="test").batch(range(500))
    assert batch.label is not None
    given = model.given(Cond(labels=batch.label))
    view = given if rho is None else SkipTuned(given, skip_plan(joint_count(given), rho))
    noise = Noise(derive(seed, "skip-tuning", "losses")).at(range(len(batch.image)), model.shape).normal()
    out: dict[str, float | None] = {}
    for level in LEVELS:
        pixel, feature = denoising_losses(view, batch.image, level, noise, digits_net())
        out |= {f"pixel_{level:g}": pixel, f"feature_{level:g}": feature}
    return out


CLAIM = SkipTuningClaim()
