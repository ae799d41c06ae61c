// Exponentials of whole vectors, for the CPU kernels, without a branch: in float to about 2 units in the last place. Where
// nothing else is said, the double versions are the standard library's, number by number.
#pragma once
#include <initializer_list>

#include "common/vector.h"

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

constexpr float kExpBound = 87.0f;  // e^87 and e^-87 are normal floats, and so is twice the first

// e^x = power * (1 + rest): a power of two, and a rest from -0.3 to 0.42 that keeps its relative accuracy near 0.
struct ExpParts {
  Vector<float> power, rest;
};

inline ExpParts exp_parts(Vector<float> x) {
  // Bounded so that the power of two is a normal float; NaN stays NaN.
  x = smaller(broadcast(kExpBound), larger(broadcast(-kExpBound), x));
  const Vector<float> rounder = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Vector<float> shifted = multiply_add(x, broadcast(1.44269504088896341f), rounder), whole = shifted - rounder;
  const Vector<float> r = multiply_add(whole, broadcast(2.12194440e-4f), multiply_add(whole, broadcast(-0.693359375f), x));
  Vector<float> series = broadcast(1.9875691500e-4f);  // Cephes' expf
  series = multiply_add(series, r, broadcast(1.3981999507e-3f));
  series = multiply_add(series, r, broadcast(8.3334519073e-3f));
  series = multiply_add(series, r, broadcast(4.1665795894e-2f));
  series = multiply_add(series, r, broadcast(1.6666665459e-1f));
  series = multiply_add(series, r, broadcast(5.0000001201e-1f));
  const Vector<uint32_t> exponent = (bits_as<Vector<uint32_t>>(shifted) << 23) + 0x3f800000u;
  return {bits_as<Vector<float>>(exponent), multiply_add(series * r, r, r)};
}

// e^x; below -87 e^-87 and above 87 e^87.
inline Vector<float> exp_of(Vector<float> x) {
  const ExpParts parts = exp_parts(x);
  return multiply_add(parts.power, parts.rest, parts.power);
}

// e^x - 1, to a relative accuracy also near 0; bounded as exp_of.
inline Vector<float> exp_minus_one(Vector<float> x) {
  const ExpParts parts = exp_parts(x);
  return multiply_add(parts.power, parts.rest, parts.power - 1.0f);
}

inline Vector<double> exp_of(Vector<double> x) {
  for (int64_t i = 0; i < kWidth<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// 1 / (1 + e^-x).
template <typename V>
inline V vector_sigmoid(V x) {
  return 1 / (1 + exp_of(-x));
}
inline Vector<float> sigmoid(Vector<float> x) { return vector_sigmoid(x); }
inline Vector<double> sigmoid(Vector<double> x) { return vector_sigmoid(x); }

// `magnitude`, which is not negative, with the sign of `sign`.
inline Vector<float> with_sign(Vector<float> magnitude, Vector<float> sign) {
  return bits_as<Vector<float>>(bits_as<Vector<uint32_t>>(magnitude) | (bits_as<Vector<uint32_t>>(sign) & 0x80000000u));
}
inline Vector<float> absolute(Vector<float> x) { return bits_as<Vector<float>>(bits_as<Vector<uint32_t>>(x) & 0x7fffffffu); }

inline Vector<float> tanh_of(Vector<float> x) {
  const Vector<float> e = exp_minus_one(-2 * absolute(x));
  return with_sign(-e / (e + 2), x);
}
inline Vector<double> tanh_of(Vector<double> x) {
  for (int64_t i = 0; i < kWidth<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}

// sigmoid(x) * tanh(y), in float with one division for both.
inline Vector<float> sigmoid_times_tanh(Vector<float> x, Vector<float> y) {
  const Vector<float> e = exp_minus_one(-2 * absolute(y));
  return with_sign(-e / ((1 + exp_of(-x)) * (e + 2)), y);
}
inline Vector<double> sigmoid_times_tanh(Vector<double> x, Vector<double> y) { return sigmoid(x) * tanh_of(y); }

// The bits of a whole number of 0..255 in each lane moved to where a float's or a double's exponent stands: see exp2_vector.
inline Vector<float> exponent_of(Vector<float> shifted) { return bits_as<Vector<float>>(bits_as<Vector<uint32_t>>(shifted) << 23); }
inline Vector<double> exponent_of(Vector<double> shifted) { return bits_as<Vector<double>>(bits_as<Vector<uint64_t>>(shifted) << 52); }

// 2^x for x up to 1, to 2 units in the last place in float32 and 1e-15 in float64. Below the smallest normal number, for
// minus infinity and for NaN it is exactly 0.
inline Vector<float> exp2_vector(Vector<float> x) {
  x = larger(x, broadcast(-127.0f));
  const float rounder = 12582912.0f + 127.0f;  // 1.5 * 2^23 rounds to a whole number, left in the low bits with the exponent's bias
  const Vector<float> shifted = x + rounder, rest = x - (shifted - rounder);
  Vector<float> series = broadcast(0.00132647273f);  // fitted to the relative error on -0.5..0.5
  for (const float factor : {0.00967151279f, 0.0555073374f, 0.240222421f, 0.693146978f, 1.0f})
    series = multiply_add(series, rest, broadcast(factor));
  return series * exponent_of(shifted);
}

inline Vector<double> exp2_vector(Vector<double> x) {
  x = larger(x, broadcast(-1023.0));
  const double rounder = 6755399441055744.0 + 1023.0;
  const Vector<double> shifted = x + rounder, rest = x - (shifted - rounder);
  Vector<double> series = broadcast(2.5678435993488205e-11);  // ln(2)^n / n!
  for (const double factor : {4.4455382718708115e-10, 7.0549116208011233e-9, 1.01780860092397e-7, 1.3215486790144309e-6, 1.525273380405984e-5,
                              1.540353039338161e-4, 1.3333558146428443e-3, 9.6181291076284772e-3, 5.550410866482158e-2, 2.4022650695910071e-1,
                              6.9314718055994531e-1, 1.0})
    series = multiply_add(series, rest, broadcast(factor));
  return series * exponent_of(shifted);
}

// exp(x) for x <= 0, and NaN for NaN. The float version is within 2 units in the last place down to exp(-87) and 0 below,
// the double version within 2 down to exp(-708) and 0 below.
inline Vector<float> exp_nonpositive(Vector<float> x) {
  const Vector<float> bounded = larger(broadcast(-87.0f), x);
  const Vector<float> shifted = multiply_add(bounded, broadcast(1.44269504088896341f), broadcast(12582912.0f));  // 1.5 * 2^23 rounds
  const Vector<float> power = shifted - 12582912.0f;
  const Vector<float> rest = multiply_add(power, broadcast(2.12194440e-4f), multiply_add(power, broadcast(-0.693359375f), bounded));
  Vector<float> series = broadcast(1.9875691500e-4f);  // Cephes' expf
  series = multiply_add(series, rest, broadcast(1.3981999507e-3f));
  series = multiply_add(series, rest, broadcast(8.3334519073e-3f));
  series = multiply_add(series, rest, broadcast(4.1665795894e-2f));
  series = multiply_add(series, rest, broadcast(1.6666665459e-1f));
  series = multiply_add(series, rest, broadcast(5.0000001201e-1f));
  series = multiply_add(series * rest, rest, rest) + 1.0f;
  const auto scale = bits_as<Vector<float>>((bits_as<Vector<uint32_t>>(shifted) << 23) + 0x3f800000u);
  return x < -87.0f ? Vector<float>{} : series * scale;
}
inline Vector<double> exp_nonpositive(Vector<double> x) {
  const Vector<double> bounded = larger(broadcast(-708.0), x);
  const Vector<double> shifted = multiply_add(bounded, broadcast(1.4426950408889634), broadcast(6755399441055744.0));  // 1.5 * 2^52
  const Vector<double> power = shifted - 6755399441055744.0;
  // The logarithm of 2 in two parts, so that the first product is exact.
  const Vector<double> rest =
      multiply_add(power, broadcast(-1.90821492927058770e-10), multiply_add(power, broadcast(-6.93147180369123816490e-1), bounded));
  Vector<double> series = broadcast(1.0 / 6227020800.0);  // Taylor's series up to 1 / 13!: rest is within 0.35 of 0
  for (const double factor : {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120,
                              1.0 / 24, 1.0 / 6, 1.0 / 2})
    series = multiply_add(series, rest, broadcast(factor));
  series = multiply_add(series * rest, rest, rest) + 1.0;
  const auto scale = bits_as<Vector<double>>((bits_as<Vector<uint64_t>>(shifted) << 52) + 0x3ff0000000000000u);
  return x < -708.0 ? Vector<double>{} : series * scale;
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
