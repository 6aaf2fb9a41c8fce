"""Which paragraphs of a text are prose, and how do they read without their markup?"""

from __future__ import annotations

import re
from collections.abc import Iterator

BULLET = re.compile(r"^([*\-+o]|\(?\w{1,2}[.)])\s+\S")
UNDERLINE = re.compile(r"^\W{3,}$")
ROLE = re.compile(r":[\w:+-]+:`~?([^`<]+?)(?:\s*<[^`>]*>)?`")
QUOTED = re.compile(r"``([^`\n]+)``|`([^`'\n]+)[`']")
LONGEST_SUMMARY = 100  # characters
NOT_PROSE = (">>>", "..", "$", "|", "#", "(Pdb)", "def ", "return ", "import ", "XXX")
WORD = re.compile(
    r"^[\"'(*]*[A-Za-z][a-z]*(?:[-'][a-z]+)*[\"'*)]*[.,;:!?]*\)?$"  # a word as English writes it
    r"|^\(?\"\S+\"[.,;:)]*$|^\(?[\w.]+\(\)[.,;:)]*$"  # "quoted.code", call()
)


def prose_blocks(text: str) -> list[str]:
    """The prose paragraphs and list items of a text, each on one line, markup made uniform."""
    blocks: list[str] = []
    for chunk in re.split(r"\n\s*\n", text.expandtabs()):
        blocks += [line for lines in _items(chunk) if _is_prose(line := _uniform(" ".join(lines)))]
    return _with_summary(blocks)


def _with_summary(blocks: list[str]) -> list[str]:
    """The summary line of a docstring and the paragraph below it read as one paragraph."""
    if len(blocks) < 2 or len(blocks[0]) > LONGEST_SUMMARY or blocks[0][-1] != "." or not blocks[1][0].isupper():
        return blocks
    return [f"{blocks[0]} {blocks[1]}", *blocks[2:]]


def _items(chunk: str) -> Iterator[list[str]]:
    """Cut a chunk without blank lines where a list item starts, or the indentation changes against the hanging one."""
    item: list[str] = []
    hanging = -1
    for line in chunk.splitlines():
        stripped = line.strip()
        if not stripped or UNDERLINE.match(stripped):
            continue
        indent = len(line) - len(line.lstrip())
        if item and (BULLET.match(stripped) or (hanging >= 0 and indent != hanging)):
            yield item
            item, hanging = [], -1
        hanging = indent if item else -1
        item.append(stripped)
    if item:
        yield item


def _uniform(line: str) -> str:
    line = ROLE.sub(r'"\1"', line)
    line = QUOTED.sub(lambda match: f'"{match[1] or match[2]}"', line)
    return re.sub(r"\s+", " ", line).strip()


def _is_prose(line: str) -> bool:
    """Four words or more, most of them plain words, and an end that a sentence or a heading has."""
    words = line.split()
    if len(words) < 4 or "::=" in line or "copyright" in line.lower() or line.startswith(NOT_PROSE):
        return False
    plain = sum(1 for word in words if WORD.match(word))
    return plain >= 0.65 * len(words) and (line[-1] in ".:!?)\"'" or len(words) >= 8)
