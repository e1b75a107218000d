"""The claim of system 09, measured on digits: DDIM with guidance is faster and better than plain DDPM.

Shah, Gromis & Pinto 2024 (arXiv 2412.14422). Class-conditional eps-networks are trained on the training split (1297
images), one a seed for each of: the linear table, the cosine table, and the latents of a KL autoencoder; all arms of a
seed share them. Samples are scored against the test split (500 images) in the features of the fixed digits classifier.

The rule, from the plan of this claim:
- confirmed: DDIM-50 is within 20 % of DDPM-1000's distance at <= 1/10 of the time; at equal 20 steps DDIM beats
  DDPM(small) in >= 4 of 5 seeds; s = 2 raises label accuracy without raising the distance by > 20 %, s = 4 raises the
  distance (diversity loss). Refuted otherwise.
- latent worse than pixel at equal compute is the report's negative finding, reproduced; no part of the verdict.
Networks that draw no digits tell nothing either way: below a label accuracy of one half no quality is judged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, median
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
from scoreline.data.images import Images
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.denoising import Denoising
from scoreline.diffusion.latent import Latent, latent_scale
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import Discrete
from scoreline.evaluate.protocols import FrechetProtocol, digits_net, features_of
from scoreline.generators.autoencoding import KLAutoencoding
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.guidance.thresholding import Thresholded
from scoreline.nn.autoencoder import KLAutoencoder
from scoreline.nn.mlp import MLP
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.ddpm import DDPM
from scoreline.train import fit
from scoreline.train.lr import Cosine

__all__ = ["ARMS", "CLAIM", "Arm", "EnhancedDDPM", "ddim_flow_error"]


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        width, depth: of the residual MLP that predicts the noise, the same for pixels and latents.
        steps: of its training, at batch 128.
        autoencoder_steps: of the autoencoder's training, at batch 64.
        count: images an arm, labels in equal shares.
        divide: steps of a sampler are divided by this (the smoke test only), at least 2 are made.
    """

    width: int
    depth: int
    steps: int
    autoencoder_steps: int
    count: int
    divide: int = 1


SIZES = {
    "laptop": Scale(width=192, depth=4, steps=1500, autoencoder_steps=400, count=250),
    "smoke": Scale(width=16, depth=1, steps=2, autoencoder_steps=1, count=80, divide=100),
}
BATCH, AUTOENCODER_BATCH = 128, 64
PEAK_LR, AUTOENCODER_LR = 2e-3, 4e-3
AVERAGE = 0.995


@dataclass(frozen=True)
class Arm:
    """One way of sampling one model.

    Args:
        model: "linear", "cosine" (tables, in pixels) or "latent" (linear table).
        sampler: "ddpm-large", "ddpm-small" or "ddim".
        steps: noise levels visited.
        guidance: s.
    """

    model: str
    sampler: str
    steps: int
    guidance: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.model} {self.sampler}-{self.steps} s={self.guidance:g}"

    @property
    def nfe(self) -> int:
        """Network evaluations per image; guidance doubles them."""
        return self.steps * (1 if self.guidance == 1 else 2)

    def make(self, divide: int = 1) -> Sampler:
        """The sampler."""
        steps = max(self.steps // divide, min(self.steps, 2))
        if self.sampler == "ddim":
            return DDIM(steps=steps)
        return DDPM(steps=steps, variance=self.sampler.removeprefix("ddpm-"))


# The larger variance suits the full chain, the smaller one shortened chains (Ho et al. 2020; Nichol & Dhariwal 2021).
SAMPLERS = (("ddpm-large", 1000), ("ddpm-small", 100), ("ddpm-small", 50), ("ddim", 50), ("ddim", 20), ("ddim", 10))
_ALL = (
    *(Arm("linear", sampler, steps, s) for s in (1.0, 2.0, 4.0) for sampler, steps in SAMPLERS),
    Arm("linear", "ddpm-small", 20),
    *(Arm(model, sampler, steps) for model in ("cosine", "latent") for sampler, steps in SAMPLERS),
    *(Arm(model, "ddim", 50, 2.0) for model in ("cosine", "latent")),
)
ARMS = {arm.name: arm for arm in _ALL}

REFERENCE = Arm("linear", "ddpm-large", 1000).name
FAST = Arm("linear", "ddim", 50).name
FAST_2 = Arm("linear", "ddim", 50, 2.0).name
FAST_4 = Arm("linear", "ddim", 50, 4.0).name
EQUAL = (Arm("linear", "ddim", 20).name, Arm("linear", "ddpm-small", 20).name)


class EnhancedDDPM(Claim):
    """DDIM + guidance against DDPM, on three models of digits."""

    system = "09"
    statement = "DDIM with classifier-free guidance gives faster inference and better images than plain DDPM."
    arms = tuple(ARMS)
    seeds = (0, 1, 2, 3, 4)
    seconds: Mapping[str, float] = {"laptop": 90.0, "smoke": 5.0}
    shrunk = (
        "8x8 digits, 1297 training images, in place of CIFAR-10 and ImageNet-100",
        "a residual MLP of 4 layers of 192 in place of the U-Net, 1500 steps of 128 images in place of 800,000",
        "250 samples an arm and the 64 features of the digits classifier in place of 50,000 and Inception",
        "a small autoencoder to 2x2x4 latents, without perceptual or adversarial loss, 400 steps of 64 images",
        "cosine table and latents with the six samplers at s = 1 and DDIM-50 at s = 2 only",
    )

    def weight(self, arm: str, scale: str) -> float:
        return 60.0 + ARMS[arm].nfe

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        how, sizes = ARMS[arm], SIZES[scale]
        model, spent = memo(how.model, lambda: _trained(how.model, seed, sizes))
        view = model if how.guidance == 1 else ClassifierFree(model, how.guidance)
        # Pixels have a range, latents have none: x0 is clipped in pixels alone, for every sampler and table alike.
        view = view if how.model == "latent" else Thresholded(view)
        images, labels, nfe, seconds = _sampled(view, how.make(sizes.divide), seed, sizes.count)
        protocol = memo("protocol", _protocol)
        out: dict[str, float | None] = {
            "frechet_distance": protocol.distance(features_of(protocol.encoder, images)),
            "label_accuracy": accuracy(digits_net(), images, labels),  # type: ignore[arg-type]
            "seconds_per_image": seconds / sizes.count,
            "nfe": nfe,
            BUDGET: spent,
        }
        if how.model == "latent":
            out["reconstruction_distance"] = memo("reconstruction", lambda: _reconstruction(model, protocol))
        return out

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        distance = {arm: mean(_known(numbers[arm]["frechet_distance"])) for arm in numbers}
        right = {arm: mean(_known(numbers[arm]["label_accuracy"])) for arm in numbers}
        draws = right[REFERENCE] >= 0.5

        time_share = _seconds(numbers, FAST) / _seconds(numbers, REFERENCE)
        near = distance[FAST] <= 1.2 * distance[REFERENCE] and time_share <= 0.1
        pairs = list(zip(*(_known(numbers[arm]["frechet_distance"]) for arm in EQUAL), strict=True))
        wins = sum(ddim < ddpm for ddim, ddpm in pairs)
        lifted = right[FAST_2] > right[FAST] and distance[FAST_2] <= 1.2 * distance[FAST]
        spread_lost = distance[FAST_4] > distance[FAST]

        def judged(holds: bool) -> bool | None:
            return holds if draws else None

        parts = [
            Part(
                "DDIM-50 is within 20 % of DDPM-1000's distance at 1/10 of the time or less",
                judged(near),
                f"distance {distance[FAST]:.3g} against {distance[REFERENCE]:.3g}, {time_share:.3f} of the time",
            ),
            Part(
                "at equal 20 steps DDIM beats DDPM(small) in at least 4 of 5 seeds",
                judged(5 * wins >= 4 * len(pairs)),
                f"in {wins} of {len(pairs)}; distance {distance[EQUAL[0]]:.3g} against {distance[EQUAL[1]]:.3g}",
            ),
            Part(
                "s = 2 raises label accuracy without raising the distance by more than 20 %",
                judged(lifted),
                f"accuracy {right[FAST]:.3f} to {right[FAST_2]:.3f}, distance {distance[FAST]:.3g} to "
                f"{distance[FAST_2]:.3g}; DDIM-50",
            ),
            Part(
                "s = 4 raises the distance (diversity loss)",
                judged(spread_lost),
                f"distance {distance[FAST]:.3g} to {distance[FAST_4]:.3g}; DDIM-50",
            ),
        ]
        return settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        def value(model: str, name: str = "frechet_distance") -> float:
            return mean(_known(numbers[Arm(model, "ddim", 50).name][name]))

        pixel, latent, cosine = value("linear"), value("latent"), value("cosine")
        again = value("latent", "reconstruction_distance")
        word = "worse than" if latent > pixel else "not worse than"
        said = "the report's negative finding is reproduced" if latent > pixel else "the report found the opposite"
        errors = {steps: ddim_flow_error(steps) for steps in (10, 20, 50, 100)}
        shown = ", ".join(f"{error:.2g} at {steps}" for steps, error in errors.items())
        order = math.log(errors[50] / errors[100]) / math.log(2)
        return [
            f"Latent is {word} pixel at equal compute (same network, training and DDIM-50): distance {latent:.3g} "
            f"against {pixel:.3g}; {said}. Reconstructions alone stand at {again:.3g}.",
            f"Cosine table, DDIM-50: distance {cosine:.3g}; linear table {pixel:.3g}.",
            f"Without data, on a Gaussian with the exact noise, DDIM's distance to the exact flow is {shown} steps: "
            f"order {order:.2f}.",
        ]


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _seconds(numbers: Numbers, arm: str) -> float:
    return median(_known(numbers[arm]["seconds_per_image"]))


def _protocol() -> FrechetProtocol:
    test = load_images("digits", split="test")
    return FrechetProtocol(digits_net(), test, split="test", conditions="labels-uniform")


def _trained(name: str, seed: int, sizes: Scale) -> tuple[Denoiser, int]:
    """A model and what its training cost, in images times evaluations, forward 1 and backward 2."""
    data = load_images("digits", split="train")
    if name == "latent":
        return _trained_latent(data, seed, sizes)
    return _trained_eps(data, data.shape, name, seed, sizes), 3 * sizes.steps * BATCH


def _trained_eps(
    data: Images | tuple[Tensor, Tensor], shape: tuple[int, ...], table: str, seed: int, sizes: Scale
) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "enhanced-ddpm", table) % 2**63)
        net = MLP(in_shape=shape, width=sizes.width, depth=sizes.depth, num_classes=10)
    method = Denoising(
        Preconditioned(net, Discrete(betas=table), kind="eps"),
        p_uncond=0.1,
        lr=Cosine(PEAK_LR, sizes.steps, warmup=min(50, sizes.steps - 1)),
    )
    return fit(method, data, steps=sizes.steps, batch_size=BATCH, seed=seed, ema=AVERAGE).result()


def _trained_latent(data: Images, seed: int, sizes: Scale) -> tuple[Denoiser, int]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "enhanced-ddpm", "autoencoder") % 2**63)
        autoencoder = KLAutoencoder(in_shape=data.shape, latent_channels=4, base_channels=8, middle_attention=False)
    steps = sizes.autoencoder_steps
    method = KLAutoencoding(autoencoder, kl_weight=1e-6, lr=Cosine(AUTOENCODER_LR, steps, warmup=min(30, steps - 1)))
    fit(method, data, steps=steps, batch_size=AUTOENCODER_BATCH, seed=seed)
    autoencoder.eval()
    batch = data.batch(range(len(data)))
    scale = latent_scale(autoencoder, batch.image)
    with torch.no_grad():
        latents = autoencoder.encode(batch.image)[0] * scale
    assert batch.label is not None
    inner = _trained_eps((latents, batch.label), autoencoder.latent_shape, "linear", seed, sizes)
    return Latent(inner, autoencoder, scale=scale), 3 * (sizes.steps * BATCH + steps * AUTOENCODER_BATCH)


@torch.no_grad()
def _reconstruction(model: Any, protocol: FrechetProtocol) -> float:
    """The distance of the training images after encoding and decoding, which no latent model gets below."""
    train = load_images("digits", split="train")
    again = torch.cat([model.decode(model.encode(part.image)) for part in train.batches(500)]).clamp(-1, 1)
    return protocol.distance(features_of(protocol.encoder, again))


def _sampled(model: Denoiser, sampler: Sampler, seed: int, count: int) -> tuple[Tensor, Tensor, float, float]:
    """Images with their labels, evaluations per image, and the seconds all of them took, decoding included."""
    labels = torch.arange(count) % 10
    given = model.given(Cond(labels=labels))
    noise = Noise(derive(seed, "enhanced-ddpm", "samples"))
    with torch.no_grad():
        # The first call of a network is slower than the others; it is not timed.
        middle = 0.5 * (model.schedule.t_min + model.schedule.t_max)
        model.decode(given(noise.at(range(count), model.shape).normal(), middle).mean)
        start = time.perf_counter()
        sample = sampler(given, noise.at(range(count), model.shape))
        images = model.decode(sample.x).clamp(-1, 1)
        seconds = time.perf_counter() - start
    return images, labels, sample.nfe, seconds


def ddim_flow_error(steps: int, *, count: int = 64) -> float:
    """Root mean square distance of DDIM to the exact flow, on N(0.5, 0.25 I) in 8 dimensions with the exact noise.

    The levels are even in the index of the linear table, from the last to the first.

    Args:
        steps: of DDIM.
        count: points.

    >>> 1.8 < ddim_flow_error(50) / ddim_flow_error(100) < 2.2
    True
    """
    schedule = Discrete(betas="linear")
    exact = Gaussian(schedule, torch.full((8,), 0.5, dtype=torch.float64), 0.25)
    draws = Noise(0).at(range(count), (8,), dtype=torch.float64)
    sample = DDIM(steps=steps)(exact, draws)
    times = sample.times
    flow = exact.flow(draws.normal(), float(times[0]), float(times[-1]))
    return float((sample.x - flow).square().mean().sqrt())


CLAIM = EnhancedDDPM()
