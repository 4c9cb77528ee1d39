"""When the garbage collector looks for cycles.

The operator holds hundreds of thousands of small objects that live long and form no cycles: views of nodes
and pods. Python's defaults look through all of them again and again while a list is read and while a plan is
made: a third of the CPU time of a start with 20,000 pods, and half of the slowest plans. So cycles are looked
for seldom, and all of them once a minute. Everything that is in no cycle goes at once, as ever.
"""

from __future__ import annotations

import gc

NEW_OBJECTS = 50_000
"""Before the youngest are looked through; Python's default is 700. A chunk of a list makes about as many."""


def collect_seldom() -> None:
    gc.set_threshold(NEW_OBJECTS, 20, 10)


def collect_and_set_aside() -> None:
    """All cycles go now; what is left is not looked through until the next call."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
