"""Published weights that the user downloads: one table of files and checksums, where they are looked for, how read.

Nothing is downloaded here. A file whose SHA-256 stands in the table counts as trusted and is read without running code
from it (`weights_only=True`); a .safetensors file holds no code and is always read; any other file is read only when
the caller says that it is trusted. Every checksum stands beside the public place that gives it.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scoreline.core.errors import ArtefactError, unknown_name
from scoreline.core.files import cache_folder

__all__ = [
    "PRETRAINED",
    "Pretrained",
    "Unfilled",
    "checked_digest",
    "fill",
    "find_pretrained",
    "pretrained_folders",
    "read_pretrained",
]


@dataclass(frozen=True)
class Pretrained:
    """A published file.

    Attributes:
        file: its name, as published.
        url: where its publishers offer it.
        sha256: its checksum, hex, or None where none is publicly documented.
        source: who gives that checksum.
        folder: the folder in which the publishers' own loader keeps it, below the user's home; None: torch.hub's.
    """

    file: str
    url: str
    sha256: str | None
    source: str
    folder: str | None = None


_LIN = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1"
_LIN_SOURCE = "file list (RECORD) of the lpips 0.1.4 wheel"
_CLIP = "https://openaipublic.azureedge.net/clip/models"
_CLIP_SOURCE = "clip/clip.py of openai/CLIP: the folder in the address, which its own loader checks against"

PRETRAINED = {
    "inception-2015": Pretrained(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "first eight digits: the publisher's file name; the whole: model table of genforce/genforce, same file",
    ),
    "dinov2-vit-l-14": Pretrained(
        "dinov2_vitl14_pretrain.pth",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        "Git LFS entries of that file in two repositories on Hugging Face, junjiexv/dinov2_vit and CSWRY/VOSR",
    ),
    "clip-vit-l-14-336": Pretrained(
        "ViT-L-14-336px.pt",
        f"{_CLIP}/3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        _CLIP_SOURCE,
        ".cache/clip",
    ),
    "clip-vit-l-14": Pretrained(
        "ViT-L-14.pt",
        f"{_CLIP}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        _CLIP_SOURCE,
        ".cache/clip",
    ),
    "clip-vit-b-32": Pretrained(
        "ViT-B-32.pt",
        f"{_CLIP}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        _CLIP_SOURCE,
        ".cache/clip",
    ),
    "clip-merges": Pretrained(
        "bpe_simple_vocab_16e6.txt.gz",
        "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz",
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
        "file list (RECORD) of the open_clip_torch 3.3.0 wheel, which ships the same file",
        ".cache/clip",
    ),
    "alexnet": Pretrained(
        "alexnet-owt-7be5be79.pth",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        "first eight digits: the publisher's file name; the whole: Git LFS entry in CSWRY/VOSR on Hugging Face",
    ),
    "vgg16": Pretrained(
        "vgg16-397923af.pth",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        "first eight digits: the publisher's file name; the whole: Git LFS entry in Keiser41/mangaaa on Hugging Face",
    ),
    "lpips-alex": Pretrained(
        "alex.pth",
        f"{_LIN}/alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        _LIN_SOURCE,
    ),
    "lpips-vgg": Pretrained(
        "vgg.pth",
        f"{_LIN}/vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        _LIN_SOURCE,
    ),
}


def pretrained_folders(name: str) -> list[Path]:
    """The folders that are searched for a file of the table, in their order.

    $SCORELINE_CACHE, or else $XDG_CACHE_HOME/scoreline or ~/.cache/scoreline; then the folder in which the publishers'
    own loader keeps the file, so that nothing is downloaded twice.
    """
    folder = PRETRAINED[name].folder
    return [cache_folder(), Path(torch.hub.get_dir()) / "checkpoints" if folder is None else Path.home() / folder]


def find_pretrained(name: str, path: str | os.PathLike[str] | None = None) -> Path:
    """The file of a pretrained network.

    Args:
        name: of `PRETRAINED`.
        path: the file itself; None searches :func:`pretrained_folders`.

    Raises:
        InputError: an unknown name.
        ArtefactError: no such file; says what to fetch, from where, and where to put it.
    """
    if name not in PRETRAINED:
        raise unknown_name("pretrained network", name, PRETRAINED)
    entry, folders = PRETRAINED[name], pretrained_folders(name)
    tried = [Path(path).expanduser()] if path is not None else [folder / entry.file for folder in folders]
    for file in tried:
        if file.is_file():
            return file
    checksum = f" (SHA-256 {entry.sha256})" if entry.sha256 else ""
    mend = f"no such file; fetch {entry.url}{checksum} and put it into {folders[0]}, or give its path"
    raise ArtefactError(f"weights of {name}", ", ".join(map(str, tried)), mend)


def read_pretrained(
    name: str, path: str | os.PathLike[str] | None = None, *, trusted: bool = False
) -> tuple[dict[str, Tensor], Path, str]:
    """The tensors of a pretrained network by their published names.

    Args:
        name: of `PRETRAINED`.
        path: the file, .safetensors or as published; None searches for it.
        trusted: read a file of another format whose SHA-256 is not the one in the table.

    Returns:
        (tensors on the CPU, the file, its SHA-256).

    Raises:
        InputError: an unknown name.
        ArtefactError: no such file, an unknown checksum, a damaged file, or something else than tensors inside.
    """
    file = find_pretrained(name, path)
    digest = checked_digest(name, file, trusted or file.suffix == ".safetensors")
    try:
        state = _tensors(file)
    except Exception as error:  # torch and safetensors raise many kinds for a broken file
        raise ArtefactError(str(file), None, f"cannot be read as weights, corrupt or truncated ({error})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ArtefactError(str(file), type(state).__name__, "a dictionary of tensors is expected")
    return dict(state), file, digest


def checked_digest(name: str, file: Path, trusted: bool) -> str:
    """The SHA-256 of a file, refused unless it is the table's or the file is trusted anyway."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    expected = PRETRAINED[name].sha256
    if digest != expected and not trusted:
        known = f"not {expected}" if expected else "and none is publicly known for this network"
        mend = f"its SHA-256 is {digest}, {known}; fetch {PRETRAINED[name].url} again"
        raise ArtefactError(str(file), None, f"{mend}, or pass trusted=True if you know where it comes from")
    return digest


def _tensors(file: Path) -> object:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    if _is_torchscript(file):
        # CLIP is published as a TorchScript program around its tensors; only those are taken.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(file), map_location="cpu").state_dict()
    return torch.load(file, map_location="cpu", weights_only=True)


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class Unfilled(TorchFunctionMode):
    """A context in which layers are made without drawing their first weights, for networks that get others at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def fill(
    module: nn.Module, state: Mapping[str, Tensor], file: Path, *, rename: Callable[[str], str | None] | None = None
) -> None:
    """Load tensors into a module whole: each one has its place, each place its tensor.

    Counters of training steps, which older files lack and evaluation never reads, may be missing.

    Args:
        module: takes the tensors, in its own dtype.
        state: tensors by published name.
        file: named in errors.
        rename: published name -> name in the module, or None for what the caller leaves out on purpose.

    Raises:
        ArtefactError: tensors missing, unknown, or of another shape; the first is named.
    """
    if rename is not None:
        named = {name: rename(name) for name in state}
        state = {new: state[name] for name, new in named.items() if new is not None}
    own = module.state_dict()
    state = {name: own[name] for name in own if name.endswith("num_batches_tracked")} | dict(state)
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if missing or extra or wrong:
        first = (missing + extra + wrong)[0]
        raise ArtefactError(
            str(file),
            first,
            f"not this network: {len(missing)} tensors missing, {len(extra)} "
            f"unknown, {len(wrong)} of another shape; the first is named",
        )
    module.load_state_dict(state)
