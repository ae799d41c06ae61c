// Exponentials of whole vectors, for the CPU kernels: in float to about 2 units in the last place without a branch or a
// call, in double the standard library's, number by number.
#pragma once
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

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
