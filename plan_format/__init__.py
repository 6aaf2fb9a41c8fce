"""What is a plan: its structs, its bytes, what makes it legal, and how it reads as text?"""

from hjgc.plan_format.codec import PlanFile, decode, encode, load, save
from hjgc.plan_format.errors import CompileError, HjgcError, InputError, PlanError, RunError
from hjgc.plan_format.structs import DebugMap, Plan

__all__ = [
    "CompileError",
    "DebugMap",
    "HjgcError",
    "InputError",
    "Plan",
    "PlanError",
    "PlanFile",
    "RunError",
    "decode",
    "encode",
    "load",
    "save",
]
