from __future__ import annotations

import torch
from torch import nn

from scoreline.train.freezing import freeze, frozen


def test_a_frozen_module_takes_no_gradient_but_passes_it_on() -> None:
    module = freeze(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    x = torch.ones(1, 2, requires_grad=True)
    module(x).sum().backward()
    assert module[0].weight.grad is None
    assert x.grad is not None
    assert not module.training
    assert not module[1].training


def test_after_the_block_every_flag_is_as_before() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Dropout(0.5))
    module[0].weight.requires_grad_(False)
    module[2].eval()
    with frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
        assert not module.training
    assert [p.requires_grad for p in module.parameters()] == [False, True, True, True]
    assert [part.training for part in module] == [True, True, False]
