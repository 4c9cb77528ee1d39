"""SmolLM2's tokenizer with the marks and a chat template of a family that calls functions."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

from plimsoll_worker.loading.chat_template import ChatTemplate
from plimsoll_worker.loading.tokenizer import Tokenizer

UNUSED = ("<jupyter_start>", "<jupyter_text>")
"""Tokens of SmolLM2 that no test needs; they become marks."""

TURNS = r"""
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- OPENS }}{{ call.function | tojson }}{{ CLOSES }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}
"""


def _template(offer: str, opens: str, closes: str) -> str:
    """`offer`: what stands around the tools (…); the others stand around each call."""
    before, after = offer.split("…")
    system = (
        f"{{%- if tools %}}{{{{- {before!r} }}}}{{{{- tools | tojson }}}}{{{{- {after!r} }}}}{{%- endif %}}"
    )
    return system + TURNS.replace("OPENS", repr(opens)).replace("CLOSES", repr(closes))


TEMPLATES = {
    "Hermes": _template(
        '<|im_start|>system\nCall one of … within <tool_call></tool_call> by its "arguments"<|im_end|>\n',
        "<tool_call>\n",
        "\n</tool_call>",
    ),
    "Llama 3.1": _template('Environment: ipython\n… as {"name": name, "parameters": object}\n', "", ""),
    "Mistral": _template("[AVAILABLE_TOOLS]…[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", ""),
}
MARKS = {"Hermes": ("<tool_call>", "</tool_call>"), "Llama 3.1": (), "Mistral": ("[TOOL_CALLS]",)}


def tokenizer_json(tokenizer: Tokenizer, family: str) -> str:
    """tokenizer.json in which unused tokens are the family's marks."""
    content = json.loads(tokenizer.backend.to_str())
    for unused, mark in zip(UNUSED, MARKS[family], strict=False):
        content["model"]["vocab"][mark] = content["model"]["vocab"].pop(unused)
        for added in content["added_tokens"]:
            if added["content"] == unused:
                added["content"] = mark
    return json.dumps(content)


def tool_tokenizer(tokenizer: Tokenizer, family: str) -> Tokenizer:
    """As a model of the family has it."""
    return Tokenizer(
        backend=tokenizers.Tokenizer.from_str(tokenizer_json(tokenizer, family)),
        special_tokens=tokenizer.special_tokens,
        chat_template=ChatTemplate(TEMPLATES[family], tokenizer.special_tokens),
    )


def tool_folder(smollm2: Path, tokenizer: Tokenizer, family: str, folder: Path) -> Path:
    """The model of the folder `smollm2`, in a folder of its own, with the family's language."""
    for file in smollm2.iterdir():
        if file.name not in ("tokenizer.json", "chat_template.jinja"):
            (folder / file.name).symlink_to(file)
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer, family), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATES[family], encoding="utf-8")
    return folder
