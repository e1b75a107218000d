"""Schedulers of the diffusers library as samplers on our denoisers, for comparison and for whoever knows them.

Their step arithmetic is run as it is; only the levels are ours to choose. The schedulers that work in
s = sigma/alpha are given the run's own levels in place of their table's; DDIM, which knows nothing but its table, gets
a table that holds the run's levels and no others. Both reproduce their pipelines when the levels are the same. They ask
for noise predictions, which are the same number in all coordinates, so that any denoiser on any schedule will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.bridges.diffusers_models import diffusers_library
from scoreline.core.cost import Counted
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import Draws
from scoreline.core.sampler import Rows, Sample, Sampler
from scoreline.core.schedule import Schedule
from scoreline.samplers.steps import need_signal, scaled_levels

__all__ = ["SCHEDULERS", "DiffusersSampler"]

# Whether the state is x/alpha (k-diffusion's) or x in variance-preserving coordinates.
SCHEDULERS = {
    "DDIMScheduler": "preserving",
    "DPMSolverMultistepScheduler": "preserving",
    "UniPCMultistepScheduler": "preserving",
    "DEISMultistepScheduler": "preserving",
    "EulerDiscreteScheduler": "exploding",
    "HeunDiscreteScheduler": "exploding",
}


class DiffusersSampler(Sampler):
    """A deterministic scheduler of diffusers as a sampler.

    DEIS in log-rho has no step to s = 0; diffusers ends it at the table's least noise. Here its last step to the clean
    end is E[x_0|x_t], as first-order methods end; give times that end before it to leave the step out.

    Args:
        scheduler: name of a class of :data:`SCHEDULERS`, or a scheduler, of which the settings are taken.
        settings: settings of a scheduler given by name, {"solver_order": 3}.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.

    Raises:
        InputError: an unknown scheduler or setting, or one that adds noise.
    """

    def __init__(
        self,
        scheduler: Any,
        settings: Mapping[str, Any] | None = None,
        *,
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        name = scheduler if isinstance(scheduler, str) else type(scheduler).__name__
        if name not in SCHEDULERS:
            raise unknown_name("scheduler", name, SCHEDULERS)
        if name == "HeunDiscreteScheduler":
            self.min_steps = 2
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        self.scheduler = name
        self._class = getattr(diffusers_library(), name)
        if isinstance(scheduler, str):
            known = [key for key in dict(self._class().config) if not key.startswith("_")]
            for key in settings or {}:
                if key not in known:
                    raise unknown_name(f"setting of {name}", key, known)
            self.settings = {"clip_sample": False} if name == "DDIMScheduler" else {}
            self.settings |= dict(settings or {})
        else:
            if settings is not None:
                raise InputError("settings", dict(settings), "give them with a name; a scheduler has its own")
            self.settings = {k: v for k, v in dict(scheduler.config).items() if not k.startswith("_")}
        if str(self.settings.get("algorithm_type", "")).startswith("sde"):
            raise InputError("algorithm_type", self.settings["algorithm_type"], "adds noise that belongs to no image")

    def cost(self, steps: int) -> int:
        return 2 * steps - 1 if self.scheduler == "HeunDiscreteScheduler" else steps

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        """The levels alone, s = sigma/alpha; the arithmetic is diffusers'."""
        need_signal(schedule, times, self.scheduler)
        s = scaled_levels(schedule, np.asarray(times, dtype=np.float64))
        return Rows(times, level=s[:-1], to=s[1:])

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Draws,
        *,
        times: Any | None = None,
        x: Tensor | None = None,
        trajectory: bool = False,
    ) -> Sample:
        schedule = denoiser.schedule
        grid = self.times(schedule, denoiser.evaluations) if times is None else times
        grid = self._checked(denoiser, grid, noise)
        rows = self.coefficients(schedule, grid)
        state = self.init(denoiser, noise, rows, x).x
        counted = Counted(denoiser)
        s, alpha = np.append(rows["level"], rows["to"][-1]), schedule.alpha(grid)
        # theirs = x / unit at each level; what they show the network is x / alpha / sqrt(1 + s^2).
        shown = alpha * np.sqrt(1 + s * s)
        unit = alpha if SCHEDULERS[self.scheduler] == "exploding" else shown
        stages = np.arange(len(s) - 1)
        if self.scheduler == "HeunDiscreteScheduler":
            stages = np.append(0, np.repeat(stages[1:], 2))
        scheduler = self._ready(s, stages)
        ending = self.scheduler == "DEISMultistepScheduler" and s[-1] == 0
        path = [state] if trajectory else None
        with torch.no_grad():
            theirs = state / float(unit[0])
            for k, i in enumerate(stages):
                t = scheduler.timesteps[k]
                asked = scheduler.scale_model_input(theirs, t) * float(shown[i])
                post = counted(asked, float(grid[i]))
                if ending and k == len(stages) - 1:
                    theirs = post.mean / float(unit[-1])
                else:
                    theirs = scheduler.step(post.eps, t, theirs, return_dict=False)[0]
                after = k + 1 == len(stages) or stages[k + 1] != i
                if path is not None and after and self.scheduler != "HeunDiscreteScheduler":
                    path.append(theirs * float(unit[i + 1]))
        return Sample(theirs * float(unit[-1]), counted.nfe, counted.nfe, grid, path)

    def _ready(self, s: np.ndarray, stages: np.ndarray) -> Any:
        """A scheduler at the start of a run through the levels s = sigma/alpha, the noisiest first."""
        steps = len(s) - 1
        settings = {**self.settings, "prediction_type": "epsilon"}
        if self.scheduler == "DDIMScheduler":
            abar = 1 / (1 + s[::-1] ** 2)  # ascending noise; entry 0 is where the run ends
            own = {"num_train_timesteps": steps, "trained_betas": (1 - abar[1:] / np.append(1.0, abar[1:-1])).tolist()}
            own |= {"timestep_spacing": "leading", "steps_offset": 0, "rescale_betas_zero_snr": False}
            scheduler = self._class(**{**settings, **own})
            scheduler.set_timesteps(steps)
            scheduler.final_alpha_cumprod = torch.tensor(abar[0])
            return scheduler
        plain = {key: False for key in settings if key.startswith("use_") and key.endswith("_sigmas")}
        scheduler = self._class(**{**settings, **plain, "trained_betas": None, "timestep_spacing": "linspace"})
        scheduler.set_timesteps(steps)
        inner = [1.0] if self.scheduler != "HeunDiscreteScheduler" else [1.0, 1.0]
        levels = np.concatenate([s[:1], np.repeat(s[1:-1], len(inner)), s[-1:]])
        scheduler.sigmas = torch.from_numpy(levels.astype(np.float32))
        # Their times only say which step it is.
        scheduler.timesteps = torch.arange(len(stages), 0, -1, dtype=torch.float32)
        scheduler.set_begin_index(0)
        return scheduler
