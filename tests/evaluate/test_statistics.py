"""Statistics in the layouts of others, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.moments import Moments
from scoreline.evaluate.statistics import LAYOUTS, read_statistics, write_statistics
from scoreline.nn.features import Pixels

X = torch.randn(50, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_statistics_come_back_with_all_that_is_known(tmp_path: Path) -> None:
    protocol = Pixels((3, 2, 2)).protocol
    write_statistics(tmp_path / "s.npz", Moments.of(X), known=protocol, spatial=Moments.of(Y))
    found = read_statistics(tmp_path / "s.npz")
    assert found is not None
    torch.testing.assert_close(found.mean, X.mean(0))
    torch.testing.assert_close(found.cov, X.T.cov())
    torch.testing.assert_close(found.pair("sfid")[1], Y.T.cov())
    assert found.count == 50
    assert found.known == {k: protocol[k] for k in ("features", "weights", "resize", "quantisation", "precision")}


@pytest.mark.parametrize(
    "layout, names",
    [
        ("pytorch-fid", {"mu", "sigma"}),
        ("clean-fid", {"mu", "sigma"}),
        ("edm", {"mu", "sigma"}),
        ("guided-diffusion", {"mu", "sigma", "mu_s", "sigma_s"}),
    ],
)
def test_a_layout_holds_the_names_that_its_owner_reads(tmp_path: Path, layout: str, names: set[str]) -> None:
    write_statistics(tmp_path / "s.npz", Moments.of(X), spatial=Moments.of(Y), layout=layout)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == names
        assert {arrays[name].dtype for name in names} == {np.dtype(np.float64)}
        np.testing.assert_allclose(arrays["mu"], X.mean(0), rtol=1e-12)
        np.testing.assert_allclose(arrays["sigma"], np.cov(X.numpy().T), rtol=1e-10, atol=1e-12)
        if "mu_s" in names:
            np.testing.assert_allclose(arrays["sigma_s"], np.cov(Y.numpy().T), rtol=1e-10, atol=1e-12)
    found = read_statistics(tmp_path / "s.npz")
    assert found is not None
    assert (found.count, found.known) == (None, {})


def test_layouts_are_refused_by_name_and_for_what_they_lack(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'pytorch-fid'"):
        write_statistics(tmp_path / "s.npz", Moments.of(X), layout="pytorch_fid")
    with pytest.raises(InputError, match="mu_s and sigma_s"):
        write_statistics(tmp_path / "s.npz", Moments.of(X), layout="guided-diffusion")
    with pytest.raises(InputError, match=r"\.npz"):
        write_statistics(tmp_path / "s.txt", Moments.of(X))
    assert not list(tmp_path.iterdir())
    assert "scoreline" in LAYOUTS


def test_float32_statistics_and_a_reference_batch_with_images_are_read(tmp_path: Path) -> None:
    """guided-diffusion's reference files hold images beside four float64 or float32 arrays."""
    arrays = {"mu": np.zeros(4, np.float32), "sigma": np.eye(4, dtype=np.float32), "mu_s": np.ones(3)}
    np.savez(tmp_path / "s.npz", **arrays, sigma_s=2 * np.eye(3), arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    found = read_statistics(tmp_path / "s.npz")
    assert found is not None
    assert found.mean.dtype == torch.float64
    assert found.pair("sfid")[1].trace() == 6


def test_what_is_no_statistics_is_left_to_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    for source in (str(tmp_path / "images.npz"), "digits", str(tmp_path), "none.npz"):
        assert read_statistics(source) is None


def test_sfid_of_statistics_without_it(tmp_path: Path) -> None:
    write_statistics(tmp_path / "s.npz", Moments.of(X))
    found = read_statistics(tmp_path / "s.npz")
    assert found is not None
    with pytest.raises(InputError, match="mu_s and sigma_s"):
        found.pair("sfid")


@pytest.mark.parametrize(
    "arrays, error, words",
    [
        ({"mu": np.array(["a"] * 4), "sigma": np.eye(4)}, ArtefactError, "cannot be read"),
        ({"mu": np.array([None] * 4), "sigma": np.eye(4)}, ArtefactError, "cannot be read"),
        ({"mu": np.zeros(4, complex), "sigma": np.eye(4)}, ArtefactError, "cannot be read"),
        ({"mu": np.zeros(4)}, InputError, "need mu and sigma, both"),
        ({"sigma": np.eye(4)}, InputError, "need mu and sigma, both"),
        ({"mu_s": np.zeros(4), "sigma_s": np.eye(4)}, InputError, "need mu and sigma, both"),
        ({"mu": np.zeros((4, 1)), "sigma": np.eye(4)}, InputError, "mu has shape"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, InputError, "mu has shape"),
        ({"mu": np.zeros(4), "sigma": np.eye(3)}, InputError, "sigma has shape"),
        ({"mu": np.zeros(4), "sigma": np.full((4, 4), np.inf)}, InputError, "NaN or infinity"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.0, 1.0]])}, InputError, "no covariance"),
        ({"mu": np.zeros(2), "sigma": np.diag([1.0, -1.0])}, InputError, "no covariance"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "mu_s": np.zeros(2), "sigma_s": np.eye(3)}, InputError, "sigma_s has"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "count": -3}, InputError, "count"),
    ],
)
def test_statistics_that_are_none(tmp_path: Path, arrays: dict[str, Any], error: type[Exception], words: str) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(error, match=words):
        read_statistics(tmp_path / "s.npz")


def test_files_cut_anywhere_are_refused_or_left_to_others_but_never_read_wrongly(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.zeros(4), sigma=np.eye(4))
    whole = (tmp_path / "s.npz").read_bytes()
    for cut in range(0, len(whole), 23):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        with pytest.raises(ArtefactError, match="cannot be read"):
            read_statistics(tmp_path / "cut.npz")


def test_changed_bytes_give_the_statistics_themselves_or_an_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mean, cov = rng.normal(size=4), np.diag(rng.uniform(1, 2, 4))
    np.savez(tmp_path / "s.npz", mu=mean, sigma=cov)
    whole, refused = (tmp_path / "s.npz").read_bytes(), 0
    for _ in range(300):
        bad = bytearray(whole)
        bad[rng.integers(len(bad))] ^= int(rng.integers(1, 256))
        (tmp_path / "s.npz").write_bytes(bad)
        try:
            found = read_statistics(tmp_path / "s.npz")
        except (ArtefactError, InputError):
            refused += 1
            continue
        if found is not None:
            assert np.array_equal(found.mean, mean)
            assert np.array_equal(found.cov, cov)
    assert refused > 150
