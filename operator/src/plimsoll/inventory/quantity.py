"""Kubernetes quantities as exact integers.

The `kubernetes` client has a parser, but the planner must not import a client, and floats would make 0.1 of a
core something else than 100 millicores. Grammar: apimachinery `pkg/api/resource/quantity.go`.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}
PATTERN = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))([eE][+-]?[0-9]{1,2}|[numkMGTPE]|[KMGTPE]i)?")
MAX_LENGTH = 64


class QuantityError(ValueError):
    """The text is not a quantity."""


def parse_quantity(value: object) -> Decimal:
    """The exact value of a quantity such as `500m`, `1.5Gi`, `2e3` or the number 4. Raises QuantityError."""
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    match = PATTERN.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        raise QuantityError(
            f"{value!r} is not a quantity: write a number with an optional suffix, as in 500m, 4 or 40Gi"
        )
    number, suffix = match.group(1), match.group(2) or ""
    factor = SUFFIXES[suffix] if suffix in SUFFIXES else Decimal(f"1{suffix}")
    return Decimal(number) * factor


def at_least(value: object, scale: int = 1) -> int:
    """`value` × `scale` rounded up, as the API server does for requests; scale 1000 gives millicores."""
    return int((parse_quantity(value) * scale).to_integral_value(ROUND_CEILING))


def at_most(value: object, scale: int = 1) -> int:
    """`value` × `scale` rounded down: for what a node gives, where half a unit is none."""
    return int((parse_quantity(value) * scale).to_integral_value(ROUND_FLOOR))
