// The causal depthwise convolution, backward. With p_t = dy_t silu'(pre_t), where pre is computed again from x:
//
//   dx_t = sum_j weight_{WIDTH - 1 - j} p_{t + j}  over the tokens t + j of the same document,
//   dweight_k = sum_t p_t x_{t - (WIDTH - 1) + k},  dbias = sum_t p_t
//
// and the gradient of the new tail goes to the inputs that it consists of. A thread goes through a chunk of tokens and the
// WIDTH - 1 after it; sums over time are kept in registers, added over the warps of a block in order, and over blocks by
// `sum_rows`.
#include "conv.cuh"

/// Channels of a thread.
constexpr int VECTOR = 4;
constexpr int WARPS = 4;
/// Tokens whose rows are asked for together.
constexpr int AHEAD = 4;

/// p_t of a channel.
DEVICE float before_silu(float dy, float pre) {
#if SILU
    const float open = sigmoid(pre);
    return dy * open * fmaf(pre, 1.0f - open, 1.0f);
#else
    return dy;
#endif
}

/// grid (ceil(d / 128), ceil(ceil(time / chunk) / 4), batch), block 128, no dynamic shared memory.
///
/// x .. lengths  as the forward's
/// dy            ELEMENT [batch, time, d] with its strides, channels contiguous
/// dnew_tail     float [batch, WIDTH - 1, d], contiguous, or null for zeros
/// dx            ELEMENT [batch, time, d], contiguous
/// parameters    float [batch, grid.y, d * WIDTH + d]: partial sums of dweight, then dbias; a block writes all of its
///               channels' values, so that nothing needs to be zero before
/// chunk         tokens of a thread; chunk + WIDTH - 1 should be a multiple of 4: 53 is good for a width of 4
extern "C" __global__ void __launch_bounds__(128, WIDTH > 4 ? 2 : MASKS || sizeof(T) == 4 ? 3 : 4)
causal_conv1d_backward(const T* x, i64 x_batch, i64 x_time, const float* weight, const float* bias, const float* tail,
                       i64 tail_batch, const float* reset_tail, i64 reset_batch, const u8* resets, const i64* lengths,
                       const T* dy, i64 dy_batch, i64 dy_time, const float* dnew_tail, T* dx, float* parameters, i64 time,
                       i64 d, i64 chunk) {
    __shared__ float shared[WARPS][WIDTH + 1][32 * VECTOR];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const i64 batch = blockIdx.z, first = i64(blockIdx.x) * 32 * VECTOR, channel = first + lane * VECTOR;
    const i64 begin = (i64(blockIdx.y) * WARPS + warp) * chunk;
    const i64 end = begin + chunk < time ? begin + chunk : time;
    const i64 length = length_of(lengths, batch, time);
    const int there = int(d - channel < VECTOR ? (d - channel < 0 ? 0 : d - channel) : VECTOR);
    float sums[WIDTH + 1][VECTOR] = {};
    if (there > 0 && begin < time) {
        const Operands o{x, x_batch, x_time, tail, tail_batch, reset_tail, reset_batch, resets, time, d};
        const Filter<VECTOR> filter(weight, bias, channel, there);
        Window<VECTOR> window;
        window.enter(o, batch, begin, channel, there);
        const T *from = x + batch * x_batch + channel, *up = dy + batch * dy_batch + channel;
        T* to = dx + batch * time * d + channel;
        float pending[WIDTH][VECTOR] = {}; // [j]: the gradient of token t - j so far
        i64 document = begin - HISTORY;    // where the document of the current token starts, if that matters
        for (i64 at = document > 0 ? document : 0; MASKS && resets && at < begin; at++)
            if (at < length && resets[batch * time + at]) document = at;

        auto step = [&](i64 t, const Channels<VECTOR>& raw, const Channels<VECTOR>& raw_dy, bool counts) {
            if (MASKS && counts && resets && resets[batch * time + t]) {
                document = t;
                window.restart(reset_tail + batch * reset_batch + channel, d, there);
            }
            float input[VECTOR];
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                input[i] = to_float(raw.values[i]);
                const float p = counts ? before_silu(to_float(raw_dy.values[i]), filter.apply(window, input[i], i)) : 0.0f;
#pragma unroll
                for (int j = HISTORY; j > 0; j--) {
                    const float tap = MASKS && j > t - document ? 0.0f : filter.taps[WIDTH - 1 - j][i];
                    pending[j][i] = fmaf(tap, p, pending[j - 1][i]);
                }
                pending[0][i] = filter.taps[WIDTH - 1][i] * p;
                const float own = t < end ? p : 0.0f; // later tokens are another thread's
                if (counts) { // padding may hold anything, and 0 times that is not 0
#pragma unroll
                    for (int k = 0; k < HISTORY; k++) sums[k][i] = fmaf(own, window.rows[k][i], sums[k][i]);
                    sums[WIDTH - 1][i] = fmaf(own, input[i], sums[WIDTH - 1][i]);
                    sums[WIDTH][i] += own;
                }
            }
            window.shift(input);
            // Token t - HISTORY has all that comes to it.
            const i64 done = t - HISTORY;
            if (done < begin || done >= end) return;
            Channels<VECTOR> out;
            const i64 place = done - (length - HISTORY); // in the new tail
            const bool kept = dnew_tail && place >= 0 && done < length && (!MASKS || done >= document);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                float gradient = pending[WIDTH - 1][i];
                if (kept && i < there) gradient += dnew_tail[(batch * HISTORY + place) * d + channel + i];
                out.values[i] = from_float<T>(gradient);
            }
            out.store(to + done * d, there);
        };
        // The tokens that have something to give, then those whose gradients are only to be written.
        const i64 beyond = end + HISTORY, last = beyond < length ? beyond : length;
        i64 t = begin;
        if (t + AHEAD <= last) {
            Channels<VECTOR> raw[AHEAD], raw_dy[AHEAD], next[AHEAD], next_dy[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                raw[k].load(from + (t + k) * x_time, there);
                raw_dy[k].load(up + (t + k) * dy_time, there);
            }
            for (; t + AHEAD <= last; t += AHEAD) {
                // The rows after these, or the last one again.
#pragma unroll
                for (int k = 0; k < AHEAD; k++) {
                    const i64 at = t + AHEAD + k < last ? t + AHEAD + k : last - 1;
                    next[k].load(from + at * x_time, there);
                    next_dy[k].load(up + at * dy_time, there);
                }
#pragma unroll
                for (int k = 0; k < AHEAD; k++) step(t + k, raw[k], raw_dy[k], true);
#pragma unroll
                for (int k = 0; k < AHEAD; k++) {
                    raw[k] = next[k];
                    raw_dy[k] = next_dy[k];
                }
            }
        }
        for (; t < beyond; t++) {
            Channels<VECTOR> raw, raw_dy;
#pragma unroll
            for (int i = 0; i < VECTOR; i++) raw.values[i] = raw_dy.values[i] = from_float<T>(0.0f);
            if (t < last) {
                raw.load(from + t * x_time, there);
                raw_dy.load(up + t * dy_time, there);
            }
            step(t, raw, raw_dy, t < last);
        }
    }

#pragma unroll
    for (int k = 0; k <= WIDTH; k++)
#pragma unroll
        for (int i = 0; i < VECTOR; i++) shared[warp][k][lane * VECTOR + i] = sums[k][i];
    __syncthreads();
    const i64 mine = first + threadIdx.x;
    if (mine >= d) return;
    float* row = parameters + (batch * gridDim.y + blockIdx.y) * d * (WIDTH + 1);
#pragma unroll
    for (int k = 0; k <= WIDTH; k++) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += shared[w][k][threadIdx.x];
        row[k < WIDTH ? mine * WIDTH + k : d * WIDTH + mine] = sum;
    }
}

/// The gradients of the tails: what the first WIDTH - 1 tokens of each document read of theirs.
///
/// grid (ceil(d / 128), batch), block 128, no shared memory. Arguments as `causal_conv1d_backward`'s, and
///
/// dtail   float [batch, WIDTH - 1, d]: of the tail that each row started from
/// dreset  float [batch, WIDTH - 1, d]: of the reset tail, the sum over the row's documents; null unless MASKS
extern "C" __global__ void __launch_bounds__(128)
causal_conv1d_backward_tails(const T* x, i64 x_batch, i64 x_time, const float* weight, const float* bias, const float* tail,
                             i64 tail_batch, const float* reset_tail, i64 reset_batch, const u8* resets,
                             const i64* lengths, const T* dy, i64 dy_batch, i64 dy_time, const float* dnew_tail,
                             float* dtail, float* dreset, i64 time, i64 d) {
    const i64 channel = i64(blockIdx.x) * 128 + threadIdx.x, batch = blockIdx.y;
    if (channel >= d) return;
    const i64 length = length_of(lengths, batch, time);
    const Filter<1> filter(weight, bias, channel, 1);
    const u8* starts = MASKS && resets ? resets + batch * time : nullptr;
    float first[ROWS] = {}, others[ROWS] = {};
    for (i64 start = 0; start < length || start == 0;) {
        // The document of `start`, and the next one.
        const bool reset = starts && start < length && starts[start];
        i64 next = start + 1;
        while (starts && next < length && !starts[next]) next++;
        if (!starts || next > length) next = length;
        float gradient[ROWS] = {};
        Window<1> window;
        window.restart((reset ? reset_tail + batch * reset_batch : tail + batch * tail_batch) + channel, d, 1);
#pragma unroll
        for (int j = 0; j < HISTORY; j++) {
            if (start + j >= next) break;
            const float input[1] = {to_float(x[batch * x_batch + (start + j) * x_time + channel])};
            const float p = before_silu(to_float(dy[batch * dy_batch + (start + j) * dy_time + channel]),
                                        filter.apply(window, input[0], 0));
#pragma unroll
            for (int k = 0; k < HISTORY; k++)
                if (k >= j) gradient[k] = fmaf(filter.taps[k >= j ? k - j : 0][0], p, gradient[k]);
            window.shift(input);
        }
        if (next == length && dnew_tail) {
            // The last document's tokens push the tail out of the window.
            const i64 pushed = length - start;
#pragma unroll
            for (int k = 0; k < HISTORY; k++)
                if (k >= pushed) gradient[k] += dnew_tail[(batch * HISTORY + k - pushed) * d + channel];
        }
#pragma unroll
        for (int k = 0; k < HISTORY; k++) {
            if (reset) {
                others[k] += gradient[k];
            } else {
                first[k] += gradient[k];
            }
        }
        if (next <= start) break;
        start = next;
    }
#pragma unroll
    for (int k = 0; k < HISTORY; k++) {
        dtail[(batch * HISTORY + k) * d + channel] = first[k];
        if (dreset) dreset[(batch * HISTORY + k) * d + channel] = others[k];
    }
}
