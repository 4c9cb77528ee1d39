"""The cost of a plan as the cluster grows: `python -m tests.bench.plot FIGURES OUT.svg` draws what
`python -m tests.bench --json FIGURES` or `python -m tests.bench.speed` measured.

Both axes are logarithmic: a line of slope one is linear growth. SVG by hand, because two polylines and a grid
are no reason for a plotting library.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 34, 44
LEADING = 14
"""Between the labels of two lines, pixels."""
NODES = (100, 10_000)
MILLISECONDS = (1, 10_000)
LINES = (
    ("oneNew", "processMedianMilliseconds", "one new, median", "#1f6feb"),
    ("oneNew", "processP99Milliseconds", "one new, p99", "#8250df"),
    ("oneRejected", "processP99Milliseconds", "one rejected, p99", "#bf8700"),
    ("allNew", "processMedianMilliseconds", "all new, median", "#1a7f37"),
)
"""(measure, figure, label, colour)."""


def along(value: float, span: tuple[int, int], start: float, end: float) -> float:
    """Where a value lies between two edges, on a logarithmic axis."""
    low, high = (math.log10(edge) for edge in span)
    return start + (math.log10(value) - low) / (high - low) * (end - start)


def x(nodes: float) -> float:
    return along(nodes, NODES, LEFT, WIDTH - RIGHT)


def y(milliseconds: float) -> float:
    return along(max(milliseconds, MILLISECONDS[0]), MILLISECONDS, HEIGHT - BOTTOM, TOP)


def decades(span: tuple[int, int]) -> Iterable[int]:
    return (10**power for power in range(round(math.log10(span[0])), round(math.log10(span[1])) + 1))


def grid() -> list[str]:
    parts = []
    for nodes in decades(NODES):
        parts.append(f'<path d="M{x(nodes):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#d0d7de"/>')
        parts.append(
            f'<text x="{x(nodes):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{nodes:,}</text>'
        )
    for time in decades(MILLISECONDS):
        parts.append(f'<path d="M{LEFT} {y(time):.1f}H{WIDTH - RIGHT}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(time) + 4:.1f}" text-anchor="end">{time:,}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">nodes, 8 GPUs each</text>')
    parts.append(f'<text x="{LEFT}" y="18">milliseconds of process time for one plan</text>')
    return parts


def line(rows: Sequence[dict[str, Any]], measure: str, figure: str, colour: str) -> str:
    points = [(x(row["nodes"]), y(row[measure][figure])) for row in rows]
    path = " ".join(f"{across:.1f},{up:.1f}" for across, up in points)
    dots = "".join(f'<circle cx="{a:.1f}" cy="{u:.1f}" r="2.5" fill="{colour}"/>' for a, u in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>{dots}'


def labels(last: dict[str, Any]) -> list[str]:
    """Beside the ends of the lines, pushed apart where lines end close together."""
    ends = sorted((y(last[measure][figure]) + 4, label, colour) for measure, figure, label, colour in LINES)
    parts, above = [], 0.0
    for wished, label, colour in ends:
        above = max(wished, above + LEADING)
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{above:.1f}" fill="{colour}">{label}</text>')
    return parts


def drawing(rows: Sequence[dict[str, Any]]) -> str:
    """`rows`: those of `tests.bench.speed`, by growing number of nodes."""
    drawn = [line(rows, measure, figure, colour) for measure, figure, _, colour in LINES]
    body = "\n".join([*grid(), *drawn, *labels(rows[-1])])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11" fill="#57606a">\n<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n'
        f"{body}\n</svg>\n"
    )


if __name__ == "__main__":
    figures = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(drawing(figures.get("speed", figures)["rows"]))
