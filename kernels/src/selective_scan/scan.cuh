// What the forward and the backward of the selective scan share: who computes what in a block, and how a tile of the
// operands gets into shared memory.
//
// Compile with -D (all are needed):
//   ELEMENT     bf16 or float: the dtype of u, delta, b, c, z, y and their gradients
//   STATES      d_state: 8, 16, 32 or 64
//   LANES       lanes that share a channel: 1, 2 or 4, with STATES / LANES 8 or 16
//   CHECKPOINT  tokens from one kept state to the next, the same in the forward and the backward: 16 for bf16 and 8 for
//               float. Twice that halves the memory of the states and works too, but leaves a multiprocessor of sm_90 one
//               block of the backward in place of two, and does not fit in sm_89 and sm_120.
//   GATED       1 if there is z, else 0
//   SOFTPLUS    1 if delta goes through softplus, else 0
//   MASKS       1 if there are resets or a valid mask, else 0
#pragma once
#include "common.cuh"

typedef ELEMENT T;

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
/// Channels of a block.
constexpr int CHANNELS = THREADS / LANES;
/// States of a thread.
constexpr int OWN = STATES / LANES;
static_assert(OWN == 8 || OWN == 16, "a thread has 8 or 16 states");

/// Where a thread stands. The lanes of a channel are `32 / LANES` apart, so that each quad of lanes has four channels.
struct Place {
    int channel; // in the block
    int part;    // which OWN of the states

    DEVICE Place() {
        const int lane = threadIdx.x % 32;
        channel = threadIdx.x / 32 * (32 / LANES) + lane % (32 / LANES);
        part = lane / (32 / LANES);
    }
};

/// The sum over the lanes of a channel.
DEVICE float sum_lanes(float x) {
#pragma unroll
    for (int distance = 32 / LANES; distance < 32; distance *= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

/// A piece is 16 bytes of a row.
constexpr int WIDTH = 16 / int(sizeof(T));
constexpr int PIECES = CHANNELS / WIDTH;

/// An operand `[batch, time, d_inner]`, channels contiguous, from one batch row and the block's first channel on.
struct Stream {
    const T* data;
    i64 stride; // from a token to the next, in elements
    bool vectors; // whether every row starts at a multiple of 16 bytes

    DEVICE Stream() {}
    DEVICE Stream(const T* base, i64 batch_stride, i64 time_stride) {
        data = base + blockIdx.y * batch_stride + i64(blockIdx.x) * CHANNELS;
        stride = time_stride;
        vectors = (u64(base) | u64(batch_stride * sizeof(T)) | u64(time_stride * sizeof(T))) % 16 == 0;
    }
};

/// How many of a block's channels exist.
DEVICE int channels_there(i64 d_inner) {
    const i64 left = d_inner - i64(blockIdx.x) * CHANNELS;
    return int(left < CHANNELS ? left : CHANNELS);
}

/// Puts `there` elements into a piece of shared memory and `other` into the rest, one by one: for what is not aligned, and
/// for the ends of rows and of time.
DEVICE void fill_piece(T* to, const T* from, int there, T other) {
#pragma unroll 1
    for (int j = 0; j < WIDTH; j++) to[j] = j < there ? from[j] : other;
}

/// Takes the first `there` elements of a piece out of shared memory.
DEVICE void write_piece(T* to, const T* from, int there, bool vectors) {
    if (vectors && there >= WIDTH) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
#pragma unroll 1
        for (int j = 0; j < there; j++) to[j] = from[j];
    }
}

/// The raw step size of tokens that do not exist. With softplus it makes the step 0 by itself; without, and where tokens
/// are masked, the step is set to 0 (`CHECKED`).
constexpr bool CHECKED = MASKS || !SOFTPLUS;
DEVICE T no_step() { return from_float<T>(SOFTPLUS ? __int_as_float(0xff800000) : 0.0f); }

/// OWN floats from shared memory, the same for all lanes of a part.
DEVICE void take(float (&to)[OWN], const float* from) {
#pragma unroll
    for (int k = 0; k < OWN; k += 4) {
        const float4 x = *reinterpret_cast<const float4*>(from + k);
        to[k] = x.x;
        to[k + 1] = x.y;
        to[k + 2] = x.z;
        to[k + 3] = x.w;
    }
}

/// What a token does besides the usual: padding leaves the state as it is, a document's first token starts anew.
enum : u8 { PADDING = 1, RESET = 2 };

/// The flags of token `t`, which is padding from `end` on.
DEVICE u8 flags_of(const u8* resets, const u8* valid, i64 row, i64 t, i64 end) {
    if (t >= end || (valid && !valid[row + t])) return PADDING;
    return resets && resets[row + t] ? RESET : 0;
}

/// The step size of a token from its raw value, and `e^-|x|` of it.
DEVICE float step_size(float raw, float& y) {
#if SOFTPLUS
    return softplus(raw, y);
#else
    y = 0.0f;
    return raw;
#endif
}
