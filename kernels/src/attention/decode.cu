// Attention of one query for each head: decoding. The keys are cut into splits, a block for each, which hold unnormalised
// sums; a second kernel puts them together in order. Keys and values are read where they lie: meta keys, groups of codes,
// keys in full precision.
//
// Macros: DQK and DV, widths of a head (multiples of 16, at most 128); GROUP, query heads of a block (at most 8), which
// share its keys; BITS of a code, 8, 4 or 0 where there are none; RAGGED as in attention.cuh.
#include "common.cuh"

constexpr int THREADS = 128, WARPS = THREADS / 32;
/// The most keys of a split.
constexpr int MOST = 512;
extern "C" __device__ __constant__ int attention_decode_most = MOST;
#define NEVER __int_as_float(0xff800000)

__host__ __device__ constexpr int power(int n) {
    int p = 1;
    while (p < n) p *= 2;
    return p;
}
/// Lanes that share a key or a value, each with 8 channels.
constexpr int KEY_LANES = power(DQK / 8), VALUE_LANES = power(DV / 8);

struct Rows {
    const bf16* at;
    i64 row;
};

/// Codes `[groups, size, width]`, of one row and head.
struct Codes {
    const u8* at;
    const bf16 *scale, *zero;
};

DEVICE void read(float (&x)[8], const bf16* from) {
    uint4 four = *reinterpret_cast<const uint4*>(from);
    const u32 pairs[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(pairs[i] << 16);
        x[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
}

/// Eight codes of a token, from channel `first` on.
template <int WIDTH> DEVICE void read_codes(float (&x)[8], const u8* token, int first) {
    bool high = BITS == 4 && first >= WIDTH / 2;
    const u8* from = token + (high ? first - WIDTH / 2 : first);
    u64 eight = *reinterpret_cast<const u64*>(from);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 byte = u32(eight >> (8 * i)) & 0xff;
        x[i] = float(BITS == 4 ? (high ? byte >> 4 : byte & 15) : byte);
    }
}

/// What all heads of a group see of the keys of one split.
///
/// Grid: (splits, kv_heads * ceil(group / GROUP), batch), group = heads / kv_heads; 128 threads.
/// q bf16 [batch, heads, DQK] with strides of batch and head; meta_k .. v as in forward.cu, for one new key.
/// If BITS: k_codes uint8 [batch or 1, kv_heads, groups, size, DQK * BITS / 8], k_scale, k_zero bf16 [.., groups, DQK],
/// v_codes uint8 [.., groups, size, DV * BITS / 8], v_scale, v_zero bf16 [.., groups, size], each with strides of batch
/// (0 for 1) and head, the rest contiguous, codes and the keys' scales at multiples of 8 and 16 bytes.
/// Keys stand in the order meta, groups, others; `coded` = groups * size of the `cached` ones are in groups. `per` keys for
/// a split.
/// queries int [batch, 4], keys int [batch, cached + 1]: see attention.cuh; null unless RAGGED.
/// y bf16 [batch, heads, DV], if there is one split; else sums float [batch, heads, splits, DV] and scales float [batch,
/// heads, splits, 2]: maximum and sum.
extern "C" __global__ void __launch_bounds__(128)
    attention_decode(const bf16* q, i64 q_batch, i64 q_head, const bf16* meta_k, i64 meta_k_batch, i64 meta_k_head,
                     i64 meta_k_row, const bf16* meta_v, i64 meta_v_batch, i64 meta_v_head, i64 meta_v_row, const bf16* k,
                     i64 k_batch, i64 k_head, i64 k_row, const bf16* v, i64 v_batch, i64 v_head, i64 v_row,
                     const u8* k_codes, i64 k_codes_batch, i64 k_codes_head, const bf16* k_scale, i64 k_scale_batch,
                     i64 k_scale_head, const bf16* k_zero, i64 k_zero_batch, i64 k_zero_head, const u8* v_codes,
                     i64 v_codes_batch, i64 v_codes_head, const bf16* v_scale, i64 v_scale_batch, i64 v_scale_head,
                     const bf16* v_zero, i64 v_zero_batch, i64 v_zero_head, const int* queries, const int* keys, bf16* y,
                     float* sums, float* scales, i64 meta, i64 coded, i64 size, i64 cached, i64 heads, i64 kv_heads,
                     i64 window, i64 per, float scale) {
    __shared__ float weights[GROUP][MOST];
    __shared__ float parts[WARPS][GROUP][DV];
    __shared__ float tops[GROUP], totals[GROUP];
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    int group = int(heads / kv_heads), pieces = (group + GROUP - 1) / GROUP;
    i64 batch = blockIdx.z, kv_head = blockIdx.y / pieces;
    int first_head = int(blockIdx.y % pieces) * GROUP, here = min(GROUP, group - first_head);
    i64 head = kv_head * group + first_head;
    i64 all = meta + cached + 1, first = blockIdx.x * per;
    int count = int(first + per < all ? per : all - first);

    Rows metas = {meta_k + batch * meta_k_batch + kv_head * meta_k_head, meta_k_row};
    Rows others = {k + batch * k_batch + kv_head * k_head, k_row};
    Codes codes = {k_codes + batch * k_codes_batch + kv_head * k_codes_head,
                   k_scale + batch * k_scale_batch + kv_head * k_scale_head,
                   k_zero + batch * k_zero_batch + kv_head * k_zero_head};

    // Products with the keys.
    {
        int chunk = lane % KEY_LANES * 8;
        bool mine = chunk < DQK;
        float ours[GROUP][8];
#pragma unroll
        for (int r = 0; r < GROUP; r++) {
#pragma unroll
            for (int i = 0; i < 8; i++) ours[r][i] = 0.0f;
            if (mine && r < here) read(ours[r], q + batch * q_batch + (head + r) * q_head + chunk);
#pragma unroll
            for (int i = 0; i < 8; i++) ours[r][i] *= scale;
        }
        constexpr int AT_ONCE = THREADS / KEY_LANES;
        int steps = (count + AT_ONCE - 1) / AT_ONCE;
#pragma unroll 4
        for (int step = 0; step < steps; step++) {
            int local = step * AT_ONCE + thread / KEY_LANES;
            i64 key = first + local, text = key - meta;
            bool there = local < count, seen = there;
            float x[8] = {};
            if (there && mine) {
                if (text < 0) {
                    read(x, metas.at + key * metas.row + chunk);
                } else if (BITS && text < coded) {
                    i64 which = text / size;
                    float factor[8], zero[8];
                    read_codes<DQK>(x, codes.at + text * (DQK * BITS / 8), chunk);
                    read(factor, codes.scale + which * DQK + chunk);
                    read(zero, codes.zero + which * DQK + chunk);
#pragma unroll
                    for (int i = 0; i < 8; i++) x[i] = fmaf(x[i], factor[i], zero[i]);
                } else {
                    read(x, others.at + (text - coded) * others.row + chunk);
                }
            }
            if (there && text >= 0 && text < cached) {
                if (RAGGED) {
                    int place = keys[batch * (cached + 1) + text];
                    seen = place >= queries[batch * 4] && place <= queries[batch * 4 + 1];
                } else {
                    seen = cached - text < window;
                }
            }
#pragma unroll
            for (int r = 0; r < GROUP; r++) {
                float dot = 0.0f;
#pragma unroll
                for (int i = 0; i < 8; i++) dot = fmaf(ours[r][i], x[i], dot);
#pragma unroll
                for (int step = KEY_LANES / 2; step > 0; step /= 2) dot += __shfl_xor_sync(~0u, dot, step);
                if (lane % KEY_LANES == 0 && there) weights[r][local] = seen ? dot : NEVER;
            }
        }
    }
    __syncthreads();
    for (int r = warp; r < here; r += WARPS) {
        float top = NEVER, total = 0.0f;
        for (int i = lane; i < count; i += 32) top = fmaxf(top, weights[r][i]);
#pragma unroll
        for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
        float base = top == NEVER ? 0.0f : top;
        for (int i = lane; i < count; i += 32) {
            float weight = exp2_fast(weights[r][i] - base);
            weights[r][i] = weight;
            total += weight;
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
        if (lane == 0) tops[r] = top, totals[r] = total;
    }
    __syncthreads();

    // Sums of the values.
    metas = {meta_v + batch * meta_v_batch + kv_head * meta_v_head, meta_v_row};
    others = {v + batch * v_batch + kv_head * v_head, v_row};
    codes = {v_codes + batch * v_codes_batch + kv_head * v_codes_head, v_scale + batch * v_scale_batch + kv_head * v_scale_head,
             v_zero + batch * v_zero_batch + kv_head * v_zero_head};
    {
        int chunk = lane % VALUE_LANES * 8;
        bool mine = chunk < DV;
        float sum[GROUP][8] = {};
        constexpr int AT_ONCE = THREADS / VALUE_LANES;
        int steps = (count + AT_ONCE - 1) / AT_ONCE;
#pragma unroll 4
        for (int step = 0; step < steps; step++) {
            int local = step * AT_ONCE + thread / VALUE_LANES;
            if (local >= count || !mine) continue;
            i64 key = first + local, text = key - meta;
            float x[8];
            if (text < 0) {
                read(x, metas.at + key * metas.row + chunk);
            } else if (BITS && text < coded) {
                float factor = to_float(codes.scale[text]), zero = to_float(codes.zero[text]);
                read_codes<DV>(x, codes.at + text * (DV * BITS / 8), chunk);
#pragma unroll
                for (int i = 0; i < 8; i++) x[i] = fmaf(x[i], factor, zero);
            } else {
                read(x, others.at + (text - coded) * others.row + chunk);
            }
#pragma unroll
            for (int r = 0; r < GROUP; r++) {
                float weight = r < here ? weights[r][local] : 0.0f;
#pragma unroll
                for (int i = 0; i < 8; i++) sum[r][i] = fmaf(weight, x[i], sum[r][i]);
            }
        }
#pragma unroll
        for (int r = 0; r < GROUP; r++)
#pragma unroll
            for (int i = 0; i < 8; i++) {
#pragma unroll
                for (int step = 16; step >= VALUE_LANES; step /= 2) sum[r][i] += __shfl_xor_sync(~0u, sum[r][i], step);
                if (lane < VALUE_LANES && mine) parts[warp][r][chunk + i] = sum[r][i];
            }
    }
    __syncthreads();
    for (int i = thread; i < here * DV; i += THREADS) {
        int r = i / DV, c = i % DV;
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += parts[w][r][c];
        i64 row = batch * heads + head + r;
        if (gridDim.x == 1) {
            y[row * DV + c] = from_float<bf16>(sum / totals[r]);
        } else {
            sums[(row * gridDim.x + blockIdx.x) * DV + c] = sum;
            if (c == 0) {
                scales[(row * gridDim.x + blockIdx.x) * 2] = tops[r];
                scales[(row * gridDim.x + blockIdx.x) * 2 + 1] = totals[r];
            }
        }
    }
}

/// Puts the splits together, in order.
///
/// Grid: batch * heads blocks of 128 threads. sums, scales, y: as above.
extern "C" __global__ void __launch_bounds__(128) attention_decode_join(const float* sums, const float* scales, bf16* y, i64 splits) {
    i64 row = blockIdx.x;
    float top = NEVER;
    for (i64 split = 0; split < splits; split++) top = fmaxf(top, scales[(row * splits + split) * 2]);
    for (int c = threadIdx.x; c < DV; c += 128) {
        float sum = 0.0f, total = 0.0f;
        for (i64 split = 0; split < splits; split++) {
            float factor = exp2_fast(scales[(row * splits + split) * 2] - top);
            sum = fmaf(factor, sums[(row * splits + split) * DV + c], sum);
            total = fmaf(factor, scales[(row * splits + split) * 2 + 1], total);
        }
        y[row * DV + c] = from_float<bf16>(sum / total);
    }
}
