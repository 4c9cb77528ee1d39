"""What the kernel for one row of INT4 takes for granted about Triton: neighbouring chunks of a row lie in
neighbouring lanes. No interpreter has lanes, so the kernels are compiled, in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton.backends.nvidia")

COMPILE = """
import json
import torch, triton
from plimsoll_worker.kernels import launching, recording
from plimsoll_worker.kernels.matrix import QuantizedMatrix
from plimsoll_worker.kernels.quantized_row import row_linear
from plimsoll_worker.launch.precision import Precision

def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")

with recording.recording(launching.Card.of((9, 0), 132)) as recorded:
    shapes = (4096, 28672, "silu"), (4096, 6144, None), (14336, 4096, None), (576, 960, None)
    for inputs, outputs, gated in shapes:
        groups = -(-inputs // 128)
        numbers = meta(outputs, inputs // 2, dtype=torch.uint8)
        factors = meta(outputs, groups), meta(outputs, groups)
        weight = QuantizedMatrix(Precision.INT4, numbers, *factors, 128, torch.bfloat16)
        row_linear(meta(1, inputs), weight, norm_weight=meta(inputs), eps=1e-5, gated=gated)
print(json.dumps([
    triton.compile(each.source, target=each.target, options=each.options).asm["ttgir"]
    for each in recorded.kernels.values()
]))
"""


def test_neighbouring_chunks_are_in_neighbouring_lanes() -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    told = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=inherited,
        text=True,
        capture_output=True,
        check=True,
        timeout=300,
    )
    kernels = json.loads(told.stdout.splitlines()[-1])
    assert len(kernels) == 4
    for code in kernels:
        products = [line for line in code.splitlines() if "mma.sync" in line]
        assert len(products) == 2, "one for sums of x, one for the weights"
        for line in products:
            layout = re.findall(r"#(\w+)>", line)[-1]
            found = re.search(
                rf"#{layout} = #ttg.blocked<{{sizePerThread = \[1, 1\], threadsPerWarp = \[(\d+), (\d+)\], "
                r"warpsPerCTA = \[\d+, \d+\], order = \[(\d), \d\]",
                code,
            )
            assert found, f"another layout: {layout} in {code[:2000]}"
            rows, chunks, fastest = map(int, found.groups())
            assert chunks % 4 == 0
            assert fastest == 1 or rows == 1
