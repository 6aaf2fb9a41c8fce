"""How does the command line talk: results on stdout, progress and notes on stderr, an error in one line?"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress

Tell = Callable[[str], None]


def result(text: str) -> None:
    """Text that somebody asked for."""
    click.echo(printable(text))


def result_json(value: object) -> None:
    """The same for programs: ASCII only, so that any terminal and pipe carries it."""
    click.echo(json.dumps(value, indent=2))


def note(text: str) -> None:
    """What a person may like to know meanwhile."""
    click.echo(printable(text), err=True)


def error(message: str) -> None:
    with suppress(OSError):  # nobody is there to read it
        note(f"error: {' '.join(message.split())}")


def printable(text: str) -> str:
    """The text with control characters spelt out: a name inside a plan must not steer anybody's terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def never_fail_on_a_character() -> None:
    """A terminal that cannot show a character gets a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def flush_stdout_or_give_it_up() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        give_up_stdout()


def give_up_stdout() -> None:
    """Nobody reads it any more: let the interpreter's own last flush go nowhere instead of complaining."""
    with suppress(OSError, io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def stages() -> Generator[Tell, None, None]:
    """Yields a function to call with the name of each stage as it begins: a line each, and on a terminal the seconds
    it takes. Stages that count (`build 3 of 76 kernels`) share a line there; elsewhere a tenth of them have one."""
    if not sys.stderr.isatty():
        yield _note_stage
        return
    with _progress() as progress:
        shown = _Stages(progress)
        yield shown.begin
        shown.end()


COUNTING = re.compile(r"(.*\b)(\d+)( of (\d+)\b.*)")


def _note_stage(stage: str) -> None:
    counted = COUNTING.fullmatch(stage)
    if counted is not None:
        number, all_of_them = int(counted[2]), int(counted[4])
        if number > 1 and all_of_them and number * 10 // all_of_them == (number - 1) * 10 // all_of_them:
            return
    note(stage)


class _Stages:
    """Beginning a stage ends the one before it, unless it counts on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._counting: tuple[str, str] | None = None

    def begin(self, stage: str) -> None:
        counted = COUNTING.fullmatch(stage)
        counting = None if counted is None else (counted[1], counted[3])
        if counting is not None and counting == self._counting:
            self._progress.update(self._progress.task_ids[-1], description=printable(stage))
            return
        self._counting = counting
        self.end()
        self._progress.add_task(printable(stage), total=1)

    def end(self) -> None:
        if self._progress.task_ids:
            self._progress.update(self._progress.task_ids[-1], completed=1)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.text import Text

    class Seconds(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_time or task.elapsed or 0:5.1f} s", style="dim")

    name = TextColumn("{task.description}", markup=False)
    return Progress(SpinnerColumn(finished_text=" "), Seconds(), name, console=Console(stderr=True))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> str:
    """A table as text. As wide as the terminal allows; in a pipe as wide as it needs, one line a row."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    return _folded(columns, cells, right) if sys.stdout.isatty() else _lines(columns, cells, right)


def _folded(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    out = io.StringIO()
    shown = Console(file=out, markup=False, highlight=False, emoji=False)
    shown.print(drawn)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> str:
    """What rich would draw with room enough, of any number of rows: rich takes half a minute for 50,000."""
    from rich.cells import cell_len

    rows = [[cell.replace("\n", "\\n") for cell in row] for row in rows]
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        said = [cell.rstrip() for cell in row]
        room = [" " * (width - cell_len(cell)) for width, cell in zip(widths, said, strict=True)]
        aligned = zip(columns, said, room, strict=True)
        return "   ".join(space + cell if name in right else cell + space for name, cell, space in aligned).rstrip()

    rule = "─" * (sum(widths) + 3 * (len(widths) - 1))
    return "\n".join((line(columns), rule, *map(line, rows)))


def size(count: int) -> str:
    """Bytes as people say them: `1.5 MiB`."""
    amount, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def count(number: int) -> str:
    """A large count as people say it: `1.5 M`."""
    amount, unit = float(number), ""
    for unit in ("", " k", " M", " G", " T"):
        if amount < 1000 or unit == " T":
            break
        amount /= 1000
    return f"{number}" if unit == "" else f"{amount:.1f}{unit}"


def as_data(record: Any) -> Any:
    """Frozen structs as what JSON can hold, every field there whether or not it has its default."""
    import msgspec

    if isinstance(record, msgspec.Struct):
        tag = record.__struct_config__.tag
        named = {name: as_data(getattr(record, name)) for name in record.__struct_fields__}
        return named if tag is None else {"type": tag} | named
    if isinstance(record, dict):
        return {str(key): as_data(value) for key, value in sorted(record.items())}
    if isinstance(record, (list, tuple)):
        return [as_data(value) for value in record]
    return record if record is None or isinstance(record, (bool, int, float, str)) else str(record)
