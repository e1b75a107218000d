"""Inpainting and colourisation: what is known stays, what is not is sampled as without a mask, noise is fresh."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.errors import InputError
from scoreline.core.names import lookup
from scoreline.core.noise import Noise
from scoreline.core.schedule import Time
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Empirical, Gaussian, Mixture
from scoreline.diffusion.schedules import EDM, VE, VP, Discrete, SubVP
from scoreline.guidance.inpainting import Inpainting, colour_axes, colourisation, replaced
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.heun import Heun
from scoreline.samplers.score_sde import PC

F8 = torch.float64
SHAPE = (3, 4, 4)
OF: dict[str, Any] = {
    "ddim": {}, "ddpm": {}, "heun": {}, "dpm-solver++2m": {}, "euler-maruyama": {}, "pc": {"corrector_steps": 2},
}  # fmt: skip


def mixture(schedule: Any) -> Mixture:
    generator = torch.Generator().manual_seed(1)
    return Mixture(schedule, torch.randn(6, *SHAPE, generator=generator, dtype=F8) * 0.5, 0.05)


def draws(count: int = 3, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Any:
    return Noise(seed).at(range(count), shape, dtype=F8)


def picture(count: int = 3, seed: int = 4) -> Tensor:
    return (draws(count, seed).normal() * 0.4).clamp(-1, 1)


LEFT = torch.zeros(4, 4)
LEFT[:, :2] = 1


class Watched(View):
    """Keeps every state that the model is shown, and when."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.seen: list[tuple[Tensor, float]] = []

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        self.seen.append((x.clone(), t))
        return self.inner(x, t, cond)


@pytest.mark.check(system=15, number=8)
@pytest.mark.parametrize("schedule", [VP(), VE(), EDM(), SubVP(), Discrete()])
@pytest.mark.parametrize("of", OF)
def test_all_known_returns_the_data_and_nothing_known_samples_freely(of: str, schedule: Any) -> None:
    model, noise, image = mixture(schedule), draws(), picture()
    base = lookup("sampler", of)(steps=6, **OF[of])
    whole = Inpainting(base, image=image, mask=torch.ones(4, 4))(model, noise)
    assert torch.equal(whole.x, image)
    free = Inpainting(base, image=image, mask=torch.zeros(4, 4))(model, noise)
    plain = base(model, noise)
    assert torch.equal(free.x, plain.x)
    assert whole.nfe == free.nfe == plain.nfe
    # Stopped at a level instead, the data come back to sigma of that level.
    low = schedule.t_min if schedule.known is None else 3.0
    times = [*(float(t) for t in base.times(schedule)[:4]), low]
    rest = Inpainting(base, image=image, mask=torch.ones(4, 4))(model, noise, times=times).x
    assert (rest - image * float(schedule.alpha(low))).abs().max() < 5 * float(schedule.sigma(low))


@pytest.mark.parametrize("of", OF)
def test_a_half_is_kept_and_the_rest_is_made_to_fit(of: str) -> None:
    model, noise = mixture(VP()), draws(18)
    image = model.means.view(6, *SHAPE).repeat(3, 1, 1, 1)
    base = lookup("sampler", of)(steps=20, **OF[of])
    x = Inpainting(base, image=image, mask=LEFT)(model, noise).x
    assert torch.equal(x[..., :2], image[..., :2])
    # Half of a mode tells which mode it is; most of the other halves are that mode's, which by chance one in six is.
    free = base(model, noise).x
    for made, low, high in ((x, 0.5, 1.0), (free, 0.0, 0.4)):
        away = (made[..., 2:] - image[..., 2:]).flatten(1).square().mean(1)
        assert low <= float((away < 0.2).double().mean()) <= high, away


@pytest.mark.parametrize("steps, corrections", [(5, 0), (5, 1), (3, 2)])
def test_every_call_sees_the_known_part_at_its_level_with_fresh_noise(steps: int, corrections: int) -> None:
    schedule = VE(sigma_max=10)
    model, image = Watched(mixture(schedule)), picture()
    base = PC(steps=steps, corrector_steps=corrections)
    Inpainting(base, image=image, mask=LEFT)(model, draws())
    assert len(model.seen) == steps * (corrections + 1)
    noise = torch.stack([(x - image)[..., :2] / float(schedule.sigma(t)) for x, t in model.seen]).flatten(1)
    size = noise.square().mean(1).sqrt()
    assert bool(((size > 0.75) & (size < 1.3)).all()), size
    alike = torch.corrcoef(noise) - torch.eye(len(noise))
    assert alike.abs().max() < 0.5  # 72 numbers each
    assert bool((noise[0] != noise[1]).all())


def test_one_noise_for_the_whole_run_where_it_is_asked_for() -> None:
    schedule = VE(sigma_max=10)
    model, image = Watched(mixture(schedule)), picture()
    Inpainting(Heun(steps=4), image=image, mask=LEFT, fresh=False)(model, draws())
    noise = [(x - image)[..., :2] / float(schedule.sigma(t)) for x, t in model.seen]
    assert len(noise) == 7
    assert all((n - noise[0]).abs().max() < 1e-9 for n in noise)
    assert abs(float(noise[0].std()) - 1) < 0.3


def test_its_noise_is_not_the_samplers() -> None:
    """The known part shown at the start is not shaped by the noise that starts the rest, nor by later steps' noise."""
    model = Watched(mixture(VP()))
    noise = draws()
    Inpainting(DDIM(steps=3, eta=1.0), image=torch.zeros(1, *SHAPE, dtype=F8), mask=LEFT)(model, noise)
    for x, t in model.seen:
        shown = (x[..., :2] / float(VP().sigma(t))).flatten()
        for step in range(4):
            other = noise.normal(step)[..., :2].flatten()
            assert abs(float(torch.corrcoef(torch.stack([shown, other]))[0, 1])) < 0.5


def test_outside_the_mask_the_last_mean_or_the_noisy_state() -> None:
    """denoise=False leaves the last step's noise outside the mask, as the released code does."""
    schedule = VE(sigma_max=10)
    model, image = mixture(schedule), picture()
    times = [*schedule.time(-torch.logspace(1, -0.7, 12, dtype=F8).log()).tolist(), schedule.clean]
    means, noisy = (
        Inpainting(PC(corrector_steps=0, denoise=denoise), image=image, mask=LEFT)(model, draws(), times=times).x
        for denoise in (True, False)
    )
    assert torch.equal(means[..., :2], noisy[..., :2])
    last = (noisy - means)[..., 2:]
    assert abs(float(last.std()) - 0.2) < 0.05  # 10^-0.7


def test_the_released_start_shows_the_known_part_without_noise() -> None:
    model, image = Watched(mixture(VP())), picture()
    Inpainting(DDIM(steps=3), image=image, mask=LEFT, variant="released")(model, draws())
    assert torch.equal(model.seen[0][0][..., :2], image[..., :2])
    assert (model.seen[1][0][..., :2] - image[..., :2]).abs().max() > 0.1
    assert model.seen[0][0][..., 2:].std() > 0.8


def test_a_gaussian_with_half_its_entries_known() -> None:
    """The exact conditional is N(rho y, 1 - rho^2); the replacement's mean is short of it, less so with corrections."""
    rho, schedule = 0.8, VP()
    cov = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=F8)

    class Correlated(Denoiser):
        """Eight pairs, each correlated."""

        def __init__(self) -> None:
            super().__init__()
            self.schedule, self.shape = schedule, (8, 2)

        def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
            a, s = float(schedule.alpha(t)), float(schedule.sigma(t))
            gain = a * cov @ torch.linalg.inv(a * a * cov + s * s * torch.eye(2, dtype=F8))
            return Posterior.of_mean(x, x @ gain.T, a, s)

    known = torch.tensor([1.0, 0.0]).expand(8, 2)
    bias = {}
    for steps, corrections in ((20, 0), (20, 2), (60, 2)):
        base = PC(steps=steps, corrector_steps=corrections, snr=0.3)
        noise = Noise(0).at(range(60), (8, 2), dtype=F8)
        x = Inpainting(base, image=1.5 * known[None].double(), mask=known)(Correlated(), noise).x
        assert bool((x[..., 0] == 1.5).all())
        bias[steps, corrections] = float(x[..., 1].mean()) - rho * 1.5
    assert bias[20, 0] < -0.4
    assert bias[20, 0] < bias[20, 2] - 0.1
    assert bias[20, 2] < bias[60, 2] - 0.1
    assert abs(bias[60, 2]) < 0.25


@pytest.mark.check(system=15, number=9)
def test_the_colour_axes_are_orthogonal_and_grey_is_kept() -> None:
    M = colour_axes()
    assert (M.T @ M - torch.eye(3, dtype=F8)).abs().max() < 1e-12
    assert (M[0] - 3**-0.5).abs().max() < 1e-12
    model = mixture(VP())
    grey = picture()[:, :1]
    for of in ("ddim", "pc", "heun"):
        x = colourisation(lookup("sampler", of)(steps=6), grey)(model, draws()).x
        assert (x.mean(1, keepdim=True) - grey).abs().max() < 1e-12
        assert (x - x.mean(1, keepdim=True)).abs().max() > 0.05, "there is colour"


def test_grey_digits_get_the_colour_of_their_class() -> None:
    """Training digits of ten hues, exactly modelled; test digits are grey, and what they are tells their hue."""
    angle = torch.arange(10) * 2 * math.pi / 10
    hues = torch.stack([angle.cos(), angle.sin()], 1) @ colour_axes()[1:].float()

    def coloured(split: str, rows: range) -> tuple[Tensor, Tensor]:
        batch = load_images("digits", split=split).batch(rows)
        assert batch.label is not None
        ink = (batch.image + 1) / 2
        return 0.6 * batch.image + 0.45 * ink * hues[batch.label][:, :, None, None], batch.label

    model = Empirical(VP(), coloured("train", range(1297))[0], smoothing=0.1)
    truth, labels = coloured("test", range(40))
    sampler = colourisation(PC(steps=30), truth.mean(1, keepdim=True))
    x = sampler(model, Noise(0).at(range(40), (3, 8, 8))).x
    assert (x.mean(1) - truth.mean(1)).abs().max() < 1e-5
    found = (x - x.mean(1, keepdim=True)).sum((2, 3)) @ hues.T
    assert (found.argmax(1) == labels).double().mean() > 0.85


def test_the_noise_of_replaced_colour_channels_is_white() -> None:
    z, x = draws(4000, 1).normal(), draws(4000, 2).normal()
    mask = torch.tensor([True, False, False]).view(3, 1, 1)
    mixed = replaced(x, z, mask, colour_axes()).permute(0, 2, 3, 1).reshape(-1, 3)
    assert (torch.cov(mixed.T) - torch.eye(3)).abs().max() < 0.02
    M = colour_axes()
    turned = torch.einsum("dc,bchw->bdhw", M, replaced(x, z, mask, M))
    assert (turned[:, 0] - torch.einsum("c,bchw->bhw", M[0], z)).abs().max() < 1e-12
    assert (turned[:, 1:] - torch.einsum("dc,bchw->bdhw", M[1:], x)).abs().max() < 1e-12


def test_an_image_does_not_depend_on_its_batch() -> None:
    model, image = mixture(VP()), picture()
    base = PC(steps=5)
    together = Inpainting(base, image=image, mask=LEFT)(model, draws()).x
    alone = Inpainting(base, image=image[1:2], mask=LEFT)(model, Noise(0).at([1], SHAPE, dtype=F8)).x
    assert (together[1] - alone[0]).abs().max() < 1e-10


def test_the_budget_is_the_inner_samplers() -> None:
    sampler = Inpainting(PC(nfe=11), image=picture(), mask=LEFT)
    assert sampler(mixture(VP()), draws()).nfe == 10


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"mask": torch.ones(5, 4)}, "one number for each pixel"),
        ({"mask": torch.ones(2, 3, 4, 4)}, "one number for each pixel"),
        ({"mask": torch.full((4, 4), 0.5)}, "other than 0 and 1"),
        ({"axes": torch.eye(2)}, "orthogonal"),
        ({"axes": 2 * torch.eye(3)}, "orthogonal"),
        ({"variant": "relased"}, "did you mean 'released'"),
        ({"of": lookup("sampler", "rk45")(rtol=1e-3)}, "fixed grid"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], word: str) -> None:
    given = {"of": DDIM(steps=3), "image": picture(), "mask": LEFT, **settings}
    with pytest.raises(InputError, match=word):
        Inpainting(given.pop("of"), **given)


def test_images_of_another_shape_or_number_are_refused() -> None:
    model = Watched(Gaussian(VP(), torch.zeros(SHAPE, dtype=F8), 1.0))
    for image in (torch.zeros(3, 1, 4, 4), torch.zeros(2, *SHAPE)):
        with pytest.raises(InputError, match="image shape"):
            Inpainting(DDIM(steps=3), image=image, mask=LEFT)(model, draws())
    assert not model.seen
    with pytest.raises(InputError, match="one channel"):
        colourisation(DDIM(steps=3), picture())
