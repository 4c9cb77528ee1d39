"""Tokenizers built from GGUF metadata or read from a folder, and chat templates."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers.utils.chat_template_utils import render_jinja_template

from plimsoll_worker.errors import ModelNotFound, ModelUnreadable, ModelUnsupported
from plimsoll_worker.loading.chat_template import (
    RENDER_CPU_SECONDS,
    ChatTemplate,
    ChatTemplateError,
)
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.gguf_tokenizer import tokenizer_from_gguf
from plimsoll_worker.loading.tokenizer import Tokenizer, tokenizer_from_folder

TRICKY = [
    "",
    " ",
    "hello world",
    "  leading and trailing  ",
    "don't  we'LL\t\ttab",
    "\r\n a\n\n\n",
    "a1b22c333",
    "日本語のテキスト",
    "naïve café Ω ≠ ß",
    "emoji 😀👨‍👩‍👧 end",
    "e\u0301 combining",
    "\u00a0no\u2009break\u200b",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start|><|im_start|>",
    "<|im_sta",
    "snake_case camelCase SCREAMING",
    "https://example.com/?a=b&c=%20d",
    "()[]{}!?.,;:'\"`~@#$%^&*-+=|\\/",
    "\x00\x07control",
    "x" * 300,
]
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be <brief> & kind."}, {"role": "user", "content": "2 + 2?\n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "{{ c }}"},
    ],
]


@pytest.mark.parametrize("text", TRICKY, ids=range(len(TRICKY)))
def test_gguf_tokens_are_transformers_tokens(text: str, tokenizer: Tokenizer, hf_tokenizer: Any) -> None:
    ids = tokenizer.encode(text)
    assert ids == hf_tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_smollm_splits_digits_before_blanks(tokenizer: Tokenizer) -> None:
    # The model was trained with digits split off first (llama.cpp: LLAMA_VOCAB_PRE_TYPE_SMOLLM), so a run of
    # blanks before a number stays one piece. transformers' GGUF reader does not know this split.
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("a  12")]
    assert pieces == ["a", "  ", "1", "2"]


@pytest.mark.parametrize("chat", CHATS, ids=["one turn", "system", "several turns"])
def test_the_models_chat_template_renders_as_in_transformers(
    chat: list[dict[str, str]], tokenizer: Tokenizer, hf_tokenizer: Any
) -> None:
    assert tokenizer.chat_template is not None
    expected = hf_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert tokenizer.chat_template.render(chat) == expected


TEMPLATES = {
    "blocks trimmed": "{% for m in messages %}\n  {% if m.name %}\n{{ m }}\n  {% endif %}\n-\n{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "special tokens": "{{ bos_token }}{{ messages[0]['content'] | trim }}{{ eos_token }}",
    "namespace": "{% set s = namespace(n=0) %}{% for m in messages %}{% set s.n = 1 %}{% endfor %}{{ s.n }}",
    "loop controls": "{% for m in messages %}{{ m }}{% if loop.index0 %}{% break %}{% endif %}{% endfor %}",
    "generation block": "{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% endfor %}",
    "generation prompt": "{% if add_generation_prompt %}<assistant>{% endif %}{{ tools is none }}",
    "date": "{{ strftime_now('%Y') | length }}",
    "variables": "{{ enable_thinking | default(false) }}",
}


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("chat", CHATS, ids=["one turn", "system", "several turns"])
def test_templates_render_as_in_transformers(source: str, chat: list[dict[str, str]]) -> None:
    special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    variables = {"enable_thinking": True}
    expected, _ = render_jinja_template(
        [chat], chat_template=source, add_generation_prompt=True, **special_tokens, **variables
    )
    assert ChatTemplate(source, special_tokens).render(chat, variables) == expected[0]


def test_a_template_may_refuse_the_messages() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        template.render(CHATS[0])


@pytest.mark.parametrize("source", ["{{ '{0}'.format() }}", "{{ messages[0]['name'].upper() }}"])
def test_a_template_that_breaks_on_the_messages_refuses_them(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="refuses these messages"):
        ChatTemplate(source, {}).render(CHATS[0])


BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "product": "{{ 'a' * 10 ** 11 }}",
    "list": "{{ [0] * 10 ** 11 }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "adding": "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "power": "{{ 9 ** 9999999 }}",
    "output": "{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_a_template_takes_neither_time_nor_memory_without_end(source: str) -> None:
    began = time.process_time()
    with pytest.raises(ChatTemplateError, match="refuses these messages"):
        ChatTemplate(source, {}).render(CHATS[0])
    assert time.process_time() - began < 2 * RENDER_CPU_SECONDS


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages.__init__.__globals__ }}"],
    ids=["class", "mutation", "globals"],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source, {}).render(CHATS[0])


def sentencepiece_metadata() -> dict[str, Any]:
    """A small SentencePiece BPE vocabulary as llama.cpp stores it."""
    pieces = [
        "▁",
        "h",
        "e",
        "l",
        "o",
        "w",
        "r",
        "d",
        "he",
        "ll",
        "hell",
        "hello",
        "▁hello",
        "▁w",
        "or",
        "▁wor",
        "ld",
    ]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    learned = 3 + 256
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * learned + [-float(rank) for rank in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.mark.parametrize("text", ["hello world", " hello", "held", "é hello\n", "</s>hello", "", "  two"])
def test_sentencepiece_tokens_are_transformers_tokens(text: str) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

    metadata = sentencepiece_metadata()
    theirs, _ = convert_gguf_tokenizer(
        "llama",
        {
            "tokenizer_type": "llama",
            **{key: metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")},
        },
    )
    ours = tokenizer_from_gguf(metadata, Path("m.gguf"))
    ids = ours.encode(text, add_special_tokens=False)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.encode(text) == [1, *ids]


def test_an_unknown_split_is_refused_by_its_key() -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "new-one",
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.merges": ["a a"],
    }
    with pytest.raises(ModelUnsupported, match=r"m\.gguf: tokenizer\.ggml\.pre is 'new-one'"):
        tokenizer_from_gguf(metadata, Path("m.gguf"))
    with pytest.raises(ModelUnsupported, match=r"tokenizer\.ggml\.model is 'bert'"):
        tokenizer_from_gguf({**metadata, "tokenizer.ggml.model": "bert"}, Path("m.gguf"))
    with pytest.raises(ModelUnreadable, match=r"tokenizer\.ggml\.tokens is missing"):
        tokenizer_from_gguf({"tokenizer.ggml.model": "gpt2"}, Path("m.gguf"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """tokenizer.json of three words."""
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<unk>": 0, "<eos>": 1, "hi": 2}, unk_token="<unk>")
    )
    words.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_special_tokens_and_template_come_from_tokenizer_config(folder: Path) -> None:
    settings = {
        "eos_token": {"content": "<eos>", "lstrip": False},
        "chat_template": "{{ messages[0].content }}{{ eos_token }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = tokenizer_from_folder(folder)
    assert tokenizer.eos_token_ids == {1}
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.render(CHATS[0]) == "Hi<eos>"


def test_a_template_file_goes_before_tokenizer_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    (folder / "chat_template.jinja").write_text("new")
    tokenizer = tokenizer_from_folder(folder)
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.render(CHATS[0]) == "new"


def test_of_named_templates_the_default_is_taken(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    tokenizer = tokenizer_from_folder(folder)
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.source == "d"


def test_damaged_and_missing_files_are_named(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelUnreadable, match="does not compile"):
        tokenizer_from_folder(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelUnreadable, match=r"tokenizer\.json"):
        tokenizer_from_folder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json is missing"):
        tokenizer_from_folder(folder)


def test_a_folders_tokenizer_is_the_same_as_the_gguf_files(
    smollm2_folder: Path, tokenizer: Tokenizer
) -> None:
    loaded = open_checkpoint(smollm2_folder).tokenizer()
    assert [loaded.encode(text) for text in TRICKY] == [tokenizer.encode(text) for text in TRICKY]
