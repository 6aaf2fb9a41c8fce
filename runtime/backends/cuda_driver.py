"""Which calls of the CUDA driver do we make, and what do its refusals say?

Everything goes through NVIDIA's `cuda-bindings`; nothing here knows what a plan is. Addresses are plain integers,
streams, functions and graphs are handles of the bindings. Nothing waits for the whole device, except freeing memory.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.errors import RunError
from hjgc.runtime.backend import BackendRefused

Handle = Any
Bytes = NDArray[np.uint8]
TENSOR_MAP_BYTES = 128
LANDING_BYTES = 8 << 20
"""Page-locked memory that reads of many rows pass through."""
UNLIMITED_SHARED = 48 << 10
"""Dynamic shared memory up to which a kernel needs no permission."""


class DriverError(BackendRefused):
    """A call that the driver refused, in its own words. Copies and launches are asynchronous: it may be about any call
    before."""

    def __init__(self, call: str, name: str, words: str) -> None:
        self.call, self.name = call, name
        super().__init__(f"{call}: {name} ({words})")


@dataclass(frozen=True)
class LaunchShape:
    """Blocks in a grid, threads in a block, bytes of dynamic shared memory."""

    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int


class Driver:
    """One device, through its primary context. Any thread may call; each makes the context current first."""

    def __init__(self, ordinal: int = 0) -> None:
        self._cuda = load_bindings()
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", ordinal)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self.make_current()
        attribute = self._cuda.CUdevice_attribute
        major = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self._device)
        minor = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self._device)
        self.target = f"sm_{major}{minor}"
        self._overlap = self._cuda.CUlaunchAttribute()
        self._overlap.id = self._cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        self._overlap.value.programmaticStreamSerializationAllowed = 1
        self._node = self._cuda.CUgraphNodeParams()
        self._node.type = self._cuda.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
        self._describing = threading.Lock()
        self._landing: Bytes | None = None
        self._edges = (self._cuda.CUgraphEdgeData(), self._cuda.CUgraphEdgeData())
        self._edges[True].type = int(self._cuda.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC)
        self._edges[True].from_port = 1  # CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the driver; its one result, or None. Raises DriverError."""
        status, *results = getattr(self._cuda, name)(*arguments)
        if status != 0:
            raise self._error(name, status)
        return results[0] if results else None

    def _error(self, call: str, status: Any) -> DriverError:
        _, name = self._cuda.cuGetErrorName(status)
        _, words = self._cuda.cuGetErrorString(status)
        return DriverError(call, _text(name) or f"error {int(status)}", _text(words) or "no description")

    def make_current(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Give the context back. Nothing allocated from it may be used after."""
        landing, self._landing = self._landing, None
        try:
            if landing is not None:
                self.make_current()
                self.free_host(landing)
        finally:
            self._call("cuDevicePrimaryCtxRelease", self._device)

    # Memory and copies. Copies are in the order of their stream; `read` and `write` are done with the host's memory
    # when they return (the driver stages what is not page-locked); `send` and `fetch` take page-locked memory, which is
    # not to be touched until an event recorded behind them, or the stream, was waited for.

    def allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", max(size, 1)))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def zero(self, address: int, size: int, stream: Handle) -> None:
        if size:
            self._call("cuMemsetD8Async", address, 0, size, stream)

    def write(self, address: int, data: Bytes, stream: Handle) -> None:
        self._call("cuMemcpyHtoDAsync", address, data.ctypes.data, data.nbytes, stream)

    def read(self, address: int, size: int, stream: Handle) -> Bytes:
        """The bytes, once the work issued to `stream` so far is done."""
        data = np.empty(size, np.uint8)
        self._call("cuMemcpyDtoHAsync", data.ctypes.data, address, size, stream)
        self.wait(stream)
        return data

    def read_rows(self, address: int, pitch: int, width: int, rows: int, stream: Handle) -> Bytes:
        """`width` bytes of each of so many rows, `pitch` bytes apart, one after the other; otherwise as `read`. Through
        page-locked memory, which takes a third of the time; for one thread at a time."""
        data = np.empty(width * rows, np.uint8)
        if self._landing is None:
            self._landing = self.allocate_host(LANDING_BYTES)
        most = max(LANDING_BYTES // width, 1)
        for first in range(0, rows, most):
            count = min(most, rows - first)
            part = data[first * width : (first + count) * width]
            landing = self._landing[: part.nbytes] if part.nbytes <= LANDING_BYTES else part
            self._fetch_rows(landing, address + first * pitch, pitch, width, count, stream)
            self.wait(stream)
            if landing is not part:
                part[:] = landing
        return data

    def _fetch_rows(self, memory: Bytes, address: int, pitch: int, width: int, rows: int, stream: Handle) -> None:
        copy, kind = self._cuda.CUDA_MEMCPY2D(), self._cuda.CUmemorytype
        copy.srcMemoryType, copy.srcDevice, copy.srcPitch = kind.CU_MEMORYTYPE_DEVICE, address, pitch
        copy.dstMemoryType, copy.dstHost, copy.dstPitch = kind.CU_MEMORYTYPE_HOST, memory.ctypes.data, width
        copy.WidthInBytes, copy.Height = width, rows
        self._call("cuMemcpy2DAsync", copy, stream)

    def fill_rows(self, address: int, pitch: int, width: int, rows: int, value: int, stream: Handle) -> None:
        """Set `width` bytes of each of so many rows, `pitch` bytes apart, to one value."""
        if rows == 1:
            self._call("cuMemsetD8Async", address, value, width, stream)
            return
        self._call("cuMemsetD2D8Async", address, pitch, value, width, rows, stream)

    def allocate_host(self, size: int) -> Bytes:
        """Page-locked memory of the host."""
        address = int(self._call("cuMemHostAlloc", max(size, 1), 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_host(self, memory: Bytes) -> None:
        self._call("cuMemFreeHost", memory.ctypes.data)

    def send(self, address: int, memory: Bytes, stream: Handle) -> None:
        self._call("cuMemcpyHtoDAsync", address, memory.ctypes.data, memory.nbytes, stream)

    def send_rows(self, address: int, pitch: int, memory: Bytes, rows: int, stream: Handle) -> None:
        """The memory as so many rows of equal size, to where they lie `pitch` bytes apart."""
        copy, kind = self._cuda.CUDA_MEMCPY2D(), self._cuda.CUmemorytype
        copy.srcMemoryType, copy.srcHost, copy.srcPitch = (
            kind.CU_MEMORYTYPE_HOST,
            memory.ctypes.data,
            memory.nbytes // rows,
        )
        copy.dstMemoryType, copy.dstDevice, copy.dstPitch = kind.CU_MEMORYTYPE_DEVICE, address, pitch
        copy.WidthInBytes, copy.Height = memory.nbytes // rows, rows
        self._call("cuMemcpy2DAsync", copy, stream)

    def fetch(self, memory: Bytes, address: int, stream: Handle) -> None:
        self._call("cuMemcpyDtoHAsync", memory.ctypes.data, address, memory.nbytes, stream)

    def free_bytes(self) -> tuple[int, int]:
        """The device memory that is free now, all processes counted, and all there is."""
        status, free, total = self._cuda.cuMemGetInfo()
        if status != 0:
            raise self._error("cuMemGetInfo", status)
        return int(free), int(total)

    # Streams and events. Neither is made for blocking waits: a thread that waits spins (as long as whoever made the
    # context did not ask for something else), without the interpreter lock.

    def make_event(self) -> Handle:
        return self._call("cuEventCreate", int(self._cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING))

    def make_timer(self) -> Handle:
        """An event that knows when it happened."""
        return self._call("cuEventCreate", int(self._cuda.CUevent_flags.CU_EVENT_DEFAULT))

    def milliseconds(self, begin: Handle, end: Handle) -> float:
        """Between two timers that were recorded and waited for."""
        return float(self._call("cuEventElapsedTime", begin, end))

    def record(self, event: Handle, stream: Handle) -> None:
        """Let the event stand for the work issued to the stream so far."""
        self._call("cuEventRecord", event, stream)

    def wait_event(self, event: Handle) -> None:
        """Until that work is done; not at all for an event that was never recorded."""
        self._call("cuEventSynchronize", event)

    def drop_event(self, event: Handle) -> None:
        self._call("cuEventDestroy", event)

    def make_stream(self) -> Handle:
        """A stream that neither waits for the default stream nor holds it up."""
        return self._call("cuStreamCreate", self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)

    def wait(self, stream: Handle) -> None:
        self._call("cuStreamSynchronize", stream)

    def drop_stream(self, stream: Handle) -> None:
        self._call("cuStreamDestroy", stream)

    # Code.

    def load_module(self, code: bytes) -> Handle:
        return self._call("cuModuleLoadData", code)

    def unload_module(self, module: Handle) -> None:
        self._call("cuModuleUnload", module)

    def function(self, module: Handle, entry: str, shared_bytes: int) -> Handle:
        """The kernel, loaded now and not at its first launch, allowed to use its shared memory."""
        function = self._call("cuModuleGetFunction", module, entry.encode())
        self._call("cuFuncLoad", function)
        if shared_bytes > UNLIMITED_SHARED:
            attribute = self._cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, attribute, shared_bytes)
        return function

    def parameter_widths(self, function: Handle) -> tuple[int, ...]:
        """The bytes of each parameter, by the word of the code itself."""
        widths: list[int] = []
        while True:
            status, _, size = self._cuda.cuFuncGetParamInfo(function, len(widths))
            if status != 0:  # the only way to learn how many there are
                return tuple(widths)
            widths.append(int(size))

    def tensor_map(
        self,
        address: int,
        dtype: str,
        sizes: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        swizzle: int,
    ) -> bytes:
        """A tensor map, encoded: 128 bytes that a kernel takes by value (`plan_format.TensorMapArgument`)."""
        cuda = self._cuda
        encoded = self._call(
            "cuTensorMapEncodeTiled",
            getattr(cuda.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{dtype.upper()}"),
            len(sizes),
            address,
            [cuda.cuuint64_t(size) for size in sizes],
            [cuda.cuuint64_t(stride) for stride in strides],
            [cuda.cuuint32_t(side) for side in box],
            [cuda.cuuint32_t(1)] * len(sizes),
            cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(cuda.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{f'{swizzle}B' if swizzle else 'NONE'}"),
            cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        return ctypes.string_at(int(encoded.getPtr()), TENSOR_MAP_BYTES)

    # Launches and graphs. `parameters` is the address of an array of addresses, one a parameter; the driver has copied
    # what they point to when the call returns.

    def configure(self, shape: LaunchShape, overlap: bool, stream: Handle) -> Handle:
        """What `launch` needs to know besides the parameters; made once, used many times. `overlap`: may start once the
        kernel before it in the stream has triggered its dependents (programmatic dependent launch)."""
        config = self._cuda.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = shape.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = shape.threads, 1, 1
        config.sharedMemBytes = shape.shared_bytes
        config.hStream = stream
        if overlap:
            config.attrs = [self._overlap]
            config.numAttrs = 1
        return config

    def launch(self, config: Handle, function: Handle, parameters: int) -> None:
        (status,) = self._cuda.cuLaunchKernelEx(config, function, parameters, 0)
        if status != 0:
            raise self._error("cuLaunchKernelEx", status)

    def make_graph(self) -> Handle:
        return self._call("cuGraphCreate", 0)

    def add_kernel(
        self,
        graph: Handle,
        shape: LaunchShape,
        call: tuple[Handle, int],
        before: Sequence[Handle],
        early: Sequence[bool],
    ) -> Handle:
        """Add a kernel that comes after the nodes in `before`: once each has finished, or, where `early` says so, once
        it has triggered its dependents. `call`: the function and its parameters, which are copied.

        One description of a node serves all: filling one in takes 0.3 us, making one 9, with the interpreter's lock."""
        edges = [self._edges[kind] for kind in early]
        with self._describing:
            kernel = self._node.kernel
            kernel.func, kernel.kernelParams = call
            kernel.gridDimX, kernel.gridDimY, kernel.gridDimZ = shape.grid
            kernel.blockDimX, kernel.blockDimY, kernel.blockDimZ = shape.threads, 1, 1
            kernel.sharedMemBytes = shape.shared_bytes
            return self._call("cuGraphAddNode", graph, before or None, edges or None, len(edges), self._node)

    def add_child(self, graph: Handle, child: Handle, before: Sequence[Handle]) -> Handle:
        """Add a copy of another graph that comes after the nodes in `before` have finished."""
        return self._call("cuGraphAddChildGraphNode", graph, list(before) or None, len(before), child)

    def begin_capture(self, stream: Handle) -> None:
        """What is issued to the stream from now on becomes nodes of a graph. Threads may do all else meanwhile."""
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Handle) -> Handle:
        return self._call("cuStreamEndCapture", stream)

    def host_nodes(self, graph: Handle) -> list[str]:
        """What nodes of the graph, by kind, need something of the host's when they run, or hold memory: anything but
        kernels, fills, and copies within the device."""
        kinds = self._cuda.CUgraphNodeType
        harmless = {
            kinds.CU_GRAPH_NODE_TYPE_KERNEL,
            kinds.CU_GRAPH_NODE_TYPE_MEMSET,
            kinds.CU_GRAPH_NODE_TYPE_EMPTY,
        }
        found: list[str] = []
        for node in self._nodes(graph):
            kind = self._call("cuGraphNodeGetType", node)
            inside = kind == kinds.CU_GRAPH_NODE_TYPE_MEMCPY and self._copies_inside(node)
            if kind not in harmless and not inside:
                found.append(kind.name.removeprefix("CU_GRAPH_NODE_TYPE_").lower())
        return found

    def _nodes(self, graph: Handle) -> list[Handle]:
        status, _, count = self._cuda.cuGraphGetNodes(graph, 0)
        if status == 0 and count:
            status, nodes, _ = self._cuda.cuGraphGetNodes(graph, count)
            if status == 0:
                return list(nodes)
        if status != 0:
            raise self._error("cuGraphGetNodes", status)
        return []

    def _copies_inside(self, node: Handle) -> bool:
        """Does a copy begin and end in device memory?"""
        copy, kinds = self._call("cuGraphMemcpyNodeGetParams", node), self._cuda.CUmemorytype
        ends = (copy.srcMemoryType, copy.srcDevice), (copy.dstMemoryType, copy.dstDevice)
        return all(
            kind == kinds.CU_MEMORYTYPE_DEVICE or (kind == kinds.CU_MEMORYTYPE_UNIFIED and self._is_on_device(address))
            for kind, address in ends
        )

    def _is_on_device(self, address: Handle) -> bool:
        attribute = self._cuda.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
        status, kind = self._cuda.cuPointerGetAttribute(attribute, address)
        return status == 0 and int(kind) == int(self._cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE)

    def instantiate(self, graph: Handle, stream: Handle) -> Handle:
        """An executable graph, already on the device; `stream` is waited for."""
        executable = self._call("cuGraphInstantiate", graph, 0)
        try:
            self._call("cuGraphUpload", executable, stream)
            self.wait(stream)
        except DriverError:
            self.drop_executable(executable)
            raise
        return executable

    def drop_graph(self, graph: Handle) -> None:
        self._call("cuGraphDestroy", graph)

    def replay(self, executable: Handle, stream: Handle) -> None:
        self._call("cuGraphLaunch", executable, stream)

    def drop_executable(self, executable: Handle) -> None:
        """One that still runs is freed by the driver when it has finished."""
        self._call("cuGraphExecDestroy", executable)


def load_bindings() -> Any:
    """The driver's bindings, with a driver behind them. Raises RunError that says which of the two is missing."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise RunError(f"running on CUDA needs cuda-bindings ({error}); pip install 'hjgc[cuda]'") from None
    try:
        driver.cuDriverGetVersion()
    except Exception as error:  # the bindings raise errors of their own where there is no driver to bind
        raise RunError(f"no NVIDIA driver found: {str(error).splitlines()[0]}; is this machine's GPU set up?") from None
    return driver


def _text(raw: bytes | str | None) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw or ""
