"""How are all variants that a plan needs built, on every core, each once?"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue

from hjgc.compiler.build import Built, read_built
from hjgc.compiler.build_worker import BuildWorker
from hjgc.compiler.kernels import template_digest
from hjgc.compiler.kernels.declaration import AxisValue
from hjgc.plan_format.structs import Template, Variant

VariantKey = tuple[str, str, tuple[tuple[str, AxisValue], ...]]
"""Template, target, axes by name."""


@dataclass(frozen=True)
class DeviceCode:
    """The tables of a plan that say what was built, and the sections that hold it."""

    templates: tuple[Template, ...] = ()
    variants: tuple[Variant, ...] = ()
    sections: tuple[tuple[str, bytes], ...] = ()
    reused: int = 0


def build_variants(keys: Sequence[VariantKey], progress: Callable[[str], None]) -> DeviceCode:
    """Build what the cache does not hold, in processes of their own, one a core. `progress` is told how far it is.

    Raises CompileError in the compiler's words."""
    built: dict[VariantKey, Built] = {}
    for name, target, axes in keys:
        found = read_built(name, dict(axes), target)
        if found is not None:
            built[name, target, axes] = found
    reused = len(built)
    missing = [key for key in keys if key not in built]
    if missing:
        _build(missing, built, progress)
    return _tables(keys, built, reused)


def _build(keys: Sequence[VariantKey], built: dict[VariantKey, Built], progress: Callable[[str], None]) -> None:
    """Each core has a worker, and each worker a thread that hands it one variant after the other."""
    workers = min(len(keys), available_cores())
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        idle: SimpleQueue[BuildWorker] = SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(BuildWorker()))

        def work(key: VariantKey) -> Built:
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
            built[key] = future.result()


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tables(keys: Sequence[VariantKey], built: dict[VariantKey, Built], reused: int) -> DeviceCode:
    """In the order of the keys; code that is the same is stored once."""
    names = list(dict.fromkeys(name for name, _, _ in keys))
    templates = tuple(
        Template(name, template_digest(name), tuple(sorted(next(dict(axes) for n, _, axes in keys if n == name))))
        for name in names
    )
    sections: dict[str, bytearray] = {}
    places: dict[tuple[str, bytes], int] = {}
    variants: list[Variant] = []
    for name, target, axes in keys:
        found = built[name, target, axes]
        section = sections.setdefault(found.section, bytearray())
        place = places.setdefault((found.section, found.cubin), len(section))
        if place == len(section):
            section += found.cubin
        variants.append(found.variant(names.index(name), place))
    return DeviceCode(templates, tuple(variants), tuple((k, bytes(v)) for k, v in sections.items()), reused)
