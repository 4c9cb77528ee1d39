"""The layer of installed packages, from the pinned requirements with their hashes.

Installed once for each state of the requirements into a cached folder, by uv with hard links from its own
cache, so the worker's five gigabytes exist on disk once.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dev.cluster.errors import BuildError
from dev.cluster.paths import REPOSITORY, cache_home
from dev.image.base import SITE_PACKAGES, tree
from dev.image.layers import Layer


def layer(requirements: str) -> Layer:
    """The packages of `requirements/<requirements>.txt`."""
    folder = _installed(REPOSITORY / "requirements" / f"{requirements}.txt")
    return Layer(f"site-packages-{folder.name}", lambda: tree(folder, SITE_PACKAGES, skip={"bin"}))


def _installed(requirements: Path) -> Path:
    text = f"{sys.version} {sys.base_prefix} {Path(__file__).read_text()} {requirements.read_text()}"
    key = f"{requirements.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    cache = cache_home() / "site-packages"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / key
    with (cache / f".{requirements.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            for old in cache.glob(f"{requirements.stem}-*"):  # of earlier requirements
                shutil.rmtree(old)
            _install(requirements, folder)
    return folder


def _install(requirements: Path, folder: Path) -> None:
    print(
        f"installing {requirements.name} for an image (minutes when nothing is cached)",
        file=sys.stderr,
        flush=True,
    )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".installing-") as temporary:
        target = Path(temporary) / "site-packages"
        _run(
            ["uv", "pip", "install", "--quiet", "--require-hashes", "--no-deps"],
            ["--python", sys.executable, "--target", str(target), "-r", str(requirements)],
        )
        # Unchecked: an image's files have no times worth checking, and compiling at each start costs many
        # seconds.
        _run(
            ["compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"],
            ["-s", str(target), "-p", f"/{SITE_PACKAGES}", str(target)],
            may_fail=True,  # some packages carry files for other versions of Python
        )
        target.rename(folder)


def _run(module: list[str], options: list[str], *, may_fail: bool = False) -> None:
    argv = [sys.executable, "-m", *module, *options]
    answer = subprocess.run(argv, capture_output=True, text=True, check=False)
    if answer.returncode != 0 and not may_fail:
        said = (answer.stderr or answer.stdout).strip()[-1500:]
        raise BuildError(f"{' '.join(module)} failed:\n{said}")
