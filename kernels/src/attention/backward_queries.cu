// Softmax attention, backward: the gradient of the queries. See backward_keys.cu for the equations.
// Two blocks of a multiprocessor take turns as well as warpgroups of one.
#define MAY_BE_APART 0
#define APART_WARPS (DQK > 64 ? 8 : 12)
#define APART_STAGES 3
#define TOGETHER_BLOCKS (DQK + DV <= 192 ? 2 : 1)
#include "attention.cuh"

constexpr int QUERY_BYTES = tile_bytes(ROWS, DQK), GRADIENT_BYTES = tile_bytes(ROWS, DV);
constexpr int KEY_STAGE = tile_bytes(STREAM, DQK);
constexpr int STAGE = KEY_STAGE + tile_bytes(STREAM, DV);
extern "C" __device__ __constant__ int attention_backward_queries_shared = QUERY_BYTES + GRADIENT_BYTES + STAGES * STAGE + RING_BYTES + 1024;
extern "C" __device__ __constant__ int attention_backward_queries_rows = ROWS;
extern "C" __device__ __constant__ int attention_backward_queries_threads = ALL_THREADS;

/// The gradient of the queries, and delta.
///
/// Grid: batch * heads * ceil(time / ROWS) blocks of ALL_THREADS threads; `attention_backward_queries_shared`.
/// q .. v, queries, keys, holes: as in forward.cu; y bf16 [batch, time, heads, DV], contiguous; lse float [batch, heads,
/// time]; dy bf16 [batch, heads, time, DV] with strides, rows contiguous and at multiples of 16 bytes.
/// dq bf16 [batch, heads, time, DQK] with strides, rows contiguous; delta float [batch, heads, time].
/// `scale2`: scale * log2(e).
extern "C" __global__ void __launch_bounds__(ALL_THREADS, BLOCKS)
    attention_backward_queries(const bf16* q, i64 q_batch, i64 q_head, i64 q_row, const bf16* meta_k, i64 meta_k_batch,
                               i64 meta_k_head, i64 meta_k_row, const bf16* meta_v, i64 meta_v_batch, i64 meta_v_head,
                               i64 meta_v_row, const bf16* k, i64 k_batch, i64 k_head, i64 k_row, const bf16* v,
                               i64 v_batch, i64 v_head, i64 v_row, const bf16* y, const float* lse, const bf16* dy,
                               i64 dy_batch, i64 dy_head, i64 dy_row, bf16* dq, i64 dq_batch, i64 dq_head, i64 dq_row,
                               float* delta, const int* queries, const int* keys, i64 holes, i64 time, i64 meta, i64 cached,
                               i64 heads, i64 kv_heads, i64 window, float scale, float scale2) {
    extern __shared__ char memory[];
    u32 shared = (shared_address(memory) + 1023) / 1024 * 1024;
    int group = int(heads / kv_heads), blocks = int((time + ROWS - 1) / ROWS);
    int block = blockIdx.x;
    i64 in_group = block % group;
    block /= group;
    int first = (blocks - 1 - block % blocks) * ROWS;
    block /= blocks;
    i64 kv_head = block % kv_heads, batch = block / kv_heads, head = kv_head * group + in_group;

    Parts p = parts(time, meta, cached, window, queries, keys, holes, batch);
    Matrix mine = matrix(q, q_batch, q_head, q_row, batch, head), gradient = matrix(dy, dy_batch, dy_head, dy_row, batch, head);
    Matrix meta_keys = matrix(meta_k, meta_k_batch, meta_k_head, meta_k_row, batch, kv_head);
    Matrix meta_values = matrix(meta_v, meta_v_batch, meta_v_head, meta_v_row, batch, kv_head);
    Matrix old_keys = matrix(k, k_batch, k_head, k_row, batch, kv_head);
    Matrix old_values = matrix(v, v_batch, v_head, v_row, batch, kv_head);
    Matrix new_keys = {old_keys.at + p.old * old_keys.row, old_keys.row};
    Matrix new_values = {old_values.at + p.old * old_values.row, old_values.row};

    int last = min(first + ROWS, p.time) - 1;
    int fresh_first = query(p, first).low / STREAM * STREAM;
    int meta_tiles = (p.meta + STREAM - 1) / STREAM, old_tiles = (p.old + STREAM - 1) / STREAM;
    int tiles = meta_tiles + old_tiles + (last + p.ahead - fresh_first) / STREAM + 1;

    auto part_of = [&](int tile, int& key) {
        if (tile < meta_tiles) return key = tile * STREAM, META;
        tile -= meta_tiles;
        if (RAGGED && tile < old_tiles) return key = tile * STREAM, OLD;
        return key = fresh_first + (tile - old_tiles) * STREAM, FRESH;
    };
    u32 stages = shared + QUERY_BYTES + GRADIENT_BYTES;
    int next = 0, loader = APART ? threadIdx.x % 128 : threadIdx.x;
    auto load = [&](int stage) {
        int key;
        Part part = part_of(next++, key);
        u32 to = stages + stage * STAGE;
        int count = part == META ? p.meta : part == OLD ? p.old : p.fresh;
        load_tile<STREAM, DQK, LOADERS>(to, part == META ? meta_keys : part == OLD ? old_keys : new_keys, key, count, loader);
        load_tile<STREAM, DV, LOADERS>(to + KEY_STAGE, part == META ? meta_values : part == OLD ? old_values : new_values, key,
                                       count, loader);
    };
    Ring ring = make_ring(stages + STAGES * STAGE);
    if (APART && warp_index() >= WARPS) return load_all(ring, tiles, load);
    take_registers();

    load_tile<ROWS, DQK, THREADS>(shared, mine, first, p.time, threadIdx.x);
    load_tile<ROWS, DV, THREADS>(shared + QUERY_BYTES, gradient, first, p.time, threadIdx.x);

    int lane = threadIdx.x % 32, warp = warp_index();
    int unit = first + warp * 16 / UNIT * UNIT, row = first + warp * 16 + lane / 4, column = lane % 4 * 2;
    Query ours[2] = {query(p, row), query(p, row + 8)};
    int all_low = query(p, min(unit + UNIT, p.time) - 1).low, any_low = query(p, unit).low;
    int all_high = unit + p.ahead, any_high = unit + UNIT - 1 + p.ahead;

    // A quad of lanes has two queries: delta by 16 bytes a lane.
    float weight[2], less[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        i64 at = row + 8 * r, out = (batch * heads + head) * time + at;
        float dot = 0.0f;
        if (at < p.time) {
            const uint4* ys = reinterpret_cast<const uint4*>(y + ((batch * time + at) * heads + head) * DV);
            const uint4* dys = reinterpret_cast<const uint4*>(gradient.at + at * gradient.row);
#pragma unroll
            for (int i = 0; i < (DV / 8 + 3) / 4; i++) {
                int chunk = lane % 4 + 4 * i;
                if (DV % 32 != 0 && chunk >= DV / 8) break;
                uint4 a = ys[chunk], b = dys[chunk];
                const u32 as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    dot = fmaf(__uint_as_float(as[j] << 16), __uint_as_float(bs[j] << 16), dot);
                    dot = fmaf(__uint_as_float(as[j] & 0xffff0000u), __uint_as_float(bs[j] & 0xffff0000u), dot);
                }
            }
        }
        dot += __shfl_xor_sync(~0u, dot, 1);
        dot += __shfl_xor_sync(~0u, dot, 2);
        less[r] = dot;
        weight[r] = at < p.time ? lse[out] : 0.0f;
        if (at < p.time && lane % 4 == 0) delta[out] = dot;
    }

    load_first(load);
    float d[DQK / 8][4];
    zero(d);
    for (int tile = 0; tile < tiles; tile++) {
        tile_wait(ring, tile + 1 < tiles, load);
        int key;
        Part part = part_of(tile, key);
        if (unit >= p.time || (part == FRESH && (key > any_high || key + STREAM <= any_low))) {
            wait<0>();
            settle(d);
            tile_free(ring);
            tile_next(ring, false);
            continue;
        }
        u32 at = stages + ring.stage * STAGE;
        float s[STREAM / 8][4], ds[STREAM / 8][4];
        begin();
        rows_by_rows<STREAM, DQK, ROWS>(s, shared, at);
        commit();
        rows_by_rows<STREAM, DV, ROWS>(ds, shared + QUERY_BYTES, at + KEY_STAGE);
        commit();
        wait<1>();
        settle(s);
        settle(d);
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
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] = exp2_fast(fmaf(s[n][i], scale2, -weight[i / 2]));
        wait<0>();
        settle(ds);
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) ds[n][i] = s[n][i] * (ds[n][i] - less[i / 2]);
        u32 factor[STREAM / 16][4];
        as_factor<STREAM>(factor, ds);
        settle(factor);
        settle(d);
        begin();
        factor_by_columns<DQK, STREAM>(d, factor, at);
        commit();
        tile_next(ring, true);
    }
    wait<0>();
    settle(d);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        i64 at = row + 8 * r;
        if (at >= p.time) continue;
        bf16* out = dq + batch * dq_batch + head * dq_head + at * dq_row + column;
#pragma unroll
        for (int n = 0; n < DQK / 8; n++)
            *reinterpret_cast<u32*>(out + 8 * n) = pack(d[n][2 * r] * scale, d[n][2 * r + 1] * scale);
    }
}
