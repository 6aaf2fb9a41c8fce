"""Which kernel templates exist, and what text is each made of? Every module here that defines `TEMPLATE`;
adding one is adding its file."""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path

from hjgc.compiler.kernels.declaration import Template
from hjgc.plan_format import building
from hjgc.plan_format.errors import CompileError

FOLDER = Path(__file__).parent


@cache
def template_names() -> tuple[str, ...]:
    """Every template by name, found without importing any (they import triton)."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.py") if _defines_template(path)))


def template(name: str) -> Template:
    """The template of that name. Raises CompileError if there is none, or if triton is not installed."""
    check_name(name)
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise triton_is_missing(name) from None
    return module.TEMPLATE


def check_name(name: str) -> None:
    """Raises CompileError if there is no such template."""
    if name not in template_names():
        raise CompileError(f"template {name}", f"expected one of {', '.join(template_names())}")


def triton_is_missing(name: str) -> CompileError:
    return CompileError(
        f"template {name}", "building it needs triton, which is not installed", next_step="pip install 'hjgc[aot]'"
    )


def template_digest(name: str, folder: Path = FOLDER) -> str:
    """sha256 of the text of the template's file and of every file of this folder that it imports, by name."""
    return building.template_digest(template_files(name, folder))


def template_files(name: str, folder: Path = FOLDER) -> dict[str, bytes]:
    """The text of the template's file and of every file of this folder that it imports, by name."""
    return {path.name: path.read_bytes() for path in sorted(_files(folder / f"{name}.py"))}


def _files(start: Path) -> set[Path]:
    """`start` and the files beside it that it imports, directly or not."""
    found: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += _imported(path)
    return found


def _imported(path: Path) -> list[Path]:
    """The files beside `path` that it imports, in whichever way the import is written."""
    names: list[str] = []
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    parts = [name.removeprefix(f"{__name__}.") for name in names if name.startswith(f"{__name__}.")]
    files = [path.with_name(f"{part.split('.')[0]}.py") for part in parts]
    return [file for file in files if file.is_file()]


def is_cuda(name: str) -> bool:
    """Whether the template is CUDA C++, found without importing it."""
    declared = _declared(FOLDER / f"{name}.py")
    said = [k.value for k in declared.keywords if k.arg == "function"] if isinstance(declared, ast.Call) else []
    called = said[0].func if said and isinstance(said[0], ast.Call) else None
    return isinstance(called, ast.Name) and called.id == "cuda_function"


def _defines_template(path: Path) -> bool:
    return _declared(path) is not None


def _declared(path: Path) -> ast.expr | None:
    """What the file assigns to `TEMPLATE`."""
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "TEMPLATE" for t in node.targets):
            return node.value
    return None


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))
