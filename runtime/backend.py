"""What must a device be able to do to serve a plan?

A backend owns the memory of one plan: weights, constants, states, parameter block, one arena. The session calls it from
the thread that serves the request, except `build`, `graph_bytes` and `release`, which the capture worker calls from its
own thread while requests run, `read_token`, with which it waits for a step that nobody wants, and `memory`, which
anybody calls. Nothing here waits for the whole device.

What a step does is in the order it was asked for: writes, launches, copies of tokens. Where `asynchronous` says so,
asking takes less time than doing, and a caller may ask for the next step before it has read the token of the last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.building import BuiltVariant
from hjgc.plan_format.errors import RunError
from hjgc.plan_format.structs import Phase

LogitsProcessor = Callable[[NDArray[np.int32], NDArray[np.float32]], "NDArray[np.float32] | None"]
"""`process(token_ids [L] int32, logits [V] float32)`: change the logits in place, or return others."""

HostFunction = Callable[[NDArray[np.float32]], "NDArray[np.float32] | None"]
"""`function(rows [M, H] float32)`: change the rows in place, or return others of the same shape."""

Callback = Callable[..., "NDArray[np.float32] | None"]
"""Either of them."""

Rows = int | tuple[int, ...]
"""Of a call: how many rows it has, or, of a function, the sizes of its phase in order."""

Value = Any
"""Of an argument or a result of a function: an array, a list of values, None, or ONNX Runtime's own OrtValue."""

Ids = Sequence[int] | NDArray[np.int32]
"""Token ids."""


@dataclass(frozen=True)
class MemoryRef:
    """A piece of a plan's memory that launches write: `space` is buffer, state or parameters; `phase` tells whose
    buffers `index` counts (empty for the other spaces)."""

    space: str
    index: int
    phase: str = ""


def sizes_of(phase: Phase, rows: Rows) -> dict[str, int]:
    """The sizes of a call by name: an int counts the rows, `tokens`."""
    if isinstance(rows, int):
        return {"tokens": rows}
    return {size.name: value for size, value in zip(phase.sizes, rows, strict=True)}


def spell_rows(rows: Rows) -> str:
    """As people read it: `16`, `2x128`; `fixed` for a function that has no sizes."""
    return str(rows) if isinstance(rows, int) else "x".join(map(str, rows)) or "fixed"


def digest_of(data: NDArray[np.uint8]) -> int:
    """`Backend.digest` on the host."""
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(data).data, digest_size=8).digest(), "little")


class Graph(Protocol):
    """A captured segment. `bytes` is the device memory it holds."""

    @property
    def bytes(self) -> int: ...


class BackendRefused(RunError):
    """The device will not build or run this, or something failed that it ran before; the message is the driver's own
    words. Any call that reaches the device may raise it."""


class Backend(Protocol):
    """One device serving one plan."""

    @property
    def name(self) -> str:
        """The target it runs: `cpu`, `sm_90`, ..."""
        ...

    @property
    def asynchronous(self) -> bool:
        """Do launches return before they are done? Only then is there something to gain from launching ahead."""
        ...

    @property
    def thread_pools(self) -> bool:
        """Does every thread that runs launches get helpers that outlive the call (OpenMP's)? Then what runs beside the
        requests is given a thread that ends with it."""
        ...

    @property
    def digests_on(self) -> str:
        """Where `digest` computes: `device`, `host`, or `host: ` and why."""
        ...

    def write_parameters(self, values: Mapping[str, int | float], prompt: Ids | None = None) -> None:
        """Set fields of the parameter block, and begin the history with the ids of a prompt if there is one, before
        the launches issued after this call."""
        ...

    def write_history(self, offset: int, ids: Ids) -> None:
        """Put token ids into the history from `offset` on."""
        ...

    def run(
        self,
        phase: str,
        launches: Sequence[int],
        tokens: Rows,
        stop: Callable[[], bool] | None = None,
        ahead: int | None = None,
    ) -> bool:
        """Launch one by one, in order, for `tokens` rows. `stop` is asked between launches; once it says yes, the rest
        is left out. Every `ahead` launches the host waits for the device, so that little is still to come when `stop`
        says so. Returns whether all ran."""
        ...

    def call_host(self, phase: str, launch: int, tokens: int, function: Callback) -> None:
        """Run a host launch for `tokens` rows: hand its operands to `function` once they are ready, and put back what
        comes of it."""
        ...

    def build(
        self, phase: str, launches: Sequence[int], bucket: Rows, pause: Callable[[], None] | None = None
    ) -> Graph:
        """Build the graph that serves up to `bucket` rows; of a function, just these sizes. `pause` is called between
        its pieces, if it has any, and may take its time. Raises BackendRefused."""
        ...

    def graph_bytes(self, launches: int) -> int:
        """An estimate of what a graph of so many launches will hold, before it is built."""
        ...

    def replay(self, graph: Any, tokens: Rows) -> None:
        """Run a captured segment for `tokens` rows, at most its bucket; of a function, for its sizes."""
        ...

    def release(self, graph: Any) -> None:
        """Give a graph's memory back. No step needs it; a check that was given up may have left it running, and the
        device frees it once it is done then."""
        ...

    def snapshot(self, refs: Sequence[MemoryRef], start: int, tokens: Rows) -> dict[MemoryRef, NDArray[np.uint8]]:
        """A copy of the bytes of each ref, once the work issued so far is done: of a cache the rows `start` to
        `start + tokens`, of a buffer its first `tokens` rows' worth, of anything else all of it."""
        ...

    def digest(self, refs: Sequence[MemoryRef], start: int, tokens: Rows) -> dict[MemoryRef, int]:
        """Of each ref a number of 64 bits that is the same for the same bytes, and almost never for others: of what a
        snapshot would hold, at a fraction of its cost where the device can tell it."""
        ...

    def restore(self, saved: Mapping[MemoryRef, NDArray[np.uint8]], start: int, tokens: Rows) -> None:
        """Write a snapshot back to where it came from."""
        ...

    def fill(self, refs: Sequence[MemoryRef], start: int, tokens: Rows, value: int) -> None:
        """Set to `value` every byte that a snapshot of these refs would hold."""
        ...

    def most_rows(self, phase: str, rows: int) -> int:
        """The most rows, up to `rows`, that a call of the phase may have with the code that is there; 0 if none."""
        ...

    def send_token(self) -> Any:
        """Behind the step launched last: have the token that it samples sent to the host. A ticket for `read_token`,
        good until three more tokens were sent."""
        ...

    def read_token(self, ticket: Any) -> int:
        """The token of this ticket, once it is there; all that was launched before it is done then. An older ticket
        gives some later token, and the same certainty."""
        ...

    def read_logits(self) -> NDArray[np.float32]:
        """A copy of the last step's logits [V] as float32, once they are there."""
        ...

    def memory(self) -> dict[str, int]:
        """Bytes held now: `lasting` (weights, constants, states, parameters), `arena`, `graphs`, and `staging`, page-
        locked memory of the host; where the device tells, also what was free at opening and is free now."""
        ...

    def islands(self) -> dict[str, Any] | None:
        """What the plan's islands cost so far, for the report: runs, seconds, bytes copied each way. None for a plan
        without any."""
        ...

    def graphless(self, phase: str, launch: int, *, padded: bool) -> str:
        """Why no graph can hold this launch, an island; empty if one can. `padded`: a graph that computes the rows of
        its bucket, of which those of a call are the first."""
        ...

    def uncounted(self) -> AbstractContextManager[None]:
        """The block runs launches for a check: `islands` does not count them."""
        ...

    def close(self) -> None:
        """Give all memory back."""
        ...


class FunctionBackend(Backend, Protocol):
    """A backend of a plan that is a function, whose phases have arguments and results."""

    def write_arguments(self, phase: str, rows: Rows, values: Sequence[Value]) -> None:
        """Give the phase its arguments, in their order, before what is launched after this call. The values are the
        caller's again after `end_call`."""
        ...

    def read_results(self, phase: str, rows: Rows) -> list[Value]:
        """The results of the phase, in their order, each new, once all that was launched before is done."""
        ...

    def end_call(self) -> None:
        """Let go of what only the host holds of a call, however it ended: arguments, results, and what lies between."""
        ...


class CodeBackend(Backend, Protocol):
    """A backend that runs device code, and takes in more of it while it serves. But for `missing`, called only by one
    thread, between requests where said so."""

    def missing(self, phase: str, rows: Rows) -> tuple[int, ...]:
        """The plan's variants that a call of so many rows lacks."""
        ...

    def load(self, index: int, built: BuiltVariant) -> None:
        """Take in a variant of the plan. Between requests. Raises PlanError, BackendRefused."""
        ...

    def prepare(self, target: str) -> Callable[[], None]:
        """Get ready to serve with the code of another of the plan's targets, all of it loaded. What is returned makes
        the change: between requests, no graph being in use or built; those that exist may only be released then."""
        ...
