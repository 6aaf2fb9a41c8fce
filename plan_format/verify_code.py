"""Do templates and variants describe code that is in the plan, for the targets that the plan names?"""

from __future__ import annotations

import re
from collections.abc import Mapping

from hjgc.plan_format.checker import MAX_NAME, Checker, brief
from hjgc.plan_format.chips import FIRST_WITH_PDL, has_pdl
from hjgc.plan_format.structs import BuiltCode, CodeReference, Plan, Template, Variant
from hjgc.plan_format.verify_tables import check_digest

SYMBOL = re.compile(r"\w{1,256}", re.ASCII)
MAX_AXES = 64
MAX_FILES = 64
MAX_PARAMETERS = 128
MAX_REGISTERS = 255
MAX_SHARED_BYTES = 1 << 20
WARP = 32
MOST_THREADS = 1024


def check_variants(plan: Plan, section_lengths: Mapping[str, int], check: Checker) -> None:
    check.unique_names((template.name for template in plan.templates), "$.templates")
    for i, template in enumerate(plan.templates):
        _check_template(template, section_lengths.get("templates", 0), f"$.templates[{i}]", check)
    for i, variant in enumerate(plan.variants):
        _check_variant(plan, variant, f"$.variants[{i}]", check)
        if variant.built is not None:
            _check_built(variant.built, variant.target, f"$.variants[{i}].built", check)
            _check_code(variant.built.code, section_lengths, f"$.variants[{i}].built.code", check)


def _check_template(template: Template, section: int, where: str, check: Checker) -> None:
    check_digest(template.digest, f"{where}.digest", check)
    check.count(template.axes, MAX_AXES, f"{where}.axes")
    check.unique_names(template.axes, f"{where}.axes")
    if template.only is not None:
        check.text(template.only, f"{where}.only", MAX_NAME)
    check.count(template.files, MAX_FILES, f"{where}.files")
    check.unique_names((file.name for file in template.files), f"{where}.files")
    for i, file in enumerate(template.files):
        place = f"{where}.files[{i}]"
        check.require("/" not in file.name and "\\" not in file.name, place, "a name without folders", file.name)
        fits = file.offset >= 0 and file.length > 0 and file.offset + file.length <= section
        check.require(fits, place, f"a range inside the templates section of {section}", (file.offset, file.length))
        check_digest(file.sha256, f"{place}.sha256", check)
    text = sum(file.length for file in template.files)
    check.require(text <= section, f"{where}.files", f"at most the {section} bytes of text there are", text)


def _check_variant(plan: Plan, variant: Variant, where: str, check: Checker) -> None:
    check.index(variant.template, plan.templates, f"{where}.template")
    on_gpu = variant.target in plan.targets and variant.target != "cpu"
    check.require(on_gpu, f"{where}.target", f"a GPU among {plan.targets}", variant.target)
    template = plan.templates[variant.template]
    suits = template.only in (None, variant.target)
    check.require(suits, f"{where}.target", f"{template.only}, all that its template is for", variant.target)
    axes = set(template.axes)
    check.require(set(variant.axes) == axes, f"{where}.axes", brief(sorted(axes)), sorted(variant.axes))
    for axis, value in variant.axes.items():
        if isinstance(value, str):
            check.text(value, f"{where}.axes.{axis}", MAX_NAME)
    check.count(variant.parameters, MAX_PARAMETERS, f"{where}.parameters")
    waits = not variant.pdl or has_pdl(variant.target)
    check.require(waits, f"{where}.pdl", f"false before sm_{FIRST_WITH_PDL}", variant.target)


def _check_built(built: BuiltCode, target: str, where: str, check: Checker) -> None:
    check.require(SYMBOL.fullmatch(built.entry) is not None, f"{where}.entry", "a symbol", built.entry)
    whole = 0 < built.threads <= MOST_THREADS and built.threads % WARP == 0
    check.require(whole, f"{where}.threads", f"a multiple of {WARP} up to {MOST_THREADS}", built.threads)
    shared = 0 <= built.shared_bytes <= MAX_SHARED_BYTES
    check.require(shared, f"{where}.shared_bytes", f"0 to {MAX_SHARED_BYTES}", built.shared_bytes)
    registers = built.registers is None or 0 <= built.registers <= MAX_REGISTERS
    check.require(registers, f"{where}.registers", f"0 to {MAX_REGISTERS}", built.registers)
    section = "ptx" if target.startswith("compute_") else "cubin"
    check.require(built.code.section == section, f"{where}.code.section", section, built.code.section)


def _check_code(code: CodeReference, section_lengths: Mapping[str, int], where: str, check: Checker) -> None:
    section = section_lengths.get(code.section, 0)
    fits = code.offset >= 0 and code.length > 0 and code.offset + code.length <= section
    check.require(fits, where, f"a range inside the {code.section} section of {section}", (code.offset, code.length))
    check_digest(code.sha256, f"{where}.sha256", check)
