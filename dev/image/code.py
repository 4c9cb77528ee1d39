"""The layer of this project's own code: small, and the only one that a change of the code makes anew."""

from __future__ import annotations

import functools
import hashlib
import py_compile
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dev.cluster.paths import REPOSITORY
from dev.image.base import PYTHON, SITE_PACKAGES
from dev.image.layers import EXECUTABLE, Entry, Layer

OPERATOR = REPOSITORY / "operator" / "src" / "plimsoll"
WORKER = REPOSITORY / "worker" / "src" / "plimsoll_worker"
_SCRIPT = f"""#!/usr/local/bin/{PYTHON} -P
import sys
from plimsoll.cli.main import main
sys.exit(main())
"""


def layer(packages: Sequence[Path]) -> Layer:
    """The given packages with their bytecode, and the command line when the operator is among them."""
    files = {
        f"{package.name}/{path.relative_to(package)}": path.read_bytes()
        for package in packages
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    files |= dict([_metadata()])
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    command = OPERATOR in packages
    # Once only: the same source compiles to bytecode that differs in a few bits from one time to the next.
    return Layer(
        f"code-{digest.hexdigest()}", functools.cache(lambda: tuple(_entries(files, command=command)))
    )


def _metadata() -> tuple[str, bytes]:
    """What `importlib.metadata` reads, as an installed wheel has it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    text = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    return f"{project['name']}-{project['version']}.dist-info/METADATA", text.encode()


def _entries(files: dict[str, bytes], *, command: bool) -> Iterator[Entry]:
    for name, content in sorted(files.items()):
        path = f"{SITE_PACKAGES}/{name}"
        yield Entry(path, content)
        if name.endswith(".py"):
            place = Path(path)
            tag = f"{place.stem}.{sys.implementation.cache_tag}.pyc"
            yield Entry(str(place.parent / "__pycache__" / tag), _compiled(content, f"/{path}"))
    if command:
        yield Entry("usr/local/bin/plimsoll", _SCRIPT.encode(), EXECUTABLE)


def _compiled(content: bytes, shown: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "m.py", Path(folder) / "m.pyc"
        source.write_bytes(content)
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), str(target), shown, doraise=True, invalidation_mode=mode)
        return target.read_bytes()
