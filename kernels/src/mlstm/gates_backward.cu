// The gates of the mLSTM, backward. A score's exponent has log f of every token between its key and its query, so a gate's
// gradient is the sum of what crosses it: inside the chunk, from and to the states, and through. No two large terms cancel:
// sums stay inside a chunk and a document, and what crosses a whole chunk is a product of the state and its gradient.
// What wants m itself (eps, and the last state) goes along the path of the maximum.
#define MASKS 0
#include "tiles.cuh"

constexpr int BLOCK = 1024;
constexpr int GROUPS = BLOCK / CHUNK;
constexpr int PARTS = CHUNK / 32;

/// The sum over this token and those after it while the way is open; `open` says whether a token goes on to the next one.
/// Each group of `warps` warps is by itself; what comes after the group is `after`.
DEVICE float suffix(float x, float open, float after, int warps, float* values, float* ways) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const float other = __shfl_down_sync(~0u, x, d), way = __shfl_down_sync(~0u, open, d);
        if (lane + d < 32) {
            x = fmaf(open, other, x);
            open *= way;
        }
    }
    __syncthreads();
    if (lane == 0) {
        values[warp] = x;
        ways[warp] = open;
    }
    __syncthreads();
    float rest = after;
    for (int w = (warp / warps + 1) * warps - 1; w > warp; w--) rest = fmaf(ways[w], rest, values[w]);
    return fmaf(open, rest, x);
}

/// grid (batch * heads), block 1024, no dynamic shared memory. `padded` is a multiple of CHUNK, `chunks` = padded / CHUNK.
///
/// forget         float [batch, time, heads], with strides over batch, time and heads
/// resets, valid  bool [batch, time], contiguous, or null
/// query          float4 [batch, heads, padded], of `mlstm_queries`
/// key            float2 [batch, heads, padded], of `mlstm_keys`
/// first, source, kept   of `mlstm_gates`
/// along          float [batch, heads, chunks, parts], of `mlstm_states`
/// dn, n          float [batch, heads, chunks, d_qk]: the normaliser's gradient after each chunk and itself before it
/// n_fresh        float [batch or 1, heads, d_qk], the reset state's, with its stride over the batch; or null
/// dm             float [batch, heads]: gradient of the last m; or null
/// scale          float [batch, heads]: dC C + dn n of the last state, which is relative to m; or null
/// dinput, dforget   float [batch, time, heads]
/// dm0, dm_reset  float [batch, heads]: what goes along the path of the maximum to the first state and the reset state
extern "C" __global__ void __launch_bounds__(BLOCK)
mlstm_gates_backward(const float* forget, i64 forget_batch, i64 forget_time, i64 forget_head, const u8* resets,
                     const u8* valid, const float4* query, const float2* key, const int* first, const u8* source,
                     const float2* kept, const float* along, const float* dn, const float* n, const float* n_fresh,
                     i64 n_fresh_batch, const float* dm, const float* scale, float* dinput, float* dforget, float* dm0, float* dm_reset,
                     i64 time, i64 heads, i64 chunks, i64 parts, i64 d_qk) {
    __shared__ float values[32], ways[32], sums[32], through[GROUPS], carried, open_end, rounding;
    const i64 head = blockIdx.x % heads, batch = blockIdx.x / heads, bh = blockIdx.x;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = threadIdx.x / CHUNK, at = threadIdx.x % CHUNK, warp0 = group * PARTS;
    const i64 padded = chunks * CHUNK;
    float fresh_m = 0.0f;  // what this thread's tokens leave for the reset state
    if (threadIdx.x == 0) open_end = 1.0f;
    const i64 first_tile = (padded - 1) / BLOCK * BLOCK;
    for (i64 tile = first_tile; tile >= 0; tile -= BLOCK) {
        const i64 t = tile + threadIdx.x, from = bh * padded + t;
        const bool inside = t < padded, there = t < time && (!valid || valid[batch * time + t]);
        const bool reset = there && resets && resets[batch * time + t];
        float4 q = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float2 k = make_float2(0.0f, 0.0f);
        int way = 2;
        if (inside) {
            q = query[from];
            k = key[from];
            way = source[from];
        }
        // What the next token gets from this one: nothing after a document's end.
        const bool next_resets = resets && t + 1 < time && resets[batch * time + t + 1] && (!valid || valid[batch * time + t + 1]);
        const int next_way = t + 1 < padded ? source[from + 1] : 2;
        const float within = suffix(q.z - k.x, at + 1 < CHUNK && !next_resets ? 1.0f : 0.0f, 0.0f, PARTS, values, ways);
        // What earlier tokens of the chunk left in the state after it.
        float earlier = k.y;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const float other = __shfl_up_sync(~0u, earlier, d);
            if (lane >= d) earlier += other;
        }
        if (lane == 31) sums[warp] = earlier;
        earlier = __shfl_up_sync(~0u, earlier, 1);
        if (lane == 0) earlier = 0.0f;
        // What crosses the whole chunk: a warp for each chunk.
        const i64 chunk = tile / CHUNK + warp;
        if (warp < GROUPS && chunk < chunks) {
            const i64 index = bh * chunks + chunk;
            const float2 rest = kept[index];
            const float* with = rest.y != 0.0f && n_fresh ? n_fresh + batch * n_fresh_batch + head * d_qk : n + index * d_qk;
            float sum = 0.0f;
            for (i64 i = lane; i < d_qk; i += 32) sum += dn[index * d_qk + i] * with[i];
            sum *= rest.x + rest.y;
            for (i64 i = lane; i < parts; i += 32) sum += along[index * parts + i];
#pragma unroll
            for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
            if (lane == 0) through[warp] = sum;
        }
        const i64 end = from - at + CHUNK - 1;
        const int last_start = inside ? first[end] : -1;
        __syncthreads();
        for (int w = warp0; w < warp; w++) earlier += sums[w];
        // The last state is relative to m: the path starts with what it has of its scale. It is taken from the numbers that
        // it has to cancel with, which are of rounded states; for the gradients of states, from the state itself.
        if (tile == first_tile && threadIdx.x == 0) {
            const int end_group = int((chunks - 1) % GROUPS);
            float all = through[end_group];
            for (int w = 0; w < PARTS; w++) all += sums[end_group * PARTS + w];
            carried = (dm ? dm[bh] : 0.0f) - all;
            rounding = all - (scale ? scale[bh] : 0.0f);
        }
        __syncthreads();
        const float onward = next_way == 2 && !next_resets ? 1.0f : 0.0f;
        const float path = suffix(q.w, onward, carried, 32, values, ways);
        const float reach = suffix(0.0f, onward, open_end, 32, values, ways);
        __syncthreads();
        if (threadIdx.x == 0) {
            carried = path;
            open_end = reach;
        }
        float d_log_f = within + (way == 2 ? path : 0.0f);
        if (at >= last_start) d_log_f += earlier + through[group];
        const float exact = fmaf(reach, rounding, path);
        if (reset && way == 2) fresh_m += exact;
        if (t == 0) dm0[bh] = way == 2 && !reset ? exact : 0.0f;
        if (t < time) {
            const i64 to = (batch * time + t) * heads + head;
            const float x = forget[batch * forget_batch + t * forget_time + head * forget_head];
            dinput[to] = there ? k.x + k.y + (way == 1 ? path : 0.0f) : 0.0f;
            dforget[to] = there ? d_log_f * sigmoid(-x) : 0.0f;
        }
    }
#pragma unroll
    for (int d = 16; d; d /= 2) fresh_m += __shfl_xor_sync(~0u, fresh_m, d);
    __syncthreads();
    if (lane == 0) values[warp] = fresh_m;
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.0f;
        for (int w = 0; w < 32; w++) sum += values[w];
        dm_reset[bh] = sum;
    }
}
