// The state of the mLSTM from chunk to chunk. Forward: C = kept C + sum over tokens of k written v^T. Backward (BACKWARD 1),
// from the last chunk to the first, the gradient of the state: dC = kept dC + sum over tokens of q weight dh^T. A block has a
// tile of one head's state in its registers, in 32 bits, and walks along the sequence; it leaves a copy in bf16 for each
// chunk. The normaliser n is one more column, of weights that are three bf16 numbers each and so exact.
#define WARPS 8
#include "tiles.cuh"

constexpr int STEP = 64;
constexpr int PARTS = CHUNK / STEP;
// Backward there is the state's copy in shared memory besides.
constexpr int STAGES = BACKWARD ? 2 : 3;
/// 16 rows each: of the state, and of a warp.
constexpr int ROW_TILES = WIDTH / 16;
constexpr int OWN = (ROW_TILES + 3) / 4;
/// 8 columns each, of a warp.
constexpr int COLUMNS = TILE / 16;
constexpr u32 STAGE_LEFT = (WIDTH + 63) / 64 * STEP * 128;
constexpr u32 STAGE_RIGHT = (TILE + 63) / 64 * STEP * 128;
constexpr u32 STAGE = STAGE_LEFT + STAGE_RIGHT + 3 * STEP * 4;

/// One of three bf16 numbers whose sum is x.
DEVICE float third(float x, int which) {
    const float a = to_float(from_float<bf16>(x));
    if (which == 0) return a;
    const float b = to_float(from_float<bf16>(x - a));
    return which == 1 ? b : which == 2 ? x - a - b : 0.0f;
}

struct State {
    float c[OWN][COLUMNS][4];
    float n[OWN][4];

    DEVICE void scale(float factor) {
#pragma unroll
        for (int r = 0; r < OWN; r++) {
#pragma unroll
            for (int i = 0; i < COLUMNS; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) c[r][i][e] *= factor;
#pragma unroll
            for (int e = 0; e < 4; e++) n[r][e] *= factor;
        }
    }
};

/// Rows `row` and columns `column` of this thread's part of the state.
template <typename F> DEVICE void each(F f) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < OWN; r++)
#pragma unroll
        for (int i = 0; i < COLUMNS; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                f(r, i, e, (warp % 4 * OWN + r) * 16 + lane / 4 + e / 2 * 8, warp / 4 * (TILE / 2) + i * 8 + lane % 4 * 2 + e % 2);
}

/// The same by vectors of eight columns, as `eight_columns` makes them of the accumulators from `i` on.
template <typename F> DEVICE void vectors(F f) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int v = 0;
#pragma unroll
    for (int r = 0; r < OWN; r++)
#pragma unroll
        for (int i = 0; i < COLUMNS; i += 4)
#pragma unroll
            for (int half = 0; half < 2; half++, v++)
                f(v, r, i, half, (warp % 4 * OWN + r) * 16 + lane / 4 + half * 8, warp / 4 * (TILE / 2) + i * 8 + lane % 4 * 8);
}

/// grid (batch * heads * tiles), tiles = ceil(d_v / TILE); block 256; shared memory STAGES (ceil(WIDTH / 64) 8192 + TILE 128
/// + 768), backward OWN COLUMNS 2048 more.
/// d_qk and d_v are multiples of 8, WIDTH is d_qk rounded up to 32.
///
/// x       bf16 [batch, time, heads, d_qk]: k (or q), with strides over batch, time and heads; rows start at multiples of 16
///         bytes
/// y       bf16 [batch, time, heads, d_v]: v (or dh), likewise
/// valid   bool [batch, time], contiguous, or null; used with MASKS
/// weight  float [batch, heads, padded]: of x in C
/// weight_n  the same for n; forward: `weight`
/// first   int [batch, heads, padded], used with MASKS backward
/// kept    float2 [batch, heads, chunks], of `mlstm_gates`
/// c0, n0  float [batch or 1, heads, d_qk, d_v] and [.., d_qk]: the first state with its strides over the batch (or the
///         gradient of the last one, or null)
/// c_reset, n_reset  forward: the reset state, alike, or null. Backward: float [batch, heads, d_qk, d_v], [.., d_qk], zeros
///         before and the gradient of the reset state after; or null
/// c_kept  bf16 [batch, heads, chunks, d_qk, d_v]: the state before each chunk, of the forward; backward only
/// c_fresh bf16 [batch or 1, heads, d_qk, d_v], the reset state, with its stride over the batch; or null; backward only
/// c_out   bf16 [batch, heads, chunks, d_qk, d_v]: the state before each chunk (or its gradient after each)
/// n_out   float [batch, heads, chunks, d_qk]
/// along   float [batch, heads, chunks, tiles * 8], backward only: partial sums of dC C
/// c_last, n_last  float [batch, heads, d_qk, d_v], [.., d_qk]: the last state (or the gradient of the first)
extern "C" __global__ void __launch_bounds__(THREADS, WIDTH > 128 ? 1 : 2)
mlstm_states(const bf16* x, i64 x_batch, i64 x_time, i64 x_head, const bf16* y, i64 y_batch, i64 y_time, i64 y_head,
             const u8* valid, const float* weight, const float* weight_n, const int* first, const float2* kept,
             const float* c0, i64 c0_batch, const float* n0, i64 n0_batch, float* c_reset, i64 c_reset_batch, float* n_reset,
             i64 n_reset_batch, const bf16* c_kept, const bf16* c_fresh, i64 c_fresh_batch, bf16* c_out, float* n_out,
             float* along, float* c_last, float* n_last, i64 time, i64 heads, i64 chunks, i64 d_qk, i64 d_v) {
    extern __shared__ __align__(128) u8 memory[];
    const u32 shared = shared_address(memory);
    const i64 tiles = (d_v + TILE - 1) / TILE;
    const i64 tile = blockIdx.x % tiles, bh = blockIdx.x / tiles, head = bh % heads, batch = bh / heads;
    const i64 column0 = tile * TILE;
    const int columns = int(min(d_v - column0, i64(TILE)));
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const i64 padded = chunks * CHUNK, steps = padded / STEP;
    x += batch * x_batch + head * x_head;
    y += batch * y_batch + head * y_head + column0;
    weight += bh * padded;
    weight_n += bh * padded;
    kept += bh * chunks;
    const bool normal = tile == 0 && warp < 4;  // this warp has the normaliser's rows, too

    auto step_at = [&](i64 s) { return BACKWARD ? steps - PARTS - s / PARTS * PARTS + s % PARTS : s; };
    auto request = [&](i64 s) {
        if (s < steps) {
            const i64 t = step_at(s) * STEP;
            const u32 stage = shared + u32(s % STAGES) * STAGE;
            const int rows = int(max(min(time - t, i64(STEP)), i64(0)));
            const i64 from = rows ? t : 0;
            const u8* real = valid ? valid + batch * time + from : nullptr;
            fetch<STEP, WIDTH>(stage, x + from * x_time, x_time, rows, int(d_qk), real);
            fetch<STEP, TILE>(stage + STAGE_LEFT, y + from * y_time, y_time, rows, columns, real);
            const u32 weights = stage + STAGE_LEFT + STAGE_RIGHT;
            const int i = threadIdx.x % 16 * 4;
            if (threadIdx.x < 16) fetch_16(weights + i * 4, weight + t + i, 16);
            else if (threadIdx.x < 32) fetch_16(weights + (STEP + i) * 4, weight_n + t + i, 16);
#if MASKS && BACKWARD
            else if (threadIdx.x < 48) fetch_16(weights + (2 * STEP + i) * 4, first + bh * padded + t + i, 16);
#endif
        }
        copy_async_commit();
    };

#if BACKWARD
    // What the gradient after this chunk is multiplied with: the state that came into it, or the reset state.
    auto request_state = [&](i64 step) {
        if (step >= chunks) return;
        const i64 chunk = chunks - 1 - step;
        const bool anew = MASKS && c_fresh && kept[chunk].y != 0.0f;
        const bf16* from = anew ? c_fresh + batch * c_fresh_batch + head * d_qk * d_v : c_kept + (bh * chunks + chunk) * d_qk * d_v;
        vectors([&](int v, int, int, int, int row, int column) {
            const bool there = row < d_qk && column < columns;
            fetch_16(shared + STAGES * STAGE + (v * THREADS + threadIdx.x) * 16, there ? from + column0 + row * d_v + column : from,
                     there ? 16 : 0);
        });
    };
    request_state(0);
#endif
    State state;
    if (c0) {
        const float* from = c0 + batch * c0_batch + head * d_qk * d_v + column0;
        each([&](int r, int i, int e, int row, int column) {
            state.c[r][i][e] = row < d_qk && column < columns ? from[row * d_v + column] : 0.0f;
        });
    } else {
        each([&](int r, int i, int e, int, int) { state.c[r][i][e] = 0.0f; });
    }
    // Columns 0, 1 and 2 of n are added up where it is stored.
    auto row_of_n = [&](int r, int e) { return (warp % 4 * OWN + r) * 16 + lane / 4 + e / 2 * 8; };
#pragma unroll
    for (int r = 0; r < OWN; r++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int row = row_of_n(r, e);
            const bool mine = n0 && normal && lane % 4 == 0 && e % 2 == 0 && row < d_qk;
            state.n[r][e] = mine ? n0[batch * n0_batch + head * d_qk + row] : 0.0f;
        }
    auto store_n = [&](float* to, bool add) {
        if (!normal) return;
#pragma unroll
        for (int r = 0; r < OWN; r++)
#pragma unroll
            for (int e = 0; e < 4; e += 2) {
                const float own = state.n[r][e] + state.n[r][e + 1];
                const float sum = own + __shfl_down_sync(~0u, own, 1);
                const int row = row_of_n(r, e);
                if (lane % 4 == 0 && row < d_qk) to[row] = add ? to[row] + sum : sum;
            }
    };
    // Adds what the stage's tokens write, those of the document that was there before the chunk or (fresh) the others.
    auto add = [&](i64 s, bool masked, bool fresh) {
        const u32 stage = shared + u32(s % STAGES) * STAGE;
        const float* weights = reinterpret_cast<const float*>(memory + (s % STAGES) * STAGE + STAGE_LEFT + STAGE_RIGHT);
#pragma unroll 1
        for (int t = 0; t < STEP; t += 16) {
            const int at = t + lane % 4 * 2;
            float2 w0 = *reinterpret_cast<const float2*>(weights + at);
            float2 w1 = *reinterpret_cast<const float2*>(weights + at + 8);
            float2 n_0 = *reinterpret_cast<const float2*>(weights + STEP + at);
            float2 n_1 = *reinterpret_cast<const float2*>(weights + STEP + at + 8);
#if MASKS && BACKWARD
            if (masked) {
                const int* starts = reinterpret_cast<const int*>(weights + 2 * STEP);
                if ((starts[at] >= 0) != fresh) w0.x = n_0.x = 0.0f;
                if ((starts[at + 1] >= 0) != fresh) w0.y = n_0.y = 0.0f;
                if ((starts[at + 8] >= 0) != fresh) w1.x = n_1.x = 0.0f;
                if ((starts[at + 9] >= 0) != fresh) w1.y = n_1.y = 0.0f;
            }
#endif
            Fragment b[COLUMNS / 2];
#pragma unroll
            for (int i = 0; i < COLUMNS / 2; i++)
                right<STEP>(b[i], stage + STAGE_LEFT, t, warp / 4 * (TILE / 2) + i * 16);
#pragma unroll
            for (int r = 0; r < OWN; r++) {
                const int row = (warp % 4 * OWN + r) * 16;
                if (row < WIDTH) {
                    Fragment a;
                    left_transposed<STEP>(a, stage, t, row);
                    if (normal) {
                        const int which = lane / 4;
                        multiply_8(state.n[r], a, pack(third(n_0.x, which), third(n_0.y, which)),
                                   pack(third(n_1.x, which), third(n_1.y, which)));
                    }
                    a.x[0] = pack(low_half(a.x[0]) * w0.x, high_half(a.x[0]) * w0.y);
                    a.x[1] = pack(low_half(a.x[1]) * w0.x, high_half(a.x[1]) * w0.y);
                    a.x[2] = pack(low_half(a.x[2]) * w1.x, high_half(a.x[2]) * w1.y);
                    a.x[3] = pack(low_half(a.x[3]) * w1.x, high_half(a.x[3]) * w1.y);
#pragma unroll
                    for (int i = 0; i < COLUMNS / 2; i++) multiply(&state.c[r][2 * i], a, b[i]);
                }
            }
        }
    };

    for (i64 s = 0; s < STAGES - 1; s++) request(s);
    float2 coming = kept[BACKWARD ? chunks - 1 : 0];
    for (i64 step = 0; step < chunks; step++) {
        const i64 chunk = BACKWARD ? chunks - 1 - step : step;
        const float2 rest = coming;
        if (step + 1 < chunks) coming = kept[BACKWARD ? chunk - 1 : chunk + 1];
        // The copy for the chunk's other kernels, and backward its sum with the state that it is the gradient of.
        const i64 to = (bh * chunks + chunk) * d_qk * d_v + column0;
#if BACKWARD
        if (PARTS < STAGES || step == 0) copy_async_wait<0>();
        float flow = 0.0f;
#endif
        vectors([&](int v, int r, int i, int half, int row, int column) {
            const bool there = row < d_qk && column < columns;
            const uint4 copy = eight_columns(&state.c[r][i], half);
            if (there) *reinterpret_cast<uint4*>(c_out + to + row * d_v + column) = copy;
#if BACKWARD
            const uint4 other = *reinterpret_cast<const uint4*>(memory + STAGES * STAGE + (v * THREADS + threadIdx.x) * 16);
            flow += low_half(copy.x) * low_half(other.x) + high_half(copy.x) * high_half(other.x);
            flow += low_half(copy.y) * low_half(other.y) + high_half(copy.y) * high_half(other.y);
            flow += low_half(copy.z) * low_half(other.z) + high_half(copy.z) * high_half(other.z);
            flow += low_half(copy.w) * low_half(other.w) + high_half(copy.w) * high_half(other.w);
#endif
        });
        store_n(n_out + (bh * chunks + chunk) * d_qk, false);
#if BACKWARD
#pragma unroll
        for (int d = 16; d; d /= 2) flow += __shfl_xor_sync(~0u, flow, d);
        if (lane == 0) along[((bh * chunks + chunk) * tiles + tile) * WARPS + warp] = flow * (rest.x + rest.y);
        request_state(step + 1);
#endif
        bool started = false;  // the chunk is done
#if MASKS && BACKWARD
        if (rest.x == 0.0f && c_reset) {  // a document may start in this chunk
            // The gradient of the reset state: what the next chunks want of it, and what this chunk reads of it.
            float* reset = c_reset + (batch * heads + head) * d_qk * d_v + column0;
            float* reset_n = n_reset + (batch * heads + head) * d_qk;
            state.scale(rest.y);
            started = true;
            __syncthreads();
            for (int part = STAGES - 1; part < PARTS; part++) request(PARTS * step + part);
            copy_async_wait<0>();
            __syncthreads();
            for (int part = 0; part < PARTS; part++) add(PARTS * step + part, true, true);
            each([&](int r, int i, int e, int row, int column) {
                if (row < d_qk && column < columns) reset[row * d_v + column] += state.c[r][i][e];
            });
            store_n(reset_n, true);
            state.scale(0.0f);
            for (int part = 0; part < PARTS; part++) add(PARTS * step + part, true, false);
            __syncthreads();
            for (int part = max(STAGES - 1, PARTS); part < PARTS + STAGES - 1; part++) request(PARTS * step + part);
        }
#endif
        if (!started) {
            state.scale(rest.x);
#if MASKS && !BACKWARD
            if (rest.y != 0.0f) {
                const float* reset = c_reset + batch * c_reset_batch + head * d_qk * d_v + column0;
                each([&](int r, int i, int e, int row, int column) {
                    if (row < d_qk && column < columns)
                        state.c[r][i][e] = fmaf(rest.y, reset[row * d_v + column], state.c[r][i][e]);
                });
#pragma unroll
                for (int r = 0; r < OWN; r++)
#pragma unroll
                    for (int e = 0; e < 4; e += 2) {
                        const int row = row_of_n(r, e);
                        if (normal && lane % 4 == 0 && row < d_qk)
                            state.n[r][e] += rest.y * n_reset[batch * n_reset_batch + head * d_qk + row];
                    }
            }
#endif
            for (int part = 0; part < PARTS; part++) {
                copy_async_wait<STAGES - 2>();
                __syncthreads();
                request(PARTS * step + part + STAGES - 1);
                add(PARTS * step + part, false, false);
            }
        }
    }
    copy_async_wait<0>();
    float* last = c_last + bh * d_qk * d_v + column0;
    each([&](int r, int i, int e, int row, int column) {
        if (row < d_qk && column < columns) last[row * d_v + column] = state.c[r][i][e];
    });
    store_n(n_last + bh * d_qk, false);
}
