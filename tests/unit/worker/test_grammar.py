"""What grammars leave open between the parts of JSON: what models write, and no room to go on for ever."""

from __future__ import annotations

import json

import pytest

from plimsoll_worker.engine.guide import Grammars
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.server.grammar import inline, of_rules

EOS = 2
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x"]}, "b": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
ANSWER = {"a": "x", "b": [1, 2]}
PLACES = 14
"""Where such an answer may have whitespace."""


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, vocabulary=49152, eos=[EOS])


@pytest.fixture(scope="module")
def grammar() -> str:
    return of_rules(f"start: %json {inline(SCHEMA, strict=True)}\n")


def may_come(allowed: bytes, token: int) -> bool:
    return bool(allowed[token // 8] >> token % 8 & 1)


WRITTEN = {
    "as Python does": json.dumps(ANSWER),
    "compact": json.dumps(ANSWER, separators=(",", ":")),
    "in lines": json.dumps(ANSWER, indent=2),
    "in lines, four blanks": json.dumps(ANSWER, indent=4),
    "in lines, tabs": json.dumps(ANSWER, indent="\t"),
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN.keys())
def test_json_may_be_laid_out_as_models_do(
    text: str, grammars: Grammars, grammar: str, tokenizer: Tokenizer
) -> None:
    guide = grammars.guide(grammar)
    allowed = guide.follow()
    for token in tokenizer.encode(text, add_special_tokens=False):
        assert may_come(allowed, token)
        allowed = guide.follow((token,))
    assert may_come(allowed, EOS)


@pytest.mark.parametrize("filler", [" ", "\n", "\t", "\n\t"], ids=["blanks", "lines", "tabs", "both"])
def test_a_model_that_likes_nothing_but_blanks_comes_to_an_end(
    filler: str, grammars: Grammars, grammar: str, tokenizer: Tokenizer
) -> None:
    blanks = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in filler]
    assert all(tokenizer.decode([token]).isspace() for token in blanks)
    guide = grammars.guide(grammar)
    answer: list[int] = []
    while answer[-1:] != [EOS]:
        allowed = guide.follow(answer[-1:])
        likes = (*blanks, *range(len(allowed) * 8))
        answer.append(next(token for token in likes if may_come(allowed, token)))
        assert len(answer) < 30 * PLACES
    written = tokenizer.decode(answer)
    assert json.loads(written)["a"] == "x"
    assert written.count("\n") <= PLACES


def test_there_is_one_indentation_at_a_place(grammars: Grammars, grammar: str, tokenizer: Tokenizer) -> None:
    line, blank, brace = (tokenizer.encode(text, add_special_tokens=False)[0] for text in ("\n", " ", "{"))
    guide = grammars.guide(grammar)
    guide.follow()
    assert may_come(guide.follow((brace,)), line)
    allowed = guide.follow((line,))
    for _ in range(20):
        assert may_come(allowed, blank)
        assert not may_come(allowed, line)
        allowed = guide.follow((blank,))
    assert not may_come(allowed, blank)
    assert not may_come(allowed, line)
