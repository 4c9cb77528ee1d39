"""Token ids to text while they come: never half a character, never part of a stop string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from plimsoll_worker.loading.tokenizer import Tokenizer

LEAD_IN = 6
"""Prompt tokens decoded along with the answer's first, so that its leading blank comes out as in the whole
text."""

MOST_HELD = 8
"""Tokens that may wait for those that make a character of them: it has four bytes at the most. A model that
goes on with what is no character, or no text, would have all of it decoded again at every token."""

REPLACEMENT = "\ufffd"


class Detokenizer:
    """Text of one growing answer.

    A token's text depends on its neighbours (blanks, bytes of one character), so a short window is decoded
    with and without the new token and the difference is the news (the scheme of text-generation-inference's
    `decode_token`).
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], spelled: Mapping[int, str] = MappingProxyType({})
    ) -> None:
        """`spelled`: tokens that are written out, though a text does not show them."""
        self._tokenizer = tokenizer
        self._spelled = spelled
        self._tokens = list(prompt[-LEAD_IN:])
        self._window = 0
        self._told = len(self._tokens)

    def push(self, token: int) -> str:
        """The text that `token` adds; empty while a character is incomplete."""
        spelled = self._spelled.get(token)
        before = "" if spelled is None else self.flush()
        self._tokens.append(token)
        return self._news(final=False) if spelled is None else before + spelled

    def flush(self) -> str:
        """What is left at the end, incomplete characters as U+FFFD."""
        return self._news(final=True)

    def _news(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._tokens[self._window : self._told])
        after = self._tokenizer.decode(self._tokens[self._window :])
        overdue = len(self._tokens) - self._told > MOST_HELD
        if len(after) <= len(before):
            if overdue:
                del self._tokens[self._told :]
            return ""
        if after.endswith(REPLACEMENT) and not (final or overdue):
            return ""
        self._window, self._told = self._told, len(self._tokens)
        return after[len(before) :]


class StopStrings:
    """Cuts a text at the first stop string and holds back what may become one."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that is safe to send; `found` tells whether a stop string ended it."""
        if not self._strings:
            return text
        self._held += text
        ends = [at for string in self._strings if (at := self._held.find(string)) >= 0]
        if ends:
            self.found = True
            safe, self._held = self._held[: min(ends)], ""
            return safe
        cut = len(self._held) - self._longest_beginning()
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe

    def flush(self) -> str:
        """What was held back for nothing."""
        safe, self._held = self._held, ""
        return safe

    def _longest_beginning(self) -> int:
        """Length of the longest end of the held text that some stop string begins with."""
        longest = max((len(string) for string in self._strings), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(string.startswith(self._held[-length:]) for string in self._strings):
                return length
        return 0
