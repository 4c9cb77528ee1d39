"""Fetches a model from a Hugging Face compatible hub: resumable, checked, only the files the engine reads.

`huggingface_hub` does the work (HF_ENDPOINT, HF_TOKEN, resume, checksums); this module says which files,
tells how far it is, and turns the client's many errors into FetchFailed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from plimsoll_worker.errors import FetchFailed
from plimsoll_worker.launch import HubSource
from plimsoll_worker.progress import say

WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "*.safetensors",
    "model.safetensors.index.json",
)
UNWANTED = ("*/*", "consolidated*")
"""Sub-folders hold other formats; `consolidated` is Mistral's second copy of the same weights."""

TELL_SECONDS = 5.0


def fetch(source: HubSource, folder: Path) -> None:
    """Bring the files of `source` into `folder`; what is there already and whole is not fetched again.

    Raises FetchFailed.
    """
    say("Fetching", repo=source.repo, commit=source.commit, folder=folder)
    try:
        huggingface_hub.snapshot_download(
            source.repo,
            revision=source.commit,
            local_dir=folder,
            allow_patterns=list(WANTED),
            ignore_patterns=list(UNWANTED),
            tqdm_class=_Teller,
            endpoint=os.environ.get("HF_ENDPOINT") or None,
        )
    except Exception as error:  # the client raises its own, the HTTP library's and the system's errors
        raise FetchFailed(f"{source.repo} at {source.commit}: {_explain(error)}") from error
    if not (folder / "config.json").exists():
        raise FetchFailed(f"{source.repo} at {source.commit}: the repository has no config.json at its root")


def _explain(error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return "the repository is gated; accept its terms and give a token in spec.model.credentialsSecretRef"
    if isinstance(error, RevisionNotFoundError):
        return "the hub has no such commit"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such repository, or it is private; set spec.model.credentialsSecretRef"
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered: {error}"
    return f"{type(error).__name__}: {error}"


class _Teller(tqdm):
    """Progress as one line every few seconds: a pod's log has no cursor to move."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("name", None)
        kwargs["disable"] = False
        kwargs["mininterval"] = TELL_SECONDS
        self._said = time.monotonic()
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # noqa: ARG002 - tqdm's signature
        now = time.monotonic()
        if self.unit == "B" and self.n and now - self._said >= TELL_SECONDS:
            self._said = now
            say("Fetching", file=(self.desc or "").strip(), bytes=int(self.n), total=int(self.total or 0))
        return True
