// y = x W^T for up to 16 rows of x in bf16 and a weight in codes of eight or four bits. The codes become bf16 exactly and go
// through the matrix unit, so that up to eight rows cost no more than one; scales and zeros are applied to sums in f32.
//
// Compile with -D BITS (8 or 4), GROUP (32, 64 or 128 inputs with a scale; not read with 8 bits), TILES (1 for up to 8 rows, 2
// for up to 16) and SPLIT (1, 2, 4 or 8 warps that share an output's inputs).
#include "half.cuh"

constexpr int WARPS = 8;
/// Outputs of a block.
constexpr int OUTPUTS = WARPS / SPLIT * 16;

extern "C" __device__ const int weight_only_outputs = OUTPUTS;

DEVICE uint4 load(const void* from, bool exists) {
    return exists ? __ldg(static_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
}

DEVICE u32 word(const uint4& x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }

/// Two signed bytes of a word as bf16: 0 and 1, or 2 and 3. With the sign turned over a byte is the end of a number 2^23 + byte.
DEVICE u32 two_bytes(u32 turned, int first) {
    const float low = __uint_as_float(__byte_perm(turned, 0x4b000000u, 0x7540 + first)) - 8388736.0f;
    const float high = __uint_as_float(__byte_perm(turned, 0x4b000000u, 0x7541 + first)) - 8388736.0f;
    return pack(low, high);
}

/// grid (ceil(out / weight_only_outputs), 1), block 256, shared memory of 4096 TILES bytes and with 4 bits 32 TILES bytes more
/// for each group of inputs.
///
/// x      bf16 [rows, width], contiguous; its address is a multiple of 16
/// codes  bytes [out, width] or [out, width / 2]; the address is a multiple of 16, and with 8 bits width too
/// scale  float [out] or [out, width / GROUP]
/// zero   float [out, width / GROUP], or null; not read with 8 bits
/// y      bf16 [rows, out], contiguous
extern "C" __global__ void __launch_bounds__(256)
weight_only_rows(const bf16* x, const u8* codes, const float* scale, const float* zero, bf16* y, i64 rows, i64 out, i64 width) {
    extern __shared__ uint4 shared[];
    float* const parts = reinterpret_cast<float*>(shared);  // [WARPS, 4 TILES, 32]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t4 = lane % 4;
    const i64 first = (i64(blockIdx.x) * (WARPS / SPLIT) + warp / SPLIT) * 16;
    const i64 last = out - 1, output0 = first + g < last ? first + g : last, output8 = first + g + 8 < last ? first + g + 8 : last;
    float sums[TILES][4];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[tile][i] = 0.0f;

#if BITS == 8
    const u8 *const row0 = codes + output0 * width, *const row8 = codes + output8 * width;
    // A lane has 16 inputs of two outputs, and of as many rows of x as there are tiles.
    const i64 steps = (width + 63) / 64;
#pragma unroll 4
    for (i64 step = warp % SPLIT; step < steps; step += SPLIT) {
        const i64 at = step * 64 + t4 * 16;
        const bool exists = at < width;
        const uint4 w0 = load(row0 + at, exists), w8 = load(row8 + at, exists);
        uint4 numbers[TILES][2];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const i64 row = tile * 8 + g;
            const bool mine = exists && row < rows;
            numbers[tile][0] = load(x + row * width + at, mine);
            numbers[tile][1] = load(x + row * width + at + 8, mine);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 v0 = word(w0, i) ^ 0x80808080u, v8 = word(w8, i) ^ 0x80808080u;
            const u32 a[4] = {two_bytes(v0, 0), two_bytes(v8, 0), two_bytes(v0, 2), two_bytes(v8, 2)};
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
                mma_bf16(sums[tile], a, word(numbers[tile][i / 2], i % 2 * 2), word(numbers[tile][i / 2], i % 2 * 2 + 1));
        }
    }
#else
    const i64 groups = width / GROUP;
    float* const totals = parts + WARPS * 32 * 4 * TILES;  // [groups, 8 TILES]: sums of x over the groups
    for (i64 i = threadIdx.x; i < groups * 8 * TILES; i += 256) {
        const i64 group = i % groups, row = i / groups;
        float total = 0.0f;
        for (int k = 0; row < rows && k < GROUP; k += 8) {
            const uint4 v = load(x + row * width + group * GROUP + k, true);
#pragma unroll
            for (int j = 0; j < 4; j++) total += low(word(v, j)) + high(word(v, j));
        }
        totals[group * 8 * TILES + row] = total;
    }
    __syncthreads();

    const u8 *const row0 = codes + output0 * (width / 2), *const row8 = codes + output8 * (width / 2);
    const float *const scale0 = scale + output0 * groups, *const scale8 = scale + output8 * groups;
    // A lane has a block of 32 inputs; four lanes' blocks meet in a product, so groups that are smaller than those take turns.
    constexpr int TURNS = 128 / GROUP;
    const i64 steps = (width + 127) / 128;
#pragma unroll 2
    for (i64 step = warp % SPLIT; step < steps; step += SPLIT) {
        const i64 block = step * 4 + t4;
        const bool exists = block * 32 < width;
        const uint4 w0 = load(row0 + block * 16, exists), w8 = load(row8 + block * 16, exists);
        uint4 numbers[TILES][4];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const i64 row = tile * 8 + g;
                numbers[tile][i] = load(x + row * width + block * 32 + i * 8, exists && row < rows);
            }
        float d[TURNS][TILES][4];
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++)
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                for (int i = 0; i < 4; i++) d[turn][tile][i] = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 v0 = word(w0, i), v8 = word(w8, i);
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                // 128 + code in bf16, of codes two apart; then of those 16 further on.
                const auto two = [&](u32 v, int shift) { return (v >> (8 * odd + shift) & 0x000f000fu) | 0x43004300u; };
                const u32 a[4] = {two(v0, 0), two(v8, 0), two(v0, 4), two(v8, 4)};
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    const uint4 &near = numbers[tile][i / 2], &far = numbers[tile][2 + i / 2];
                    const int at = i % 2 * 2;
                    const u32 b0 = __byte_perm(word(near, at), word(near, at + 1), odd ? 0x7632 : 0x5410);
                    const u32 b1 = __byte_perm(word(far, at), word(far, at + 1), odd ? 0x7632 : 0x5410);
#pragma unroll
                    for (int turn = 0; turn < TURNS; turn++) {
                        const bool mine = t4 * TURNS / 4 == turn;
                        mma_bf16(d[turn][tile], a, mine ? b0 : 0u, mine ? b1 : 0u);
                    }
                }
            }
        }
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const i64 group = step * TURNS + turn;
            if (group >= groups) continue;
            const float s0 = scale0[group], s8 = scale8[group];
            // w = (q - 8) s + z = (128 + q) s + (z - 136 s)
            const float shift0 = fmaf(-136.0f, s0, zero ? zero[output0 * groups + group] : 0.0f);
            const float shift8 = fmaf(-136.0f, s8, zero ? zero[output8 * groups + group] : 0.0f);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const float* const total = totals + group * 8 * TILES + tile * 8 + t4 * 2;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sums[tile][i] +=
                        fmaf(i < 2 ? s0 : s8, d[turn][tile][i], (i < 2 ? shift0 : shift8) * total[i % 2]);
            }
        }
    }
#endif

    if (SPLIT > 1) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) parts[(warp * TILES * 4 + tile * 4 + i) * 32 + lane] = sums[tile][i];
        __syncthreads();
        if (warp % SPLIT != 0) return;
        for (int other = warp + 1; other < warp + SPLIT; other++)
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[tile][i] += parts[(other * TILES * 4 + tile * 4 + i) * 32 + lane];
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const i64 row = tile * 8 + t4 * 2 + i % 2, output = first + g + i / 2 * 8;
            if (row >= rows || output >= out) continue;
#if BITS == 8
            sums[tile][i] *= scale[output];
#endif
            y[row * out + output] = from_float<bf16>(sums[tile][i]);
        }
}
