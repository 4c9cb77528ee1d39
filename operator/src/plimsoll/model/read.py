"""One way in: a source, whatever it holds → ModelFacts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from plimsoll.model import gguf, safetensors
from plimsoll.model.architectures import FAMILIES
from plimsoll.model.assemble import assemble, assemble_closed_form
from plimsoll.model.config_json import (
    MAX_CONFIG_BYTES,
    architecture_of,
    blueprint_of,
    parse_config,
    read_fields,
)
from plimsoll.model.errors import FileUnreadable, FormatUnsupported, ModelNotFound
from plimsoll.model.facts import ModelFacts
from plimsoll.model.gguf_metadata import blueprint as gguf_blueprint
from plimsoll.model.gguf_metadata import renamed
from plimsoll.model.source import Source, read_whole
from plimsoll.model.unnamed import blueprint_from

CONFIG = "config.json"
_PICKLES = (".bin", ".pt", ".pth")


def read_facts(source: Source) -> ModelFacts:
    """What the model at `source` is. Raises ModelError.

    A folder or repository is safetensors when it holds any, else a GGUF when it holds exactly one. A
    config.json that was pointed at itself is sized by closed form, without weights.
    """
    entry = source.entry
    if entry.endswith(".gguf"):
        return _read_gguf(source, entry)
    if entry.endswith(".safetensors.index.json"):
        return _read_safetensors(source, safetensors.index_files(source, entry), _beside(entry))
    if entry.endswith(".safetensors"):
        return _read_safetensors(source, (entry,), _beside(entry))
    if entry:
        return _read_config(source, entry)
    files = source.files()
    if any(name.endswith(".safetensors") and "/" not in name for name in files):
        return _read_safetensors(source, safetensors.checkpoint_files(source), CONFIG)
    return _read_gguf(source, _only_gguf(files))


def _only_gguf(files: Mapping[str, int]) -> str:
    found = sorted(name for name in files if name.endswith(".gguf"))
    if len(found) == 1:
        return found[0]
    if found:
        raise FormatUnsupported(
            f"{len(found)} GGUF files: {', '.join(found[:8])}; point at one of them, or keep only one"
        )
    pickled = sorted(name for name in files if name.endswith(_PICKLES))
    if pickled:
        raise FormatUnsupported(f"{pickled[0]}: pickled weights are not read; convert them to safetensors")
    listed = ", ".join(sorted(files)[:8]) or "no files at all"
    raise ModelNotFound(f"no *.safetensors and no *.gguf file; found {listed}")


def _read_gguf(source: Source, name: str) -> ModelFacts:
    header = gguf.read_header(source, name)
    return assemble(
        gguf_blueprint(header, name),
        renamed(header.tensors),
        naming="gguf",
        where=name,
        revision=source.commit or _revision({name: header.digest.encode()}, source.files()),
        file=name,
    )


def _read_safetensors(source: Source, names: tuple[str, ...], config: str) -> ModelFacts:
    raw_config = _config(source, config)
    fields = read_fields(raw_config, config)
    architecture = architecture_of(fields)
    # A known family is held against its row before any header is fetched.
    blueprint = blueprint_of(fields) if architecture in FAMILIES else None
    tensors, headers = safetensors.read_tensors(source, names)
    blueprint = blueprint or blueprint_from(fields, tensors, architecture)
    return assemble(
        blueprint,
        tensors,
        naming="safetensors",
        where=names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more",
        revision=source.commit or _revision({config: raw_config, **headers}, source.files()),
    )


def _read_config(source: Source, name: str) -> ModelFacts:
    raw = _config(source, name)
    revision = source.commit or _revision({name: raw}, source.files())
    return assemble_closed_form(parse_config(raw, name), where=name, revision=revision)


def _config(source: Source, name: str) -> bytes:
    if name not in source.files():
        raise FileUnreadable(f"{name}: missing; the hyper-parameters beside the weights are read from it")
    return read_whole(source, name, MAX_CONFIG_BYTES)


def _beside(entry: str) -> str:
    folder = entry.rpartition("/")[0]
    return f"{folder}/{CONFIG}" if folder else CONFIG


def _revision(headers: Mapping[str, bytes], sizes: Mapping[str, int]) -> str:
    """A name for the content of files: SHA-256 over names, sizes and headers, fit for a Kubernetes label."""
    digest = hashlib.sha256()
    for name in sorted(headers):
        digest.update(f"{name}\0{sizes[name]}\0{hashlib.sha256(headers[name]).hexdigest()}\n".encode())
    return f"sha256-{digest.hexdigest()[:40]}"
