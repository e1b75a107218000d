"""Every method in the table of names through the same questions: trained twice it ends with the same bits, stopped and
resumed too, in two halves of a batch as in one, and its frozen networks stay what they were.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoreline.core.method import Method
from scoreline.core.names import names
from scoreline.train import fit, run

_spec = importlib.util.spec_from_file_location("everything", Path(__file__).with_name("test_everything.py"))
assert _spec is not None
assert _spec.loader is not None
everything: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(everything)

DATA = (torch.linspace(-1, 1, 24 * 64).view(24, 1, 8, 8), torch.arange(24) % 10)
SETTINGS = {"batch_size": 8, "seed": 5, "ema": 0.9}


def make(name: str) -> Method:
    method: Method = everything.small("method", name)
    return method


def state(method: Method) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", names("method"))
def test_the_same_training_twice_ends_with_the_same_bits(name: str) -> None:
    method = make(name)
    before = state(method)
    after = state(fit(method, DATA, steps=3, **SETTINGS).method)
    assert not same(before, after), "nothing was trained"
    assert same(after, state(fit(make(name), DATA, steps=3, **SETTINGS).method))


@pytest.mark.parametrize("name", names("method"))
def test_stopped_and_resumed_it_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = state(run(make(name), DATA, tmp_path / "whole", steps=4, quiet=True, **SETTINGS).method)
    run(make(name), DATA, tmp_path / "parts", steps=4, stop_at=2, quiet=True, **SETTINGS)
    assert same(whole, state(run(make(name), DATA, tmp_path / "parts", steps=4, quiet=True, **SETTINGS).method))


@pytest.mark.parametrize("name", names("method"))
def test_accumulated_halves_train_like_the_whole_batch(name: str) -> None:
    one = state(fit(make(name), DATA, steps=1, **SETTINGS).method)
    two = state(fit(make(name), DATA, steps=1, accumulate=2, **SETTINGS).method)
    # Adam's first step is lr * sign(gradient): entries whose gradient is rounding noise may differ by 2 lr.
    differing = torch.cat([(one[key] - two[key]).abs().flatten() > 1e-5 for key in one if one[key].is_floating_point()])
    assert differing.float().mean() < 0.02


@pytest.mark.parametrize("name", names("method"))
def test_losses_need_neither_trainer_nor_files(name: str) -> None:
    method = make(name)
    for update in method.updates:
        assert update.parameters()
        assert callable(update.loss)
    frozen = {id(p) for module in method.frozen() for p in module.parameters()}
    assert not frozen & {id(p) for update in method.updates for p in update.parameters()}
