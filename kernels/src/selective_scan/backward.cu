// The selective scan, backward. With the gradients dy of y and dh of the last state, from the last token to the first:
//
//   ds = dy silu(z),  dz = dy s silu'(z)  where s = C h + D u
//   g_t = C_t ds_t + carry_t,  carry_{t-1} = a_t g_t (to the reset state's gradient in place of g_{t-1} at a reset)
//   dC = sum over channels of ds h,  dB = sum over channels of g delta u
//   du = D ds + delta sum_n g B,  w = a_t g_t h_{t-1},  ddelta = u sum_n g B + sum_n A w,  dA += delta w
//
// The states are computed again from the kept ones, a tile of CHECKPOINT tokens at a time, from the last tile to the
// first. The first sweep over a tile keeps the state before every fourth token in shared memory; then, from the last four
// tokens to the first, a second sweep keeps their states and decays in registers and computes what needs no g, and a third
// goes back through them. So there are two exponentials for a token's state.
//
// dB and dC are sums over channels, that is over threads. The matrix unit does the first part: with products of 32
// channels as a and a matrix that picks a column as b, `mma_tf32` adds four lanes' values and lays sixteen values side by
// side. What remains, 8 groups of lanes and 4 warps, is added in shared memory in a fixed order, and the sums of blocks by
// `selective_scan_sum_projections`. In fp32 the products are split in two, so that nothing is lost.
//
// Segments, which need not be the forward's: a multiprocessor holds two blocks. With `slots` twice the multiprocessors and
// slots / 2 < blocks < slots, a part of them would have one block only; then segments of p / (p + 1) of the time, where p is
// the least whole number with (slots - blocks) p >= blocks, are best: a long first one, and a short last one for the idle
// slots. Fewer blocks want equal segments as in the forward, more want one.
#include "scan.cuh"

/// Tokens whose states are in registers together.
constexpr int STEPS = 4;
constexpr int GROUPS = CHECKPOINT / STEPS;
/// Floats of a thread that hold the sums of its OWN values over four lanes.
constexpr int PARTIAL = OWN / 4;
constexpr bool EXACT = sizeof(T) == 4;
constexpr int STREAMS = GATED ? 4 : 3;
enum { U, DELTA, DY, Z };

struct alignas(16) Shared {
    T rows[2][STREAMS][CHECKPOINT][CHANNELS]; // u, delta, z are replaced by their gradients, token after token
    float states[GROUPS - 1][OWN / 4][THREADS][4];
    float projections[2][CHECKPOINT][2][STATES];
    float partial[2][STEPS][WARPS][32][PARTIAL];
};

/// Columns for `mma_tf32`: pick[j] = 1 in lanes of column j.
struct Picks {
    float even[4], odd[4];

    DEVICE Picks() {
        const int group = threadIdx.x % 32 / 4;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            even[j] = group == 2 * j ? 1.0f : 0.0f;
            odd[j] = group == 2 * j + 1 ? 1.0f : 0.0f;
        }
    }
};

/// `sums[0, 1]` become the sums of x[2t], x[2t + 1] over the four lanes of this lane's quad, t being its place in the quad;
/// `sums[2, 3]` those of x[8 + 2t], x[9 + 2t].
DEVICE void sum_quads(float (&sums)[4], const float (&x)[OWN], const Picks& pick) {
#pragma unroll
    for (int k = 0; k < 4; k++) sums[k] = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float low[2] = {x[2 * j], x[2 * j + 1]};
        const float high[2] = {OWN == 16 ? x[(8 + 2 * j) % OWN] : 0.0f, OWN == 16 ? x[(9 + 2 * j) % OWN] : 0.0f};
        if (EXACT) {
            auto upper = [](float v) { return __uint_as_float(__float_as_uint(v) & 0xffffe000u); };
            mma_tf32(sums, low[0] - upper(low[0]), high[0] - upper(high[0]), low[1] - upper(low[1]),
                     high[1] - upper(high[1]), pick.even[j], pick.odd[j]);
            mma_tf32(sums, upper(low[0]), upper(high[0]), upper(low[1]), upper(high[1]), pick.even[j], pick.odd[j]);
        } else {
            mma_tf32(sums, low[0], high[0], low[1], high[1], pick.even[j], pick.odd[j]);
        }
    }
}

/// Keeps a thread's partial sums of one step.
DEVICE void keep(float (&to)[WARPS][32][PARTIAL], const float (&sums)[4]) {
    float* at = to[threadIdx.x / 32][threadIdx.x % 32];
    if constexpr (PARTIAL == 4) {
        *reinterpret_cast<float4*>(at) = make_float4(sums[0], sums[1], sums[2], sums[3]);
    } else {
        *reinterpret_cast<float2*>(at) = make_float2(sums[0], sums[1]);
    }
}

/// Which sum of STEPS tokens a thread works on: `SHARE` neighbouring threads share one, each with every SHARE-th group of
/// lanes, so that they hit different banks.
constexpr int RESULTS = STEPS * STATES;
constexpr int SHARE = RESULTS < THREADS ? THREADS / RESULTS : 1;
constexpr int LANE_GROUPS = 8 / LANES;
static_assert(LANE_GROUPS % SHARE == 0, "the shares are even");

/// Adds the partial sums of STEPS tokens over the block and writes those of the first `count` tokens.
/// `to` is `[token][2][STATES]`.
DEVICE void finish(const float (&partial)[STEPS][WARPS][32][PARTIAL], float* to, int count) {
#pragma unroll
    for (int round = 0; round < (RESULTS * SHARE + THREADS - 1) / THREADS; round++) {
        const int i = (threadIdx.x + round * THREADS) / SHARE, share = threadIdx.x % SHARE;
        const int step = i / STATES, n = i % STATES, part = n / OWN, m = n % OWN;
        const float* from = &partial[step][0][(part * LANE_GROUPS + share) * 4 + m % 8 / 2][m % 2 + m / 8 * 2];
        float sums[WARPS] = {};
#pragma unroll
        for (int k = 0; k < LANE_GROUPS / SHARE; k++)
#pragma unroll
            for (int warp = 0; warp < WARPS; warp++) sums[warp] += from[warp * 32 * PARTIAL + k * SHARE * 4 * PARTIAL];
        float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
#pragma unroll
        for (int distance = 1; distance < SHARE; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
        if (share == 0 && step < count) to[step * 2 * STATES + n] = sum;
    }
}

/// The whole backward, or all segments of it.
///
/// grid  (ceil(d_inner / (128 / LANES)), batch, segments), block 128, dynamic shared memory
/// `selective_scan_backward_shared` bytes (a global of the module).
///
/// u, delta, b, c, z, a, delta_bias, d, reset_state, resets, valid, checkpoints, time, d_inner, segment: as the forward's
/// dy              ELEMENT [batch, time, d_inner] with its strides, channels contiguous
/// carry           float [batch, (segments,) d_inner, STATES] or null for zeros: the gradient of the state after each
///                 segment, contiguous within a segment; its strides over the batch and over the segments come next
/// du, ddelta, dz  ELEMENT [batch, time, d_inner], contiguous; dz is not written unless GATED
/// projections     float [blocks, batch, time, 2, STATES], blocks = grid.x: partial sums of db and dc
/// parameters      float [batch, segments, d_inner * STATES + 2 d_inner]: partial sums of da, then dd, then dbias
/// dstart          float [batch, d_inner, STATES] or null: the gradient of the state that each row started from
/// dreset          float [batch, segments, d_inner, STATES], or null unless MASKS: that of the reset state
extern "C" __global__ void __launch_bounds__(128, OWN == 16 ? 2 : 4)
selective_scan_backward(const T* u, i64 u_batch, i64 u_time, const T* delta, i64 delta_batch, i64 delta_time, const T* b,
                        i64 b_batch, i64 b_time, const T* c, i64 c_batch, i64 c_time, const T* z, i64 z_batch,
                        i64 z_time, const T* dy, i64 dy_batch, i64 dy_time, const float* a, const float* delta_bias,
                        const float* d, const float* reset_state, i64 reset_batch, const u8* resets, const u8* valid,
                        const float* checkpoints, const float* carry, i64 carry_batch, i64 carry_segment, T* du,
                        T* ddelta, T* dz, float* projections, float* parameters, float* dstart, float* dreset, i64 time,
                        i64 d_inner, i64 segment) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const Place place;
    const Picks pick;
    const i64 batch = blockIdx.y, first = i64(blockIdx.x) * CHANNELS, channel = first + place.channel;
    const bool exists = channel < d_inner;
    const i64 begin = blockIdx.z * segment, end = begin + segment < time ? begin + segment : time;
    const i64 state = channel * STATES + place.part * OWN;
    const i64 kept = (time + CHECKPOINT - 1) / CHECKPOINT;
    const i64 row = batch * time;

    float rate[OWN], g[OWN], da[OWN];
#pragma unroll
    for (int n = 0; n < OWN; n++) {
        rate[n] = exists ? LOG2E * a[state + n] : 0.0f;
        g[n] = exists && carry ? carry[batch * carry_batch + blockIdx.z * carry_segment + state + n] : 0.0f;
        da[n] = 0.0f;
    }
    const float bias = exists && delta_bias ? delta_bias[channel] : 0.0f;
    const float skip = exists && d ? d[channel] : 0.0f;
    float dd = 0.0f, dbias = 0.0f;
    bool fresh = true; // nothing written to dreset yet

    const Stream streams[4] = {{u, u_batch, u_time}, {delta, delta_batch, delta_time}, {dy, dy_batch, dy_time},
                               {GATED ? z : u, GATED ? z_batch : u_batch, GATED ? z_time : u_time}};
    const bool vectors = streams[U].vectors && streams[DELTA].vectors && streams[DY].vectors && streams[Z].vectors;
    const bool whole = (u64(du) | u64(ddelta) | u64(GATED ? dz : du) | u64(d_inner * sizeof(T))) % 16 == 0;
    const T *b_row = b + batch * b_batch, *c_row = c + batch * c_batch;

    // A thread brings the same pieces of every tile and takes the same pieces of the gradients away.
    constexpr int OF_STREAM = CHECKPOINT * PIECES;
    constexpr int EACH = (OF_STREAM + THREADS - 1) / THREADS;
    constexpr int APART = THREADS / PIECES; // rows from a thread's piece to its next one
    const int piece_row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES * WIDTH;
    int there = channels_there(d_inner) - piece;
    there = there < 0 || (OF_STREAM < THREADS && int(threadIdx.x) >= OF_STREAM) ? 0 : there > WIDTH ? WIDTH : there;
    auto copy_tile = [&](i64 t, int side) {
        if (OF_STREAM >= THREADS || int(threadIdx.x) < OF_STREAM) {
#pragma unroll
            for (int i = 0; i < STREAMS; i++) {
                const T* from = streams[i].data + (t + piece_row) * streams[i].stride + piece;
                T* to = &shared.rows[side][i][piece_row][piece];
                if (vectors && t + CHECKPOINT <= end) {
#pragma unroll
                    for (int k = 0; k < EACH; k++)
                        copy_async_16(to + k * APART * CHANNELS, from + k * APART * streams[i].stride, there * int(sizeof(T)));
                } else {
#pragma unroll 1
                    for (int k = 0; k < EACH; k++)
                        fill_piece(to + k * APART * CHANNELS, from + k * APART * streams[i].stride,
                                   t + piece_row + k * APART < end ? there : 0, i == DELTA ? no_step() : from_float<T>(0.0f));
                }
            }
        }
    };
    auto write_tile = [&](i64 t, int side) {
        if (there == 0) return;
#pragma unroll
        for (int i = 0; i < STREAMS; i++) {
            if (i == DY) continue;
            T* to = (i == U ? du : i == DELTA ? ddelta : dz) + (row + t + piece_row) * d_inner + first + piece;
            const T* from = &shared.rows[side][i][piece_row][piece];
            if (whole && there == WIDTH && t + CHECKPOINT <= end) {
#pragma unroll
                for (int k = 0; k < EACH; k++)
                    *reinterpret_cast<uint4*>(to + k * APART * d_inner) = *reinterpret_cast<const uint4*>(from + k * APART * CHANNELS);
            } else {
#pragma unroll 1
                for (int k = 0; k < EACH && t + piece_row + k * APART < end; k++)
                    write_piece(to + k * APART * d_inner, from + k * APART * CHANNELS, there, whole);
            }
        }
    };
    // The kept state of the tile at `t`: each thread brings its own.
    auto copy_state = [&](i64 t) {
        const float* from =
            checkpoints + ((batch * kept + t / CHECKPOINT) * STATES + place.part * OWN) * d_inner + channel;
#pragma unroll
        for (int n = 0; n < OWN; n++) {
            float* to = &shared.states[0][n / 4][threadIdx.x][n % 4];
            if (exists) {
                copy_async_4(to, from + n * d_inner);
            } else {
                *to = 0.0f;
            }
        }
    };
    auto read_state = [&](float(&h)[OWN], int group) {
#pragma unroll
        for (int n = 0; n < OWN; n += 4) {
            const float4 x = *reinterpret_cast<const float4*>(shared.states[group][n / 4][threadIdx.x]);
            h[n] = x.x;
            h[n + 1] = x.y;
            h[n + 2] = x.z;
            h[n + 3] = x.w;
        }
    };
    // Values of b and c of a group of tokens, from the last group to the first: loaded to registers, later put as floats.
    constexpr int VALUES = (STEPS * 2 * STATES + THREADS - 1) / THREADS, ROWS_APART = THREADS / (2 * STATES);
    static_assert(ROWS_APART > 0, "a thread has whole columns");
    const int column = threadIdx.x % (2 * STATES), value_row = threadIdx.x / (2 * STATES);
    const i64 value_stride = column < STATES ? b_time : c_time;
    const T* value = nullptr; // the first of the group's
    T values[VALUES];
    auto load_values = [&](i64 token) {
#pragma unroll
        for (int k = 0; k < VALUES; k++) {
            const int at = value_row + k * ROWS_APART;
            values[k] = at < STEPS && token + at < end ? value[k * ROWS_APART * value_stride] : from_float<T>(0.0f);
        }
        value -= STEPS * value_stride;
    };
    auto put_values = [&](int group, int side) {
#pragma unroll
        for (int k = 0; k < VALUES; k++) {
            const int at = value_row + k * ROWS_APART;
            if (at < STEPS) (&shared.projections[side][group * STEPS + at][0][0])[column] = to_float(values[k]);
        }
    };
    // The flags of the tile at `t`, a bit for each token.
    u32 no_token = 0, new_document = 0;
    auto read_flags = [&](i64 t) {
#if MASKS
        const int lane = threadIdx.x % 32;
        const u8 flags = lane < CHECKPOINT ? flags_of(resets, valid, row, t + lane, end) : u8(0);
        no_token = __ballot_sync(~0u, flags == PADDING);
        new_document = __ballot_sync(~0u, flags == RESET);
#endif
    };

    i64 t = begin + (end - begin - 1) / CHECKPOINT * CHECKPOINT;
    // The group's sums of dB and dC over this block.
    float* to = projections + ((blockIdx.x * i64(gridDim.y) + batch) * time + t + CHECKPOINT - STEPS) * 2 * STATES;
    int side = 0; // where the tile lies; the next one comes to the other side
    value = (column < STATES ? b_row + column : c_row + column - STATES) + (t + CHECKPOINT - STEPS + value_row) * value_stride;
    copy_state(t);
    copy_tile(t, 0);
    for (int group = GROUPS - 1; group >= 0; group--) {
        load_values(t + group * STEPS);
        put_values(group, 0);
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    if (t > begin) copy_tile(t - CHECKPOINT, 1);
    copy_async_commit();

    for (; t >= begin; t -= CHECKPOINT, side ^= 1) {
        auto& rows = shared.rows[side];
        auto& projected = shared.projections[side];
        read_flags(t);
        const int count = end - t < CHECKPOINT ? int(end - t) : CHECKPOINT; // tokens that exist
        // Whether token `i` of the tile is none, and whether a document starts there.
        auto padding = [&](int i) { return CHECKED && (MASKS ? no_token >> i & 1 : i >= count); };
        auto starts = [&](int i) { return MASKS && (new_document >> i & 1); };
        auto restart = [&](float(&h)[OWN]) {
#pragma unroll
            for (int n = 0; n < OWN; n++) h[n] = exists ? reset_state[batch * reset_batch + state + n] : 0.0f;
        };

        // First sweep: the states before every group but the first, whose state was kept. Steps are worked out a group
        // ahead.
        float h[OWN];
        read_state(h, 0);
        float step[STEPS], written[STEPS];
        auto prepare_steps = [&](int group) {
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                float unused;
                step[k] = step_size(to_float(rows[DELTA][group * STEPS + k][place.channel]) + bias, unused);
                if (padding(group * STEPS + k)) step[k] = 0.0f;
                written[k] = step[k] * to_float(rows[U][group * STEPS + k][place.channel]);
            }
        };
        prepare_steps(0);
#pragma unroll 1
        for (int group = 0; group < GROUPS - 1; group++) {
            if (group > 0) {
#pragma unroll
                for (int n = 0; n < OWN; n += 4)
                    *reinterpret_cast<float4*>(shared.states[group][n / 4][threadIdx.x]) =
                        make_float4(h[n], h[n + 1], h[n + 2], h[n + 3]);
            }
            float now[STEPS], added[STEPS];
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                now[k] = step[k];
                added[k] = written[k];
            }
            prepare_steps(group + 1); // for nothing at the last group
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                if (starts(group * STEPS + k)) restart(h);
                float read[OWN];
                take(read, &projected[group * STEPS + k][0][place.part * OWN]);
#pragma unroll
                for (int n = 0; n < OWN; n++) h[n] = fmaf(exp2_fast(now[k] * rate[n]), h[n], added[k] * read[n]);
            }
        }

        // What the second sweep over a group needs, worked out while the third goes over the group after it: the steps,
        // their slopes d delta / d raw, ds, and dy silu'(z).
        float steps[STEPS], slopes[STEPS], ds[STEPS];
        [[maybe_unused]] float dgate[STEPS] = {};
        auto prepare = [&](int k, int group) {
            const int at = group * STEPS + k;
            const float raw = to_float(rows[DELTA][at][place.channel]) + bias;
            float y;
            steps[k] = step_size(raw, y);
            slopes[k] = SOFTPLUS ? (raw >= 0.0f ? 1.0f : y) * reciprocal(1.0f + y) : 1.0f;
            ds[k] = to_float(rows[DY][at][place.channel]);
            if (padding(group * STEPS + k)) steps[k] = slopes[k] = ds[k] = 0.0f;
#if GATED
            const float gate = to_float(rows[Z][at][place.channel]), open = sigmoid(gate), opened = gate * open;
            dgate[k] = ds[k] * fmaf(opened, 1.0f - open, open);
            ds[k] *= opened;
#endif
        };
#pragma unroll
        for (int k = 0; k < STEPS; k++) prepare(k, GROUPS - 1);

#pragma unroll 1
        for (int group = GROUPS - 1; group >= 0; group--) {
            const int previous = group > 0 ? group - 1 : 0;
            const bool more = t > begin;
            if (more) load_values(t - CHECKPOINT + group * STEPS);

            // Second sweep: states and decays of the group, and what follows from them alone.
            float before[STEPS][OWN], decay[STEPS][OWN];
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                const int i = group * STEPS + k;
                if (starts(i)) restart(h);
                const float input = to_float(rows[U][i][place.channel]), write = steps[k] * input;
                float read[OWN], weight[OWN], product[OWN], s[4] = {};
                take(read, &projected[i][0][place.part * OWN]);
                take(weight, &projected[i][1][place.part * OWN]);
#pragma unroll
                for (int n = 0; n < OWN; n++) {
                    before[k][n] = h[n];
                    decay[k][n] = exp2_fast(steps[k] * rate[n]);
                    h[n] = fmaf(decay[k][n], h[n], write * read[n]);
                    if (GATED) s[n % 4] = fmaf(weight[n], h[n], s[n % 4]);
                    product[n] = ds[k] * h[n];
                }
                float sums[4];
                sum_quads(sums, product, pick);
                keep(shared.partial[1][k], sums);
#if GATED
                const float output = fmaf(skip, input, sum_lanes((s[0] + s[1]) + (s[2] + s[3])));
                if (place.part == 0) rows[Z][i][place.channel] = from_float<T>(dgate[k] * output);
#endif
            }
            if (group == 0 && more) {
                copy_state(t - CHECKPOINT);
                copy_async_commit();
            }
            __syncthreads();
            finish(shared.partial[1], to + STATES, count - group * STEPS);

            // Third sweep, back through the group.
#pragma unroll
            for (int k = STEPS - 1; k >= 0; k--) {
                const int i = group * STEPS + k;
                const float input = to_float(rows[U][i][place.channel]), write = steps[k] * input;
                float read[OWN], weight[OWN], product[OWN];
                take(read, &projected[i][0][place.part * OWN]);
                take(weight, &projected[i][1][place.part * OWN]);
                float written[2] = {}, decayed[2] = {};
#pragma unroll
                for (int n = 0; n < OWN; n++) {
                    g[n] = fmaf(weight[n], ds[k], g[n]);
                    product[n] = write * g[n];
                    written[n % 2] = fmaf(g[n], read[n], written[n % 2]);
                    g[n] *= decay[k][n];
                    const float w = g[n] * before[k][n];
                    da[n] = fmaf(steps[k], w, da[n]);
                    decayed[n % 2] = fmaf(rate[n], w, decayed[n % 2]);
                }
                float sums[4];
                sum_quads(sums, product, pick);
                keep(shared.partial[0][k], sums);
                const float gb = sum_lanes(written[0] + written[1]), aw = sum_lanes(decayed[0] + decayed[1]);
                const float dinput = fmaf(skip, ds[k], steps[k] * gb), dstep = slopes[k] * fmaf(input, gb, LN2 * aw);
                dd = fmaf(ds[k], input, dd);
                dbias += dstep;
                if (place.part == 0) {
                    rows[U][i][place.channel] = from_float<T>(dinput);
                    rows[DELTA][i][place.channel] = from_float<T>(dstep);
                }
                if (starts(i)) {
                    if (exists) {
                        float* sum = dreset + (batch * gridDim.z + blockIdx.z) * d_inner * STATES + state;
#pragma unroll
                        for (int n = 0; n < OWN; n++) sum[n] = fresh ? g[n] : sum[n] + g[n];
                    }
                    fresh = false;
#pragma unroll
                    for (int n = 0; n < OWN; n++) g[n] = 0.0f;
                }
                // The group before this one; for nothing at the first group.
                if (k == 1) read_state(h, previous);
                prepare(k, previous);
            }
            __syncthreads();
            finish(shared.partial[0], to, count - group * STEPS);
            to -= STEPS * 2 * STATES;
            if (more) put_values(group, side ^ 1);
        }
        copy_async_wait<0>();
        __syncthreads();
        write_tile(t, side);
        if (t - CHECKPOINT > begin) copy_tile(t - 2 * CHECKPOINT, side);
        copy_async_commit();
    }

    if (!exists) return;
    const i64 at = batch * gridDim.z + blockIdx.z;
    float* sums = parameters + at * d_inner * (STATES + 2);
#pragma unroll
    for (int n = 0; n < OWN; n++) {
        sums[state + n] = da[n];
        if (dstart && begin == 0) dstart[batch * d_inner * STATES + state + n] = g[n];
#if MASKS
        if (dreset && fresh) dreset[at * d_inner * STATES + state + n] = 0.0f;
#endif
    }
    if (place.part == 0) {
        sums[d_inner * STATES + channel] = dd;
        sums[d_inner * (STATES + 1) + channel] = dbias;
    }
}

/// The bytes of dynamic shared memory that `selective_scan_backward` needs.
extern "C" __device__ __constant__ int selective_scan_backward_shared = sizeof(Shared);

/// The first pass over segments: the gradient that each of them but the first passes to the state before it when none comes
/// to the state after it. grid and block as `selective_scan_backward`, no dynamic shared memory; arguments of the same names are
/// the same.
///
/// local      float [batch, segments, d_inner, STATES]
/// delta_sum  float [batch, segments, d_inner]: as that of `selective_scan_local`
extern "C" __global__ void __launch_bounds__(128)
selective_scan_local_backward(const T* delta, i64 delta_batch, i64 delta_time, const T* c, i64 c_batch, i64 c_time,
                              const T* z, i64 z_batch, i64 z_time, const T* dy, i64 dy_batch, i64 dy_time,
                              const float* a, const float* delta_bias, const u8* resets, const u8* valid, float* local,
                              float* delta_sum, i64 time, i64 d_inner, i64 segment) {
    if (blockIdx.z == 0) return;
    constexpr int TILE = 32 / int(sizeof(T));
    __shared__ __align__(16) T rows[STREAMS - 1][TILE][CHANNELS];
    __shared__ __align__(16) float weights[TILE][STATES];
    const Place place;
    const i64 batch = blockIdx.y, channel = i64(blockIdx.x) * CHANNELS + place.channel;
    const bool exists = channel < d_inner;
    const i64 begin = blockIdx.z * segment, end = begin + segment < time ? begin + segment : time;
    const i64 state = channel * STATES + place.part * OWN;
    float rate[OWN], g[OWN], sum = 0.0f;
#pragma unroll
    for (int n = 0; n < OWN; n++) {
        rate[n] = exists ? LOG2E * a[state + n] : 0.0f;
        g[n] = 0.0f;
    }
    const float bias = exists && delta_bias ? delta_bias[channel] : 0.0f;
    const Stream streams[3] = {{delta, delta_batch, delta_time}, {dy, dy_batch, dy_time},
                               {GATED ? z : dy, GATED ? z_batch : dy_batch, GATED ? z_time : dy_time}};
    const int channels = channels_there(d_inner);
    for (i64 t = begin + (end - begin - 1) / TILE * TILE; t >= begin; t -= TILE) {
#pragma unroll
        for (int i = 0; i < STREAMS - 1; i++)
            for (int k = threadIdx.x; k < TILE * PIECES; k += THREADS) {
                const int row = k / PIECES, piece = k % PIECES * WIDTH, left = channels - piece;
                const int there = left < 0 || t + row >= end ? 0 : left > WIDTH ? WIDTH : left;
                const T* data = there > 0 ? streams[i].data + (t + row) * streams[i].stride + piece : streams[i].data;
                if (streams[i].vectors) {
                    copy_async_16(&rows[i][row][piece], data, there * int(sizeof(T)));
                } else {
                    fill_piece(&rows[i][row][piece], data, there, from_float<T>(0.0f));
                }
            }
        copy_async_commit();
        for (int i = threadIdx.x; i < TILE * STATES; i += THREADS) {
            const i64 token = t + i / STATES;
            weights[i / STATES][i % STATES] =
                token < end ? to_float(c[batch * c_batch + token * c_time + i % STATES]) : 0.0f;
        }
        copy_async_wait<0>();
        __syncthreads();
#pragma unroll 2
        for (int k = TILE - 1; k >= 0; k--) {
            if (t + k >= end) continue;
            const u8 flags = MASKS ? flags_of(resets, valid, batch * time, t + k, end) : 0;
            if (flags == PADDING) continue;
            float unused;
            const float step = step_size(to_float(rows[0][k][place.channel]) + bias, unused);
            float ds = to_float(rows[1][k][place.channel]);
#if GATED
            const float gate = to_float(rows[2][k][place.channel]);
            ds *= gate * sigmoid(gate);
#endif
            sum += step;
            float weight[OWN];
            take(weight, &weights[k][place.part * OWN]);
#pragma unroll
            for (int n = 0; n < OWN; n++) g[n] = exp2_fast(step * rate[n]) * fmaf(weight[n], ds, g[n]);
            if (flags == RESET) {
                sum = __int_as_float(0x7fffffff);
#pragma unroll
                for (int n = 0; n < OWN; n++) g[n] = 0.0f;
            }
        }
        __syncthreads();
    }
    if (!exists) return;
    const i64 at = batch * gridDim.z + blockIdx.z;
#pragma unroll
    for (int n = 0; n < OWN; n++) local[at * d_inner * STATES + state + n] = g[n];
    if (place.part == 0) delta_sum[at * d_inner + channel] = sum;
}
