"""Taints and tolerations, as the scheduler reads them."""

from __future__ import annotations

import pytest

from plimsoll.api.v1alpha1 import Toleration
from plimsoll.inventory.taints import NO_EXECUTE, tolerates, untolerated
from plimsoll.inventory.views import Taint

GPU = Taint("nvidia.com/gpu", "present", "NoSchedule")


@pytest.mark.parametrize(
    ("toleration", "expected"),
    [
        (Toleration(key="nvidia.com/gpu", operator="Exists"), True),
        (Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule"), True),
        (Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoExecute"), False),
        (Toleration(key="nvidia.com/gpu", operator="Equal", value="present"), True),
        (Toleration(key="nvidia.com/gpu", operator="Equal", value="absent"), False),
        (Toleration(key="nvidia.com/gpu", operator="Equal"), False),
        (Toleration(operator="Exists"), True),
        (Toleration(key="amd.com/gpu", operator="Exists"), False),
    ],
    ids=lambda value: (
        str(value) if isinstance(value, bool) else f"{value.key}-{value.operator}-{value.effect}"
    ),
)
def test_a_toleration_matches_key_value_and_effect(toleration: Toleration, expected: bool) -> None:
    assert tolerates(toleration, GPU) is expected


def test_a_preference_keeps_nobody_away() -> None:
    soft = Taint("spot", "", "PreferNoSchedule")
    assert untolerated([soft], []) is None
    assert untolerated([soft, GPU], []) == GPU


def test_only_no_execute_evicts() -> None:
    dead = Taint("node.kubernetes.io/unreachable", "", "NoExecute")
    assert untolerated([GPU], [], (NO_EXECUTE,)) is None
    assert untolerated([GPU, dead], [], (NO_EXECUTE,)) == dead
