"""Do the templates for Hopper mean on this GPU what their ops mean, with the same bits at every run?"""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")

import torch

from hjgc.compiler.build import build
from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.declaration import Template
from tests.gpu.hopper_device import MappedCall, run
from tests.gpu.prefill_device import Graph, driver, load
from tests.prefill_cases import AxisValues, Case, check

TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3}
TILE: AxisValues = {
    "dtype": "float16", "warpgroups": 2, "slabs": 1, "height": 0, "stages": 4, "share": "none", "blocks": 132,
    "resident": 1, "lead": 0, "pdl": True,
}  # fmt: skip
LENGTHS = (1, 2, 17, 129, 256, 257, 511)


def case(name: str, op: str, rows: int, columns: int, lengths: tuple[int, ...], block_n: int, **more: object) -> Case:
    start, own = int(str(more.pop("start", 0))), {"bias": False} if op != "linear_parts" else {"splits": 1}
    tokens = max(lengths)
    sizes = {"rows": rows, "columns": columns, "row_capacity": tokens, "tokens": tokens, "block_n": block_n}
    return Case(name, f"hopper_{op}", TILE | own | sizes | more, lengths, tokens, start)  # type: ignore[arg-type]


def inputs(
    name: str, heads: int, kv: int, size: int, columns: int, lengths: tuple[int, ...], n: int, **more: object
) -> Case:
    layout = {"heads": heads, "kv_heads": kv, "head_size": size, "head_norm": False, "ring": False, "capacity": 600}
    return case(name, "attention_inputs", (heads + 2 * kv) * size, columns, lengths, n, **(layout | more))


CASES = (
    case("parts", "linear_parts", 256, 512, (1, 2, 17), 24),
    case("parts of 7B output", "linear_parts", 4096, 4096, LENGTHS, 256, splits=4, share="x"),
    case("parts of 7B down", "linear_parts", 4096, 11008, (257, 270), 136, splits=3, slabs=2, share="weight", stages=3),
    case("parts of odd sizes", "linear_parts", 200, 328, (3, 40), 48, splits=3, warpgroups=1, blocks=3),
    case("parts in bf16", "linear_parts", 1032, 2048, (33, 65), 72, dtype="bfloat16", warpgroups=3, resident=1),
    case("parts, two to a multiprocessor", "linear_parts", 4096, 1024, (5, 16), 16, resident=2, lead=9),
    case("parts without PDL", "linear_parts", 640, 256, (130, 144), 72, pdl=False, share="weight", slabs=2),
    case("gated", "gated_linear", 1376, 256, (1, 33), 40),
    case("7B gated", "gated_linear", 22016, 4096, LENGTHS, 176, slabs=2, stages=3),
    case("7B gated, shared x", "gated_linear", 22016, 4096, (17, 129), 136, share="x", stages=5),
    case("1B gated in bf16", "gated_linear", 11264, 2048, (2, 100), 104, dtype="bfloat16", bias=True, share="x"),
    case("gated, three warpgroups", "gated_linear", 3072, 512, (190,), 96, warpgroups=3, share="weight", stages=3),
    case("parts of 7B output, 96 rows a tile", "linear_parts", 4096, 4096, (1, 16, 65), 72, splits=3, height=96),
    case("7B gated, 176 rows a tile", "gated_linear", 22016, 4096, (3, 16), 16, warpgroups=3, height=176, stages=9),
    case("gated, 80 rows a tile, shared x", "gated_linear", 1376, 256, (33,), 40, height=80, share="x", bias=True),
    inputs("7B inputs, 96 rows a tile", 32, 32, 128, 4096, (16, 112), 112, height=96, share="x", stages=7, start=9),
    inputs("inputs of 64 a head, 80 rows a tile", 32, 4, 64, 2048, (8,), 8, height=80, stages=12, bias=True),
    inputs("7B inputs", 32, 32, 128, 4096, LENGTHS, 128, slabs=3, share="weight", stages=3, start=70),
    inputs("7B inputs in a ring", 32, 32, 128, 4096, (16, 128), 128, slabs=3, stages=3, start=1190, ring=True),
    inputs("7B inputs, shared x", 32, 32, 128, 4096, (129,), 136, share="x", bias=True),
    inputs("8B inputs with norms", 32, 8, 128, 4096, (5, 65), 72, head_norm=True, start=9, dtype="bfloat16"),
    inputs("inputs with norms of two slabs", 8, 2, 128, 1024, (130, 250), 128, head_norm=True, slabs=2, stages=3),
    inputs("inputs of 64 a head", 32, 4, 64, 2048, (1, 48), 48, start=3),
    inputs("inputs of 80 a head", 6, 2, 80, 512, (17, 64), 32, warpgroups=1, bias=True),
    inputs("inputs of 96 a head", 5, 1, 96, 768, (2, 40), 40, slabs=2, start=1),
    inputs("inputs of 16 a head", 4, 4, 16, 64, (3,), 8),
)


def with_operands(declared: Template) -> Template:
    """The same with the tensors that its tensor maps are made from, as operands."""
    sources = {"tensor_map": "operand"}
    parameters = tuple(replace(p, source=sources.get(p.source, p.source)) for p in declared.parameters)
    return replace(declared, parameters=parameters)


@pytest.fixture(autouse=True)
def _on_hopper() -> None:  # pyright: ignore[reportUnusedFunction]
    if driver().target != "sm_90":
        pytest.skip(f"built for sm_90 alone, found {driver().target}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_template_means_its_op_at_every_length(case: Case) -> None:
    outcome = check(case, with_operands(template(case.template)), run, "cuda")
    assert outcome.error < TOLERANCE[str(case.axes["dtype"])]
    assert outcome.same
    assert outcome.untouched


@pytest.mark.parametrize("share", ["x", "weight"])
def test_blocks_of_a_cluster_may_end_in_any_order(share: str) -> None:
    """A block that ends while the other still arrives at its barriers breaks the context, once in many thousands."""
    found = case("", "linear_parts", 4096, 512, (64,), 32, share=share, warpgroups=1, stages=3, splits=2)
    name, axes = found.template, found.axes
    x, weight = torch.randn(64, 512, device="cuda").half(), torch.randn(4096, 512, device="cuda").half()
    parts, length = torch.empty(2, 64, 4096, device="cuda"), torch.tensor([64], dtype=torch.int32, device="cuda")
    code = load(build(name, axes, "sm_90"))
    call = MappedCall(code, name, axes, template(name).grid({}, axes), [x, weight, parts, length])  # type: ignore[arg-type]
    graph = Graph([call] * 64)
    for _ in range(300):
        graph.replay(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    graph.drop()
    wanted = x.float() @ weight.float().T
    assert float((parts.sum(0) - wanted).norm() / wanted.norm()) < 1e-3
