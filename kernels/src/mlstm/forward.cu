// The mLSTM's outputs, from the states before the chunks: with S[i][j] = q_i k_j d_qk^-1/2 weight(i, j),
//
//   h_i = (before_i q_i C + sum_j S[i][j] v_j) / (max(|q n|_i, e^-m_i) + eps),   q n alike with ones for v.
//
// A warp has 16 queries; scores never leave its registers. A block goes from chunk to chunk, and asks for a tile of the next
// one as soon as that of this one has been read.
#include "tiles.cuh"

constexpr int PANELS = (WIDTH + 63) / 64;
constexpr u32 ROWS_BYTES = PANELS * CHUNK * 128;
constexpr u32 VALUES_BYTES = TILE / 64 * CHUNK * 128;
constexpr u32 STATE_BYTES = TILE / 64 * WIDTH * 128;

/// What is fetched of each token and of the normaliser besides.
struct Scalars {
    float2 column[CHUNK], row[CHUNK];
    float before[CHUNK], bound[CHUNK];
    int first[CHUNK];
    float n[WIDTH];
};

/// grid (blocks), any number; block CHUNK 2; shared memory 2 ROWS_BYTES + STATE_BYTES + VALUES_BYTES + CHUNK 28 + WIDTH 4.
///
/// q, k, v   bf16 [batch, time, heads, d], with strides over batch, time and heads; rows start at multiples of 16 bytes
/// valid     bool [batch, time], contiguous, or null; used with MASKS
/// row, column, before, bound, first   of `mlstm_gates`; first is used with MASKS
/// c         bf16 [batch, heads, chunks, d_qk, d_v]: the state before each chunk
/// n         float [batch, heads, chunks, d_qk]
/// c_fresh   bf16 [batch or 1, heads, d_qk, d_v], the reset state, with its stride over the batch; or null
/// n_fresh   float [batch or 1, heads, d_qk], likewise
/// h         bf16 [batch, time, heads, d_v]
/// q_n       float [batch, heads, padded]
/// items     batch * heads * chunks * tiles, less than 2^31, tiles = ceil(d_v / TILE)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
mlstm_forward(const bf16* q, i64 q_batch, i64 q_time, i64 q_head, const bf16* k, i64 k_batch, i64 k_time, i64 k_head,
              const bf16* v, i64 v_batch, i64 v_time, i64 v_head, const u8* valid, const float2* row, const float2* column,
              const float* before, const float* bound, const int* first, const bf16* c, const float* n, const bf16* c_fresh,
              i64 c_fresh_batch, const float* n_fresh, i64 n_fresh_batch, bf16* h, float* q_n, i64 time, i64 heads,
              i64 chunks, i64 items, i64 d_qk, i64 d_v, float scale, float eps) {
    extern __shared__ __align__(128) u8 memory[];
    const u32 queries = shared_address(memory), keys = queries + ROWS_BYTES, states = keys + ROWS_BYTES, values = states + STATE_BYTES;
    const Scalars& scalars = *reinterpret_cast<const Scalars*>(memory + 2 * ROWS_BYTES + STATE_BYTES + VALUES_BYTES);
    const u32 tiles = u32((d_v + TILE - 1) / TILE);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // Early queries see few keys: each scheduler gets an early and a late warp.
    const int strip = warp < WARPS / 2 ? warp : WARPS * 3 / 2 - 1 - warp, g = strip * 16 + lane / 4, lane2 = lane % 4 * 2;

    const auto rows_of = [&](const Chunk& at) { return int(min(time - at.t0, i64(CHUNK))); };
    const auto real_of = [&](const Chunk& at) { return valid ? valid + at.batch * time + at.t0 : nullptr; };
    const auto column_of = [&](int item) { return i64(u32(item) % tiles) * TILE; };
    const auto width_of = [&](int item) { return int(min(d_v - column_of(item), i64(TILE))); };
    const auto line = [&](const void* into, const void* from, int bytes, int most) {
        const u32 to = shared_address(into);
        for (int i = threadIdx.x * 16; i < most; i += THREADS * 16)
            fetch_16(to + i, i < bytes ? static_cast<const u8*>(from) + i : from, i < bytes ? 16 : 0);
    };
    const auto fetch_queries = [&](int item) {
        if (item < items) {
            const Chunk at(u32(item) / tiles, chunks, heads);
            fetch<CHUNK, WIDTH>(queries, q + at.batch * q_batch + at.t0 * q_time + at.head * q_head, q_time, rows_of(at), int(d_qk), real_of(at));
        }
        copy_async_commit();
    };
    const auto fetch_keys = [&](int item) {
        if (item < items) {
            const Chunk at(u32(item) / tiles, chunks, heads);
            fetch<CHUNK, WIDTH>(keys, k + at.batch * k_batch + at.t0 * k_time + at.head * k_head, k_time, rows_of(at), int(d_qk), real_of(at));
            line(scalars.column, column + at.tokens, CHUNK * 8, CHUNK * 8);
            line(scalars.row, row + at.tokens, CHUNK * 8, CHUNK * 8);
            line(scalars.before, before + at.tokens, CHUNK * 4, CHUNK * 4);
            line(scalars.bound, bound + at.tokens, CHUNK * 4, CHUNK * 4);
#if MASKS
            line(scalars.first, first + at.tokens, CHUNK * 4, CHUNK * 4);
#endif
            line(scalars.n, n + at.index * d_qk, int(d_qk) * 4, WIDTH * 4);
        }
        copy_async_commit();
    };
    const auto fetch_state = [&](int item) {
        if (item < items) {
            const Chunk at(u32(item) / tiles, chunks, heads);
            fetch<WIDTH, TILE>(states, c + at.index * d_qk * d_v + column_of(item), d_v, int(d_qk), width_of(item), nullptr);
        }
        copy_async_commit();
    };
    const auto fetch_values = [&](int item) {
        if (item < items) {
            const Chunk at(u32(item) / tiles, chunks, heads);
            fetch<CHUNK, TILE>(values, v + at.batch * v_batch + at.t0 * v_time + at.head * v_head + column_of(item), v_time, rows_of(at),
                               width_of(item), real_of(at));
        }
        copy_async_commit();
    };

    fetch_keys(blockIdx.x);
    fetch_queries(blockIdx.x);
    fetch_state(blockIdx.x);
#pragma unroll 1
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const Chunk at(u32(item) / tiles, chunks, heads);
        const int next = item + gridDim.x;
        copy_async_wait<1>();
        __syncthreads();  // keys and queries are there, the last chunk's values are free
        fetch_values(item);
        bool mixed = false;  // whether a document starts in this chunk
#if MASKS
        mixed = c_fresh && scalars.first[CHUNK - 1] >= 0;
#endif
        float2 exponent[2];
        float reads[2], lower[2];
        int start[2] = {-1, -1};
#pragma unroll
        for (int r = 0; r < 2; r++) {
            exponent[r] = scalars.row[g + 8 * r];
            reads[r] = scalars.before[g + 8 * r] * scale;
            lower[r] = scalars.bound[g + 8 * r];
#if MASKS
            if (mixed) start[r] = scalars.first[g + 8 * r];
#endif
        }

        // Scores, and q n.
        float sum[2] = {0.0f, 0.0f}, along[2] = {0.0f, 0.0f};
        Fragment scores[CHUNK / 16];
        {
            float s[CHUNK / 8][4] = {};
#pragma unroll
            for (int d = 0; d < WIDTH; d += 16) {
                Fragment a;
                left<CHUNK>(a, queries, strip * 16, d);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int from = d + half * 8 + lane2;
                    const float2 own = *reinterpret_cast<const float2*>(scalars.n + from);
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const u32 x = a.x[half * 2 + r];
                        float2 factor = own;
#if MASKS
                        if (start[r] >= 0) {
                            const float* reset = n_fresh + at.batch * n_fresh_batch + at.head * d_qk + from;
                            factor = from < d_qk ? make_float2(reset[0], reset[1]) : make_float2(0.0f, 0.0f);
                        }
#endif
                        along[r] += low_half(x) * factor.x + high_half(x) * factor.y;
                    }
                }
#pragma unroll
                for (int j = 0; j < CHUNK / 16; j++)
                    if (j <= strip) {
                        Fragment b;
                        right_transposed<CHUNK>(b, keys, j * 16, d);
                        multiply(&s[2 * j], a, b);
                    }
            }
#pragma unroll
            for (int j = 0; j < CHUNK / 16; j++)
                if (j <= strip) {
#pragma unroll
                    for (int i = 2 * j; i < 2 * j + 2; i++)
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                            const int r = e / 2, key = i * 8 + lane2 + e % 2;
                            const bool seen = key <= g + 8 * r && (!MASKS || key >= start[r]);
                            s[i][e] = seen ? s[i][e] * scale * weight(exponent[r], scalars.column[key]) : 0.0f;
                            sum[r] += s[i][e];
                        }
                    scores[j] = as_left(&s[2 * j]);
                }
        }
        copy_async_wait<1>();
        __syncthreads();  // the state is there, keys are free
        fetch_keys(next);

        // What the state holds; with a document's start inside, first for the queries before it, then for the others.
        float o[TILE / 8][4] = {};
#pragma unroll 1
        for (int fresh = 0; fresh <= int(mixed); fresh++) {
            if (fresh) {
                __syncthreads();
                fetch<WIDTH, TILE>(states, c_fresh + at.batch * c_fresh_batch + at.head * d_qk * d_v + column_of(item), d_v, int(d_qk),
                                   width_of(item), nullptr);
                copy_async_commit();
                copy_async_wait<0>();
                __syncthreads();
            }
#pragma unroll
            for (int d = 0; d < WIDTH; d += 16) {
                Fragment a;
                left<CHUNK>(a, queries, strip * 16, d);
#if MASKS
#pragma unroll
                for (int x = 0; x < 4; x++)
                    if ((start[x % 2] >= 0) != bool(fresh)) a.x[x] = 0;
#endif
#pragma unroll
                for (int i = 0; i < TILE / 16; i++) {
                    Fragment b;
                    right<WIDTH>(b, states, d, i * 16);
                    multiply(&o[2 * i], a, b);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < TILE / 8; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) o[i][e] *= reads[e / 2];
        copy_async_wait<1>();
        __syncthreads();  // the values are there, queries and the state are free
        fetch_queries(next);
        fetch_state(next);
#pragma unroll
        for (int j = 0; j < CHUNK / 16; j++)
            if (j <= strip) {
#pragma unroll
                for (int i = 0; i < TILE / 16; i++) {
                    Fragment b;
                    right<CHUNK>(b, values, j * 16, i * 16);
                    multiply(&o[2 * i], scores[j], b);
                }
            }
        const int rows = rows_of(at), width = width_of(item);
        const i64 column0 = column_of(item);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float all = sum_of_four(sum[r]) + reads[r] * sum_of_four(along[r]);
            if (column0 == 0 && lane % 4 == 0) q_n[at.tokens + g + 8 * r] = all;
            const float inverse = 1.0f / (fmaxf(fabsf(all), lower[r]) + eps);
#pragma unroll
            for (int i = 0; i < TILE / 8; i++) {
                o[i][2 * r] *= inverse;
                o[i][2 * r + 1] *= inverse;
            }
        }
#pragma unroll
        for (int i = 0; i < TILE / 8; i += 4)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const uint4 eight = eight_columns(&o[i], r);
                const int in = g + 8 * r, to = i * 8 + lane2 * 4;
                if (in < rows && to < width)
                    *reinterpret_cast<uint4*>(h + ((at.batch * time + at.t0 + in) * heads + at.head) * d_v + column0 + to) = eight;
            }
    }
    copy_async_wait<0>();
}
