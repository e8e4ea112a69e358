// Small kernels of the selective scan that do not depend on its dtype: what joins the segments of a scan that was cut in
// time, and sums of partial results in a fixed order.
//
// Compile with -D ELEMENT (bf16 or float), the dtype of what `selective_scan_sum_projections` writes.
#include "common.cuh"

/// The state before every segment (`reverse` 0), or the gradient of the state after every segment (`reverse` 1).
///
///   forward   states[0] = start, states[s + 1] = exp(A delta_sum[s]) states[s] + local[s]
///   reverse   states[last] = start, states[s - 1] = exp(A delta_sum[s]) states[s] + local[s]
///
/// where a document starts in segment s (delta_sum is not a number there) the exponential is 0.
///
/// grid (ceil(d_inner * d_state / 256), batch), block 256, no shared memory.
///
/// local      float [batch, segments, d_inner, d_state], of `selective_scan_local` or `selective_scan_local_backward`
/// delta_sum  float [batch, segments, d_inner]
/// a          float [d_inner, d_state]
/// start      float [batch or 1, d_inner, d_state], or null for zeros; its batch stride comes next
/// states     float [batch, segments, d_inner, d_state]; may be `local`
extern "C" __global__ void __launch_bounds__(256)
selective_scan_combine(const float* local, const float* delta_sum, const float* a, const float* start, i64 start_batch,
                       float* states, i64 segments, i64 d_inner, i64 d_state, int reverse) {
    const i64 i = i64(blockIdx.x) * 256 + threadIdx.x, size = d_inner * d_state, batch = blockIdx.y;
    if (i >= size) return;
    const float rate = LOG2E * a[i];
    float state = start ? start[batch * start_batch + i] : 0.0f;
    for (i64 k = 0; k < segments; k++) {
        const i64 at = batch * segments + (reverse ? segments - 1 - k : k);
        float sum = 0.0f, added = 0.0f;
        if (k + 1 < segments) { // what the last one passes on is not needed, and not there
            sum = delta_sum[at * d_inner + i / d_state];
            added = local[at * size + i];
        }
        states[at * size + i] = state;
        state = fmaf(sum == sum ? exp2_fast(rate * sum) : 0.0f, state, added);
    }
}

/// out[o][i] = sum over r of in[o][r][i], r in order: partial gradients of parameters and of shared states.
///
/// grid (ceil(columns / 256), outer), block 256. in: float [outer, rows, columns], out: float [outer, columns].
extern "C" __global__ void __launch_bounds__(256) sum_rows(const float* in, float* out, i64 rows, i64 columns) {
    const i64 i = i64(blockIdx.x) * 256 + threadIdx.x, outer = blockIdx.y;
    if (i >= columns) return;
    float sum = 0.0f;
#pragma unroll 4
    for (i64 r = 0; r < rows; r++) sum += in[(outer * rows + r) * columns + i];
    out[outer * columns + i] = sum;
}

/// The gradients of b and c from the partial sums of the blocks of channels.
///
/// grid ceil(tokens * 2 * d_state / 4 / 256), block 256.
///
/// in      float [blocks, tokens, 2, d_state], where tokens = batch * time and the 2 are b and c
/// db, dc  ELEMENT [tokens, d_state], contiguous; d_state is a multiple of 4
extern "C" __global__ void __launch_bounds__(256)
selective_scan_sum_projections(const float* in, ELEMENT* db, ELEMENT* dc, i64 blocks, i64 tokens, i64 d_state) {
    const i64 quads = tokens * 2 * d_state / 4, i = i64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= quads) return;
    const float4* from = reinterpret_cast<const float4*>(in) + i;
    float sums[4] = {};
#pragma unroll 5
    for (i64 k = 0; k < blocks; k++) {
        const float4 x = from[k * quads];
        sums[0] += x.x;
        sums[1] += x.y;
        sums[2] += x.z;
        sums[3] += x.w;
    }
    const i64 token = 4 * i / (2 * d_state), column = 4 * i % (2 * d_state);
    ELEMENT* to = column < d_state ? db + token * d_state + column : dc + token * d_state + column - d_state;
#pragma unroll
    for (int k = 0; k < 4; k++) to[k] = from_float<ELEMENT>(sums[k]);
}
