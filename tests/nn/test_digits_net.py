"""The digits feature network: shapes, protocol, round trip, and the shipped weights if they are there."""

from __future__ import annotations

import copy

import pytest
import torch

from scoreline.classify.plain import accuracy
from scoreline.core.artefact import build, describe, load_artefact, save_artefact
from scoreline.core.errors import InputError
from scoreline.core.load import load, shipped_models
from scoreline.data import load_images
from scoreline.nn.digits_net import DigitsNet


def net(**settings: int) -> DigitsNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DigitsNet(**{"width": 4, "dim": 6, "num_classes": 3} | settings).eval()


def test_shapes_and_batches():
    model = net()
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = model.features(x)
    assert features.shape == (5, 6)
    assert (features >= 0).all()
    torch.testing.assert_close(model(x), model.head(features))
    torch.testing.assert_close(torch.cat([model(row[None]) for row in x]), model(x))
    assert sum(p.numel() for p in DigitsNet().parameters()) == 82_090
    model.features(x).sum().backward()
    assert all(p.grad.abs().max() > 0 for name, p in model.named_parameters() if not name.startswith("head"))


def test_protocol_follows_the_weights():
    model = net()
    before = model.protocol
    assert (before["features"], before["tap"]) == ("digits", "hidden-6")
    assert net().protocol == before
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.conv1.weight[0, 0, 0, 0] += 1e-3
    assert other.protocol["weights"] != before["weights"]
    assert model.protocol == before


def test_round_trip(tmp_path):
    model = net()
    assert build(describe(model)).dim == 6
    save_artefact(tmp_path / "net.safetensors", model)
    again, header = load_artefact(tmp_path / "net.safetensors", kind="encoder")
    assert header["name"] == "digits"
    assert again.protocol == model.protocol


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 16, 16), (1, 8, 8)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(InputError):
        net().features(torch.zeros(shape))


def test_the_shipped_network_knows_the_digits():
    assert shipped_models()["digits-net"].is_file()
    test = load_images("digits", split="test")
    batch = test.batch(range(len(test)))
    assert accuracy(load("digits-net", kind="encoder"), batch.image, batch.label) > 0.97
