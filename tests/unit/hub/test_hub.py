"""The local hub, asked by the real `huggingface_hub` client and by our own source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from dev.hub.repository import Access, Repository
from dev.hub.server import TOKEN, HubServer, serve
from dev.hub.well_known import generate, well_known
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from tests.unit.model import crafted
from tests.unit.model.test_read import checkpoint

from plimsoll.model.errors import AccessDenied, FileTruncated, HubUnreachable, ModelNotFound
from plimsoll.model.read import read_facts
from plimsoll.sources import ATTEMPTS, HubSource, open_source

QWEN = "Qwen/Qwen3-8B"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in checkpoint().items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "params.json").write_text("{}")
    return tmp_path


@pytest.fixture
def hub(folder: Path) -> Iterator[HubServer]:
    repositories = [
        well_known(QWEN),
        Repository.from_folder("tiny/llama", folder),
        Repository.from_folder("tiny/gated", folder, Access.GATED),
        Repository.from_folder("tiny/private", folder, Access.PRIVATE),
    ]
    with serve(repositories) as server:
        yield server


def source(hub: HubServer, repo: str, revision: str = "", token: str | None = None) -> HubSource:
    """A source whose waits are noted and not waited."""
    return HubSource(repo, revision, endpoint=hub.url, token=token, sleep=[].append)


def test_the_client_downloads_a_snapshot_byte_for_byte(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    target = Path(snapshot_download("tiny/llama", endpoint=hub.url, local_dir=tmp_path / "copy"))
    for name in ("config.json", "model.safetensors", "original/params.json"):
        assert (target / name).read_bytes() == (folder / name).read_bytes()


def test_the_client_reads_headers_of_a_model_nobody_stored(hub: HubServer) -> None:
    metadata = HfApi(endpoint=hub.url).get_safetensors_metadata(QWEN)
    assert metadata.parameter_count == {"BF16": 8_190_735_360}
    assert len(metadata.files_metadata) == 4


def test_facts_over_http_are_those_of_the_files_and_cost_kilobytes(hub: HubServer) -> None:
    facts = read_facts(source(hub, QWEN))
    assert (facts.parameters, facts.checkpoint_bytes) == (8_190_735_360, 16_381_470_720)
    assert facts.revision == hub.repositories[QWEN].commit
    ranges = [request.range for request in hub.requests if "/resolve/" in request.path]
    assert ranges
    assert all(asked is not None for asked in ranges)


def test_a_commit_is_a_revision_and_anything_else_is_not_found(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.repositories[QWEN].commit
    assert read_facts(source(hub, QWEN, commit)).revision == commit
    with pytest.raises(ModelNotFound, match="no revision 'v2'"):
        read_facts(source(hub, QWEN, "v2"))
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(QWEN, "config.json", revision="v2", endpoint=hub.url, cache_dir=tmp_path)


def test_a_gated_repository_wants_a_token(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(AccessDenied, match="hf://tiny/gated: gated"):
        read_facts(source(hub, "tiny/gated"))
    with pytest.raises(AccessDenied, match="gated"):
        read_facts(source(hub, "tiny/gated", token="hf_wrong"))
    assert read_facts(source(hub, "tiny/gated", token=TOKEN)).architecture == "llama"
    with pytest.raises(GatedRepoError):
        hf_hub_download("tiny/gated", "config.json", endpoint=hub.url, cache_dir=tmp_path)
    assert Path(
        hf_hub_download("tiny/gated", "config.json", endpoint=hub.url, cache_dir=tmp_path, token=TOKEN)
    ).exists()


def test_the_token_comes_from_the_environment(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read_facts(open_source("hf://tiny/private")).architecture == "llama"
    assert all(request.authorised for request in hub.requests)


@pytest.mark.parametrize("repo", ["tiny/private", "tiny/none"])
def test_what_may_not_be_seen_does_not_exist(hub: HubServer, repo: str) -> None:
    with pytest.raises(ModelNotFound, match="no such repository, or it is private: give a token in HF_TOKEN"):
        read_facts(source(hub, repo))
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url).model_info(repo)


def test_a_hub_that_asks_for_patience_is_asked_again_when_it_says(hub: HubServer) -> None:
    waits: list[float] = []
    hub.throttle(3, retry_after=7)
    facts = read_facts(HubSource(QWEN, endpoint=hub.url, sleep=waits.append))
    assert facts.parameters == 8_190_735_360
    assert waits == [7.0, 7.0, 7.0]


def test_a_range_request_is_retried_as_well(hub: HubServer) -> None:
    waits: list[float] = []
    asked = HubSource(QWEN, endpoint=hub.url, sleep=waits.append)
    assert asked.commit
    hub.throttle(2)
    assert asked.read("config.json", 0, 1) == b"{"
    assert len(waits) == 2


def test_patience_ends(hub: HubServer) -> None:
    waits: list[float] = []
    hub.throttle(100, retry_after=500)
    with pytest.raises(HubUnreachable, match=f"failed {ATTEMPTS} times: .*429"):
        read_facts(HubSource(QWEN, endpoint=hub.url, sleep=waits.append))
    assert len(waits) == ATTEMPTS - 1
    assert max(waits) <= 30


def test_a_hub_that_is_not_there_is_unreachable(hub: HubServer) -> None:
    url = hub.url
    hub.close()
    with pytest.raises(HubUnreachable, match=f"hf://{QWEN}: {url} failed"):
        read_facts(HubSource(QWEN, endpoint=url, sleep=[].append))


def test_virtual_zeros_follow_the_header(hub: HubServer) -> None:
    asked = source(hub, QWEN)
    name = "model-00001-of-00004.safetensors"
    size = asked.files()[name]
    assert size > 4_000_000_000
    assert asked.read(name, size - 10, 100) == bytes(10)
    assert asked.read(name, 0, 8) != bytes(8)


def test_a_file_that_ends_early_on_the_hub_is_named(tmp_path: Path) -> None:
    for name, data in checkpoint().items():
        (tmp_path / name).write_bytes(data[:-100] if name.endswith(".safetensors") else data)
    with serve([Repository.from_folder("tiny/cut", tmp_path)]) as server, pytest.raises(FileTruncated):
        read_facts(source(server, "tiny/cut"))


@pytest.mark.parametrize(
    "text", ["hf://", "hf://one", "hf://a/b/c", "hf://../etc/passwd", "s3://bucket/model"]
)
def test_an_address_that_is_none_says_what_to_write(text: str) -> None:
    with pytest.raises(ModelNotFound, match=r"expected hf://organisation/repository\[@revision\]"):
        open_source(text)


def test_generated_shards_list_every_tensor_once() -> None:
    repository = generate("a/b", {**crafted.LLAMA, "vocab_size": 2_000_000, "hidden_size": 4096})
    index = json.loads(repository.files["model.safetensors.index.json"].read(0, 10**7))
    shards = [name for name in repository.files if name.endswith(".safetensors")]
    assert len(shards) > 1
    assert set(index["weight_map"].values()) == set(shards)
    headers = sum(len(repository.files[name].content) for name in shards)  # type: ignore[attr-defined]
    assert sum(repository.files[name].size for name in shards) == index["metadata"]["total_size"] + headers
