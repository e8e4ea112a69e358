// What the attention kernels share: tiles in shared memory, products of tiles on the tensor cores, and who sees whom.
//
// A tile is `[rows, width]` of bf16 in panels of 64 columns: 128 bytes for each row of a panel, whose eight 16-byte chunks
// stand in the order `chunk ^ (row % 8)`. `ldmatrix` reads it without bank conflicts, and it is the layout that `wgmma`
// calls the 128-byte swizzle; tiles begin at multiples of 1024 bytes.
//
// A warp owns 16 rows of every product, in the layout of m16n8k16: lane `4 g + t` holds rows g and g + 8 of them, of
// every 8 columns 2 t and 2 t + 1. Four warps of `wgmma` hold their 64 rows in the same way, so the kernels are written
// once and only the functions below differ.
//
// Macros: DQK and DV, widths of a head (multiples of 16, at most 128), and RAGGED, 0 or 1. The others have a choice for
// each architecture: WGMMA and APART, 0 or 1; WARPS that compute; STREAM rows of a tile that is streamed; STAGES, buffers of
// such tiles; BLOCKS that share a multiprocessor. If APART, one more warpgroup loads the tiles, and the others wait for
// tiles only, not for each other, so that one multiplies while another makes weights; otherwise all warps load.
#pragma once
#include "common.cuh"

#ifndef WGMMA
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WGMMA (DQK % 64 == 0 && DV % 64 == 0)
#else
#define WGMMA 0
#endif
#endif
#ifndef STREAM
// Some cards have 99 KiB of shared memory for a block, others 163 or more.
#if (__CUDA_ARCH__ % 100 >= 60 || __CUDA_ARCH__ >= 1200) && DQK + DV > 192
#define STREAM 32
#else
#define STREAM 64
#endif
#endif
#ifndef APART
#define APART (WGMMA && MAY_BE_APART)
#endif
#ifndef WARPS
#define WARPS (APART ? APART_WARPS : 8)
#endif
#ifndef STAGES
#define STAGES (APART ? APART_STAGES : 2)
#endif
#ifndef BLOCKS
#define BLOCKS (APART ? 1 : TOGETHER_BLOCKS)
#endif

/// Threads that compute, and all.
constexpr int THREADS = 32 * WARPS, ALL_THREADS = THREADS + (APART ? 128 : 0);
/// Rows that a block keeps while tiles stream by.
constexpr int ROWS = 16 * WARPS;
/// Rows that skip a tile together.
constexpr int UNIT = WGMMA ? 64 : 16;
/// Minus infinity.
#define NEVER __int_as_float(0xff800000)

__host__ __device__ constexpr int panels(int width) { return (width + 63) / 64; }
__host__ __device__ constexpr int tile_bytes(int rows, int width) { return panels(width) * rows * 128; }

/// The same for all lanes, and the compiler knows it.
DEVICE int warp_index() { return __shfl_sync(~0u, int(threadIdx.x / 32), 0); }

struct Matrix {
    const bf16* at;
    i64 row;
};

DEVICE Matrix matrix(const bf16* at, i64 batch_stride, i64 head_stride, i64 row, i64 batch, i64 head) {
    return {at + batch * batch_stride + head * head_stride, row};
}

/// 16 bytes, or zeros; nothing is read for zeros.
DEVICE void copy_chunk(u32 to, const bf16* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

/// Threads that load streamed tiles.
constexpr int LOADERS = APART ? 128 : THREADS;

/// Rows `first ..` of a matrix of `count` rows into a tile, by `BY` threads of which this one is `index`, without waiting.
/// Rows that it does not have are zeros.
template <int R, int WIDTH, int BY> DEVICE void load_tile(u32 tile, Matrix from, int first, int count, int index) {
    constexpr int CHUNKS = WIDTH / 8, STEP = BY / CHUNKS;
    if constexpr (BY % CHUNKS == 0 && (STEP % 8 == 0 || 8 % STEP == 0)) {
        // A thread has the same chunk of every STEP-th row, which stands at one of PERIOD places in its row.
        constexpr int PERIOD = STEP % 8 == 0 ? 1 : 8 / STEP;
        int row = index / CHUNKS, chunk = index % CHUNKS, left = count - first - row;
        u32 to[PERIOD];
#pragma unroll
        for (int i = 0; i < PERIOD; i++)
            to[i] = tile + (chunk / 8) * (R * 128) + row * 128 + ((chunk % 8) ^ ((row + i * STEP) % 8)) * 16;
        const bf16* source = from.at + (first + row) * from.row + chunk * 8;
        i64 stride = STEP * from.row;
#pragma unroll
        for (int i = 0; i < (R + STEP - 1) / STEP; i++) {
            if (R % STEP == 0 || row + i * STEP < R) copy_chunk(to[i % PERIOD] + i * (STEP * 128), source, left > i * STEP);
            source += stride;
        }
    } else {
#pragma unroll
        for (int i = 0; i < (R * CHUNKS + BY - 1) / BY; i++) {
            int at = index + i * BY;
            if ((R * CHUNKS) % BY != 0 && at >= R * CHUNKS) break;
            int row = at / CHUNKS, chunk = at % CHUNKS;
            u32 to = tile + (chunk / 8) * (R * 128) + row * 128 + ((chunk % 8) ^ (row % 8)) * 16;
            copy_chunk(to, from.at + (first + row) * from.row + chunk * 8, first + row < count);
        }
    }
}

/// The buffers of streamed tiles, in their order.
struct Ring {
    /// Of the barriers: for each buffer one that says that it is full, then for each one that says that it is empty.
    u32 barriers;
    int stage, round;
    /// A buffer that products still read, or -1.
    int busy;

    DEVICE void advance() {
        if (++stage == STAGES) stage = 0, round ^= 1;
    }
};
constexpr int RING_BYTES = 2 * STAGES * 8;

DEVICE void barrier_wait(u32 barrier, int round) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\nDONE:\n}\n" ::"r"(barrier),
        "r"(round)
        : "memory");
#endif
}

DEVICE Ring make_ring(u32 barriers) {
    if (APART) {
        if (threadIdx.x < 2 * STAGES) {
            int arrivals = threadIdx.x < STAGES ? LOADERS : WARPS;
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barriers + threadIdx.x * 8), "r"(arrivals) : "memory");
        }
        __syncthreads();
    }
    return {barriers, 0, 0, -1};
}

DEVICE u32 pack(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

/// Accumulators as the left factor of the next product.
template <int N> DEVICE void as_factor(u32 (&a)[N / 16][4], const float (&d)[N / 8][4]) {
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        a[k][0] = pack(d[2 * k][0], d[2 * k][1]);
        a[k][1] = pack(d[2 * k][2], d[2 * k][3]);
        a[k][2] = pack(d[2 * k + 1][0], d[2 * k + 1][1]);
        a[k][3] = pack(d[2 * k + 1][2], d[2 * k + 1][3]);
    }
}

template <int N> DEVICE void zero(float (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) d[n][i] = 0.0f;
}

DEVICE void load_matrices(u32 (&a)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address)
                 : "memory");
}

#if WGMMA

DEVICE u64 descriptor(u32 address, u32 leading) {
    return u64(address >> 4 & 0x3FFF) | u64(leading >> 4) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}

#define D4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define D32 D4(0), D4(1), D4(2), D4(3), D4(4), D4(5), D4(6), D4(7)
#define D64 D32, D4(8), D4(9), D4(10), D4(11), D4(12), D4(13), D4(14), D4(15)
#define NAMES32                                                                                                       \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"   \
    "%30,%31}"
#define NAMES64                                                                                                       \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"   \
    "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,"  \
    "%58,%59,%60,%61,%62,%63}"

/// d = a b (+ d if `more`): a from registers, b's rows along the sum.
DEVICE void wgmma(float (&d)[8][4], const u32 (&a)[4], u64 b, int more) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " NAMES32 ", {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}\n"
                 : D32
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more), "n"(1));
}
DEVICE void wgmma(float (&d)[16][4], const u32 (&a)[4], u64 b, int more) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " NAMES64 ", {%64,%65,%66,%67}, %68, p, 1, 1, %70;\n}\n"
                 : D64
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more), "n"(1));
}
/// d = a b^T (+ d if `more`): a from shared memory, b's columns along the sum.
DEVICE void wgmma(float (&d)[8][4], u64 a, u64 b, int more) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " NAMES32 ", %32, %33, p, 1, 1, 0, 0;\n}\n"
                 : D32
                 : "l"(a), "l"(b), "r"(more));
}
DEVICE void wgmma(float (&d)[16][4], u64 a, u64 b, int more) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " NAMES64 ", %64, %65, p, 1, 1, 0, 0;\n}\n"
                 : D64
                 : "l"(a), "l"(b), "r"(more));
}

/// Keeps the compiler from moving uses of registers over what is written between.
template <int N> DEVICE void settle(float (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
        asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}
template <int N> DEVICE void settle(u32 (&a)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
        asm volatile("" : "+r"(a[n][0]), "+r"(a[n][1]), "+r"(a[n][2]), "+r"(a[n][3])::"memory");
}
/// Before products whose registers were written.
DEVICE void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// The products since the last call are one group.
DEVICE void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Until at most `N` groups are on their way.
template <int N> DEVICE void wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
/// Makes what this thread has written to shared memory known to the tensor cores.
DEVICE void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// d = a b^T for the rows of this warp of tile a `[R, K]` and tile b `[N, K]`.
template <int N, int K, int R> DEVICE void rows_by_rows(float (&d)[N / 8][4], u32 a, u32 b) {
    u32 mine = a + warp_index() / 4 * (64 * 128);
#pragma unroll
    for (int k = 0; k < K / 16; k++)
        wgmma(d, descriptor(mine + k / 4 * (R * 128) + k % 4 * 32, 0), descriptor(b + k / 4 * (N * 128) + k % 4 * 32, 0), k > 0);
}
/// d += a b for tile b `[K, N]`.
template <int N, int K> DEVICE void factor_by_columns(float (&d)[N / 8][4], const u32 (&a)[K / 16][4], u32 b) {
#pragma unroll
    for (int k = 0; k < K / 16; k++) wgmma(d, a[k], descriptor(b + k * 2048, K * 128), 1);
}

#else

template <int N> DEVICE void settle(float (&)[N][4]) {}
template <int N> DEVICE void settle(u32 (&)[N][4]) {}
DEVICE void begin() {}
DEVICE void commit() {}
template <int N> DEVICE void wait() {}
DEVICE void publish() {}

DEVICE void load_matrices_across(u32 (&a)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address)
                 : "memory");
}

DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <int N, int K> DEVICE void step_by_rows(float (&d)[N / 8][4], const u32 (&a)[4], u32 b, int k) {
    int lane = threadIdx.x % 32;
    u32 at = b + k / 4 * (N * 128) + (lane / 16 * 8 + lane % 8) * 128 + ((k % 4 * 2 + lane / 8 % 2) ^ (lane % 8)) * 16;
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
        u32 two[4];
        load_matrices(two, at + n * 2048);
        mma(d[2 * n], a, two[0], two[1]);
        mma(d[2 * n + 1], a, two[2], two[3]);
    }
}

/// d = a b^T for the rows of this warp of tile a `[R, K]` and tile b `[N, K]`.
template <int N, int K, int R> DEVICE void rows_by_rows(float (&d)[N / 8][4], u32 a, u32 b) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 at = a + (warp * 16 + (lane / 8 % 2) * 8 + lane % 8) * 128;
    zero(d);
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
        u32 factor[4];
        load_matrices(factor, at + k / 4 * (R * 128) + ((k % 4 * 2 + lane / 16) ^ (lane % 8)) * 16);
        step_by_rows<N, K>(d, factor, b, k);
    }
}
/// d += a b for tile b `[K, N]`.
template <int N, int K> DEVICE void factor_by_columns(float (&d)[N / 8][4], const u32 (&a)[K / 16][4], u32 b) {
    int lane = threadIdx.x % 32;
    u32 at = b + (lane / 8 % 2 * 8 + lane % 8) * 128;
#pragma unroll
    for (int k = 0; k < K / 16; k++)
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            u32 two[4];
            load_matrices_across(two, at + n / 4 * (K * 128) + k * 2048 + ((n % 4 * 2 + lane / 16) ^ (lane % 8)) * 16);
            mma(d[2 * n], a[k], two[0], two[1]);
            mma(d[2 * n + 1], a[k], two[2], two[3]);
        }
}

#endif

// The protocol of the ring. `load(stage)` loads the next tile with `load_tile`.

/// The loading warpgroup's whole work. It gives up registers, which the others take.
template <typename Load> DEVICE void load_all(Ring ring, int tiles, Load load) {
#if APART
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(WARPS == 12 ? 32 : 24));
#endif
    for (int tile = 0; tile < tiles; tile++) {
        // A fresh barrier counts as passed in the round before the first.
        barrier_wait(ring.barriers + (STAGES + ring.stage) * 8, ring.round ^ 1);
        load(ring.stage);
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(ring.barriers + ring.stage * 8) : "memory");
        ring.advance();
    }
    copy_async_wait<0>();
}

/// What the computing warpgroups begin with.
DEVICE void take_registers() {
#if APART
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(WARPS == 12 ? 160 : 240));
#endif
}

/// Where all warps load: the first tile, together with what the block keeps.
template <typename Load> DEVICE void load_first(Load load) {
    if (!APART) load(0);
    copy_async_commit();
    if (APART) {
        // What the block keeps is loaded by the computing warps, for themselves.
        copy_async_wait<0>();
        publish();
        asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
    }
}

/// Waits for the ring's next tile. Where all warps load, the one after it is loaded, if there is `more`; no product may
/// read that buffer any more.
template <typename Load> DEVICE void tile_wait(const Ring& ring, bool more, Load load) {
    if (APART) {
        barrier_wait(ring.barriers + ring.stage * 8, ring.round);
        publish();
    } else {
        // Of two buffers, the next tile's was read by the products before.
        if (STAGES == 2) wait<0>();
        copy_async_wait<0>();
        publish();
        __syncthreads();
        if (more) load(ring.stage + 1 == STAGES ? 0 : ring.stage + 1);
        copy_async_commit();
    }
}

DEVICE void release(const Ring& ring, int stage) {
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ring.barriers + (STAGES + stage) * 8) : "memory");
}

/// All products that read the last tile are done.
DEVICE void tile_free(Ring& ring) {
    if (APART && ring.busy >= 0) release(ring, ring.busy);
    ring.busy = -1;
}

/// This tile is the last one that was waited for; `used` by products that are not done.
DEVICE void tile_next(Ring& ring, bool used) {
    if (used) ring.busy = ring.stage;
    else if (APART) release(ring, ring.stage);
    ring.advance();
}

// Who sees whom.
//
// Keys stand in three parts: meta keys, which all see; old keys, cached by earlier calls; new keys, those of the call.
// Where all rows of the batch are alike (RAGGED 0), old and new keys are one part: a query sees a key `0 .. window - 1`
// places before itself. Where they are not, `queries` has for each query the least and the greatest position of old keys
// that it sees and the least index of new keys, and `keys` the position of each old key and the index of each new one,
// -1 for what does not exist. Indices of new keys never exceed the query's own, and a query always sees itself; the least
// index never falls from one query to the next.

struct Parts {
    int time, meta, old, fresh, ahead;
    bool holes;
    int window;
    const int4* queries;
    const int* keys;
};

/// `ahead`: how far the first query stands behind the first key of its part; `holes`: whether new keys may not exist.
DEVICE Parts parts(i64 time, i64 meta, i64 cached, i64 window, const int* queries, const int* keys, i64 holes, i64 batch) {
    Parts p;
    p.holes = RAGGED && holes != 0;
    p.time = int(time), p.meta = int(meta), p.window = int(window);
    p.old = RAGGED ? int(cached) : 0;
    p.fresh = RAGGED ? int(time) : int(cached + time);
    p.ahead = RAGGED ? 0 : int(cached);
    p.queries = reinterpret_cast<const int4*>(queries) + batch * time;
    p.keys = keys ? keys + batch * (cached + time) : nullptr;
    return p;
}

/// What a query sees: old keys with a position in `[old_low, old_high]`, new ones from index `low` to its own.
struct Query {
    int index, low, old_low, old_high;
};

DEVICE Query query(const Parts& p, int index) {
    Query q;
    q.index = index + p.ahead;
    q.old_low = q.old_high = 0;
    if (RAGGED) {
        int4 given = p.queries[index < p.time ? index : p.time - 1];
        q.old_low = given.x, q.old_high = given.y, q.low = given.z;
    } else {
        q.low = max(q.index - p.window + 1, 0);
    }
    return q;
}

enum Part { META, OLD, FRESH };

/// Whether a query sees the key that is number `key` of its part; `place` is its entry of `keys` where there is one.
DEVICE bool sees(const Parts& p, const Query& q, Part part, int key, int place) {
    if (part == META) return key < p.meta;
    if (RAGGED && part == OLD) return key < p.old && place >= q.old_low && place <= q.old_high;
    return (key <= q.index && (RAGGED ? place : key) >= q.low) || key == q.index;
}

/// The entry of `keys` for a key.
DEVICE int place_of(const Parts& p, Part part, int key) {
    if (!RAGGED || part == META) return key;
    if (part == OLD) return key < p.old ? p.keys[key] : -1;
    return key < p.fresh ? p.keys[p.old + key] : -1;
}
