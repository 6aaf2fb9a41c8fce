"""How do tests get a session on a GPU that is not there, with a plan that lacks some of its code?

`write_gpu_plan(folder)` is the small plan for `sm_90` and `compute_80`, on which kernels take nothing and compute
nothing. `sm_90` has other kernels for up to 4, 8 and 16 rows of a prompt, of which only the first are built;
`compute_80` has one for all. `GpuDriver` writes down the names of kernels, `FakeChild` builds what it is asked for.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hjgc.plan_format import Plan, save
from hjgc.plan_format.building import BuildAnswer, BuildRefusal, BuildRequest, BuiltVariant
from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.fingerprint import fingerprint
from hjgc.plan_format.ledger import make_ledger
from hjgc.plan_format.structs import (
    BuiltCode,
    CodeReference,
    HostCall,
    Kernel,
    Launch,
    Phase,
    RowRange,
    RowsCall,
    Template,
    TemplateCall,
    Variant,
)
from hjgc.runtime.backends.cuda_driver import LaunchShape
from hjgc.runtime.build_child import Child, ChildLost
from hjgc.runtime.opening import GRAPH_BYTES, OpenedSession
from hjgc.runtime.opening_cuda import GPU, CodeRules, open_cuda
from tests.plans import CONSTANTS, small_plan, weights_file
from tests.runtime.fake_driver import DIGESTS, FakeDriver

replace = msgspec.structs.replace
TARGETS = ("sm_90", "compute_80")
NOTHING = ("scratch", "scratch")
BYTES = 8
DIGEST = "1" * 64
ROWS = {0: 1, 1: 4, 2: 8, 3: 16}
"""The most rows of each variant of `sm_90`."""
BUILT = (0, 1)
PORTABLE = 4


def gpu_plan(folder: Path, targets: Sequence[str] = TARGETS) -> Plan:
    """Writes the weights into `folder`."""
    plan = small_plan()
    (folder / "weights.bin").write_bytes(weights_file(plan))
    phases = tuple(_phase(phase, targets) for phase in plan.phases)
    return replace(
        plan,
        targets=tuple(targets),
        files=(fingerprint(folder / "weights.bin", "weights.bin"),),
        phases=phases,
        templates=(Template("kernel", DIGEST, ("rows",)),),
        variants=_variants(targets),
        ledger=make_ledger(plan.weights, plan.arena_bytes, plan.states, plan.constants, plan.parameters, phases),
    )


def write_gpu_plan(
    folder: Path, targets: Sequence[str] = TARGETS, change: Callable[[Plan], Plan] = lambda p: p
) -> Path:
    code = b"".join(_code(i) for i in BUILT)
    sections = {"constants": CONSTANTS, "cubin": code} | ({"ptx": _code(PORTABLE)} if "compute_80" in targets else {})
    save(folder / "plan.hjg", change(gpu_plan(folder, targets)), sections=sections)
    return folder / "plan.hjg"


def _code(index: int) -> bytes:
    return f"code {index:03}".encode()


def _variants(targets: Sequence[str]) -> tuple[Variant, ...]:
    cubins = tuple(
        Variant(0, "sm_90", {"rows": rows}, NOTHING, built=_built(i, "cubin", BYTES * i) if i in BUILT else None)
        for i, rows in ROWS.items()
    )
    portable = Variant(0, "compute_80", {"rows": 16}, NOTHING, built=_built(PORTABLE, "ptx", 0))
    return (*cubins, portable) if "compute_80" in targets else cubins


def _built(index: int, section: Any, offset: int) -> BuiltCode:
    reference = CodeReference(section, offset, BYTES, hashlib.sha256(_code(index)).hexdigest())
    return BuiltCode(f"planned_{index}", 32, 0, reference)


def _phase(phase: Phase, targets: Sequence[str]) -> Phase:
    launches = tuple(
        replace(launch, kernels={target: _kernel(phase.name, launch, target) for target in targets})
        for launch in phase.launches
    )
    return replace(phase, launches=launches)


def _kernel(phase: str, launch: Launch, target: str) -> Kernel:
    if isinstance(launch.kernels["cpu"], HostCall):
        return launch.kernels["cpu"]
    if target == "compute_80":
        return _call(PORTABLE)
    if phase == "decode":
        return _call(0)
    return RowsCall(tuple(RowRange(ROWS[i], _call(i)) for i in (1, 2, 3)))


def _call(variant: int) -> TemplateCall:
    return TemplateCall(variant, (1, 1, 1), ())


class GpuDriver(FakeDriver):
    """Logs `launch NAME`, `replay NAMES`: the entries of the kernels, each once in a graph."""

    def __init__(self, target: str = "sm_90") -> None:
        super().__init__(target)
        self.widths = (8, 8)
        self.living: list[str] = []

    def load_module(self, code: bytes) -> str:
        if code == DIGESTS:
            return super().load_module(code)
        self._do("load_module")
        self.living.append(code.decode())
        return code.decode()

    def unload_module(self, module: str) -> None:
        if module == "digests":
            super().unload_module(module)
            return
        self._do("unload_module")
        self.living.remove(module)

    def launch(self, config: tuple[LaunchShape, bool, str], function: str, parameters: int) -> None:
        if function.startswith("digest_"):
            super().launch(config, function, parameters)
            return
        self._do(f"launch {function}")

    def add_kernel(
        self, graph: list[str], shape: LaunchShape, call: tuple[str, int], before: Sequence[int], early: Sequence[bool]
    ) -> int:
        graph.append(call[0])
        return len(graph) - 1

    def replay(self, executable: tuple[str, ...], stream: str) -> None:
        self._do("replay " + " ".join(dict.fromkeys(executable)))

    @property
    def ran(self) -> list[str]:
        """What ran since the log was cleared, each run of the same once."""
        lines = [line for line in self.log if line.startswith(("launch ", "replay "))]
        return [line for before, line in zip(["", *lines], lines, strict=False) if line != before]


def build_it(request: BuildRequest) -> BuildAnswer:
    """What a child answers that can build everything."""
    entry = f"built_{request.axes['rows']}_{request.target}"
    return BuildAnswer(BuiltVariant(entry, NOTHING, 32, 0, False, None, entry.encode()))


def refuse(problem: str, fault: Any = "compile") -> Callable[[BuildRequest], BuildAnswer]:
    return lambda request: BuildAnswer(
        refusal=BuildRefusal(f"template {request.template}", problem, next_step="mend it", fault=fault)
    )


class FakeChild:
    """A child process that answers as `answer` says, once it `may_answer`."""

    def __init__(self, answer: Callable[[BuildRequest], BuildAnswer] = build_it) -> None:
        self.answer = answer
        self.asked: list[BuildRequest] = []
        self.started, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()
        self.starts = self.closes = 0
        self.killed = False

    def start(self) -> Child:
        self.starts += 1
        return self

    def ask(self, request: BuildRequest, seconds: float) -> BuildAnswer:
        self.asked.append(request)
        self.started.set()
        self.may_answer.wait(60)
        if self.killed:
            raise ChildLost("killed")
        return self.answer(request)

    def kill(self) -> None:
        self.killed = True
        self.may_answer.set()

    def close(self) -> None:
        self.closes += 1


def open_gpu(
    plan: Path, driver: GpuDriver, child: FakeChild, *, target: str = GPU, capture: bool = False, **rules: Any
) -> OpenedSession:
    """A session for the plan on the GPU of this driver."""
    file = PlanFile(plan)
    source = open_cuda(file, plan.parent, target, CodeRules(**rules), driver=driver, start=child.start)
    driver.log.clear()
    return OpenedSession(file, source, graph_bytes=GRAPH_BYTES, capture=capture)
