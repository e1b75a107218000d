"""Put a trained model into the package: half-precision weights, and a card with its command and its measured score.

    python tools/ship.py NAME runs/NAME/model.safetensors [--quick]

A denoiser is scored under fid@digits (10,000 images a seed) with the sampler its card recommends, three seeds, and
one in continuous time with its converged ODE, one seed; a student with the steps it was made for, three seeds. With
`--quick` scores are left out. The digits feature network gets its accuracy on both splits.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from scoreline.classify.plain import accuracy
from scoreline.core.artefact import load_artefact, save_artefact
from scoreline.core.denoiser import Denoiser
from scoreline.core.noise import Noise
from scoreline.data import load_images
from scoreline.evaluate.compare import converged
from scoreline.evaluate.protocols import FID_DIGITS_COUNT, digits_protocols, features_of
from scoreline.evaluate.specs import labels_for, make_sampler

MODELS = Path(__file__).resolve().parents[1] / "src" / "scoreline" / "models"


def scores_of(
    model: Denoiser, spec: str | None, seeds: tuple[int, ...], nfe: int | None = None, steps: int | None = None
) -> dict[str, list[float]]:
    """Both Frechet distances for each seed; no sampler means the converged ODE."""
    found: dict[str, list[float]] = {"fid@digits": [], "fd-pixel": []}
    protocols = digits_protocols()
    for seed in seeds:
        if spec is None:
            images = converged(model, seed, FID_DIGITS_COUNT, None, 1000)
        else:
            parts = []
            for start in range(0, FID_DIGITS_COUNT, 1000):
                indices = range(start, start + 1000)
                given = model.given(labels_for(indices, model.num_classes))
                sampler = make_sampler(spec, nfe=nfe, steps=steps)
                with torch.no_grad():
                    parts.append(sampler(given, Noise(seed).at(indices, model.shape)).x.clamp(-1, 1))
            images = torch.cat(parts)
        for scorer in protocols.values():
            found[scorer.name(FID_DIGITS_COUNT)].append(round(scorer.distance(features_of(scorer.encoder, images)), 4))
        print(spec or "converged ODE", seed, {k: v[-1] for k, v in found.items()}, flush=True)
    return found


def of_student(card: dict[str, Any], path: str) -> dict[str, Any]:
    """A student's card without the folders of the machine it was trained on."""
    folder = Path(path).parent
    words = card["command"].split(" --out ")[0]
    teacher = {**card["teacher"], "name": card["teacher"]["name"].replace(f"{folder}/", f"runs/{folder.name}/")}
    seconds = sum(stage["training_seconds"] for stage in card.get("stages", [card]))
    return {
        "command": f"{words} --out runs/{folder.name}", "file": f"runs/{folder.name}/{Path(path).name}",
        "teacher": teacher, "minutes on one core": round(seconds / 60, 1),
    }  # fmt: skip


def main() -> None:
    """Score, write the artefact, and print its card."""
    name, path, *flags = sys.argv[1:]
    model, header = load_artefact(path)
    card: dict[str, Any] = {**header["card"], "command": f"scoreline train {name}", "licence": "Apache-2.0"}
    if "method" in card:
        card |= of_student(header["card"], path)
    card["parameters"] = sum(p.numel() for p in model.parameters())
    target = MODELS / f"{name}.safetensors"
    if isinstance(model, Denoiser):
        # What is scored is what ships: the weights after rounding to half precision.
        save_artefact(target, model, card=card, dtype=torch.float16)
        model, _ = load_artefact(target)
        card["trained on"] = "digits, train split (1,297 images)"
        card["use"] = f"scoreline sample {name}"
        if "--quick" not in flags:
            protocols = digits_protocols()
            train = load_images("digits", split="train")
            floors = {p.name(FID_DIGITS_COUNT): round(p.floor(train, FID_DIGITS_COUNT), 4) for p in protocols.values()}
            spec, nfe = ("heun", 19) if model.schedule.known is None else ("dpm-solver++2m", 20)
            card["scores"] = {"floor": floors}
            if "sampling" in card:
                spec = card["sampling"]["sampler"]
                for steps in card["sampling"]["steps"] or (1, 2, 4):
                    card["scores"][f"{steps} steps, seeds 0-2"] = scores_of(model, spec, (0, 1, 2), steps=steps)
            else:
                card["scores"][f"{spec} at {nfe} evaluations, seeds 0-2"] = scores_of(model, spec, (0, 1, 2), nfe)
                if model.schedule.known is None:
                    card["scores"]["converged ODE, seed 0"] = scores_of(model, None, (0,))
    else:
        card["accuracy"] = {}
        for split in ("train", "test"):
            images = load_images("digits", split=split)
            batch = images.batch(range(len(images)))
            assert batch.label is not None
            card["accuracy"][split] = round(accuracy(model, batch.image, batch.label), 4)
    save_artefact(target, model, card=card, dtype=torch.float16)
    print(target, target.stat().st_size, card)


if __name__ == "__main__":
    main()
