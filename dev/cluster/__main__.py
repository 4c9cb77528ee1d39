"""`python -m dev.cluster`: a Kubernetes on this machine for trying things out and for the tests."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import yaml

from dev.cluster import binaries, lifecycle, nodes
from dev.cluster.description import load
from dev.cluster.errors import ClusterError
from dev.cluster.paths import cluster_names


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)  # so that `up` clears what it began, as on Ctrl-C
    try:
        return int(arguments.run(arguments))
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.cluster", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    up = verbs.add_parser("up", help="start a cluster and print how to reach it")
    _name(up)
    up.add_argument(
        "--nodes", metavar="N|FILE", default="0", help="fake GPU nodes: a number, or a file of pools"
    )
    up.add_argument(
        "--real-node", action="store_true", help="a kubelet and container runtime too (Linux, root)"
    )
    up.add_argument(
        "--pod-groups", action="store_true", help="serve PodGroup and Workload (scheduling.k8s.io)"
    )
    up.add_argument(
        "--provider",
        choices=["auto", "kind", "process"],
        default="auto",
        help="auto: kind where a Docker engine answers, else plain processes",
    )
    up.set_defaults(run=_up)

    down = verbs.add_parser("down", help="end a cluster and remove every trace of it")
    _name(down)
    down.set_defaults(run=_down)

    status = verbs.add_parser("status", help="clusters of this machine and their processes")
    status.set_defaults(run=_status)

    kubeconfig = verbs.add_parser("kubeconfig", help="print the path of a cluster's kubeconfig")
    _name(kubeconfig)
    kubeconfig.set_defaults(run=_kubeconfig)

    build = verbs.add_parser("build", help="build every program now, which `up` would do when it needs one")
    build.set_defaults(run=_build)

    expand = verbs.add_parser("nodes", help="print the Node objects that --nodes would create")
    expand.add_argument("nodes", metavar="N|FILE")
    expand.set_defaults(run=_nodes)
    return parser


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name", default="plimsoll", help="several clusters of different names run side by side"
    )


def _up(arguments: argparse.Namespace) -> int:
    wanted = lifecycle.Wanted(
        arguments.name,
        nodes.requested(arguments.nodes),
        arguments.real_node,
        arguments.pod_groups,
        arguments.provider,
    )
    cluster = lifecycle.up(wanted, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}")
    print(f"export PATH={shlex.quote(str(binaries.binary('kubectl').parent))}:$PATH  # kubectl")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    existed = lifecycle.down(arguments.name)
    print(f"cluster {arguments.name} is gone" if existed else f"there was no cluster {arguments.name}")
    return 0


def _status(_: argparse.Namespace) -> int:
    for name in cluster_names():
        cluster = load(name)
        print(
            f"{name}  provider={cluster.provider}  real-node={cluster.node or '-'}  "
            f"KUBECONFIG={cluster.kubeconfig}"
        )
        for process, alive in lifecycle.running(name).items():
            print(f"  {process:<26} {'running' if alive else 'ENDED'}   {cluster.paths.logs / process}.log")
    if not cluster_names():
        print("no clusters; `python -m dev.cluster up` starts one")
    return 0


def _kubeconfig(arguments: argparse.Namespace) -> int:
    print(load(arguments.name).kubeconfig)
    return 0


def _build(_: argparse.Namespace) -> int:
    binaries.build_all()
    return 0


def _nodes(arguments: argparse.Namespace) -> int:
    print(yaml.safe_dump_all(nodes.requested(arguments.nodes), sort_keys=False), end="")
    return 0


if __name__ == "__main__":
    if os.name != "posix":
        sys.exit("python -m dev.cluster runs on Linux and macOS")
    sys.exit(main())
