"""`scoreline convert`: a file of others in, a model that every verb takes out."""

from __future__ import annotations

import pickle

import pytest
import torch

from scoreline.bridges.openai_checkpoints import guided_names
from scoreline.cli import main
from scoreline.nn.unet import UNet


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A state dict in OpenAI's layout, made from our own network by the names alone."""
    torch.manual_seed(0)
    net = UNet(
        in_shape=(1, 8, 8), base_channels=128, channel_mult=(1,), num_blocks=1, attention=(8,), head_channels=64,
        modulation="scale-shift", norm_eps=1e-5, init="default", time_features="cos-sin", labels="output",
    )  # fmt: skip
    state = net.state_dict()
    path = tmp_path_factory.mktemp("files") / "cd.pt"
    torch.save({theirs: state[ours] for ours, theirs in guided_names(net)}, path)
    return path


def test_a_converted_model_is_sampled(scoreline, checkpoint, tmp_path):
    answer = scoreline("convert", checkpoint, "--to", "cd.safetensors", "--from", "consistency", "--size", 8)
    assert answer.code == 0, answer.err
    assert "cd.safetensors: ADM (consistency), 1 x 8 x 8, " in answer.out
    assert "try: scoreline sample cd.safetensors" in answer.out
    answer = scoreline("sample", "./cd.safetensors", "--sampler", "jumps", "--steps", 1, "--seeds", "0:2", "--json")
    assert (answer.code, answer.json["nfe"]) == (0, 1)
    shown = scoreline("models", "./cd.safetensors", "--json").json[0]
    assert (shown["class"], shown["converted_from"]) == ("consistency", "cd.pt")
    again = scoreline("convert", checkpoint, "--to", "x.safetensors", "--from=consistency", "--size=8", "--json").json
    assert again["fingerprint"] == shown["fingerprint"]


def test_bad_input(scoreline, checkpoint, tmp_path):
    scoreline("convert", checkpoint).fails(2, "--to")
    scoreline("convert", checkpoint, "--to", "x.pt", "--size", 8).fails(2, "must end in .safetensors")
    scoreline("convert", checkpoint, "--to", "x.safetensors").fails(2, "say --from consistency")
    scoreline("convert", checkpoint, "--to", "x.safetensors", "--from", "consistency").fails(2, "say --size 64")
    scoreline("convert", checkpoint, "--to", "x.safetensors", "--from", "edn").fails(2, "did you mean 'edm'")
    scoreline("convert", checkpoint, "--to", "x.safetensors", "--form", "edm").fails(2, "did you mean '--from'")
    scoreline("convert", "none.pkl", "--to", "x.safetensors").fails(1, "none.pkl", "No such file")
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps({"ema": print}))
    scoreline("convert", "hostile.pkl", "--to", "x.safetensors").fails(1, "asks for builtins.print", "no code is run")
    (tmp_path / "cut.pt").write_bytes(checkpoint.read_bytes()[:3000])
    scoreline("convert", "cut.pt", "--to", "x.safetensors").fails(1, "truncated")
    assert not (tmp_path / "x.safetensors").exists()


def test_help(capsys):
    assert main(["convert", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--from" in shown
    assert "--from-" not in shown
    assert "No code in the file is run" in " ".join(shown.split())
