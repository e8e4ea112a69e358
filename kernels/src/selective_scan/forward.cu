// The selective scan, forward:
//
//   h_t = exp(delta_t A) (reset_t ? h_reset : h_{t-1}) + delta_t B_t u_t,   y_t = (C_t h_t + D u_t) silu(z_t)
//
// A thread owns a channel (or a part of its states) and goes through time with the state in registers; channels are the
// fastest dimension, so that every access is coalesced without a transposed copy. A block's operands come to shared
// memory a tile ahead. A = -exp(..) is scaled by log2(e) once, so that a decay is one multiplication and one 2^x.
//
// A short batch leaves most of the card idle. Then time is cut into segments (grid.z): `selective_scan_local` finds what
// each segment adds to a state of zero and the sum of its step sizes, `selective_scan_combine` makes of these the state
// before every segment, and `selective_scan_forward` runs on all segments at once.
#include "scan.cuh"

/// Tokens of a tile.
constexpr int TILE = 32 / int(sizeof(T));
static_assert(CHECKPOINT % TILE == 0, "a checkpoint is at a tile's start");

enum { U, DELTA, Z };

template <int STREAMS> struct alignas(16) Tile {
    T rows[STREAMS][TILE][CHANNELS];
    float projections[TILE][2][STATES];
    u8 flags[TILE];
};

struct Operands {
    const T *u, *delta, *b, *c, *z;
    i64 u_batch, u_time, delta_batch, delta_time, b_batch, b_time, c_batch, c_time, z_batch, z_time;
};

/// One segment of one block. `LOCAL` is the first pass over segments.
template <bool LOCAL>
DEVICE void scan(const Operands& x, const float* a, const float* delta_bias, const float* d, const float* start,
                 const float* reset_state, i64 reset_batch, const u8* resets, const u8* valid, T* y, float* last,
                 float* checkpoints, float* delta_sum, i64 time, i64 d_inner, i64 segment) {
    constexpr int STREAMS = GATED && !LOCAL ? 3 : 2;
    __shared__ __align__(16) Tile<STREAMS> tiles[2];
    const Place place;
    const i64 batch = blockIdx.y, channel = i64(blockIdx.x) * CHANNELS + place.channel;
    const bool exists = channel < d_inner;
    const i64 begin = blockIdx.z * segment, end = begin + segment < time ? begin + segment : time;
    const i64 state = channel * STATES + place.part * OWN;

    float rate[OWN], h[OWN];
#pragma unroll
    for (int n = 0; n < OWN; n++) {
        rate[n] = exists ? LOG2E * a[state + n] : 0.0f;
        h[n] = exists && !LOCAL ? start[state + n] : 0.0f;
    }
    const float bias = exists && delta_bias ? delta_bias[channel] : 0.0f;
    const float skip = exists && d ? d[channel] : 0.0f;
    float sum = 0.0f;

    Rows<STREAMS> rows(d_inner);
    rows.set(U, x.u, x.u_batch, x.u_time);
    rows.set(DELTA, x.delta, x.delta_batch, x.delta_time);
    if constexpr (STREAMS == 3) rows.set(Z, x.z, x.z_batch, x.z_time);
    const T *b = x.b + batch * x.b_batch, *c = x.c + batch * x.c_batch;
    Projections<TILE> projections;

    auto copy = [&](Tile<STREAMS>& tile, i64 t) {
        rows.template copy<TILE>(&tile.rows[0][0][0], TILE * CHANNELS, t, end);
        copy_async_commit();
#if MASKS
        if (threadIdx.x < TILE) tile.flags[threadIdx.x] = flags_of(resets, valid, batch * time, t + threadIdx.x, end);
#endif
    };

    copy(tiles[0], begin);
    projections.load(b, x.b_time, c, x.c_time, begin, end);
    projections.put(&tiles[0].projections[0][0][0]);
    T* out = y + (batch * time + begin) * d_inner + channel;
    for (i64 t = begin; t < end; t += TILE) {
        Tile<STREAMS>& tile = tiles[(t - begin) / TILE % 2];
        Tile<STREAMS>& next = tiles[((t - begin) / TILE + 1) % 2];
        const bool more = t + TILE < end;
        copy_async_wait<0>();
        __syncthreads();
        if (more) {
            copy(next, t + TILE);
            projections.load(b, x.b_time, c, x.c_time, t + TILE, end);
        }
        if (!LOCAL && checkpoints && t % CHECKPOINT == 0 && exists) {
            const i64 kept = (time + CHECKPOINT - 1) / CHECKPOINT;
            float* to = checkpoints + ((batch * kept + t / CHECKPOINT) * STATES + place.part * OWN) * d_inner + channel;
#pragma unroll
            for (int n = 0; n < OWN; n++) to[n * d_inner] = h[n];
        }
        const int steps = more ? TILE : int(end - t);
#pragma unroll 4
        for (int i = 0; i < steps; i++) {
            float unused;
            float step = step_size(to_float(tile.rows[DELTA][i][place.channel]) + bias, unused);
            const float input = to_float(tile.rows[U][i][place.channel]);
#if MASKS
            const u8 flags = tile.flags[i];
            if (flags == PADDING) step = 0.0f;
            if (flags == RESET) {
#pragma unroll
                for (int n = 0; n < OWN; n++) h[n] = exists ? reset_state[batch * reset_batch + state + n] : 0.0f;
                sum = __int_as_float(0x7fffffff); // no longer a number: nothing of the start is left
            }
#endif
            const float write = step * input;
            float read[OWN];
            take(read, &tile.projections[i][0][place.part * OWN]);
            if (LOCAL) {
                sum += step;
#pragma unroll
                for (int n = 0; n < OWN; n++) h[n] = fmaf(exp2_fast(step * rate[n]), h[n], write * read[n]);
                continue;
            }
            float weight[OWN], sums[4] = {};
            take(weight, &tile.projections[i][1][place.part * OWN]);
#pragma unroll
            for (int n = 0; n < OWN; n++) {
                h[n] = fmaf(exp2_fast(step * rate[n]), h[n], write * read[n]);
                sums[n % 4] = fmaf(h[n], weight[n], sums[n % 4]);
            }
            float result = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
            result = fmaf(skip, input, result);
            if constexpr (STREAMS == 3) {
                const float gate = to_float(tile.rows[Z][i][place.channel]);
                result *= gate * sigmoid(gate);
            }
#if MASKS
            if (flags == PADDING) result = 0.0f;
#endif
            if (exists && place.part == 0) *out = from_float<T>(result);
            out += d_inner;
        }
        if (more) projections.put(&next.projections[0][0][0]);
    }
    if (!exists) return;
    if (LOCAL) {
        const i64 at = batch * gridDim.z + blockIdx.z;
#pragma unroll
        for (int n = 0; n < OWN; n++) last[at * d_inner * STATES + state + n] = h[n];
        if (place.part == 0) delta_sum[at * d_inner + channel] = sum;
    } else if (last && end == time) {
#pragma unroll
        for (int n = 0; n < OWN; n++) last[batch * d_inner * STATES + state + n] = h[n];
    }
}

/// The whole scan, or all segments of it.
///
/// grid  (ceil(d_inner / (128 / LANES)), batch, segments), block 128, no dynamic shared memory.
///
/// u, delta, z     ELEMENT [batch, time, d_inner], channels contiguous; z is not read unless GATED
/// b, c            ELEMENT [batch, time, STATES], states contiguous
/// *_batch, *_time strides of the operand before them in elements; any, but rows at multiples of 16 bytes are faster
/// a               float [d_inner, STATES]
/// delta_bias, d   float [d_inner] or null
/// start           float [batch or 1, (segments,) d_inner, STATES], the state before each segment: its strides over the
///                 batch (0 for one state for all rows) and over the segments come next
/// reset_state     float [batch or 1, d_inner, STATES] or null, with its batch stride
/// resets, valid   bool bytes [batch, time], contiguous, or null; both null unless MASKS
/// y               ELEMENT [batch, time, d_inner], contiguous
/// last            float [batch, d_inner, STATES] or null: the state after the last token
/// checkpoints     float [batch, ceil(time / CHECKPOINT), STATES, d_inner] or null: the state before every
///                 CHECKPOINT-th token, for the backward
/// segment         tokens of a segment, a multiple of CHECKPOINT; at least `time` when there is one segment
extern "C" __global__ void __launch_bounds__(128, 2)
selective_scan_forward(const T* u, i64 u_batch, i64 u_time, const T* delta, i64 delta_batch, i64 delta_time, const T* b,
                       i64 b_batch, i64 b_time, const T* c, i64 c_batch, i64 c_time, const T* z, i64 z_batch,
                       i64 z_time, const float* a, const float* delta_bias, const float* d, const float* start,
                       i64 start_batch, i64 start_segment, const float* reset_state, i64 reset_batch, const u8* resets,
                       const u8* valid, T* y, float* last, float* checkpoints, i64 time, i64 d_inner, i64 segment) {
    const Operands x{u,           delta,      b,       c,      z,       u_batch, u_time, delta_batch,
                     delta_time, b_batch,    b_time,  c_batch, c_time, z_batch, z_time};
    scan<false>(x, a, delta_bias, d, start + blockIdx.y * start_batch + blockIdx.z * start_segment, reset_state,
                reset_batch, resets, valid, y, last, checkpoints, nullptr, time, d_inner, segment);
}

/// The first pass over segments: what each of them makes of a state of zero.
///
/// grid and block as `selective_scan_forward`; the arguments of the same names are the same.
///
/// local      float [batch, segments, d_inner, STATES]: the state after the segment
/// delta_sum  float [batch, segments, d_inner]: the sum of its step sizes, not a number if a document starts in it
extern "C" __global__ void __launch_bounds__(128, 2)
selective_scan_local(const T* u, i64 u_batch, i64 u_time, const T* delta, i64 delta_batch, i64 delta_time, const T* b,
                     i64 b_batch, i64 b_time, const float* a, const float* delta_bias, const float* reset_state,
                     i64 reset_batch, const u8* resets, const u8* valid, float* local, float* delta_sum, i64 time,
                     i64 d_inner, i64 segment) {
    const Operands x{u,           delta,   b,      b,       u,      u_batch, u_time, delta_batch,
                     delta_time, b_batch, b_time, b_batch, b_time, u_batch, u_time};
    scan<true>(x, a, delta_bias, nullptr, nullptr, reset_state, reset_batch, resets, valid, nullptr, local, nullptr,
               delta_sum, time, d_inner, segment);
}
