// What the CUDA kernels share: bf16 by its bits, the fast functions of the special unit, asynchronous copies into shared
// memory and one matrix instruction. It includes nothing, so NVRTC needs no headers.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

/// A bf16 number by its bits.
struct bf16 {
    u16 bits;
};

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

template <typename T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
/// To the nearest, ties to even.
template <> DEVICE bf16 from_float<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

/// 2^x, within 2 units in the last place; results below 2^-126 are 0.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// 1 / x, within 1 unit in the last place.
DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// 1 / (1 + e^-x).
DEVICE float sigmoid(float x) { return reciprocal(1.0f + exp2_fast(-LOG2E * x)); }

/// log(1 + e^x), with e^-|x| as a second result. The polynomial is log(1 + y) / y on [0, 1] to 1e-7, so that a small
/// softplus is as exact as a large one (the logarithm of a rounded 1 + y is not).
DEVICE float softplus(float x, float& y) {
    y = exp2_fast(-LOG2E * fabsf(x));
    float p = 0.005232691299f;
    p = fmaf(p, y, -0.02950522862f);
    p = fmaf(p, y, 0.07822593302f);
    p = fmaf(p, y, -0.1366324425f);
    p = fmaf(p, y, 0.1910600662f);
    p = fmaf(p, y, -0.2484298199f);
    p = fmaf(p, y, 0.3331909776f);
    p = fmaf(p, y, -0.4999949336f);
    p = fmaf(p, y, 0.9999999404f);
    return fmaf(y, p, fmaxf(x, 0.0f));
}

// Asynchronous copies.

DEVICE u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

/// 16 bytes, of which the first `bytes` come from `from` and the others are zeros.
DEVICE void copy_async_16(void* to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}

DEVICE void copy_async_4(void* to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most `N` of this thread's groups are on their way.
template <int N> DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

/// d += a b for a [16, 8], b [8, 8] with the upper 19 bits of each element. Lane `4 g + t` holds a[g][t], a[g + 8][t],
/// a[g][t + 4], a[g + 8][t + 4]; b[t][g], b[t + 4][g]; d[g][2t], d[g][2t + 1], d[g + 8][2t], d[g + 8][2t + 1].
DEVICE void mma_tf32(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
