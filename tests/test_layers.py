"""Does every file import only what its layer may know?"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOT_PACKAGE = "hjgc"

# Which of the others each package may import. The root package re-exports from several, so it counts as one of them.
LAYERS: dict[str, set[str]] = {
    "plan_format": set(),
    "models": {"plan_format"},
    "compiler": {"models", "plan_format"},
    "runtime": {"plan_format"},
    "tools": {"plan_format", "models", "compiler", "runtime", ROOT_PACKAGE},
}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import under `tree`: at the top, in a function, or by name in a literal."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = "." * level + (module or "")
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name
            case _:
                pass


def misspelt(name: str) -> str | None:
    """Why nobody, of whatever layer, may write this import."""
    if name.startswith("."):
        return "a relative import; write hjgc...."
    if name.split(".")[0] in LAYERS:
        return f"the bare name {name}; write hjgc.{name}"
    return None


def forbidden(package: str, name: str) -> str | None:
    """Why a file of `package` may not import the dotted `name`."""
    top, *rest = name.split(".")
    if top != ROOT_PACKAGE or rest[:1] == ["_version"]:
        return None
    known = rest[0] if rest and rest[0] in LAYERS else ROOT_PACKAGE
    return None if known in LAYERS[package] | {package} else f"{package} must not know {known}"


def complaints(package: str | None, source: str, place: str) -> list[str]:
    """One line for each import of `source` that is misspelt or, inside a package, reaches out of its layer."""
    found: list[str] = []
    for line, name in imports(ast.parse(source, place)):
        reason = misspelt(name) or (forbidden(package, name) if package else None)
        found += [f"{place}:{line}: imports {name}: {reason}"] if reason else []
    return found


def complaints_of_folder(folder: Path, package: str | None) -> list[str]:
    return [
        line
        for path in sorted(folder.rglob("*.py"))
        for line in complaints(package, path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]


@pytest.mark.parametrize("package", LAYERS)
def test_a_package_imports_only_what_its_layer_may_know(package: str) -> None:
    assert complaints_of_folder(ROOT / package, package) == []


@pytest.mark.parametrize("folder", ["tests", "src/hjgc"])
def test_no_other_file_imports_a_package_by_its_bare_name(folder: str) -> None:
    # rglob does not follow the links in src/hjgc, so this sees only the files that live there.
    assert complaints_of_folder(ROOT / folder, None) == []


@pytest.mark.parametrize(
    ("package", "planted", "complaint"),
    [
        ("plan_format", "import hjgc.models.llama", "plan_format must not know models"),
        ("models", "from hjgc.compiler import pipeline", "models must not know compiler"),
        ("compiler", "from hjgc import runtime", "compiler must not know runtime"),
        ("runtime", "def late():\n    from hjgc.models.llama import Decoder", "runtime must not know models"),
        ("runtime", "if TYPE_CHECKING:\n    import hjgc.compiler", "runtime must not know compiler"),
        ("runtime", "import importlib\nimportlib.import_module('hjgc.compiler')", "runtime must not know compiler"),
        ("runtime", "from hjgc import LLM", "runtime must not know hjgc"),
        ("compiler", "import hjgc", "compiler must not know hjgc"),
        ("plan_format", "import hjgc.tools.cli as cli", "plan_format must not know tools"),
        ("tools", "from compiler import pipeline", "write hjgc.compiler.pipeline"),
        ("tools", "import plan_format", "write hjgc.plan_format"),
        ("compiler", "from ..runtime import session", "a relative import"),
        (None, "from runtime.session import Session", "write hjgc.runtime.session"),
    ],
)
def test_a_planted_violation_is_caught(package: str | None, planted: str, complaint: str) -> None:
    (line,) = complaints(package, planted, "planted.py")
    assert complaint in line
    assert line.startswith(f"planted.py:{planted.count(chr(10)) + 1}: ")


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("runtime", "from hjgc.plan_format.errors import PlanError\nimport hjgc.runtime.session"),
        ("compiler", "from hjgc.models import llama\nimport onnx_ir.tools"),
        ("tools", "import hjgc\nfrom hjgc.runtime import session\nfrom hjgc.compiler import pipeline"),
        ("plan_format", "from hjgc._version import __version__"),
    ],
)
def test_an_import_within_the_layer_is_not_complained_about(package: str, source: str) -> None:
    assert complaints(package, source, "planted.py") == []


@pytest.mark.parametrize("package", LAYERS)
def test_each_link_in_src_leads_to_the_folder_of_its_name(package: str) -> None:
    link = ROOT / "src" / ROOT_PACKAGE / package
    assert link.is_symlink()
    assert link.resolve() == (ROOT / package).resolve()


def test_the_layer_table_names_every_package_there_is() -> None:
    linked = {path.name for path in (ROOT / "src" / ROOT_PACKAGE).iterdir() if path.is_symlink()}
    assert linked == set(LAYERS)


@pytest.mark.parametrize("package", LAYERS)
def test_a_folder_with_modules_is_a_package_so_that_a_wheel_cannot_lack_it(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_module_is_named_utils() -> None:
    modules = [path for package in LAYERS for path in (ROOT / package).rglob("*.py")]
    assert modules
    assert [path for path in modules if {"utils", "util"} & {path.stem, path.parent.name}] == []


def test_the_type_checker_is_told_of_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included: list[str] = settings["tool"]["pyright"]["include"]
    assert {f"src/{ROOT_PACKAGE}/{package}" for package in LAYERS} <= set(included)
