"""How do words from a file become lines of at most 100 columns?"""

from __future__ import annotations

from textwrap import wrap

from hjgc.tools.console import printable

WIDTH = 100


def wrapped(words: str, *, first: str = "", rest: str = "  ") -> list[str]:
    """Lines that begin with `first` and `rest`. Control characters are spelt out, line ends too: a name inside a plan
    must not look like lines of ours."""
    told = printable(words.replace("\n", "\\n"))
    return wrap(told, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or [first.rstrip()]
