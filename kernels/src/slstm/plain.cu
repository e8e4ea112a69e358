// The sLSTM in f32 and for heads of any size: a thread has one unit of a few sequences, R comes from the caches. Forward and
// backward.
//
// Compile with -D MASKS (0 or 1).
#include "cell.cuh"

/// Sequences of a block.
constexpr int SEQUENCES = 2;

struct Pair {
    float x[SEQUENCES];
};

/// Sums over the inputs k of [k][unit] of four gates with inputs[k].
DEVICE void products(float (&sums)[SEQUENCES][4], const float4* matrix, const Pair* inputs, int head_dim) {
#pragma unroll 8
    for (int k = 0; k < head_dim; k++) {
        const float4 r = __ldg(matrix + i64(k) * head_dim);
        const Pair x = inputs[k];
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++) {
            sums[s][0] = fmaf(r.x, x.x[s], sums[s][0]);
            sums[s][1] = fmaf(r.y, x.x[s], sums[s][1]);
            sums[s][2] = fmaf(r.z, x.x[s], sums[s][2]);
            sums[s][3] = fmaf(r.w, x.x[s], sums[s][3]);
        }
    }
}

/// grid (heads, ceil(batch / 2)), block head_dim rounded up to a multiple of 32 (at most 1024), 16 bytes of shared memory for
/// each unit.
///
/// gates       float [batch, time, 4, heads, head_dim], units contiguous, with its strides over batch, time, gates and heads
/// bias        float [4, heads, head_dim] or null
/// recurrent   float [heads, head_dim, head_dim, 4]: inputs, outputs, gates
/// h, c, n, m  float [batch or 1, heads, head_dim] with the stride over the batch (0 for one state for all rows): the state
///             at the start
/// reset_*     the same: the state of a document's start; not read unless MASKS
/// resets, valid  bytes [batch, time] or null; not read unless MASKS
/// y           float [batch, time, heads, head_dim]
/// last        float [4, batch, heads, head_dim]
/// records     float [batch, time, heads, 6, head_dim] for the backward, or null
/// before      float [batch, time, heads, head_dim]: the outputs that each token read; null if records is
extern "C" __global__ void __launch_bounds__(1024)
slstm_plain_forward(const float* gates, i64 by_batch, i64 by_time, i64 by_gate, i64 by_head, const float* bias,
                    const float4* recurrent, const float* start_h, i64 start_h_stride, const float* start_c,
                    i64 start_c_stride, const float* start_n, i64 start_n_stride, const float* start_m, i64 start_m_stride,
                    const float* reset_h, i64 reset_h_stride, const float* reset_c, i64 reset_c_stride, const float* reset_n,
                    i64 reset_n_stride, const float* reset_m, i64 reset_m_stride, const u8* resets, const u8* valid, float* y,
                    float* last, float* records, float* before, i64 batch, i64 time, i64 heads, i64 head_dim) {
    extern __shared__ uint4 shared[];
    const int size = int(head_dim), unit = threadIdx.x;
    Pair* const outputs = reinterpret_cast<Pair*>(shared);  // [2, head_dim]
    const bool exists = unit < size;
    const i64 head = blockIdx.x, first = i64(blockIdx.y) * SEQUENCES, at = head * size + unit, state_size = heads * size;
    const float4* const matrix = recurrent + head * size * size + unit;
    float h[SEQUENCES], c[SEQUENCES], n[SEQUENCES], m[SEQUENCES], biases[4], ahead[SEQUENCES][4];
    const auto load = [&](i64 t) {
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++)
#pragma unroll
            for (int gate = 0; gate < 4; gate++)
                ahead[s][gate] = exists && first + s < batch && t < time ? gates[(first + s) * by_batch + t * by_time +
                                                                                 gate * by_gate + head * by_head + unit]
                                                                         : 0.0f;
    };
#pragma unroll
    for (int gate = 0; gate < 4; gate++) biases[gate] = exists && bias ? bias[gate * state_size + at] : 0.0f;
#pragma unroll
    for (int s = 0; s < SEQUENCES; s++) {
        const i64 row = first + s;
        const bool mine = exists && row < batch;
        h[s] = mine ? start_h[row * start_h_stride + at] : 0.0f;
        c[s] = mine ? start_c[row * start_c_stride + at] : 0.0f;
        n[s] = mine ? start_n[row * start_n_stride + at] : 0.0f;
        m[s] = mine ? start_m[row * start_m_stride + at] : 0.0f;
    }
    load(0);
    for (i64 t = 0; t < time; t++) {
        Pair read;
        bool counts[SEQUENCES];
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++) {
            const i64 row = first + s;
            counts[s] = exists && row < batch;
#if MASKS
            counts[s] = counts[s] && (!valid || valid[row * time + t]);
            if (counts[s] && resets && resets[row * time + t]) {
                h[s] = reset_h[row * reset_h_stride + at], c[s] = reset_c[row * reset_c_stride + at];
                n[s] = reset_n[row * reset_n_stride + at], m[s] = reset_m[row * reset_m_stride + at];
            }
#endif
            read.x[s] = h[s];
            if (records && exists && row < batch) before[(row * time + t) * state_size + at] = h[s];
        }
        Pair* const turn = outputs + t % 2 * size;
        if (exists) turn[unit] = read;
        __syncthreads();
        if (!exists) continue;
        float sums[SEQUENCES][4];
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++)
#pragma unroll
            for (int gate = 0; gate < 4; gate++) sums[s][gate] = biases[gate] + ahead[s][gate];
        load(t + 1);
        products(sums, matrix, turn, size);
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++) {
            const i64 row = first + s;
            if (row >= batch) continue;
            const Cell cell(sums[s][0], sums[s][1], tanh_exact(sums[s][2]), sums[s][3], c[s], n[s], m[s]);
            const i64 token = (row * time + t) * heads + head;
            y[token * size + unit] = counts[s] ? cell.h : 0.0f;
            if (counts[s]) h[s] = cell.h, c[s] = cell.c, n[s] = cell.n, m[s] = cell.m;
            if (!records) continue;
            const Kept k = cell.kept();
            float* const to = records + token * 6 * size + unit;
            to[0] = k.weight, to[size] = k.quotient, to[2 * size] = k.shut, to[3 * size] = k.change, to[4 * size] = k.output;
            to[5 * size] = k.share;
        }
    }
#pragma unroll
    for (int s = 0; s < SEQUENCES; s++) {
        if (!exists || first + s >= batch) continue;
        float* const to = last + (first + s) * state_size + at;
        to[0] = h[s], to[batch * state_size] = c[s], to[2 * batch * state_size] = n[s], to[3 * batch * state_size] = m[s];
    }
}

/// grid and block as above, 64 bytes of shared memory for each unit.
///
/// dy         float [batch, time, heads, head_dim], units contiguous, with its strides over batch, time and heads
/// dlast      float [4, batch, heads, head_dim], the gradient of the last h, c, n, m, or null
/// recurrent  float [heads, head_dim, head_dim, 4]: outputs, inputs, gates
/// last, records  as the forward left them
/// c, n       float [batch or 1, heads, head_dim] with the stride over the batch: of the state at the start
/// reset_c, reset_n  the same, of a document's start; not read unless MASKS
/// resets, valid  bytes [batch, time] or null; not read unless MASKS
/// dgates     float [batch, time, 4, heads, head_dim]
/// dstart     float [4, batch, heads, head_dim]: of the state at the start, as it would be with a state for each row
/// dreset     the same, of a document's start; not written unless MASKS, may be null
extern "C" __global__ void __launch_bounds__(1024)
slstm_plain_backward(const float* dy, i64 by_batch, i64 by_time, i64 by_head, const float* dlast, const float4* recurrent,
                     const float* last, const float* records, const float* start_c, i64 start_c_stride, const float* start_n,
                     i64 start_n_stride, const float* reset_c, i64 reset_c_stride, const float* reset_n, i64 reset_n_stride,
                     const u8* resets, const u8* valid, float* dgates, float* dstart, float* dreset, i64 batch, i64 time,
                     i64 heads, i64 head_dim) {
    extern __shared__ uint4 shared[];
    const int size = int(head_dim), unit = threadIdx.x;
    float4* const gradients = reinterpret_cast<float4*>(shared);  // [2, head_dim, SEQUENCES]
    const bool exists = unit < size;
    const i64 head = blockIdx.x, first = i64(blockIdx.y) * SEQUENCES, at = head * size + unit, state_size = heads * size;
    const i64 part = batch * state_size;
    const float4* const matrix = recurrent + head * size * size + unit;
    Carried carried[SEQUENCES];
    float dh[SEQUENCES];
#if MASKS
    Carried collected[SEQUENCES];
    float collected_h[SEQUENCES];
#endif
    bool touched[SEQUENCES];
    struct Token {
        Kept kept;
        float dy;
    } ahead[SEQUENCES];
    const auto load = [&](i64 t) {
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++) {
            const i64 row = first + s;
            if (!exists || row >= batch || t < 0) continue;
            const float* const x = records + ((row * time + t) * heads + head) * 6 * size + unit;
            ahead[s].kept = {x[0], x[size], x[2 * size], x[3 * size], x[4 * size], x[5 * size]};
            ahead[s].dy = dy[row * by_batch + t * by_time + head * by_head + unit];
        }
    };
#pragma unroll
    for (int s = 0; s < SEQUENCES; s++) {
        carried[s].quotient = carried[s].normaliser = carried[s].maximum = dh[s] = 0.0f;
#if MASKS
        collected[s].quotient = collected[s].normaliser = collected[s].maximum = collected_h[s] = 0.0f;
#endif
        touched[s] = false;
        const i64 row = first + s, from = row * state_size + at;
        if (!dlast || !exists || row >= batch) continue;
        dh[s] = dlast[from];
        carried[s].start(dlast[from + part], dlast[from + 2 * part], dlast[from + 3 * part], last[from + part],
                         last[from + 2 * part]);
    }
    load(time - 1);
    for (i64 t = time - 1; t >= 0; t--) {
        float4* const turn = gradients + t % 2 * size * SEQUENCES;
        bool counts[SEQUENCES];
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++) {
            const i64 row = first + s;
            counts[s] = exists && row < batch;
#if MASKS
            counts[s] = counts[s] && (!valid || valid[row * time + t]);
#endif
            float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (counts[s]) carried[s].step(ahead[s].kept, dh[s] + ahead[s].dy, d), touched[s] = true;
            if (!exists) continue;
            turn[unit * SEQUENCES + s] = make_float4(d[0], d[1], d[2], d[3]);
            if (row >= batch) continue;
            float* const to = dgates + ((row * time + t) * 4 * heads + head) * size + unit;
            to[0] = d[0], to[state_size] = d[1], to[2 * state_size] = d[2], to[3 * state_size] = d[3];
        }
        __syncthreads();
        if (!exists) continue;
        load(t - 1);
        float sums[SEQUENCES];
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++) sums[s] = 0.0f;
#pragma unroll 4
        for (int k = 0; k < size; k++) {
            const float4 r = __ldg(matrix + i64(k) * size);
#pragma unroll
            for (int s = 0; s < SEQUENCES; s++) {
                const float4 d = turn[k * SEQUENCES + s];
                sums[s] = fmaf(r.x, d.x, fmaf(r.y, d.y, fmaf(r.z, d.z, fmaf(r.w, d.w, sums[s]))));
            }
        }
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++) {
            if (counts[s]) dh[s] = sums[s];
#if MASKS
            if (counts[s] && resets && resets[(first + s) * time + t]) {
                collected_h[s] += dh[s];
                collected[s].quotient += carried[s].quotient;
                collected[s].normaliser += carried[s].normaliser;
                collected[s].maximum += carried[s].maximum;
                carried[s].quotient = carried[s].normaliser = carried[s].maximum = dh[s] = 0.0f;
            }
#endif
        }
    }
#pragma unroll
    for (int s = 0; s < SEQUENCES; s++) {
        const i64 row = first + s, to = row * state_size + at;
        if (!exists || row >= batch) continue;
        float dc, dn, dm;
        carried[s].finish(start_c[row * start_c_stride + at], start_n[row * start_n_stride + at], dc, dn, dm);
        // A row of nothing but padding hands its state on as it is.
        if (!touched[s] && dlast) dc = dlast[to + part], dn = dlast[to + 2 * part], dm = dlast[to + 3 * part];
        dstart[to] = dh[s], dstart[to + part] = dc, dstart[to + 2 * part] = dn, dstart[to + 3 * part] = dm;
#if MASKS
        if (!dreset) continue;
        collected[s].finish(reset_c[row * reset_c_stride + at], reset_n[row * reset_n_stride + at], dc, dn, dm);
        dreset[to] = collected_h[s], dreset[to + part] = dc, dreset[to + 2 * part] = dn, dreset[to + 3 * part] = dm;
#endif
    }
}
