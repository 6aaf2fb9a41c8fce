"""Are two contents of device memory the same, without bringing either to the host?

Every word goes through the finaliser of splitmix64 (Steele, Lea and Flood, 2014) together with its place, and the sum
of all, modulo 2^64, is the digest: no order of summation changes it, a single word that differs always does, and many
that differ together go unnoticed once in 2^64. Half a gigabyte of cache rows takes a fraction of a millisecond; to read
them takes a tenth of a second.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from hjgc.runtime.backends.cuda_driver import Driver, Handle, LaunchShape
from hjgc.runtime.backends.cuda_memory import Place

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
THREADS = 256
MOST_BLOCKS = 512
PLACES = 1024
"""Digests that are made before their sums are read."""

_ENTRY = """
.visible .entry {name}(.param .u64 address, .param .u64 pitch, .param .u64 count, .param .u64 out)
{{
    .reg .pred p;
    .reg .b32 tid, block, threads, blocks, row, value, lane, low, high;
    .reg .b64 base, step, n, i, k, at, z, t, sum, place, wide;
    ld.param.u64 base, [address];
    ld.param.u64 step, [pitch];
    ld.param.u64 n, [count];
    ld.param.u64 place, [out];
    mov.u32 tid, %tid.x;
    mov.u32 block, %ctaid.x;
    mov.u32 threads, %ntid.x;
    mov.u32 blocks, %nctaid.x;
    mov.u32 row, %ctaid.y;
    cvt.u64.u32 wide, row;
    mad.lo.u64 base, wide, step, base;
    mul.lo.u64 k, wide, n;
    mul.wide.u32 i, block, threads;
    cvt.u64.u32 wide, tid;
    add.u64 i, i, wide;
    mul.wide.u32 step, blocks, threads;
    mov.u64 sum, 0;
AGAIN:
    setp.ge.u64 p, i, n;
    @p bra DONE;
    mad.lo.u64 at, i, {item}, base;
    ld.global.{load} value, [at];
    cvt.u64.u32 z, value;
    add.u64 t, k, i;
    add.u64 t, t, 1;
    mad.lo.u64 z, t, {golden}, z;
    shr.u64 t, z, 30;
    xor.b64 z, z, t;
    mul.lo.u64 z, z, {first};
    shr.u64 t, z, 27;
    xor.b64 z, z, t;
    mul.lo.u64 z, z, {second};
    shr.u64 t, z, 31;
    xor.b64 z, z, t;
    add.u64 sum, sum, z;
    add.u64 i, i, step;
    bra AGAIN;
DONE:
{folds}
    and.b32 lane, tid, 31;
    setp.ne.u32 p, lane, 0;
    @p bra END;
    red.global.add.u64 [place], sum;
END:
    ret;
}}
"""
_FOLD = """    mov.b64 {{low, high}}, sum;
    shfl.sync.bfly.b32 low, low, {far}, 31, 0xffffffff;
    shfl.sync.bfly.b32 high, high, {far}, 31, 0xffffffff;
    mov.b64 t, {{low, high}};
    add.u64 sum, sum, t;"""


def text() -> str:
    """The kernels as PTX, which every driver compiles for its own chip from sm_80 on."""
    numbers = {"golden": GOLDEN, "first": FIRST, "second": SECOND}
    folds = "\n".join(_FOLD.format(far=far) for far in (16, 8, 4, 2, 1))
    words = _ENTRY.format(name="digest_words", item=4, load="u32", folds=folds, **numbers)
    single = _ENTRY.format(name="digest_bytes", item=1, load="u8", folds=folds, **numbers)
    return f".version 7.0\n.target sm_80\n.address_size 64\n{words}{single}"


class Digests:
    """Makes digests in the order of one stream. For one thread at a time."""

    def __init__(self, driver: Driver, stream: Handle) -> None:
        """Raises DriverError, having given everything back."""
        self._driver, self._stream = driver, stream
        with ExitStack() as undo:
            self._sums = driver.allocate(8 * PLACES)
            undo.callback(driver.free, self._sums)
            self._module = driver.load_module(text().encode() + b"\0")
            undo.callback(driver.unload_module, self._module)
            self._by_words = driver.function(self._module, "digest_words", 0)
            self._by_bytes = driver.function(self._module, "digest_bytes", 0)
            undo.pop_all()
        self._values = (ctypes.c_uint64 * 4)()
        first = ctypes.addressof(self._values)
        self._parameters = (ctypes.c_uint64 * 4)(*(first + 8 * i for i in range(4)))
        self._configs: dict[tuple[int, int], Handle] = {}

    def close(self) -> None:
        self._driver.unload_module(self._module)
        self._driver.free(self._sums)

    def of(self, places: Sequence[Place]) -> list[int]:
        """The digest of each place, once the work issued to the stream so far is done."""
        found: list[int] = []
        for first in range(0, len(places), PLACES):
            found += self._some(places[first : first + PLACES])
        return found

    def _some(self, places: Sequence[Place]) -> list[int]:
        self._driver.zero(self._sums, 8 * len(places), self._stream)
        for i, place in enumerate(places):
            self._launch(place, self._sums + 8 * i)
        return self._driver.read(self._sums, 8 * len(places), self._stream).view(np.uint64).tolist()

    def _launch(self, place: Place, out: int) -> None:
        address, pitch, width, rows = place
        item = item_of(place)
        count = width // item
        blocks = max(1, min(MOST_BLOCKS, -(-count // THREADS)))
        self._values[:] = address, pitch, count, out
        config = self._configs.get((blocks, rows))
        if config is None:
            config = self._driver.configure(LaunchShape((blocks, rows, 1), THREADS, 0), False, self._stream)
            self._configs[blocks, rows] = config
        function = self._by_words if item == 4 else self._by_bytes
        self._driver.launch(config, function, ctypes.addressof(self._parameters))


def item_of(place: Place) -> int:
    """The bytes of a word: four where everything is a multiple of that."""
    return 1 if any(number % 4 for number in place[:3]) else 4
