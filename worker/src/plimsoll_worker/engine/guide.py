"""Holds an answer to a grammar: after every token, which ones may come next.

llguidance does the parsing, in Rust and without the interpreter lock: microseconds a token, milliseconds for
a schema, and it bounds its own work. Still nothing of it happens on the engine's thread: a grammar of a
hundred kilobytes takes a second, a tokenizer's trie half a second. A sequence whose guide is not done sits
out a step while the others go on. Grammars are compiled on one thread and followed on another, so that a
large one that arrives keeps no answer waiting.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ordered
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.progress import say

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

COMPILED = 16
"""Grammars kept: clients send the same one again and again, and n answers share one."""

MAX_REASON = 500
"""Characters of the log line about a grammar that failed."""

Allowed = bytes
"""A bit for each token of the vocabulary, the lowest first; 1: it may come next."""


class GrammarFailed(Exception):
    """The grammar cannot be followed any further: no token may come next, or its parser is at its limits."""


class Guide:
    """One answer's place in its grammar. Used from one thread at a time."""

    def __init__(self, compile_: Callable[[], LLMatcher]) -> None:
        self._compile = compile_
        self._matcher: LLMatcher | None = None
        self._given_up = False

    def give_up(self) -> None:
        """Nobody waits for this answer any more: a grammar that was not compiled yet need not be, and those
        behind it come sooner. From any thread."""
        self._given_up = True

    def follow(self, tokens: Ordered[int] = ()) -> Allowed:
        """What may come behind `tokens`, which follow those of the calls before. Raises GrammarFailed."""
        if self._matcher is None:
            if self._given_up:
                raise GrammarFailed("its answer is waited for no more")
            self._matcher = self._compile()
        for token in tokens:
            self._matcher.consume_token(token)
        allowed = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise GrammarFailed(f"{self._matcher.stop_reason()}: {self._matcher.get_error()}")
        if not any(allowed):
            raise GrammarFailed("no token may come next")
        return allowed


class Grammars:
    """Grammars over one model's vocabulary. Nothing is loaded before the first one comes."""

    def __init__(self, tokenizer: Tokenizer, *, vocabulary: int, eos: Iterable[int]) -> None:
        """`vocabulary`: tokens that the model tells logits of; `eos`: what ends a satisfied grammar."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._eos = sorted(eos)
        self._trie: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._compiling = ThreadPoolExecutor(1, "compile-grammars")
        self._following = ThreadPoolExecutor(1, "follow-grammars")

    def guide(self, grammar: str) -> Guide:
        """A new answer's guide; call `begin` for what its first token may be."""
        return Guide(lambda: self._matcher(grammar))

    def begin(self, guide: Guide) -> Future[list[Allowed | None]]:
        """What the first token may be, in a list of one; None: the grammar cannot be followed."""
        return self._compiling.submit(_follow, [(guide, ())])

    def follow(self, steps: Ordered[tuple[Guide, Ordered[int]]]) -> Future[list[Allowed | None]]:
        """For each guide and its new tokens what may come next; None: its grammar cannot be followed."""
        return self._following.submit(_follow, steps)

    def _matcher(self, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher

        if grammar not in self._compiled:
            if self._trie is None:
                self._trie = self._make_trie()
            self._compiled[grammar] = LLMatcher(self._trie, grammar, log_level=0, limits=limits())
        self._compiled.move_to_end(grammar)
        if len(self._compiled) > COMPILED:
            self._compiled.popitem(last=False)
        return self._compiled[grammar].deep_copy()

    def _make_trie(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        backend = self._tokenizer.backend
        # Some models tell logits of more tokens than they have, others have tokens that they never say.
        most = max(self._vocabulary, 1 + max(backend.get_vocab(with_added_tokens=True).values()))
        try:
            return LLTokenizer(backend.to_str(), n_vocab=most, eos_token=self._eos)
        except ValueError as error:
            raise GrammarFailed(f"grammars over this tokenizer are not possible: {error}") from error


def limits() -> LLParserLimits:
    """What a grammar may take. llguidance's own bounds on the work of a step, some 20 ms, are kept; there are
    fewer states than it would allow, because every answer has its own, of 1 to 2 kB each."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=20_000, verbose_errors=False)


def _follow(steps: Ordered[tuple[Guide, Ordered[int]]]) -> list[Allowed | None]:
    allowed: list[Allowed | None] = []
    for guide, tokens in steps:
        try:
            allowed.append(guide.follow(tokens))
        except GrammarFailed as error:
            say("GrammarFailed", reason=str(error)[:MAX_REASON])
            allowed.append(None)
    return allowed
