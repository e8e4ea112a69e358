// Sums of partial results in a fixed order: what kernels use in place of atomic additions.
#include "common.cuh"

/// out[o][i] = sum over r of in[o][r][i], r in order.
///
/// grid (ceil(columns / 256), outer), block 256, no shared memory.
///
/// in   float [outer, rows, columns]
/// out  float [outer, columns]
extern "C" __global__ void __launch_bounds__(256) sum_rows(const float* in, float* out, i64 rows, i64 columns) {
    const i64 i = i64(blockIdx.x) * 256 + threadIdx.x, outer = blockIdx.y;
    if (i >= columns) return;
    float sum = 0.0f;
#pragma unroll 4
    for (i64 r = 0; r < rows; r++) sum += in[(outer * rows + r) * columns + i];
    out[outer * columns + i] = sum;
}
