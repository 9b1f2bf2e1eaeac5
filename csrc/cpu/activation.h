// Gated activations, sixteen values at a time.
#pragma once

#include "ops.h"
#include "simd.h"

namespace octavo::OCTAVO_ISA {

OCTAVO_INLINE F32 silu(F32 x) { return x / (set1(1.0f) + exp(zero() - x)); }

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
OCTAVO_INLINE F32 gelu_tanh(F32 x) {
    const F32 inner = set1(0.7978845608028654f) * fma(set1(0.044715f) * x * x, x, x);
    return set1(0.5f) * x * (set1(1.0f) + tanh(inner));
}

OCTAVO_INLINE F32 activate(Activation kind, F32 x) { return kind == Activation::SILU ? silu(x) : gelu_tanh(x); }

}  // namespace octavo::OCTAVO_ISA
