"""The JSON Schemas under docs/schemas/, from the models that operator and pods hand to each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plimsoll.model.schema import facts_schema
from plimsoll_worker.launch_schemas import SCHEMAS, schema_text

FOLDER = Path("docs/schemas")


def files() -> Mapping[Path, str]:
    """Path relative to the repository's root, and content."""
    schemas = {FOLDER / f"{name}.schema.json": schema_text(model) for name, model in SCHEMAS.items()}
    return schemas | {FOLDER / "model_facts.schema.json": facts_schema()}
