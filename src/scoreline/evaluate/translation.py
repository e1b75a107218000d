"""Images made from images: a model that is told a source, run over a set, and its table of scores.

psnr [dB], ssim, the Frechet distance of pixels, colour shift |mean over all pixels of (made - target)|, mean over
channels, and seconds an image. Above 32 pixels a side images are averaged to 32 x 32 for the Frechet distance, whose
name then says so (fd-pixel-32): it has too many dimensions otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.device import pick_device
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.core.sampler import Sampler
from scoreline.data import to_uint8
from scoreline.data.folder import load_folder
from scoreline.data.grid import write_png
from scoreline.data.paired import pictures_in
from scoreline.evaluate.specs import check_fit, choose_sampler
from scoreline.metrics.frechet import frechet_distance
from scoreline.metrics.image_quality import psnr, ssim
from scoreline.samplers.generator import Sampled

__all__ = ["colour_shift", "translate", "translate_folder", "translation_scores"]

MOST = 32


def colour_shift(made: Tensor, target: Tensor) -> float:
    """|mean(made) - mean(target)| over images and pixels, mean over channels; images in [-1, 1].

    Args:
        made, target: (N, C, H, W).

    >>> round(colour_shift(torch.full((2, 1, 4, 4), 0.1), torch.zeros(2, 1, 4, 4)), 6)
    0.1
    """
    return float((made.double().mean((0, 2, 3)) - target.double().mean((0, 2, 3))).abs().mean())


def translation_scores(made: Tensor, target: Tensor) -> dict[str, float]:
    """PSNR, SSIM, Frechet distance of pixels and colour shift of images and their targets.

    Args:
        made, target: (N, C, H, W) in [-1, 1], pair by pair; at least 2, of 6 pixels or more a side.

    Raises:
        InputError: shapes differ, or there are fewer than two.
    """
    if made.shape != target.shape or len(made) < 2:
        raise InputError("target", tuple(target.shape), f"needs 2 or more images, of shape {tuple(made.shape)}")
    side = min(made.shape[2:])
    scores = {
        "psnr": psnr(target, made, data_range=2.0),
        "ssim": ssim(target, made, data_range=2.0, border="valid" if side >= 11 else "reflect"),
    }
    small, name = [made, target], "fd-pixel"
    if max(made.shape[2:]) > MOST:
        small, name = [F.adaptive_avg_pool2d(x, MOST) for x in small], f"fd-pixel-{MOST}"
    scores[name] = frechet_distance(small[1].flatten(1).double(), small[0].flatten(1).double())
    return {**scores, "colour shift": colour_shift(made, target)}


@torch.no_grad()
def translate(
    model: Denoiser,
    sampler: Sampler,
    sources: Callable[[range], Tensor],
    count: int,
    *,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    done: Callable[[range, Tensor], Any] | None = None,
) -> tuple[Tensor | None, dict[str, float]]:
    """Make an image from each source.

    Args:
        model: takes `Cond(image=...)`; one that knows classes too is asked for none.
        sampler: with its steps chosen.
        sources: from positions to (B, C', H, W) in [-1, 1].
        count: how many there are; image i has noise i of the seed.
        seed: of the noise.
        batch_size: images at a time.
        device: where the model runs.
        done: called with positions and images of each batch; then nothing is kept in memory.

    Returns:
        (images on the host, or None, {"nfe", "seconds per image"}); the first batch's time is left out where there are
        several, since it warms up.
    """
    generator = Sampled(model.to(device).eval(), sampler)
    kept, spent, timed = [], 0.0, 0
    for start in range(0, count, batch_size):
        here = range(start, min(start + batch_size, count))
        cond = Cond(image=sources(here).to(device))
        if model.num_classes is not None:
            cond = cond.replace(labels=torch.full((len(here),), model.num_classes, device=device))
        begin = time.perf_counter()
        made = generator.generate(here, Noise(seed), cond).cpu()
        if start or count <= batch_size:
            spent, timed = spent + time.perf_counter() - begin, timed + len(here)
        if done is None:
            kept.append(made)
        else:
            done(here, made)
    told = {"nfe": float(generator.nfe or 0), "seconds per image": spent / timed}
    return (torch.cat(kept) if done is None else None), told


def translate_folder(
    model_name: str,
    source: str | Path,
    out: str | Path,
    *,
    target: str | Path | None = None,
    sampler: str | None = None,
    steps: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "auto",
) -> dict[str, Any]:
    """Pictures of a folder as a model translates them, under the same names as PNG, and their scores.

    Args:
        model_name: built-in name or path of a model that is told an image.
        source: folder of pictures, resized to the model's size where they differ.
        out: folder; with several step counts each has a subfolder, 4-steps.
        target: folder of true pictures under the same paths (any suffix); None measures none.
        sampler: spec; None takes the model's own.
        steps: step counts; None takes the model's first.
        seed: of the noise, picture i of the sorted paths has noise i.
        batch_size: pictures at a time.
        device: where to run.

    Returns:
        {"model", "out", "count", "rows"}, a row a step count: sampler, nfe, seconds per image, and the scores.

    Raises:
        InputError: the model is not told an image, `out` is one of the other folders, or a source has no target.
        ArtefactError: there are no pictures.
    """
    root, goal = Path(source).expanduser(), Path(out).expanduser()
    others = [root, *([] if target is None else [Path(target).expanduser()])]
    if any(goal.resolve() == other.resolve() for other in others):
        raise InputError("out", str(out), "would be written over what is read; name another folder")
    if not root.is_dir():
        raise ArtefactError(f"folder {root}", None, "no such folder")
    model = load(model_name)
    channels = _told_channels(model, model_name)
    plans = [choose_sampler(model, sampler, steps=k) for k in (steps or [None])]  # type: ignore[list-item]
    for _, made in plans:
        check_fit(made, model)
    paths = pictures_in(root)
    size = int(model.shape[-1])
    images = load_folder(root, size=size, channels=channels)
    truth = None
    if target is not None:
        found = {path.rsplit(".", 1)[0]: place for place, path in enumerate(pictures_in(others[1]))}
        lacking = [path for path in paths if path.rsplit(".", 1)[0] not in found]
        if lacking:
            raise InputError("target", lacking[0], f"has no partner in {target}; add it, or leave --target out")
        read = load_folder(others[1], size=size, channels=int(model.shape[0]))
        truth = read.batch([found[path.rsplit(".", 1)[0]] for path in paths]).image
    place, rows = pick_device(device), []
    for spec, chosen in plans:
        count = chosen.plan(model.evaluations)
        folder = goal / f"{count}-steps" if len(plans) > 1 else goal
        kept: list[Tensor] = []

        def done(here: range, pictures: Tensor, folder: Path = folder, kept: list[Tensor] = kept) -> None:
            for path, picture in zip(paths[here.start : here.stop], to_uint8(pictures)):
                pixels = picture.permute(1, 2, 0).numpy()
                shown = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
                write_png(folder / f"{path.rsplit('.', 1)[0]}.png", shown)
            if truth is not None:
                kept.append(pictures)

        _, cost = translate(
            model, chosen, lambda here: images.batch(here).image, len(paths), seed=seed, batch_size=batch_size,
            device=place, done=done,
        )  # fmt: skip
        scores = translation_scores(torch.cat(kept), truth) if truth is not None else {}
        rows.append({"sampler": spec, "steps": count, **cost, **scores})
    return {"model": model_name, "out": str(goal), "count": len(paths), "rows": rows}


def _told_channels(model: Any, name: str) -> int:
    inner = model
    while isinstance(getattr(inner, "inner", None), Denoiser):
        inner = inner.inner
    net = getattr(inner, "net", None)
    if "image" not in getattr(net, "accepts", ()):
        raise InputError("model", name, "is not told an image; train one, as scoreline distill sar-to-optical does")
    return int(getattr(net, "_arguments", {})["image_channels"])
