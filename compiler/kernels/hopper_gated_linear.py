"""Gated linear on Hopper: gate and up of the same output in one thread, so the gate meets its up in registers."""

from __future__ import annotations

from hjgc.compiler.kernels.declaration import Axes, OneOf, Parameter, Template
from hjgc.compiler.kernels.hopper_product import (
    PRODUCT_AXES,
    constants,
    cuda_function,
    grid,
    map_of_pairs,
    map_of_x,
    refuse,
    staging_bytes,
)
from hjgc.compiler.kernels.hopper_text import PAIRS

FINISH = r"""
__device__ __forceinline__ float gated(float gate, float up) { return __fdividef(gate, 1.0f + __expf(-gate)) * up; }

__device__ __forceinline__ void finish(
    Sums& sums, const Tile& tile, int count, char* room, const Half* bias, Half* y) {
    finish_pairs<1>(tile, count, room, [](int) {},
        [&](int s, int i, u32* made) {
            float* pair = sums[s] + i * 4;
            float gate = 0.0f, up = 0.0f;
            if (BIAS && my_octet(tile, s) < ALL_OCTETS) {
                const Half* own = bias + my_octet(tile, s) * 8 + threadIdx.x % 32 / 4;
                gate = widen(own[0]);
                up = widen(own[HALF]);
            }
            made[0] = pack(gated(pair[0] + gate, pair[2] + up), gated(pair[1] + gate, pair[3] + up));
        },
        [&](int token, int octet, int) { return y + (u64)token * HALF + octet * 8; });
}
"""

PARAMETERS = (
    Parameter("x", "tensor_map", "dtype", map=map_of_x),
    Parameter("weight", "tensor_map", "dtype", map=lambda axes: map_of_pairs(axes, outputs(axes))),
    Parameter("bias", "operand", "dtype", when="bias"),
    Parameter("y", "operand", "dtype"),
    Parameter("length", "field", "int32"),
)


def outputs(axes: Axes) -> int:
    return int(axes["rows"]) // 2


def own_bytes(axes: Axes) -> int:
    return staging_bytes(axes, 1)


def reason(axes: Axes) -> str | None:
    if int(axes["rows"]) % 16:
        return f"expected outputs in multiples of 8, found {outputs(axes)}"
    return refuse(axes, own_bytes(axes))


TEMPLATE = Template(
    op="gated_linear",
    function=cuda_function("hopper_gated_linear", PAIRS + FINISH, PARAMETERS, own_bytes),
    parameters=PARAMETERS,
    axes=PRODUCT_AXES | {"bias": OneOf((False, True))},
    constants=lambda axes: constants(axes, outputs(axes), own_bytes(axes)) | {"BIAS": axes["bias"]},
    grid=grid,
    refuse=reason,
)
