"""Which text is certain after each token, and where does a stop string cut it?

What a token reads as can depend on its neighbours: a character may take several tokens, a decoder may drop a leading
space or join tokens in its own way. So `TextStream` decodes a short window that starts with tokens already read, and
gives out what is new and whole. `StopStrings` sits behind it and holds back what may be the start of a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

UNKNOWN = "\ufffd"
"""What decoders put for bytes that are no character, or not yet one."""
LONGEST_TAIL = 3
"""A character of UTF-8 has up to four bytes, so at most three of them wait for the rest."""
CONTEXT_TOKENS = 32
"""How much of the prompt is read first, so that an answer's first token is spaced as its neighbour asks."""


class TextStream:
    """Token ids in, pieces of text out. Together the pieces read as `decode(prompt + answer)` less the prompt, where a
    character cut in two by the end, or broken by wrong bytes, reads U+FFFD."""

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._read: list[int] = []  # given out in full; at least one of them is visible, unless nothing was
        self._new: list[int] = []  # not given out, or not in full
        self._shown = ""  # what was given out of both
        for token in prompt[-CONTEXT_TOKENS:]:
            self.push(token)

    def push(self, token: int) -> str:
        """The text that became certain with this token; often one piece a token, sometimes none."""
        self._new.append(token)
        text = self._text()
        certain = _without_tail(text)
        piece = certain[len(self._shown) :]
        self._shown += piece
        if certain == text:
            self._forget()
        return piece

    def finish(self) -> str:
        """The rest, an unfinished character as U+FFFD."""
        piece = self._text()[len(self._shown) :]
        self._shown += piece
        return piece

    def _text(self) -> str:
        """The window as text. A byte-fallback decoder gives up a whole run of bytes for one that is wrong, although
        its first characters were whole and are given out; then the new bytes are read by themselves."""
        text = self._decode([*self._read, *self._new])
        if text.startswith(self._shown):
            return text
        return self._decode(self._read) + self._decode(self._new)

    def _forget(self) -> None:
        """Everything is given out: the new tokens are all the context that the next need, if they can be seen."""
        text = self._decode(self._new)
        if text:
            self._read, self._new, self._shown = self._new, [], text


def _without_tail(text: str) -> str:
    """`text` less a last character that may be unfinished."""
    tail = len(text) - len(text.rstrip(UNKNOWN))
    return text[: len(text) - min(tail, LONGEST_TAIL)]


class StopStrings:
    """Text pieces in, text pieces out, ended before the first stop string that is completed. What may still become one
    is held back, so no part of a stop string ever leaves. The result does not depend on how the text was cut."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """What may leave now. Once `found` names a stop string nothing more does."""
        if self.found is not None:
            return ""
        text = self._held + piece
        matches = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            _, start, self.found = min(matches)
            self._held = ""
            return text[:start]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, now that it cannot become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
