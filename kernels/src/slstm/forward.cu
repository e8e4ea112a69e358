// The sLSTM's forward in bf16: R stays in the registers of a block as operands of the matrix unit, the outputs of the last
// token go through shared memory, and there is one barrier a token.
//
// Compile with -D HEAD_DIM (a multiple of 16, at most 128), CELLS (1 or 2: how many sequences a lane has), MASKS (0 or 1) and
// RECURRENT (bf16 or float, the dtype of R).
#include "fused.cuh"

typedef RECURRENT R;

constexpr int THREADS = 4 * D, TILES = D / 16;
/// Tokens whose gates are on their way or here.
constexpr int STAGES = 8;
constexpr int STAGE = 4 * SEQUENCES * PITCH;
/// Rows of outputs, rounded up to what one instruction loads.
constexpr int ROWS = (D + 31) / 32 * 32;

extern "C" __device__ const int slstm_forward_shared = (STAGES * STAGE + 2 * ROWS * 8) * 2;


/// grid (heads, ceil(batch / (4 CELLS))), block 4 HEAD_DIM, slstm_forward_shared bytes of shared memory.
///
/// gates       bf16 [batch, time, 4, heads, HEAD_DIM], units contiguous, with its strides over batch, time, gates and heads
///             in elements; address and strides are multiples of 16 bytes
/// bias        float [4, heads, HEAD_DIM] or null
/// recurrent   RECURRENT [4, heads, HEAD_DIM, HEAD_DIM], rows are outputs
/// h, c, n, m  float [batch or 1, heads, HEAD_DIM] with the stride over the batch (0 for one state for all rows): the state
///             at the start
/// reset_*     the same: the state of a document's start; not read unless MASKS
/// resets, valid  bytes [batch, time] or null; not read unless MASKS
/// y           bf16 [batch, time, heads, HEAD_DIM]
/// last        float [4, batch, heads, HEAD_DIM]: h, c, n, m after the last token
/// records     16 bytes each [tiles, time, heads, HEAD_DIM / 8, CELLS, 32] for the backward, or null
/// before      bf16 [batch, time, heads, HEAD_DIM]: the outputs that each token read; null if records is
extern "C" __global__ void __launch_bounds__(THREADS, 1)
slstm_forward(const bf16* gates, i64 by_batch, i64 by_time, i64 by_gate, i64 by_head, const float* bias, const R* recurrent,
              const float* start_h, i64 start_h_stride, const float* start_c, i64 start_c_stride, const float* start_n,
              i64 start_n_stride, const float* start_m, i64 start_m_stride, const float* reset_h, i64 reset_h_stride,
              const float* reset_c, i64 reset_c_stride, const float* reset_n, i64 reset_n_stride, const float* reset_m,
              i64 reset_m_stride, const u8* resets, const u8* valid, bf16* y, float* last, uint4* records, bf16* before,
              i64 batch, i64 time, i64 heads) {
    extern __shared__ uint4 shared[];
    bf16* const ring = reinterpret_cast<bf16*>(shared);
    bf16* const outputs = ring + STAGES * STAGE;  // [2, ROWS, 8]

    const int lane = threadIdx.x % 32, group = threadIdx.x / 32, g = lane / 4, t4 = lane % 4;
    const int unit = group * 8 + g;
    const i64 head = blockIdx.x, tile = blockIdx.y, first = tile * SEQUENCES;
    const i64 state_size = heads * D, state_at = head * D + unit;

    // The gates of a token, 16 bytes a thread.
    constexpr int PIECES = 4 * SEQUENCES * D / 8;
    static_assert(PIECES <= THREADS, "a copy each");
    const int piece = threadIdx.x % (D / 8), copied = threadIdx.x / (D / 8);
    const i64 copied_row = first + copied % SEQUENCES;
    const bool exists = copied_row < batch;
    const bf16* from = gates;
    if (exists && threadIdx.x < PIECES)
        from += copied_row * by_batch + copied / SEQUENCES * by_gate + head * by_head + piece * 8;
    bf16* const to = ring + copied * PITCH + piece * 8;
    i64 next = 0;
    const auto copy = [&] {
        if (threadIdx.x < PIECES && next < time) {
            copy_async_16(to + next % STAGES * STAGE, from, exists ? 16 : 0);
            if (exists) from += by_time;
        }
        copy_async_commit();
        next++;
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) copy();

    // Rows g and g + 8 of two pieces of R are the four gates of a unit.
    u32 a[2][TILES][4];
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int k = 0; k < TILES; k++)
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const i64 gate = 2 * half + part % 2;
                const R* x = recurrent + ((gate * heads + head) * D + unit) * D + k * 16 + part / 2 * 8 + t4 * 2;
                a[half][k][part] = pack(to_float(x[0]), to_float(x[1]));
            }
    float biases[4];
#pragma unroll
    for (int gate = 0; gate < 4; gate++) biases[gate] = bias ? bias[gate * state_size + state_at] : 0.0f;

    float h[CELLS], c[CELLS], n[CELLS], m[CELLS];
    bool mine[CELLS];
#if MASKS
    float h0[CELLS], c0[CELLS], n0[CELLS], m0[CELLS];
    Masks masks;
    masks.load(resets, valid, tile, batch, time, 0);
#endif
#pragma unroll
    for (int s = 0; s < CELLS; s++) {
        const i64 row = first + t4 * CELLS + s;
        mine[s] = row < batch;
        h[s] = mine[s] ? start_h[row * start_h_stride + state_at] : 0.0f;
        c[s] = mine[s] ? start_c[row * start_c_stride + state_at] : 0.0f;
        n[s] = mine[s] ? start_n[row * start_n_stride + state_at] : 0.0f;
        m[s] = mine[s] ? start_m[row * start_m_stride + state_at] : 0.0f;
#if MASKS
        const bool has = mine[s] && reset_h;
        h0[s] = has ? reset_h[row * reset_h_stride + state_at] : 0.0f;
        c0[s] = has ? reset_c[row * reset_c_stride + state_at] : 0.0f;
        n0[s] = has ? reset_n[row * reset_n_stride + state_at] : 0.0f;
        m0[s] = has ? reset_m[row * reset_m_stride + state_at] : 0.0f;
        if (masks.resets[s] & 1) h[s] = h0[s], c[s] = c0[s], n[s] = n0[s], m[s] = m0[s];
#endif
    }

    // Where this lane writes outputs: of a transposed piece it has two units of one sequence.
    const i64 written_row = first + sequence_of(g);
    const bool writes = written_row < batch && (CELLS == 2 || g % 2 == 0);
    const i64 written = (written_row * time * heads + head) * D + group * 8 + t4 * 2;
    const auto write = [&](bf16* rows, i64 t, u32 x) {
        x = transposed(x);
        if (writes) *reinterpret_cast<u32*>(rows + written + t * state_size) = x;
    };
    const auto packed = [&](const float (&x)[CELLS]) { return pack(x[0], CELLS == 2 ? x[CELLS - 1] : 0.0f); };
    const auto give = [&](i64 t, u32 x) {
        *reinterpret_cast<u32*>(outputs + ((t % 2) * ROWS + unit) * 8 + t4 * 2) = x;
    };

    u32 read = packed(h);
    give(0, read);
    if (before) write(before, 0, read);
    copy_async_wait<STAGES - 3>();
    __syncthreads();
    const bf16* const gate_row = ring + (lane / 8 * SEQUENCES + sequence_of(lane % 8)) * PITCH + group * 8;
    u32 x[4];
    load_transposed(x, gate_row);

    Kept keeps[CELLS];
    u32 output = 0;
    for (i64 t = 0; t < time; t++) {
        // Two chains of products each for input and forget gate, and for value and output gate.
        float d[2][2][4];
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const u32 from_token = x[2 * half + part / 2];
                d[half][0][part] = biases[2 * half + part / 2] + (part % 2 ? high(from_token) : low(from_token));
                d[half][1][part] = 0.0f;
            }
#pragma unroll
        for (int k = 0; k < TILES; k += 2) {
            u32 b[4];
            load_transposed(b, outputs + ((t % 2) * ROWS + k * 16 + lane) * 8);
            mma_bf16(d[0][0], a[0][k], b[0], b[1]);
            mma_bf16(d[1][0], a[1][k], b[0], b[1]);
            if (k + 1 < TILES) {
                mma_bf16(d[0][1], a[0][k + 1], b[2], b[3]);
                mma_bf16(d[1][1], a[1][k + 1], b[2], b[3]);
            }
        }
        // While the products are made: what can wait of the last token, and the next one's gates.
        if (t > 0) {
            write(y, t - 1, output);
            if (records) {
                uint4* const at = records + record(tile, t - 1, head, time, heads, group) + lane;
#pragma unroll
                for (int s = 0; s < CELLS; s++) at[s * 32] = keep(keeps[s]);
                write(before, t, read);
            }
        }
        if (t + 1 < time) load_transposed(x, gate_row + (t + 1) % STAGES * STAGE);
        copy();

#if MASKS
        u32 counts[CELLS];
#pragma unroll
        for (int s = 0; s < CELLS; s++) counts[s] = masks.valid[s] >> (t % 32) & 1;
        if ((t + 1) % 32 == 0) masks.load(resets, valid, tile, batch, time, (t + 1) / 32);
#endif
        float shown[CELLS];
#pragma unroll
        for (int s = 0; s < CELLS; s++) {
            const Cell cell(d[0][0][s] + d[0][1][s], d[0][0][2 + s] + d[0][1][2 + s],
                            tanh_fast(d[1][0][s] + d[1][1][s]), d[1][0][2 + s] + d[1][1][2 + s], c[s], n[s], m[s]);
            keeps[s] = cell.kept();
#if MASKS
            shown[s] = counts[s] ? cell.h : 0.0f;
            if (counts[s]) h[s] = cell.h, c[s] = cell.c, n[s] = cell.n, m[s] = cell.m;
            if (masks.resets[s] >> ((t + 1) % 32) & 1 && t + 1 < time) h[s] = h0[s], c[s] = c0[s], n[s] = n0[s], m[s] = m0[s];
#else
            shown[s] = h[s] = cell.h, c[s] = cell.c, n[s] = cell.n, m[s] = cell.m;
#endif
        }
        read = packed(h);
        give(t + 1, read);
        output = MASKS ? packed(shown) : read;
        copy_async_wait<STAGES - 3>();
        __syncthreads();
    }
    write(y, time - 1, output);
#pragma unroll
    for (int s = 0; s < CELLS; s++) {
        if (records) records[record(tile, time - 1, head, time, heads, group) + lane + s * 32] = keep(keeps[s]);
        const i64 row = first + t4 * CELLS + s;
        if (!mine[s]) continue;
        float* const at = last + row * state_size + state_at;
        at[0] = h[s], at[batch * state_size] = c[s], at[2 * batch * state_size] = n[s], at[3 * batch * state_size] = m[s];
    }
}
