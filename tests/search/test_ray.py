"""A search on a Ray cluster of two nodes, one of which is killed on the way, finds what one process finds."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scoreline.core.errors import InputError
from scoreline.search.engine import search

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from toys import Bowl, Climber  # noqa: E402

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray  # noqa: E402


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head and a second node of one core each; they inherit the path on which `toys` lies."""
    from ray.cluster_utils import Cluster

    # Ray's workers give way to all other processes, which on two busy cores means that they hardly start.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def test_two_nodes_one_of_them_killed(cluster: Any, tmp_path: Path) -> None:
    calls = [tmp_path / name for name in ("alone", "ray")]
    for folder in calls:
        folder.mkdir()
    alone = search(Climber(generations=3), Bowl(str(calls[0])))
    second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()
    slow, killed = Bowl(str(calls[1]), pause=0.3, meet=2), threading.Event()

    def kill() -> None:
        until = time.monotonic() + 50
        # In the middle of the search, when both nodes are at work.
        while len(slow.callers()) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        cluster.remove_node(second, allow_graceful=False)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    together = search(
        Climber(generations=3), slow, workers=f"ray:{cluster.address}", ledger=tmp_path / "runs.jsonl"
    )  # fmt: skip
    thread.join()
    assert killed.is_set()
    assert [row["genotype"] for row in together] == [row["genotype"] for row in alone]
    assert [row["result"] for row in together] == [row["result"] for row in alone]
    assert len(slow.callers()) >= 2  # both nodes worked
    assert not ray.is_initialized()  # what the search opened it closed


def test_an_address_where_nothing_answers() -> None:
    with pytest.raises(InputError, match="no cluster answers"):
        search(Climber(), Bowl("."), workers="ray:127.0.0.1:1")
