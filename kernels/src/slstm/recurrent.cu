// The gradients of R and of the bias: sums over all tokens of products of the gates' gradients with the outputs that the
// tokens read, in parts that a later kernel adds up.
//
// Compile with -D HEAD_DIM (a multiple of 16, at most 128).
#include "half.cuh"

constexpr int D = HEAD_DIM, THREADS = 2 * D, PITCH = D + 8;
/// Tokens at a time, and how many such groups are on their way or here.
constexpr int TOKENS = 32, STAGES = 3;
constexpr int STAGE = 2 * TOKENS * PITCH;

extern "C" __device__ const int slstm_recurrent_shared = STAGES * STAGE * 2;

/// grid (4 heads, splits), block 2 HEAD_DIM, slstm_recurrent_shared bytes of shared memory.
///
/// dgates   bf16 [tokens, 4, heads, HEAD_DIM]
/// before   bf16 [tokens, heads, HEAD_DIM]
/// matrices  float [splits, 4, heads, HEAD_DIM, HEAD_DIM], rows are outputs: the sum over `split` tokens, which is a multiple
///           of 32
/// biases   float [splits, 4, heads, HEAD_DIM]
extern "C" __global__ void __launch_bounds__(THREADS)
slstm_recurrent(const bf16* dgates, const bf16* before, float* matrices, float* biases, i64 tokens, i64 heads, i64 split) {
    extern __shared__ uint4 shared[];
    bf16* const ring = reinterpret_cast<bf16*>(shared);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t4 = lane % 4;
    const i64 gate_head = blockIdx.x, head = gate_head % heads;
    const i64 begin = blockIdx.y * split, end = begin + split < tokens ? begin + split : tokens;
    const i64 groups = (end - begin + TOKENS - 1) / TOKENS;

    i64 next = 0;
    const auto copy = [&] {
        if (next < groups) {
            bf16* const stage = ring + next % STAGES * STAGE;
            for (int i = threadIdx.x; i < TOKENS * D / 8; i += THREADS) {
                const int row = i / (D / 8), column = i % (D / 8) * 8;
                const i64 token = begin + next * TOKENS + row;
                const int bytes = token < end ? 16 : 0;
                const i64 at = bytes ? token : begin;
                copy_async_16(stage + row * PITCH + column, dgates + (at * 4 * heads + gate_head) * D + column, bytes);
                copy_async_16(stage + (TOKENS + row) * PITCH + column, before + (at * heads + head) * D + column, bytes);
            }
        }
        copy_async_commit();
        next++;
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) copy();

    float d[D / 8][4], bias[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        bias[i] = 0.0f;
#pragma unroll
        for (int n = 0; n < D / 8; n++) d[n][i] = 0.0f;
    }
    const u32 one = 0x3f803f80u;  // twice
    for (i64 i = 0; i < groups; i++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        const bf16* const stage = ring + i % STAGES * STAGE;
#pragma unroll
        for (int k = 0; k < TOKENS; k += 16) {
            u32 a[4];
            load_transposed(a, stage + (k + lane / 16 * 8 + lane % 8) * PITCH + warp * 16 + lane / 8 % 2 * 8);
            mma_bf16(bias, a, one, one);
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                u32 b[4];
                load_transposed(b, stage + (TOKENS + k + lane % 16) * PITCH + n * 8 + lane / 16 * 8);
                mma_bf16(d[n], a, b[0], b[1]);
                mma_bf16(d[n + 1], a, b[2], b[3]);
            }
        }
        // The group that is written into now was read before the barrier above.
        copy();
    }
    const i64 row = (blockIdx.y * 4 * heads + gate_head) * D + warp * 16 + g;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        float* const at = matrices + row * D + n * 8 + t4 * 2;
        at[0] = d[n][0], at[1] = d[n][1], at[8 * D] = d[n][2], at[8 * D + 1] = d[n][3];
    }
    if (t4 == 0) biases[row] = bias[0], biases[row + 8] = bias[2];
}
