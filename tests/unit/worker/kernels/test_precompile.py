"""Kernels compiled ahead are the ones that a card launches: under a driver that launches nothing, each is
found in the folder that was filled.

In processes of their own: Triton remembers its first target, and these tests' neighbours interpret kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton.backends.nvidia")

SHAPE, CARD = "tiny", "9.0:132"
LAUNCH = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from plimsoll_worker.kernels import launching, precompile, recording

hits = {}
def heard(*, src, cache_hit, **_):
    hits.setdefault(src.name, []).append(cache_hit)

class Card(recording._NoDriver):
    class utils:
        get_device_properties = staticmethod(lambda device: {"max_shared_mem": 232448})
        load_binary = staticmethod(lambda *_: (1, 1, 1, 0, 1024))

    def launcher_cls(self, source, metadata):
        made = recording.Kernel(source, self.get_current_target(), {}).launcher
        hits.setdefault("launcher", []).append(made.compiled)
        return lambda *_: None

runners = [precompile._runner(wanted) for wanted in precompile.shipped([sys.argv[1]], [sys.argv[2]])]
driver.set_active(Card(GPUTarget("cuda", 90, 32)))
launching.recorded_card = launching.Card.of((9, 0), 132)
triton.knobs.compilation.listener = heard
with recording._Shapes():
    for runner in runners:
        precompile._run(runner, precompile.PROMPTS)
print(json.dumps({"hits": hits, "sympy": "sympy" in sys.modules}))
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, **environment},
        text=True,
        capture_output=True,
        check=True,
        timeout=300,
    )


def precompiled(folder: Path) -> str:
    module = "plimsoll_worker.kernels.precompile"
    found = run("-m", module, "--into", str(folder), "--shape", SHAPE, "--card", CARD, "--jobs", "2")
    return next(line for line in found.stderr.splitlines() if "event=Precompiled" in line)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an image ships it."""
    folder = tmp_path_factory.mktemp("kernels")
    assert "compiled=0" not in precompiled(folder)
    return folder


def test_what_is_compiled_is_not_compiled_again(filled: Path) -> None:
    line = precompiled(filled)
    assert " compiled=0 " in line
    assert " modules=0 " in line


def test_a_launch_finds_its_kernels_in_the_images_folder(filled: Path, tmp_path: Path) -> None:
    told = run(
        "-c",
        LAUNCH,
        SHAPE,
        CARD,
        PLIMSOLL_KERNELS=str(filled),
        TRITON_CACHE_DIR=str(tmp_path),
        TRITON_CACHE_MANAGER="plimsoll_worker.kernels.shipped:ShippedKernels",
    )
    found = json.loads(told.stdout.splitlines()[-1])
    assert {"_decode", "_prefill", "_row", "_rows", "_rope_store", "_penalize", "launcher"} <= set(
        found["hits"]
    )
    assert all(all(hits) for hits in found["hits"].values()), found["hits"]
    assert not found["sympy"], "a start would wait for a computer algebra system to be imported"
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
