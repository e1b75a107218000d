"""What to look at while a student is trained: a grid of samples, what its networks see, and a distance of samples.

    samples/<step>.png            images at fixed noise and labels
    samples/<step>-networks.png   of methods with a critic: the student's images, noised ones, the teacher's and the
                                  critic's answers to them
    quality.csv                   SW_1 between the pixels of a few hundred samples and as many true images

Losses of distribution matching are no measure of progress: the student's is the norm of a normalised gradient, the
critic's is the error against a moving target. The sliced Wasserstein distance is a cheap one, for comparing a training
with itself; what a student is worth is said by `scoreline compare`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.denoiser import Denoiser
from scoreline.core.noise import Noise, derive
from scoreline.data.grid import picture_grid, write_png
from scoreline.evaluate.specs import labels_for, make_sampler
from scoreline.metrics.sliced_wasserstein import sliced_wasserstein
from scoreline.samplers.generator import Sampled
from scoreline.train.log import CsvLog

__all__ = ["Quality", "draw"]

COUNT, DIRECTIONS, COLUMNS = 500, 200, 10
TEACHER_STEPS = 18  # Heun's, for what a training without data is compared with
_BATCH = 100


class Quality:
    """A distance of samples, measured now and then, in a CSV file that goes on when the training does.

    Args:
        path: the file, quality.csv of a run.
        step: steps made before; rows of later ones are dropped.
        data: what the student learns from: images, pairs, or None.
        teacher: makes the images to compare with where there are no data; None then leaves nothing to measure.
        count: samples.
        quiet: say nothing.
    """

    def __init__(
        self, path: Path, step: int, data: Any, teacher: Denoiser | None, *, count: int = COUNT, quiet: bool = False
    ) -> None:
        self.path, self.step, self.data, self.teacher, self.quiet = path, step, data, teacher, quiet
        self._log: CsvLog | None = None  # opened with the first row: the folder may turn out to be another run's
        self.count = count if data is None else min(count, len(data))
        self._true: Tensor | None = None

    def measure(self, method: Any, step: int) -> float | None:
        """Measure what the method makes now and write a row; None where it makes no images of the data's shape."""
        result = method.result()
        if not _makes_images(method, result) or (self.data is None and self.teacher is None):
            return None
        classes: Sequence[int] | None = getattr(method, "classes", None)
        made = _generated(result, self.count, classes)
        if self._true is None:
            self._true = self._reference(classes, made.device)
        if made.shape != self._true.shape:
            return None
        directions = Noise(derive(0, "quality")).at(range(DIRECTIONS), (made[0].numel(),)).normal()
        value = sliced_wasserstein(self._true.cpu(), made.cpu(), directions)
        self._log = self._log or CsvLog(self.path, self.step)
        self._log.add({"step": step, "sliced_wasserstein": round(value, 6)})
        if not self.quiet:
            word = "; the losses are no measure of progress" if hasattr(method, "pictures") else ""
            origin = "teacher's" if self.data is None else "true"
            said = f"step {step}  {value:.4g} between samples and {origin} images (sliced Wasserstein{word})"
            print(said, file=sys.stderr, flush=True)
        return value

    def _reference(self, classes: Sequence[int] | None, device: torch.device) -> Tensor:
        if self.data is None:
            assert self.teacher is not None
            solver = make_sampler("heun", steps=TEACHER_STEPS)
            return _generated(Sampled(self.teacher.to(device), solver), self.count, classes)
        rows = np.random.Generator(np.random.Philox(derive(0, "quality"))).permutation(len(self.data))
        labels = getattr(self.data, "labels", None)
        if classes is not None and labels is not None and labels.ndim == 1:
            # Classes in equal shares, as they are generated.
            members = [rows[labels[rows] == c] for c in classes]
            rows = np.array([mine[i % len(mine)] for i in range(self.count) for mine in members if len(mine)])
        found: Tensor = self.data.batch(rows[: self.count]).image
        return found


def draw(method: Any, step: int, path: Path) -> None:
    """Pictures of a training, the same noise and labels every time, so that progress is seen.

    Args:
        method: what is trained, in evaluation mode.
        step: steps made.
        path: of the grid of samples; the networks' grid lies beside it.
    """
    result = method.result()
    if not _makes_images(method, result) or result.shape[0] not in (1, 3):
        return
    images = _generated(result, 4 * COLUMNS, getattr(method, "classes", None))
    write_png(path, picture_grid(images, columns=COLUMNS))
    if hasattr(method, "pictures"):
        rows: dict[str, Tensor] = method.pictures(COLUMNS)
        grid = picture_grid(torch.cat([x.float() for x in rows.values()]), columns=COLUMNS, row_labels=list(rows))
        write_png(path.with_name(f"{path.stem}-networks.png"), grid)


def _makes_images(method: Any, result: Any) -> bool:
    told = any({"image", "tokens"} & set(getattr(module, "accepts", ())) for module in method.modules())
    return isinstance(result, Sampled) and len(result.shape) == 3 and not told


def _generated(result: Sampled, count: int, classes: Sequence[int] | None) -> Tensor:
    place = next(value.device for value in [*result.parameters(), *result.buffers()])
    images = []
    for start in range(0, count, _BATCH):
        indices = range(start, min(start + _BATCH, count))
        cond = labels_for(indices, result.num_classes, None if classes is None else list(classes))
        images.append(result.generate(indices, Noise(0), cond if cond is None else cond.to(place)))
    return torch.cat(images)
