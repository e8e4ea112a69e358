// The cell of one unit, forward and backward.
//
// The backward looks at the quotient q = c / n and at the logarithm of the normaliser, L = m + log n, which together are all
// that outputs and later tokens see of a state:
//
//     q = (1 - w) q_before + w tanh(z),   w = e^(i - m) / n,   L = log(e^(log sigmoid(f) + L_before) + e^i)
//
// So it needs no exponentials, and the gradients that it carries, of q and of L, no maximum. The maximum m matters to the
// last state alone.
#pragma once
#include "common.cuh"

/// What the backward has to know of a token's cell.
struct Kept {
    float weight;    // w, the new value's part in q
    float quotient;  // q
    float shut;      // 1 - sigmoid(f)
    float change;    // tanh(z) - q, which is (1 - w) (tanh(z) - q_before)
    float output;    // sigmoid(o)
    float share;     // how much of the maximum is the input gate's: 1, 0, or 1 / 2 of two that are equal
};

DEVICE float tanh_exact(float x) {
    const float y = exp2_fast(-2.0f * LOG2E * fabsf(x));
    return copysignf((1.0f - y) * reciprocal(1.0f + y), x);
}

/// One token: from the pre-activations (of the third the hyperbolic tangent) and the state before to the state after.
struct Cell {
    float c, n, m, h;
    float value, input, open, other, both, inverse, shutting, difference;

    DEVICE Cell(float i, float f, float new_value, float o, float c_before, float n_before, float m_before)
        : value(new_value) {
        float y;
        // Where nothing is remembered, there is no maximum before this token's.
        const float kept = m_before - softplus(-f, y);
        const float past = n_before == 0.0f ? -__int_as_float(0x7f800000) : kept;
        difference = i - past;
        m = fmaxf(past, i);
        const float small = exp2_fast(-LOG2E * fabsf(difference));
        const bool fresh = difference > 0.0f;
        const float forget = fresh ? small : 1.0f;
        input = fresh ? 1.0f : small;
        // 1 / sigmoid(o), 1 / sigmoid(|f|) and n share one reciprocal.
        open = 1.0f + exp2_fast(fminf(-LOG2E * o, 64.0f));
        other = 1.0f + y;
        shutting = f < 0.0f ? 1.0f : y;
        both = open * other;
        c = fmaf(forget, c_before, input * value);
        n = fmaf(forget, n_before, input);
        inverse = reciprocal(n * both);
        h = c * other * inverse;
    }

    DEVICE Kept kept() const {
        Kept k;
        const float of_n = both * inverse, rest = n * inverse;
        k.weight = input * of_n;
        k.quotient = c * of_n;
        k.shut = shutting * open * rest;
        k.change = value - k.quotient;
        k.output = other * rest;
        k.share = difference > 0.0f ? 1.0f : difference == 0.0f ? 0.5f : 0.0f;
        return k;
    }
};

/// The gradients of a running state besides h's.
struct Carried {
    float quotient, normaliser, maximum;

    /// From those of the last state's c, n and m.
    DEVICE void start(float dc, float dn, float dm, float c, float n) {
        quotient = dc * n;
        normaliser = fmaf(dc, c, dn * n);
        maximum = dm - normaliser;
    }

    /// Over one token, with the output's gradient; `d` becomes that of the pre-activations.
    DEVICE void step(const Kept& k, float dh, float (&d)[4]) {
        const float total = fmaf(dh, k.output, quotient);
        const float value = k.change + k.quotient;
        const float input = k.weight * fmaf(total, k.change, normaliser), made = maximum * k.share;
        normaliser -= input;
        maximum -= made;
        quotient = total * (1.0f - k.weight);
        d[0] = input + made;
        d[1] = (normaliser + maximum) * k.shut;
        d[2] = total * k.weight * fmaf(-value, value, 1.0f);
        d[3] = dh * k.quotient * k.output * (1.0f - k.output);
    }

    /// Those of the c, n and m of the state before the first token.
    DEVICE void finish(float c, float n, float& dc, float& dn, float& dm) const {
        const float inverse = n == 0.0f ? 0.0f : 1.0f / n;
        dc = quotient * inverse;
        dn = (normaliser - dc * c) * inverse;
        dm = n == 0.0f ? 0.0f : normaliser + maximum;
    }
};
