from __future__ import annotations
from typing import Any
import numpy as np, pytest
from hjgc.runtime.backend import BackendRefused
from hjgc.plan_format.errors import RunError
from hjgc.runtime import route
from tests.runtime.serving import PATIENCE
from tests.runtime.test_cuda_provider import *
from tests.runtime.test_cuda_provider import opening, ort, driver, floats, check, GATED, CHOSEN

WEIGHTED = """weighted (float[N,4] a) => (y) <float[4] w = {1, 2, 3, 4}, float[N,4] r> {
    t = Exp(a) r = com.microsoft.QuickGelu(t) y = Neg(r)
}"""

def test_A_leak_at_opening(opening, driver, ort, monkeypatch):
    from hjgc.runtime.backends import cuda_islands
    def boom(self): raise BackendRefused("no room")
    monkeypatch.setattr(cuda_islands.DeviceIslands, "_send_weights", boom)
    with pytest.raises(BackendRefused):
        opening()
    assert not driver._locked and not driver._memory, (len(driver._locked), len(driver._memory))

def test_B_close_after_error(opening, driver, ort):
    function = opening()
    check(function, 2)
    assert function.wait_captured(PATIENCE)
    islands = function.backend._islands
    recorder = islands._recorder
    driver.refuses.add(f"wait {recorder._stream}")
    with pytest.raises(BackendRefused):
        function.close()
    assert not driver._locked, len(driver._locked)
    assert islands._islands._watch._closed

def test_C_ahead(opening, driver):
    text = "f (float[N,4] a) => (y) {" + " ".join(f"t{i} = Exp({'r%d' % (i-1) if i else 'a'}) r{i} = com.microsoft.QuickGelu(t{i})" for i in range(20)) + " y = Neg(r19) }"
    text = text.replace("=> (y) {", "=> (y) <" + ", ".join(f"float[N,4] r{i}" for i in range(20)) + "> {")
    function = opening(text)
    function({"a": floats(2)})
    backend = function.backend
    driver.log.clear()
    assert backend.run("call", list(range(41)), (2,), lambda: False, 16)
    assert any(l.startswith("wait") for l in driver.log), driver.log

def test_D_staging(opening, driver, monkeypatch):
    from hjgc.runtime.backends import cuda_islands
    monkeypatch.setattr(cuda_islands, "FUNCTION_STAGING", 256)
    function = opening(sizes={"N": (1, 1024)})
    before = function.report()["memory"]["staging"]
    check(function, 1024)
    assert function.report()["memory"]["staging"] == before

FLOW = """flow (float[N,4] a) => (y) <float[N,4] r> {
    t = Exp(a)
    s = ReduceSum <keepdims = 0> (t)
    zero = Constant <value = float {0}> ()
    go = Greater(s, zero)
    r = If(go) <
        then_branch = yes () => (float[N,4] u) { u = Sin(t) },
        else_branch = no () => (float[N,4] v) { v = Cos(t) }
    >
    y = Neg(r)
}"""
def test_E_islands_wait(opening, ort):
    function = opening(CHOSEN, capture=False)
    print(function.report()["segments"], function.report()["islands"])
    assert all(all(o.inputs + o.outputs) for o in function.backend._islands._islands._opened)
    assert function.backend.islands_wait

def test_F_counts(opening, driver, monkeypatch):
    monkeypatch.setattr(route, "MOST_SIZES", 1)
    function = opening()
    driver.kinds = ["memcpy"]
    for _ in range(3):
        check(function, 2)
        assert function.wait_captured(PATIENCE)
    before = function.report()
    assert before["totals"]["hits"] == 3
    driver.kinds = []
    check(function, 3)
    assert function.wait_captured(PATIENCE)
    after = function.report()
    print(before["totals"], after["totals"], before["budget"], after["budget"])
    assert after["totals"]["hits"] >= before["totals"]["hits"]
    assert sum(e["bytes"] for e in after["segments"] if e["kind"] == "static") == after["budget"]["used"]

def test_J_leak(opening, driver):
    from hjgc.runtime.backends.cuda_driver import DriverError
    def boom(graph): raise DriverError("cuGraphGetNodes", "X", "y")
    made = []
    end = driver.end_capture
    driver.end_capture = lambda s: made.append(end(s)) or made[-1]
    driver.host_nodes = boom
    dropped = []
    drop = driver.drop_graph
    driver.drop_graph = lambda g: dropped.append(g) or drop(g)
    function = opening()
    check(function, 2)
    assert function.wait_captured(PATIENCE)
    assert all(any(m is d for d in dropped) for m in made)
