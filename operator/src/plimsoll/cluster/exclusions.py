"""What planning must not try again, and for how long.

    a node that took no pod             until a time that was written down with it
    a configuration out of memory       for revisions of the same basis: model revision, worker image,
                                        environment and headroom. It would only fail again

A configuration is not tried again after a while: what serves now would be replaced, unasked, by what failed
before. What ran out of memory on another basis is remembered too, because people also go back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from plimsoll.actuate.revisions import Revision
from plimsoll.api.v1alpha1 import Exclusion
from plimsoll.planning.exclusions import MOST_CONFIGURATIONS

MAX_EXCLUSIONS = MOST_CONFIGURATIONS


def by_basis(exclusions: Iterable[Exclusion]) -> Mapping[str, set[str]]:
    """Configurations that ran out of memory."""
    found: dict[str, set[str]] = {}
    for one in exclusions:
        if one.configuration:
            found.setdefault(one.basis, set()).add(one.configuration)
    return found


def left_out(exclusions: Iterable[Exclusion], revision: Revision | None) -> str:
    """Those that plans of this revision leave out, in words to follow a sentence."""
    basis = revision.basis if revision else ""
    holding = (one for one in exclusions if one.node or one.basis == basis)
    return "".join(f"; {_words(one)}" for one in holding)


def _words(one: Exclusion) -> str:
    what = f"node {one.node}" if one.node else one.configuration
    until = f" until {one.until}" if one.until else ""
    return f"{what} is left out{until}: {one.reason}: {one.message}"


def remembered(exclusions: Iterable[Exclusion], revision: Revision | None) -> list[Exclusion]:
    """For status: each node, and each configuration of a basis, once, in the latest words. Where there are
    too many, the oldest of another basis goes first, then the oldest node: it would be found out again."""
    found = {(one.node, one.configuration, one.basis): one for one in exclusions}
    basis = revision.basis if revision else ""

    def worth(one: Exclusion) -> int:
        return 1 if one.node else 2 if one.basis == basis else 0

    newest_first = list(reversed(found.values()))
    kept = sorted(newest_first, key=worth, reverse=True)[:MAX_EXCLUSIONS]
    return [one for one in found.values() if one in kept]
