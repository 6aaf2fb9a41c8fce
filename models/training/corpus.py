"""Which text does the demo model learn, and which of it is held out?

The prose that ships with a CPython: the language reference of `pydoc`, the docstrings and longer comments of the
standard library, and the docstrings of the modules written in C. Tests, and files that carry a licence of their own,
stay out; code, tables and doctests are dropped; a paragraph that occurs twice is kept once.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import io
import json
import platform
import pydoc_data.topics
import re
import sys
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from hjgc.models.training.prose import prose_blocks

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}
SKIPPED_FILES = {"this.py", "antigravity.py", "__phello__.foo.py"}
SKIPPED_EXTENSIONS = {"_decimal", "_sqlite3"}  # under licences of their own
OWN_LICENCE = re.compile(
    r"permission to use, copy|permission is hereby granted|redistribution and use in source|provided 'as-is'|"
    r"licensed under the|apache license|can be redistributed under",
    re.IGNORECASE,
)
SHARED_RUN = 8  # words
SHORTEST_TEXT = 60  # characters
SHORTEST_DOCUMENT = 200  # characters; shorter ones teach little but how to end


@dataclass(frozen=True)
class Document:
    """One held-out-or-not unit: everything that one file, topic or extension module says."""

    name: str
    text: str


@dataclass(frozen=True)
class Split:
    """`training` is learned, `validation` chooses the checkpoint, `held_out` is only measured at the end."""

    training: tuple[Document, ...]
    validation: tuple[Document, ...]
    held_out: tuple[Document, ...]


@dataclass(frozen=True)
class Corpus:
    """The documents, sorted by name, of the Python of version `python`."""

    python: str
    documents: tuple[Document, ...]

    def dump(self) -> bytes:
        """JSON lines: the version, then one pair [name, text] a document."""
        pairs = ([document.name, document.text] for document in self.documents)
        lines = (json.dumps(value, ensure_ascii=False) + "\n" for value in (self.python, *pairs))
        return "".join(lines).encode()

    def digest(self) -> str:
        """SHA-256 of `dump()`, in hexadecimal."""
        return hashlib.sha256(self.dump()).hexdigest()


def parse_corpus(data: bytes) -> Corpus:
    """The inverse of `Corpus.dump`."""
    python, *pairs = (json.loads(line) for line in data.decode().split("\n") if line)
    return Corpus(python, tuple(Document(*pair) for pair in pairs))


def build_corpus() -> Corpus:
    """The text of the running Python. The same build of Python gives the same text."""
    raw = [*_topics(), *_source_files(), *_extension_modules()]
    seen: set[str] = set()
    documents = (Document(name, _unseen_text(blocks, seen)) for name, blocks in sorted(raw))
    long_enough = tuple(document for document in documents if len(document.text) >= SHORTEST_DOCUMENT)
    return Corpus(platform.python_version(), long_enough)


def split_corpus(documents: tuple[Document, ...]) -> Split:
    """Families of documents in the order of a hash: about 5 % of the text is held out, about 3 % validates.

    A family of more than 1 % of the text is always learned, so that no single one is most of a part. Paragraphs that
    repeat eight words in a row of the training text are taken out of the other two parts.
    """
    families: dict[str, list[Document]] = {}
    for document in documents:
        families.setdefault(_family(document.name), []).append(document)
    total, taken = _characters(documents), 0
    parts: tuple[list[Document], ...] = ([], [], [])
    held_out, validation, training = parts
    for name in sorted(families, key=_digest):
        size = _characters(families[name])
        if size > 0.01 * total:
            training += families[name]
            continue
        parts[0 if taken < 0.05 * total else 1 if taken < 0.08 * total else 2].extend(families[name])
        taken += size
    learned = {run for document in training for run in _runs(document.text)}
    return Split(_sorted(training), _unlearned(_sorted(validation), learned), _unlearned(_sorted(held_out), learned))


def _family(name: str) -> str:
    """Documents that say nearly the same go to the same side: `lib/_pyio.py`, `lib/io.py` and `extension/_io`."""
    parts = name.removesuffix("/__init__.py").removesuffix(".py").split("/")
    return re.sub(r"^_(py)?", "", parts[-1])


def _unlearned(documents: tuple[Document, ...], learned: set[str]) -> tuple[Document, ...]:
    """The documents without the paragraphs that share a run of words with the training text."""
    kept = ((d.name, [text for text in d.text.split("\n\n") if learned.isdisjoint(_runs(text))]) for d in documents)
    return tuple(Document(name, "\n\n".join(paragraphs)) for name, paragraphs in kept if paragraphs)


def _runs(text: str) -> Iterator[str]:
    words = re.findall(r"\w+", text.lower())
    return (" ".join(words[start : start + SHARED_RUN]) for start in range(len(words) - SHARED_RUN + 1))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _characters(documents: Iterable[Document]) -> int:
    return sum(len(document.text) for document in documents)


def _sorted(documents: list[Document]) -> tuple[Document, ...]:
    return tuple(sorted(documents, key=lambda document: document.name))


# --- where the text comes from: pairs of a name and its cleaned blocks


def _topics() -> Iterator[tuple[str, list[str]]]:
    for name, text in pydoc_data.topics.topics.items():
        yield f"topics/{name}", prose_blocks(text)


def _source_files() -> Iterator[tuple[str, list[str]]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(name.parts) or path.name in SKIPPED_FILES:
            continue
        source = path.read_text(encoding="utf-8", errors="replace")
        if not OWN_LICENCE.search(source):
            yield f"lib/{name.as_posix()}", _docstrings(source) + _comments(source)


def _docstrings(source: str) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except SyntaxError:  # lib2to3 ships some Python 2 on purpose
            return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [block for text in texts if text for block in _said(text)]


def _comments(source: str) -> list[str]:
    """Comments that stand alone on their lines; neighbouring lines make one text."""
    texts: list[list[str]] = []
    last = -2
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
                if token.start[0] != last + 1:
                    texts.append([])
                texts[-1].append(token.string.lstrip("#!"))
                last = token.start[0]
    except (tokenize.TokenError, SyntaxError):
        return []
    long_enough = ("\n".join(lines) for lines in texts if len(lines) > 1)
    return [block for text in long_enough for block in _said(textwrap.dedent(text))]


def _extension_modules() -> Iterator[tuple[str, list[str]]]:
    folder = Path(sysconfig.get_path("stdlib")) / "lib-dynload"
    names = {path.name.split(".")[0] for path in folder.glob("*.so")} | set(sys.builtin_module_names)
    for name in sorted(names):
        if "test" in name or name.startswith("xx") or name in SKIPPED_EXTENSIONS:
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:  # built for a library that this machine lacks
            continue
        yield f"extension/{name}", [block for text in _member_docs(module) for block in _said(text)]


def _member_docs(module: ModuleType) -> Iterator[str]:
    yield module.__doc__ or ""
    for _, member in sorted(vars(module).items()):
        if not (inspect.isclass(member) or inspect.isroutine(member)):
            continue
        yield inspect.cleandoc(_doc(member))
        if inspect.isclass(member) and member.__module__ in (module.__name__, "builtins"):
            yield from (inspect.cleandoc(_doc(inner)) for _, inner in sorted(vars(member).items()))


def _said(text: str) -> list[str]:
    """The blocks of a docstring or comment, or none if it is a mere line: thousands of those make a model stammer."""
    blocks = prose_blocks(text)
    return blocks if sum(map(len, blocks)) >= SHORTEST_TEXT else []


def _doc(thing: object) -> str:
    kinds = (type, staticmethod, classmethod, property)
    documented = inspect.isroutine(thing) or inspect.isdatadescriptor(thing) or isinstance(thing, kinds)
    text = getattr(thing, "__doc__", None) if documented else None
    return text if isinstance(text, str) else ""


def _unseen_text(blocks: list[str], seen: set[str]) -> str:
    fresh: list[str] = []
    for block in blocks:
        key = re.sub(r"\W+", " ", block).lower()
        if key not in seen:
            seen.add(key)
            fresh.append(block)
    return "\n\n".join(fresh)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit("usage: python -m hjgc.models.training.corpus FILE")
    corpus = build_corpus()
    Path(arguments[0]).write_bytes(corpus.dump())
    print(f"{len(corpus.documents)} documents of Python {corpus.python}, sha256 {corpus.digest()}")


if __name__ == "__main__":
    main(sys.argv[1:])
