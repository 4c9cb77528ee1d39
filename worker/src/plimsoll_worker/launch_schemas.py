"""Writes the JSON Schemas of the launch contract, for readers that are not Python: `python -m
plimsoll_worker.launch_schemas docs/schemas`. They are committed; a test compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from plimsoll_worker.launch import Capabilities, ExitReason, Launch, Report, Wire

SCHEMAS: dict[str, type[Wire]] = {
    "launch": Launch,
    "report": Report,
    "exit_reason": ExitReason,
    "capabilities": Capabilities,
}


def schema_text(model: type[Wire]) -> str:
    """One schema as it is committed."""
    schema = model.model_json_schema(by_alias=True)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def main(arguments: list[str]) -> int:
    """Write `<name>.schema.json` for each type into the folder given."""
    if len(arguments) != 1:
        print("usage: python -m plimsoll_worker.launch_schemas FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in SCHEMAS.items():
        (folder / f"{name}.schema.json").write_text(schema_text(model), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
