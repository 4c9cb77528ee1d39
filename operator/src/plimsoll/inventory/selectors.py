"""Node selector terms: the language of node affinity in pods and PersistentVolumes.

Rules: kubernetes `staging/src/k8s.io/component-helpers/scheduling/corev1/nodeaffinity`: terms are
alternatives, the requirements of a term must all hold, an empty term matches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.inventory.views import NodeView

NAME_FIELD = "metadata.name"


def matches_any(terms: Sequence[Mapping[str, Any]], node: NodeView) -> bool:
    return any(_matches(term, node) for term in terms)


def _matches(term: Mapping[str, Any], node: NodeView) -> bool:
    expressions = term.get("matchExpressions") or ()
    fields = term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    return all(_holds(rule, node.labels) for rule in expressions) and all(
        _holds(rule, {NAME_FIELD: node.name}) for rule in fields
    )


def _holds(rule: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator = rule.get("key", ""), rule.get("operator", "")
    values = [str(value) for value in rule.get("values") or ()]
    found = labels.get(key)
    match operator:
        case "In":
            return found in values
        case "NotIn":
            return found not in values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt" | "Lt":
            return _compare(operator, found, values)
        case _:
            return False


def _compare(operator: str, found: str | None, values: Sequence[str]) -> bool:
    try:
        left, right = int(found or ""), int(values[0])
    except (ValueError, IndexError):
        return False
    return left > right if operator == "Gt" else left < right


def pinned_node(affinity: Mapping[str, Any] | None) -> str:
    """The node that a pod's required node affinity names by `matchFields metadata.name`, if it can be only
    one."""
    found: Any = affinity
    for part in ("nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"):
        found = found.get(part) if isinstance(found, Mapping) else None
    names: set[str] = set()
    for term in (found.get("nodeSelectorTerms") or ()) if isinstance(found, Mapping) else ():
        wanted = [
            rule.get("values") or []
            for rule in term.get("matchFields") or ()
            if rule.get("key") == NAME_FIELD and rule.get("operator") == "In"
        ]
        if len(wanted) != 1 or len(wanted[0]) != 1:
            return ""
        names.add(str(wanted[0][0]))
    return names.pop() if len(names) == 1 else ""
