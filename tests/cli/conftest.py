"""The command line called in this process, and a tiny model to call it with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from scoreline.cli import main
from scoreline.core.artefact import save_artefact
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.nn.mlp import MLP


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(self.out, parse_constant=refuse)

    def fails(self, code: int, *words: str) -> None:
        """One line on stderr that holds all the words, nothing on stdout, the exit code."""
        assert self.code == code, self.err
        assert self.out == ""
        # On a slow machine there may be lines of progress before it.
        said = [line for line in self.err.splitlines() if not re.match(r"\w+: +\d+ %, ", line)]
        assert len(said) == 1, self.err
        assert said[0].startswith("scoreline: error: ")
        assert "bug in scoreline" not in self.err
        for word in words:
            assert word in self.err


Call = Callable[..., Answer]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is kept for the next run is kept here."""
    folder = tmp_path_factory.mktemp("cache") / "scoreline"
    monkeypatch.setenv("SCORELINE_CACHE", str(folder))
    return folder


@pytest.fixture
def scoreline(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`scoreline(*arguments)` runs the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return call


def write_model(
    path: Path, *, classes: int | None = 10, shape: tuple[int, ...] = (1, 8, 8), data: str = "digits"
) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(in_shape=shape, width=16, depth=1, num_classes=classes)
        for parameter in net.parameters():
            # Outputs start at zero; a model that answers nothing could not tell labels or guidance apart.
            torch.nn.init.normal_(parameter, std=0.3)
    save_artefact(path, Preconditioned(net, EDM(), sigma_data=0.75), card={"data": data})
    return str(path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a small random class-conditional model of 8x8 pictures."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny.safetensors")


@pytest.fixture(scope="session")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a small random model without classes."""
    return write_model(tmp_path_factory.mktemp("models") / "unconditional.safetensors", classes=None)


@pytest.fixture(scope="session")
def colour(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a small random model of 3x8x8 pictures."""
    return write_model(tmp_path_factory.mktemp("models") / "colour.safetensors", shape=(3, 8, 8))
