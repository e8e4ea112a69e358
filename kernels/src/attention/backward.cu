// Softmax attention over meta keys, old keys and new keys, backward (after Dao 2023, arXiv 2307.08691). With weights
// p = exp(scale q k - lse):
//
//     delta = sum(dy * y)    dv = p^T dy    ds = p * (dy v^T - delta)    dq = scale ds k    dk = scale ds^T q
//
// One kernel keeps queries and streams keys, the other keeps keys and streams the queries of all heads of their group:
// weights are made twice, and nothing needs to be added up across blocks but the gradients of meta keys, which all rows of
// the batch share. Sums are in an order that does not change.
#include "attention.cuh"

constexpr int QUERY_BYTES = tile_bytes(ROWS, DQK), GRADIENT_BYTES = tile_bytes(ROWS, DV);
constexpr int KEY_STAGE = tile_bytes(STREAM, DQK);
constexpr int STAGE = KEY_STAGE + tile_bytes(STREAM, DV);
/// `lse` and `delta` of streamed queries.
constexpr int SUMS_STAGE = 2 * STREAM * 4;
extern "C" __device__ __constant__ int attention_backward_queries_shared = QUERY_BYTES + GRADIENT_BYTES + STAGES * STAGE + 1024;
extern "C" __device__ __constant__ int attention_backward_keys_shared = QUERY_BYTES + GRADIENT_BYTES + STAGES * (STAGE + SUMS_STAGE) + 1024;
extern "C" __device__ __constant__ int attention_backward_rows = ROWS;
extern "C" __device__ __constant__ int attention_backward_threads = THREADS;

/// The gradient of the queries, and delta.
///
/// Grid: batch * heads * ceil(time / ROWS) blocks of THREADS threads; `attention_backward_queries_shared`.
/// q .. v, queries, keys, holes: as in forward.cu; y bf16 [batch, time, heads, DV], contiguous; lse float [batch, heads,
/// time]; dy bf16 [batch, heads, time, DV] with strides, rows contiguous and at multiples of 16 bytes.
/// dq bf16 [batch, heads, time, DQK] with strides, rows contiguous; delta float [batch, heads, time].
/// `scale2`: scale * log2(e).
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
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
    auto load = [&](int tile) {
        int key;
        Part part = part_of(tile, key);
        u32 to = stages + tile % STAGES * STAGE;
        int count = part == META ? p.meta : part == OLD ? p.old : p.fresh;
        load_tile<STREAM, DQK>(to, part == META ? meta_keys : part == OLD ? old_keys : new_keys, key, count);
        load_tile<STREAM, DV>(to + KEY_STAGE, part == META ? meta_values : part == OLD ? old_values : new_values, key, count);
    };

    load_tile<ROWS, DQK>(shared, mine, first, p.time);
    load_tile<ROWS, DV>(shared + QUERY_BYTES, gradient, first, p.time);
    load(0);
    copy_async_commit();

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

    float d[DQK / 8][4];
    zero(d);
    for (int tile = 0; tile < tiles; tile++) {
        if (STAGES == 2) {
            wait<0>();
            settle(d);
        }
        copy_async_wait<0>();
        publish();
        __syncthreads();
        if (tile + 1 < tiles) load(tile + 1);
        copy_async_commit();
        int key;
        Part part = part_of(tile, key);
        if (part == FRESH && (key > any_high || key + STREAM <= any_low)) {
            wait<0>();
            settle(d);
            continue;
        }
        u32 at = stages + tile % STAGES * STAGE;
        float s[STREAM / 8][4], ds[STREAM / 8][4];
        begin();
        rows_by_rows<STREAM, DQK, ROWS>(s, shared, at);
        commit();
        rows_by_rows<STREAM, DV, ROWS>(ds, shared + QUERY_BYTES, at + KEY_STAGE);
        commit();
        wait<1>();
        settle(s);
        settle(d);
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

/// What a lane needs of one number for each query of a tile.
DEVICE void load_pairs(float (&pairs)[STREAM / 8][2], u32 from) {
#pragma unroll
    for (int n = 0; n < STREAM / 8; n++)
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pairs[n][0]), "=f"(pairs[n][1]) : "r"(from + n * 32) : "memory");
}

/// The gradients of keys and values.
///
/// Grid: batch * heads * ceil(meta / ROWS) blocks for meta keys, each for one head of the queries, then batch * kv_heads *
/// (ceil(old / ROWS) + ceil(new / ROWS)) for the others (old: cached if RAGGED, else 0; new: all other keys), each for all
/// heads of the group; blocks of THREADS threads; `attention_backward_keys_shared`.
/// q .. dy, delta: as above. dk, dv bf16 [batch, kv_heads, cached + time, DQK / DV] with strides, rows contiguous.
/// meta_dk, meta_dv float [batch, heads / kv_heads, kv_heads, meta, DQK / DV], contiguous: to be summed over the group, and
/// over the batch where it shares its keys.
extern "C" __global__ void __launch_bounds__(THREADS, KEY_BLOCKS)
    attention_backward_keys(const bf16* q, i64 q_batch, i64 q_head, i64 q_row, const bf16* meta_k, i64 meta_k_batch,
                            i64 meta_k_head, i64 meta_k_row, const bf16* meta_v, i64 meta_v_batch, i64 meta_v_head,
                            i64 meta_v_row, const bf16* k, i64 k_batch, i64 k_head, i64 k_row, const bf16* v, i64 v_batch,
                            i64 v_head, i64 v_row, const float* lse, const float* delta, const bf16* dy, i64 dy_batch,
                            i64 dy_head, i64 dy_row, bf16* dk, i64 dk_batch, i64 dk_head, i64 dk_row, bf16* dv,
                            i64 dv_batch, i64 dv_head, i64 dv_row, float* meta_dk, float* meta_dv, const int* queries,
                            const int* keys, i64 holes, i64 batches, i64 time, i64 meta, i64 cached, i64 heads,
                            i64 kv_heads, i64 window, float scale, float scale2) {
    extern __shared__ char memory[];
    u32 shared = (shared_address(memory) + 1023) / 1024 * 1024;
    int group = int(heads / kv_heads);
    int meta_blocks = int((meta + ROWS - 1) / ROWS), old_blocks = RAGGED ? int((cached + ROWS - 1) / ROWS) : 0;
    i64 block = blockIdx.x, batch, head, kv_head, all_meta = batches * heads * meta_blocks;
    int first, heads_here;
    Part part;
    // Blocks of meta keys stand in front, since most queries see them, and so do early keys: the long ones come first.
    if (block < all_meta) {
        part = META, first = int(block % meta_blocks) * ROWS, block /= meta_blocks;
        head = block % heads, batch = block / heads, kv_head = head / group, heads_here = 1;
    } else {
        block -= all_meta;
        kv_head = block % kv_heads, block /= kv_heads;
        batch = block % batches, block /= batches;
        part = block < old_blocks ? OLD : FRESH;
        first = int(part == OLD ? block : block - old_blocks) * ROWS;
        head = kv_head * group, heads_here = group;
    }

    Parts p = parts(time, meta, cached, window, queries, keys, holes, batch);
    int held = part == META ? p.meta : part == OLD ? p.old : p.fresh;
    i64 skipped = part == FRESH ? p.old : 0;
    Matrix kept_k = part == META ? matrix(meta_k, meta_k_batch, meta_k_head, meta_k_row, batch, kv_head)
                                 : matrix(k + skipped * k_row, k_batch, k_head, k_row, batch, kv_head);
    Matrix kept_v = part == META ? matrix(meta_v, meta_v_batch, meta_v_head, meta_v_row, batch, kv_head)
                                 : matrix(v + skipped * v_row, v_batch, v_head, v_row, batch, kv_head);

    // The queries that may see a key of this block.
    int least = 0, most = p.time - 1, final = min(first + ROWS, held) - 1;
    if (part == FRESH) {
        least = max(first - p.ahead, 0);
        if (RAGGED) {
            // The last query whose least index is not beyond the block's last key, by halving.
            int low = least, high = p.time;
            while (high - low > 1) {
                int middle = (low + high) / 2;
                if (p.queries[middle].z <= final) low = middle;
                else high = middle;
            }
            most = low;
        } else {
            most = min(most, final - p.ahead + p.window - 1);
        }
    }
    int start = least / STREAM * STREAM, each = most < start ? 0 : (most - start) / STREAM + 1, tiles = each * heads_here;

    u32 stages = shared + QUERY_BYTES + GRADIENT_BYTES;
    // What is loaded next: a tile of one head after the other.
    int next = start;
    Matrix next_q = matrix(q, q_batch, q_head, q_row, batch, head), next_dy = matrix(dy, dy_batch, dy_head, dy_row, batch, head);
    i64 next_sums = (batch * heads + head) * time;
    auto load = [&](int tile) {
        u32 to = stages + tile % STAGES * STAGE, sums = stages + STAGES * STAGE + tile % STAGES * SUMS_STAGE;
        load_tile<STREAM, DQK>(to, next_q, next, p.time);
        load_tile<STREAM, DV>(to + KEY_STAGE, next_dy, next, p.time);
        for (int i = threadIdx.x; i < 2 * STREAM; i += THREADS) {
            int at = next + i % STREAM;
            bool there = at < p.time;
            const float* from = (i < STREAM ? lse : delta) + next_sums + (there ? at : 0);
            asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(sums + i * 4), "l"(from), "r"(there ? 4 : 0) : "memory");
        }
        next += STREAM;
        if (next > most) next = start, next_q.at += q_head, next_dy.at += dy_head, next_sums += time;
    };

    int lane = threadIdx.x % 32, warp = warp_index();
    int unit = first + warp * 16 / UNIT * UNIT, row = first + warp * 16 + lane / 4, column = lane % 4 * 2;
    int places[2] = {place_of(p, part, row), place_of(p, part, row + 8)};

    load_tile<ROWS, DQK>(shared, kept_k, first, held);
    load_tile<ROWS, DV>(shared + QUERY_BYTES, kept_v, first, held);
    if (tiles > 0) load(0);
    copy_async_commit();

    float ks[DQK / 8][4], vs[DV / 8][4];
    zero(ks);
    zero(vs);
    for (int tile = 0, index = start; tile < tiles; tile++, index = index + STREAM > most ? start : index + STREAM) {
        if (STAGES == 2) {
            wait<0>();
            settle(ks);
            settle(vs);
        }
        copy_async_wait<0>();
        publish();
        __syncthreads();
        if (tile + 1 < tiles) load(tile + 1);
        copy_async_commit();
        int behind = min(index + STREAM, p.time) - 1;
        // What the first and the last query of the tile see.
        int any_low = 0, all_low = 0;
        bool none = false, whole = index + STREAM <= p.time;
        if (part == FRESH) {
            any_low = query(p, index).low, all_low = query(p, behind).low;
            none = unit > behind + p.ahead || unit + UNIT <= any_low;
            whole &= !p.holes && unit + UNIT - 1 <= index + p.ahead && unit >= all_low;
        } else if (part == OLD) {
            whole = false;
        }
        if (none) {
            wait<0>();
            settle(ks);
            settle(vs);
            continue;
        }
        u32 at = stages + tile % STAGES * STAGE;
        float s[STREAM / 8][4], ds[STREAM / 8][4];
        begin();
        rows_by_rows<STREAM, DQK, ROWS>(s, shared, at);
        commit();
        rows_by_rows<STREAM, DV, ROWS>(ds, shared + QUERY_BYTES, at + KEY_STAGE);
        commit();
        // Read while the products are on their way.
        u32 sums = stages + STAGES * STAGE + tile % STAGES * SUMS_STAGE + column * 4;
        float per_query[STREAM / 8][2];
        load_pairs(per_query, sums);
        wait<1>();
        settle(s);
        settle(ks);
        settle(vs);
        if (!whole) {
#pragma unroll
            for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    int other = index + 8 * n + column + c;
                    Query theirs = query(p, other);
#pragma unroll
                    for (int r = 0; r < 2; r++)
                        if (other >= p.time || !sees(p, theirs, part, row + 8 * r, places[r])) s[n][2 * r + c] = NEVER;
                }
        }
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] = exp2_fast(fmaf(s[n][i], scale2, -per_query[n][i % 2]));
        u32 factor[STREAM / 16][4];
        as_factor<STREAM>(factor, s);
        settle(factor);
        settle(vs);
        begin();
        factor_by_columns<DV, STREAM>(vs, factor, at + KEY_STAGE);
        commit();
        load_pairs(per_query, sums + STREAM * 4);
        wait<1>();
        settle(ds);
#pragma unroll
        for (int n = 0; n < STREAM / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) ds[n][i] = s[n][i] * (ds[n][i] - per_query[n][i % 2]);
        u32 second[STREAM / 16][4];
        as_factor<STREAM>(second, ds);
        settle(second);
        settle(ks);
        begin();
        factor_by_columns<DQK, STREAM>(ks, second, at);
        commit();
    }
    wait<0>();
    settle(ks);
    settle(vs);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        i64 at = row + 8 * r;
        if (at >= held) continue;
        if (part == META) {
            i64 out = ((batch * group + head % group) * kv_heads + kv_head) * meta + at;
#pragma unroll
            for (int n = 0; n < DQK / 8; n++)
                *reinterpret_cast<float2*>(meta_dk + out * DQK + column + 8 * n) = make_float2(ks[n][2 * r] * scale, ks[n][2 * r + 1] * scale);
#pragma unroll
            for (int n = 0; n < DV / 8; n++)
                *reinterpret_cast<float2*>(meta_dv + out * DV + column + 8 * n) = make_float2(vs[n][2 * r], vs[n][2 * r + 1]);
        } else {
            bf16* out = dk + batch * dk_batch + kv_head * dk_head + (skipped + at) * dk_row + column;
#pragma unroll
            for (int n = 0; n < DQK / 8; n++)
                *reinterpret_cast<u32*>(out + 8 * n) = pack(ks[n][2 * r] * scale, ks[n][2 * r + 1] * scale);
            out = dv + batch * dv_batch + kv_head * dv_head + (skipped + at) * dv_row + column;
#pragma unroll
            for (int n = 0; n < DV / 8; n++)
                *reinterpret_cast<u32*>(out + 8 * n) = pack(vs[n][2 * r], vs[n][2 * r + 1]);
        }
    }
}
