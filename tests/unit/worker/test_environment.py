"""The process fits its container: threads by quota, memory by limit, caches where it may write."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plimsoll_worker.environment import cpu_quota, cpu_threads, memory_limit
from plimsoll_worker.launch import LaunchError, StartupStage
from plimsoll_worker.memory import CpuMemory
from plimsoll_worker.progress import Startup, say
from plimsoll_worker.settings import LoadFormat, Settings

MIB = 2**20


def v2(folder: Path, content: str) -> Path:
    (folder / "cpu.max").write_text(content)
    return folder


def v1(folder: Path, quota: int) -> Path:
    (folder / "cpu").mkdir()
    (folder / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    return folder


def test_the_quota_is_read_from_both_kinds_of_cgroup(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abcde"]
    for folder in folders:
        folder.mkdir()
    assert cpu_quota(v2(folders[0], "150000 100000\n")) == 1.5
    assert cpu_quota(v2(folders[1], "max 100000\n")) is None
    assert cpu_quota(v1(folders[2], 400000)) == 4.0
    assert cpu_quota(v1(folders[3], -1)) is None
    assert cpu_quota(folders[4]) is None


@pytest.mark.parametrize(
    ("environ", "quota", "threads", "because"),
    [
        ({}, "200000 100000", 2, "cgroup CPU quota"),
        ({}, "150000 100000", 2, "cgroup CPU quota"),
        ({}, "10000 100000", 1, "cgroup CPU quota"),
        ({}, "max 100000", 64, "CPU affinity"),
        ({}, "12800000 100000", 64, "CPU affinity"),
        ({"OMP_NUM_THREADS": "3"}, "200000 100000", 3, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "0"}, "200000 100000", 2, "cgroup CPU quota"),
    ],
)
def test_threads_follow_the_pods_word_then_the_quota_then_the_cores(
    environ: dict[str, str], quota: str, threads: int, because: str, tmp_path: Path
) -> None:
    assert cpu_threads(environ, v2(tmp_path, quota), cores=64) == (threads, because)


def test_the_memory_limit_is_the_containers_or_the_machines(tmp_path: Path) -> None:
    assert memory_limit(tmp_path, 100) == 100
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path, 100) == 100
    (tmp_path / "memory.max").write_text("60\n")
    assert memory_limit(tmp_path, 100) == 60
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit(tmp_path, 100) == 100


def test_caches_go_where_a_read_only_container_may_write() -> None:
    program = (
        "from plimsoll_worker import environment; environment.prepare(); import os;"
        "print(os.environ['HF_HOME'], os.environ['TRITON_CACHE_DIR'])"
    )
    environ = {
        name: value for name, value in os.environ.items() if name not in ("HF_HOME", "TRITON_CACHE_DIR")
    }
    environ["TRITON_CACHE_DIR"] = "/elsewhere"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["/tmp/huggingface", "/elsewhere"]
    assert "event=Environment threads=" in done.stderr


def test_settings_come_from_the_environment() -> None:
    assert Settings.from_env({}) == Settings(
        serving_port=8000, admin_port=8001, api_key=None, drain_seconds=120
    )
    settings = Settings.from_env(
        {"PLIMSOLL_ADMIN_PORT": "9", "PLIMSOLL_API_KEY": "k", "PLIMSOLL_DRAIN_SECONDS": "0"}
    )
    assert settings == Settings(serving_port=8000, admin_port=9, api_key="k", drain_seconds=0)
    with pytest.raises(LaunchError, match="PLIMSOLL_SERVING_PORT: found '70000'"):
        Settings.from_env({"PLIMSOLL_SERVING_PORT": "70000"})
    assert Settings.from_env({"PLIMSOLL_LOAD_FORMAT": "dummy"}).load_format is LoadFormat.DUMMY
    with pytest.raises(LaunchError, match="PLIMSOLL_LOAD_FORMAT: found 'npz', expected auto or dummy"):
        Settings.from_env({"PLIMSOLL_LOAD_FORMAT": "npz"})


def test_stages_are_timed_from_the_start_of_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    ticks = iter([100.25, 101.5])
    startup = Startup(clock=lambda: next(ticks), began=100.0)
    startup.reached(StartupStage.FETCHED)
    startup.reached(StartupStage.READY, used=5)
    assert [(time.stage, time.milliseconds) for time in startup.times] == [("Fetched", 250), ("Ready", 1500)]
    assert "event=Ready milliseconds=1500 used=5\n" in capsys.readouterr().err


def test_loading_is_told_at_every_tenth_and_to_who_asks_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    startup = Startup(clock=lambda: 1.0, began=0.0)
    assert startup.doing == "the model is still loading"
    for done in range(5, 205, 5):
        startup.loaded(done, 200)
        assert startup.doing == f"the model is still loading: {done} of 200 bytes of weights"
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("event=")[2] for line in lines] == [
        f"Loading percent={percent} bytes={2 * percent} total=200" for percent in range(10, 110, 10)
    ]
    startup.reached(StartupStage.WEIGHTS_LOADED)
    startup.reached(StartupStage.READY)
    assert [time.bytes for time in startup.times] == [200, None]


def test_a_line_of_progress_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("Exit", message='two\nlines and a "quote"', empty="")
    line = capsys.readouterr().err
    assert line.endswith('event=Exit message="two\\nlines and a \\"quote\\"" empty=""\n')


def test_the_peak_of_ram_is_measured_and_forgotten() -> None:
    memory = CpuMemory()

    def fill() -> None:
        # Pages of its own: the allocator might serve a bytes object from what earlier tests left resident.
        with mmap.mmap(-1, 64 * MIB) as block:
            block[:: mmap.PAGESIZE] = bytes(len(block) // mmap.PAGESIZE)

    assert memory.rise(fill) > 60 * MIB
    assert memory.rise(lambda: None) < 20 * MIB


def test_the_ram_of_the_servers_process_is_counted() -> None:
    code = "import sys; block = bytearray(b'x' * (64 << 20)); print(flush=True); sys.stdin.read()"
    memory = CpuMemory()
    before = memory.used()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert memory.used() - before > 60 * MIB
        assert memory.peak() - before > 60 * MIB
        child.communicate()
