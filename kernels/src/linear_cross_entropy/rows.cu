// Rows of logits into their losses and, in place, into their gradients. A block has a row: one pass finds the greatest
// logit and the sum of exponentials together, a second one writes the gradients.
//
// -DELEMENT=float|bf16: the type of the logits.
#include "common.cuh"

typedef ELEMENT T;

constexpr int THREADS = 512, WARPS = THREADS / 32;
/// Elements of 16 bytes.
constexpr int VECTOR = 16 / sizeof(T);

struct alignas(16) Vector {
    T values[VECTOR];
};

/// What is known of a part of a row: the greatest logit x, the sum of 2^(log2(e) (x - greatest)), the sum of x.
struct Part {
    float greatest, sum, total;

    DEVICE void add(float x) {
        if (x > greatest) {
            sum *= exp2_fast(LOG2E * (greatest - x));
            greatest = x;
        }
        sum += exp2_fast(LOG2E * (x - greatest));
        total += x;
    }

    DEVICE void join(const Part& other) {
        const float most = fmaxf(greatest, other.greatest);
        // A part without elements has -infinity, and two of them no difference.
        const float mine = greatest == most ? 1.0f : exp2_fast(LOG2E * (greatest - most));
        const float theirs = other.greatest == most ? 1.0f : exp2_fast(LOG2E * (other.greatest - most));
        sum = sum * mine + other.sum * theirs;
        greatest = most;
        total += other.total;
    }
};

/// Calls `f(element)` for each element of the row that is this thread's, by 16 bytes where the row is aligned; with
/// WRITE the element is written back.
template <bool WRITE, typename F> DEVICE void each(T* row, i64 vocab, F f) {
    const int thread = threadIdx.x;
    const int ahead = int((16 - (reinterpret_cast<u64>(row) & 15)) & 15) / int(sizeof(T));
    const i64 lead = ahead < vocab ? ahead : vocab, vectors = (vocab - lead) / VECTOR, rest = lead + vectors * VECTOR;
    auto one = [&](i64 i) {
        T x = row[i];
        f(x, i);
        if (WRITE) row[i] = x;
    };
    if (thread < lead) one(thread);
    Vector* body = reinterpret_cast<Vector*>(row + lead);
#pragma unroll 2
    for (i64 v = thread; v < vectors; v += THREADS) {
        Vector x = body[v];
#pragma unroll
        for (int k = 0; k < VECTOR; k++) f(x.values[k], lead + v * VECTOR + k);
        if (WRITE) body[v] = x;
    }
    if (rest + thread < vocab) one(rest + thread);
}

/// cap tanh(x / cap), or x where there is no cap.
DEVICE float capped(float x, float cap) {
    if (cap == 0.0f) return x;
    const float small = exp2_fast(-2.0f * LOG2E * fabsf(x) / cap);
    return copysignf(cap * (1.0f - small) / (1.0f + small), x);
}

/// grid (rows), block 512, no dynamic shared memory.
///
/// logits    T [rows, pitch], of which the first vocab columns are logits: gradients of the loss afterwards, if `gradient` is
///           not 0; the others stay as they are
/// targets   int64 [rows]; -100 is none: loss and gradient are 0
/// losses    float [rows, 2]: the loss, and log(sum exp)^2, which is in it times `z_loss`
/// soft_cap  0 for none
extern "C" __global__ void __launch_bounds__(THREADS)
linear_cross_entropy_rows(T* logits, const i64* targets, float* losses, i64 vocab, i64 pitch, float label_smoothing,
                          float z_loss, float soft_cap, int gradient) {
    const i64 row = blockIdx.x, target = targets[row];
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    T* x = logits + row * pitch;
    if (target == -100) {
        if (gradient) each<true>(x, vocab, [](T& x, i64) { x = from_float<T>(0.0f); });
        if (thread < 2) losses[2 * row + thread] = 0.0f;
        return;
    }
    if (target < 0 || target >= vocab) __trap();
    const float infinity = __int_as_float(0x7f800000), of_target = capped(to_float(x[target]), soft_cap);
    Part part{-infinity, 0.0f, 0.0f};
    each<false>(x, vocab, [&](T& x, i64) { part.add(capped(to_float(x), soft_cap)); });
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1)
        part.join(Part{__shfl_xor_sync(~0u, part.greatest, offset), __shfl_xor_sync(~0u, part.sum, offset),
                       __shfl_xor_sync(~0u, part.total, offset)});
    __shared__ Part parts[WARPS];
    if (lane == 0) parts[warp] = part;
    __syncthreads(); // also: no thread writes a gradient before all have read the target's logit
    part = parts[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++) part.join(parts[i]);
    const float log_sum = part.greatest + LN2 * log2f(part.sum), square = log_sum * log_sum;
    if (thread == 0) {
        losses[2 * row] = log_sum - (1.0f - label_smoothing) * of_target - label_smoothing * part.total / float(vocab)
                          + z_loss * square;
        losses[2 * row + 1] = square;
    }
    if (!gradient) return;
    const float scale = 1.0f + 2.0f * z_loss * log_sum, everywhere = label_smoothing / float(vocab);
    each<true>(x, vocab, [&](T& x, i64 i) {
        const float value = capped(to_float(x), soft_cap);
        float d = scale * exp2_fast(LOG2E * (value - log_sum)) - everywhere;
        if (i == target) d -= 1.0f - label_smoothing;
        if (soft_cap != 0.0f) d *= 1.0f - (value / soft_cap) * (value / soft_cap);
        x = from_float<T>(d);
    });
}
