"""The image of the container that holds a pod's namespaces open."""

from __future__ import annotations

import hashlib

from dev.cluster.binaries import binary
from dev.image.layers import EXECUTABLE, Entry, Image, Layer

NAME = "plimsoll.dev/pause:dev"


def image() -> Image:
    """One static binary and nothing else."""
    program = binary("pause")
    key = "pause-" + hashlib.sha256(program.read_bytes()).hexdigest()
    layer = Layer(key, lambda: [Entry("pause", program, EXECUTABLE)])
    return Image(NAME, (layer,), {"Entrypoint": ["/pause"], "User": "65535:65535"})
