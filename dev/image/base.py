"""The base layer: this machine's Python, the libraries it loads, certificates, and a user that is not root.

A distribution's image cannot be pulled without a registry, and one built from this machine's own
interpreter runs the same bytes that the tests ran.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from dev.cluster.errors import MissingProgramError
from dev.image.layers import EXECUTABLE, READABLE, Entry, Layer

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
SITE_PACKAGES = f"usr/local/lib/{PYTHON}/site-packages"
USER = 65532
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# Parts of the standard library that no program of ours imports, half of its size.
_LEFT_OUT = {
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "site-packages",
    "pydoc_data",
}
# What binary wheels may count on (the manylinux policy), beyond what the interpreter itself loads.
_WHEEL_LIBRARIES: tuple[str, ...] = (
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libz.so.1",
    "libdl.so.2",
    "librt.so.1",
    "libpthread.so.0",
)
_WHEEL_LIBRARIES += ("libutil.so.1", "libm.so.6", "libresolv.so.2", "libnss_dns.so.2", "libnss_files.so.2")


def layer() -> Layer:
    """Python under /usr/local, as in the official image."""
    libraries = _libraries()
    stamps = [
        f"{name} {os.path.realpath(path)} {path.stat().st_mtime_ns}"
        for name, path in sorted(libraries.items())
    ]
    text = "\n".join([Path(__file__).read_text(), sys.version, sys.base_prefix, *stamps])
    key = f"base-{hashlib.sha256(text.encode()).hexdigest()}"
    return Layer(key, lambda: _entries(libraries))


def _entries(libraries: dict[str, Path]) -> Iterator[Entry]:
    prefix = Path(sys.base_prefix)
    yield Entry(f"usr/local/bin/{PYTHON}", prefix / "bin" / PYTHON, EXECUTABLE)
    yield Entry("usr/local/bin/python", target=PYTHON)
    yield Entry("usr/local/bin/python3", target=PYTHON)
    standard = prefix / "lib" / PYTHON
    yield from tree(standard, f"usr/local/lib/{PYTHON}", skip=_LEFT_OUT)
    yield Entry(SITE_PACKAGES, mode=EXECUTABLE)
    for path, source in sorted(libraries.items()):
        yield Entry(path, source, EXECUTABLE)
    yield Entry("etc/passwd", f"root:x:0:0::/:/none\nnonroot:x:{USER}:{USER}::/tmp:/none\n".encode())
    yield Entry("etc/group", f"root:x:0:\nnonroot:x:{USER}:\n".encode())
    yield Entry("etc/nsswitch.conf", b"hosts: files dns\n")
    yield Entry("etc/ssl/certs/ca-certificates.crt", _certificates())
    yield Entry("tmp", mode=0o1777)


def tree(folder: Path, inside: str, *, skip: Iterable[str] = ()) -> Iterator[Entry]:
    """Every file under `folder` as an entry under `inside`; `skip` names folders at its top."""
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [
                name for name in folders if name not in set(skip) and not name.startswith("config-")
            ]
        folders.sort()
        place = Path(inside) / Path(parent).relative_to(folder)
        for name in sorted(files):
            path = Path(parent) / name
            executable = os.access(path, os.X_OK) and path.suffix not in (".py", ".pyc")
            yield Entry(str(place / name), path, EXECUTABLE if executable else READABLE)


def _certificates() -> bytes:
    if _CERTIFICATES.exists():
        return _CERTIFICATES.read_bytes()
    import certifi

    return Path(certifi.where()).read_bytes()


@functools.cache
def _libraries() -> dict[str, Path]:
    """Path in the image → file here, of every shared library that the interpreter and its modules load.

    All of them go into the folder of the C library, which the loader searches without being told.
    """
    if platform.system() != "Linux":
        raise MissingProgramError(
            "images are made from a Linux machine's Python; elsewhere use the Dockerfiles"
        )
    python = Path(sys.base_prefix) / "bin" / PYTHON
    modules = sorted((Path(sys.base_prefix) / "lib" / PYTHON / "lib-dynload").glob("*.so"))
    wanted = [str(path) for path in (python, *modules)]
    known = dict(re.findall(r"^\s*(\S+) \([^)]*\) => (/\S+)$", _run([_ldconfig(), "-p"]), re.MULTILINE))
    wanted += [known[name] for name in _WHEEL_LIBRARIES if name in known]
    listing = _run(["ldd", *wanted])
    found = {name: Path(path) for name, path in re.findall(r"^\s*(\S+) => (/\S+) \(", listing, re.MULTILINE)}
    found |= {name: Path(known[name]) for name in _WHEEL_LIBRARIES if name in known}
    home = found["libc.so.6"].parent
    loaders = {Path(path) for path in re.findall(r"^\s*(/\S*ld-linux\S*) \(", listing, re.MULTILINE)}
    entries = {str(home / name).lstrip("/"): path for name, path in found.items()}
    return entries | {str(path).lstrip("/"): path for path in loaders}


def _ldconfig() -> str:
    return shutil.which("ldconfig") or "/sbin/ldconfig"


def _run(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
