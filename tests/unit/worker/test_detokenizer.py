"""Text that comes in pieces is the text that comes whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.worker.test_tokenizer import TRICKY, sentencepiece_metadata

from plimsoll_worker.loading.gguf_tokenizer import tokenizer_from_gguf
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.server.detokenizer import Detokenizer, StopStrings


def pieces(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(token) for token in answer), detokenizer.flush()]


@pytest.mark.parametrize("text", TRICKY, ids=range(len(TRICKY)))
def test_pieces_join_to_the_text_and_hold_no_half_characters(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    came = pieces(tokenizer, tokenizer.encode("Prompt:"), ids)
    assert "".join(came) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in came)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(text: str) -> None:
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata(), Path("m.gguf"))
    ids = tokenizer.encode("hello" + text, add_special_tokens=False)
    prompt, answer = ids[:1], ids[1:]
    joined = tokenizer.decode(prompt) + "".join(pieces(tokenizer, prompt, answer))
    assert joined == tokenizer.decode(ids)


def test_a_word_keeps_the_blank_before_it_also_at_the_start_of_an_answer() -> None:
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata(), Path("m.gguf"))
    prompt, answer = (tokenizer.encode(text, add_special_tokens=False) for text in ("hello", "world"))
    assert "".join(pieces(tokenizer, prompt, answer)) == " world"


def test_an_answer_that_ends_within_a_character_says_so(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0001f9ff")
    assert len(ids) > 1
    assert "".join(pieces(tokenizer, [], ids[:-1])).endswith("\ufffd")


class Decoding(Tokenizer):
    """Keeps the most tokens that it decoded at once."""

    most = 0

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        type(self).most = max(self.most, len(ids))
        return super().decode(ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("said", ["\ufffd", "<|im_end|>"], ids=["signs of what is no character", "no text"])
def test_what_does_not_become_text_is_not_read_again_and_again(said: str, tokenizer: Tokenizer) -> None:
    decoding = Decoding(backend=tokenizer.backend)
    (token,) = tokenizer.encode(said)
    emoji = tokenizer.encode(" \U0001f9ff Hi")
    ids = [token] * 200 + emoji
    assert "".join(pieces(decoding, tokenizer.encode("Prompt:"), ids)) == tokenizer.decode(ids)
    assert decoding.most < 40


STOPS = st.lists(st.text("ab!", min_size=1, max_size=4), max_size=4)


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.text("ab!", max_size=5), max_size=8), strings=STOPS)
def test_a_text_is_cut_at_the_first_stop_string_wherever_the_pieces_end(
    parts: list[str], strings: list[str]
) -> None:
    stop = StopStrings(strings)
    sent = ""
    seen = ""
    for part in parts:
        seen += part
        sent += stop.push(part)
        assert not any(string in sent for string in strings)
        if stop.found:
            break
    sent += stop.flush()
    whole = "".join(parts)
    ends = [whole.index(string) for string in strings if string in seen]
    assert stop.found == bool(ends)
    assert sent == (whole[: min(seen.index(s) for s in strings if s in seen)] if ends else whole)
