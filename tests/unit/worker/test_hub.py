"""Fetching from a hub: the real client against a local server that speaks the hub's protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from dev.hub import Access, HubServer, Repository, serve
from tests.unit.worker.test_models import saved

from plimsoll_worker.errors import FetchFailed
from plimsoll_worker.launch import HubSource
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.hub import fetch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as a repository holds it, with files that the engine does not read."""
    folder = tmp_path_factory.mktemp("repository")
    saved("Llama", {}, folder, max_shard_size="50KB")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "hi": 1}, unk_token="<unk>"))
    words.save(str(folder / "tokenizer.json"))
    (folder / "onnx").mkdir()
    for unread in ("README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors"):
        (folder / unread).write_bytes(b"not for the engine")
    return folder


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[HubServer]:
    repositories = [
        Repository.from_folder("org/open", folder),
        Repository.from_folder("org/gated", folder, Access.GATED),
    ]
    with serve(repositories) as server:
        yield server


@pytest.fixture(autouse=True)
def endpoint(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def source(hub: HubServer, name: str) -> HubSource:
    return HubSource(repo=name, commit=hub.repositories[name].commit)


def test_only_what_the_engine_reads_is_fetched(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    fetch(source(hub, "org/open"), tmp_path)
    found = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"}
    wanted |= {path.name for path in folder.glob("model-*.safetensors")}
    assert found == wanted
    assert open_checkpoint(tmp_path).config.layer_count == 3


def test_what_was_cut_off_is_fetched_again(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    fetch(source(hub, "org/open"), tmp_path)
    victim = min(tmp_path.glob("model-*.safetensors"))
    whole = victim.read_bytes()
    victim.unlink()
    fetch(source(hub, "org/open"), tmp_path)
    assert victim.read_bytes() == whole


def test_a_gated_repository_wants_a_token(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dev.hub.server import TOKEN

    with pytest.raises(FetchFailed, match=r"org/gated at .*credentialsSecretRef"):
        fetch(source(hub, "org/gated"), tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch(source(hub, "org/gated"), tmp_path)
    assert (tmp_path / "config.json").exists()


def test_a_missing_repository_and_a_missing_commit_are_told(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match=r"org/none at .*no such repository"):
        fetch(HubSource(repo="org/none", commit="0" * 40), tmp_path)
    with pytest.raises(FetchFailed, match=r"org/open at .*no such commit"):
        fetch(HubSource(repo="org/open", commit="0" * 40), tmp_path)


def test_an_unreachable_hub_is_told(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's five tries
    with pytest.raises(FetchFailed, match="org/open at "):
        fetch(source(hub, "org/open"), tmp_path)
