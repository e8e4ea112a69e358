// What forward and backward of the sLSTM on the matrix unit share.
#pragma once
#include "cell.cuh"
#include "half.cuh"

constexpr int D = HEAD_DIM, SEQUENCES = 4 * CELLS;
static_assert(D % 16 == 0 && D <= 128 && (CELLS == 1 || CELLS == 2), "what fits into the registers of a block");

/// bf16 from one sequence to the next in shared memory: an odd number of 16 bytes, so that eight rows meet no bank twice.
constexpr int PITCH = D + 8;

// A block works on SEQUENCES rows of the batch; lane `4 g + t` has the columns 2t and 2t + 1 of the products. With CELLS == 2
// these are two sequences; with 1 the second is nobody's, so that a lane has half of the work.

/// The sequence of a column.
DEVICE int sequence_of(int column) { return CELLS == 2 ? column : column / 2; }

/// 16 bytes of `Kept` for the backward: f16 where the numbers are small and the products are rounded anyway.
DEVICE uint4 keep(const Kept& k) {
    const float change = fminf(fmaxf(k.change, -65504.0f), 65504.0f);
    // The last bits of the weight say whose the maximum is.
    const u32 weight = (__float_as_uint(k.weight) & ~3u) | (k.share == 1.0f ? 2u : k.share == 0.5f ? 1u : 0u);
    return make_uint4(weight, __float_as_uint(k.quotient), __float_as_uint(k.shut), pack_f16(change, k.output));
}

DEVICE Kept kept(const uint4& x) {
    Kept k;
    k.weight = __uint_as_float(x.x & ~3u);
    k.share = 0.5f * float(x.x & 3u);
    k.quotient = __uint_as_float(x.y);
    k.shut = __uint_as_float(x.z);
    k.change = from_f16(u16(x.w));
    k.output = from_f16(u16(x.w >> 16));
    return k;
}

/// Where a lane's records of a token are: [tile, time, heads, D / 8, CELLS, 32]. The last 32 are the lanes of the forward.
DEVICE i64 record(i64 tile, i64 t, i64 head, i64 time, i64 heads, int group) {
    return (((tile * time + t) * heads + head) * (D / 8) + group) * CELLS * 32;
}

#if MASKS
/// For each of a lane's sequences, which of 32 tokens start a document and which count, a bit each. A reset in the padding
/// is none.
struct Masks {
    u32 resets[CELLS], valid[CELLS];

    /// Tokens 32 `chunk` and on; for all lanes of a warp together.
    DEVICE void load(const u8* reset_rows, const u8* valid_rows, i64 tile, i64 batch, i64 time, i64 chunk) {
        const int lane = threadIdx.x % 32;
        const i64 t = chunk * 32 + lane;
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++) {
            const i64 row = tile * SEQUENCES + s;
            const bool inside = row < batch && t < time;
            const bool counts = inside && (!valid_rows || valid_rows[row * time + t]);
            const bool starts = counts && reset_rows && reset_rows[row * time + t];
            const u32 valids = __ballot_sync(~0u, counts), starting = __ballot_sync(~0u, starts);
            const int mine = CELLS == 2 ? s / 2 : s;
            if (mine == lane % 4) {
                resets[CELLS == 2 ? s % 2 : 0] = starting;
                valid[CELLS == 2 ? s % 2 : 0] = valids;
            }
        }
    }
};
#endif
