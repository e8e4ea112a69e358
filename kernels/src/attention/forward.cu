// Softmax attention over meta keys, old keys and new keys, forward (after Dao 2023, arXiv 2307.08691): a block keeps ROWS
// queries of one head while tiles of keys and values stream by, with a running maximum and sum for each query.
// Two blocks of a multiprocessor take turns better than warpgroups of one.
#define MAY_BE_APART 0
#define APART_WARPS 12
#define APART_STAGES 4
#define TOGETHER_BLOCKS 2
#include "attention.cuh"

constexpr int QUERY_BYTES = tile_bytes(ROWS, DQK);
constexpr int KEY_BYTES = tile_bytes(STREAM, DQK);
constexpr int STAGE = KEY_BYTES + tile_bytes(STREAM, DV);
/// Tiles begin at multiples of 1024 bytes, dynamic shared memory at any of 16.
extern "C" __device__ __constant__ int attention_forward_shared = QUERY_BYTES + STAGES * STAGE + RING_BYTES + 1024;
extern "C" __device__ __constant__ int attention_forward_rows = ROWS;
extern "C" __device__ __constant__ int attention_forward_threads = ALL_THREADS;

/// Exponents may be this much above zero before sums are scaled anew.
constexpr float SLACK = 8.0f;

/// y = softmax(scale q k^T) v, and the base-2 logarithm of the sum of exponentials.
///
/// Grid: batch * heads * ceil(time / ROWS) blocks of ALL_THREADS threads; `attention_forward_shared`.
/// q bf16 [batch, heads, time, DQK] with strides of batch, head and time; meta_k, meta_v bf16 [batch or 1, kv_heads, meta,
/// DQK / DV], likewise (batch stride 0 for 1); k, v bf16 [batch, kv_heads, cached + time, DQK / DV], likewise; all rows
/// contiguous and at multiples of 16 bytes.
/// y bf16 [batch, time, heads, DV], contiguous. lse float [batch, heads, time] or null.
/// queries int [batch, time, 4], keys int [batch, cached + time]: see attention.cuh; both null unless RAGGED.
/// `scale`: times log2(e).
extern "C" __global__ void __launch_bounds__(ALL_THREADS, BLOCKS)
    attention_forward(const bf16* q, i64 q_batch, i64 q_head, i64 q_row, const bf16* meta_k, i64 meta_k_batch, i64 meta_k_head,
                      i64 meta_k_row, const bf16* meta_v, i64 meta_v_batch, i64 meta_v_head, i64 meta_v_row, const bf16* k,
                      i64 k_batch, i64 k_head, i64 k_row, const bf16* v, i64 v_batch, i64 v_head, i64 v_row, bf16* y,
                      float* lse, const int* queries, const int* keys, i64 holes, i64 time, i64 meta, i64 cached, i64 heads,
                      i64 kv_heads, i64 window, float scale) {
    extern __shared__ char memory[];
    u32 shared = (shared_address(memory) + 1023) / 1024 * 1024;
    int group = int(heads / kv_heads), blocks = int((time + ROWS - 1) / ROWS);
    // The heads of a group stand side by side in the grid: they read the same keys. Later queries first: they see more.
    int block = blockIdx.x;
    i64 in_group = block % group;
    block /= group;
    int first = (blocks - 1 - block % blocks) * ROWS;
    block /= blocks;
    i64 kv_head = block % kv_heads, batch = block / kv_heads, head = kv_head * group + in_group;

    Parts p = parts(time, meta, cached, window, queries, keys, holes, batch);
    Matrix mine = matrix(q, q_batch, q_head, q_row, batch, head);
    Matrix meta_keys = matrix(meta_k, meta_k_batch, meta_k_head, meta_k_row, batch, kv_head);
    Matrix meta_values = matrix(meta_v, meta_v_batch, meta_v_head, meta_v_row, batch, kv_head);
    Matrix old_keys = matrix(k, k_batch, k_head, k_row, batch, kv_head);
    Matrix old_values = matrix(v, v_batch, v_head, v_row, batch, kv_head);
    Matrix new_keys = {old_keys.at + p.old * old_keys.row, old_keys.row};
    Matrix new_values = {old_values.at + p.old * old_values.row, old_values.row};

    int last = min(first + ROWS, p.time) - 1;
    int fresh_first = query(p, first).low / STREAM * STREAM;
    int fresh_tiles = (last + p.ahead - fresh_first) / STREAM + 1;
    int meta_tiles = (p.meta + STREAM - 1) / STREAM, old_tiles = (p.old + STREAM - 1) / STREAM;
    int between = meta_tiles + old_tiles, tiles = between + fresh_tiles;

    auto part_of = [&](int tile, int& key) {
        if (tile < meta_tiles) return key = tile * STREAM, META;
        if (RAGGED && tile < between) return key = (tile - meta_tiles) * STREAM, OLD;
        return key = fresh_first + (tile - between) * STREAM, FRESH;
    };
    int next = 0, loader = APART ? threadIdx.x % 128 : threadIdx.x;
    auto load = [&](int stage) {
        int key;
        Part part = part_of(next++, key);
        u32 to = shared + QUERY_BYTES + stage * STAGE;
        int count = part == META ? p.meta : part == OLD ? p.old : p.fresh;
        load_tile<STREAM, DQK, LOADERS>(to, part == META ? meta_keys : part == OLD ? old_keys : new_keys, key, count, loader);
        load_tile<STREAM, DV, LOADERS>(to + KEY_BYTES, part == META ? meta_values : part == OLD ? old_values : new_values, key,
                                       count, loader);
    };
    Ring ring = make_ring(shared + QUERY_BYTES + STAGES * STAGE);
    if (APART && warp_index() >= WARPS) return load_all(ring, tiles, load);
    take_registers();

    int lane = threadIdx.x % 32, warp = warp_index();
    int unit = first + warp * 16 / UNIT * UNIT, row = first + warp * 16 + lane / 4, column = lane % 4 * 2;
    Query ours[2] = {query(p, row), query(p, row + 8)};
    // What all of the unit's queries see, and what any of them sees.
    int all_low = query(p, min(unit + UNIT, p.time) - 1).low, any_low = query(p, unit).low;
    int all_high = unit + p.ahead, any_high = unit + UNIT - 1 + p.ahead;

    load_tile<ROWS, DQK, THREADS>(shared, mine, first, p.time, threadIdx.x);
    load_first(load);

    float o[DV / 8][4], top[2] = {NEVER, NEVER}, sum[2] = {0.0f, 0.0f};
    zero(o);
    for (int tile = 0; tile < tiles; tile++) {
        tile_wait(ring, tile + 1 < tiles, load);
        int key;
        Part part = part_of(tile, key);
        if (unit >= p.time || (part == FRESH && (key > any_high || key + STREAM <= any_low))) {
            wait<0>();
            settle(o);
            tile_free(ring);
            tile_next(ring, false);
            continue;
        }
        u32 at = shared + QUERY_BYTES + ring.stage * STAGE;
        float s[STREAM / 8][4];
        begin();
        rows_by_rows<STREAM, DQK, ROWS>(s, shared, at);
        commit();
        wait<0>();
        settle(s);
        settle(o);
        tile_free(ring);
        bool whole = part == META   ? key + STREAM <= p.meta
                     : part == OLD ? false
                                   : !p.holes && key >= all_low && key + STREAM - 1 <= all_high;
        if (!whole) {
#pragma unroll
            for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    int other = key + 8 * n + column + c;
                    int place = place_of(p, part, other);
#pragma unroll
                    for (int r = 0; r < 2; r++)
                        if (!sees(p, ours[r], part, other, place)) s[n][2 * r + c] = NEVER;
                }
        }
        float high[2] = {NEVER, NEVER};
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) high[i / 2] = fmaxf(high[i / 2], s[n][i]);
        bool rescale = false;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 1));
            high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 2)) * scale;
            rescale |= high[r] > top[r] + SLACK || (top[r] == NEVER && high[r] > NEVER);
        }
        if (__any_sync(~0u, rescale)) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float now = fmaxf(top[r], high[r]);
                float factor = now == NEVER ? 1.0f : exp2_fast(top[r] - now);
                top[r] = now;
                sum[r] *= factor;
#pragma unroll
                for (int n = 0; n < DV / 8; n++) o[n][2 * r] *= factor, o[n][2 * r + 1] *= factor;
            }
        }
        float base[2] = {top[0] == NEVER ? 0.0f : top[0], top[1] == NEVER ? 0.0f : top[1]};
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] = exp2_fast(fmaf(s[n][i], scale, -base[i / 2]));
                sum[i / 2] += s[n][i];
            }
        u32 weights[STREAM / 16][4];
        as_factor<STREAM>(weights, s);
        settle(weights);
        settle(o);
        begin();
        factor_by_columns<DV, STREAM>(o, weights, at + KEY_BYTES);
        commit();
        tile_next(ring, true);
    }
    wait<0>();
    settle(o);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
        i64 at = row + 8 * r;
        if (at >= p.time) continue;
        float factor = 1.0f / sum[r];
        bf16* out = y + ((batch * time + at) * heads + head) * DV + column;
#pragma unroll
        for (int n = 0; n < DV / 8; n++)
            *reinterpret_cast<u32*>(out + 8 * n) = pack(o[n][2 * r] * factor, o[n][2 * r + 1] * factor);
        if (lse && lane % 4 == 0) lse[(batch * heads + head) * time + at] = top[r] + __log2f(sum[r]);
    }
}
