"""Finds out which kernels a piece of work launches, and compiles them, without a GPU.

Tensors on PyTorch's device "meta" have shapes and no memory; `ops` takes them for a GPU's. While recording,
each launch ends where Triton would compile: its own rules have then made types, constants and alignments of
the arguments, and its key is that of the same launch on a card. A list of kernels and shapes kept by hand was
the alternative; it would be wrong after the next change of a tile.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler import ASTSource, make_backend
from triton.compiler.compiler import get_cache_key
from triton.runtime import build, driver
from triton.runtime.cache import get_cache_manager, triton_key

from plimsoll_worker.kernels import launching

Metadata = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One specialisation of a Triton function."""

    source: ASTSource
    target: GPUTarget
    options: Metadata

    @property
    def key(self) -> str:
        """What Triton's cache knows it by."""
        backend = make_backend(self.target)
        text = get_cache_key(self.source, backend, backend.parse_options(self.options), _key_variables())
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def compiled(self) -> bool:
        name = f"{self.source.name}.json"
        return name in (get_cache_manager(self.key).get_group(name) or {})

    def compile(self) -> None:
        triton.compile(self.source, target=self.target, options=self.options)

    @property
    def launcher(self) -> Module:
        return Module(
            "__triton_launcher", nvidia.make_launcher(self.source.constants, self.source.signature, None)
        )


@dataclass(frozen=True, slots=True)
class Module:
    """A Python extension that Triton builds with a C compiler: its driver, and a launcher for each order of
    arguments. Pods have no C compiler."""

    name: str
    source: str

    @property
    def key(self) -> str:
        """As in `triton.runtime.build.compile_module_from_src`."""
        return hashlib.sha256((self.source + build.platform_key()).encode()).hexdigest()

    @property
    def _file(self) -> str:
        return f"{self.name}{sysconfig.get_config_var('EXT_SUFFIX')}"

    @property
    def compiled(self) -> bool:
        return get_cache_manager(self.key).get_file(self._file) is not None

    def compile(self) -> None:
        """Against a libcuda.so.1 that is only a name: the real one comes with the node's driver."""
        compiler = c_compiler()
        assert compiler is not None, "compile_all asks for it first"
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            (folder / "empty.c").touch()
            (folder / "module.c").write_text(self.source, encoding="utf-8")
            library = folder / "libcuda.so.1"
            shared = [compiler, "-shared", "-fPIC", "-O2", "-Wno-psabi"]
            subprocess.run(
                [*shared, folder / "empty.c", "-o", library, f"-Wl,-soname,{library.name}"], check=True
            )
            include = [f"-I{path}" for path in (*nvidia.include_dirs, sysconfig.get_paths()["include"])]
            output = folder / self._file
            linked = ["-Wl,--no-as-needed", f"-L{folder}", f"-l:{library.name}"]
            subprocess.run([*shared, folder / "module.c", "-o", output, *include, *linked], check=True)
            get_cache_manager(self.key).put(output.read_bytes(), self._file, binary=True)


def c_compiler() -> str | None:
    """The one that Triton would take."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def modules_of(kernels: Sequence[Kernel]) -> list[Module]:
    """What is needed to launch them."""
    utilities = Module("cuda_utils", Path(nvidia.dirname, "driver.c").read_text(encoding="utf-8"))
    return [utilities, *dict.fromkeys(kernel.launcher for kernel in kernels)]


@dataclass(slots=True)
class Recorded:
    """Kernels by function and arguments, in the order of their first launch."""

    target: GPUTarget
    kernels: dict[tuple[str, str], Kernel] = field(default_factory=dict)

    def hear(self, *, fn: Any, compile: Metadata, **_: object) -> bool:  # noqa: A002 - Triton's name
        """Triton's `jit_cache_hook`: keep what it would compile; True: go no further."""
        place = (f"{fn.module}.{fn.name}", compile["key"])
        if place not in self.kernels:
            options = json.loads(compile["specialization_data"])["options"]
            options = {
                name: tuple(each) if isinstance(each, list) else each for name, each in options.items()
            }
            source = ASTSource(
                fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0]
            )
            self.kernels[place] = Kernel(source, self.target, options)
        return True


class _NoDriver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


class _Shapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers for the commonest operations what PyTorch would work out in Python, with a compiler and a
    computer algebra system that take seconds to import. It knows of all others what PyTorch knows."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """To keep the compiler out of here means to import it."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Metadata | None = None
    ) -> Any:
        aten = torch.ops.aten
        first = args[0] if args and isinstance(args[0], torch.Tensor) and args[0].is_meta else None
        if first is not None and func in (aten.addmm_.default, aten.copy_.default, aten.index_copy_.default):
            return first
        if first is not None and func is aten.empty_like.default:
            return first.new_empty(first.shape)
        if first is not None and func is aten.linear.default:
            return first.new_empty(*first.shape[:-1], args[1].shape[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def recording(card: launching.Card) -> Iterator[Recorded]:
    """While it lasts, kernels launched on "meta" tensors are recorded for `card`. For a process of its own:
    Triton remembers the first target it sees."""
    major, minor = card.capability
    recorded = Recorded(GPUTarget("cuda", 10 * major + minor, 32))
    driver.set_active(_NoDriver(recorded.target))
    launching.recorded_card = card
    triton.knobs.runtime.jit_cache_hook = recorded.hear
    try:
        with _Shapes():  # type: ignore[no-untyped-call]
            yield recorded
    finally:
        triton.knobs.runtime.jit_cache_hook = None
        launching.recorded_card = None


def compile_all(kernels: Sequence[Kernel], jobs: int) -> tuple[int, int]:
    """Compile what no cache has, in `jobs` processes. Returns how many kernels and modules were compiled.

    Modules are left to the first launch where there is no C compiler.
    """
    missing = [kernel for kernel in kernels if not kernel.compiled]
    modules = [module for module in modules_of(kernels) if not module.compiled] if c_compiler() else []
    work: list[Kernel | Module] = [*missing, *modules]
    if len(work) < 2 or jobs < 2:
        for each in work:
            each.compile()
        return len(missing), len(modules)
    triton_key()  # reads Triton itself; children inherit what it found
    _WORK[:] = work
    # Forked: sources refer to Python functions, which no pipe takes, and torch is imported already.
    with ProcessPoolExecutor(min(jobs, len(work)), mp_context=get_context("fork")) as pool:
        list(pool.map(_compile, range(len(work))))
    _WORK.clear()
    return len(missing), len(modules)


_WORK: list[Kernel | Module] = []
"""What the children of `compile_all` find in their copy of this process."""


def _compile(index: int) -> None:
    _WORK[index].compile()


def _key_variables() -> dict[str, str]:
    """Environment variables that change what is compiled."""
    found: dict[str, str] = get_cache_invalidating_env_vars()
    return found
