// One token of the causal convolution, for decoding.
//
// Compile with -D ELEMENT (bf16 or float), WIDTH (2 to 8) and SILU (0 or 1).
#include "common.cuh"

typedef ELEMENT T;

/// grid (ceil(d / 128), batch), block 128, no shared memory.
///
/// x         ELEMENT [batch, d], channels contiguous, with its batch stride in elements
/// weight    float [d, WIDTH]; bias: float [d] or null
/// tail      float [batch or 1, WIDTH - 1, d], oldest first, with its batch stride (0 for one tail for all rows)
/// y         ELEMENT [batch, d], contiguous
/// new_tail  float [batch, WIDTH - 1, d], contiguous; it may be `tail`
extern "C" __global__ void __launch_bounds__(128)
causal_conv1d_step(const T* x, i64 x_batch, const float* weight, const float* bias, const float* tail, i64 tail_batch, T* y,
                   float* new_tail, i64 d) {
    const i64 channel = i64(blockIdx.x) * 128 + threadIdx.x, batch = blockIdx.y;
    if (channel >= d) return;
    float inputs[WIDTH], sum = bias ? bias[channel] : 0.0f;
#pragma unroll
    for (int k = 0; k < WIDTH - 1; k++) inputs[k] = tail[batch * tail_batch + k * d + channel];
    inputs[WIDTH - 1] = to_float(x[batch * x_batch + channel]);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sum = fmaf(weight[channel * WIDTH + k], inputs[k], sum);
#pragma unroll
    for (int k = 0; k < WIDTH - 1; k++) new_tail[(batch * (WIDTH - 1) + k) * d + channel] = inputs[k + 1];
#if SILU
    sum *= sigmoid(sum);
#endif
    y[batch * d + channel] = from_float<T>(sum);
}
