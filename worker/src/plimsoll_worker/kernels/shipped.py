"""Where compiled kernels are found: those that came with the image, then those of this machine.

Triton keeps what it compiles in one folder that must be writable, and its index names files by their whole
path. An image's kernels lie in a folder that is read-only; copying them at every start was the alternative.
Triton asks the class that TRITON_CACHE_MANAGER names (`environment.prepare`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from triton.runtime.cache import FileCacheManager

SHIPPED_ENV = "PLIMSOLL_KERNELS"
"""The image's folder of compiled kernels."""


class ShippedKernels(FileCacheManager):  # type: ignore[misc]
    """Triton's own cache, behind the image's folder. A key names source, target, options, Triton and ptxas:
    what is found there is what would be compiled."""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        super().__init__(key, override=override, dump=dump)
        shipped = os.environ.get(SHIPPED_ENV)
        self._shipped = Path(shipped, key) if shipped and not (override or dump) else None

    def get_file(self, filename: str) -> str | None:
        if self._shipped is not None and (file := self._shipped / filename).exists():
            return str(file)
        found: str | None = super().get_file(filename)
        return found

    def get_group(self, filename: str) -> dict[str, str] | None:
        """Files of a kernel by name."""
        if self._shipped is not None and (index := self._shipped / f"__grp__{filename}").exists():
            names = json.loads(index.read_text(encoding="utf-8"))["child_paths"]
            files = {name: self._shipped / name for name in names}
            return {name: str(file) for name, file in files.items() if file.exists()}
        found: dict[str, str] | None = super().get_group(filename)
        return found
