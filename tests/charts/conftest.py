"""Helm and kubectl, as a user runs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dev.cluster.binaries import binary
from dev.cluster.description import Cluster
from tests.conftest import SLACK

CHARTS = Path(__file__).parents[2] / "charts"
Run = Callable[..., subprocess.CompletedProcess[str]]


def _run(program: str, arguments: tuple[str, ...], stdin: str, environment: dict[str, str]) -> Any:
    return subprocess.run(
        [str(binary(program)), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300 * SLACK,
    )


@pytest.fixture(scope="session")
def helm_home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which helm finds and leaves nothing of this machine's user."""
    home = tmp_path_factory.mktemp("helm")
    return {
        **os.environ,
        "HELM_CACHE_HOME": str(home),
        "HELM_CONFIG_HOME": str(home),
        "HELM_DATA_HOME": str(home),
    }


@pytest.fixture(scope="session")
def helm(helm_home: dict[str, str]) -> Run:
    """`helm(*arguments)` without a cluster; the caller judges the exit code."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return _run("helm", arguments, "", {**helm_home, "KUBECONFIG": "/nonexistent"})

    return run


@pytest.fixture(scope="session")
def render(helm: Run) -> Callable[..., list[dict[str, Any]]]:
    """`render(*settings)`: the objects of the operator's chart."""

    def objects(*settings: str, chart: str = "plimsoll") -> list[dict[str, Any]]:
        flags = [flag for setting in settings for flag in ("--set-json", setting)]
        done = helm("template", "plimsoll", str(CHARTS / chart), "--namespace", "plimsoll-system", *flags)
        assert done.returncode == 0, done.stderr
        return [found for found in yaml.safe_load_all(done.stdout) if found]

    return objects


@pytest.fixture
def in_cluster(cluster: Cluster, helm_home: dict[str, str]) -> Run:
    """`in_cluster("helm" | "kubectl", *arguments, stdin="")`: fails the test when the program fails."""

    def run(program: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = _run(program, arguments, stdin, {**helm_home, "KUBECONFIG": str(cluster.kubeconfig)})
        assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done  # type: ignore[no-any-return]

    return run
