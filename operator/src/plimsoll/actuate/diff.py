"""Whether an object of the API server already says what is wanted, and if not, where it first differs.

Only wanted fields are compared: the API server and other controllers add their own. The sentence goes into
the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Difference(NamedTuple):
    equal: bool
    first: str
    """The first difference in words; empty when equal."""


SAME = Difference(True, "")


def compare(wanted: Any, found: Any, path: str = "") -> Difference:
    """Mappings may hold more than is wanted, lists may not: their order and length are meant."""
    if wanted == found:
        return SAME
    if isinstance(wanted, Mapping):
        if not isinstance(found, Mapping):
            return _differs(path, wanted, found)
        for key, value in wanted.items():
            where = f"{path}.{key}" if path else str(key)
            if key not in found:
                return Difference(False, f"{where} is missing, wanted {value!r}")
            if not (inner := compare(value, found[key], where)).equal:
                return inner
        return SAME
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        if not isinstance(found, Sequence) or isinstance(found, str):
            return _differs(path, wanted, found)
        if len(wanted) != len(found):
            return Difference(False, f"{path} has {len(found)} entries, wanted {len(wanted)}")
        for index, value in enumerate(wanted):
            if not (inner := compare(value, found[index], f"{path}[{index}]")).equal:
                return inner
        return SAME
    return _differs(path, wanted, found)


def _differs(path: str, wanted: Any, found: Any) -> Difference:
    return Difference(False, f"{path} is {found!r}, wanted {wanted!r}")
