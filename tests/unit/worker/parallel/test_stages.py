"""Whole workers as the stages of one replica: they answer as one, and they end as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from tests.unit.worker.parallel.stages import stage_launches
from tests.unit.worker.processes import WorkerProcess, wait_for

from plimsoll_worker.launch import ExitCode, Launch

START_SECONDS = 240
END_SECONDS = 10
PROMPT = "The capital of France is"


@contextmanager
def running(launches: Sequence[Launch], folder: Path, **environ: str) -> Iterator[list[WorkerProcess]]:
    with ExitStack() as stack:
        found = []
        for launch in launches:
            own = folder / f"s{launch.stage}"
            own.mkdir()
            found.append(stack.enter_context(WorkerProcess(launch, own, **environ)))
        yield found


def complete(process: WorkerProcess, tokens: int = 16) -> str:
    api = openai.OpenAI(base_url=f"{process.url}/v1", api_key="any", max_retries=0, timeout=120)
    found = api.completions.create(model="smollm2", prompt=PROMPT, max_tokens=tokens, temperature=0)
    return found.choices[0].text


@pytest.fixture(scope="module")
def replica(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[WorkerProcess]]:
    """Two stages of 17 and 13 layers."""
    launches = stage_launches(smollm2, (17, 13), seconds=120)
    with running(launches, tmp_path_factory.mktemp("replica")) as processes:
        for process in processes:
            process.wait_until_ready()
        yield processes


def test_two_stages_answer_as_one_worker_does(replica: list[WorkerProcess], worker: WorkerProcess) -> None:
    assert complete(replica[0]) == complete(worker)


def test_a_further_stage_is_ready_and_takes_no_requests(replica: list[WorkerProcess]) -> None:
    second = replica[1]
    assert second.health() == 200
    body = {"model": "smollm2", "prompt": "Hi"}
    refused = httpx.post(f"{second.url}/v1/completions", json=body, timeout=10)
    assert refused.status_code == 404
    assert "its first one takes requests" in refused.json()["error"]["message"]


def test_each_stage_reports_what_it_holds(replica: list[WorkerProcess]) -> None:
    first, second = (
        httpx.get(f"http://127.0.0.1:{process.admin_port}/report", timeout=10).json() for process in replica
    )
    assert (first["stage"], second["stage"]) == (0, 1)
    assert first["pipelineParallel"] == second["pipelineParallel"] == 2
    assert first["kvCacheTokens"] == second["kvCacheTokens"]
    caches = [report["devices"][0]["bytes"]["kvCache"] for report in (first, second)]
    assert caches[0] * 13 == caches[1] * 17, "keys and values of a stage's own layers alone"
    assert first["link"]["stage"] == 1
    assert first["link"]["bytesPerSecond"] > 0
    assert "link" not in second


@pytest.mark.parametrize("dying", [0, 1])
def test_a_stage_that_is_killed_ends_the_others_with_the_reason(
    smollm2: Path, tmp_path: Path, dying: int
) -> None:
    with running(stage_launches(smollm2, seconds=120), tmp_path) as processes:
        wait_for(lambda: all("event=Met" in process.log for process in processes), START_SECONDS, "they met")
        processes[dying].kill()
        other = processes[1 - dying]
        assert other.wait(END_SECONDS) == 1
        reason = other.exit_reason
        assert reason is not None
        assert reason.reason is ExitCode.PEER_LOST
        assert f"stage {dying} is gone" in reason.message or f"stage {1 - dying} ended" in reason.message


@pytest.mark.parametrize("told", [0, 1])
def test_whoever_is_told_to_stop_all_finish_what_runs_and_end_well(
    smollm2: Path, tmp_path: Path, told: int
) -> None:
    launches = stage_launches(smollm2, seconds=120)
    with running(launches, tmp_path, PLIMSOLL_DRAIN_SECONDS="300") as processes:
        for process in processes:
            process.wait_until_ready()
        api = openai.OpenAI(base_url=f"{processes[0].url}/v1", api_key="any", max_retries=0)
        stream = api.completions.create(
            model="smollm2",
            prompt="1 2 3",
            max_tokens=12,
            stream=True,
            temperature=0,
            extra_body={"ignore_eos": True},
            stream_options={"include_usage": True},
        )
        next(stream)
        processes[told].terminate()
        chunks = list(stream)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 12
        assert [process.wait(60) for process in processes] == [0, 0], [p.log for p in processes]
        assert all("event=Exit reason=Completed" in process.log for process in processes)


Change = Callable[[list[Launch]], list[Launch]]
WRONG: dict[str, tuple[Change, ExitCode, str]] = {
    "another plan": (
        lambda launches: [launches[0], launches[1].model_copy(update={"plan_id": "other"})],
        ExitCode.RENDEZVOUS_FAILED,
        "plan id is plan-1 of stage 0 and other of stage 1",
    ),
    "a stage that never comes": (
        lambda launches: [launches[1]],
        ExitCode.RENDEZVOUS_FAILED,
        "stage 0 was not reached at 127.0.0.1:",
    ),
}


@pytest.mark.parametrize(("change", "code", "words"), WRONG.values(), ids=WRONG.keys())
def test_who_does_not_meet_the_others_ends_before_it_loads(
    tmp_path: Path, change: Change, code: ExitCode, words: str
) -> None:
    launches = change(stage_launches(Path("/nowhere.gguf"), seconds=15))
    with running(launches, tmp_path) as processes:
        for process in processes:
            assert process.wait(START_SECONDS) == 1
            reason = process.exit_reason
            assert reason is not None, process.log
            assert (reason.reason, reason.plan_id is not None) == (code, True)
            assert words in reason.message
