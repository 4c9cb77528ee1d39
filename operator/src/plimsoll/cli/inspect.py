"""`plimsoll inspect`: what a model is, as ModelFacts JSON; and what an inspect pod runs.

In a pod the answer goes into the termination message, packed. A definite failure (no such model, unsupported,
truncated) is an answer as well: it is written as InspectFailure and the exit code is 0, so that the pod
completes instead of being restarted until its back-off hides the message. Only a failure that is worth
another try as it is (the hub does not answer) leaves the message *and* exit code 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plimsoll.cli.output import BadInputError, ExitCode
from plimsoll.model.errors import HubUnreachable, ModelError
from plimsoll.model.facts import MAX_PACKED_BYTES, FactsTooLarge, InspectFailure, ModelFacts
from plimsoll.model.read import read_facts
from plimsoll.sources import open_source

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="hf://org/repo[@revision], or a path: folder, config.json, *.safetensors,"
        " *.safetensors.index.json, *.gguf.",
    ),
]


def command(
    source: SourceArgument,
    output_termination_message: Annotated[
        Path | None,
        typer.Option(
            help="Write packed facts, or the failure, to this file instead (what an inspect pod does)."
        ),
    ] = None,
) -> None:
    """Print what a model is: its ModelFacts as JSON."""
    if output_termination_message is None:
        facts = read_facts(open_source(source))
        typer.echo(facts.model_dump_json(by_alias=True, indent=2))
        return
    message, code = termination_message(source)
    try:
        output_termination_message.write_text(message, encoding="utf-8")
    except OSError as error:
        raise BadInputError(
            f"--output-termination-message: {output_termination_message}: {error.strerror}"
        ) from error
    typer.echo(message)
    raise typer.Exit(code)


def termination_message(source: str) -> tuple[str, ExitCode]:
    """What an inspect pod leaves for the operator, and how it exits."""
    try:
        return _facts(source).pack(), ExitCode.YES
    except FactsTooLarge as error:
        return _failure(InspectFailure(reason="FactsTooLarge", message=str(error))), ExitCode.YES
    except HubUnreachable as error:
        return _failure(error.failure()), ExitCode.BAD_INPUT
    except ModelError as error:
        return _failure(error.failure()), ExitCode.YES


def _facts(source: str) -> ModelFacts:
    return read_facts(open_source(source))


def _failure(failure: InspectFailure) -> str:
    text = failure.model_dump_json(by_alias=True)
    if len(text.encode()) > MAX_PACKED_BYTES:
        # The kubelet would cut at the front and leave no JSON at all.
        failure = failure.model_copy(update={"message": failure.message[:800] + " …"})
        text = failure.model_dump_json(by_alias=True)
    return text
