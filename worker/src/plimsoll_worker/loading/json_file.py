"""Reads the JSON files of a model folder with errors that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plimsoll_worker.errors import ModelUnreadable


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelUnreadable naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnreadable(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ModelUnreadable(f"{path}: found {type(value).__name__}, expected a JSON object")
    return value
