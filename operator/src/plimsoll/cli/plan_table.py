"""How `plan` and `explain` look in a terminal: the decision, the arithmetic, the nodes with their GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from plimsoll.api.v1alpha1 import LLMDeploymentSpec, PlanStatus, RejectedOption
from plimsoll.cli.output import gib
from plimsoll.planning.explain import NodePicture, StageSum, bars, pictures, reasons, stage_sums
from plimsoll.planning.snapshot import Decision, DeploymentRequest, Snapshot
from plimsoll.planning.words import listed
from plimsoll_worker.launch import Device

LOG_COLUMNS = 140
MIB = 1 << 20
MAX_PICTURED = 24
"""Rows drawn; the nodes that the plan uses come first."""


def page() -> Console:
    """Standard output. Into a pipe or a log, tables are as wide as their formulas need."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=LOG_COLUMNS)


def print_decision(request: DeploymentRequest, decision: Decision, snapshot: Snapshot) -> None:
    """The whole answer of `plimsoll plan`."""
    console = page()
    if decision.plan is not None:
        print_plan(console, request.name, decision.plan, request.spec)
        print_arithmetic(console, stage_sums(decision.plan, request.spec, request.facts))
    if decision.rejection is not None:
        unplaced = len(decision.unplaced_replicas)
        which = f"{unplaced} of {request.spec.replicas} replicas have no place"
        console.print(f"{request.name}: {which if decision.plan else 'no plan'}")
        console.print(f"  {decision.rejection.reason}: {decision.rejection.message}")
    plan = decision.plan
    print_rejected(
        console, plan.rejected if plan else decision.rejection.rejected if decision.rejection else ()
    )
    if request.spec.placement.device is Device.GPU:
        print_nodes(console, pictures(snapshot.nodes, snapshot.pods, plan, request.uid, bars(request)))


def print_plan(console: Console, name: str, plan: PlanStatus, spec: LLMDeploymentSpec) -> None:
    console.print(f"{name}: {plan.summary}")
    for reason in reasons(plan, spec):
        console.print(f"  {reason}")
    for placement in plan.placements:
        gpus = f", {placement.gpus} GPU" + ("s" if placement.gpus != 1 else "") if placement.gpus else ""
        console.print(f"  replica {placement.replica} stage {placement.stage}: {placement.node}{gpus}")


def print_arithmetic(console: Console, stages: Sequence[StageSum]) -> None:
    """Every term with its formula; the measured bytes beside it where there are any."""
    for stage in stages:
        measured = stage.measured_total is not None
        table = Table(title=f"stage {stage.stage}, bytes on the fullest rank", title_justify="left")
        table.add_column("category", no_wrap=True)
        table.add_column("how", overflow="fold")
        table.add_column("predicted", justify="right", no_wrap=True)
        if measured:
            table.add_column("measured", justify="right", no_wrap=True)
            table.add_column("error", justify="right", no_wrap=True)
        for category in stage.categories:
            lines = [term.formula for term in category.terms]
            if category.terms and category.recomputed != category.predicted:
                lines.append(f"this version computes {gib(category.recomputed)}; the plan is an older one's")
            how = "\n".join(lines)
            seen = _beside(category.predicted, category.measured or 0) if measured else []
            table.add_row(category.category, how, gib(category.predicted), *seen)
        table.add_section()
        seen = _beside(stage.total, stage.measured_total) if stage.measured_total is not None else []
        table.add_row("total", "", gib(stage.total), *seen)
        table.add_row("line", "", gib(stage.line), *[""] * len(seen))
        table.add_row("to spare", "", gib(stage.spare), *[""] * len(seen))
        console.print(table)


def _beside(predicted: int, measured: int) -> list[str]:
    """Measured bytes, and how far the prediction is off."""
    return [gib(measured), f"{(predicted - measured) / MIB:+.0f} MiB"]


def print_rejected(console: Console, rejected: Iterable[RejectedOption]) -> None:
    listed = list(rejected)
    if listed:
        console.print("looked at and not taken:")
    for option in listed:
        console.print(f"  {option.option}: {option.reason}: {option.message}")


def print_nodes(console: Console, nodes: Sequence[NodePicture]) -> None:
    """The nodes of the plan one by one, the others together where they look alike."""
    if not nodes:
        return
    alike: dict[tuple[str, ...], list[str]] = {}
    for picture in nodes:
        own = picture.node if picture.planned else ""
        key = own, picture.product, picture.drawn, picture.barred
        alike.setdefault(key, []).append(picture.node)
    ordered = sorted(alike.items(), key=lambda item: (not item[0][0], item[0][1], item[1][0]))
    console.print("GPUs (# taken, P this plan, . free, x free and out of the question):")
    width = max(len(drawn) for _, _, drawn, _ in alike)
    for (_, product, drawn, barred), names in ordered[:MAX_PICTURED]:
        why = f": {barred}" if barred else ""
        console.print(f"  {drawn:<{width}}  {product} on {listed(names)}{why}", markup=False)
    if len(ordered) > MAX_PICTURED:
        console.print(f"  and {len(ordered) - MAX_PICTURED} more kinds of node")
