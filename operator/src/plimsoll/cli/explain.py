"""`plimsoll explain`: why a deployment runs as it does: the plan, its arithmetic, what was rejected, what was
measured."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from plimsoll.actuate.revisions import Revision
from plimsoll.api.v1alpha1 import LLMDeployment, PlanStatus
from plimsoll.cli.live import Cluster, ContextOption, NamespaceOption
from plimsoll.cli.manifests import Objects, read_deployment
from plimsoll.cli.output import ExitCode, Format, OutputOption, write
from plimsoll.cli.plan_table import page, print_arithmetic, print_nodes, print_plan, print_rejected
from plimsoll.planning.explain import pictures, stage_sums
from plimsoll_worker.launch import Device


def command(
    name: Annotated[str, typer.Argument(help="Name of the LLMDeployment.")],
    namespace: NamespaceOption = "",
    context: ContextOption = "",
    output: OutputOption = Format.TABLE,
) -> None:
    """Tell why a deployment is planned as it is, and predicted beside measured bytes. Exit 3 without a
    plan."""
    cluster = Cluster(context)
    where = namespace or cluster.namespace
    obj = cluster.deployment(where, name)
    deployment = read_deployment(obj, f"LLMDeployment {where}/{name}")
    if output is not Format.TABLE:
        write(deployment.status.to_dict(), output)
    else:
        console = page()
        for plan in deployment.status.plans:
            _print(console, cluster, where, name, deployment, plan)
        _print_conditions(console, deployment)
        print_rejected(console, deployment.status.rejected)
        _print_nodes(console, cluster.objects(), deployment, str(obj["metadata"].get("uid", "")))
    if not deployment.status.plans:
        raise typer.Exit(ExitCode.NOT_POSSIBLE)


def _print(
    console: Console, cluster: Cluster, namespace: str, name: str, deployment: LLMDeployment, plan: PlanStatus
) -> None:
    found = cluster.revision(namespace, plan.revision)
    revision = Revision.parse(found) if found is not None else None
    spec = revision.spec if revision else deployment.spec
    serving = plan.revision == deployment.status.current_revision
    print_plan(console, name, plan, spec)
    measured = deployment.status.measured if serving else ()
    print_arithmetic(console, stage_sums(plan, spec, revision.facts if revision else None, measured))
    if revision is None:
        console.print(f"  formulas need ControllerRevision {plan.revision}, which cannot be read")
    if serving:
        for stage in deployment.status.measured:
            console.print(f"  stage {stage.stage}: predicted {stage.error_permille / 10:+.1f} % of measured")
    print_rejected(console, plan.rejected)


def _print_conditions(console: Console, deployment: LLMDeployment) -> None:
    told: set[str] = set()
    for condition in deployment.status.conditions:
        if condition.type in ("Ready", "Planned", "Verified") and condition.status != "True":
            if condition.message not in told:
                console.print(f"{condition.type}={condition.status} {condition.reason}: {condition.message}")
            told.add(condition.message)


def _print_nodes(console: Console, objects: Objects, deployment: LLMDeployment, uid: str) -> None:
    if deployment.spec.placement.device is not Device.GPU:
        return
    plan = deployment.status.plans[-1] if deployment.status.plans else None
    print_nodes(console, pictures(objects.nodes(), objects.pods(), plan, uid))
