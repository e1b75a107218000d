"""The decision space: what is refused, what is counted, what a file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scoreline.core.errors import ArtefactError, InputError
from scoreline.diffusion.schedules import EDM
from scoreline.samplers.solver_schedule import SolverSchedule, Step, read_plans, write_plans

TIMES = (80.0, 10.0, 1.0, 0.0)
TWO = Step("noise", 2, -1, ((-2,),), "linear", 0.1, corrector="pseudo")
PLAN = SolverSchedule(TIMES, (Step(corrector="implicit"), TWO, Step("data")), afs="zero", skips=(0.9, 1.0))


@pytest.mark.parametrize(
    ("steps", "match"),
    [
        ((Step("data", 2, -1, ((-2,),)), Step(), Step()), "above the number of visited points, 1"),
        ((Step(), Step("data", 1, -3), Step()), "start point must be one of the 2"),
        ((Step("data", 1, 0), Step(), Step()), "start point"),
        ((Step(), Step("data", 2, -1, ((-3,),)), Step()), "must be among the 2 visited"),
        ((Step(), Step(), Step(corrector="pseudo")), "last step has no corrector"),
        ((Step(), Step()), "3 steps"),
        ((Step(), Step(), Step("data", 5, -1, ((-2, -3, -4, -5),) * 4)), "from 1 to 4|above the number"),
    ],
)
def test_infeasible_decisions_are_refused(steps: tuple[Step, ...], match: str) -> None:
    with pytest.raises(InputError, match=match):
        SolverSchedule(TIMES, steps)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"order": 0}, "order"),
        ({"order": 2}, "estimates 1 derivatives"),
        ({"order": 3, "points": ((-2,), (-2,))}, "derivative 2 needs at least 2"),
        ({"order": 2, "points": ((-1,),)}, "differ from the start point"),
        ({"order": 3, "points": ((-2,), (-2, -2))}, "distinct"),
        ({"prediction": "nois"}, "did you mean 'noise'"),
        ({"scaling": "unipc-bh3"}, "did you mean 'unipc-bh"),
        ({"corrector": "pseud"}, "did you mean 'pseudo'"),
        ({"linear": float("nan")}, "finite"),
        ({"prediction": "ems", "scaling": "adams"}, "noise and data"),
    ],
)
def test_impossible_steps_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Step(**settings)


@pytest.mark.parametrize("times", [(1.0,), (1.0, 1.0, 0.5, 0.1), (1.0, 2.0, 0.5, 0.1), (1.0, float("nan"), 0.5, 0.1)])
def test_times_that_do_not_decrease_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="decrease strictly"):
        SolverSchedule(times, (Step(),) * (len(times) - 1))


def test_the_corrector_of_a_step() -> None:
    """One order more, every point one further back, the new point beside them."""
    corrected = Step("noise", 3, -1, ((-2,), (-2, -4)), "dpmsolver-2", corrector="pseudo").corrected()
    assert corrected == Step("noise", 4, -2, ((-1, -3), (-1, -3, -5), (-1, -3, -5)))
    assert Step("data", corrector="pseudo", corrector_scaling="unipc-bh1").corrected() == Step(
        "data", 2, -2, ((-1,),), "unipc-bh1"
    )
    assert Step("data", 2, -2, ((-1,),), corrector="pseudo").corrected().start == -3


def test_evaluations() -> None:
    assert PLAN.nfe() == 3 - 1 + 1
    assert PLAN.nfe(variant="released") == 2
    assert SolverSchedule(TIMES, (Step(),) * 3).nfe() == 3


def test_json_round_trip() -> None:
    assert SolverSchedule.from_dict(json.loads(json.dumps(PLAN.to_dict()))) == PLAN
    assert PLAN.to_dict()["steps"][2] == {"prediction": "data"}


def test_unknown_and_missing_entries_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'order'"):
        SolverSchedule.from_dict({"times": TIMES, "steps": [{"ordr": 1}] * 3})
    with pytest.raises(InputError, match="did you mean 'times'"):
        SolverSchedule.from_dict({"time": TIMES, "steps": []})
    with pytest.raises(InputError, match="has no steps"):
        SolverSchedule.from_dict({"times": TIMES})
    with pytest.raises(InputError, match="named entries"):
        SolverSchedule.from_dict({"times": TIMES, "steps": ["data"] * 3})


def test_plan_files(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    written = write_plans(file, [{"plan": PLAN, "score": 0.1}], EDM(), model="digits")
    content = read_plans(file)
    assert content == json.loads(json.dumps(written)) == read_plans(content)
    assert content["plans"][0]["nfe"] == 3
    assert content["plans"][0]["score"] == 0.1
    assert content["model"] == "digits"
    assert content["schedule"]["name"] == "edm"


def test_bad_plan_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    with pytest.raises(ArtefactError, match="no such file"):
        read_plans(file)
    file.write_text("{}")
    with pytest.raises(ArtefactError, match="scoreline search"):
        read_plans(file)
    content = write_plans(file, [{"plan": PLAN}], EDM())
    content["plans"][0]["plan"]["steps"][0]["order"] = 2
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="order 2"):
        read_plans(file)
    file.write_text(json.dumps({**content, "plans": []}))
    with pytest.raises(ArtefactError, match="damaged"):
        read_plans(file)
    with pytest.raises(InputError, match=r"\.json"):
        write_plans(tmp_path / "plan.txt", [{"plan": PLAN}], EDM())
    with pytest.raises(InputError, match="none to write"):
        write_plans(file, [], EDM())
