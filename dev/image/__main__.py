"""`python -m dev.image`: container images without a container engine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dev.cluster.description import load as load_cluster
from dev.cluster.errors import ClusterError
from dev.image import NAMES, archive, loading


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.image", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    build = verbs.add_parser("build", help="write an image as an OCI archive")
    build.add_argument("image", choices=sorted(loading.BUILDERS))
    build.add_argument("--output", type=Path, metavar="TAR", help="default: IMAGE.tar")
    build.set_defaults(run=_build)

    load = verbs.add_parser("load", help="put images of the code as it is now into a running cluster")
    load.add_argument("images", nargs="*", metavar="IMAGE", help=f"default: {' '.join(NAMES)}")
    load.add_argument("--name", default="plimsoll", help="of the cluster")
    load.set_defaults(run=_load)

    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _build(arguments: argparse.Namespace) -> int:
    image = loading.build(arguments.image)
    output = arguments.output or Path(f"{arguments.image}.tar")
    archive.write(image, output)
    print(f"{output}: {image.name}, {output.stat().st_size >> 20} MiB")
    return 0


def _load(arguments: argparse.Namespace) -> int:
    cluster = load_cluster(arguments.name)
    for name in arguments.images or NAMES:
        print(loading.load(name, cluster))
    return 0


if __name__ == "__main__":
    sys.exit(main())
