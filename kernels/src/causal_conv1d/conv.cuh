// What the forward and the backward of the causal convolution share: the access to channels and the window of inputs.
//
// Compile with -D (all are needed):
//   ELEMENT  bf16 or float: the dtype of x, y and their gradients
//   WIDTH    taps, 1 to 8
//   SILU     1 if silu is applied, else 0
//   MASKS    1 if there are resets or lengths, else 0
//   WHOLE    1 if four channels of a row can be read at once: d, the strides of x and dy over batch and time are multiples
//            of 4 and their addresses of 4 elements' size; else 0, which is slower
#pragma once
#include "common.cuh"

typedef ELEMENT T;

/// Inputs before the current one.
constexpr int HISTORY = WIDTH - 1;
/// Rows of the window's array: arrays have at least one.
constexpr int ROWS = HISTORY > 0 ? HISTORY : 1;

template <int BYTES> struct Word;
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };

/// `N` neighbouring channels of a row.
template <int N> struct Channels {
    typedef typename Word<N * sizeof(T)>::type Vector;
    union {
        Vector vector;
        T values[N];
    };
    DEVICE Channels() {}

    /// The first `there` from memory, the others zero; all at once if `WHOLE`.
    DEVICE void load(const T* from, int there) {
        if (WHOLE) {
            vector = *reinterpret_cast<const Vector*>(from);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) values[i] = i < there ? from[i] : from_float<T>(0.0f);
        }
    }

    DEVICE void store(T* to, int there) const {
        if (WHOLE) {
            *reinterpret_cast<Vector*>(to) = vector;
        } else {
#pragma unroll
            for (int i = 0; i < N; i++)
                if (i < there) to[i] = values[i];
        }
    }
};

/// The operands of both directions.
struct Operands {
    const T* x;
    i64 x_batch, x_time;
    const float* tail;
    i64 tail_batch;
    const float* reset_tail;
    i64 reset_batch;
    const u8* resets;
    i64 time, d;
};

/// The HISTORY inputs before a token, oldest first, of `N` channels.
template <int N> struct Window {
    float rows[ROWS][N];

    DEVICE void shift(const float (&x)[N]) {
#pragma unroll
        for (int k = 0; k + 1 < HISTORY; k++)
#pragma unroll
            for (int i = 0; i < N; i++) rows[k][i] = rows[k + 1][i];
        if (HISTORY > 0)
#pragma unroll
            for (int i = 0; i < N; i++) rows[ROWS - 1][i] = x[i];
    }

    /// The start of a row or of a document: `tail` is `[HISTORY, d]` from the first channel on.
    DEVICE void restart(const float* tail, i64 d, int there) {
#pragma unroll
        for (int k = 0; k < HISTORY; k++)
#pragma unroll
            for (int i = 0; i < N; i++) rows[k][i] = i < there ? tail[k * d + i] : 0.0f;
    }

    /// The window before token `t` of row `batch`, for channels from `channel` on.
    DEVICE void enter(const Operands& o, i64 batch, i64 t, i64 channel, int there) {
#pragma unroll
        for (int k = 0; k < ROWS; k++)
#pragma unroll
            for (int i = 0; i < N; i++) rows[k][i] = 0.0f;
        i64 at = t - HISTORY;
        if (at <= 0) {
            at = 0;
            restart(o.tail + batch * o.tail_batch + channel, o.d, there);
        }
        for (; at < t; at++) {
            if (MASKS && o.resets && o.resets[batch * o.time + at])
                restart(o.reset_tail + batch * o.reset_batch + channel, o.d, there);
            Channels<N> raw;
            raw.load(o.x + batch * o.x_batch + at * o.x_time + channel, there);
            float x[N];
#pragma unroll
            for (int i = 0; i < N; i++) x[i] = to_float(raw.values[i]);
            shift(x);
        }
    }
};

/// The filters of `N` channels.
template <int N> struct Filter {
    float taps[WIDTH][N], bias[N];

    DEVICE Filter(const float* weight, const float* biases, i64 channel, int there) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            bias[i] = biases && i < there ? biases[channel + i] : 0.0f;
#pragma unroll
            for (int k = 0; k < WIDTH; k++) taps[k][i] = i < there ? weight[(channel + i) * WIDTH + k] : 0.0f;
        }
    }

    DEVICE float apply(const Window<N>& window, float x, int i) const {
        float sum = bias[i];
#pragma unroll
        for (int k = 0; k < HISTORY; k++) sum = fmaf(taps[k][i], window.rows[k][i], sum);
        return fmaf(taps[WIDTH - 1][i], x, sum);
    }
};

DEVICE i64 length_of(const i64* lengths, i64 batch, i64 time) {
    if (!MASKS || !lengths) return time;
    const i64 length = lengths[batch];
    return length < 0 ? 0 : length > time ? time : length;
}
