"""Settings of the operator: environment variables PLIMSOLL_*, each with the reason it exists.

What a user decides for one model stands in the LLMDeployment; what a cluster administrator decides once
stands here and is set through the chart's values.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[int, Field(ge=1, le=86_400)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PLIMSOLL_", frozen=True, use_attribute_docstrings=True)

    worker_image: str = "plimsoll.dev/worker:dev"
    """Image of worker pods whose resource names none. New revisions take it; running ones keep theirs."""
    operator_image: str = "plimsoll.dev/operator:dev"
    """Image of inspect pods: the operator's own."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """For inspect and worker pods."""
    hf_endpoint: str = "https://huggingface.co"
    """The hub that inspect and worker pods ask; a mirror inside the company, say."""
    namespace: str = "plimsoll-system"
    """Where the operator itself runs and keeps its Lease; told in messages about network policies."""
    identity: str = ""
    """Who holds the Lease: the pod's uid, so that its container, started again, goes on at once. Empty: a new
    one at every start, which waits until the Lease of the one before has run out."""
    health_port: Port = 8080
    """/healthz (liveness) and, on the metrics port, /readyz."""
    metrics_port: Port = 9090
    """/metrics for Prometheus and /readyz."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    replan_seconds: Seconds = 60
    """Every feed is trusted, none for ever: resources are listed afresh and planned again this often."""
    inspect_timeout_seconds: Seconds = 300
    """How long an inspect pod may take from its creation to its end, image pull included."""
    unschedulable_seconds: Seconds = 60
    """How long a worker pod may wait for the scheduler before its node is excluded and the replica planned
    elsewhere."""
    exclusion_seconds: Seconds = 600
    """How long a node stays excluded for a resource whose pod could not be scheduled there."""
