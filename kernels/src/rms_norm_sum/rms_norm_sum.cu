// A sum of branches that are each normed by their root mean square: y = sum_i x_i inverse_i weight_i, and its gradients.
// With n_i = x_i inverse_i and g_i = dy weight_i:
//
//   dx_i = inverse_i (g_i - n_i mean(g_i n_i)),   dweight_i = sum over rows of dy n_i
//
// -DBRANCHES=1..4, and as rms_norm.cuh has it.
#include "rms_norm.cuh"

struct Inputs {
    const T* at[4];
};
struct Outputs {
    T* at[4];
};
struct Weights {
    const float* at[4];
};

/// grid (min(ceil(rows / (256 / THREADS)), any)), block 256, no dynamic shared memory: blocks go on to further rows.
///
/// x         ELEMENT [rows, d] for each branch, contiguous
/// weight    float [d] for each branch
/// y         ELEMENT [rows, d]
/// inverse   float [BRANCHES, rows], 1 / sqrt(mean + eps), for the backward; or null
extern "C" __global__ void __launch_bounds__(BLOCK)
rms_norm_sum_forward(const __grid_constant__ Inputs x, const __grid_constant__ Weights weight, T* y, float* inverse, i64 rows,
                     i64 d, float eps) {
    __shared__ float scratch[BRANCHES][2][BLOCK / 32];
    int turn = 0;
    const i64 step = i64(gridDim.x) * ROWS;
    for (i64 row = i64(blockIdx.x) * ROWS + threadIdx.x / THREADS; row < rows; row += step, turn ^= 1) {
        Channels sum = {};
#pragma unroll
        for (int branch = 0; branch < BRANCHES; branch++) {
            Channels h, scale;
            h.load(x.at[branch] + row * d, d);
            scale.load_weight(weight.at[branch], d);
            float square = 0.0f;
#pragma unroll
            for (int v = 0; v < VECTORS; v++)
#pragma unroll
                for (int k = 0; k < EIGHT; k++) square = fmaf(h.values[v][k], h.values[v][k], square);
            const float factor = rsqrtf(sum_of_row(square, scratch[branch][turn]) / float(d) + eps);
            if (inverse && threadIdx.x % THREADS == 0) inverse[branch * rows + row] = factor;
#pragma unroll
            for (int v = 0; v < VECTORS; v++)
#pragma unroll
                for (int k = 0; k < EIGHT; k++)
                    sum.values[v][k] = fmaf(h.values[v][k] * factor, scale.values[v][k], sum.values[v][k]);
        }
        sum.store(y + row * d, d);
    }
}

/// grid (blocks), block 256, no dynamic shared memory: blocks go on to further rows.
///
/// x, weight  as in the forward
/// inverse    float [BRANCHES, rows], of the forward
/// dy         ELEMENT [rows, d], contiguous
/// dx         ELEMENT [rows, d] for each branch
/// dweight    float [blocks, BRANCHES, d]: partial sums, each written whole
extern "C" __global__ void __launch_bounds__(BLOCK)
rms_norm_sum_backward(const __grid_constant__ Inputs x, const __grid_constant__ Weights weight, const float* inverse,
                      const T* dy, const __grid_constant__ Outputs dx, float* dweight, i64 rows, i64 d) {
    __shared__ float scratch[BRANCHES][2][BLOCK / 32];
    Channels partial[BRANCHES] = {};
    int turn = 0;
    const i64 step = i64(gridDim.x) * ROWS;
    for (i64 row = i64(blockIdx.x) * ROWS + threadIdx.x / THREADS; row < rows; row += step, turn ^= 1) {
        Channels slope;
        slope.load(dy + row * d, d);
#pragma unroll
        for (int branch = 0; branch < BRANCHES; branch++) {
            Channels n, g;
            n.load(x.at[branch] + row * d, d);
            g.load_weight(weight.at[branch], d);
            const float factor = inverse[branch * rows + row];
            float along = 0.0f;
#pragma unroll
            for (int v = 0; v < VECTORS; v++)
#pragma unroll
                for (int k = 0; k < EIGHT; k++) {
                    n.values[v][k] *= factor;
                    partial[branch].values[v][k] =
                        fmaf(slope.values[v][k], n.values[v][k], partial[branch].values[v][k]);
                    g.values[v][k] *= slope.values[v][k];
                    along = fmaf(g.values[v][k], n.values[v][k], along);
                }
            along = sum_of_row(along, scratch[branch][turn]) / float(d);
#pragma unroll
            for (int v = 0; v < VECTORS; v++)
#pragma unroll
                for (int k = 0; k < EIGHT; k++)
                    g.values[v][k] = factor * fmaf(-along, n.values[v][k], g.values[v][k]);
            g.store(dx.at[branch] + row * d, d);
        }
    }
    for (int branch = 0; branch < BRANCHES; branch++) {
        float* to = dweight + (i64(blockIdx.x) * BRANCHES + branch) * d;
#if THREADS == 256
        Channels::each(d, [&](int v, int k, i64 i) { to[i] = partial[branch].values[v][k]; });
#else
        // Warp after warp, so that the order of the sum does not change.
        __shared__ float sums[32 * VECTORS * EIGHT];
        for (int warp = 0; warp < ROWS; warp++) {
            __syncthreads();
            if (threadIdx.x / 32 == warp)
                Channels::each(
                    d, [&](int v, int k, i64 i) { sums[i] = (warp ? sums[i] : 0.0f) + partial[branch].values[v][k]; });
        }
        __syncthreads();
        for (i64 i = threadIdx.x; i < d; i += BLOCK) to[i] = sums[i];
#endif
    }
}
