"""The command line, also installed as `kubectl-plimsoll`: one module per verb, one exit code per kind of
answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from plimsoll import __version__
from plimsoll.cli import estimate, explain, inspect, inventory, plan
from plimsoll.cli.output import BadInputError, ExitCode, NotPossibleError
from plimsoll.model.errors import ModelError
from plimsoll.sizing.parallel import ParallelRefused

app = typer.Typer(
    name="plimsoll",
    help="Computes how deep each GPU may be loaded, before anything starts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("estimate")(estimate.command)
app.command("inspect")(inspect.command)
app.command("inventory")(inventory.command)
app.command("plan")(plan.command)
app.command("explain")(explain.command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Computes how deep each GPU may be loaded, before anything starts."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit: 0 yes, 1 internal error, 2 bad input, 3 does not fit or is not possible."""
    try:
        app(args=arguments, prog_name="plimsoll")
    except (ModelError, BadInputError) as error:
        _fail(error, ExitCode.BAD_INPUT)
    except (ParallelRefused, NotPossibleError) as error:
        _fail(error, ExitCode.NOT_POSSIBLE)


def _fail(error: Exception, code: ExitCode) -> None:
    typer.echo(f"plimsoll: {error}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
