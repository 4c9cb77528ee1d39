"""Quantities are exact: what the API server accepts is read to the last unit, everything else is told."""

from __future__ import annotations

from decimal import Decimal

import pytest

from plimsoll.inventory.quantity import QuantityError, at_least, at_most, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"),
        ("4", "4"),
        (4, "4"),
        ("500m", "0.5"),
        ("1.5Gi", "1610612736"),
        ("0.1", "0.1"),
        (".5", "0.5"),
        ("2e3", "2000"),
        ("1E", "1e18"),
        ("12E6", "12e6"),
        ("100n", "0.0000001"),
        ("-3", "-3"),
        ("128974848k", "128974848000"),
    ],
)
def test_a_quantity_is_read_exactly(text: object, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize(
    "text", ["", "Gi", "1 Gi", "1gb", "1e", "0x10", "٣", "nan", "1" * 80, None, True, 1.5, {}, "1e999"]
)
def test_what_is_no_quantity_is_told(text: object) -> None:
    with pytest.raises(QuantityError, match="is not a quantity"):
        parse_quantity(text)


def test_requests_round_up_and_what_a_node_gives_rounds_down() -> None:
    assert at_least("1500u", 1000) == 2
    assert at_most("1500u", 1000) == 1
    assert at_least("100m", 1000) == at_most("100m", 1000) == 100
