// The gate of SwiGLU, y = gate sigmoid(gate) up, and its gradients. With s = sigmoid(gate):
//
//   dgate = dy up s (1 + gate (1 - s)),   dup = dy gate s
//
// -DELEMENT=float|bf16. -DWHOLE=0|1: whether all tensors begin where sixteen bytes do.
#include "common.cuh"

typedef ELEMENT T;

constexpr int EIGHT = 8;

struct alignas(16) Eight {
    T values[EIGHT];
};

/// The elements [at, at + 8) of a tensor of `count`.
DEVICE Eight load(const T* from, i64 at, i64 count) {
#if WHOLE
    if (at + EIGHT <= count) return *reinterpret_cast<const Eight*>(from + at);
#endif
    Eight eight = {};
    for (int k = 0; k < EIGHT; k++)
        if (at + k < count) eight.values[k] = from[at + k];
    return eight;
}

DEVICE void store(T* to, const Eight& eight, i64 at, i64 count) {
#if WHOLE
    if (at + EIGHT <= count) {
        *reinterpret_cast<Eight*>(to + at) = eight;
        return;
    }
#endif
    for (int k = 0; k < EIGHT; k++)
        if (at + k < count) to[at + k] = eight.values[k];
}

/// grid (ceil(count / 2048)), block 256, no dynamic shared memory.
///
/// gate, up  ELEMENT [count], contiguous
/// y         ELEMENT [count]
extern "C" __global__ void __launch_bounds__(256) swiglu_forward(const T* gate, const T* up, T* y, i64 count) {
    const i64 at = (i64(blockIdx.x) * 256 + threadIdx.x) * EIGHT;
    if (at >= count) return;
    const Eight g = load(gate, at, count), u = load(up, at, count);
    Eight out;
#pragma unroll
    for (int k = 0; k < EIGHT; k++) {
        const float x = to_float(g.values[k]);
        out.values[k] = from_float<T>(x * sigmoid(x) * to_float(u.values[k]));
    }
    store(y, out, at, count);
}

/// grid and block as the forward's.
///
/// gate, up, dy  ELEMENT [count], contiguous
/// dgate, dup    ELEMENT [count]
extern "C" __global__ void __launch_bounds__(256)
swiglu_backward(const T* gate, const T* up, const T* dy, T* dgate, T* dup, i64 count) {
    const i64 at = (i64(blockIdx.x) * 256 + threadIdx.x) * EIGHT;
    if (at >= count) return;
    const Eight g = load(gate, at, count), u = load(up, at, count), d = load(dy, at, count);
    Eight along, across;
#pragma unroll
    for (int k = 0; k < EIGHT; k++) {
        const float x = to_float(g.values[k]), s = sigmoid(x), slope = to_float(d.values[k]);
        along.values[k] = from_float<T>(slope * to_float(u.values[k]) * s * fmaf(x, 1.0f - s, 1.0f));
        across.values[k] = from_float<T>(slope * x * s);
    }
    store(dgate, along, at, count);
    store(dup, across, at, count);
}
