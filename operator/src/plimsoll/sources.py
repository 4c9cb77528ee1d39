"""Opens what a user points at: a folder, a file, or a repository of a hub. The I/O around the pure readers.

hf://org/repo[@revision]     HubSource     headers by range requests; HF_ENDPOINT and HF_TOKEN are honoured
anything else                LocalSource   a folder, or one file of it
"""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from plimsoll.model.errors import (
    AccessDenied,
    FileUnreadable,
    FormatUnsupported,
    HubUnreachable,
    ModelNotFound,
)
from plimsoll.model.source import Source

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import ModelInfo

HUB_SCHEME = "hf://"
ATTEMPTS = 5
LONGEST_WAIT_SECONDS = 30.0
TIMEOUT_SECONDS = 30.0
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_Answer = TypeVar("_Answer")


def open_source(text: str) -> Source:
    """The source that `text` names. Raises ModelNotFound when nothing is there."""
    if text.startswith(HUB_SCHEME):
        repo, _, revision = text.removeprefix(HUB_SCHEME).partition("@")
        if not _REPO.fullmatch(repo):
            raise ModelNotFound(f"{text}: expected hf://organisation/repository[@revision]")
        return HubSource(repo, revision)
    if "://" in text:
        raise ModelNotFound(f"{text}: expected hf://organisation/repository[@revision] or a path")
    return LocalSource(Path(text))


class LocalSource:
    """A folder, or one file of it with its neighbours in reach."""

    commit: str | None = None

    def __init__(self, path: Path) -> None:
        try:
            if not path.exists():
                raise ModelNotFound(f"{path}: no such file or folder")
            self._folder = path if path.is_dir() else path.parent
            self.entry = "" if path.is_dir() else path.name
        except PermissionError as error:
            raise AccessDenied(f"{path}: {error.strerror}") from error
        if self.entry and not self.entry.endswith((".gguf", ".safetensors", ".json")):
            raise FormatUnsupported(
                f"{path}: expected a folder, config.json, *.safetensors, *.safetensors.index.json or *.gguf"
            )

    @cached_property
    def _sizes(self) -> Mapping[str, int]:
        try:
            # Only the folder itself: a volume may hold many models, and checkpoints lie flat.
            return {item.name: item.stat().st_size for item in self._folder.iterdir() if item.is_file()}
        except PermissionError as error:
            raise AccessDenied(f"{self._folder}: {error.strerror}") from error
        except OSError as error:
            raise FileUnreadable(f"{self._folder}: {error.strerror}") from error

    def files(self) -> Mapping[str, int]:
        return self._sizes

    def read(self, name: str, start: int, length: int) -> bytes:
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except PermissionError as error:
            raise AccessDenied(f"{name}: {error.strerror}") from error
        except OSError as error:
            raise FileUnreadable(f"{name}: {error.strerror}") from error


class HubSource:
    """A model repository of a Hugging Face compatible hub, at one commit, read through `huggingface_hub`.

    A hub that asks for patience (429, 5xx) is asked again after the time it names, `ATTEMPTS` times in all.
    """

    entry = ""

    def __init__(
        self,
        repo: str,
        revision: str = "",
        *,
        endpoint: str | None = None,
        token: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._repo = repo
        self._revision = revision or "main"
        self._endpoint = endpoint or os.environ.get("HF_ENDPOINT") or None
        self._token = token or os.environ.get("HF_TOKEN") or None
        self._sleep = sleep

    @property
    def commit(self) -> str:
        """The commit that the revision stood for when it was first asked. Raises ModelError."""
        found = self._info.sha
        if not found:
            raise HubUnreachable(f"hf://{self._repo}: the hub names no commit for {self._revision}")
        return found

    def files(self) -> Mapping[str, int]:
        return {file.rfilename: file.size or 0 for file in self._info.siblings or ()}

    @cached_property
    def _info(self) -> ModelInfo:
        _require_hub_package()
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self._endpoint, token=self._token)
        return self._patiently(
            lambda: api.model_info(
                self._repo, revision=self._revision, files_metadata=True, timeout=TIMEOUT_SECONDS
            )
        )

    def read(self, name: str, start: int, length: int) -> bytes:
        return self._patiently(lambda: self._range(name, start, length)) if length else b""

    def _range(self, name: str, start: int, length: int) -> bytes:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but re-exported plainly
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        url = hf_hub_url(self._repo, name, revision=self.commit, endpoint=self._endpoint)
        headers = build_hf_headers(token=self._token) | {"Range": f"bytes={start}-{start + length - 1}"}
        data = bytearray()
        # Streamed: a server that ignores the range would otherwise send the whole checkpoint.
        with http_stream_backoff(
            "GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_SECONDS, max_retries=0
        ) as response:
            hf_raise_for_status(response)
            if response.status_code != 206 and start:
                raise HubUnreachable(f"{url}: the hub does not answer range requests")
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) >= length:
                    break
        return bytes(data[:length])

    def _patiently(self, call: Callable[[], _Answer]) -> _Answer:
        from huggingface_hub.errors import HfHubHTTPError

        # The library has changed its HTTP client before; the base of its own error is that of the transport.
        transport: type[Exception] = HfHubHTTPError.__mro__[1]
        wait = 1.0
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except HfHubHTTPError as error:
                status = error.response.status_code
                if status != 429 and status < 500:
                    raise self._refusal(error) from error
                reason: Exception = error
                wait = _retry_after(error) or wait
            except (transport, OSError) as error:
                reason = error
            if attempt < ATTEMPTS:
                self._sleep(min(wait, LONGEST_WAIT_SECONDS))
                wait *= 2
        where = self._endpoint or "huggingface.co"
        raise HubUnreachable(
            f"hf://{self._repo}: {where} failed {ATTEMPTS} times: {_first_line(reason)}"
        ) from reason

    def _refusal(self, error: HfHubHTTPError) -> AccessDenied | ModelNotFound:
        from huggingface_hub import errors

        name, status = f"hf://{self._repo}", error.response.status_code
        if isinstance(error, errors.GatedRepoError):
            return AccessDenied(f"{name}: gated; accept its terms on the hub and give a token in HF_TOKEN")
        if isinstance(error, errors.RevisionNotFoundError):
            return ModelNotFound(f"{name}: no revision {self._revision!r}")
        if isinstance(error, errors.RepositoryNotFoundError):
            hint = "" if self._token else ", or it is private: give a token in HF_TOKEN"
            return ModelNotFound(f"{name}: no such repository{hint}")
        if isinstance(error, errors.EntryNotFoundError):
            return ModelNotFound(
                f"{name}: a file that the repository lists is not there: {error.response.url}"
            )
        if status in (401, 403):
            return AccessDenied(f"{name}: the hub refuses the token ({status})")
        return ModelNotFound(f"{name}: the hub answers {status}: {_first_line(error)}")


def _require_hub_package() -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise HubUnreachable("hf:// needs the huggingface_hub package: pip install 'plimsoll[operator]'")


def _retry_after(error: HfHubHTTPError) -> float | None:
    value = error.response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
