"""The wire between operator and worker: schemas are generated, golden files are what both sides have
agreed on."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from plimsoll_worker.errors import MemoryEstimateExceeded, exit_reason
from plimsoll_worker.launch import (
    CAPABILITIES,
    INT4_GROUP,
    TERMINATION_MESSAGE_BYTES,
    ExitCode,
    ExitReason,
    Launch,
    LaunchError,
    Precision,
    PredictedMemory,
    WeightsScheme,
    Wire,
)
from plimsoll_worker.launch_schemas import SCHEMAS, main, schema_text

GOLDEN = Path(__file__).parent / "golden"
COMMITTED = Path(__file__).parents[3] / "docs" / "schemas"


@pytest.mark.parametrize(("name", "model"), SCHEMAS.items())
def test_the_committed_schema_is_the_one_generated(name: str, model: type[Wire]) -> None:
    committed = (COMMITTED / f"{name}.schema.json").read_text(encoding="utf-8")
    assert committed == schema_text(model), "run: python -m plimsoll_worker.launch_schemas docs/schemas"


def test_the_generator_writes_every_schema(tmp_path: Path) -> None:
    assert main([str(tmp_path / "schemas")]) == 0
    assert sorted(path.name for path in (tmp_path / "schemas").iterdir()) == sorted(
        f"{name}.schema.json" for name in SCHEMAS
    )
    assert main([]) == 2


@pytest.mark.parametrize(("name", "model"), SCHEMAS.items())
def test_the_golden_file_is_read_and_written_unchanged(name: str, model: type[Wire]) -> None:
    text = (GOLDEN / f"{name}.json").read_text(encoding="utf-8")
    jsonschema.validate(json.loads(text), json.loads(schema_text(model)))
    assert json.loads(model.model_validate_json(text).to_json()) == json.loads(text)


def test_the_golden_capabilities_are_this_engines() -> None:
    assert json.loads((GOLDEN / "capabilities.json").read_text()) == json.loads(CAPABILITIES.to_json())


@pytest.mark.parametrize(
    ("name", "bits", "group", "scales"),
    [("INT8", 8, None, "FP16"), ("INT4", 4, INT4_GROUP, "FP16"), ("FP8", 8, None, "FP32")],
)
def test_weights_quantized_on_load_name_what_is_computed_in_and_how_scales_are_kept(
    name: str, bits: int, group: int | None, scales: str
) -> None:
    scheme = WeightsScheme.quantized(Precision(name), Precision.FP16)
    told = (scheme.name, scheme.bits, scheme.group_size, scheme.scale_type, scheme.compute)
    assert told == (name, bits, group, scales, "FP16")
    assert not scheme.name.computes


def test_a_stored_checkpoint_names_its_format_and_what_is_left_unquantized() -> None:
    scheme = WeightsScheme.stored("gptq", Precision.BF16)
    assert json.loads(scheme.to_json()) == {"name": "BF16", "bits": 16, "checkpoint": "gptq"}


def test_a_launch_names_its_first_wrong_field() -> None:
    launch = json.loads((GOLDEN / "launch.json").read_text())
    wrong = {
        "PLIMSOLL_LAUNCH is not set": {},
        "weights.name": {"PLIMSOLL_LAUNCH": json.dumps({**launch, "weights": {"name": "FP4", "bits": 4}})},
        "hugginFace": {"PLIMSOLL_LAUNCH": json.dumps({**launch, "hugginFace": 1})},
        "planId": {"PLIMSOLL_LAUNCH": json.dumps({key: launch[key] for key in launch if key != "planId"})},
        r"\(root\)": {"PLIMSOLL_LAUNCH": "{"},
    }
    for message, environ in wrong.items():
        with pytest.raises(LaunchError, match=message):
            Launch.from_env(environ)


def test_predicted_bytes_add_up() -> None:
    launch = Launch.model_validate_json((GOLDEN / "launch.json").read_text())
    assert launch.predicted.total == sum(json.loads(launch.predicted.to_json()).values())
    assert isinstance(launch.predicted, PredictedMemory)


@pytest.mark.parametrize("letter", ["x", "\N{SNOWMAN}", "\N{EXTRATERRESTRIAL ALIEN}", "\x1b"])
def test_a_long_reason_is_cut_so_that_the_kubelet_keeps_it_whole(letter: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    ExitReason(reason=ExitCode.ENGINE_FAILED, message=letter * 5000).write(path)
    assert path.stat().st_size <= TERMINATION_MESSAGE_BYTES
    found = ExitReason.parse(path.read_text(encoding="utf-8"))
    assert found is not None
    assert found.message.startswith(letter * 300)


def test_a_termination_message_survives_the_kubelets_cut(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    path.touch()
    reason = ExitReason(reason=ExitCode.ENGINE_FAILED, message="ä" * 10000, plan_id="p")
    reason.write(path)
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) <= TERMINATION_MESSAGE_BYTES
    read = ExitReason.parse(text)
    assert read is not None
    assert (read.reason, read.plan_id) == (ExitCode.ENGINE_FAILED, "p")
    ExitReason(reason=ExitCode.COMPLETED, message="").write(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("text", [None, "", "Killed", '{"reason": "Unheard"}'])
def test_what_is_no_exit_reason_is_none(text: str | None) -> None:
    assert ExitReason.parse(text) is None


def test_every_error_has_its_exit_code() -> None:
    launch = Launch.model_validate_json((GOLDEN / "launch.json").read_text())
    assert exit_reason(MemoryEstimateExceeded("m"), launch).reason is ExitCode.MEMORY_ESTIMATE_EXCEEDED
    assert exit_reason(LaunchError("m"), None).reason is ExitCode.LAUNCH_INVALID
    foreseen_by_nobody = exit_reason(ZeroDivisionError("m"), launch)
    assert foreseen_by_nobody.reason is ExitCode.ENGINE_FAILED
    assert foreseen_by_nobody.message == "ZeroDivisionError: m"
    import torch

    assert exit_reason(torch.cuda.OutOfMemoryError("m"), launch).reason is ExitCode.CUDA_OUT_OF_MEMORY
