"""Why a worker stops: one exception per `ExitCode`, so that whatever ends the process also names the reason
it gives.

    WorkerError
    ├── EffectiveConfigMismatch   what would run is not what was planned
    ├── ModelNotFound             no model where the launch points
    ├── ModelUnreadable           a file of the model is damaged or incomplete
    ├── ModelUnsupported          the model needs something this engine does not have
    ├── FetchFailed               the hub could not be read
    ├── CudaOutOfMemory           the device refused an allocation
    ├── MemoryEstimateExceeded    the plan's bytes do not hold what the workload needs
    ├── RendezvousFailed          the stages of the replica did not meet
    ├── PeerLost                  another pod of the replica ended
    └── EngineFailed              anything that broke while serving
`LaunchError` (of the launch contract) is one more reason: the launch itself is missing or malformed.
"""

from __future__ import annotations

from typing import ClassVar

from plimsoll_worker.launch import ExitCode, ExitReason, Launch, LaunchError


class WorkerError(Exception):
    """The worker cannot go on; the message says what was found, what was expected and what to do."""

    code: ClassVar[ExitCode] = ExitCode.ENGINE_FAILED


class EffectiveConfigMismatch(WorkerError):
    """Device, product, precision, parallelism or layers differ from the launch."""

    code = ExitCode.EFFECTIVE_CONFIG_MISMATCH


class ModelNotFound(WorkerError):
    """Nothing that looks like a model is at the launch's path."""

    code = ExitCode.MODEL_NOT_FOUND


class ModelUnreadable(WorkerError):
    """A file is truncated, malformed or lacks a tensor; the message names it."""

    code = ExitCode.MODEL_UNREADABLE


class ModelUnsupported(WorkerError):
    """The model asks for an architecture, feature or element type that this engine does not have."""

    code = ExitCode.MODEL_UNSUPPORTED


class FetchFailed(WorkerError):
    """The hub did not give the model."""

    code = ExitCode.FETCH_FAILED


class CudaOutOfMemory(WorkerError):
    """The GPU refused an allocation."""

    code = ExitCode.CUDA_OUT_OF_MEMORY


class MemoryEstimateExceeded(WorkerError):
    """The planned bytes hold less than the workload needs, or measured use passes the line."""

    code = ExitCode.MEMORY_ESTIMATE_EXCEEDED


class RendezvousFailed(WorkerError):
    """A stage did not come in time, cannot be reached, or runs another plan; the message says which."""

    code = ExitCode.RENDEZVOUS_FAILED


class PeerLost(WorkerError):
    """Another pod of the replica ended, and this one cannot go on without it."""

    code = ExitCode.PEER_LOST


class EngineFailed(WorkerError):
    """The engine broke while it served."""


def exit_reason(error: BaseException, launch: Launch | None) -> ExitReason:
    """The termination message for `error`: its own code, or EngineFailed for what nobody foresaw."""
    plan_id = launch.plan_id if launch else None
    if isinstance(error, LaunchError):
        return ExitReason(reason=ExitCode.LAUNCH_INVALID, message=str(error), plan_id=plan_id)
    if isinstance(error, WorkerError):
        return ExitReason(reason=error.code, message=str(error), plan_id=plan_id)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, named so that this module stays free of torch
        return ExitReason(reason=ExitCode.CUDA_OUT_OF_MEMORY, message=str(error), plan_id=plan_id)
    return ExitReason(
        reason=ExitCode.ENGINE_FAILED, message=f"{type(error).__name__}: {error}", plan_id=plan_id
    )
