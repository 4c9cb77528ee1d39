"""`plimsoll plan`: what the operator would decide, from saved or live nodes and pods, by the operator's own
function."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from plimsoll.api.conditions import ConditionType, Observation, conditions, fails, holds
from plimsoll.api.v1alpha1 import API_VERSION, KIND, LLMDeployment, ModelSource, PlanMode
from plimsoll.cli.live import Cluster, ContextOption
from plimsoll.cli.manifests import Objects, read_deployment, read_objects
from plimsoll.cli.output import BadInputError, ExitCode, Format, OutputOption, write
from plimsoll.cli.plan_table import print_decision
from plimsoll.cli.profiles import read_profiles
from plimsoll.model.facts import FactsUnreadable, ModelFacts
from plimsoll.model.read import read_facts
from plimsoll.planning.plan import plan
from plimsoll.planning.snapshot import Decision, DeploymentRequest, Snapshot
from plimsoll.sources import open_source
from plimsoll_worker.launch import CAPABILITIES, Capabilities

FilesOption = Annotated[
    list[Path],
    typer.Option(
        "--file",
        "-f",
        help="The LLMDeployment; and saved nodes, pods, claims and volumes. Without nodes: the live cluster.",
    ),
]


def command(
    files: FilesOption,
    model: Annotated[
        str, typer.Option("--model", help="Read the model here instead: hf://org/repo or a path.")
    ] = "",
    facts: Annotated[
        Path | None, typer.Option("--facts", help="ModelFacts JSON, as `plimsoll inspect` prints it.")
    ] = None,
    profiles: Annotated[
        Path | None,
        typer.Option("--profiles", help="MemoryProfiles that workers measured (YAML or JSON)."),
    ] = None,
    capabilities: Annotated[
        Path | None,
        typer.Option("--capabilities", help="Plan for another engine: its Capabilities as JSON."),
    ] = None,
    context: ContextOption = "",
    output: OutputOption = Format.TABLE,
) -> None:
    """Plan an LLMDeployment without applying it. Exit 3 when it has no place."""
    if model and facts:
        raise BadInputError("--model and --facts both tell the model: give one of them")
    question = _question(read_objects(files), files, model, facts, context)
    snapshot = replace(
        question.snapshot,
        capabilities=_capabilities(capabilities),
        profiles=read_profiles(profiles, question.request.spec) if profiles else (),
    )
    decision = plan(snapshot)[question.request.uid]
    if output is Format.TABLE:
        print_decision(question.request, decision, snapshot)
    else:
        write(document(question.request, decision), output)
    if decision.rejection is not None:
        raise typer.Exit(ExitCode.NOT_POSSIBLE)


@dataclass(frozen=True, slots=True)
class _Question:
    request: DeploymentRequest
    snapshot: Snapshot


def _question(objects: Objects, files: list[Path], model: str, facts: Path | None, context: str) -> _Question:
    told = ", ".join(map(str, files))
    found = objects.of(KIND)
    if len(found) != 1:
        raise BadInputError(f"{told}: expected one object of kind {KIND}, found {len(found)}")
    obj = found[0]
    deployment = read_deployment(obj, told)
    if not objects.of("Node"):
        if objects.of("Pod"):
            raise BadInputError(
                f"{told}: pods without nodes: add the nodes (kubectl get nodes,pods -A -o yaml)"
            )
        objects = Cluster(context).objects()
    request = _request(obj, deployment, _facts(deployment.spec.model, model, facts), objects)
    # Pods of the deployment itself make room: the question is where it would go.
    pods = tuple(pod for pod in objects.pods() if pod.owner_uid != request.uid)
    return _Question(request, Snapshot(objects.nodes(), pods, (request,), CAPABILITIES))


def _request(
    obj: dict[str, Any], deployment: LLMDeployment, facts: ModelFacts, objects: Objects
) -> DeploymentRequest:
    meta = obj["metadata"]
    namespace = str(meta.get("namespace") or "default")
    claim = deployment.spec.model.persistent_volume_claim
    return DeploymentRequest(
        uid=str(meta.get("uid") or "not-applied"),
        namespace=namespace,
        name=str(meta["name"]),
        generation=int(meta.get("generation") or 1),
        created=str(meta.get("creationTimestamp") or ""),
        priority=0,
        spec=deployment.spec,
        facts=facts,
        revision=str(meta["name"]),
        worker_image=deployment.spec.engine.image,
        volume=objects.volume(namespace, claim.claim_name) if claim else None,
    )


def _facts(source: ModelSource, model: str, path: Path | None) -> ModelFacts:
    if path is not None:
        return read_facts_file(path)
    if not model and source.hugging_face is not None:
        revision = f"@{source.hugging_face.revision}" if source.hugging_face.revision else ""
        model = f"hf://{source.hugging_face.repo}{revision}"
    if not model:
        raise BadInputError(
            "spec.model.persistentVolumeClaim cannot be read from here: give a copy of the model with "
            "--model, or its facts with --facts"
        )
    return read_facts(open_source(model))


def read_facts_file(path: Path) -> ModelFacts:
    """ModelFacts as JSON, or packed as an inspect pod leaves them. Raises BadInputError naming file and
    field."""
    text = _text(path, "--facts")
    try:
        return ModelFacts.model_validate_json(text) if text.startswith("{") else ModelFacts.unpack(text)
    except ValidationError as error:
        raise BadInputError(f"{path}: {_first(error)}") from error
    except FactsUnreadable as error:
        raise BadInputError(f"{path}: {error}") from error


def _capabilities(path: Path | None) -> Capabilities:
    if path is None:
        return CAPABILITIES
    try:
        return Capabilities.model_validate(json.loads(_text(path, "--capabilities")))
    except ValidationError as error:
        raise BadInputError(f"{path}: {_first(error)}") from error
    except ValueError as error:
        raise BadInputError(f"{path}: not JSON: {error}") from error


def _text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{option}: {path}: {error}") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or '(root)'}: {first['msg']}"


def document(request: DeploymentRequest, decision: Decision) -> dict[str, Any]:
    """An entry of `status.plans` as the operator would write it, with apiVersion and the conditions it
    answers."""
    if decision.plan is not None:
        body = decision.plan.to_dict()
    else:
        assert decision.rejection is not None, "a decision without a plan tells why"
        body = {"rejected": [option.to_dict() for option in decision.rejection.rejected]}
    seen = Observation(
        generation=request.generation,
        desired=request.spec.replicas,
        suspended=request.spec.suspend,
        plan_only=request.spec.plan.mode is PlanMode.PLAN_ONLY,
        model=holds("HeadersRead", f"{request.facts.architecture} at {request.facts.revision}"),
        plan=(
            fails(decision.rejection.reason, decision.rejection.message)
            if decision.rejection
            else holds("Planned", decision.plan.summary if decision.plan else "")
        ),
    )
    told = {ConditionType.MODEL_RESOLVED, ConditionType.PLANNED}
    found = [entry for entry in conditions(seen, now=datetime.now(UTC)) if entry.type in told]
    return {"apiVersion": API_VERSION, **body, "conditions": [entry.to_dict() for entry in found]}
