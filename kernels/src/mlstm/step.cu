// One token of the mLSTM without gradients, as in decoding: the definition's step, the state read once and written once.
#include "common.cuh"

/// Columns of a block, and parts of the rows of the state, side by side.
constexpr int COLUMNS = 64;
constexpr int PARTS = 16;
typedef ELEMENT T;

/// grid (ceil(d_v / 64), heads, batch), block 256; shared memory d_qk 8.
///
/// q, k, v     ELEMENT [batch, heads, d], with strides over batch and heads
/// input, forget  float [batch, heads], with strides over batch and heads
/// c, n, m     float [batch or 1, heads, d_qk, d_v], [.., d_qk], [batch or 1, heads], each with its stride over the batch
/// h           ELEMENT [batch, heads, d_v]
/// c_next, n_next, m_next   the new state, contiguous
extern "C" __global__ void __launch_bounds__(256)
mlstm_step(const T* q, i64 q_batch, i64 q_head, const T* k, i64 k_batch, i64 k_head, const T* v, i64 v_batch, i64 v_head,
           const float* input, i64 input_batch, i64 input_head, const float* forget, i64 forget_batch, i64 forget_head,
           const float* c, i64 c_batch, const float* n, i64 n_batch, const float* m, i64 m_batch, T* h, float* c_next,
           float* n_next, float* m_next, i64 heads, i64 d_qk, i64 d_v, float scale, float eps, float m_floor) {
    extern __shared__ float rows[];  // q and what is written of k
    __shared__ float partial[PARTS][COLUMNS], sums[8];
    const i64 head = blockIdx.y, batch = blockIdx.z, bh = batch * heads + head;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float was = m[batch * m_batch + head], i = input[batch * input_batch + head * input_head];
    float y;
    const float carried = was - softplus(-forget[batch * forget_batch + head * forget_head], y);
    const float now = fmaxf(fmaxf(carried, i), m_floor);
    const float keep = exp2_fast((carried - now) * LOG2E), write = exp2_fast((i - now) * LOG2E);
    float along = 0.0f;
    for (i64 d = threadIdx.x; d < d_qk; d += 256) {
        const float one = to_float(q[batch * q_batch + head * q_head + d]) * scale;
        const float other = write * to_float(k[batch * k_batch + head * k_head + d]);
        const float next = fmaf(keep, n[batch * n_batch + head * d_qk + d], other);
        rows[d] = one;
        rows[d_qk + d] = other;
        along = fmaf(one, next, along);
        if (blockIdx.x == 0) n_next[bh * d_qk + d] = next;
    }
#pragma unroll
    for (int d = 16; d; d /= 2) along += __shfl_xor_sync(~0u, along, d);
    if (lane == 0) sums[warp] = along;
    __syncthreads();
    const i64 column0 = i64(blockIdx.x) * COLUMNS;
    const int part = threadIdx.x / 16, own = threadIdx.x % 16 * 4;
    const float* from = c + batch * c_batch + head * d_qk * d_v + column0 + own;
    float* to = c_next + bh * d_qk * d_v + column0 + own;
    float values[4], o[4] = {};
#pragma unroll
    for (int e = 0; e < 4; e++)
        values[e] = column0 + own + e < d_v ? to_float(v[batch * v_batch + head * v_head + column0 + own + e]) : 0.0f;
#if WHOLE
    if (column0 + own < d_v)
#pragma unroll 4
        for (i64 d = part; d < d_qk; d += PARTS) {
            float4 x = *reinterpret_cast<const float4*>(from + d * d_v);
            const float one = rows[d], other = rows[d_qk + d];
            x.x = fmaf(keep, x.x, other * values[0]);
            x.y = fmaf(keep, x.y, other * values[1]);
            x.z = fmaf(keep, x.z, other * values[2]);
            x.w = fmaf(keep, x.w, other * values[3]);
            o[0] = fmaf(one, x.x, o[0]);
            o[1] = fmaf(one, x.y, o[1]);
            o[2] = fmaf(one, x.z, o[2]);
            o[3] = fmaf(one, x.w, o[3]);
            *reinterpret_cast<float4*>(to + d * d_v) = x;
        }
#else
    for (i64 d = part; d < d_qk; d += PARTS)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (column0 + own + e < d_v) {
                const float x = fmaf(keep, from[d * d_v + e], rows[d_qk + d] * values[e]);
                o[e] = fmaf(rows[d], x, o[e]);
                to[d * d_v + e] = x;
            }
#endif
#pragma unroll
    for (int e = 0; e < 4; e++) partial[part][own + e] = o[e];
    __syncthreads();
    if (threadIdx.x < COLUMNS && column0 + threadIdx.x < d_v) {
        float q_n = 0.0f, sum = 0.0f;
        for (int w = 0; w < 8; w++) q_n += sums[w];
        for (int p = 0; p < PARTS; p++) sum += partial[p][threadIdx.x];
        const float den = fmaxf(fabsf(q_n), exp2_fast(-now * LOG2E)) + eps;
        h[bh * d_v + column0 + threadIdx.x] = from_float<T>(sum / den);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) m_next[bh] = now;
}
