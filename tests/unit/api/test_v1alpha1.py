"""Manifests read from files are judged as the API server judges them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from tests.unit.api.refused import ACCEPTED, REFUSED, Refused

from plimsoll.api.v1alpha1 import LLMDeployment, LLMDeploymentSpec, Quantity


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_spec_is_refused_at_its_field_with_what_to_write(case: Refused) -> None:
    with pytest.raises(ValidationError) as refused:
        LLMDeploymentSpec.model_validate(case.spec)
    [error] = refused.value.errors()
    assert ".".join(str(part) for part in error["loc"]).startswith(case.where)
    assert case.says in error["msg"]


@pytest.mark.parametrize("spec", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_right_spec_survives_a_round_trip(spec: dict[str, Any]) -> None:
    parsed = LLMDeploymentSpec.model_validate(spec)
    assert LLMDeploymentSpec.model_validate(parsed.to_dict()) == parsed


def test_unknown_fields_are_ignored_because_a_newer_crd_may_meet_an_older_operator() -> None:
    manifest = {"spec": {**ACCEPTED["hub"], "fromTheFuture": 1}, "status": {"alsoNew": []}}
    assert LLMDeployment.model_validate(manifest).spec == LLMDeploymentSpec.model_validate(ACCEPTED["hub"])


@pytest.mark.parametrize(
    ("given", "text"),
    [(4, "4"), ("4", "4"), ("0.5", "0.5"), ("1500M", "1500M"), ("2.25Gi", "2.25Gi"), ("0", "0")],
)
def test_quantities(given: object, text: str) -> None:
    assert TypeAdapter(Quantity).validate_python(given) == text


@pytest.mark.parametrize(
    "given", ["", "Gi", "4 Gi", "4GB", "4gi", "1e3", "+4", "-4", "4\n", -4, True, 0.5, "٤Gi"]
)
def test_what_is_no_quantity(given: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Quantity).validate_python(given)
