"""Pictures edited with a trained model: parts filled in, colours added, classes asked for, images joined or encoded.

Every sample is a PNG of its own that is written when it is made, so that a stopped run goes on; at the end all stand
beside the originals in one picture. A sample depends on its image, its number and the seed, not on its batch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.device import pick_device
from scoreline.core.errors import ArtefactError, InputError, NonFiniteError, unknown_name
from scoreline.core.files import atomic_path
from scoreline.core.load import load
from scoreline.core.noise import Draws, Noise
from scoreline.core.sampler import Sampler
from scoreline.data import from_uint8, load_images, picture_grid, to_uint8, write_png
from scoreline.diffusion.latent import Latent
from scoreline.evaluate.ledger import Ledger
from scoreline.evaluate.masks import parse_mask
from scoreline.evaluate.progress import progress
from scoreline.evaluate.specs import asked_labels, check_fit, make_sampler, parse_labels
from scoreline.guidance.classifier import ClassifierGuided
from scoreline.guidance.inpainting import Inpainting, colourisation
from scoreline.samplers.latents import decode, encode, interpolate, read_latents, write_latents

__all__ = ["TASKS", "edit"]

TASKS = ("inpaint", "colourise", "classify", "interpolate", "encode")
_STREAMS = 1 << 20  # samples that one image may have, each with noise of its own


@dataclass(frozen=True)
class _Setup:
    """What all tasks need."""

    bare: Denoiser
    model: Denoiser
    count: int
    sampler: Sampler
    noise: Noise
    place: torch.device

    def draws(self, owners: Sequence[int], numbers: Sequence[int]) -> Draws:
        """The noise of cells: sample k of an image, or class, is the same in any selection."""
        indices = [owners[n // self.count] * _STREAMS + n % self.count for n in numbers]
        return self.noise.at(indices, self.model.shape, device=self.place)


@dataclass(frozen=True)
class _Task:
    """Rows of pictures: what is given, then cells that are made.

    Args:
        rows: a text for each.
        given: title -> (R, C, H, W) pictures that stand to the left.
        cells: title of each picture that is made in a row.
        make: numbers of cells (row * len(cells) + cell) -> (pictures in [-1, 1], evaluations each).
        after: title -> pictures that stand to the right.
        told: results -> numbers for the report.
    """

    rows: list[str]
    given: dict[str, Tensor]
    cells: list[str]
    make: Callable[[Sequence[int]], tuple[Tensor, float]]
    after: dict[str, Tensor]
    told: Callable[[Tensor], dict[str, float]]


def edit(
    out: str | Path,
    model_name: str,
    task: str,
    *,
    data: str = "digits",
    split: str | None = None,
    images: Sequence[int] = range(6),
    mask: str | None = None,
    count: int = 6,
    spec: str | None = None,
    nfe: int | None = None,
    steps: int | None = None,
    labels: str | None = None,
    classifier: str | None = None,
    scale: float = 1.0,
    noise_seed: int = 0,
    batch_size: int = 250,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Edit images with a model and put all results beside the originals.

    Args:
        out: folder; every sample becomes samples/*.png, all of them edit.png.
        model_name: built-in name or path.
        task: "inpaint", "colourise", "classify", "interpolate" or "encode"; the last writes latents.safetensors too.
        data, split: set of images that are edited; not read by "classify".
        images: their positions in it; "interpolate" joins the first with the second, the third with the fourth, ...
        mask: of "inpaint", see :func:`scoreline.evaluate.masks.parse_mask`.
        count: samples of each image or class, or images on the way between two.
        spec, nfe, steps: sampler with settings, and its cost; None takes one that suits the task.
        labels: classes, as 0,1,7: those asked for by "classify" (None: all); the others sample without a class, or
            with the one label that is given here.
        classifier: of "classify": name or path of a classifier of noisy images.
        scale: of "classify": factor on its gradient.
        noise_seed, batch_size, device: as in `scoreline sample`.
        quiet: no progress.

    Returns:
        {"out", "picture", "latents", "task", "model", "sampler", "count", "made", "nfe", "told"}.

    Raises:
        InputError: something is misspelt or does not fit; nothing was written.
        ArtefactError: the folder holds another run, or a file cannot be read or written.
    """
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    for thing, value in (("count", count), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(thing, value, "must be 1 or more")
    if count > _STREAMS:
        raise InputError("count", count, f"at most {_STREAMS}")
    for thing, given, owner in (("mask", mask, "inpaint"), ("classifier", classifier, "classify")):
        if given is not None and task != owner:
            raise InputError(thing, given, f"belongs to --task {owner}")
    bare = load(model_name)
    if len(bare.shape) != 3 or bare.shape[0] not in (1, 3):
        raise InputError("model", model_name, f"makes samples of shape {tuple(bare.shape)}, which are no pictures")
    if any(isinstance(module, Latent) for module in bare.modules()):
        raise InputError("model", model_name, "is one of latents, in which no pixel is known; give a model of pixels")
    place, noise = pick_device(device), Noise(noise_seed)
    model = bare.to(place)
    sampler = _sampler(task, spec, nfe, steps)
    setup = _Setup(bare, model, count, sampler, noise, place)
    if task == "classify":
        built = _classify(setup, labels, classifier or "digits-noisy-classifier", scale)
        fingerprint = ""
    else:
        setup = replace(setup, model=_with_label(model, labels))
        shown, fingerprint = _images(data, split, images, tuple(bare.shape), grey=task == "colourise")
        if task == "inpaint":
            built = _inpaint(setup, shown, images, mask)
        elif task == "colourise":
            built = _colourise(setup, shown, images)
        elif task == "encode":
            built = _encode(setup, shown, images, Path(out) / "latents.safetensors")
        else:
            built = _interpolate(setup, shown, images, batch_size)

    folder = Path(out)
    job = {
        "edit": task, "model": bare.header["fingerprint"], "data": fingerprint, "images": list(images), "count": count,
        "mask": mask, "sampler": repr(sampler), "labels": labels, "classifier": classifier, "scale": scale,
        "noise_seed": noise_seed,
    }  # fmt: skip
    ledger = _claim(folder, job)
    latents = folder / "latents.safetensors" if task == "encode" else None
    if latents is not None and not latents.is_file():
        facts = {"data": data, "split": split, "images": list(images), "sampler": repr(sampler)}
        label = setup.model.label if isinstance(setup.model, _Labelled) else None
        write_latents(latents, bare, _codes(setup, shown, batch_size, quiet), label=label, card=facts)
    numbers = range(len(built.rows) * len(built.cells))
    made, spent = _make(folder, built, ledger, numbers, batch_size, quiet)
    results = torch.stack([_read(_path(folder, built, n)) for n in numbers])
    picture = folder / "edit.png"
    write_png(picture, _beside(built, results))
    return {
        "out": str(folder), "picture": str(picture), "latents": None if latents is None else str(latents),
        "task": task, "model": model_name, "sampler": repr(sampler), "count": len(numbers), "made": made, "nfe": spent,
        "told": built.told(results),
    }  # fmt: skip


def _sampler(task: str, spec: str | None, nfe: int | None, steps: int | None) -> Sampler:
    """What was asked for, or what suits the task: predictor and corrector, and an exact ODE for encoding."""
    exact = task in ("interpolate", "encode")
    if spec is None and exact and nfe is None and steps is None:
        return make_sampler("rk45:rtol=1e-4")
    spec = spec or ("rk45" if exact else "pc")
    adaptive = spec.startswith("rk45:") and "tol=" in spec
    return make_sampler(spec, nfe=nfe or (None if steps or adaptive else 200), steps=steps)


def _with_label(model: Denoiser, labels: str | None) -> Denoiser:
    """The model with one class bound for all images, or with none."""
    if model.num_classes is None:
        if labels is not None:
            raise InputError("labels", labels, "this model has no classes")
        return model
    chosen = asked_labels(labels or "none", model)
    if chosen is None or len(chosen) != 1:
        raise InputError("labels", labels, "give one class for all images, or leave it out")
    return _Labelled(model, chosen[0])


class _Labelled(Denoiser):
    """A model that is always asked for the same class."""

    def __init__(self, inner: Denoiser, label: int) -> None:
        super().__init__()
        self.inner, self.schedule, self.shape, self.evaluations = inner, inner.schedule, inner.shape, inner.evaluations
        self.label = label

    def posterior(self, x: Tensor, t: Any, cond: Cond | None) -> Any:
        return self.inner(x, t, Cond(labels=torch.full((len(x),), self.label, device=x.device)))

    def check(self, times: Any) -> None:
        self.inner.check(times)


def _images(
    data: str, split: str | None, positions: Sequence[int], shape: tuple[int, ...], *, grey: bool
) -> tuple[Tensor, str]:
    """The images at some positions, of the model's shape, and the fingerprint of their set."""
    channels, height, width = shape
    if grey and channels != 3:
        raise InputError("model", shape, "makes grey images; colours need a model of RGB images")
    found = load_images(data, split=split, size=height if height == width else None, channels=channels)
    if tuple(found.shape) != shape:
        raise InputError("data", tuple(found.shape), f"the model makes images of shape {shape}")
    if not positions:
        raise InputError("images", list(positions), "give at least one position")
    part = found.subset(list(positions))
    return part.batch(range(len(part))).image, part.fingerprint


def _inpaint(setup: _Setup, shown: Tensor, positions: Sequence[int], mask: str | None) -> _Task:
    if mask is None:
        mend = "says what is known: left-half, box:LEFT,TOP,RIGHT,BOTTOM, hole:..., or a PNG, white where known"
        raise InputError("mask", None, mend)
    known = parse_mask(mask, *shown.shape[2:])

    def around(image: Tensor) -> Inpainting:
        return Inpainting(setup.sampler, image=image.to(setup.place), mask=known)

    def told(results: Tensor) -> dict[str, float]:
        off = (results - shown.repeat_interleave(setup.count, 0))[..., known]
        return {"largest change of a known pixel": float(off.abs().max()) if off.numel() else 0.0}

    make = _sampled(setup, around, shown, positions)
    # Grey of its own where nothing is known: the images' own black and white would look like part of them.
    given = {"original": shown, "known": torch.where(known, shown, torch.tensor(0.2))}
    return _Task([f"image {i}" for i in positions], given, _numbered(setup.count), make, {}, told)


def _colourise(setup: _Setup, shown: Tensor, positions: Sequence[int]) -> _Task:
    grey = shown.mean(1, keepdim=True)

    def around(image: Tensor) -> Inpainting:
        return colourisation(setup.sampler, image.mean(1, keepdim=True).to(setup.place))

    def told(results: Tensor) -> dict[str, float]:
        off = results.mean(1, keepdim=True) - grey.repeat_interleave(setup.count, 0)
        # Colours that leave [-1, 1] are cut, and the mean with them.
        return {"largest change of the grey image": float(off.abs().max())}

    make = _sampled(setup, around, shown, positions)
    given = {"original": shown, "grey": grey.expand(-1, 3, -1, -1)}
    return _Task([f"image {i}" for i in positions], given, _numbered(setup.count), make, {}, told)


def _sampled(
    setup: _Setup, around: Callable[[Tensor], Inpainting], shown: Tensor, positions: Sequence[int]
) -> Callable[[Sequence[int]], tuple[Tensor, float]]:
    """Samples of cells, each kept to its image; refuses what does not fit before any work."""
    check_fit(around(shown[:1]), setup.model)

    def make(numbers: Sequence[int]) -> tuple[Tensor, float]:
        rows = [n // setup.count for n in numbers]
        sample = around(shown[rows])(setup.model, setup.draws(positions, numbers))
        return sample.x, sample.nfe

    return make


def _classify(setup: _Setup, labels: str | None, classifier: str, scale: float) -> _Task:
    judge = load(classifier, kind="classifier").to(setup.place)
    guided = ClassifierGuided(setup.model, judge, scale)
    assert guided.num_classes is not None
    wanted = parse_labels(labels, guided.num_classes) or list(range(guided.num_classes))
    if guided.num_classes in wanted:
        raise InputError("labels", labels, "give the classes that are asked for, as 0,1,7")
    check_fit(setup.sampler, guided)

    def make(numbers: Sequence[int]) -> tuple[Tensor, float]:
        asked = torch.tensor([wanted[n // setup.count] for n in numbers], device=setup.place)
        sample = setup.sampler(guided.given(Cond(labels=asked)), setup.draws(wanted, numbers))
        return sample.x, sample.nfe

    def told(results: Tensor) -> dict[str, float]:
        with torch.no_grad():
            seen = judge(results.to(setup.place)).argmax(1).cpu()
        right = seen == torch.tensor(wanted).repeat_interleave(setup.count)
        return {"share in which the classifier sees its class": float(right.double().mean())}

    return _Task([f"class {label}" for label in wanted], {}, _numbered(setup.count), make, {}, told)


def _interpolate(setup: _Setup, shown: Tensor, positions: Sequence[int], batch_size: int) -> _Task:
    count, sampler = setup.count, setup.sampler
    if len(shown) % 2 or count < 2:
        raise InputError(
            "images", list(positions), "are joined in pairs: give an even number, and a count of 2 or more"
        )
    _check_rising(sampler)
    codes: list[Tensor] = []

    def code(rows: list[int]) -> Tensor:
        if not codes:
            codes.extend(encode(setup.model, part.to(setup.place), sampler) for part in shown.split(batch_size))
        return torch.cat(codes)[rows]

    def make(numbers: Sequence[int]) -> tuple[Tensor, float]:
        rows = [n // count for n in numbers]
        weight = torch.tensor([n % count / (count - 1) for n in numbers], dtype=torch.float64, device=setup.place)
        between = interpolate(code([2 * r for r in rows]), code([2 * r + 1 for r in rows]), weight)
        return decode(setup.model, between, sampler), float("nan")

    def told(results: Tensor) -> dict[str, float]:
        ends = results.view(-1, count, *results.shape[1:])[:, [0, -1]].flatten(0, 1)
        return {"rmse of an image encoded and decoded": float((ends - shown).square().mean().sqrt())}

    pairs = [f"images {a}, {b}" for a, b in zip(positions[::2], positions[1::2], strict=True)]
    cells = [f"{k / (count - 1):.2g}" for k in range(count)]
    return _Task(pairs, {"first": shown[::2]}, cells, make, {"second": shown[1::2]}, told)


def _codes(setup: _Setup, shown: Tensor, batch_size: int, quiet: bool) -> Tensor:
    codes = []
    with progress("encode", len(shown), quiet=quiet) as advance:
        for part in shown.split(batch_size):
            codes.append(encode(setup.model, part.to(setup.place), setup.sampler).cpu())
            advance(len(part), "")
    return torch.cat(codes)


def _encode(setup: _Setup, shown: Tensor, positions: Sequence[int], latents: Path) -> _Task:
    """Pictures of what is in the file of latents, so that it is seen how well it holds the images."""
    _check_rising(setup.sampler)
    check_fit(setup.sampler, setup.model)

    def make(numbers: Sequence[int]) -> tuple[Tensor, float]:
        codes = read_latents(latents, setup.bare)[0].z[list(numbers)].to(setup.place)
        return decode(setup.model, codes, setup.sampler), float("nan")

    def told(results: Tensor) -> dict[str, float]:
        return {"rmse of an image encoded and decoded": float((results - shown).square().mean().sqrt())}

    return _Task([f"image {i}" for i in positions], {"original": shown}, ["decoded"], make, {}, told)


def _check_rising(sampler: Sampler) -> None:
    if not sampler.rising or sampler.stochastic:
        mend = "an encoding needs a deterministic sampler that runs upwards, as rk45, ddim or heun"
        raise InputError("sampler", type(sampler).__name__, mend)


def _numbered(count: int) -> list[str]:
    return [f"{k + 1}" for k in range(count)]


def _claim(folder: Path, job: dict[str, Any]) -> Ledger:
    """The ledger of the samples in a folder; a folder that was made otherwise is refused."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "samples.job.json").is_file():
        mend = "is not empty and was not written by scoreline edit; choose another folder"
        raise ArtefactError("folder", str(folder), mend)
    return Ledger(folder / "samples.jsonl", job)


def _path(folder: Path, task: _Task, number: int) -> Path:
    row, cell = divmod(number, len(task.cells))
    name = task.rows[row].replace(",", "").replace(" ", "-")
    return folder / "samples" / f"{name}-{cell + 1:03d}.png"


def _make(
    folder: Path, task: _Task, ledger: Ledger, numbers: Sequence[int], batch_size: int, quiet: bool
) -> tuple[int, float]:
    """Make what is missing, a batch at a time; a batch of which anything is missing is made again whole."""
    spent = next((row["nfe"] for row in ledger.rows.values()), 0.0)
    batches = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    missing = [[n for n in b if str(n) not in ledger or not _path(folder, task, n).is_file()] for b in batches]
    with progress("edit", sum(map(len, missing)), quiet=quiet) as advance:
        for batch, wanted in zip(batches, missing, strict=True):
            if not wanted:
                continue
            made, spent = task.make(batch)
            spent = spent if spent == spent else 0.0
            if not bool(torch.isfinite(made).all()):
                raise NonFiniteError("images", None, "are not finite; try more steps or another sampler")
            pixels = to_uint8(made.float().clamp(-1, 1).cpu()).permute(0, 2, 3, 1).numpy()
            for n, picture in zip(batch, pixels, strict=True):
                if n in wanted:
                    _write(_path(folder, task, n), picture)
                    ledger.add(str(n), nfe=spent)
            advance(len(wanted), f"{spent:g} evaluations each" if spent else "encoded and decoded")
    return sum(map(len, missing)), spent


def _write(path: Path, picture: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, "PNG")
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _read(path: Path) -> Tensor:
    with Image.open(path) as picture:
        pixels = np.array(picture)
    return from_uint8(torch.from_numpy(pixels[..., None] if pixels.ndim == 2 else pixels).permute(2, 0, 1))


def _beside(task: _Task, results: Tensor) -> Image.Image:
    """All pictures in rows, with a title over each column."""
    made = results.view(len(task.rows), len(task.cells), *results.shape[1:])
    columns = [*task.given.values(), *made.unbind(1), *task.after.values()]
    titles = [*task.given, *task.cells, *task.after]
    sheet = picture_grid(torch.stack(columns, 1).flatten(0, 1), columns=len(columns), row_labels=task.rows, pad=4)
    font, head = ImageFont.load_default(size=11), 18
    whole = Image.new("RGB", (sheet.width, sheet.height + head), (255, 255, 255))
    whole.paste(sheet, (0, head))
    draw, height, width = ImageDraw.Draw(whole), *results.shape[2:]
    step = max(1, round(48 / max(height, width))) * width + 4
    left = sheet.width - len(columns) * step
    for place, title in enumerate(titles):
        draw.text((left + place * step + (step - 4) // 2, head // 2), title, fill=(40, 40, 40), font=font, anchor="mm")
    return whole
