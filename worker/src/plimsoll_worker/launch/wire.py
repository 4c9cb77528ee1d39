"""What all types of the contract have in common."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

LAUNCH_VERSION: Final = "v1"
ENGINE_VERSION = "0.3.0"

Bytes = Annotated[int, Field(ge=0)]


class Wire(BaseModel):
    """Base of everything on the wire: frozen, camelCase, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True)
