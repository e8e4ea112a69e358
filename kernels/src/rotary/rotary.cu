// The rotary position embedding: channels i and i + d / 2 turn by position * frequency_i. Its backward is the same by the
// opposite angle.
//
// -DELEMENT=float|bf16: the heads.
#include "common.cuh"

typedef ELEMENT T;

struct Frequencies {
    float values[128];
};

/// grid (ceil(time * d / 2, 256), batch), block 256, no dynamic shared memory: a thread has a pair of one token and turns it
/// in every head, so that a sine serves all of them.
///
/// x            ELEMENT [batch, time, heads, d], strides over all but the channels
/// positions    i64 [batch or 1, time], strides over both
/// y            ELEMENT [batch, time, heads, d], contiguous
/// frequencies  radians per position, d / 2 of them
/// direction    1, or -1 to turn back
extern "C" __global__ void __launch_bounds__(256)
rotary(const T* x, i64 x_batch, i64 x_time, i64 x_head, const i64* positions, i64 positions_batch, i64 positions_time, T* y,
       i64 time, i64 heads, i64 half, float scale, float direction, const __grid_constant__ Frequencies frequencies) {
    const i64 at = i64(blockIdx.x) * 256 + threadIdx.x;
    if (at >= time * half) return;
    const i64 token = at / half, pair = at - token * half;
    const i64 position = positions[blockIdx.y * positions_batch + token * positions_time];
    float sine, cosine;
    sincosf(float(position) * frequencies.values[pair], &sine, &cosine);
    sine *= scale * direction;
    cosine *= scale;
    x += blockIdx.y * x_batch + token * x_time + pair;
    y += (blockIdx.y * time + token) * heads * 2 * half + pair;
#pragma unroll 4
    for (i64 head = 0; head < heads; head++) {
        const float first = to_float(x[head * x_head]), second = to_float(x[head * x_head + half]);
        y[head * 2 * half] = from_float<T>(first * cosine - second * sine);
        y[head * 2 * half + half] = from_float<T>(second * cosine + first * sine);
    }
}
