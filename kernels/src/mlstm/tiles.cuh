// What the kernels of the mLSTM share: tiles of bf16 in shared memory, and the matrix unit on them.
//
// A tile has panels of 64 columns; a row of a panel is 128 bytes, its eight granules of 16 bytes shuffled by the row, so
// that neither rows nor columns meet in a bank.
#pragma once
#include "common.cuh"

// CHUNK, a macro, is the number of tokens of a chunk: 64 or 128. A warp has 16 of them, except where the file says more.
#ifndef WARPS
#define WARPS (CHUNK / 16)
#endif
constexpr int THREADS = 32 * WARPS;
/// Columns of a value that are streamed at a time.
constexpr int SLICE = 64;

/// One copy from memory into shared memory.
DEVICE void fetch_16(u32 to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

/// Where the granule of this row and column (a multiple of 8) of a tile of ROWS rows lies.
template <int ROWS> DEVICE u32 place(u32 tile, int row, int column) {
    return tile + ((column >> 6) * ROWS + row) * 128 + ((((column >> 3) & 7) ^ (row & 7)) << 4);
}

/// Brings [ROWS, COLUMNS] into a tile, by `THREADS` threads. Rows from `rows` on, columns from `columns` on (a multiple
/// of 8) and rows whose `valid` is 0 are zeros; what memory holds there is not read.
template <int ROWS, int COLUMNS>
DEVICE void fetch(u32 tile, const bf16* from, i64 stride, int rows, int columns, const u8* valid) {
    constexpr int GRANULES = COLUMNS / 8;
    constexpr int STEP_ROWS = THREADS / GRANULES;
    if constexpr (THREADS % GRANULES == 0 && STEP_ROWS % 8 == 0 && ROWS % STEP_ROWS == 0) {
        // A thread stays in its column and in its place of the shuffle: addresses only grow.
        int row = threadIdx.x / GRANULES;
        const int column = threadIdx.x % GRANULES * 8;
        u32 to = place<ROWS>(tile, row, column);
        const bf16* p = from + row * stride + column;
        const i64 step = STEP_ROWS * stride;
        if (column >= columns) rows = 0;
#pragma unroll
        for (int i = 0; i < ROWS; i += STEP_ROWS, row += STEP_ROWS, to += STEP_ROWS * 128, p += step) {
            bool there = row < rows;
#if MASKS
            if (there && valid) there = valid[row];
#endif
            fetch_16(to, there ? p : from, there ? 16 : 0);
        }
    } else {
#pragma unroll
        for (int i = threadIdx.x; i < ROWS * GRANULES; i += THREADS) {
            const int row = i / GRANULES, column = i % GRANULES * 8;
            bool there = row < rows && column < columns;
#if MASKS
            if (there && valid) there = valid[row];
#endif
            fetch_16(place<ROWS>(tile, row, column), there ? from + row * stride + column : from, there ? 16 : 0);
        }
    }
}

/// Where chunk `index` of `chunks` a head lies. A grid has less than 2^31 of them.
struct Chunk {
    i64 index, bh, head, batch, t0, tokens;

    DEVICE Chunk(int i, i64 chunks, i64 heads) {
        const u32 row = u32(i) / u32(chunks), in = u32(i) - row * u32(chunks);
        index = i;
        bh = row;
        batch = row / u32(heads);
        head = row - u32(batch) * u32(heads);
        t0 = i64(in) * CHUNK;
        tokens = bh * chunks * CHUNK + t0;
    }
};

struct Fragment {
    u32 x[4];
};

DEVICE void load_matrices(Fragment& f, u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
                 : "r"(address)
                 : "memory");
}

DEVICE void load_transposed(Fragment& f, u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
                 : "r"(address)
                 : "memory");
}

/// The left operand [16, 16] of a product from rows `row..` and columns `column..` of a tile.
template <int ROWS> DEVICE void left(Fragment& f, u32 tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_matrices(f, place<ROWS>(tile, row + (lane & 15), column + (lane >> 4) * 8));
}

/// The left operand [16, 16] that is the transpose of rows `row..` and columns `column..`.
template <int ROWS> DEVICE void left_transposed(Fragment& f, u32 tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_transposed(f, place<ROWS>(tile, row + (lane & 7) + ((lane >> 4) & 1) * 8, column + ((lane >> 3) & 1) * 8));
}

/// The right operand [16, 16], as two of 8 columns, from rows `row..` and columns `column..`.
template <int ROWS> DEVICE void right(Fragment& f, u32 tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_transposed(f, place<ROWS>(tile, row + (lane & 7) + ((lane >> 3) & 1) * 8, column + ((lane >> 4) & 1) * 8));
}

/// The right operand [16, 16] that is the transpose of rows `row..` and columns `column..`.
template <int ROWS> DEVICE void right_transposed(Fragment& f, u32 tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_matrices(f, place<ROWS>(tile, row + (lane & 7) + ((lane >> 4) & 1) * 8, column + ((lane >> 3) & 1) * 8));
}

/// d += a b for a [16, 16], b [16, 8]. Lane `4 g + t` holds d[g][2t], d[g][2t + 1], d[g + 8][2t], d[g + 8][2t + 1].
DEVICE void multiply_8(float (&d)[4], const Fragment& a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}

/// The same for 16 columns, in two accumulators side by side.
DEVICE void multiply(float (*d)[4], const Fragment& a, const Fragment& b) {
    multiply_8(d[0], a, b.x[0], b.x[1]);
    multiply_8(d[1], a, b.x[2], b.x[3]);
}

/// Two numbers as bf16, the first in the lower half.
DEVICE u32 pack(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

DEVICE float low_half(u32 x) { return __uint_as_float(x << 16); }
DEVICE float high_half(u32 x) { return __uint_as_float(x & 0xffff0000u); }

/// Two accumulators side by side, [16, 16], as the left operand of the next product.
DEVICE Fragment as_left(const float (*d)[4]) {
    return {pack(d[0][0], d[0][1]), pack(d[0][2], d[0][3]), pack(d[1][0], d[1][1]), pack(d[1][2], d[1][3])};
}

/// Each of four lanes side by side has one word of each of four columns; afterwards each has one column's four words.
DEVICE void exchange(u32 (&x)[4]) {
    const bool one = threadIdx.x & 1, two = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const u32 got = __shfl_xor_sync(~0u, one ? x[i] : x[i + 1], 1);
        (one ? x[i] : x[i + 1]) = got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u32 got = __shfl_xor_sync(~0u, two ? x[i] : x[i + 2], 2);
        (two ? x[i] : x[i + 2]) = got;
    }
}

/// Row `g` (`half` 0) or `g + 8` (1) of four accumulators side by side, [16, 32], as bf16: lane `4 g + t` gets the eight
/// columns from `8 t` on.
DEVICE uint4 eight_columns(const float (*d)[4], int half) {
    u32 x[4];
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = pack(d[i][2 * half], d[i][2 * half + 1]);
    exchange(x);
    return make_uint4(x[0], x[1], x[2], x[3]);
}

/// Over the four lanes that share a row of an accumulator.
DEVICE float sum_of_four(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/// A sum of two floats: exponents may be thousands where their difference is near 0.
DEVICE float weight(float2 a, float2 b) { return exp2_fast((a.x + b.x) + (a.y + b.y)); }
