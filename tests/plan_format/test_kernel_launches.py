"""What must hold of launches that are kernels: their grids, arguments, edges, and the ends of their phase?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from hjgc.plan_format import Plan, PlanError
from hjgc.plan_format.hazards import memory_uses
from hjgc.plan_format.sizes import Size, SizeDeclaration
from hjgc.plan_format.structs import AttributeArgument, Edge, Operand, ParameterArgument, TemplateCall, ValueArgument
from hjgc.plan_format.verify import verify
from tests.runtime.norms import CODE, norms_plan

replace = msgspec.structs.replace


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return norms_plan(tmp_path)


def check(plan: Plan) -> None:
    verify(plan, {"cubin": len(CODE)}, Path("norms.hjg"))


def with_phase(plan: Plan, **changes: Any) -> Plan:
    return replace(plan, phases=(replace(plan.phases[0], **changes),))


def with_call(plan: Plan, **changes: Any) -> Plan:
    """Launch 0 calls its kernel in another way."""
    first, *rest = plan.phases[0].launches
    call = first.kernels["sm_90"]
    assert isinstance(call, TemplateCall)
    return with_phase(plan, launches=(replace(first, kernels={"sm_90": replace(call, **changes)}), *rest))


def with_argument(plan: Plan, index: int, argument: object) -> Plan:
    call = plan.phases[0].launches[0].kernels["sm_90"]
    assert isinstance(call, TemplateCall)
    return with_call(plan, arguments=(*call.arguments[:index], argument, *call.arguments[index + 1 :]))


def test_four_norms_in_a_row_are_legal(plan: Plan) -> None:
    check(plan)


@pytest.mark.parametrize(
    ("index", "argument", "complaint"),
    [
        (3, ParameterArgument("width"), r"arguments\[3\]: expected a pointer, or one of \['start', 'length'"),
        (4, ParameterArgument("length"), r"arguments\[4\]: expected a int32"),
        (5, AttributeArgument("missing"), r"arguments\[5\]: expected an attribute of type float32"),
        (4, ValueArgument(Size("length")), r"arguments\[4\]: expected sizes among \['tokens'\], found \['length'\]"),
    ],
)
def test_an_argument_that_cannot_be_passed_is_refused(plan: Plan, index: int, argument: object, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        check(with_argument(plan, index, argument))


def test_a_grid_of_a_size_that_only_the_device_knows_is_refused(plan: Plan) -> None:
    sizes = (*plan.phases[0].sizes, SizeDeclaration("length", 1, 16, "device"))
    with pytest.raises(PlanError, match=r"grid\[0\]: expected sizes among \['tokens'\], found \['length'\]"):
        check(with_phase(with_call(plan, grid=(Size("length"), 1, 1)), sizes=sizes))


def test_a_kernel_that_takes_a_field_reads_the_parameter_block(plan: Plan) -> None:
    launch = plan.phases[0].launches[0]
    assert ("parameters", 0, True, False) in memory_uses(plan.phases[0], launch)
    assert ("parameters", 0, True, False) not in memory_uses(plan.phases[0], replace(launch, kernels={}))


def test_an_edge_given_twice_is_refused(plan: Plan) -> None:
    edges = plan.phases[0].edges
    with pytest.raises(PlanError, match=r"edges\[3\]: expected each edge once, found \(0, 1\)"):
        check(with_phase(plan, edges=(*edges, Edge(0, 1))))


def test_an_early_edge_to_a_kernel_not_built_for_it_is_refused(plan: Plan) -> None:
    with pytest.raises(PlanError, match=r"edges\[0\].kind: expected pdl between kernels built for it"):
        check(replace(plan, variants=(replace(plan.variants[0], pdl=False),)))


def test_an_early_edge_may_be_a_full_one_on_a_chip_that_cannot_overlap(plan: Plan) -> None:
    older = replace(plan.variants[0], target="sm_80", pdl=False, axes={"pdl": False})
    launches = tuple(
        replace(launch, kernels=launch.kernels | {"sm_80": replace(launch.kernels["sm_90"], variant=1)})
        for launch in plan.phases[0].launches
    )
    both = replace(plan, targets=("sm_90", "sm_80"), variants=(*plan.variants, older))
    check(with_phase(both, launches=launches))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"inputs": ()}, r"inputs: expected what entry 'tensor' needs"),
        ({"entry": "token"}, r"inputs: expected what entry 'token' needs"),
        ({"inputs": (0, 0)}, r"inputs: expected each buffer once"),
        ({"inputs": (5,)}, r"inputs\[0\]: expected an index below 5"),
        ({"inputs": (2,)}, r"inputs\[0\]: expected alive at launch 0, found 'x2'"),
        ({"outputs": (1,)}, r"outputs\[0\]: expected alive at launch 3, found 'x1'"),
    ],
)
def test_the_ends_of_a_phase_must_live_when_the_caller_touches_them(
    plan: Plan, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(PlanError, match=complaint):
        check(with_phase(plan, **changes))


def test_what_is_neither_an_input_nor_written_may_not_be_read(plan: Plan) -> None:
    first, *rest = plan.phases[0].launches
    swapped = (Operand("x", "buffer", 1, "read"), first.operands[1], Operand("y", "buffer", 0, "write"))
    with pytest.raises(PlanError, match=r"expected 'x1' written before launch 0"):
        check(with_phase(plan, launches=(replace(first, operands=swapped), *rest)))


def test_a_variant_may_be_left_to_be_built_later_and_its_calls_are_checked_all_the_same(plan: Plan) -> None:
    unbuilt = replace(plan, variants=(replace(plan.variants[0], built=None),))
    check(unbuilt)
    fewer = replace(unbuilt.variants[0], parameters=unbuilt.variants[0].parameters[1:])
    with pytest.raises(PlanError, match=r"arguments: expected 5, found 6"):
        check(replace(unbuilt, variants=(fewer,)))
