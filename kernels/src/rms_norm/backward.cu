// The root-mean-square norm, backward. With n = h inverse and g = dy weight:
//
//   dh = inverse (g - n mean(g n)) + dsum,   dweight = sum over rows of dy n
//
// A thread keeps its channels' part of dweight in registers over all rows of its block; blocks leave theirs to `sum_rows`.
#include "rms_norm.cuh"

/// grid (blocks), block 256, no dynamic shared memory: blocks go on to further rows.
///
/// h        STREAM [rows, d], contiguous: what was normed
/// weight   float [d]
/// inverse  float [rows], of the forward
/// dy       OUTPUT [rows, d], contiguous
/// dsum     STREAM [rows, d], contiguous: what else flows back into h, or null
/// dh       STREAM [rows, d]
/// dx       ELEMENT [rows, d], dh in the type of x; null if that is STREAM
/// dweight  float [blocks, d]: partial sums, each written whole
extern "C" __global__ void __launch_bounds__(BLOCK)
rms_norm_backward(const S* h, const float* weight, const float* inverse, const O* dy, const S* dsum, S* dh, T* dx,
                  float* dweight, i64 rows, i64 d) {
    __shared__ float scratch[2][BLOCK / 32];
    Channels scale, partial = {};
    scale.load_weight(weight, d);
    int turn = 0;
    const i64 step = i64(gridDim.x) * ROWS;
    for (i64 row = i64(blockIdx.x) * ROWS + threadIdx.x / THREADS; row < rows; row += step, turn ^= 1) {
        Channels n, g;
        n.load(h + row * d, d);
        g.load(dy + row * d, d);
        const float factor = inverse[row];
        float along = 0.0f;
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int k = 0; k < EIGHT; k++) {
                n.values[v][k] *= factor;
                partial.values[v][k] = fmaf(g.values[v][k], n.values[v][k], partial.values[v][k]);
                g.values[v][k] *= scale.values[v][k];
                along = fmaf(g.values[v][k], n.values[v][k], along);
            }
        along = sum_of_row(along, scratch[turn]) / float(d);
        Channels other = {};
        if (dsum) other.load(dsum + row * d, d);
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int k = 0; k < EIGHT; k++)
                g.values[v][k] = fmaf(factor, fmaf(-along, n.values[v][k], g.values[v][k]), other.values[v][k]);
        g.store(dh + row * d, d);
        if (dx) g.store(dx + row * d, d);
    }
#if THREADS == 256
    Channels::each(d, [&](int v, int k, i64 i) { dweight[i64(blockIdx.x) * d + i] = partial.values[v][k]; });
#else
    // Warp after warp, so that the order of the sum does not change.
    __shared__ float sums[32 * VECTORS * EIGHT];
    for (int warp = 0; warp < ROWS; warp++) {
        __syncthreads();
        if (threadIdx.x / 32 == warp)
            Channels::each(d, [&](int v, int k, i64 i) { sums[i] = (warp ? sums[i] : 0.0f) + partial.values[v][k]; });
    }
    __syncthreads();
    for (i64 i = threadIdx.x; i < d; i += BLOCK) dweight[i64(blockIdx.x) * d + i] = sums[i];
#endif
}
