"""How does device code, from a plan or built since, become functions that may be launched on this device?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from hjgc.plan_format.building import BuiltVariant
from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.structs import BuiltCode, HostCall, IslandCall, Plan, RowsCall, TemplateCall
from hjgc.runtime.backends.cuda_driver import Driver, DriverError, Handle

PARAMETER_BYTES = {"pointer": 8, "scratch": 8, "int32": 4, "int64": 8, "float32": 4, "tensor_map": 128}


@dataclass(frozen=True)
class Loaded:
    """A variant on this device: its function, and how it is launched."""

    function: Handle
    threads: int
    shared_bytes: int


class Code:
    """The variants of one target, loaded: `loaded[i]` belongs to `plan.variants[i]`, None for one of another target and
    for one that is not built. `built` goes before what the plan's file holds."""

    def __init__(
        self, driver: Driver, file: PlanFile, plan: Plan, target: str, built: Mapping[int, BuiltVariant]
    ) -> None:
        self._driver, self._file, self._plan = driver, file, plan
        self._modules: dict[int, Handle] = {}
        self.loaded: list[Loaded | None] = [None] * len(plan.variants)
        check_target(file, plan, target)
        self._sections: dict[str, bytes] = {}
        try:
            for index, variant in enumerate(plan.variants):
                if index in built:
                    self.load(index, built[index])
                elif variant.target == target and variant.built is not None:
                    self._load_planned(index, variant.built)
        except BaseException:
            self.close()
            raise
        finally:
            self._sections.clear()

    def close(self) -> None:
        self.unload(self._plan.targets)

    def unload(self, targets: tuple[str, ...]) -> None:
        """Give back the code of these targets, which nothing launches any more."""
        for index in [i for i in self._modules if self._plan.variants[i].target in targets]:
            self.loaded[index] = None
            self._driver.unload_module(self._modules.pop(index))

    def load(self, index: int, built: BuiltVariant) -> None:
        """Take in a variant that was built since. Raises PlanError for what the driver refuses."""
        self._load(index, built.entry, built.threads, built.shared_bytes, built.code)

    def _load_planned(self, index: int, built: BuiltCode) -> None:
        code = self._checked_bytes(built, f"$.variants[{index}].built")
        self._load(index, built.entry, built.threads, built.shared_bytes, code)

    def _load(self, index: int, entry: str, threads: int, shared_bytes: int, code: bytes) -> None:
        try:
            function = self._function(index, entry, shared_bytes, code)
        except DriverError as error:
            raise PlanError(
                self._file.path,
                f"expected code for {self._plan.variants[index].target}, found what the driver refuses: {error}",
                field=f"$.variants[{index}].built.code",
                next_step="compile the model again for this device",
            ) from None
        self.loaded[index] = Loaded(function, threads, shared_bytes)

    def _function(self, index: int, entry: str, shared_bytes: int, code: bytes) -> Handle:
        """The function, its module loaded to stay; nothing stays of code that will not do."""
        module = self._driver.load_module(code)
        try:
            function = self._driver.function(module, entry, shared_bytes)
            self._check_parameters(index, self._driver.parameter_widths(function))
        except BaseException:
            self._driver.unload_module(module)
            raise
        self._modules[index] = module
        return function

    def _checked_bytes(self, built: BuiltCode, place: str) -> bytes:
        code = built.code
        if code.section not in self._sections:
            self._sections[code.section] = self._file.section(code.section)
        data = self._sections[code.section][code.offset : code.offset + code.length]
        if hashlib.sha256(data).hexdigest() != code.sha256:
            raise PlanError(
                self._file.path,
                "expected code with the sha256 in the plan, found another",
                field=f"{place}.code.sha256",
                next_step="the file is damaged: copy or compile it again",
            )
        return data

    def _check_parameters(self, index: int, found: tuple[int, ...]) -> None:
        expected = tuple(PARAMETER_BYTES[kind] for kind in self._plan.variants[index].parameters)
        if found != expected:
            problem = f"expected parameters of {list(expected)} bytes, found code that takes {list(found)}"
            raise PlanError(self._file.path, problem, field=f"$.variants[{index}].parameters")


def check_target(file: PlanFile, plan: Plan, target: str) -> None:
    """Every launch must be a kernel of this device's, the host's, or an island. Raises PlanError."""
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
            if not isinstance(kernel, TemplateCall | RowsCall | HostCall | IslandCall):
                problem = f"expected a kernel, found a {type(kernel).__name__}, which does not run on CUDA"
                raise PlanError(file.path, problem, field=f"{phase.name}/{launch.name}")
