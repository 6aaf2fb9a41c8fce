"""What runs in a peer's own process? It reads a line of JSON, does what it says, and answers with a line of JSON.

The first line is the peer's specification, each further one a verb. The end of standard input ends the process.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from hjgc.tools.peers.peer import CallPeer, Peer, counted_answer, series, timed_calls


def main() -> None:
    """Standard output is kept for answers: what a library prints goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        serve(sys.stdin, answers)
    except KeyboardInterrupt:
        sys.exit(130)


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Until the requests end or one of them fails."""
    peer: Peer | CallPeer | None = None
    try:
        for line in requests:
            request = json.loads(line)
            if peer is None:
                peer = make_peer(request)
                _keep_what_is_loaded()
                reply: dict[str, Any] = {"startup": peer.startup.seconds, "versions": peer.versions}
            else:
                reply = VERBS[request.pop("verb")](peer, **request)
            _send(answers, reply)
    except Exception as error:  # told in one line, on the other side
        from hjgc.tools.cli import explain

        message, code = explain(error)
        _send(answers, {"error": message, "code": code})
    finally:
        if peer is not None:
            peer.close()


def _keep_what_is_loaded() -> None:
    """A collection during an answer need not look at the libraries and the model again."""
    gc.collect()
    gc.freeze()


def make_peer(spec: Mapping[str, Any]) -> Peer | CallPeer:
    """`spec` names the kind; the rest are its arguments. Each brings its own libraries, hence the late imports."""
    arguments = {name: value for name, value in spec.items() if name != "kind"}
    match spec["kind"]:
        case "plan":
            from hjgc.tools.peers.plan import PlanPeer

            return PlanPeer(**arguments)
        case "eager":
            from hjgc.tools.peers.eager import EagerPeer

            return EagerPeer(**arguments)
        case "static":
            from hjgc.tools.peers.static import StaticPeer

            return StaticPeer(**arguments)
        case "ort":
            from hjgc.tools.peers.ort import OrtPeer

            return OrtPeer(**arguments)
        case "function":
            from hjgc.tools.peers.function import FunctionPeer

            return FunctionPeer(**arguments)
        case "ort_function":
            from hjgc.tools.peers.ort_function import OrtFunctionPeer

            return OrtFunctionPeer(**arguments)
        case kind:
            known = "plan, eager, static, ort, function or ort_function"
            raise ValueError(f"expected a peer of kind {known}, found {kind!r}")


def _answer(peer: Peer, *, ids: list[int], tokens: int) -> dict[str, Any]:
    return dataclasses.asdict(counted_answer(peer, ids, tokens))


def _series(peer: Peer, *, ids: list[int], tokens: int, repeat: int, warm_up: int, rest: float = 0.0) -> dict[str, Any]:
    return dataclasses.asdict(series(peer, ids, tokens, repeat, warm_up, rest))


def _watch(peer: Peer, *, watching: dict[str, Any]) -> dict[str, Any]:
    from hjgc.tools.peers.capturing import Watching, watch

    return watch(peer, Watching(**watching))


def _launches(peer: Any) -> dict[str, Any]:
    return {"launches": peer.launches()}


def _calls(peer: CallPeer, *, count: int, warm_up: int) -> dict[str, Any]:
    return dataclasses.asdict(timed_calls(peer, count, warm_up))


def _outputs(peer: CallPeer, *, path: str) -> dict[str, Any]:
    from hjgc.tools.calling import write_arrays

    write_arrays(Path(path), peer.outputs())
    return {}


def _settle(peer: Peer | CallPeer, *, timeout: float) -> dict[str, Any]:
    return {"settled": peer.settle(timeout)}


def _details(peer: Peer | CallPeer) -> dict[str, Any]:
    return peer.details()


VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "answer": _answer,
    "series": _series,
    "watch": _watch,
    "launches": _launches,
    "calls": _calls,
    "outputs": _outputs,
    "settle": _settle,
    "details": _details,
}


def _send(answers: IO[str], reply: dict[str, Any]) -> None:
    answers.write(json.dumps(reply) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
