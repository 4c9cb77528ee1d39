"""What the parts of parallel_on_gpu.py have in common: each is a process or two of its own, with a limit of
time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMITS = {"sums": 60, "correct": 80, "engine": 130, "worker": 110, "floor": 40, "shared": 100, "share": 100}
"""Seconds."""
SHAPE = "llama-3.1-8b"
RANKS = 2
Json = dict[str, Any]
SCRIPT = Path(__file__).with_name("parallel_on_gpu.py")


def answer_of(part: str, *arguments: object, processes: int = 1) -> Json:
    """What the first of `processes` runs of a part prints last; what it said where it fails."""
    command = [sys.executable, str(SCRIPT), "--run", part, *map(str, arguments)]
    ran = [
        subprocess.Popen(
            [*command, *([str(rank)] if processes > 1 else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        out, _ = ran[0].communicate(timeout=LIMITS[part])
        if ran[0].returncode == 0:
            answer: Json = json.loads(out.strip().splitlines()[-1])
            return answer
        return {"failed": ran[0].returncode, "said": out[-2500:]}
    except subprocess.TimeoutExpired:
        ran[0].kill()
        return {"failed": f"not done after {LIMITS[part]} s", "said": ran[0].communicate()[0][-2500:]}
    finally:
        for process in ran:
            process.kill()
            process.wait()
