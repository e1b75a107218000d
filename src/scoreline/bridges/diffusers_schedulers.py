"""Our samplers as schedulers of the diffusers library, in pipelines that stay as they are.

A pipeline owns the loop: it asks the network at `timesteps[i]` and hands the answer to `step`. Our samplers own it
themselves: `Sampler.step` calls the model, once or several times. The two meet by replay. `step` runs `Sampler.step`
with a model that answers from the outputs received so far and, when they are used up, stops the run with the question
that has no answer yet; that question's image is what the pipeline gets as `prev_sample`. With the next output the same
step runs again from its start and comes one question further. A step is a pure function of state, row and addressed
noise, so that what is run again comes out the same to the last bit; what is repeated is a handful of tensor operations,
never the network. So samplers of one evaluation a step and of several (Heun: one call each, as in diffusers) go the
same way, without threads and without a second version of any sampler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreline.bridges.diffusers_models import KINDS, diffusers_library, schedule_of
from scoreline.core.artefact import build, describe
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler, State
from scoreline.core.schedule import Schedule, Time
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.evaluate.specs import make_sampler
from scoreline.guidance.thresholding import Thresholded

diffusers_library()  # says what to install, before the next line would fail

from diffusers import ConfigMixin, SchedulerMixin  # noqa: E402
from diffusers.configuration_utils import register_to_config  # noqa: E402
from diffusers.schedulers.scheduling_utils import SchedulerOutput  # noqa: E402

__all__ = ["SamplerScheduler", "as_scheduler"]


_TINY = (1, 2, 2)


class _Question(Exception):
    """What the sampler asks the network and nobody has answered yet."""

    def __init__(self, x: Tensor, t: Time) -> None:
        super().__init__()
        self.x, self.t = x, t


class _Given(nn.Module):
    """A network that returns the output it was handed."""

    num_classes = None

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.in_shape = tuple(shape)
        self.anchor = nn.Parameter(torch.zeros((), dtype=dtype), requires_grad=False)
        self.out: Tensor | None = None

    def trace(self, x: Tensor, t: Tensor, cond: Cond | None, plan: Any) -> tuple[Tensor | None, dict[str, Tensor]]:
        return self.out, {}


class _Answers(Preconditioned):
    """A model that answers from a list, in its own kind, and asks when the list is used up."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, schedule: Schedule, kind: str, both: bool) -> None:
        super().__init__(_Given(shape, dtype), schedule, kind=kind, learned_variance=both)
        self.waiting: list[Tensor] = []

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        if not self.waiting:
            raise _Question(x, t)
        self.net.out = self.waiting.pop(0)
        return super().posterior(x, t, cond)


class SamplerScheduler(SchedulerMixin, ConfigMixin):
    """A sampler of ours with the interface of diffusers' schedulers.

    `pipe.scheduler = SamplerScheduler.from_config(pipe.scheduler.config, sampler="dpm-solver++2m")` takes over what the
    config says of the model; or see :func:`as_scheduler`. `num_inference_steps` is the number of noise levels; samplers
    of several evaluations a step have more `timesteps` than that. Noise that a sampler adds comes from the `generator`
    that the pipeline passes on, one stream an image.

    Args:
        sampler: name and settings as on the command line, "ddim:eta=1:grid=leading", or the description of a sampler.
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the table of
            noise levels that the model was trained with, as in diffusers.
        prediction_type: "epsilon", "v_prediction" or "sample".
        clip_sample: keep the predicted clean image in [-clip_sample_range, clip_sample_range] (the noise estimate is
            made anew from it, so that all samplers stay consistent).
        clip_sample_range: that range.

    Raises:
        InputError: an unknown sampler, setting, table or prediction type.
    """

    order = 1
    sampler: Sampler
    num_inference_steps: int | None
    # A run: its levels, the evaluations' levels and which of them begin a step.
    _times: np.ndarray | None
    _levels: np.ndarray
    _starts: list[int]
    # Where it is: the row, the evaluation, the state before the row's step, the answers since, what was handed out.
    _rows: list[Any]
    _row: int
    _position: int
    _state: State | None
    _at_state: bool
    _answered: list[Tensor]
    _handed: Tensor
    _answers: _Answers
    _denoiser: Denoiser

    @register_to_config
    def __init__(
        self,
        sampler: str | dict[str, Any] = "dpm-solver++2m",
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
    ) -> None:
        if prediction_type not in KINDS:
            raise unknown_name("prediction_type", prediction_type, KINDS)
        self.schedule = schedule_of(
            {
                "num_train_timesteps": num_train_timesteps, "beta_start": beta_start, "beta_end": beta_end,
                "beta_schedule": beta_schedule, "trained_betas": trained_betas,
                "rescale_betas_zero_snr": rescale_betas_zero_snr,
            }
        )  # fmt: skip
        _made(sampler, 10)
        self.kind = KINDS[prediction_type]
        self.init_noise_sigma = 1.0
        self.num_inference_steps = None
        self.timesteps = torch.arange(self.schedule.T - 1, -1, -1)
        self._times = None
        self._begin_index: int | None = None

    def __len__(self) -> int:
        return self.schedule.T

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose the noise levels of the next run.

        Args:
            num_inference_steps: number of levels; the sampler's grid says which.
            device: where `timesteps` is put.
            timesteps: the levels themselves, the noisiest first, instead of a number.

        Raises:
            InputError: both or none are given, or the sampler cannot run so.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise InputError("num_inference_steps", num_inference_steps, "give it or timesteps, one of them")
        count = len(timesteps) if timesteps is not None else num_inference_steps
        self.sampler = _made(self.config["sampler"], int(count or 0))
        if timesteps is None:
            times = self.sampler.times(self.schedule)
        else:
            times = np.append(np.asarray(timesteps, dtype=np.float64), self.schedule.clean)
            if not (np.diff(times) < 0).all():
                raise InputError("timesteps", [float(t) for t in times[:6]], "must decrease")
        self._model(_TINY, torch.float64, False).check(times)
        asked = self._asked(times)
        self.num_inference_steps = int(count or 0)
        self._times, self._starts = times, [position for position, _, first in asked if first]
        levels = np.array([t for _, t, _ in asked])
        whole = bool((levels == np.round(levels)).all())
        self.timesteps = torch.as_tensor(levels, device=device).to(torch.int64 if whole else torch.float32)
        self._levels = levels
        self._state = None
        self._begin_index = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at `timesteps[begin_index]`, from an image say; otherwise the first timestep that `step` gets tells."""
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network takes the state as it is."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) noise for images (B, ...) at timesteps (B,)."""
        return self.schedule.marginal(original_samples, timesteps.to(original_samples.device), noise)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float | None = None,
        use_clipped_model_output: bool | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Take the network's answer; give the image to ask it about next, or at the end the result.

        Args:
            model_output: the answer for `sample` at `timestep`, (B, C, ...), or (B, 2C, ...) with a learned variance.
            timestep: what the network was told.
            sample: what it was shown.
            eta: only the 0 that pipelines pass by default; the sampler says how much noise it adds.
            use_clipped_model_output: no effect.
            generator: where the noise streams of the images are drawn from, if the sampler adds noise.
            return_dict: False gives a tuple.

        Raises:
            InputError: `set_timesteps` was not called, or the run is over, or eta asks for noise.
        """
        if eta:
            raise InputError("eta", eta, "is a setting of the sampler here: sampler='ddim:eta=...'")
        if self._times is None:
            raise InputError("timesteps", None, "call set_timesteps first")
        work = sample.dtype if sample.dtype == torch.float64 else torch.float32
        if self._state is None:
            self._begin(timestep, sample, model_output, generator, work)
        elif self._row >= len(self._rows):
            raise InputError("timestep", str(timestep), "the run is over; call set_timesteps for another")
        elif sample is not self._handed and self._at_state:
            # Somebody changed the image between two steps (inpainting, guidance): what they made counts.
            self._state = self._state._replace(x=sample.to(work))
        assert self._state is not None
        self._answered.append(model_output.to(work))
        self._position += 1
        out = self._advance(self._state)
        self._handed = out if out.dtype == sample.dtype else out.to(sample.dtype)
        return SchedulerOutput(prev_sample=self._handed) if return_dict else (self._handed,)

    def _advance(self, state: State) -> Tensor:
        """Run on until the sampler asks something new, or to the end."""
        while self._row < len(self._rows):
            self._answers.waiting = list(self._answered)
            try:
                state = self.sampler.step(self._denoiser, state, self._rows[self._row])
            except _Question as question:
                if isinstance(question.t, Tensor) or question.t != self._levels[self._position]:
                    raise _moving(self.sampler) from None
                self._state, self._at_state = state, question.x is state.x
                return question.x
            self._answered, self._row = [], self._row + 1
        self._state = state
        return state.x

    def _begin(self, timestep: Any, sample: Tensor, output: Tensor, generator: Any, work: torch.dtype) -> None:
        assert self._times is not None
        position = self._begin_index
        if position is None:
            found = np.flatnonzero(self._levels == float(timestep))
            position = int(found[0]) if len(found) else -1
        if position not in self._starts:
            raise InputError("timestep", float(timestep), "no step of the run starts there")
        self._row, self._position = 0, position
        times = self._times[self._starts.index(position) :]
        rows = self.sampler.coefficients(self.schedule, times)
        self._rows = list(rows)
        channels = sample.shape[1]
        self._answers = self._model(sample.shape[1:], work, output.shape[1] == 2 * channels)
        self._denoiser = self._kept(self._answers)
        draws = Noise(0).at(_streams(len(sample), generator) if self.sampler.stochastic else range(len(sample)),
                            sample.shape[1:], device=sample.device, dtype=work)  # fmt: skip
        self._state = self.sampler.init(self._denoiser, draws, rows, sample.to(work))
        self._answered = []

    def _model(self, shape: Sequence[int], dtype: torch.dtype, both: bool) -> _Answers:
        return _Answers(shape, dtype, self.schedule, self.kind, both).eval()

    def _kept(self, model: Denoiser) -> Denoiser:
        return Thresholded(model, limit=self.config["clip_sample_range"]) if self.config["clip_sample"] else model

    def _asked(self, times: np.ndarray) -> list[tuple[int, float, bool]]:
        """(position, level, whether a step begins) of every evaluation, found by a run on a tiny image."""
        rows = self.sampler.coefficients(self.schedule, times)
        answers = self._model(_TINY, torch.float64, True)
        model = self._kept(answers)
        state = self.sampler.init(model, Noise(0).at([0], _TINY, dtype=torch.float64), rows)
        asked: list[tuple[int, float, bool]] = []
        for row in rows:
            before, given = len(asked), 0
            while True:
                answers.waiting = [torch.zeros(1, 2 * _TINY[0], *_TINY[1:], dtype=torch.float64)] * given
                try:
                    state = self.sampler.step(model, state, row)
                    break
                except _Question as question:
                    if isinstance(question.t, Tensor):
                        raise _moving(self.sampler) from None
                    asked.append((len(asked), float(question.t), len(asked) == before))
                    given += 1
        return asked


def _made(sampler: str | Mapping[str, Any], steps: int) -> Sampler:
    """The sampler with that many steps."""
    if isinstance(sampler, str):
        made = make_sampler(sampler, steps=steps)
    else:
        made = build({**sampler, "args": {**sampler["args"], "steps": steps, "nfe": None}})
    if type(made).__call__ is not Sampler.__call__ and getattr(made, "adaptive", True):
        raise _moving(made)
    if made.of_maps:
        raise InputError("sampler", type(made).__name__, "needs a flow map; the network of a pipeline is a denoiser")
    return made


def _moving(sampler: Sampler) -> InputError:
    mend = "chooses its levels while it runs; a pipeline must know them before. Use it on scoreline.load"
    return InputError("sampler", type(sampler).__name__, mend)


def _streams(count: int, generator: torch.Generator | list[torch.Generator] | None) -> list[int]:
    """One stream number an image, drawn where the pipeline draws its own noise."""
    high = 2**62
    if isinstance(generator, list):
        return [int(torch.randint(high, (1,), generator=g, device=g.device)) for g in generator]
    device = "cpu" if generator is None else generator.device
    return torch.randint(high, (count,), generator=generator, device=device).tolist()


def as_scheduler(sampler: str | Sampler, config: Any = None) -> SamplerScheduler:
    """A sampler of ours as a scheduler for diffusers' pipelines.

    Args:
        sampler: "heun", "ddim:eta=1", ... or a sampler; its steps come from the pipeline.
        config: the scheduler that the pipeline has, or its config; it says how the model was trained. None takes DDPM's
            linear table and noise prediction.

    Returns:
        A scheduler: `pipe.scheduler = as_scheduler("dpm-solver++3m", pipe.scheduler)`.

    Raises:
        InputError: an unknown sampler, or a config without a table of betas.
    """
    spec = sampler if isinstance(sampler, str) else describe(sampler)
    if config is None:
        return SamplerScheduler(sampler=spec)
    values = dict(config if isinstance(config, Mapping) else config.config)
    schedule_of({"_class_name": type(config).__name__, **values})  # refused here, by name
    known = [name for name in SamplerScheduler().config if not name.startswith("_") and name != "sampler"]
    return SamplerScheduler(sampler=spec, **{name: values[name] for name in known if name in values})
