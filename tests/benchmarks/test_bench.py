"""The benchmarks run and their arithmetic holds; no library is measured against here, a stand-in takes its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(script):
    """Imports a file of the benchmarks' folder."""
    return script


def test_a_ratio_is_the_median_of_ratios_inside_rounds(bench):
    race = bench("common").Race({"ours": [1.0, 10.0, 2.0], "peer": [3.0, 20.0, 8.0]}, {})
    assert race.ratio("peer", "ours") == 3.0  # of 3, 2, 4; the ratio of the medians would be 4
    assert (race.median("peer"), race.best("ours")) == (8.0, 1.0)
    assert race.summary("ours")["ours"] == {"median": 2.0, "min": 1.0, "ratio": 1.0}


def test_sides_alternate_and_preparation_is_not_timed(bench):
    now, order = [0.0], []

    def side(name: str, seconds: float):
        def run(*given):
            order.append((name, *given))
            now[0] += seconds
            return name

        return run

    def prepare():
        now[0] += 100.0
        return "ready"

    race = bench("common").race(
        {"a": side("a", 1.0), "b": side("b", 3.0)}, 2, prepare={"b": prepare}, warmup=1, clock=lambda: now[0]
    )
    assert race.seconds == {"a": [1.0, 1.0], "b": [3.0, 3.0]}
    assert race.values == {"a": "a", "b": "b"}
    assert order == [("b", "ready"), ("a",), ("a",), ("b", "ready"), ("b", "ready"), ("a",)]


def test_tables_are_aligned(bench):
    text = bench("common").table(["side", "ratio"], [["ours", 1.0], ["the peer", 1234.4]])
    assert text.splitlines() == ["side      ratio", "ours       1.00", "the peer   1234"]


def test_what_is_no_count_is_refused(bench, capsys):
    common = bench("common")
    with pytest.raises(SystemExit):
        common.options(common.parser("x", rounds=4), ["--rounds", "0"])
    assert "0 is not at least 1" in capsys.readouterr().err
    assert common.options(common.parser("x", rounds=4), []).rounds == 4
    assert common.options(common.parser("x", rounds=4), ["--quick"]).rounds == 3


def test_a_missing_peer_says_how_to_get_it(bench):
    with pytest.raises(SystemExit, match=r"no_such_library is not installed: pip install 'scoreline\[bench\]'"):
        bench("common").peer_module("no_such_library")


def test_unet(bench, capsys, tmp_path):
    unet = bench("bench_unet")
    file = tmp_path / "unet.json"
    result = unet.main(["--quick", "--rounds", "1", "--design", "ddpm", "--json", str(file)], peer=unet.our_net)
    shown = capsys.readouterr().out
    assert "GMACs an image" in shown
    assert "(+0.00 %), attention at [16] and [16]" in shown
    assert "ddpm eager forward+backward" in shown
    assert json.loads(file.read_text()) == result
    assert not list(tmp_path.glob("*.part"))
    figures = result["designs"]["ddpm"]
    assert figures["macs"]["ours"] == figures["macs"]["peer"] > 0
    for task in ("forward", "forward+backward"):
        rate = figures["eager"][task]["images_per_second"]
        assert figures["eager"][task]["ratio"] == pytest.approx(rate["ours"] / rate["peer"])


def test_unet_refuses_an_unfair_pair(bench, capsys):
    unet = bench("bench_unet")
    with pytest.raises(SystemExit, match="MACs must agree within 2 %"):
        unet.main(["--quick", "--design", "edm"], peer=lambda design, base: unet.our_net(design, 2 * base))
    assert "GMACs" in capsys.readouterr().out


def test_unet_training_pass_reaches_every_parameter(bench):
    unet = bench("bench_unet")
    net = unet.our_net("edm", 8)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    unet.forward_backward(net, net, torch.randn(2, 3, 32, 32), torch.full((1,), 3.0))()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize("name", ["ddim", "dpm-solver++2m", "deis", "unipc"])
def test_sampler_side_does_what_the_sampler_does(bench, name):
    steps = bench("bench_sampler_step")
    x, out = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    net = steps.Ready(out)
    side = steps.our_side(name, net, x, 6)
    denoiser = steps.Preconditioned(net, steps.Discrete(), kind="eps")
    sampler = steps.SAMPLERS[name](steps=6)
    times = sampler.times(denoiser.schedule)
    times[-1] = steps.ENDS.get(name, -1.0)
    whole = sampler(denoiser, steps.Noise(0).at(range(2), (3, 4, 4)), times=times, x=x)
    assert torch.equal(side.run(side.prepare()), whole.x)


def test_sampler_step(bench, capsys, tmp_path):
    steps = bench("bench_sampler_step")
    file = tmp_path / "steps.json"
    result = steps.main(["--quick", "--json", str(file)], peer=steps.our_side)
    shown = capsys.readouterr().out
    assert "dpm-solver++2m" in shown
    assert "drawing noise" in shown
    assert "once a run, ddim" in shown
    assert json.loads(file.read_text()) == result
    for figures in result["samplers"].values():
        assert figures["relative_difference"] == 0
        assert figures["ratio"] > 0
        assert set(figures["microseconds"]) == {"ours", "peer", "floor"}


def test_frechet(bench, capsys, tmp_path):
    file = tmp_path / "frechet.json"
    result = bench("bench_frechet").main(["--quick", "--rounds", "1", "--json", str(file)])
    shown = capsys.readouterr().out
    assert "full rank, d = 128" in shown
    assert "rank deficient, d = 128, N, M = [32, 64]" in shown
    assert json.loads(file.read_text()) == result
    assert max(result["full_rank"]["relative_difference"].values()) < 1e-8
    assert max(result["deficient"]["relative_error"][route] for route in ("features", "moments")) < 1e-6
    assert result["deficient"]["seconds"]["features"]["ratio"] == 1.0
