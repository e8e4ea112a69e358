// Rows of the root-mean-square norm in registers. A row belongs to THREADS neighbouring threads of a block of 256, and a
// thread has VECTORS times eight neighbouring channels of it.
//
// -DELEMENT, -DSTREAM, -DOUTPUT=float|bf16: x; h = x + residual, residual and their gradients; y and its gradient. -DTHREADS=32|256, -DVECTORS=1..: enough for d. -DWHOLE=0|1: whether eight
// channels can be read at once everywhere (d a multiple of 8, all tensors at multiples of 16 bytes).
#pragma once
#include "common.cuh"

typedef ELEMENT T;
typedef STREAM S;
typedef OUTPUT O;

constexpr int BLOCK = 256, ROWS = BLOCK / THREADS, EIGHT = 8;

template <typename E> struct alignas(16) Eight {
    E values[EIGHT];
};

/// What a thread has of a row.
struct Channels {
    float values[VECTORS][EIGHT];

    /// Where vector `v` of this thread begins.
    DEVICE static i64 channel(int v) { return (i64(v) * THREADS + threadIdx.x % THREADS) * EIGHT; }

    template <typename F> DEVICE static void each(i64 d, F f) {
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int k = 0; k < EIGHT; k++)
                if (channel(v) + k < d) f(v, k, channel(v) + k);
    }

    /// Channels that the row does not have are 0.
    template <typename E> DEVICE void load(const E* row, i64 d) {
#if WHOLE
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            Eight<E> eight = {};
            if (channel(v) < d) eight = *reinterpret_cast<const Eight<E>*>(row + channel(v));
#pragma unroll
            for (int k = 0; k < EIGHT; k++) values[v][k] = to_float(eight.values[k]);
        }
#else
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int k = 0; k < EIGHT; k++) values[v][k] = 0.0f;
        each(d, [&](int v, int k, i64 i) { values[v][k] = to_float(row[i]); });
#endif
    }

    template <typename E> DEVICE void store(E* row, i64 d) const {
#if WHOLE
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            Eight<E> eight;
#pragma unroll
            for (int k = 0; k < EIGHT; k++) eight.values[k] = from_float<E>(values[v][k]);
            if (channel(v) < d) *reinterpret_cast<Eight<E>*>(row + channel(v)) = eight;
        }
#else
        each(d, [&](int v, int k, i64 i) { row[i] = from_float<E>(values[v][k]); });
#endif
    }

    DEVICE void load_weight(const float* weight, i64 d) {
#if WHOLE
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            float4 low = {}, high = {};
            if (channel(v) < d) {
                low = *reinterpret_cast<const float4*>(weight + channel(v));
                high = *reinterpret_cast<const float4*>(weight + channel(v) + 4);
            }
            const float eight[EIGHT] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int k = 0; k < EIGHT; k++) values[v][k] = eight[k];
        }
#else
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int k = 0; k < EIGHT; k++) values[v][k] = 0.0f;
        each(d, [&](int v, int k, i64 i) { values[v][k] = weight[i]; });
#endif
    }
};

/// The sum over a row's threads, in every one of them. `scratch` has a place for each warp and is free again after the
/// next call's first barrier; calls alternate between two.
DEVICE float sum_of_row(float x, float* scratch) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(~0u, x, offset);
    if (THREADS == 32) return x;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < BLOCK / 32; i++) sum += scratch[i];
    return sum;
}
