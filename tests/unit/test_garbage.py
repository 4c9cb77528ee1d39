"""What forms a cycle goes, also when it was set aside before."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from plimsoll import garbage


class Ring:
    """Holds itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The collector belongs to the whole process."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_what_lives_is_set_aside_and_collected_once_it_is_a_cycle_that_nobody_holds() -> None:
    ring = Ring()
    there = weakref.ref(ring)
    garbage.collect_and_set_aside()
    assert gc.get_freeze_count() > 0
    assert there() is ring
    del ring
    gc.collect()
    assert there() is not None, "what is set aside is not looked through"
    garbage.collect_and_set_aside()
    assert there() is None


def test_cycles_are_looked_for_seldom() -> None:
    garbage.collect_seldom()
    assert gc.get_threshold()[0] == garbage.NEW_OBJECTS
