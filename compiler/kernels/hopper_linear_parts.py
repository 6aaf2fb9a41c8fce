"""Linear on Hopper, its sum over K cut into parts for `prefill_join`: each kept in float32, token by token."""

from __future__ import annotations

from hjgc.compiler.kernels.declaration import Axes, Parameter, Template, Whole
from hjgc.compiler.kernels.hopper_product import (
    DEPTH,
    PRODUCT_AXES,
    constants,
    cuda_function,
    grid,
    map_of_rows,
    map_of_x,
    refuse,
)

FINISH = r"""
// Eight neighbouring numbers of four tokens leave a warp at once: whole sectors of 32 bytes.
__device__ __forceinline__ void finish(Sums& sums, const Tile& tile, int count, char* room, float* parts) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* part = parts + (u64)tile.split * CAPACITY_ROWS * ROWS;
    #pragma unroll
    for (int s = 0; s < SLABS; ++s) {
        int row = tile.row + (warp / 4 * SLABS + s) * 64 + warp % 4 * 16 + lane / 4, end = min(ROWS, tile.row + TILE_M);
        #pragma unroll
        for (int i = 0; i < TILE_N / 4; ++i) {
            int token = tile.token + i / 2 * 8 + lane % 4 * 2 + i % 2;
            float* line = part + (u64)token * ROWS + row;
            if (token < count && row < end) line[0] = sums[s][i / 2 * 4 + i % 2];
            if (token < count && row + 8 < end) line[8] = sums[s][i / 2 * 4 + 2 + i % 2];
        }
    }
}
"""

PARAMETERS = (
    Parameter("x", "tensor_map", "dtype", map=map_of_x),
    Parameter("weight", "tensor_map", "dtype", map=map_of_rows),
    Parameter("parts", "operand", "float32"),
    Parameter("length", "field", "int32"),
)


def reason(axes: Axes) -> str | None:
    steps, splits = -(-int(axes["columns"]) // DEPTH), int(axes["splits"])
    if (splits - 1) * -(-steps // splits) >= steps:
        return f"expected parts of at least {DEPTH} columns each, found {splits} of {axes['columns']}"
    return refuse(axes, 0)


TEMPLATE = Template(
    op="linear_parts",
    function=cuda_function("hopper_linear_parts", FINISH, PARAMETERS, lambda axes: 0),
    parameters=PARAMETERS,
    axes=PRODUCT_AXES | {"splits": Whole(1, 16)},
    constants=lambda axes: constants(axes, 0, 0),
    grid=grid,
    refuse=reason,
)
