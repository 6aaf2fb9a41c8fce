"""How are the variants that a plan needs built, on every core, each once, and how do they stand in the plan?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import SimpleQueue

from hjgc.compiler.build import read_built
from hjgc.compiler.build_worker import BuildWorker, built_variant
from hjgc.compiler.kernels import is_cuda, template, template_digest, template_files
from hjgc.compiler.kernels.declaration import AxisValue
from hjgc.plan_format.building import BuiltVariant
from hjgc.plan_format.chips import HOPPER
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.structs import BuiltCode, CodeReference, ParameterKind, Template, TemplateFile, Variant

VariantKey = tuple[str, str, tuple[tuple[str, AxisValue], ...]]
"""Template, target, axes by name."""


@dataclass(frozen=True)
class DeviceCode:
    """The tables of a plan that say what was built and from what, and the sections that hold both."""

    templates: tuple[Template, ...] = ()
    variants: tuple[Variant, ...] = ()
    sections: tuple[tuple[str, bytes], ...] = ()
    reused: int = 0


def build_variants(
    keys: Sequence[VariantKey], progress: Callable[[str], None], ahead: Collection[VariantKey]
) -> DeviceCode:
    """Build those `ahead` of time that the cache does not hold, in processes of their own, one a core. `progress` is
    told how far it is. Raises CompileError in the compiler's words."""
    built: dict[VariantKey, BuiltVariant] = {}
    wanted = [key for key in keys if key in ahead]
    for name, target, axes in wanted:
        found = read_built(name, dict(axes), target)
        if found is not None:
            built[name, target, axes] = built_variant(found)
    reused = len(built)
    missing = [key for key in wanted if key not in built]
    if missing:
        _build(missing, built, progress)
    return code_tables(keys, built, reused)


def code_tables(keys: Sequence[VariantKey], built: Mapping[VariantKey, BuiltVariant], reused: int = 0) -> DeviceCode:
    """What a plan says of these variants, in this order, those that are not `built` without code."""
    tables = _Tables()
    variants = tuple(tables.variant(key, built.get(key)) for key in keys)
    sections = tuple((kind, bytes(data)) for kind, data in tables.sections.items())
    return DeviceCode(tuple(tables.templates), variants, sections, reused)


def build_all(keys: Sequence[VariantKey], progress: Callable[[str], None]) -> dict[VariantKey, BuiltVariant]:
    """These variants, from the cache or built, without those that the compiler refuses."""
    built: dict[VariantKey, BuiltVariant] = {}
    _build(keys, built, progress, lenient=True)
    return built


def _build(
    keys: Sequence[VariantKey],
    built: dict[VariantKey, BuiltVariant],
    progress: Callable[[str], None],
    *,
    lenient: bool = False,
) -> None:
    """Each core has a worker, and each worker a thread that hands it one variant after the other."""
    workers = min(len(keys), available_cores())
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        idle: SimpleQueue[BuildWorker] = SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(BuildWorker()))

        def work(key: VariantKey) -> BuiltVariant:
            name, target, axes = key
            worker = idle.get()
            try:
                return worker.build(name, dict(axes), target)
            finally:
                idle.put(worker)

        futures = [pool.submit(work, key) for key in keys]
        stack.callback(lambda: [future.cancel() for future in futures])
        for number, (key, future) in enumerate(zip(keys, futures, strict=True)):
            progress(f"build {number + 1} of {len(keys)} kernels")
            with suppress(*((CompileError,) if lenient else ())):
                built[key] = future.result()


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Tables:
    """The tables and sections, filled in the order of use; what is the same is stored once."""

    def __init__(self) -> None:
        self.templates: list[Template] = []
        self.sections: dict[str, bytearray] = {}
        self._places: dict[tuple[str, bytes], int] = {}

    def variant(self, key: VariantKey, built: BuiltVariant | None) -> Variant:
        name, target, axes = key
        values = dict(axes)
        return Variant(
            template=self._template(name, values),
            target=target,
            axes=values,
            parameters=launch_abi(name, values),
            pdl=values.get("pdl") is True,
            built=None if built is None else self._code(target, built),
        )

    def _code(self, target: str, built: BuiltVariant) -> BuiltCode:
        section = "ptx" if target.startswith("compute_") else "cubin"
        offset, digest = self._place(section, built.code), hashlib.sha256(built.code).hexdigest()
        code = CodeReference(section, offset, len(built.code), digest)
        return BuiltCode(built.entry, built.threads, built.shared_bytes, code, built.registers)

    def _template(self, name: str, axes: Mapping[str, AxisValue]) -> int:
        for index, known in enumerate(self.templates):
            if known.name == name:
                return index
        only = HOPPER if is_cuda(name) else None
        files = tuple(self._file(*file) for file in template_files(name).items())
        self.templates.append(Template(name, template_digest(name), tuple(sorted(axes)), files, only))
        return len(self.templates) - 1

    def _file(self, name: str, text: bytes) -> TemplateFile:
        return TemplateFile(name, self._place("templates", text), len(text), hashlib.sha256(text).hexdigest())

    def _place(self, kind: str, data: bytes) -> int:
        section = self.sections.setdefault(kind, bytearray())
        place = self._places.setdefault((kind, data), len(section))
        if place == len(section):
            section += data
        return place


def launch_abi(name: str, axes: Mapping[str, AxisValue]) -> tuple[ParameterKind, ...]:
    """The kernel's parameters in order, known before it is built: Triton adds two pointers of its own."""
    kinds: tuple[ParameterKind, ...] = tuple(parameter.kind(axes) for parameter in template(name).present(axes))
    return kinds if is_cuda(name) else (*kinds, "scratch", "scratch")
