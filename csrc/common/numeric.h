// Element types and their conversion to the type that sums are kept in: float, or double for double.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/host_device.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#elif defined(__F16C__)
#include <immintrin.h>
#endif

namespace pyposeext {

enum class DType : int32_t { float32, float64, float16, bfloat16 };

inline namespace PYPOSEEXT_LEVEL {

// Unqualified calls would find C's double functions on the host: twice as slow, and not what a GPU computes.
using std::ceil;
using std::floor;
using std::fma;
using std::log2;
using std::sqrt;

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename T> struct AccumulateType { using type = float; };
template <> struct AccumulateType<double> { using type = double; };
template <typename T> using Accumulate = typename AccumulateType<T>::type;

PYPOSEEXT_HOST_DEVICE float load(float value) { return value; }
PYPOSEEXT_HOST_DEVICE double load(double value) { return value; }
PYPOSEEXT_HOST_DEVICE void store(float value, float* out) { *out = value; }
PYPOSEEXT_HOST_DEVICE void store(double value, double* out) { *out = value; }

#if defined(__CUDA_ARCH__)

PYPOSEEXT_HOST_DEVICE float load(Half value) { return __half2float(__ushort_as_half(value.bits)); }
PYPOSEEXT_HOST_DEVICE void store(float value, Half* out) { out->bits = __half_as_ushort(__float2half_rn(value)); }
PYPOSEEXT_HOST_DEVICE float load(BFloat16 value) { return __bfloat162float(__ushort_as_bfloat16(value.bits)); }
PYPOSEEXT_HOST_DEVICE void store(float value, BFloat16* out) { out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value)); }

#else

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float load(BFloat16 value) { return float_from_bits(uint32_t(value.bits) << 16); }

inline void store(float value, BFloat16* out) {
  const uint32_t bits = bits_of_float(value);
  // Round to nearest even; a NaN keeps its top bits and is made quiet, because rounding could turn it into infinity.
  out->bits = value != value ? uint16_t((bits >> 16) | 0x40) : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if defined(__F16C__)

inline float load(Half value) { return _cvtsh_ss(value.bits); }
inline void store(float value, Half* out) { out->bits = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

#else

inline float load(Half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) return float_from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // Scaling by 2^112 moves the exponent's bias from 15 to 127 and is exact for subnormal halves too.
  return float_from_bits(sign | bits_of_float(float_from_bits(magnitude << 13) * float_from_bits(0x77800000)));
}

inline void store(float value, Half* out) {
  const uint32_t bits = bits_of_float(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    out->bits = uint16_t(sign | 0x7e00);
  } else if (magnitude >= 0x47800000) {  // 2^16 and more, infinity
    out->bits = uint16_t(sign | 0x7c00);
  } else if (magnitude < 0x38800000) {  // below 2^-14: adding 0.5 leaves a subnormal half in the low bits, rounded to even
    out->bits = uint16_t(sign | (bits_of_float(float_from_bits(magnitude) + 0.5f) - bits_of_float(0.5f)));
  } else {
    out->bits = uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
  }
}

#endif
#endif

// std::isfinite may be compiled away under relaxed arithmetic, and is no device function everywhere.
template <typename A> PYPOSEEXT_HOST_DEVICE bool is_finite(A value) { return value - value == A(0); }

// a * b + c, fused where the processor does that in one instruction. Everything else is compiled without contraction.
template <typename A> PYPOSEEXT_HOST_DEVICE A multiply_add(A a, A b, A c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__)
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

// Calls body(T()) with the element type that dtype names.
template <typename Body>
inline void dispatch_floating(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::float32: return body(float());
    case DType::float64: return body(double());
    case DType::float16: return body(Half());
    case DType::bfloat16: return body(BFloat16());
  }
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
