// The causal depthwise convolution, forward: y_t = silu(bias + sum_k weight_k x_{t - (WIDTH - 1) + k}), where what comes
// before the row or the document is a tail.
//
// A thread has four neighbouring channels and a chunk of tokens; the window stays in registers. It reads the few tokens
// before its chunk again.
#include "conv.cuh"

constexpr int VECTOR = 4;
/// Tokens whose rows are asked for together.
constexpr int AHEAD = 8;

/// grid (ceil(ceil(d / 4) * ceil(time / chunk) / 128), batch), block 128, no dynamic shared memory.
///
/// x           ELEMENT [batch, time, d] with its strides over batch and time in elements, channels contiguous
/// weight      float [d, WIDTH], the oldest input's tap first; bias: float [d] or null
/// tail        float [batch or 1, WIDTH - 1, d], oldest first, with its batch stride (0 for one tail for all rows);
///             not read if WIDTH is 1
/// reset_tail  float, as tail, or null; resets: bool bytes [batch, time] or null; lengths: int64 [batch] or null;
///             all null unless MASKS
/// y           ELEMENT [batch, time, d], contiguous
/// new_tail    float [batch, WIDTH - 1, d], or null
/// chunk       tokens of a thread, a multiple of 8; 48 is good
extern "C" __global__ void __launch_bounds__(128, WIDTH > 4 ? 3 : MASKS || sizeof(T) == 4 ? 4 : 6)
causal_conv1d_forward(const T* x, i64 x_batch, i64 x_time, const float* weight, const float* bias, const float* tail,
                      i64 tail_batch, const float* reset_tail, i64 reset_batch, const u8* resets, const i64* lengths, T* y,
                      float* new_tail, i64 time, i64 d, i64 chunk) {
    const i64 groups = (d + VECTOR - 1) / VECTOR, i = i64(blockIdx.x) * 128 + threadIdx.x;
    const i64 batch = blockIdx.y, begin = i / groups * chunk, channel = i % groups * VECTOR;
    if (begin >= time) return;
    const i64 length = length_of(lengths, batch, time);
    const i64 end = begin + chunk < time ? begin + chunk : time, last = end < length ? end : length;
    const int there = int(d - channel < VECTOR ? d - channel : VECTOR);
    const Operands o{x, x_batch, x_time, tail, tail_batch, reset_tail, reset_batch, resets, time, d};
    const Filter<VECTOR> filter(weight, bias, channel, there);
    Window<VECTOR> window;
    window.enter(o, batch, begin, channel, there);

    const T* from = x + batch * x_batch + channel;
    T* to = y + batch * time * d + channel;
    auto step = [&](i64 t, const Channels<VECTOR>& raw) {
        if (MASKS && resets && resets[batch * time + t])
            window.restart(reset_tail + batch * reset_batch + channel, d, there);
        float input[VECTOR];
        Channels<VECTOR> out;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            input[i] = to_float(raw.values[i]);
            float sum = filter.apply(window, input[i], i);
#if SILU
            sum *= sigmoid(sum);
#endif
            out.values[i] = from_float<T>(sum);
        }
        window.shift(input);
        out.store(to + t * d, there);
    };
    i64 t = begin;
    for (; t + AHEAD <= last; t += AHEAD) {
        Channels<VECTOR> raw[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) raw[k].load(from + (t + k) * x_time, there);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) step(t + k, raw[k]);
    }
    for (; t < last; t++) {
        Channels<VECTOR> raw;
        raw.load(from + t * x_time, there);
        step(t, raw);
    }
    // The last token's window, or the tail itself if there is no token.
    if (HISTORY > 0 && new_tail && begin < (length > 0 ? length : 1) && length <= end) {
#pragma unroll
        for (int k = 0; k < HISTORY; k++)
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
                if (i < there) new_tail[(batch * HISTORY + k) * d + channel + i] = window.rows[k][i];
    }
    for (t = t > begin ? t : begin; t < end; t++) {
        Channels<VECTOR> zero;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) zero.values[i] = from_float<T>(0.0f);
        zero.store(to + t * d, there);
    }
}
