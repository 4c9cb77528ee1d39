"""The project's two images, by layers that change less and less often from top to bottom."""

from __future__ import annotations

from dev.image import base, code, dependencies
from dev.image.layers import Image

OPERATOR = "plimsoll.dev/operator:dev"
WORKER = "plimsoll.dev/worker:dev"


def operator() -> Image:
    """The operator, and the `plimsoll` command line for inspect pods."""
    layers = (base.layer(), dependencies.layer("operator"), code.layer([code.OPERATOR, code.WORKER]))
    return Image(OPERATOR, layers, _config("plimsoll"))


def worker() -> Image:
    """The inference engine."""
    layers = (base.layer(), dependencies.layer("worker"), code.layer([code.WORKER]))
    return Image(WORKER, layers, _config("plimsoll_worker"))


def _config(module: str) -> dict[str, object]:
    environment = {
        "PATH": "/usr/local/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
    }
    return {
        "Entrypoint": ["python", "-m", module],
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "User": f"{base.USER}:{base.USER}",
        "WorkingDir": "/",
    }
