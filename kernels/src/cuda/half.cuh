// What the kernels need that work on 16-bit numbers: the matrix unit for bf16, the ways by which numbers come into the
// places that it wants, and packing.
//
// Of an [8, 8] piece of 16-bit numbers lane `4 g + t` holds, side by side in one register, [g][2t] and [g][2t + 1].
#pragma once
#include "common.cuh"

/// Two numbers as bf16, the first in the lower half.
DEVICE u32 pack(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

DEVICE float low(u32 x) { return __uint_as_float(x << 16); }
DEVICE float high(u32 x) { return __uint_as_float(x & 0xffff0000u); }

/// Two numbers as f16, the first in the lower half.
DEVICE u32 pack_f16(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

DEVICE float from_f16(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

/// tanh to 11 bits.
DEVICE float tanh_fast(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// d += a b for a [16, 16], b [16, 8]. Lane `4 g + t` holds a[g][2t..], a[g + 8][2t..], a[g][2t + 8..], a[g + 8][2t + 8..]
/// (two numbers each); b[2t..][g], b[2t + 8..][g]; d[g][2t], d[g][2t + 1], d[g + 8][2t], d[g + 8][2t + 1].
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four transposed pieces from shared memory: row r of piece i is the 16 bytes at the address of lane `8 i + r`; lane
/// `4 g + t` gets [2t][g] and [2t + 1][g] of each.
DEVICE void load_transposed(u32 (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// A piece transposed: lane `4 g + t` gives [g][2t..] and gets [2t][g], [2t + 1][g].
DEVICE u32 transposed(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
