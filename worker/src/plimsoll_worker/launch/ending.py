"""What a worker says of itself when it dies."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from plimsoll_worker.launch.wire import LAUNCH_VERSION, Wire

TERMINATION_MESSAGE_PATH = Path("/dev/termination-log")
TERMINATION_MESSAGE_BYTES = 4096
"""The kubelet keeps at most the last 4096 bytes of a termination message."""


class ExitCode(StrEnum):
    """Why a worker ended."""

    COMPLETED = "Completed"
    LAUNCH_INVALID = "LaunchInvalid"
    EFFECTIVE_CONFIG_MISMATCH = "EffectiveConfigMismatch"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_UNREADABLE = "ModelUnreadable"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    FETCH_FAILED = "FetchFailed"
    CUDA_OUT_OF_MEMORY = "CUDAOutOfMemory"
    MEMORY_ESTIMATE_EXCEEDED = "MemoryEstimateExceeded"
    RENDEZVOUS_FAILED = "RendezvousFailed"
    """The stages of a replica did not meet: one did not come in time, or runs another plan."""
    PEER_LOST = "PeerLost"
    """Another pod of the replica ended. That one's reason is the cause."""
    ENGINE_FAILED = "EngineFailed"


class ExitReason(Wire):
    """The termination message of a worker that did not end well."""

    version: Literal["v1"] = LAUNCH_VERSION
    reason: ExitCode
    message: str
    plan_id: str | None = None

    def write(self, path: Path = TERMINATION_MESSAGE_PATH) -> None:
        """Write the message, shortened so that the kubelet keeps it whole; a missing path (no kubelet) is
        no error."""
        text, kept = self.to_json(), 800
        while len(text.encode()) > TERMINATION_MESSAGE_BYTES:
            text = self.model_copy(update={"message": self.message[:kept] + " …"}).to_json()
            kept //= 2  # a letter takes up to six bytes of JSON
        if path.exists():
            path.write_text(text, encoding="utf-8")

    @classmethod
    def parse(cls, message: str | None) -> ExitReason | None:
        """The reason in a termination message, or None when the text is not one (the container was killed,
        say)."""
        if not message:
            return None
        try:
            return cls.model_validate_json(message)
        except ValidationError:
            return None
