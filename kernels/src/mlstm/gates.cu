// The gates of the mLSTM, forward: of each token the exponents (base 2) that the other kernels weigh with, and the maximum m
// that all are relative to. Sums of gates are made in 64 bits and kept as sums of two floats.
#define MASKS 0
#include "tiles.cuh"

constexpr int BLOCK = 1024;
constexpr int GROUPS = BLOCK / CHUNK;
constexpr int PARTS = CHUNK / 32;
constexpr double BASE2 = 1.4426950408889634;

DEVICE float2 split(double x) {
    const float high = float(x);
    return make_float2(high, isinf(high) ? 0.0f : float(x - double(high)));
}

DEVICE float power(double x) { return exp2_fast(float(x * BASE2)); }

/// grid (batch * heads), block 1024, no dynamic shared memory. `padded` is a multiple of CHUNK, `chunks` = padded / CHUNK.
///
/// input, forget  float [batch, time, heads], each with strides over batch, time and heads
/// resets, valid  bool [batch, time], contiguous, or null
/// m0, m_reset    float [batch or 1, heads], each with its stride over the batch; m_reset null without resets
/// row            float2 [batch, heads, padded]: b - m
/// column         float2, the same shape: i - b; both in base 2, their sum is the exponent of a score
/// before         float, the same shape: the weight of what was there at the start of the chunk or document
/// bound          float, the same shape: e^-m
/// written        float, the same shape: the weight of what the token writes in the state after the chunk
/// first          int, the same shape: index in the chunk of the document's start, -1 if it is in an earlier chunk
/// source         u8, the same shape: m is the token's own input gate (1), or the last m and the forget gate (2), or M_FLOOR (0)
/// kept           float2 [batch, heads, chunks]: weights of the state before the chunk, and of the reset state, in the one
///                after it
/// last           float [batch, heads]: m after the last token
extern "C" __global__ void __launch_bounds__(BLOCK)
mlstm_gates(const float* input, i64 input_batch, i64 input_time, i64 input_head, const float* forget, i64 forget_batch,
            i64 forget_time, i64 forget_head, const u8* resets, const u8* valid, const float* m0, i64 m0_batch,
            const float* m_reset, i64 m_reset_batch, float2* row, float2* column, float* before, float* bound,
            float* written, int* first, u8* source, float2* kept, float* last, i64 time, i64 heads, i64 chunks,
            float m_floor) {
    __shared__ double sums[32], largest[32], all[BLOCK];
    __shared__ int starts[32], opened[32];
    __shared__ double end_b[GROUPS], end_since[GROUPS], end_largest[GROUPS], start_m[GROUPS + 1];
    __shared__ int end_start[GROUPS];
    const i64 head = blockIdx.x % heads, batch = blockIdx.x / heads;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = threadIdx.x / CHUNK, at = threadIdx.x % CHUNK, warp0 = group * PARTS;
    const double none = -__longlong_as_double(0x7ff0000000000000ll);
    const double m_fresh = m_reset ? double(m_reset[batch * m_reset_batch + head]) : 0.0;
    const i64 padded = chunks * CHUNK, base_token = i64(blockIdx.x) * padded;
    if (threadIdx.x == 0) start_m[GROUPS] = double(m0[batch * m0_batch + head]);
    for (i64 tile = 0; tile < padded; tile += BLOCK) {
        const i64 t = tile + threadIdx.x;
        const bool there = t < time && (!valid || valid[batch * time + t]);
        const bool reset = there && resets && resets[batch * time + t];
        double log_f = 0.0, i = none;
        if (there) {
            float y;
            log_f = -double(softplus(-forget[batch * forget_batch + t * forget_time + head * forget_head], y));
            i = double(input[batch * input_batch + t * input_time + head * input_head]);
        }
        // Sum of log f, and the last start of a document, in the chunk.
        double b = log_f;
        int start = reset ? at + 1 : 0;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const double other = __shfl_up_sync(~0u, b, d);
            const int earlier = __shfl_up_sync(~0u, start, d);
            if (lane >= d) {
                b += other;
                start = max(start, earlier);
            }
        }
        __syncthreads();  // the last tile's readers are done
        if (lane == 31) {
            sums[warp] = b;
            starts[warp] = start;
        }
        __syncthreads();
        for (int w = warp - 1; w >= warp0; w--) {
            b += sums[w];
            start = max(start, starts[w]);
        }
        all[threadIdx.x] = b;
        // The largest i - b that the token sees.
        const double w = i - b;
        double u = w;
        bool open = reset;  // whether the document starts in what u covers
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const double other = __shfl_up_sync(~0u, u, d);
            const bool earlier = __shfl_up_sync(~0u, int(open), d);
            if (lane >= d) {
                if (!open) u = fmax(u, other);
                open |= earlier;
            }
        }
        if (lane == 31) {
            largest[warp] = u;
            opened[warp] = open;
        }
        __syncthreads();
        for (int p = warp - 1; p >= warp0 && !open; p--) {
            u = fmax(u, largest[p]);
            open |= bool(opened[p]);
        }
        const double since = start > 1 ? b - all[threadIdx.x - at + start - 2] : b;
        if (at == CHUNK - 1) {
            end_b[group] = b;
            end_since[group] = since;
            end_largest[group] = b + u;
            end_start[group] = start;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            double m = start_m[GROUPS];
            for (int g = 0; g < GROUPS; g++) {
                start_m[g] = m;
                m = fmax(fmax(end_since[g] + (end_start[g] ? m_fresh : m), end_largest[g]), double(m_floor));
            }
            start_m[GROUPS] = m;
        }
        __syncthreads();
        const double from = start ? m_fresh : start_m[group];
        const double m = fmax(fmax(since + from, b + u), double(m_floor));
        all[threadIdx.x] = m;
        __syncthreads();
        if (t < padded) {
            const double was = reset ? m_fresh : at ? all[threadIdx.x - 1] : start_m[group];
            const double carried = log_f + was, end_m = start_m[group + 1];
            const bool stays = at >= end_start[group] - 1;
            const i64 to = base_token + t;
            row[to] = there ? split((b - m) * BASE2) : make_float2(float(none), 0.0f);
            column[to] = split(w * BASE2);
            before[to] = there ? power(since + from - m) : 0.0f;
            bound[to] = power(-m);
            written[to] = stays ? power(end_b[group] + w - end_m) : 0.0f;
            first[to] = start - 1;
            source[to] = i > carried ? (i > double(m_floor) ? 1 : 0) : (carried > double(m_floor) ? 2 : 0);
            if (at == CHUNK - 1) {
                const float rest = power(since + from - end_m);
                kept[i64(blockIdx.x) * chunks + t / CHUNK] = make_float2(start ? 0.0f : rest, start ? rest : 0.0f);
            }
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) last[blockIdx.x] = float(start_m[GROUPS]);
}
