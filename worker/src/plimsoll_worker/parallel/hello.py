"""What stages say when they meet: who calls, for what, and whether that is welcome.

A stage that was told another plan must not come in, whoever called whom. What is compared is all that two
pods of one replica have in common and no others do.
"""

from __future__ import annotations

from enum import StrEnum

from plimsoll_worker.launch import ENGINE_VERSION, Launch, Wire

LONGEST = 4096
"""Bytes of a greeting: whoever calls is not known yet."""


class Purpose(StrEnum):
    """What a connection is for."""

    ORDERS = "orders"
    """From the first stage to another: steps to compute; back: tokens, and how the start goes."""
    HIDDEN = "hidden"
    """From a stage to the next: hidden states."""


class Hello(Wire):
    """The first message of who calls."""

    plan_id: str
    revision: str
    replica: int
    attempt: int
    stages: int
    engine_version: str = ENGINE_VERSION
    stage: int
    """The caller's."""
    purpose: Purpose

    @classmethod
    def of(cls, launch: Launch, purpose: Purpose) -> Hello:
        return cls(
            plan_id=launch.plan_id,
            revision=launch.revision,
            replica=launch.replica,
            attempt=launch.attempt,
            stages=launch.pipeline_parallel,
            stage=launch.stage,
            purpose=purpose,
        )

    def objection(self, launch: Launch) -> str:
        """Why it is not of the replica that `launch` is of, in words; empty when it is."""
        mine = Hello.of(launch, self.purpose)
        for field in ("plan_id", "revision", "replica", "attempt", "stages", "engine_version"):
            theirs, own = getattr(self, field), getattr(mine, field)
            if theirs != own:
                name = field.replace("_", " ")
                told = sorted(((self.stage, theirs), (launch.stage, own)))
                return f"{name} is " + " and ".join(f"{value} of stage {stage}" for stage, value in told)
        return ""


class Welcome(Wire):
    """The answer."""

    objection: str = ""
    """Why not; empty: come in."""
