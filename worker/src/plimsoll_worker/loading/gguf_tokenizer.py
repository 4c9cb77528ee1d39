"""Builds a tokenizer from GGUF metadata, where there is no tokenizer.json to load.

Two kinds cover the llama family: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`). How text is split
before BPE is not in the file: `tokenizer.ggml.pre` names it, and the splits are in llama.cpp's source
(llama-vocab.cpp). A name not listed here is refused, since a wrong split gives wrong tokens without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from plimsoll_worker.errors import ModelUnreadable, ModelUnsupported
from plimsoll_worker.loading.tokenizer import Tokenizer, compile_template

_CONTROL, _USER_DEFINED = 3, 4
"""Token types of llama.cpp: matched whole in a text; control tokens are not shown."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

WHOLE_WORD_FIRST = ("llama-bpe", "tekken")
"""Splits whose tokenizers look a whole word up before they merge (`ignore_merges` in tokenizer.json)."""


def _regex_split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_first() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


SPLITS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _byte_level,
    "smollm": _digits_first,
    "llama-bpe": lambda: _regex_split(_LLAMA3),
    "tekken": lambda: _regex_split(_TEKKEN),
    "qwen2": lambda: _regex_split(_QWEN2),
}


def tokenizer_from_gguf(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """The tokenizer that a GGUF file describes. Raises ModelUnreadable, ModelUnsupported naming the key."""
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _strings(metadata, "tokenizer.ggml.tokens", path)
    if kind == "gpt2":
        backend = _byte_level_bpe(metadata, tokens, path)
    elif kind == "llama":
        backend = _sentencepiece_bpe(metadata, tokens, path)
    else:
        raise ModelUnsupported(f"{path}: tokenizer.ggml.model is {kind!r}: this engine has gpt2 and llama")
    types = metadata.get("tokenizer.ggml.token_type") or []
    marked = [
        (token, type_)
        for token, type_ in zip(tokens, types, strict=False)
        if type_ in (_CONTROL, _USER_DEFINED)
    ]
    for token, type_ in marked:
        special = type_ == _CONTROL
        added = AddedToken(token, normalized=False, special=special)
        backend.add_special_tokens([added]) if special else backend.add_tokens([added])
    special_tokens = _special_tokens(metadata, tokens)
    if metadata.get("tokenizer.ggml.add_bos_token", kind == "llama") and "bos_token" in special_tokens:
        bos = special_tokens["bos_token"]
        backend.post_processor = processors.Sequence(
            [
                processors.TemplateProcessing(
                    single=f"{bos}:0 $A:0", pair=None, special_tokens=[(bos, backend.token_to_id(bos))]
                )
            ]
        )
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(
        backend=backend,
        special_tokens=special_tokens,
        chat_template=compile_template(template, special_tokens, path) if template else None,
    )


def _strings(metadata: Mapping[str, Any], key: str, path: Path) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value:
        raise ModelUnreadable(f"{path}: {key} is missing: the file carries no tokenizer")
    return value


def _special_tokens(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for key, name in names.items()}
    return {
        name: tokens[token] for name, token in ids.items() if isinstance(token, int) and token < len(tokens)
    }


def _byte_level_bpe(metadata: Mapping[str, Any], tokens: Sequence[str], path: Path) -> tokenizers.Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in SPLITS:
        known = ", ".join(SPLITS)
        raise ModelUnsupported(
            f"{path}: tokenizer.ggml.pre is {pre!r}: this engine knows how to split {known}"
        )
    merges = [_pair(merge) for merge in _strings(metadata, "tokenizer.ggml.merges", path)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in WHOLE_WORD_FIRST, fuse_unk=False)
    )
    backend.pre_tokenizer = SPLITS[pre]()
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentencepiece_bpe(
    metadata: Mapping[str, Any], tokens: Sequence[str], path: Path
) -> tokenizers.Tokenizer:
    """SentencePiece BPE has no merge list: a pair is merged when the vocabulary holds it, the best score
    first."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelUnreadable(
            f"{path}: tokenizer.ggml.scores is missing or does not match tokenizer.ggml.tokens"
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges_from_scores(vocabulary, scores),
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="first" if prefix else "never", split=False
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    return backend


def merges_from_scores(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All pairs of pieces that join to a piece, best score first (transformers, `generate_merges`)."""
    merges: list[tuple[str, str, float]] = []
    for piece, index in vocabulary.items():
        pairs = [
            (piece[:cut], piece[cut:], scores[index])
            for cut in range(1, len(piece))
            if piece[:cut] in vocabulary and piece[cut:] in vocabulary
        ]
        merges.extend(sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]])))
    merges.sort(key=lambda merge: (merge[2], len(merge[0]), len(merge[1])), reverse=True)
    return [(left, right) for left, right, _ in merges]
