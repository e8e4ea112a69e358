// The mLSTM's backward for keys and values. With S and G of `forward.cu` and `queries.cu` and the gradient (dC, dn) of the
// state after the chunk,
//
//   dk_j = d_qk^-1/2 sum_i G[i][j] weight(i, j) q_i + written_j (dC v_j + dn),   dv_j = sum_i S[i][j] / den_i dh_i + written_j dC^T k_j.
//
// A warp has 16 keys, and all scores and their gradients are transposed. Slices of dh and dC come twice: first for dk, then
// for dv.
#include "tiles.cuh"

constexpr int PANELS = (WIDTH + 63) / 64;
constexpr u32 ROWS_BYTES = PANELS * CHUNK * 128;
constexpr u32 TOKENS_BYTES = CHUNK * 128;
constexpr u32 STATE_BYTES = WIDTH * 128;
constexpr u32 STAGE = 2 * TOKENS_BYTES + STATE_BYTES;

/// grid (blocks), any number, as `mlstm_queries`; block CHUNK 2; shared memory 2 ROWS_BYTES + STAGES STAGE + CHUNK 20 + WIDTH 4.
///
/// q, k, v, dh   bf16 [batch, time, heads, d], with strides over batch, time and heads; rows start at multiples of 16 bytes
/// valid     bool [batch, time], contiguous, or null; used with MASKS
/// row, column, written, first   of `mlstm_gates`; first is used with MASKS
/// query     float4 [batch, heads, padded], of `mlstm_queries`
/// dc        bf16 [batch, heads, chunks, d_qk, d_v]: the gradient of the state after each chunk
/// dn        float [batch, heads, chunks, d_qk]
/// dk, dv    bf16 [batch, time, heads, d]
/// key       float2 [batch, heads, padded]: sum of all score gradients times their exponent's score; the same for what the
///           state after the chunk has of the key
/// items     batch * heads * chunks, less than 2^31
extern "C" __global__ void __launch_bounds__(THREADS, 1)
mlstm_keys(const bf16* q, i64 q_batch, i64 q_time, i64 q_head, const bf16* k, i64 k_batch, i64 k_time, i64 k_head,
           const bf16* v, i64 v_batch, i64 v_time, i64 v_head, const bf16* dh, i64 dh_batch, i64 dh_time, i64 dh_head,
           const u8* valid, const float2* row, const float2* column, const float* written, const int* first,
           const float4* query, const bf16* dc, const float* dn, bf16* dk, bf16* dv, float2* key, i64 time, i64 heads,
           i64 chunks, i64 items, i64 d_qk, i64 d_v, float scale) {
    extern __shared__ __align__(128) u8 memory[];
    const u32 queries = shared_address(memory), keys = queries + ROWS_BYTES, stages = keys + ROWS_BYTES;
    float4* readers = reinterpret_cast<float4*>(memory + 2 * ROWS_BYTES + STAGES * STAGE);
    int* starts = reinterpret_cast<int*>(readers + CHUNK);
    float* normaliser = reinterpret_cast<float*>(starts + CHUNK);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int strip = warp < WARPS / 2 ? warp : WARPS * 3 / 2 - 1 - warp, g = strip * 16 + lane / 4, lane2 = lane % 4 * 2;
    const int slices = int((d_v + SLICE - 1) / SLICE);
    const auto rows_of = [&](const Chunk& at) { return int(min(time - at.t0, i64(CHUNK))); };
    const auto real_of = [&](const Chunk& at) { return valid ? valid + at.batch * time + at.t0 : nullptr; };

    // The next slice to ask for, and the place in the ring of the next one to ask for and to read.
    int wanted = blockIdx.x, wanted_slice = 0, wanted_turn = 0, turn = 0;
    const auto request = [&]() {
        if (wanted < items) {
            const Chunk at(wanted, chunks, heads);
            const u32 stage = stages + wanted_turn * STAGE;
            const bool again = wanted_slice >= slices;
            const i64 column0 = i64(again ? wanted_slice - slices : wanted_slice) * SLICE;
            const int width = int(min(d_v - column0, i64(SLICE))), rows = rows_of(at);
            const u8* real = real_of(at);
            fetch<CHUNK, SLICE>(stage, dh + at.batch * dh_batch + at.t0 * dh_time + at.head * dh_head + column0, dh_time, rows, width, real);
            if (!again)
                fetch<CHUNK, SLICE>(stage + TOKENS_BYTES, v + at.batch * v_batch + at.t0 * v_time + at.head * v_head + column0, v_time, rows,
                                    width, real);
            fetch<WIDTH, SLICE>(stage + 2 * TOKENS_BYTES, dc + at.index * d_qk * d_v + column0, d_v, int(d_qk), width, nullptr);
            if (++wanted_slice == 2 * slices) {
                wanted += gridDim.x;
                wanted_slice = 0;
            }
            if (++wanted_turn == STAGES) wanted_turn = 0;
        }
        copy_async_commit();
    };
    for (int s = 0; s < STAGES - 1; s++) request();
#pragma unroll 1
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const Chunk at(item, chunks, heads);
    const i64 index = at.index, head = at.head, batch = at.batch, t0 = at.t0, tokens = at.tokens;
    const int rows = rows_of(at);
    __syncthreads();  // the last chunk's readers are done
    // A part of the next group.
    fetch<CHUNK, WIDTH>(queries, q + batch * q_batch + t0 * q_time + head * q_head, q_time, rows, int(d_qk), real_of(at));
    fetch<CHUNK, WIDTH>(keys, k + batch * k_batch + t0 * k_time + head * k_head, k_time, rows, int(d_qk), real_of(at));
    for (int i = threadIdx.x; i < CHUNK; i += THREADS) {
        const float2 exponent = row[tokens + i];
        const float4 other = query[tokens + i];
        readers[i] = make_float4(exponent.x, exponent.y, other.x, other.y);
#if MASKS
        starts[i] = first[tokens + i];
#endif
    }
    for (int i = threadIdx.x; i < WIDTH; i += THREADS) normaliser[i] = i < d_qk ? dn[index * d_qk + i] : 0.0f;
    float2 exponent[2];
    float leaves[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        exponent[r] = column[tokens + g + 8 * r];
        leaves[r] = written[tokens + g + 8 * r];
    }

    // V dh^T and V dC^T, over slices of the values.
    float p[CHUNK / 8][4] = {}, z[WIDTH / 8][4] = {};
#pragma unroll 1
    for (int s = 0; s < slices; s++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        request();
        const u32 stage = stages + turn * STAGE;
        if (++turn == STAGES) turn = 0;
#pragma unroll
        for (int d = 0; d < SLICE; d += 16) {
            Fragment a;
            left<CHUNK>(a, stage + TOKENS_BYTES, strip * 16, d);
#pragma unroll
            for (int i = 0; i < CHUNK / 16; i++)
                if (i >= strip) {
                    Fragment b;
                    right_transposed<CHUNK>(b, stage, i * 16, d);
                    multiply(&p[2 * i], a, b);
                }
#pragma unroll
            for (int i = 0; i < WIDTH / 16; i++) {
                Fragment b;
                right_transposed<WIDTH>(b, stage + 2 * TOKENS_BYTES, i * 16, d);
                multiply(&z[2 * i], a, b);
            }
        }
    }
    if (slices < STAGES) {  // queries and keys came with the first slice that was asked for after them
        copy_async_wait<0>();
        __syncthreads();
    }

    // dC v, dn.
    float flow[2] = {0.0f, 0.0f}, along[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < WIDTH / 8; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 x = *reinterpret_cast<const u32*>(memory + ROWS_BYTES + (place<CHUNK>(0, g + 8 * r, i * 8) + lane2 * 2));
            float& z0 = z[i][2 * r];
            float& z1 = z[i][2 * r + 1];
            z0 = leaves[r] * (z0 + normaliser[i * 8 + lane2]);
            z1 = leaves[r] * (z1 + normaliser[i * 8 + lane2 + 1]);
            flow[r] += low_half(x) * z0 + high_half(x) * z1;
        }
    Fragment scores[CHUNK / 16];
#pragma unroll
    for (int i = 0; i < CHUNK / 16; i++)
        if (i >= strip) {
            float s[2][4] = {};
#pragma unroll
            for (int d = 0; d < WIDTH; d += 16) {
                Fragment a, b;
                left<CHUNK>(a, keys, strip * 16, d);
                right_transposed<CHUNK>(b, queries, i * 16, d);
                multiply(s, a, b);
            }
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int r = e / 2, reader = i * 16 + j * 8 + lane2 + e % 2;
                    const float4 of = readers[reader];
                    const bool seen = reader >= g + 8 * r && (!MASKS || g + 8 * r >= starts[reader]);
                    const float decay = seen ? scale * weight(exponent[r], make_float2(of.x, of.y)) : 0.0f;
                    float& gradient = p[2 * i + j][e];
                    const float wanted = fmaf(gradient, of.z, of.w);
                    const float score = s[j][e] * decay;
                    along[r] = fmaf(score, wanted, along[r]);
                    gradient = wanted * decay;
                    s[j][e] = score * of.z;
                }
            scores[i] = as_left(s);
            const Fragment a = as_left(&p[2 * i]);
#pragma unroll
            for (int d = 0; d < WIDTH / 16; d++) {
                Fragment b;
                right<CHUNK>(b, queries, i * 16, d * 16);
                multiply(&z[2 * d], a, b);
            }
        }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float inside = sum_of_four(along[r]), after = sum_of_four(flow[r]);
        if (lane % 4 == 0) key[tokens + g + 8 * r] = make_float2(inside, after);
    }
#pragma unroll
    for (int i = 0; i < WIDTH / 8; i += 4)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint4 eight = eight_columns(&z[i], r);
            const int row = g + 8 * r, to = i * 8 + lane2 * 4;
            if (row < rows && to < d_qk)
                *reinterpret_cast<uint4*>(dk + ((batch * time + t0 + row) * heads + head) * d_qk + to) = eight;
        }

#pragma unroll 1
    for (int s = slices; s < 2 * slices; s++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        request();
        const u32 stage = stages + turn * STAGE;
        if (++turn == STAGES) turn = 0;
        float o[SLICE / 8][4] = {};
#pragma unroll
        for (int d = 0; d < WIDTH; d += 16) {
            Fragment a;
            left<CHUNK>(a, keys, strip * 16, d);
#pragma unroll
            for (int i = 0; i < SLICE / 16; i++) {
                Fragment b;
                right<WIDTH>(b, stage + 2 * TOKENS_BYTES, d, i * 16);
                multiply(&o[2 * i], a, b);
            }
        }
#pragma unroll
        for (int i = 0; i < SLICE / 8; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) o[i][e] *= leaves[e / 2];
#pragma unroll
        for (int j = 0; j < CHUNK / 16; j++)
            if (j >= strip) {
#pragma unroll
                for (int i = 0; i < SLICE / 16; i++) {
                    Fragment b;
                    right<CHUNK>(b, stage, j * 16, i * 16);
                    multiply(&o[2 * i], scores[j], b);
                }
            }
        const i64 column0 = i64(s - slices) * SLICE;
#pragma unroll
        for (int i = 0; i < SLICE / 8; i += 4)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const uint4 eight = eight_columns(&o[i], r);
                const int row = g + 8 * r;
                const i64 to = column0 + i * 8 + lane2 * 4;
                if (row < rows && to < d_v)
                    *reinterpret_cast<uint4*>(dv + ((batch * time + t0 + row) * heads + head) * d_v + to) = eight;
            }
    }
    }
    copy_async_wait<0>();
}
