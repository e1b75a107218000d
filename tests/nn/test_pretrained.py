"""Finding, checking and reading published weights: the table, the search, the refusals."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoreline.core.errors import ArtefactError, InputError
from scoreline.nn.pretrained import PRETRAINED, Unfilled, fill, find_pretrained, pretrained_folders, read_pretrained

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, -1.0])}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SCORELINE_CACHE", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def known(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Enter a file's checksum into the table."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(PRETRAINED, name, replace(PRETRAINED[name], sha256=digest))
    return digest


def test_checksums_stand_beside_their_sources() -> None:
    for name, entry in PRETRAINED.items():
        assert entry.url.startswith("https://"), name
        assert entry.url.endswith("/" + entry.file), name
        if entry.sha256 is not None:
            assert re.fullmatch("[0-9a-f]{64}", entry.sha256), name
            assert len(entry.source) > 10, name
        # publishers' names hold the first eight digits, publishers' folders the whole sum
        if short := re.search(r"-([0-9a-f]{8})\.pth$", entry.file):
            assert entry.sha256[:8] == short.group(1), name
        if whole := re.search("/([0-9a-f]{64})/", entry.url):
            assert entry.sha256 == whole.group(1), name
    sums = [entry.sha256 for entry in PRETRAINED.values() if entry.sha256]
    assert len(set(sums)) == len(sums)


def test_a_missing_file_names_what_to_fetch_and_where_to_put_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in PRETRAINED.items():
        with pytest.raises(ArtefactError) as caught:
            find_pretrained(name)
        for words in (entry.file, entry.url, entry.sha256 or name, f"{home}/.cache/scoreline", "no such file"):
            assert words in str(caught.value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert pretrained_folders("alexnet")[0] == home / "xdg/scoreline"
    monkeypatch.setenv("SCORELINE_CACHE", str(home / "own"))
    assert pretrained_folders("alexnet") == [home / "own", home / "xdg/torch/hub/checkpoints"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert pretrained_folders("alexnet")[1] == home / ".cache/torch/hub/checkpoints"
    assert pretrained_folders("clip-merges")[1] == home / ".cache/clip"
    with pytest.raises(ArtefactError, match=r"elsewhere\.pth"):
        find_pretrained("alexnet", home / "elsewhere.pth")
    with pytest.raises(InputError, match="did you mean 'alexnet'"):
        find_pretrained("alexnett")


def test_the_first_folder_with_the_file_wins(home: Path) -> None:
    file = PRETRAINED["vgg16"].file
    second = home / ".cache/torch/hub/checkpoints" / file
    second.parent.mkdir(parents=True)
    second.touch()
    assert find_pretrained("vgg16") == second
    first = home / ".cache/scoreline" / file
    first.parent.mkdir(parents=True)
    first.touch()
    assert find_pretrained("vgg16") == first
    assert find_pretrained("vgg16", second) == second


def test_only_known_trusted_or_codeless_files_are_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    file = home / "w.pth"
    torch.save(STATE, file)
    with pytest.raises(ArtefactError) as caught:
        read_pretrained("alexnet", file)
    assert PRETRAINED["alexnet"].sha256 in str(caught.value)
    assert "trusted=True" in str(caught.value)
    assert torch.equal(read_pretrained("alexnet", file, trusted=True)[0]["weight"], STATE["weight"])
    monkeypatch.setitem(PRETRAINED, "alexnet", replace(PRETRAINED["alexnet"], sha256=None))
    with pytest.raises(ArtefactError, match="none is publicly known"):
        read_pretrained("alexnet", file)
    digest = known("alexnet", file, monkeypatch)
    state, found, sha256 = read_pretrained("alexnet", file)
    assert (found, sha256) == (file, digest)
    assert state.keys() == STATE.keys()
    save_file(STATE, home / "w.safetensors")
    assert torch.equal(read_pretrained("vgg16", home / "w.safetensors")[0]["bias"], STATE["bias"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_gives_its_tensors(home: Path) -> None:
    layer = nn.Linear(3, 2)
    layer.load_state_dict(STATE)
    file = home / "script.pt"
    torch.jit.save(torch.jit.trace(layer, torch.zeros(1, 3)), str(file))
    with pytest.raises(ArtefactError, match="trusted"):
        read_pretrained("clip-vit-b-32", file)
    state = read_pretrained("clip-vit-b-32", file, trusted=True)[0]
    assert {name: value.tolist() for name, value in state.items()} == {n: v.tolist() for n, v in STATE.items()}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"\x80\x02]q\x00", b"{}"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_refused(home: Path, content: bytes, suffix: str) -> None:
    file = home / f"w{suffix}"
    file.write_bytes(content)
    with pytest.raises(ArtefactError, match="corrupt"):
        read_pretrained("vgg16", file, trusted=True)


def test_code_in_a_file_does_not_run(home: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (home / "ran",))

    torch.save({"weight": Evil()}, home / "w.pth")
    with pytest.raises(ArtefactError):
        read_pretrained("vgg16", home / "w.pth", trusted=True)
    torch.save([1, 2], home / "w.pth")
    with pytest.raises(ArtefactError, match="dictionary"):
        read_pretrained("vgg16", home / "w.pth", trusted=True)
    assert not (home / "ran").exists()


def test_weights_fill_a_network_whole_or_not_at_all(home: Path) -> None:
    layer = nn.Linear(3, 2)
    fill(layer, {"net.weight": STATE["weight"], "net.bias": STATE["bias"]}, home, rename=lambda n: n[4:])
    assert torch.equal(layer.weight, STATE["weight"])
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({"weight": STATE["weight"]}, "'bias': not this network: 1 tensors missing, 0 unknown, 0 of"),
        (STATE | {"extra": torch.zeros(1)}, "'extra': not this network: 0 tensors missing, 1 unknown, 0 of"),
        (STATE | {"bias": torch.zeros(3)}, "'bias': not this network: 0 tensors missing, 0 unknown, 1 of"),
    ]
    for state, words in cases:
        with pytest.raises(ArtefactError, match=words):
            fill(layer, state, home)
    fill(layer, STATE | {"extra": torch.zeros(1)}, home, rename=lambda n: None if n == "extra" else n)
    norm = nn.BatchNorm1d(2)
    fill(norm, {k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"}, home)


def test_networks_that_get_weights_draw_none() -> None:
    before = torch.get_rng_state()
    with Unfilled():
        nn.Sequential(nn.Linear(4, 5), nn.Conv2d(3, 4, 3), nn.Embedding(7, 2), nn.LayerNorm(3))
    assert torch.equal(torch.get_rng_state(), before)
    nn.Linear(4, 5)
    assert not torch.equal(torch.get_rng_state(), before)
