"""`python -m dev.hub serve|generate|convert`: run the local hub, or write its repositories to a folder."""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from dev.hub.repository import repositories_in
from dev.hub.server import TOKEN, serve
from dev.hub.smollm2 import smollm2_folder
from dev.hub.well_known import WELL_KNOWN, well_known


def main() -> None:
    """Parse the command line and do one of the three."""
    parser = argparse.ArgumentParser(prog="python -m dev.hub", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser(
        "serve", help="serve ROOT/organisation/repository folders and well-known models"
    )
    serving.add_argument("--root", type=Path, help="folder of repositories")
    serving.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="well-known model, or 'all'"
    )
    serving.add_argument("--host", default="127.0.0.1")
    serving.add_argument("--port", type=int, default=0, help="0 takes a free one")
    serving.add_argument("--token", default=TOKEN, help="the token that gated repositories accept")
    writing = commands.add_parser("generate", help="write header-only repositories of well-known models")
    writing.add_argument("--root", type=Path, required=True)
    writing.add_argument(
        "models", nargs="*", metavar="NAME", help=f"of {', '.join(WELL_KNOWN)}; default: all"
    )
    commands.add_parser("convert", help="make SmolLM2-135M-Instruct as safetensors and print its folder")
    arguments = parser.parse_args()
    match arguments.command:
        case "serve":
            _serve(arguments)
        case "generate":
            for name in arguments.models or WELL_KNOWN:
                well_known(name).write(arguments.root / name)
                print(arguments.root / name)
        case "convert":
            print(smollm2_folder())


def _serve(arguments: argparse.Namespace) -> None:
    names = list(WELL_KNOWN) if "all" in arguments.model else arguments.model
    repositories = [well_known(name) for name in names]
    if arguments.root:
        repositories += repositories_in(arguments.root)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with serve(repositories, arguments.host, arguments.port, token=arguments.token) as server:
        print(f"HF_ENDPOINT={server.url}", flush=True)
        for name, repository in server.repositories.items():
            print(f"  {name}  {sum(file.size for file in repository.files.values()):,} bytes", flush=True)
        stopped.wait()


if __name__ == "__main__":
    main()
