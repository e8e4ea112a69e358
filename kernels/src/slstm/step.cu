// One token of the sLSTM, for decoding. A warp has one unit: its lanes go along the rows of R, which are most of the traffic
// and are read once for four sequences.
//
// Compile with -D ELEMENT and RECURRENT (bf16 or float: the dtypes of gates and outputs, and of R).
#include "cell.cuh"

typedef ELEMENT T;
typedef RECURRENT R;

constexpr int SEQUENCES = 4;

/// grid (ceil(head_dim / 8), heads, ceil(batch / 4)), block 256, no shared memory.
///
/// gates       ELEMENT [batch, 4, heads, head_dim], units contiguous, with its strides over batch, gates and heads
/// bias        float [4, heads, head_dim] or null
/// recurrent   RECURRENT [4, heads, head_dim, head_dim], rows are outputs
/// h, c, n, m  float [batch or 1, heads, head_dim] with the stride over the batch (0 for one state for all rows)
/// y           ELEMENT [batch, heads, head_dim]
/// last        float [4, batch, heads, head_dim]: the new h, c, n, m
extern "C" __global__ void __launch_bounds__(256)
slstm_step(const T* gates, i64 by_batch, i64 by_gate, i64 by_head, const float* bias, const R* recurrent, const float* h,
           i64 h_stride, const float* c, i64 c_stride, const float* n, i64 n_stride, const float* m, i64 m_stride, T* y,
           float* last, i64 batch, i64 heads, i64 head_dim) {
    const int lane = threadIdx.x % 32;
    const i64 unit = i64(blockIdx.x) * 8 + threadIdx.x / 32, head = blockIdx.y, first = i64(blockIdx.z) * SEQUENCES;
    if (unit >= head_dim) return;
    float sums[SEQUENCES][4];
#pragma unroll
    for (int s = 0; s < SEQUENCES; s++)
#pragma unroll
        for (int gate = 0; gate < 4; gate++) sums[s][gate] = 0.0f;
    for (i64 k = lane; k < head_dim; k += 32) {
        float row[4];
#pragma unroll
        for (int gate = 0; gate < 4; gate++)
            row[gate] = to_float(recurrent[((gate * heads + head) * head_dim + unit) * head_dim + k]);
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++) {
            const float x = first + s < batch ? h[(first + s) * h_stride + head * head_dim + k] : 0.0f;
#pragma unroll
            for (int gate = 0; gate < 4; gate++) sums[s][gate] = fmaf(row[gate], x, sums[s][gate]);
        }
    }
    float mine[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int s = 0; s < SEQUENCES; s++)
#pragma unroll
        for (int gate = 0; gate < 4; gate++) {
            float sum = sums[s][gate];
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
            if (lane == s) mine[gate] = sum;
        }
    const i64 row = first + lane, at = head * head_dim + unit, size = heads * head_dim;
    if (lane >= SEQUENCES || row >= batch) return;
#pragma unroll
    for (int gate = 0; gate < 4; gate++) {
        mine[gate] += to_float(gates[row * by_batch + gate * by_gate + head * by_head + unit]);
        if (bias) mine[gate] += bias[gate * size + at];
    }
    const Cell cell(mine[0], mine[1], tanh_exact(mine[2]), mine[3], c[row * c_stride + at], n[row * n_stride + at],
                    m[row * m_stride + at]);
    y[row * size + at] = from_float<T>(cell.h);
    float* const to = last + row * size + at;
    to[0] = cell.h, to[batch * size] = cell.c, to[2 * batch * size] = cell.n, to[3 * batch * size] = cell.m;
}
