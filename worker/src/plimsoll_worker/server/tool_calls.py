"""Reads calls of functions out of an answer while it comes.

The grammar has seen to it that a call is whole JSON with the name in front, so that arguments can be passed
on letter by letter, without waiting for their end.
"""

from __future__ import annotations

import re
import secrets
import string
from dataclasses import dataclass
from enum import Enum, auto

from plimsoll_worker.server.tool_families import Family


@dataclass(frozen=True, slots=True)
class CallPiece:
    """News of a call: its beginning, with id and name, or more of its arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class _Place(Enum):
    TEXT = auto()
    NAME = auto()
    ARGUMENTS = auto()
    BEHIND = auto()


class CallReader:
    """Of one answer."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._head = re.compile(
            r'[^{]*\{\s*"name"\s*:\s*"([^"]*)"\s*,\s*"' + family.arguments + r'"\s*:\s*(?=\{)'
        )
        self._place = _Place.TEXT
        self._held = ""
        self._depth = 0
        self._quoted = self._escaped = False
        self._began = False
        self.calls = 0
        """Begun so far."""

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """The part of the answer that is no call, and news of calls."""
        self._held += text
        said, pieces = "", list[CallPiece]()
        moved = True
        while moved and self._held:
            match self._place:
                case _Place.TEXT:
                    more, moved = self._text()
                    said += more
                case _Place.NAME:
                    moved = self._name(pieces)
                case _Place.ARGUMENTS:
                    moved = self._arguments(pieces)
                case _Place.BEHIND:
                    moved = self._behind()
        return said, pieces

    def flush(self) -> str:
        """What was held back for nothing: it became no call. Blanks between calls are nobody's words."""
        held, self._held = self._held, ""
        if self._place is _Place.NAME and not self.calls:
            return self._family.opens + held
        return held if self._place is _Place.TEXT and not (self.calls and held.isspace()) else ""

    def _text(self) -> tuple[str, bool]:
        opens = self._family.opens
        if not opens:
            return self._text_or_call()
        before, found, behind = self._held.partition(opens)
        if found:
            self._place, self._held = _Place.NAME, behind
            return before.rstrip(), True
        safe = before.rstrip()
        # What may become the mark, and blanks that may stand before it, wait.
        for length in range(min(len(opens) - 1, len(safe)), 0, -1):
            if opens.startswith(safe[-length:]):
                safe = safe[:-length].rstrip()
                break
        self._held = before[len(safe) :]
        return safe, False

    def _text_or_call(self) -> tuple[str, bool]:
        """Where the first letter tells."""
        if not self._began:
            self._began = True
            if self._held.startswith("{"):
                self._place = _Place.NAME
                return "", True
        said, self._held = self._held, ""
        return said, False

    def _name(self, pieces: list[CallPiece]) -> bool:
        head = self._head.match(self._held)
        if head is None:
            return False
        pieces.append(CallPiece(self.calls, id=self._id(), name=head[1]))
        self.calls += 1
        self._held = self._held[head.end() :]
        self._place = _Place.ARGUMENTS
        return True

    def _arguments(self, pieces: list[CallPiece]) -> bool:
        end = self._end_of_object()
        if end:
            pieces.append(CallPiece(self.calls - 1, self._held[:end]))
            self._place, self._held = _Place.BEHIND, self._held[end:]
            return True
        pieces.append(CallPiece(self.calls - 1, self._held))
        self._held = ""
        return False

    def _end_of_object(self) -> int:
        """Where the object that was begun ends in what is held; 0: not yet."""
        for at, letter in enumerate(self._held, start=1):
            if self._escaped:
                self._escaped = False
            elif letter == "\\":
                self._escaped = True
            elif letter == '"':
                self._quoted = not self._quoted
            elif not self._quoted and letter in "{}":
                self._depth += 1 if letter == "{" else -1
                if self._depth == 0:
                    return at
        return 0

    def _behind(self) -> bool:
        """What closes a call says nothing; where one opening serves a list, the next may follow."""
        closes = self._family.closes
        if not closes:
            self._place = _Place.NAME
            return True
        _, found, behind = self._held.partition(closes)
        if found:
            self._place, self._held = _Place.TEXT, behind
        return bool(found)

    def _id(self) -> str:
        letters = string.ascii_letters + string.digits
        return self._family.id_prefix + "".join(
            secrets.choice(letters) for _ in range(self._family.id_length)
        )
