"""The table of names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scoreline.core.errors import InputError
from scoreline.core.names import TABLE, kind_and_name, lookup, names


def test_lookup_and_back() -> None:
    cls = lookup("sampler", "heun")
    assert cls.__name__ == "Heun"
    assert kind_and_name(cls) == ("sampler", "heun")
    assert names("sampler") == sorted(TABLE["sampler"])


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'heun'"):
        lookup("sampler", "huen")
    with pytest.raises(InputError, match="did you mean 'sampler'"):
        lookup("samplers", "heun")
    with pytest.raises(InputError, match="did you mean 'schedule'"):
        names("schedul")
    with pytest.raises(InputError, match="class"):
        kind_and_name(dict)
    for value in (3, None):
        with pytest.raises(InputError, match="sampler"):
            lookup("sampler", value)  # type: ignore[arg-type]


def test_a_subclass_is_not_its_parent() -> None:
    class Mine(lookup("sampler", "heun")):  # type: ignore[misc]
        pass

    with pytest.raises(InputError, match="Mine"):
        kind_and_name(Mine)


def test_reading_the_table_imports_nothing() -> None:
    code = "import sys, scoreline.core.names as n; n.names('sampler'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_target_stands_under_two_names_of_a_kind() -> None:
    for kind, entries in TABLE.items():
        assert len(set(entries.values())) == len(entries), kind
