// One token of the selective scan, for decoding: h = exp(delta A) h + delta B u, y = (C h + D u) silu(z).
//
// Four states of a channel are one lane's, so that the state, which is nearly all of the traffic, is read and written 16
// bytes a lane, side by side.
//
// Compile with -D ELEMENT (bf16 or float), STATES (a power of two from 4 to 128), GATED and SOFTPLUS (0 or 1).
#include "common.cuh"

typedef ELEMENT T;

constexpr int LANES = STATES / 4;
static_assert(LANES <= 32 && (LANES & (LANES - 1)) == 0, "a channel's lanes are in one warp");

/// grid (ceil(d_inner * STATES / 4 / 128), batch), block 128, no shared memory.
///
/// u, delta, z    ELEMENT [batch, d_inner], channels contiguous, each with its batch stride in elements; z is not read
///                unless GATED
/// b, c           ELEMENT [batch, STATES], states contiguous, with their batch strides
/// a              float [d_inner, STATES]
/// delta_bias, d  float [d_inner] or null
/// before         float [batch or 1, d_inner, STATES] with its batch stride (0 for one state for all rows); its address is
///                a multiple of 16, as a's
/// y              ELEMENT [batch, d_inner], contiguous
/// after          float [batch, d_inner, STATES], contiguous: the new state; it may be `before`
extern "C" __global__ void __launch_bounds__(128)
selective_scan_step(const T* u, i64 u_batch, const T* delta, i64 delta_batch, const T* b, i64 b_batch, const T* c,
                    i64 c_batch, const T* z, i64 z_batch, const float* a, const float* delta_bias, const float* d,
                    const float* before, i64 before_batch, T* y, float* after, i64 d_inner) {
    const i64 i = i64(blockIdx.x) * 128 + threadIdx.x, batch = blockIdx.y;
    const i64 channel = i / LANES, first = i % LANES * 4;
    const bool exists = channel < d_inner;
    float sum = 0.0f, input = 0.0f;
    if (exists) {
        const float4 rates = *reinterpret_cast<const float4*>(a + i * 4);
        const float4 states = *reinterpret_cast<const float4*>(before + batch * before_batch + i * 4);
        const float rate[4] = {rates.x, rates.y, rates.z, rates.w};
        float h[4] = {states.x, states.y, states.z, states.w}, step, unused;
        const float raw = to_float(delta[batch * delta_batch + channel]) + (delta_bias ? delta_bias[channel] : 0.0f);
        step = SOFTPLUS ? softplus(raw, unused) : raw;
        input = to_float(u[batch * u_batch + channel]);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float written = step * input * to_float(b[batch * b_batch + first + n]);
            h[n] = fmaf(exp2_fast(LOG2E * step * rate[n]), h[n], written);
            sum = fmaf(to_float(c[batch * c_batch + first + n]), h[n], sum);
        }
        *reinterpret_cast<float4*>(after + (batch * d_inner * LANES + i) * 4) = make_float4(h[0], h[1], h[2], h[3]);
    }
#pragma unroll
    for (int distance = 1; distance < LANES; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    if (!exists || first != 0) return;
    if (d) sum = fmaf(d[channel], input, sum);
#if GATED
    const float gate = to_float(z[batch * z_batch + channel]);
    sum *= gate * sigmoid(gate);
#endif
    y[batch * d_inner + channel] = from_float<T>(sum);
}
