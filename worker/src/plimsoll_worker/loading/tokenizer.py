"""Text to token ids and back, and the chat template: what a model folder or GGUF file says about its
language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from plimsoll_worker.errors import ModelNotFound, ModelUnreadable
from plimsoll_worker.loading.chat_template import ChatTemplate, ChatTemplateError
from plimsoll_worker.loading.json_file import read_json


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A model's tokenizer. Thread-safe: the backend is immutable."""

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """bos_token, eos_token and the like."""
    chat_template: ChatTemplate | None = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the tokens the model wants around a text (BOS, say) unless told
        otherwise."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are no whole character become U+FFFD."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest entry of the vocabulary: no token stands for more text."""
        return max(map(len, self.backend.get_vocab(with_added_tokens=True)), default=1)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The id of eos_token, if the tokenizer names one."""
        token = self.special_tokens.get("eos_token")
        found = self.backend.token_to_id(token) if token else None
        return frozenset() if found is None else frozenset({found})


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """tokenizer.json, with chat template and special tokens from the files beside it.

    Raises ModelNotFound when there is no tokenizer.json, ModelUnreadable when a file is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise ModelNotFound(
            f"{folder}: tokenizer.json is missing; write it with transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise ModelUnreadable(f"{path}: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.exists() else {}
    special_tokens = _special_tokens(settings)
    source = _template_source(folder, settings)
    return Tokenizer(
        backend=backend,
        special_tokens=special_tokens,
        chat_template=compile_template(source, special_tokens, folder) if source else None,
    )


def compile_template(source: str, special_tokens: Mapping[str, str], where: Path) -> ChatTemplate:
    """The chat template, compiled. Raises ModelUnreadable naming the file it came with."""
    try:
        return ChatTemplate(source, special_tokens)
    except ChatTemplateError as error:
        raise ModelUnreadable(f"{where}: {error}") from error


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Names and texts: an entry is either the text or an object with `content`."""
    found = {}
    for name, value in settings.items():
        if not name.endswith("_token"):
            continue
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _template_source(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """chat_template.jinja before tokenizer_config.json; of several named templates, the one called
    default."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    source = settings.get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, Mapping)}
        source = named.get("default")
    return source if isinstance(source, str) else None
