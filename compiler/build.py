"""How does a variant of a kernel template become device code, on a machine that may have no GPU?

Triton compiles it for the named target and its own ptxas assembles it. The cubin embeds no path and no line numbers,
so the same text gives the same bytes anywhere. What was built is kept under `HJGC_CACHE_DIR` by digest.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from hjgc.compiler import nvrtc
from hjgc.compiler.elf import registers
from hjgc.compiler.kernels import check_name, is_cuda, template, template_digest, triton_is_missing
from hjgc.compiler.kernels.declaration import AxisValue, CudaFunction, Template
from hjgc.plan_format.chips import FIRST_WITH_PDL, HOPPER, PORTABLE, has_pdl
from hjgc.plan_format.errors import CompileError, InputError
from hjgc.plan_format.files import write_atomically
from hjgc.plan_format.structs import BuiltCode, CodeReference, ParameterKind, Variant

PARAMETER_WIDTHS = {"pointer": 64, "int32": 32, "int64": 64, "float32": 32, "scratch": 64, "tensor_map": 1024}
TARGETS = {f"sm_{number}": number for number in (80, 86, 87, 89, 90, 100, 103, 120, 121)} | {PORTABLE: 80}
"""Chips that were tried. LLVM ends the whole process where it meets one that it does not know."""
RECIPE = 1
"""Counted in the digest of the cache: raise it when this file builds the same template differently."""


class Built(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One variant, built: the fields of `plan_format.Variant`, and the code itself."""

    target: str
    axes: dict[str, bool | int | str]
    entry: str
    parameters: tuple[ParameterKind, ...]
    threads: int
    shared_bytes: int
    pdl: bool
    registers: int | None
    cubin: bytes

    @property
    def section(self) -> Literal["cubin", "ptx"]:
        """Which section of a plan holds such code: PTX is for `compute_NN`, for a driver to translate."""
        return "ptx" if self.target.startswith("compute_") else "cubin"

    def variant(self, template: int, offset: int) -> Variant:
        """The plan's entry for it, its template at `template`, its code at `offset` of its section."""
        code = CodeReference(self.section, offset, len(self.cubin), hashlib.sha256(self.cubin).hexdigest())
        return Variant(
            template=template,
            target=self.target,
            axes=self.axes,
            parameters=self.parameters,
            pdl=self.pdl,
            built=BuiltCode(self.entry, self.threads, self.shared_bytes, code, self.registers),
        )


def build(name: str, axes: Mapping[str, AxisValue], target: str) -> Built:
    """The template `name` with these axes for `sm_NN`, from the cache if it was built before.

    Raises CompileError: triton missing, no such template, axes outside their legal values, or the compiler's words."""
    check_name(name)
    path = cache_folder() / "kernels" / _digest(name, axes, target)
    built = _read_cached(path)
    if built is None:
        built = _compile(name, template(name), axes, target)
        _write_cached(path, built)
    return built


def read_built(name: str, axes: Mapping[str, AxisValue], target: str) -> Built | None:
    """What `build` would find in the cache. Raises CompileError if triton is missing."""
    return _read_cached(cache_folder() / "kernels" / _digest(name, axes, target))


def cache_folder() -> Path:
    """`HJGC_CACHE_DIR`, or `hjgc` in the user's cache folder."""
    named = os.environ.get("HJGC_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hjgc"


def _digest(name: str, axes: Mapping[str, AxisValue], target: str) -> str:
    version = nvrtc.version() if is_cuda(name) else _triton_version(name)
    parts = (RECIPE, version, name, template_digest(name), sorted(axes.items()), target)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _triton_version(name: str) -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise triton_is_missing(name) from None


def _read_cached(path: Path) -> Built | None:
    """What the file holds; None if it is not there or not whole, so that it is built again."""
    with suppress(OSError, msgspec.MsgspecError):
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            return msgspec.msgpack.decode(data[32:], type=Built)
    return None


def _write_cached(path: Path, built: Built) -> None:
    """Keep it if that is possible; a cache that cannot be written costs time, not the build."""
    data = msgspec.msgpack.encode(built)
    with suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, hashlib.sha256(data).digest() + data)


def _compile(name: str, template: Template, axes: Mapping[str, AxisValue], target: str) -> Built:
    place = f"template {name} for {target}"
    if target not in TARGETS:
        raise CompileError(place, f"expected one of {', '.join(TARGETS)}, found {target!r}", field="target")
    template.check(axes)
    pdl = axes.get("pdl") is True
    if pdl and not has_pdl(target):
        raise CompileError(place, f"expected sm_{FIRST_WITH_PDL} or later, found {target}", field="axis pdl")
    if isinstance(template.function, CudaFunction):
        return _compile_cuda(place, template, template.function, axes, target)
    try:
        kernel = _run_triton(template, axes, TARGETS[target])
    except Exception as error:  # Triton, LLVM and ptxas raise whatever they like
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise CompileError(place, f"triton refused it: {words[-1]}") from error
    kinds: tuple[ParameterKind, ...] = (
        *(parameter.kind(axes) for parameter in template.present(axes)),
        "scratch",
        "scratch",
    )
    entry, threads = _check_ptx(place, kernel.asm["ptx"], kinds)
    _check_metadata(place, kernel.metadata)
    code: bytes = kernel.asm["ptx"].encode() if target == PORTABLE else kernel.asm["cubin"]
    used = None if target == PORTABLE else registers(code, entry)
    return Built(target, dict(axes), entry, kinds, threads, kernel.metadata.shared, pdl, used, code)


def _compile_cuda(
    place: str, template: Template, function: CudaFunction, axes: Mapping[str, AxisValue], target: str
) -> Built:
    if target != HOPPER:
        raise CompileError(place, f"expected {HOPPER}, found {target}", field="target")
    constants = "".join(_constant(name, value) for name, value in template.constants(axes).items())
    try:
        code = nvrtc.compile_cuda(constants + function.text(axes), target)
    except RuntimeError as error:
        raise CompileError(place, f"nvrtc refused it: {error}") from error
    kinds: tuple[ParameterKind, ...] = tuple(parameter.kind(axes) for parameter in template.present(axes))
    _check_widths(place, re.search(r"\.entry\s+(\w+)\s*\((.*?)\)", code.ptx, re.DOTALL), kinds)
    shared, threads, used = function.shared_bytes(axes), function.threads(axes), registers(code.cubin, function.entry)
    return Built(target, dict(axes), function.entry, kinds, threads, shared, axes["pdl"] is True, used, code.cubin)


def _constant(name: str, value: AxisValue) -> str:
    """A constant of C++, for a number or a truth."""
    kind, text = ("bool", str(value).lower()) if isinstance(value, bool) else ("int", str(value))
    return f"constexpr {kind} {name} = {text};\n"


def _run_triton(template: Template, axes: Mapping[str, AxisValue], capability: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    present = {parameter.name: parameter.triton_type(axes) for parameter in template.present(axes)}
    absent = {parameter.name: None for parameter in template.parameters if parameter.name not in present}
    constants = absent | dict(template.constants(axes))
    signature = present | dict.fromkeys(constants, "constexpr")
    # Operands lie at multiples of 256, so loads may be 16 bytes wide; fields of the parameter block only at 4.
    aligned = [i for i, p in enumerate(template.parameters) if p.source == "operand" and p.is_present(axes)]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(template.function, signature, constants, attributes)
    # Fusion is said, not left to a default that differs between versions of Triton: it decides the bits.
    options = {"num_warps": axes["warps"], "enable_fp_fusion": True}
    with _reproducible():
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@contextmanager
def _reproducible() -> Generator[None]:
    """Triton without line numbers, and without its own cache, which may hold a build that has them."""
    from triton import knobs

    with knobs.compilation.scope(), knobs.cache.scope(), tempfile.TemporaryDirectory() as folder:
        knobs.compilation.disable_line_info = True
        knobs.compilation.always_compile = True
        knobs.cache.dir = folder
        yield


def _check_ptx(place: str, ptx: str, kinds: tuple[ParameterKind, ...]) -> tuple[str, int]:
    """The entry's name and threads, once its parameters have the widths that the launch ABI says."""
    entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)", ptx, re.DOTALL)
    threads = re.search(r"\.reqntid\s+(\d+)", ptx)
    if threads is None:
        raise CompileError(place, "expected PTX with its number of threads, found none")
    return _check_widths(place, entry, kinds), int(threads[1])


def _check_widths(place: str, entry: re.Match[str] | None, kinds: tuple[ParameterKind, ...]) -> str:
    """The entry's name, once its parameters have the widths that the launch ABI says."""
    if entry is None:
        raise CompileError(place, "expected PTX with one entry, found none")
    declared = re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.[a-z](\d+)[^,\[]*(?:\[(\d+)\])?", entry[2])
    found = [int(width) * int(count or 1) for width, count in declared]
    expected = [PARAMETER_WIDTHS[kind] for kind in kinds]
    if found != expected:
        raise CompileError(
            place,
            f"expected parameters of {expected} bits, found {found}",
            next_step="this version of the compiler calls kernels in another way: use one that hjgc was tested with",
        )
    return entry[1]


def _check_metadata(place: str, metadata: Any) -> None:
    """What the launch would have to provide and does not."""
    for name, expected in (("num_ctas", 1), ("global_scratch_size", 0), ("profile_scratch_size", 0)):
        found = getattr(metadata, name, expected)
        if found != expected:
            raise CompileError(place, f"expected {expected}, found {found}", field=name)
