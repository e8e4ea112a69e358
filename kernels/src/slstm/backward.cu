// The sLSTM's backward in bf16: the transposed R stays in registers, the gradients of the gates go through shared memory, and
// there is one barrier a token.
//
// Compile with -D HEAD_DIM (a multiple of 16, at most 128), CELLS (1 or 2, as the forward was), MASKS (0 or 1) and RECURRENT
// (bf16 or float, the dtype of R).
#include "fused.cuh"

typedef RECURRENT R;

constexpr int THREADS = 2 * D, TILES = D / 4;
/// A lane has two units, each of CELLS sequences.
constexpr int MINE = 2 * CELLS;
/// Tokens whose records are on their way or here.
constexpr int STAGES = D > 64 ? 4 : 6;
constexpr int UPSTREAM = SEQUENCES * PITCH;

extern "C" __device__ const int slstm_backward_shared =
    STAGES * MINE * THREADS * 16 + 2 * 4 * D * 8 * 2 + STAGES * UPSTREAM * 2;

/// grid (heads, ceil(batch / (4 CELLS))), block 2 HEAD_DIM, slstm_backward_shared bytes of shared memory.
///
/// dy            bf16 [batch, time, heads, HEAD_DIM], units contiguous, with its strides over batch, time and heads in
///               elements; address and strides are multiples of 16 bytes
/// dlast         float [4, batch, heads, HEAD_DIM], the gradient of the last h, c, n, m, or null
/// recurrent     RECURRENT [4, heads, HEAD_DIM, HEAD_DIM], rows are outputs
/// last, records  as the forward left them
/// c, n          float [batch or 1, heads, HEAD_DIM] with the stride over the batch: of the state at the start
/// reset_c, reset_n  the same, of a document's start; not read unless MASKS
/// resets, valid  bytes [batch, time] or null; not read unless MASKS
/// dgates        bf16 [batch, time, 4, heads, HEAD_DIM]
/// dstart        float [4, batch, heads, HEAD_DIM]: of the state at the start, as it would be with a state for each row
/// dreset        the same, of a document's start; not written unless MASKS, may be null
extern "C" __global__ void __launch_bounds__(THREADS, 1)
slstm_backward(const bf16* dy, i64 by_batch, i64 by_time, i64 by_head, const float* dlast, const R* recurrent, const float* last,
               const uint4* records, const float* start_c, i64 start_c_stride, const float* start_n, i64 start_n_stride,
               const float* reset_c, i64 reset_c_stride, const float* reset_n, i64 reset_n_stride, const u8* resets,
               const u8* valid, bf16* dgates, float* dstart, float* dreset, i64 batch, i64 time, i64 heads) {
    extern __shared__ uint4 shared[];
    uint4* const kept_ring = shared;  // [STAGES, MINE, THREADS]: each thread reads what it copied itself
    bf16* const gradients = reinterpret_cast<bf16*>(shared + STAGES * MINE * THREADS);  // [2, 4 D, 8]
    bf16* const upstream_ring = gradients + 2 * 4 * D * 8;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t4 = lane % 4;
    const i64 head = blockIdx.x, tile = blockIdx.y, first = tile * SEQUENCES;
    const i64 state_size = heads * D, part = batch * state_size;

    // What comes in of a token: the upstream gradient, 16 bytes a thread, and the thread's own records.
    constexpr int PIECES = SEQUENCES * D / 8;
    static_assert(PIECES <= THREADS, "a copy each");
    const int piece = threadIdx.x % (D / 8), copied = threadIdx.x / (D / 8);
    const i64 copied_row = first + copied;
    const bool exists = copied_row < batch && threadIdx.x < PIECES;
    const bf16* from = dy;
    if (exists) from += copied_row * by_batch + (time - 1) * by_time + head * by_head + piece * 8;
    bf16* const to = upstream_ring + copied * PITCH + piece * 8;
    i64 next = 0;
    const auto copy = [&] {
        if (next < time) {
            const i64 slot = next % STAGES;
            if (threadIdx.x < PIECES) {
                copy_async_16(to + slot * UPSTREAM, from, exists ? 16 : 0);
                if (exists) from -= by_time;
            }
            const uint4* const at = records + record(tile, time - 1 - next, head, time, heads, warp * 2) + lane;
#pragma unroll
            for (int i = 0; i < MINE; i++) copy_async_16(kept_ring + (slot * MINE + i) * THREADS + threadIdx.x, at + i * 32, 16);
        }
        copy_async_commit();
        next++;
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) copy();

    // Rows are a warp's 16 units as inputs, columns the outputs' units of all gates.
    u32 a[TILES][4];
#pragma unroll
    for (int k = 0; k < TILES; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int column = k * 16 + i / 2 * 8 + t4 * 2;
            const i64 gate = column / D, output = column % D, input = warp * 16 + i % 2 * 8 + g;
            const R* x = recurrent + ((gate * heads + head) * D + output) * D + input;
            a[k][i] = pack(to_float(x[0]), to_float(x[D]));
        }

    Carried carried[MINE];
    float dh[MINE];
#if MASKS
    Carried collected[MINE];
    float collected_h[MINE];
    bool touched[CELLS];
#pragma unroll
    for (int s = 0; s < CELLS; s++) touched[s] = false;
    Masks masks;
    masks.load(resets, valid, tile, batch, time, (time - 1) / 32);
#endif
    const auto row_of = [&](int i) { return first + t4 * CELLS + i % CELLS; };
    const auto place = [&](int i) { return head * D + warp * 16 + i / CELLS * 8 + g; };
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        carried[i].quotient = carried[i].normaliser = carried[i].maximum = dh[i] = 0.0f;
#if MASKS
        collected[i].quotient = collected[i].normaliser = collected[i].maximum = collected_h[i] = 0.0f;
#endif
        if (dlast && row_of(i) < batch) {
            const i64 at = row_of(i) * state_size + place(i);
            dh[i] = dlast[at];
            carried[i].start(dlast[at + part], dlast[at + 2 * part], dlast[at + 3 * part], last[at + part], last[at + 2 * part]);
        }
    }

    // Where this lane writes gradients: of a transposed piece it has two units of one sequence.
    const i64 written_row = first + sequence_of(g);
    const bool writes = written_row < batch && (CELLS == 2 || g % 2 == 0);
    bf16* const written = dgates + (written_row * time * 4 * heads + head) * D + warp * 16 + t4 * 2;
    u32 given[4][2];
    const auto write = [&](i64 t) {
#pragma unroll
        for (int gate = 0; gate < 4; gate++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 x = transposed(given[gate][half]);
                if (writes) *reinterpret_cast<u32*>(written + (t * 4 + gate) * state_size + half * 8) = x;
            }
    };

    copy_async_wait<STAGES - 3>();
    __syncthreads();
    // One lane in four pieces: two of them, of the warp's two groups of units.
    const bf16* const upstream_row = upstream_ring + sequence_of(lane % 8) * PITCH + warp * 16 + lane / 8 % 2 * 8;
    u32 upstream[4];
    load_transposed(upstream, upstream_row);

    for (i64 t = time - 1; t >= 0; t--) {
        const i64 step = time - 1 - t;
        float d[MINE][4];
#if MASKS
        bool counts[CELLS];
#pragma unroll
        for (int s = 0; s < CELLS; s++) counts[s] = masks.valid[s] >> (t % 32) & 1, touched[s] |= counts[s];
#endif
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            const uint4 x = kept_ring[(step % STAGES * MINE + i) * THREADS + threadIdx.x];
            const u32 dy_pair = upstream[i / CELLS];
            const float total = dh[i] + (i % CELLS ? high(dy_pair) : low(dy_pair));
#if MASKS
            Carried after = carried[i];
            after.step(kept(x), total, d[i]);
            if (counts[i % CELLS]) carried[i] = after;
            else d[i][0] = d[i][1] = d[i][2] = d[i][3] = 0.0f;
#else
            carried[i].step(kept(x), total, d[i]);
#endif
        }
        bf16* const turn = gradients + step % 2 * 4 * D * 8;
#pragma unroll
        for (int gate = 0; gate < 4; gate++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 x = pack(d[half * CELLS][gate], CELLS == 2 ? d[half * CELLS + CELLS - 1][gate] : 0.0f);
                given[gate][half] = x;
                *reinterpret_cast<u32*>(turn + (gate * D + warp * 16 + half * 8 + g) * 8 + t4 * 2) = x;
            }
        copy_async_wait<STAGES - 3>();
        __syncthreads();

        // Four chains of products.
        float sums[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
#pragma unroll
        for (int k = 0; k < TILES; k += 2) {
            u32 b[4];
            load_transposed(b, turn + (k * 16 + lane) * 8);
            mma_bf16(sums[k % 4], a[k], b[0], b[1]);
            mma_bf16(sums[k % 4 + 1], a[k + 1], b[2], b[3]);
        }
        // While they are made: this token's gradients, and what the next one needs.
        write(t);
        if (t > 0) load_transposed(upstream, upstream_row + (step + 1) % STAGES * UPSTREAM);
        copy();
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            const int at = i / CELLS * 2 + i % CELLS;
            const float before = (sums[0][at] + sums[1][at]) + (sums[2][at] + sums[3][at]);
#if MASKS
            if (counts[i % CELLS]) dh[i] = before;
            if (masks.resets[i % CELLS] >> (t % 32) & 1) {
                collected_h[i] += dh[i];
                collected[i].quotient += carried[i].quotient;
                collected[i].normaliser += carried[i].normaliser;
                collected[i].maximum += carried[i].maximum;
                carried[i].quotient = carried[i].normaliser = carried[i].maximum = dh[i] = 0.0f;
            }
#else
            dh[i] = before;
#endif
        }
#if MASKS
        if (t % 32 == 0 && t > 0) masks.load(resets, valid, tile, batch, time, t / 32 - 1);
#endif
    }

#pragma unroll
    for (int i = 0; i < MINE; i++) {
        const i64 row = row_of(i), at = row * state_size + place(i);
        if (row >= batch) continue;
        float dc, dn, dm;
        carried[i].finish(start_c[row * start_c_stride + place(i)], start_n[row * start_n_stride + place(i)], dc, dn, dm);
#if MASKS
        // A row of nothing but padding hands its state on as it is.
        if (!touched[i % CELLS] && dlast) dc = dlast[at + part], dn = dlast[at + 2 * part], dm = dlast[at + 3 * part];
#endif
        dstart[at] = dh[i], dstart[at + part] = dc, dstart[at + 2 * part] = dn, dstart[at + 3 * part] = dm;
#if MASKS
        if (!dreset) continue;
        collected[i].finish(reset_c[row * reset_c_stride + place(i)], reset_n[row * reset_n_stride + place(i)], dc, dn, dm);
        dreset[at] = collected_h[i], dreset[at + part] = dc, dreset[at + 2 * part] = dn, dreset[at + 3 * part] = dm;
#endif
    }
}
