// The root-mean-square norm, forward, with the addition before it: h = x + residual, y = h / sqrt(mean(h^2) + eps) * weight.
// One pass: a row stays in registers between its sum and its product.
#include "rms_norm.cuh"

/// grid (min(ceil(rows / (256 / THREADS)), any)), block 256, no dynamic shared memory: blocks go on to further rows.
///
/// x         ELEMENT [rows, d], contiguous
/// residual  STREAM [rows, d], contiguous, or null
/// weight    float [d]
/// y         OUTPUT [rows, d]
/// sum       STREAM [rows, d], x + residual; null if residual is
/// inverse   float [rows], 1 / sqrt(mean + eps), for the backward; or null
extern "C" __global__ void __launch_bounds__(BLOCK)
rms_norm_forward(const T* x, const S* residual, const float* weight, O* y, S* sum, float* inverse, i64 rows, i64 d,
                 float eps) {
    __shared__ float scratch[2][BLOCK / 32];
    Channels scale;
    scale.load_weight(weight, d);
    int turn = 0;
    const i64 step = i64(gridDim.x) * ROWS;
    for (i64 row = i64(blockIdx.x) * ROWS + threadIdx.x / THREADS; row < rows; row += step, turn ^= 1) {
        Channels h;
        h.load(x + row * d, d);
        if (residual) {
            Channels other;
            other.load(residual + row * d, d);
#pragma unroll
            for (int v = 0; v < VECTORS; v++)
#pragma unroll
                for (int k = 0; k < EIGHT; k++)
                    // The norm sees the sum as others do, rounded.
                    h.values[v][k] = to_float(from_float<S>(h.values[v][k] + other.values[v][k]));
            h.store(sum + row * d, d);
        }
        float square = 0.0f;
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int k = 0; k < EIGHT; k++) square = fmaf(h.values[v][k], h.values[v][k], square);
        const float factor = rsqrtf(sum_of_row(square, scratch[turn]) / float(d) + eps);
        if (inverse && threadIdx.x % THREADS == 0) inverse[row] = factor;
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int k = 0; k < EIGHT; k++) h.values[v][k] *= factor * scale.values[v][k];
        h.store(y + row * d, d);
    }
}
