// Softmax attention over meta keys, old keys and new keys, backward (after Dao 2023, arXiv 2307.08691). With weights
// p = exp(scale q k - lse):
//
//     delta = sum(dy * y)    dv = p^T dy    ds = p * (dy v^T - delta)    dq = scale ds k    dk = scale ds^T q
//
// One kernel keeps queries and streams keys, the other keeps keys and streams the queries of all heads of their group:
// weights are made twice, and nothing needs to be added up across blocks but the gradients of meta keys, which all rows of
// the batch share. Sums are in an order that does not change.
// Wider heads need all registers there are.
#define MAY_BE_APART (DQK + DV <= 192)
#define APART_WARPS 8
#define APART_STAGES 3
#define TOGETHER_BLOCKS 1
#include "attention.cuh"

constexpr int KEY_BYTES = tile_bytes(ROWS, DQK), VALUE_BYTES = tile_bytes(ROWS, DV);
constexpr int KEY_STAGE = tile_bytes(STREAM, DQK);
constexpr int STAGE = KEY_STAGE + tile_bytes(STREAM, DV);
/// `lse` and `delta` of streamed queries.
constexpr int SUMS_STAGE = 2 * STREAM * 4;
extern "C" __device__ __constant__ int attention_backward_keys_shared = KEY_BYTES + VALUE_BYTES + STAGES * (STAGE + SUMS_STAGE) + RING_BYTES + 1024;
extern "C" __device__ __constant__ int attention_backward_keys_rows = ROWS;
extern "C" __device__ __constant__ int attention_backward_keys_threads = ALL_THREADS;

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
/// heads of the group; blocks of ALL_THREADS threads; `attention_backward_keys_shared`.
/// q .. dy, delta: as in backward_queries.cu. dk, dv bf16 [batch, kv_heads, cached + time, DQK / DV] with strides, rows contiguous.
/// meta_dk, meta_dv float [batch, heads / kv_heads, kv_heads, meta, DQK / DV], contiguous: to be summed over the group, and
/// over the batch where it shares its keys.
extern "C" __global__ void __launch_bounds__(ALL_THREADS, BLOCKS)
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

    u32 stages = shared + KEY_BYTES + VALUE_BYTES;
    // What is loaded next: a tile of one head after the other.
    int next = start;
    Matrix next_q = matrix(q, q_batch, q_head, q_row, batch, head), next_dy = matrix(dy, dy_batch, dy_head, dy_row, batch, head);
    i64 next_sums = (batch * heads + head) * time;
    int loader = APART ? threadIdx.x % 128 : threadIdx.x;
    auto load = [&](int stage) {
        u32 to = stages + stage * STAGE, sums = stages + STAGES * STAGE + stage * SUMS_STAGE;
        load_tile<STREAM, DQK, LOADERS>(to, next_q, next, p.time, loader);
        load_tile<STREAM, DV, LOADERS>(to + KEY_STAGE, next_dy, next, p.time, loader);
#pragma unroll
        for (int i = loader; i < 2 * STREAM; i += LOADERS) {
            int at = next + i % STREAM;
            bool there = at < p.time;
            const float* from = (i < STREAM ? lse : delta) + next_sums + (there ? at : 0);
            asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(sums + i * 4), "l"(from), "r"(there ? 4 : 0) : "memory");
        }
        next += STREAM;
        if (next > most) next = start, next_q.at += q_head, next_dy.at += dy_head, next_sums += time;
    };
    Ring ring = make_ring(stages + STAGES * (STAGE + SUMS_STAGE));
    if (APART && warp_index() >= WARPS) return load_all(ring, tiles, load);
    take_registers();

    int lane = threadIdx.x % 32, warp = warp_index();
    int unit = first + warp * 16 / UNIT * UNIT, row = first + warp * 16 + lane / 4, column = lane % 4 * 2;
    int places[2] = {place_of(p, part, row), place_of(p, part, row + 8)};

    load_tile<ROWS, DQK, THREADS>(shared, kept_k, first, held, threadIdx.x);
    load_tile<ROWS, DV, THREADS>(shared + KEY_BYTES, kept_v, first, held, threadIdx.x);
    if (tiles > 0) load_first(load);

    float ks[DQK / 8][4], vs[DV / 8][4];
    zero(ks);
    zero(vs);
    for (int tile = 0, index = start; tile < tiles; tile++, index = index + STREAM > most ? start : index + STREAM) {
        tile_wait(ring, tile + 1 < tiles, load);
        int behind = min(index + STREAM, p.time) - 1;
        // What the first and the last query of the tile see.
        int any_low = 0, all_low = 0;
        bool none = unit >= held, whole = index + STREAM <= p.time;
        if (part == FRESH) {
            any_low = query(p, index).low, all_low = query(p, behind).low;
            none |= unit > behind + p.ahead || unit + UNIT <= any_low;
            whole &= !p.holes && unit + UNIT - 1 <= index + p.ahead && unit >= all_low;
        } else if (part == OLD) {
            whole = false;
        }
        if (none) {
            wait<0>();
            settle(ks);
            settle(vs);
            tile_free(ring);
            tile_next(ring, false);
            continue;
        }
        u32 at = stages + ring.stage * STAGE;
        float s[STREAM / 8][4], ds[STREAM / 8][4];
        begin();
        rows_by_rows<STREAM, DQK, ROWS>(s, shared, at);
        commit();
        rows_by_rows<STREAM, DV, ROWS>(ds, shared + KEY_BYTES, at + KEY_STAGE);
        commit();
        // Read while the products are on their way.
        u32 sums = stages + STAGES * STAGE + ring.stage * SUMS_STAGE + column * 4;
        float per_query[STREAM / 8][2];
        load_pairs(per_query, sums);
        wait<1>();
        settle(s);
        settle(ks);
        settle(vs);
        tile_free(ring);
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
        tile_next(ring, true);
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
