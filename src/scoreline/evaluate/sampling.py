"""Images by number, written to a folder or one array file; a stopped run goes on."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.device import pick_device
from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.files import atomic_path, read_json, sweep, write_json
from scoreline.core.load import load
from scoreline.core.noise import Noise
from scoreline.data import to_uint8
from scoreline.evaluate.progress import progress
from scoreline.evaluate.specs import adds_noise, asked_labels, check_fit, choose_sampler, guided, labels_for
from scoreline.evaluate.strengths import strengths_of, told_strength
from scoreline.nn.text import text_network, told_texts
from scoreline.samplers.latents import Latents, read_latents

__all__ = ["image_path", "sample_to"]


def image_path(folder: Path, index: int) -> Path:
    """Where image `index` lies: folders of a thousand, 000000/000000.png."""
    return folder / f"{index // 1000 * 1000:06d}" / f"{index:06d}.png"


def sample_to(
    out: str | Path,
    model_name: str,
    spec: str | None = None,
    indices: Sequence[int] | None = None,
    *,
    nfe: int | None = None,
    steps: int | None = None,
    noise_seed: int = 0,
    labels: str | None = None,
    text: str | None = None,
    latents: str | None = None,
    guidance: float | None = None,
    guidance_weight: float | None = None,
    clip: bool = False,
    batch_size: int = 250,
    device: str = "auto",
    dtype: str = "float32",
    quiet: bool = False,
) -> dict[str, Any]:
    """Make images `indices` of a model and write those that are not there yet.

    A picture depends on its number, not on its batch (beyond the rounding of float sums); a stopped run that goes on
    makes the same batches and so ends with the same bytes.

    Args:
        out: a folder for PNGs, or a path ending in .npz.
        model_name: built-in name or path.
        spec: sampler with settings; None takes a student's own, else heun.
        indices: image numbers; None takes 0 to 63, or all rows of the latents.
        nfe, steps: cost; one of them, or None for a student's first step count, else 35 evaluations.
        noise_seed: seed of the noise source.
        text: captions with | between them, taken in turn, of a model that takes text; "none" for no caption.
        latents: file of :func:`scoreline.samplers.latents.write_latents`, decoded instead of noise.
        labels, guidance, guidance_weight, clip, batch_size, device, dtype: as in `scoreline sample`.
        quiet: no progress.

    Returns:
        {"out", "count", "made", "nfe", "sampler", "model", "guidance_weight"}; the last None of models that take none.

    Raises:
        InputError: something is misspelt or does not fit.
        ArtefactError: the folder holds images of another run, or cannot be written; latents of another model.
    """
    if dtype not in ("float32", "float64"):
        raise InputError("dtype", dtype, "use float32 or float64")
    if batch_size < 1:
        raise InputError("batch_size", batch_size, "must be 1 or more")
    noise = Noise(noise_seed)
    bare: Any = told_strength(load(model_name), guidance_weight, guidance)
    codes, codes_mark = _latents(latents, bare)
    if indices is None:
        indices = range(64 if codes is None else len(codes.z))
    if len(set(indices)) != len(indices) or min(indices) < 0:
        raise InputError("seeds", list(indices)[:5], "image numbers are distinct and start at 0")
    if codes is not None and max(indices) >= len(codes.z):
        raise InputError("seeds", max(indices), f"{latents} holds latents 0 to {len(codes.z) - 1}")
    model = guided(bare, guidance, clip=clip)
    spec, sampler = choose_sampler(bare, spec, nfe=nfe, steps=steps)
    chosen = asked_labels(labels, bare)
    words = _words(text, bare)
    if codes is not None:
        if adds_noise(sampler, model):
            raise InputError("sampler", spec, "adds noise; decode latents with a deterministic one, as heun or rk45")
        if labels is None and codes.label is not None:
            chosen = [codes.label]
    check_fit(sampler, model)
    made = tuple(model.decode(torch.zeros(1, *model.shape)).shape[1:])
    if len(made) != 3 or made[0] not in (1, 3):
        raise InputError("model", model_name, f"makes samples of shape {made}, which are no pictures")
    place = pick_device(device)
    model = model.to(place)

    target = Path(out)
    packed = target.suffix == ".npz"
    folder = target.with_suffix(".parts") if packed else target
    job = {
        "model": bare.header["fingerprint"], "sampler": repr(sampler), "noise_seed": noise_seed, "labels": labels,
        "guidance": guidance, "clip": clip, "dtype": dtype,
    }  # fmt: skip
    if text is not None:
        job["text"] = text
    if guidance_weight is not None:
        job["guidance_weight"] = guidance_weight
    if codes is not None:
        job["latents"] = codes_mark
        first = sampler.calibrated(model).times(model.schedule, model.evaluations)[0]
        size = float(model.schedule.prior(float(first)))
    if packed and target.exists():
        raise ArtefactError("file", str(target), "exists already; delete it or choose another name")
    _claim(folder, job)
    # A batch of which anything is missing is made again whole: another batch would round its sums in another way.
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    unmade = [[i for i in batch if not image_path(folder, i).is_file()] for batch in batches]
    missing, spent, sampled = sum(map(len, unmade)), 0.0, 0
    with progress("sample", missing, quiet=quiet) as advance:
        for batch, wanted in zip(batches, unmade):
            if not wanted:
                continue
            draws = noise.at(batch, model.shape, device=place, dtype=getattr(torch, dtype))
            cond = labels_for(batch, model.num_classes, chosen)
            if words is not None:
                cond = (cond or Cond()).replace(tokens=words[torch.tensor(list(batch)) % len(words)])
            x = None if codes is None else codes.z[list(batch)].to(place, draws.dtype) * size
            sample = sampler(model.given(cond if cond is None else cond.to(place)), draws, x=x)
            images = model.decode(sample.x.float()).clamp(-1, 1)
            if not bool(torch.isfinite(images).all()):
                raise InputError("images", spec, "are not finite; try more steps, another grid or --clip")
            # Batches of an adaptive sampler differ; the mean over all images is what they cost.
            spent = (spent * sampled + sample.nfe * len(batch)) / (sampled + len(batch))
            sampled += len(batch)
            _write(folder, batch, images, set(wanted))
            advance(len(wanted), f"{spent:g} evaluations each")
    if packed:
        _pack(target, folder, indices, chosen, model.num_classes)
    return {
        "out": str(target), "count": len(indices), "made": missing, "nfe": spent, "sampler": repr(sampler),
        "model": model_name, "guidance_weight": None if (told := strengths_of(bare)) is None else told["default"],
    }  # fmt: skip


def _words(text: str | None, model: Denoiser) -> Tensor | None:
    """Numbers of the captions, (L, ...), of a model that takes text; without any it makes images of its own prompts.

    Raises:
        InputError: it takes none, none is given, or one is empty or too long.
    """
    if text is None:
        reads = text_network(model)
        if reads is not None and not reads.prompts:
            raise InputError("text", None, 'this model makes images of captions; give --text "...", or --text none')
        return None
    return told_texts(model, [None] if text == "none" else [part.strip() for part in text.split("|")]).tokens


def _latents(path: str | None, model: Denoiser) -> tuple[Latents | None, str | None]:
    """The latents in a file with their fingerprint."""
    if path is None:
        return None, None
    codes, header = read_latents(path, model)
    return codes, header["fingerprint"]


def _claim(folder: Path, job: dict[str, Any]) -> None:
    mark = folder / "sample.json"
    sweep(folder)
    if mark.is_file():
        known = read_json(mark)
        if not isinstance(known, dict):
            raise ArtefactError("folder", str(folder), f"{mark.name} is damaged; delete the folder")
        if known != job:
            differing = sorted(key for key in {*job, *known} if known.get(key) != job.get(key))
            mend = f"holds images of another run ({', '.join(differing)} differ); choose another folder"
            raise ArtefactError("folder", str(folder), mend)
        return
    if folder.is_dir() and any(folder.iterdir()):
        mend = "is not empty and was not written by scoreline sample; choose another folder"
        raise ArtefactError("folder", str(folder), mend)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtefactError("folder", str(folder), f"cannot be made ({error.strerror}); choose another") from None
    write_json(mark, job)


def _write(folder: Path, indices: Sequence[int], images: Tensor, wanted: set[int]) -> None:
    pixels = to_uint8(images.cpu()).permute(0, 2, 3, 1).numpy()
    for index, picture in zip(indices, pixels):
        if index not in wanted:
            continue
        path = image_path(folder, index)
        path.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, "PNG")
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getvalue())


def _pack(target: Path, folder: Path, indices: Sequence[int], chosen: list[int] | None, classes: int | None) -> None:
    pictures = []
    for index in indices:
        picture = np.asarray(Image.open(image_path(folder, index)))
        pictures.append(picture[..., None] if picture.ndim == 2 else picture)
    arrays = {"arr_0": np.stack(pictures)}
    cond = labels_for(list(indices), classes, chosen)
    if cond is not None and cond.labels is not None:
        arrays["arr_1"] = cond.labels.numpy()
    with atomic_path(target) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    shutil.rmtree(folder)
