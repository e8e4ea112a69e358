// What the forward and the backward of the selective scan share: who computes what in a block, and how a tile of the
// operands gets into shared memory.
//
// Compile with -D (all are needed):
//   ELEMENT     bf16 or float: the dtype of u, delta, b, c, z, y and their gradients
//   STATES      d_state: 8, 16, 32 or 64
//   LANES       lanes that share a channel: 1, 2 or 4, with STATES / LANES 8 or 16
//   CHECKPOINT  tokens from one kept state to the next: 16 or 32; the same in the forward and the backward
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

/// Some operands `[batch, time, d_inner]`, channels contiguous, seen from one batch row and the block's first channel on.
template <int STREAMS> struct Rows {
    const T* data[STREAMS];
    i64 stride[STREAMS]; // from a token to the next, in elements
    int channels;        // how many of the block's channels exist
    bool vectors;        // whether every row starts at a multiple of 16 bytes

    DEVICE explicit Rows(i64 d_inner) {
        const i64 left = d_inner - i64(blockIdx.x) * CHANNELS;
        channels = int(left < CHANNELS ? left : CHANNELS);
        vectors = true;
    }

    DEVICE void set(int i, const T* base, i64 batch_stride, i64 time_stride) {
        data[i] = base + blockIdx.y * batch_stride + i64(blockIdx.x) * CHANNELS;
        stride[i] = time_stride;
        vectors = vectors && (u64(base) | u64(batch_stride * sizeof(T)) | u64(time_stride * sizeof(T))) % 16 == 0;
    }

    /// Begins to copy `COUNT` tokens from `t` on, with zeros from token `end` on. Stream i goes to
    /// `to + i * distance`, `[COUNT][CHANNELS]`.
    template <int COUNT> DEVICE void copy(T* to, int distance, i64 t, i64 end) const {
        constexpr int WIDTH = 16 / sizeof(T);
        constexpr int PIECES = CHANNELS / WIDTH;
        constexpr int OF_STREAM = COUNT * PIECES;
        const int rows = end - t < COUNT ? int(end - t) : COUNT;
#pragma unroll
        for (int k = 0; k < (STREAMS * OF_STREAM + THREADS - 1) / THREADS; k++) {
            const int i = k * THREADS + int(threadIdx.x);
            if (STREAMS * OF_STREAM % THREADS != 0 && i >= STREAMS * OF_STREAM) break;
            int stream = k * THREADS / OF_STREAM;
            const T* from = data[stream];
            i64 step = stride[stream];
#pragma unroll
            for (int j = 0; j < STREAMS; j++) // those that this round can reach
                if (j > k * THREADS / OF_STREAM && j * OF_STREAM < (k + 1) * THREADS && i >= j * OF_STREAM) {
                    stream = j;
                    from = data[j];
                    step = stride[j];
                }
            const int row = i % OF_STREAM / PIECES, channel = i % PIECES * WIDTH;
            int there = row < rows ? channels - channel : 0;
            there = there < 0 ? 0 : there > WIDTH ? WIDTH : there;
            T* target = to + stream * distance + row * CHANNELS + channel;
            if (there > 0) from += (t + row) * step + channel;
            if (vectors) {
                copy_async_16(target, from, there * int(sizeof(T)));
            } else {
#pragma unroll 1
                for (int j = 0; j < WIDTH; j++) target[j] = j < there ? from[j] : from_float<T>(0.0f);
            }
        }
    }
};

/// The tokens' b and c, of any alignment, for `COUNT` tokens: loaded to registers, later put as floats into
/// `[COUNT][2][STATES]`.
template <int COUNT> struct Projections {
    static constexpr int EACH = COUNT * 2 * STATES / THREADS;
    T held[EACH];

    DEVICE void load(const T* b, i64 b_stride, const T* c, i64 c_stride, i64 t, i64 end) {
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int i = threadIdx.x + k * THREADS, row = i / (2 * STATES), column = i % (2 * STATES);
            const T* from = column < STATES ? b + (t + row) * b_stride + column : c + (t + row) * c_stride + column - STATES;
            held[k] = t + row < end ? *from : from_float<T>(0.0f);
        }
    }

    DEVICE void put(float* to) const {
#pragma unroll
        for (int k = 0; k < EACH; k++) to[threadIdx.x + k * THREADS] = to_float(held[k]);
    }
};

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
