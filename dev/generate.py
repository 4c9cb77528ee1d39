"""`make generate`: every committed file that has a source is written from it; `--check` only compares.

Each generator is a module with `files() -> Mapping[Path, str]`: path relative to the root, and content.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

ROOT = Path(__file__).parents[1]
GENERATORS = (
    "plimsoll.api.crd",
    "plimsoll.api.reference",
    "dev.schemas",
)


def main(arguments: list[str]) -> int:
    stale = []
    for name in GENERATORS:
        files = cast("Callable[[], Mapping[Path, str]]", importlib.import_module(name).files)
        for path, content in files().items():
            target = ROOT / path
            if target.exists() and target.read_text(encoding="utf-8") == content:
                continue
            if "--check" in arguments:
                stale.append(str(path))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(content, encoding="utf-8")
                print(f"wrote {path}")
    if stale:
        print(f"not what their source says: {', '.join(stale)}. Run `make generate`.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
