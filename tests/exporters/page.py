"""How does what was found become docs/exporters.md?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from textwrap import shorten

from tests.exporters.examining import Case, Found

TEMPLATE = Path(__file__).with_name("page.template.md")
ARCHITECTURES = ("llama2", "llama3", "mistral", "qwen2", "qwen3")
EXPORTERS = ("dynamo4", "dynamo5", "ts4", "ts5", "optimum4", "hf5", "genai4", "genai5")
NAMES = {
    "dynamo": ("torch", "`torch.onnx.export(dynamo=True)`"),
    "ts": ("torch", "`torch.onnx.export(dynamo=False)`"),
    "optimum": ("optimum-onnx", "`optimum-cli export onnx`"),
    "hf": ("torch", "`OnnxExporter` of transformers"),
    "genai": ("onnxruntime-genai", "`onnxruntime_genai.models.builder`"),
}
"""By the exporter's name without the version of transformers: the package that it comes in, and its title."""
BOUNDS = (1e-4, 1e-3, 1e-2, 1e-1)
Entry = tuple[Case, str, Found]


@dataclass
class _Notes:
    """Remarks under a table, each once."""

    texts: list[str] = field(default_factory=list[str])

    def mark(self, text: str) -> str:
        text = " ".join(text.split()).replace("|", "\\|")
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"

    def lines(self) -> Iterator[str]:
        yield from (f"{i}. {text}" for i, text in enumerate(self.texts, 1))


def render(entries: Iterable[Entry]) -> str:
    entries = list(entries)
    parts = {"summary": _summary(entries)}
    for exporter in EXPORTERS:
        mine = [entry for entry in entries if entry[0].exporter == exporter]
        parts[exporter] = _table(mine)
        parts[f"title_{exporter}"] = _title(exporter, mine)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(parts)


def _title(exporter: str, entries: Sequence[Entry]) -> str:
    """With the versions of the package that it comes in, and of transformers, which makes the network."""
    package, title = NAMES[exporter.rstrip("45")]
    versions = entries[0][0].versions if entries else {}
    return f"{title}, " + ", ".join(f"{name} {versions.get(name, '?')}" for name in (package, "transformers"))


def _summary(entries: Sequence[Entry]) -> str:
    """How many of the files that were written are recognised fully."""
    rows: list[list[str]] = []
    for exporter in EXPORTERS:
        mine = [entry for entry in entries if entry[0].exporter == exporter and entry[1]]
        cells = [_title(exporter, mine)]
        for architecture in ARCHITECTURES:
            found = [found for case, _, found in mine if case.architecture == architecture]
            cells.append(f"{sum(map(is_full, found))} of {len(found)}" if found else "")
        rows.append(cells)
    return _markdown(["exporter", *ARCHITECTURES], rows)


def is_full(found: Found) -> bool:
    return not found.refused and not found.left and found.static == 1


def _table(entries: Sequence[Entry]) -> str:
    notes = _Notes()
    cells: dict[str, dict[str, str]] = {}
    for case, file, found in sorted(entries, key=lambda entry: (entry[0].variant, entry[1])):
        variants = [case.variant or "as it comes", *([f"`{file}.onnx`"] if file in ("prefill", "decode") else [])]
        cells.setdefault(": ".join(variants), {})[case.architecture] = _cell(case, found, notes)
    rows = [[variant, *(row.get(each, "") for each in ARCHITECTURES)] for variant, row in cells.items()]
    return "\n".join([_markdown(["", *ARCHITECTURES], rows), "", *notes.lines()]).rstrip()


def _cell(case: Case, found: Found, notes: _Notes) -> str:
    if case.error:
        said = shorten(case.error, 120, placeholder=" ...")
        return f"not exported {notes.mark(f'the exporter says: {said}')}"
    if found.refused:
        return f"refused {notes.mark(found.refused)}"
    told = [*(f"`hjgc compile` says: {note}" for note in found.notes), *filter(None, [found.why_not])]
    marks = "".join(f" {notes.mark(text)}" for text in told)
    left = f"partly ({', '.join(found.left)}) · " if found.left else ""
    error = "" if found.error is None else f" · {_bound(found.error)}"
    return f"{left}{found.per_layer} · {found.static:.0%}{error}{marks}"


def _bound(error: float) -> str:
    """Rounding differs a little from machine to machine; the page should not."""
    bound = next((bound for bound in BOUNDS if error <= bound), None)
    return f"> {BOUNDS[-1]:g}" if bound is None else f"≤ {bound:.0e}".replace("e-0", "e-")


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
