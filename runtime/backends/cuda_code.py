"""How does device code in a plan become functions that may be launched on this device?"""

from __future__ import annotations

import hashlib

from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.structs import HostCall, Plan, RowsCall, TemplateCall, Variant
from hjgc.runtime.backends.cuda_driver import Driver, DriverError, Handle

PARAMETER_BYTES = {"pointer": 8, "scratch": 8, "int32": 4, "int64": 8, "float32": 4, "tensor_map": 128}


class Code:
    """The variants of one target, loaded: `functions[i]` belongs to `plan.variants[i]`, None for other targets."""

    def __init__(self, driver: Driver, file: PlanFile, target: str) -> None:
        self._driver, self._file, self._target = driver, file, target
        self._modules: list[Handle] = []
        check_target(file, target)
        try:
            self.functions = [self._function(i, variant) for i, variant in enumerate(file.plan.variants)]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        while self._modules:
            self._driver.unload_module(self._modules.pop())

    def _function(self, index: int, variant: Variant) -> Handle | None:
        if variant.target != self._target:
            return None
        place = f"$.variants[{index}]"
        code = self._checked_bytes(variant, place)
        try:
            self._modules.append(self._driver.load_module(code))
            function = self._driver.function(self._modules[-1], variant.entry, variant.shared_bytes)
        except DriverError as error:
            raise PlanError(
                self._file.path,
                f"expected code for {variant.target}, found what the driver refuses: {error}",
                field=f"{place}.code",
                next_step="compile the model again for this device",
            ) from None
        self._check_parameters(variant, self._driver.parameter_widths(function), place)
        return function

    def _checked_bytes(self, variant: Variant, place: str) -> bytes:
        code = variant.code
        data = self._file.section(code.section)[code.offset : code.offset + code.length]
        if hashlib.sha256(data).hexdigest() != code.sha256:
            raise PlanError(
                self._file.path,
                "expected code with the sha256 in the plan, found another",
                field=f"{place}.code.sha256",
                next_step="the file is damaged: copy or compile it again",
            )
        return data

    def _check_parameters(self, variant: Variant, found: tuple[int, ...], place: str) -> None:
        expected = tuple(PARAMETER_BYTES[kind] for kind in variant.parameters)
        if found != expected:
            problem = f"expected parameters of {list(expected)} bytes, found code that takes {list(found)}"
            raise PlanError(self._file.path, problem, field=f"{place}.parameters")


def check_target(file: PlanFile, target: str) -> None:
    """Every launch must be a kernel of this device's, or the host's. Raises PlanError."""
    plan: Plan = file.plan
    if target not in plan.targets:
        raise PlanError(
            file.path,
            f"expected code for {target}, this machine's device; found {', '.join(plan.targets)}",
            field="$.targets",
            next_step=f"compile with --target {target}",
        )
    for phase in plan.phases:
        for launch in phase.launches:
            kernel = launch.kernels[target]
            if not isinstance(kernel, TemplateCall | RowsCall | HostCall):
                problem = f"expected a kernel, found a {type(kernel).__name__}, which does not run on CUDA"
                raise PlanError(file.path, problem, field=f"{phase.name}/{launch.name}")
