"""The vocabulary that the resource's fields are written in: checked text, quantities, rules, list types.

Every check stands in one place and works twice: pydantic applies it when the command line reads a manifest
from a file, the CRD generator hands it to the API server as a CEL rule. A CRD's own `pattern` was rejected
for text that people write: it can only answer "should match '^[a-z]…$'", a rule carries a sentence that says
what to write.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

VALIDATIONS = "x-kubernetes-validations"
INT_OR_STRING = "x-kubernetes-int-or-string"


class Rule(NamedTuple):
    """What must hold between the fields of a part, for the API server and for Python."""

    cel: str
    holds: Callable[[Any], bool]
    message: str
    """What to write instead."""


class Model(BaseModel):
    """Base of the resource's parts.

    Unknown fields are ignored here, as a newer CRD may meet an older operator; the API server refuses them.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )
    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        for rule in self.RULES:
            if not rule.holds(self):
                raise ValueError(rule.message)
        return self

    def to_dict(self) -> dict[str, Any]:
        """The part as the API server stores it: camelCase, absent where there is no value."""
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")


@dataclass(frozen=True, slots=True)
class Matches:
    """Text must match `pattern` (RE2 syntax, anchored by `^` and `$`); else `message` says what to write."""

    pattern: str
    message: str
    cel: str = ""
    """The same check in CEL where `self.matches` is not enough."""

    def __get_pydantic_core_schema__(self, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        compiled = re.compile(self.pattern.removesuffix("$") + r"\Z", re.ASCII)

        def check(value: str) -> str:
            if not compiled.match(value):
                raise ValueError(self.message)
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        rule = {"rule": self.cel or f"self.matches(r'{self.pattern}')", "message": self.message}
        return {**handler(schema), VALIDATIONS: [rule]}


def list_map(*keys: str) -> dict[str, Any]:
    """Schema of a list whose items are told apart by `keys`, so that two writers can own different items."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


LIST_SET = {"x-kubernetes-list-type": "set"}


def _quantity_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


QUANTITY_PATTERN = r"^([0-9]+(\.[0-9]{1,9})?)(m|[kMGTPE]|[KMGTPE]i)?$"
Quantity = Annotated[
    str,
    Field(max_length=32, json_schema_extra={INT_OR_STRING: True}),
    Matches(
        QUANTITY_PATTERN,
        "not a quantity: write a number with an optional unit, for example 40Gi, 1500M, 4 or 500m",
        cel=f"type(self) == int ? int(self) >= 0 : string(self).matches(r'{QUANTITY_PATTERN}')",
    ),
    BeforeValidator(_quantity_text),
]

_LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]"
)

ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    Matches(
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        "not the name of an object: write lower case letters, digits, '-' and '.', beginning and ending with "
        "a letter or digit",
    ),
]
ShortText = Annotated[str, Field(max_length=253)]
LabelKey = Annotated[str, Field(max_length=317)]
LabelValue = Annotated[
    str,
    Field(max_length=63),
    Matches(
        _LABEL_VALUE,
        "not a label value: write letters, digits, '-', '_' and '.', beginning and ending with a letter or "
        "digit",
    ),
]


def is_label_key(text: str) -> bool:
    """Whether the text is `name` or `domain/name`."""
    return _LABEL_KEY.fullmatch(text) is not None


def label_keys(field: str, wire_name: str) -> Rule:
    """Keys of the map `field` are label keys: `name` or `domain/name`."""
    return Rule(
        f"!has(self.{wire_name}) || "
        f"self.{wire_name}.all(key, !format.qualifiedName().validate(key).hasValue())",
        lambda part: all(is_label_key(key) for key in getattr(part, field)),
        f"{wire_name}: a key is not a label key: write name or domain/name, for example example.com/team",
    )
