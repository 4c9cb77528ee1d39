"""The machine that the operator runs on has another time than the control plane, and then another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.cluster.faults import odd_clock
from tests.cluster.faults.conftest import Scene, first_of
from tests.cluster.faults.ground import deployment
from tests.cluster.lifecycle.operator_process import Operator

pytestmark = pytest.mark.cluster

HOUR = 3600


class OddOperator(Operator):
    MODULE = odd_clock.__name__


def times(status: dict[str, Any]) -> list[str]:
    return [one["lastTransitionTime"] for one in status["conditions"]]


@pytest.mark.parametrize("jump", first_of({"an hour ahead": HOUR, "an hour back": -HOUR}))
def test_a_clock_that_jumps_is_nobodys_deadline(jump: int, scene: Scene, tmp_path: Path) -> None:
    file = tmp_path / "ahead"
    odd_clock.set_clock(file, 0)
    with scene.ground.another_operator(OddOperator, test_clock_ahead=str(file)):
        scene.serve(replicas=2)
        # A report that did not come at first is asked for again later, and what it says is written then.
        scene.told("small", "Verified", "True")
        scene.quiet()
        before, pods = scene.models.status("small"), scene.models.pod_uids()
        odd_clock.set_clock(file, jump)
        scene.operator.wait_rounds()
        scene.quiet()
        assert scene.models.status("small") == before
        scene.wait(lambda: scene.operator.page("/healthz", health=True)[0] == 200, "it says that it lives")
        scene.wait(lambda: scene.operator.metric("plimsoll_leading") == 1, "it leads")
        scene.serve("fresh")
        assert times(scene.models.status("fresh")) >= times(before)
        odd_clock.set_clock(file, 0)
        scene.operator.wait_rounds()
        scene.models.apply("later", deployment())
        scene.ready("later")
        assert pods.items() <= scene.models.pod_uids().items()
        assert scene.models.status("small") == before
