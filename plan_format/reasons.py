"""Why is a node dynamic? One code each, with the sentence a person reads."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ReasonCode(StrEnum):
    HOST_READ = "HOST_READ"
    DATA_DEPENDENT_SHAPE = "DATA_DEPENDENT_SHAPE"
    UNBOUNDED_SIZE = "UNBOUNDED_SIZE"
    HOST_CONTROL_FLOW = "HOST_CONTROL_FLOW"
    LIBRARY_NOT_CAPTURABLE = "LIBRARY_NOT_CAPTURABLE"
    NO_TEMPLATE = "NO_TEMPLATE"
    HOST_TYPE = "HOST_TYPE"
    DATA_DEPENDENT_ADDRESS = "DATA_DEPENDENT_ADDRESS"
    RANDOM = "RANDOM"

    @property
    def sentence(self) -> str:
        return SENTENCES[self]


SENTENCES = {
    ReasonCode.HOST_READ: "the host reads or writes its operands between two launches",
    ReasonCode.DATA_DEPENDENT_SHAPE: "the shape of its result depends on values, not on sizes",
    ReasonCode.UNBOUNDED_SIZE: "a size it depends on has no declared upper bound",
    ReasonCode.HOST_CONTROL_FLOW: "the host chooses at run time what is launched",
    ReasonCode.LIBRARY_NOT_CAPTURABLE: "the library call it needs may not be captured",
    ReasonCode.NO_TEMPLATE: "no kernel template covers it on this target",
    ReasonCode.DATA_DEPENDENT_ADDRESS: "which weights it reads depends on values",
    ReasonCode.HOST_TYPE: "only the host holds values of such a type",
    ReasonCode.RANDOM: "it draws numbers that nobody can draw again",
}


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Why launch number `launch` is dynamic; `chain` leads from it to the input that causes it, nearest first."""

    launch: int
    code: ReasonCode
    chain: tuple[str, ...]
