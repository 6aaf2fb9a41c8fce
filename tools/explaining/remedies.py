"""What is the smallest change that would make a dynamic launch static?"""

from __future__ import annotations

from hjgc.plan_format.ops.declaration import LOGITS_PROCESSOR
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.structs import HostCall, Launch
from hjgc.tools.explaining.chains import Cause

ISLAND = "island"
WITHOUT_PROCESSOR = (
    "send the request without a logits_processor: the schedule `default` has no such launch; temperature, top-k, "
    "top-p, min-p and the repetition penalty run on the device as they are"
)


def remedy(launch: Launch, cause: Cause) -> str:
    """In words that a person can act on. `launch` is the one that the reason is given for."""
    nodes = [link.name for link in cause.chain if link.kind == "onnx_node"] or [launch.name]
    node = nodes[-1 if cause.code is ReasonCode.RANDOM else 0]  # the one that draws may lie in a branch or a body
    match cause.code:
        case ReasonCode.HOST_READ:
            return _host_read(launch, node)
        case ReasonCode.UNBOUNDED_SIZE:
            size = next((link.name for link in cause.chain if link.kind == "size"), "that size")
            return (
                f"give {size} an upper bound: fix that axis of the model's input, then compile with --prompt, --context"
            )
        case ReasonCode.DATA_DEPENDENT_SHAPE:
            return (
                f"in the ONNX file, replace node {node} by operators whose result has one shape for all values: a mask "
                "(Where) in place of a selection (NonZero, Compress, Unique)"
            )
        case ReasonCode.DATA_DEPENDENT_ADDRESS:
            return (
                f"none in the model: which experts node {node} reads is what it computes; kernels of hjgc that choose "
                "them on the device would capture it"
            )
        case ReasonCode.HOST_CONTROL_FLOW:
            return (
                f"in the ONNX file, replace node {node} by operators that compute both branches and choose (Where), or "
                "unroll its loop"
            )
        case ReasonCode.LIBRARY_NOT_CAPTURABLE:
            return f"compile for a target that has a kernel template for {launch.op}, so that no library is called"
        case ReasonCode.HOST_TYPE:
            return f"in the ONNX file, give node {node} numbers of a type that buffers hold, of a known rank"
        case ReasonCode.RANDOM:
            return f"draw outside of the model, and give node {node}'s result as an input"
        case ReasonCode.NO_TEMPLATE if launch.op == ISLAND:
            return (
                f"in the ONNX file, write node {node} with operators that hjgc computes (docs/functions.md), or add a "
                "rule in compiler/function"
            )
        case ReasonCode.NO_TEMPLATE:
            return (
                f"compile with another --target or --dtype that {launch.op} has a kernel template for, or add one in "
                "compiler/kernels"
            )


def _host_read(launch: Launch, node: str) -> str:
    if launch.op == ISLAND:
        return f"in the ONNX file, make that operand of node {node} a constant, so that shapes are known beforehand"
    names = {kernel.callback for kernel in launch.kernels.values() if isinstance(kernel, HostCall)}
    if names == {LOGITS_PROCESSOR}:
        return WITHOUT_PROCESSOR
    if names:
        function = min(names)
        return (
            f"in the ONNX file, write the function {function!r} as ONNX operators in place of node {node}, or take the "
            "node out, and compile again"
        )
    return f"keep what {launch.name} computes on the device: nobody but a function of the caller's needs it on the host"
