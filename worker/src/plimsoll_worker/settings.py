"""What a pod may say to a worker beside the launch: ports, the API key, how long to drain, where to leave the
last word.

The plan does not depend on any of it, so it stays out of the launch contract (and the API key out of a plan's
text).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from plimsoll_worker.launch import ADMIN_PORT, SERVING_PORT, TERMINATION_MESSAGE_PATH, LaunchError

SERVING_PORT_ENV = "PLIMSOLL_SERVING_PORT"
ADMIN_PORT_ENV = "PLIMSOLL_ADMIN_PORT"
API_KEY_ENV = "PLIMSOLL_API_KEY"
DRAIN_SECONDS_ENV = "PLIMSOLL_DRAIN_SECONDS"
LINGER_SECONDS_ENV = "PLIMSOLL_LINGER_SECONDS"
TERMINATION_LOG_ENV = "PLIMSOLL_TERMINATION_LOG"
LOAD_FORMAT_ENV = "PLIMSOLL_LOAD_FORMAT"

DRAIN_SECONDS = 120
LINGER_SECONDS = 5
"""Every node's proxy must hear that the pod goes; it takes about a second where nothing is slow."""


class LoadFormat(StrEnum):
    """Where weights come from."""

    AUTO = "auto"
    """The files at the launch's modelPath."""
    DUMMY = "dummy"
    """Random numbers in the shape that config.json states: for benchmarks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Environment of one worker process."""

    serving_port: int = SERVING_PORT
    admin_port: int = ADMIN_PORT
    api_key: str | None = None
    """Bearer token that /v1 and /tokenize ask for; None: open."""
    drain_seconds: int = DRAIN_SECONDS
    """How long running requests may go on after SIGTERM."""
    linger_seconds: int = LINGER_SECONDS
    """Of that, how long new ones are still taken: Kubernetes tells the pod to end and the Service's proxies
    to leave it out at the same time, and some clients are faster."""
    load_format: LoadFormat = LoadFormat.AUTO

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment. Raises LaunchError that names the variable."""
        env = os.environ if environ is None else environ
        return cls(
            serving_port=_whole_number(env, SERVING_PORT_ENV, SERVING_PORT, most=65535),
            admin_port=_whole_number(env, ADMIN_PORT_ENV, ADMIN_PORT, most=65535),
            api_key=env.get(API_KEY_ENV) or None,
            drain_seconds=_whole_number(env, DRAIN_SECONDS_ENV, DRAIN_SECONDS, most=86400),
            linger_seconds=_whole_number(env, LINGER_SECONDS_ENV, LINGER_SECONDS, most=3600),
            load_format=_load_format(env),
        )


def termination_log() -> Path:
    """Where the kubelet reads the termination message."""
    return Path(os.environ.get(TERMINATION_LOG_ENV) or TERMINATION_MESSAGE_PATH)


def _load_format(env: Mapping[str, str]) -> LoadFormat:
    raw = env.get(LOAD_FORMAT_ENV) or LoadFormat.AUTO
    if raw not in list(LoadFormat):
        raise LaunchError(
            f"environment variable {LOAD_FORMAT_ENV}: found {raw!r}, expected {' or '.join(LoadFormat)}"
        )
    return LoadFormat(raw)


def _whole_number(env: Mapping[str, str], name: str, default: int, *, most: int) -> int:
    raw = env.get(name)
    if not raw:
        return default
    if not raw.isascii() or not raw.isdigit() or int(raw) > most:
        raise LaunchError(
            f"environment variable {name}: found {raw!r}, expected a whole number from 0 to {most}"
        )
    return int(raw)
