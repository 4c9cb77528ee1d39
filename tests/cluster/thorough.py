"""Which cases of many `make test` runs: one of each kind. `make test-faults` runs all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import pytest

THOROUGH = pytest.mark.thorough
T = TypeVar("T")


def first_of(cases: Mapping[str, T]) -> list[Any]:
    """Parameters: the first case for every run, the others for thorough ones."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), id=name, marks=[THOROUGH] * bool(number)
        )
        for number, (name, case) in enumerate(cases.items())
    ]
