// exp and log1p over the ranges that a softmax needs, as branch-free polynomials, so that a loop over pixels becomes vector
// code on every compiler; and the two-class case, which needs one exponential where the general one needs two.
//
// exp(x):   x = n ln2 + r with |r| <= ln2/2, exp(x) = 2^n (1 + r + r^2 P(r)); the argument reduction is that of Cody and
//           Waite, P a minimax polynomial of degree 4 (relative error 3e-9 before rounding).
// log1p(u): y = 1 + u = 2^e m with m in [sqrt(1/2), sqrt(2)), log(m) = f - f^2/2 + f^3 Q(f) for f = m - 1, Q minimax of
//           degree 7 (6e-9); what the rounding of 1 + u lost is given back as (u - (y - 1)) / y, so that tiny u keep all
//           their digits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace uf {

UF_HD_INLINE int32_t float_bits(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

UF_HD_INLINE float bits_float(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// exp(x) for x <= 0, -infinity and NaN. Below the smallest normal number (x < -87.33) the result is 0.
UF_HD_INLINE float exp_nonpositive(float x) {
  constexpr float kLowest = -87.33654f, kLog2e = 1.44269504f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // the high part has few bits: n * high is exact
  constexpr float kRound = 12582912.0f;                                // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x < kLowest ? kLowest : x;                     // a NaN stays a NaN
  const float shifted = clamped * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.3814598513e-3f;
  p = p * r + 8.3687168836e-3f;
  p = p * r + 4.1668388048e-2f;
  p = p * r + 1.6666520632e-1f;
  p = p * r + 4.9999993448e-1f;
  const float value = 1.0f + (r + r * r * p);
  const int32_t scale = float_bits(shifted) - float_bits(kRound) + 127;  // the integer n sits in the low bits of `shifted`
  return x < kLowest ? 0.0f : value * bits_float(static_cast<int32_t>(static_cast<uint32_t>(scale) << 23));
}

UF_HD_INLINE double exp_nonpositive(double x) { return std::exp(x); }

// log(1 + u) for u >= 0 and NaN; y = 1 + u as rounded and inverse = 1 / y come from the caller, who needs both anyway.
UF_HD_INLINE float log1p_nonnegative(float u, float y, float inverse) {
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  const int32_t bits = float_bits(y);
  const int32_t exponent = (bits - kSqrtHalf) >> 23;
  const float f = bits_float(bits - static_cast<int32_t>(static_cast<uint32_t>(exponent) << 23)) - 1.0f;
  float q = -7.6344977577e-2f;
  q = q * f + 1.2761577536e-1f;
  q = q * f - 1.3160182162e-1f;
  q = q * f + 1.4201757917e-1f;
  q = q * f - 1.6623357360e-1f;
  q = q * f + 2.0001226880e-1f;
  q = q * f - 2.5000821034e-1f;
  q = q * f + 3.3333331708e-1f;
  const float e = static_cast<float>(exponent), square = f * f;
  const float lost = (u - (y - 1.0f)) * inverse;  // NaN for NaN u, whose bits mean nothing above
  return e * kLn2High + (f + (square * (f * q - 0.5f) + (e * kLn2Low + lost)));
}

UF_HD_INLINE double log1p_nonnegative(double u, double, double) { return std::log1p(u); }

// Softmax cross-entropy of one pixel with two classes. With d = |x1 - x0| and u = exp(-d): the loss is log(1 + u), plus d
// where the target has the smaller logit; `other` is the probability of the class that is not the target, which is all
// that the gradient is made of: +other for that class, -other for the target. No term cancels, so small losses and small
// gradients keep their relative accuracy. m - m is 0, or NaN for an infinite largest logit, which must not go unnoticed.
template <class A>
UF_HD_INLINE void two_class_cross_entropy(A x0, A x1, bool target, A& loss, A& other) {
  const A m = x0 > x1 ? x0 : x1, mine = target ? x1 : x0;
  const A d = x1 - x0;
  const A u = exp_nonpositive(d > 0 ? -d : d) + (m - m);
  const A y = A(1) + u, inverse = A(1) / y;
  loss = (m - mine) + log1p_nonnegative(u, y, inverse);
  other = (m == mine ? u : A(1)) * inverse;
}

// With m = max_k x_k, reached first at class a, and rest = sum_{k != a} exp(x_k - m), the softmax of one pixel of any
// number of classes is p_k = e_k / (1 + rest), e_k = exp(x_k - m). Leaving the largest term out of the sum keeps the
// digits of small losses, which log(sum_k exp(x_k - m)) would round away. `y` is 1 + rest, `inverse` 1 / y.
template <class A>
UF_HD_INLINE A cross_entropy(A m, A target_logit, A rest, A y, A inverse) {
  return (m - target_logit) + log1p_nonnegative(rest, y, inverse);
}

// d loss / d x_k, times 1 + rest: e_k, less 1 + rest for the target. Where the target is the likeliest class that
// difference is minus the sum of all others, which cancels nothing.
template <class A>
UF_HD_INLINE A cross_entropy_gradient(A e, A rest, bool is_largest, bool is_target) {
  const A others = is_largest ? -rest : e - (A(1) + rest);
  return is_target ? others : e;
}

// m, a and rest of logits that come one at a time: a new maximum rescales what was summed before. The comparison with
// the maximum keeps two equal infinities from becoming NaN, so that classes masked by -infinity count as 0.
template <class A>
struct RunningSoftmax {
  A largest, rest;
  int32_t argmax;

  UF_HD_INLINE explicit RunningSoftmax(A first) : largest(first), rest(0), argmax(0) {}

  UF_HD_INLINE void add(A x, int32_t k) {
    const bool larger = x > largest;
    const A e = x == largest ? A(1) : exp_nonpositive(larger ? largest - x : x - largest);
    rest = larger ? (rest + A(1)) * e : rest + e;
    largest = larger ? x : largest;
    argmax = larger ? k : argmax;
  }

  // An infinite largest logit makes `rest` NaN, so that it does not go unnoticed.
  UF_HD_INLINE void finish() { rest += largest - largest; }
};

}  // namespace uf
