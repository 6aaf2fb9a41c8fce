from __future__ import annotations
from typing import Any
import msgspec, pytest
from hjgc.plan_format.structs import IslandCall, Plan
from hjgc.runtime import Session
from hjgc.runtime.runner import State
from tests.plans import small_plan
from tests.runtime.fake_device import FakeDevice
from tests.runtime.serving import PATIENCE, answer, captured, entry
replace = msgspec.structs.replace

class Joining(FakeDevice):
    why = ""
    def graphless(self, phase: str, launch: int, *, padded: bool) -> str:
        return self.why

def island_plan() -> Plan:
    plan = small_plan(function="f")
    def launch(l):
        if l.op != "host_function": return l
        roles = {"x": "x0", "y": "y0"}
        ops = tuple(replace(o, role=roles[o.role]) for o in l.operands)
        return replace(l, op="island", operands=ops, kernels={"cpu": IslandCall(0)})
    return replace(plan, phases=tuple(replace(p, launches=tuple(map(launch, p.launches))) for p in plan.phases))

def run(why, lengths=(1,2,3,5,8,9,16,30), **hooks):
    device = Joining(island_plan()); device.why = why
    for k, v in hooks.items(): setattr(device, k, v)
    out = []
    with Session(device.plan, device) as s:
        for _ in range(3):
            for n in lengths:
                out.append(answer(s, n, 5))
            captured(s)
        rep = s.report()
        m = s.metrics()
    assert device.living == []
    return out, rep, device, m

def test_same():
    a, ra, *_ = run("no")
    b, rb, d, m = run("")
    assert a == b
    print([(e["phase"], e["schedule"], e["segment"], e["last_segment"], e["key"], e["state"], e["hits"]) for e in rb["segments"] if e["kind"]=="static" and e["hits"]])
    print(rb["totals"], ra["totals"])
    assert {e["state"] for e in rb["segments"]} <= {"PROMOTED", "COLD"}

def test_quarantine():
    a, ra, *_ = run("no")
    plan = island_plan()
    island = next(l.name for l in plan.phase("decode").launches if l.op == "island")
    b, rb, d, m = run("", corrupt={island})
    assert a == b
    print([(e["phase"], e["schedule"], e["segment"], e.get("last_segment"), e.get("key"), e.get("state"), e.get("hits")) for e in rb["segments"]])

def test_refused():
    a, ra, *_ = run("no")
    b, rb, d, m = run("", refuse=lambda g: "no" if g.startswith("prefill@8") and "[15]" in g else None)
    assert a == b
    print({l for l in d.log if l.startswith("build")})
    print([(e["phase"], e["schedule"], e["segment"], e.get("last_segment"), e.get("key"), e.get("state"), e.get("hits")) for e in rb["segments"] if e["phase"]=="prefill"])

def test_trace():
    device = Joining(island_plan())
    with Session(device.plan, device) as s:
        for _ in range(3):
            answer(s, 3, 4); captured(s)
        with s.trace() as t:
            answer(s, 3, 4)
        said = [e["args"] for e in t.as_data()["traceEvents"] if "replay" in e["name"]]
        print(said[0])
