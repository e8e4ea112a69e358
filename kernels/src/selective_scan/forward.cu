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
// before every segment, and `selective_scan_forward` runs on all segments at once. Let `blocks` be those of one segment
// and `slots` twice the multiprocessors. One segment is best from `blocks` > slots / 2 on; else about slots / blocks
// segments of equal length, not shorter than 256 tokens.
#include "scan.cuh"

/// Tokens of a tile, and of a batch: those whose step sizes and gates are worked out together, while the batch before
/// goes through the states.
constexpr int TILE = 32 / int(sizeof(T));
constexpr int BATCH = 4;
/// One tile in use, one ready, one on its way.
constexpr int TILES = 3;
static_assert(CHECKPOINT % TILE == 0, "a checkpoint is at a tile's start");

enum { U, DELTA, Z };

template <int STREAMS> struct alignas(16) Tile {
    T rows[STREAMS][TILE][CHANNELS]; // u is replaced by y, token after token
    float projections[TILE][2][STATES];
    alignas(4) u8 flags[TILE];
};

struct Operands {
    const T *u, *delta, *b, *c, *z;
    i64 u_batch, u_time, delta_batch, delta_time, b_batch, b_time, c_batch, c_time, z_batch, z_time;
};

/// What a batch of tokens needs besides b and c.
struct Batch {
    float step[BATCH], input[BATCH], gate[BATCH];
};

/// A batch goes through the states, from row `i` of its tile on. `FLAGGED` if there may be padding or a document's start in
/// it; `reset` is this thread's part of the reset state.
template <bool FLAGGED, bool LOCAL, int STREAMS>
DEVICE void sweep(float (&h)[OWN], float& sum, const float (&rate)[OWN], const Batch& batch, Tile<STREAMS>& tile, int i,
                  const Place& place, float skip, const float* reset) {
#pragma unroll
    for (int k = 0; k < BATCH; k++) {
        const u8 flags = FLAGGED ? tile.flags[i + k] : u8(0);
        if (FLAGGED && flags == RESET) {
#pragma unroll
            for (int n = 0; n < OWN; n++) h[n] = reset ? reset[n] : 0.0f;
            sum = __int_as_float(0x7fffffff); // no longer a number: nothing of the start is left
        }
        const float step = batch.step[k], written = step * batch.input[k];
        float read[OWN];
        take(read, &tile.projections[i + k][0][place.part * OWN]);
        if (LOCAL) {
            sum += step;
#pragma unroll
            for (int n = 0; n < OWN; n++) h[n] = fmaf(exp2_fast(step * rate[n]), h[n], written * read[n]);
            continue;
        }
        float weight[OWN], sums[4] = {};
        take(weight, &tile.projections[i + k][1][place.part * OWN]);
#pragma unroll
        for (int n = 0; n < OWN; n++) {
            h[n] = fmaf(exp2_fast(step * rate[n]), h[n], written * read[n]);
            sums[n % 4] = fmaf(h[n], weight[n], sums[n % 4]);
        }
        float result = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
        result = fmaf(skip, batch.input[k], result);
        if constexpr (STREAMS == 3) result *= batch.gate[k];
        if (FLAGGED && flags == PADDING) result = 0.0f;
        if (place.part == 0) tile.rows[U][i + k][place.channel] = from_float<T>(result);
    }
}

/// One segment of one block. `LOCAL` is the first pass over segments.
template <bool LOCAL>
DEVICE void scan(const Operands& x, const float* a, const float* delta_bias, const float* d, const float* start,
                 const float* reset_state, i64 reset_batch, const u8* resets, const u8* valid, T* y, float* last,
                 float* checkpoints, float* delta_sum, i64 time, i64 d_inner, i64 segment) {
    constexpr int STREAMS = GATED && !LOCAL ? 3 : 2;
    __shared__ Tile<STREAMS> tiles[TILES];
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

    // A thread brings the same pieces of every tile, and takes the same pieces of y away.
    constexpr int OF_STREAM = TILE * PIECES;
    constexpr int EACH = (OF_STREAM + THREADS - 1) / THREADS;
    constexpr int APART = THREADS / PIECES; // rows from a thread's piece to its next one
    const int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES * WIDTH;
    const int channels = channels_there(d_inner);
    int there = channels - piece;
    there = OF_STREAM < THREADS && int(threadIdx.x) >= OF_STREAM ? -1 : there < 0 ? 0 : there > WIDTH ? WIDTH : there;
    Stream streams[STREAMS] = {{x.u, x.u_batch, x.u_time}, {x.delta, x.delta_batch, x.delta_time}};
    if constexpr (STREAMS == 3) streams[2] = {x.z, x.z_batch, x.z_time};
    bool vectors = true;
#pragma unroll
    for (int i = 0; i < STREAMS; i++) {
        vectors = vectors && streams[i].vectors;
        streams[i].data += (begin + row) * streams[i].stride + piece;
    }
    // Advances by a tile.
    auto copy = [&](Tile<STREAMS>& tile, i64 t) {
        if (there >= 0) {
            if (vectors && t + TILE <= end) {
#pragma unroll
                for (int i = 0; i < STREAMS; i++)
#pragma unroll
                    for (int k = 0; k < EACH; k++)
                        copy_async_16(&tile.rows[i][row + k * APART][piece], streams[i].data + k * APART * streams[i].stride,
                                      there * int(sizeof(T)));
            } else {
#pragma unroll
                for (int i = 0; i < STREAMS; i++)
#pragma unroll 1
                    for (int k = 0; k < EACH; k++)
                        fill_piece(&tile.rows[i][row + k * APART][piece], streams[i].data + k * APART * streams[i].stride,
                                   t + row + k * APART < end ? there : 0, i == DELTA ? no_step() : from_float<T>(0.0f));
            }
#pragma unroll
            for (int i = 0; i < STREAMS; i++) streams[i].data += TILE * streams[i].stride;
        }
        copy_async_commit();
#if MASKS
        if (threadIdx.x < TILE) tile.flags[threadIdx.x] = flags_of(resets, valid, batch * time, t + threadIdx.x, end);
#endif
    };

    // Likewise for b and c, of any alignment: loaded to registers, later put as floats.
    constexpr int VALUES = TILE * 2 * STATES / THREADS, ROWS_APART = THREADS / (2 * STATES);
    static_assert(VALUES * THREADS == TILE * 2 * STATES && ROWS_APART > 0, "a thread has whole columns");
    const int column = threadIdx.x % (2 * STATES), value_row = threadIdx.x / (2 * STATES);
    const i64 value_stride = column < STATES ? x.b_time : x.c_time;
    const T* value = (column < STATES ? x.b + batch * x.b_batch + column : x.c + batch * x.c_batch + column - STATES) +
                     (begin + value_row) * value_stride;
    T values[VALUES];
    auto load_values = [&](i64 t) {
#pragma unroll
        for (int k = 0; k < VALUES; k++)
            values[k] = t + value_row + k * ROWS_APART < end ? value[k * ROWS_APART * value_stride] : from_float<T>(0.0f);
        value += TILE * value_stride;
    };
    auto put_values = [&](Tile<STREAMS>& tile) {
#pragma unroll
        for (int k = 0; k < VALUES; k++) (&tile.projections[0][0][0])[threadIdx.x + k * THREADS] = to_float(values[k]);
    };

    // The steps and gates of the batch from row `i` of a tile on, which is token `t`.
    auto prepare = [&](Batch& to, const Tile<STREAMS>& tile, int i, i64 t) {
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            float unused;
            to.step[k] = step_size(to_float(tile.rows[DELTA][i + k][place.channel]) + bias, unused);
            to.input[k] = to_float(tile.rows[U][i + k][place.channel]);
            if (CHECKED && (MASKS ? tile.flags[i + k] == PADDING : t + k >= end)) to.step[k] = to.input[k] = 0.0f;
            if constexpr (STREAMS == 3) {
                const float z = to_float(tile.rows[Z][i + k][place.channel]);
                to.gate[k] = z * sigmoid(z);
            }
        }
    };
    T* out = y + (batch * time + begin + row) * d_inner + i64(blockIdx.x) * CHANNELS + piece;
    const bool whole = (u64(y) | u64(d_inner * sizeof(T))) % 16 == 0;
    // Writes the y of the tile of token `t`; advances by a tile.
    auto write = [&](const Tile<STREAMS>& tile, i64 t) {
        if constexpr (!LOCAL) {
#pragma unroll
            for (int k = 0; k < EACH; k++)
                if (there > 0 && t + row + k * APART < end)
                    write_piece(out + k * APART * d_inner, &tile.rows[U][row + k * APART][piece], there, whole);
            out += TILE * d_inner;
        }
    };

    copy(tiles[0], begin);
    load_values(begin);
    put_values(tiles[0]);
    copy(tiles[1], begin + TILE);
    load_values(begin + TILE);
    copy_async_wait<1>();
    __syncthreads();
    Batch current, next;
    prepare(current, tiles[0], 0, begin);
    int now = 0; // which tile is in use
    for (i64 t = begin; t < end; t += TILE) {
        Tile<STREAMS>& tile = tiles[now];
        Tile<STREAMS>& later = tiles[now == TILES - 1 ? 0 : now + 1];
        Tile<STREAMS>& free = tiles[now == 0 ? TILES - 1 : now - 1];
        if (!LOCAL && checkpoints && t % CHECKPOINT == 0 && exists) {
            const i64 kept = (time + CHECKPOINT - 1) / CHECKPOINT;
            float* to = checkpoints + ((batch * kept + t / CHECKPOINT) * STATES + place.part * OWN) * d_inner + channel;
#pragma unroll
            for (int n = 0; n < OWN; n++) to[n * d_inner] = h[n];
        }
#pragma unroll 1
        for (int i = 0; i < TILE; i += BATCH) {
            const bool turn = i == TILE - BATCH;
            if (turn) {
                // The next tile has to be there for its first batch, and the one before this is done with.
                put_values(later);
                copy_async_wait<0>();
                __syncthreads();
                if (t > begin) write(free, t - TILE);
                copy(free, t + 2 * TILE);
                load_values(t + 2 * TILE);
            }
            prepare(next, turn ? later : tile, turn ? 0 : i + BATCH, t + i + BATCH);
#if MASKS
            if (*reinterpret_cast<const u32*>(&tile.flags[i]) != 0) { // BATCH flags
                sweep<true, LOCAL>(h, sum, rate, current, tile, i, place, skip, exists ? reset_state + batch * reset_batch + state : nullptr);
            } else
#endif
                sweep<false, LOCAL>(h, sum, rate, current, tile, i, place, skip, nullptr);
            current = next;
        }
        now = now == TILES - 1 ? 0 : now + 1;
    }
    __syncthreads();
    write(tiles[now == 0 ? TILES - 1 : now - 1], begin + (end - begin - 1) / TILE * TILE);
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

/// The first pass over segments: what each of them but the last makes of a state of zero.
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
    if (blockIdx.z + 1 == gridDim.z) return;
    const Operands x{u,           delta,   b,      b,       u,      u_batch, u_time, delta_batch,
                     delta_time, b_batch, b_time, b_batch, b_time, u_batch, u_time};
    scan<true>(x, a, delta_bias, nullptr, nullptr, reset_state, reset_batch, resets, valid, nullptr, local, nullptr,
               delta_sum, time, d_inner, segment);
}
