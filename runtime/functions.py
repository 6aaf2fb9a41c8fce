"""Which functions of the caller's does a plan call, are they there, and do they give what they must?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.ops.declaration import LOGITS_PROCESSOR
from hjgc.plan_format.structs import HostCall, Launch, Plan
from hjgc.runtime.backend import HostFunction

Rows = NDArray[np.float32]


def callback_of(launch: Launch) -> str | None:
    """The name of the function that the launch calls; None for a launch on the device."""
    return next((kernel.callback for kernel in launch.kernels.values() if isinstance(kernel, HostCall)), None)


def function_names(plan: Plan) -> tuple[str, ...]:
    """The functions that a session needs to serve the plan, in the order of their calls."""
    called = (callback_of(launch) for phase in plan.phases for launch in phase.launches)
    return tuple(dict.fromkeys(name for name in called if name is not None and name != LOGITS_PROCESSOR))


class Functions:
    """The functions that one plan calls by name. May be used from any thread."""

    def __init__(self, plan: Plan, given: Mapping[str, HostFunction]) -> None:
        """Raises RunError for one that the plan does not call."""
        self.names = function_names(plan)
        self._given: dict[str, HostFunction] = {}
        for name, function in given.items():
            self.register(name, function)

    def register(self, name: str, function: HostFunction) -> None:
        """From the next call on. Raises RunError for what the plan does not call, or what cannot be called."""
        if name not in self.names:
            calls = ", ".join(map(repr, self.names)) or "none"
            raise RunError(f"expected the name of a function that this plan calls ({calls}), found {name!r}")
        if not callable(function):
            raise RunError(f"expected a function for {name!r}, found {type(function).__name__}")
        self._given[name] = function

    def check(self) -> None:
        """Raises RunError that names the first that is missing."""
        for name in self.names:
            self.get(name)

    def get(self, name: str) -> HostFunction:
        """The function, with a look at what it gives. Raises RunError if it is missing."""
        function = self._given.get(name)
        if function is None:
            raise RunError(
                f"expected a function {name!r}, which this plan calls on the host, found none; from Python, pass "
                f"functions={{{name!r}: f}} to hjgc.LLM or hjgc.load, or call session.register({name!r}, f)"
            )

        def call(rows: Rows) -> Rows | None:
            shape = rows.shape
            changed: Any = function(rows)
            return None if changed is None else _checked(name, changed, shape)

        return call


def _checked(name: str, changed: Any, shape: tuple[int, ...]) -> Rows:
    found = np.asarray(changed)
    real = np.issubdtype(found.dtype, np.floating) or np.issubdtype(found.dtype, np.integer)
    if found.shape != shape or not real:
        raise RunError(
            f"expected rows {list(shape)} of real numbers, or None, from the function {name!r}, found "
            f"{type(changed).__name__} {list(found.shape)} of {found.dtype}"
        )
    return np.ascontiguousarray(found, np.float32)
