"""The table of `plimsoll estimate`: every term with its formula, so that a person can check the sum by
hand."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from plimsoll.cli.output import gib
from plimsoll.model.facts import ModelFacts
from plimsoll.sizing.footprint import Footprint, StageFootprint
from plimsoll.sizing.runtime import line
from plimsoll.sizing.schemes import stored_format
from plimsoll_worker.launch import MemoryCategory

BAR_COLUMNS = 60
_COLOURS = {
    MemoryCategory.WEIGHTS: "blue",
    MemoryCategory.KV_CACHE: "green",
    MemoryCategory.ACTIVATIONS: "yellow",
    MemoryCategory.CUDA_GRAPHS: "magenta",
    MemoryCategory.COMMUNICATION: "cyan",
    MemoryCategory.RUNTIME: "red",
    MemoryCategory.FRAGMENTATION: "white",
}
_LETTERS = {category: category.value[0].upper() for category in _COLOURS} | {MemoryCategory.CUDA_GRAPHS: "G"}


def print_table(
    facts: ModelFacts, sized: Footprint, notes: list[str], *, card: int | None, headroom_percent: int
) -> None:
    """Print model, terms and sums of every stage, the card's bar when one is given, and the warnings."""
    console = Console(highlight=False)
    configuration, workload = sized.configuration, sized.workload
    weights = stored_format(facts) if configuration.stored else configuration.weights
    if configuration.scheme is not None:
        weights = f"{configuration.scheme.name}, the rest {configuration.weights}"
    console.print(
        f"{facts.architecture}, {facts.parameters:,} parameters, {gib(facts.checkpoint_bytes)} in the files;"
        f" weights {weights}, KV cache {configuration.kv_cache},"
        f" TP{configuration.tensor_parallel}xPP{configuration.pipeline_parallel}"
    )
    console.print(
        f"{workload.max_sequences} sequences of {workload.max_context_tokens} tokens,"
        f" at most {workload.max_batched_tokens} tokens in one pass"
    )
    for stage in sized.stages:
        console.print(_stage_table(stage))
        if card is not None:
            console.print(bar(stage, card, headroom_percent))
    for note in notes:
        console.print(f"note: {note}")


def _stage_table(stage: StageFootprint) -> Table:
    table = Table(
        title=f"stage {stage.stage}: layers {stage.layers[0]} to {stage.layers[1] - 1}, bytes per GPU",
        title_justify="left",
        show_footer=True,
    )
    table.add_column("category", footer="total", no_wrap=True)
    table.add_column("formula")
    table.add_column("bytes", justify="right", footer=f"{stage.total:,}", no_wrap=True)
    table.add_column("GiB", justify="right", footer=gib(stage.total).removesuffix(" GiB"), no_wrap=True)
    table.add_column("share", justify="right", footer="100 %", no_wrap=True)
    for term in stage.terms:
        table.add_row(
            Text(term.category.value, style=_COLOURS[term.category]),
            term.formula,
            f"{term.bytes:,}",
            gib(term.bytes).removesuffix(" GiB"),
            f"{100 * term.bytes / stage.total:.1f} %",
        )
    return table


def bar(stage: StageFootprint, card: int, headroom_percent: int) -> Text:
    """The card from empty to full, what fills it by category, and the line.

    When more is needed than the card has, the bar grows past its end.
    """
    limit = line(card, headroom_percent)
    scale = max(card, stage.total)
    drawn = Text()
    filled = edge = 0
    for category, colour in _COLOURS.items():
        size = sum(term.bytes for term in stage.terms if term.category is category)
        filled += size
        columns = round(filled * BAR_COLUMNS / scale) - edge
        drawn.append(_LETTERS[category] * columns, style=colour)
        edge += columns
    drawn.append("." * (BAR_COLUMNS - edge))
    mark = min(BAR_COLUMNS, round(limit * BAR_COLUMNS / scale))
    verdict = "fits" if stage.total <= limit else "does not fit"
    drawn = drawn[:mark] + Text("|", style="bold") + drawn[mark:]
    drawn.append(
        f"\n{verdict}: {gib(stage.total)} of {gib(card)}, the line | is at {gib(limit)}"
        f" ({headroom_percent} % headroom)"
    )
    return drawn
