// The mLSTM's backward for the queries. With G[i][j] = dh_i v_j / den_i + dqn_i, where dqn is the gradient of q n and den the
// denominator,
//
//   dq_i = d_qk^-1/2 (sum_j G[i][j] weight(i, j) k_j + before_i (C dh_i / den_i + n dqn_i)).
//
// dh h, which dqn comes from, is a sum of the same products. Besides dq, what the other kernels need of each query.
#include "tiles.cuh"

constexpr int PANELS = (WIDTH + 63) / 64;
constexpr u32 ROWS_BYTES = PANELS * CHUNK * 128;
constexpr u32 TOKENS_BYTES = CHUNK * 128;
constexpr u32 STATE_BYTES = WIDTH * 128;
constexpr u32 STAGE = 2 * TOKENS_BYTES + STATE_BYTES;

/// grid (blocks), any number: a block goes on to further chunks, and asks for their first slices while it is at this one.
/// block CHUNK 2; shared memory 2 ROWS_BYTES + STAGES STAGE + CHUNK 8 + WIDTH 8.
///
/// q, k, v, dh   bf16 [batch, time, heads, d], with strides over batch, time and heads; rows start at multiples of 16 bytes
/// valid to n_fresh_batch, q_n   as in `mlstm_forward`
/// dq        bf16 [batch, time, heads, d_qk]
/// query     float4 [batch, heads, padded]: 1 / den; dqn; sum of all score gradients times their exponent's score; gradient
///           of m by eps
/// weight_c, weight_n  float [batch, heads, padded]: with which q dh^T and q enter the gradients of C and n before them
/// items     batch * heads * chunks, less than 2^31
extern "C" __global__ void __launch_bounds__(THREADS, 1)
mlstm_queries(const bf16* q, i64 q_batch, i64 q_time, i64 q_head, const bf16* k, i64 k_batch, i64 k_time, i64 k_head,
              const bf16* v, i64 v_batch, i64 v_time, i64 v_head, const bf16* dh, i64 dh_batch, i64 dh_time, i64 dh_head,
              const u8* valid, const float2* row, const float2* column, const float* before, const float* bound,
              const int* first, const bf16* c, const float* n, const bf16* c_fresh, i64 c_fresh_batch, const float* n_fresh,
              i64 n_fresh_batch, const float* q_n, bf16* dq, float4* query, float* weight_c, float* weight_n, i64 time,
              i64 heads, i64 chunks, i64 items, i64 d_qk, i64 d_v, float scale, float eps) {
    extern __shared__ __align__(128) u8 memory[];
    const u32 queries = shared_address(memory), keys = queries + ROWS_BYTES, stages = keys + ROWS_BYTES;
    float2* columns_of = reinterpret_cast<float2*>(memory + 2 * ROWS_BYTES + STAGES * STAGE);
    float2* normaliser = columns_of + CHUNK;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int strip = warp < WARPS / 2 ? warp : WARPS * 3 / 2 - 1 - warp, g = strip * 16 + lane / 4, lane2 = lane % 4 * 2;
    const int slices = int((d_v + SLICE - 1) / SLICE);
    const auto rows_of = [&](const Chunk& at) { return int(min(time - at.t0, i64(CHUNK))); };
    const auto real_of = [&](const Chunk& at) { return valid ? valid + at.batch * time + at.t0 : nullptr; };
    // Whether a document starts in the chunk: then the reset state has slices, too.
    const auto is_mixed = [&](const Chunk& at) { return MASKS && c_fresh && first[at.tokens + CHUNK - 1] >= 0; };

    // The next slice to ask for, and the place in the ring of the next one to ask for and to read.
    int wanted = blockIdx.x, wanted_slice = 0, wanted_turn = 0, turn = 0;
    bool wanted_mixed = wanted < items && is_mixed(Chunk(wanted, chunks, heads));
    const auto request = [&]() {
        if (wanted < items) {
            const Chunk at(wanted, chunks, heads);
            const u32 stage = stages + wanted_turn * STAGE;
            const bool again = MASKS && wanted_slice >= slices;
            const i64 column0 = i64(again ? wanted_slice - slices : wanted_slice) * SLICE;
            const int width = int(min(d_v - column0, i64(SLICE))), rows = rows_of(at);
            const u8* real = real_of(at);
            fetch<CHUNK, SLICE>(stage, dh + at.batch * dh_batch + at.t0 * dh_time + at.head * dh_head + column0, dh_time, rows, width, real);
            if (!again)
                fetch<CHUNK, SLICE>(stage + TOKENS_BYTES, v + at.batch * v_batch + at.t0 * v_time + at.head * v_head + column0, v_time, rows,
                                    width, real);
            const bf16* state = again ? c_fresh + at.batch * c_fresh_batch + at.head * d_qk * d_v : c + at.index * d_qk * d_v;
            fetch<WIDTH, SLICE>(stage + 2 * TOKENS_BYTES, state + column0, d_v, int(d_qk), width, nullptr);
            if (++wanted_slice == (wanted_mixed ? 2 * slices : slices)) {
                wanted += gridDim.x;
                wanted_slice = 0;
                if (MASKS) wanted_mixed = wanted < items && is_mixed(Chunk(wanted, chunks, heads));
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
    const bool mixed = is_mixed(at);
    const int rounds = mixed ? 2 * slices : slices;
    __syncthreads();  // the last chunk's readers are done
    // A part of the next group.
    fetch<CHUNK, WIDTH>(queries, q + batch * q_batch + t0 * q_time + head * q_head, q_time, rows, int(d_qk), real_of(at));
    fetch<CHUNK, WIDTH>(keys, k + batch * k_batch + t0 * k_time + head * k_head, k_time, rows, int(d_qk), real_of(at));
    for (int i = threadIdx.x; i < CHUNK; i += THREADS) columns_of[i] = column[tokens + i];
    for (int i = threadIdx.x; i < WIDTH; i += THREADS) {
        const float fresh = mixed && i < d_qk ? n_fresh[batch * n_fresh_batch + head * d_qk + i] : 0.0f;
        normaliser[i] = make_float2(i < d_qk ? n[index * d_qk + i] : 0.0f, fresh);
    }
    float2 exponent[2];
    float reads[2], lower[2], all[2];
    int start[2] = {-1, -1};
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const i64 to = tokens + g + 8 * r;
        exponent[r] = row[to];
        reads[r] = before[to] * scale;
        lower[r] = bound[to];
        all[r] = q_n[to];
#if MASKS
        if (mixed) start[r] = first[to];
#endif
    }

    // dh V^T and dh C^T, over slices of the values.
    float p[CHUNK / 8][4] = {}, z[WIDTH / 8][4] = {};
#pragma unroll 1
    for (int s = 0; s < rounds; s++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        request();
        const u32 stage = stages + turn * STAGE;
        if (++turn == STAGES) turn = 0;
        const bool again = MASKS && s >= slices;
#pragma unroll
        for (int d = 0; d < SLICE; d += 16) {
            Fragment a;
            left<CHUNK>(a, stage, strip * 16, d);
            if (!again) {
#pragma unroll
                for (int j = 0; j < CHUNK / 16; j++)
                    if (j <= strip) {
                        Fragment b;
                        right_transposed<CHUNK>(b, stage + TOKENS_BYTES, j * 16, d);
                        multiply(&p[2 * j], a, b);
                    }
            }
#if MASKS
#pragma unroll
            for (int x = 0; x < 4; x++)
                if ((start[x % 2] >= 0) != again) a.x[x] = 0;
#endif
#pragma unroll
            for (int i = 0; i < WIDTH / 16; i++) {
                Fragment b;
                right_transposed<WIDTH>(b, stage + 2 * TOKENS_BYTES, i * 16, d);
                multiply(&z[2 * i], a, b);
            }
        }
    }
    if (rounds < STAGES) {
        copy_async_wait<0>();
        __syncthreads();
    }

    // Sums over the keys of S and of S dh v.
    float sum[2] = {0.0f, 0.0f}, with[2] = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < CHUNK / 16; j++)
        if (j <= strip) {
            float s[2][4] = {};
#pragma unroll
            for (int d = 0; d < WIDTH; d += 16) {
                Fragment a, b;
                left<CHUNK>(a, queries, strip * 16, d);
                right_transposed<CHUNK>(b, keys, j * 16, d);
                multiply(s, a, b);
            }
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int r = e / 2, key = j * 16 + i * 8 + lane2 + e % 2;
                    const bool seen = key <= g + 8 * r && (!MASKS || key >= start[r]);
                    const float score = seen ? s[i][e] * scale * weight(exponent[r], columns_of[key]) : 0.0f;
                    sum[r] += score;
                    with[r] = fmaf(score, p[2 * j + i][e], with[r]);
                }
        }
    // The state's part: q C dh.
    float along[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < WIDTH / 8; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 x = *reinterpret_cast<const u32*>(memory + (place<CHUNK>(0, g + 8 * r, i * 8) + lane2 * 2));
            along[r] += low_half(x) * z[i][2 * r] + high_half(x) * z[i][2 * r + 1];
        }
    float inverse[2], dqn[2], flow[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] = sum_of_four(sum[r]);
        with[r] = sum_of_four(with[r]);
        along[r] = sum_of_four(along[r]);
        const float size = fabsf(all[r]);
        inverse[r] = 1.0f / (fmaxf(size, lower[r]) + eps);
        // dh h / den
        const float delta = (with[r] + reads[r] * along[r]) * inverse[r] * inverse[r];
        dqn[r] = size > lower[r] ? (all[r] > 0.0f ? -delta : delta) : 0.0f;
        flow[r] = 0.0f;
        if (lane % 4 == 0) {
            const i64 to = tokens + g + 8 * r;
            weight_c[to] = reads[r] * inverse[r];
            weight_n[to] = reads[r] * dqn[r];
            query[to].x = inverse[r];
            query[to].y = dqn[r];
            query[to].w = -delta * eps;
        }
    }
#pragma unroll
    for (int i = 0; i < WIDTH / 8; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u32 x = *reinterpret_cast<const u32*>(memory + (place<CHUNK>(0, g + 8 * r, i * 8) + lane2 * 2));
            const float2 n0 = normaliser[i * 8 + lane2], n1 = normaliser[i * 8 + lane2 + 1];
            const bool fresh = MASKS && start[r] >= 0;
            float& z0 = z[i][2 * r];
            float& z1 = z[i][2 * r + 1];
            z0 = reads[r] * fmaf(dqn[r], fresh ? n0.y : n0.x, z0 * inverse[r]);
            z1 = reads[r] * fmaf(dqn[r], fresh ? n1.y : n1.x, z1 * inverse[r]);
            flow[r] += low_half(x) * z0 + high_half(x) * z1;
        }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        flow[r] = sum_of_four(flow[r]) + fmaf(with[r], inverse[r], dqn[r] * sum[r]);
        if (lane % 4 == 0) query[tokens + g + 8 * r].z = flow[r];
    }
    // The keys' part.
#pragma unroll
    for (int j = 0; j < CHUNK / 16; j++)
        if (j <= strip) {
#pragma unroll
            for (int i = 2 * j; i < 2 * j + 2; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int r = e / 2, key = i * 8 + lane2 + e % 2;
                    const bool seen = key <= g + 8 * r && (!MASKS || key >= start[r]);
                    p[i][e] = seen ? fmaf(p[i][e], inverse[r], dqn[r]) * scale * weight(exponent[r], columns_of[key]) : 0.0f;
                }
            const Fragment a = as_left(&p[2 * j]);
#pragma unroll
            for (int i = 0; i < WIDTH / 16; i++) {
                Fragment b;
                right<CHUNK>(b, keys, j * 16, i * 16);
                multiply(&z[2 * i], a, b);
            }
        }
#pragma unroll
    for (int i = 0; i < WIDTH / 8; i += 4)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint4 eight = eight_columns(&z[i], r);
            const int row = g + 8 * r, to = i * 8 + lane2 * 4;
            if (row < rows && to < d_qk)
                *reinterpret_cast<uint4*>(dq + ((batch * time + t0 + row) * heads + head) * d_qk + to) = eight;
        }
    }
}
