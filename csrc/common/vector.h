// Vectors as wide as the CPU level's registers: 64, 32 or 16 bytes. The compiler's own vector types carry arithmetic,
// comparison and choice (mask ? a : b); what they lack is here: conversion from and to element types, parts of a vector at
// the end of a row, fused multiplication.
#pragma once
#include <utility>

#include "common/numeric.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif

template <typename A> struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <typename A> using Vector = typename VectorOf<A>::type;
template <typename A> constexpr int64_t kWidth = kVectorBytes / int64_t(sizeof(A));  // elements in a vector

typedef uint16_t Vector16Bit __attribute__((vector_size(kVectorBytes / 2)));  // as many as a Vector<float> has elements
typedef uint8_t Vector8Bit __attribute__((vector_size(kVectorBytes / 4)));

template <typename To, typename From>
inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

template <typename A>
inline Vector<A> broadcast(A value) {
  return value - Vector<A>{};  // not a sum: that would lose the sign of -0
}

template <typename A>
inline Vector<A> lane_numbers() {  // 0, 1, 2, ...
  Vector<A> numbers;
  for (int64_t i = 0; i < kWidth<A>; ++i) numbers[i] = A(i);
  return numbers;
}

#if defined(__AVX512F__)
inline __mmask16 first_lanes(int64_t count) { return __mmask16(_bzhi_u32(0xffff, uint32_t(count))); }
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) { return _mm512_fmadd_ps(a, b, c); }
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) { return _mm512_fmadd_pd(a, b, c); }
// b where a is NaN, as in a > b ? a : b.
inline Vector<float> larger(Vector<float> a, Vector<float> b) { return _mm512_max_ps(a, b); }
inline Vector<double> larger(Vector<double> a, Vector<double> b) { return _mm512_max_pd(a, b); }
inline Vector<float> smaller(Vector<float> a, Vector<float> b) { return _mm512_min_ps(a, b); }
inline Vector<double> smaller(Vector<double> a, Vector<double> b) { return _mm512_min_pd(a, b); }
inline Vector<float> floor(Vector<float> a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline Vector<double> floor(Vector<double> a) { return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
#elif defined(__AVX2__)
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) { return _mm256_fmadd_ps(a, b, c); }
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) { return _mm256_fmadd_pd(a, b, c); }
inline Vector<float> larger(Vector<float> a, Vector<float> b) { return _mm256_max_ps(a, b); }
inline Vector<double> larger(Vector<double> a, Vector<double> b) { return _mm256_max_pd(a, b); }
inline Vector<float> smaller(Vector<float> a, Vector<float> b) { return _mm256_min_ps(a, b); }
inline Vector<double> smaller(Vector<double> a, Vector<double> b) { return _mm256_min_pd(a, b); }
inline Vector<float> floor(Vector<float> a) { return _mm256_floor_ps(a); }
inline Vector<double> floor(Vector<double> a) { return _mm256_floor_pd(a); }
#else
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) { return a * b + c; }
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) { return a * b + c; }
inline Vector<float> larger(Vector<float> a, Vector<float> b) { return a > b ? a : b; }
inline Vector<double> larger(Vector<double> a, Vector<double> b) { return a > b ? a : b; }
inline Vector<float> smaller(Vector<float> a, Vector<float> b) { return a < b ? a : b; }
inline Vector<double> smaller(Vector<double> a, Vector<double> b) { return a < b ? a : b; }
template <typename V>
inline V floor_each(V a) {
  for (int64_t i = 0; i < int64_t(sizeof(V) / sizeof(a[0])); ++i) a[i] = std::floor(a[i]);
  return a;
}
inline Vector<float> floor(Vector<float> a) { return floor_each(a); }
inline Vector<double> floor(Vector<double> a) { return floor_each(a); }
#endif

inline Vector<float> widen(Vector16Bit bits, Half) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(bits_as<__m256i>(bits));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(bits_as<__m128i>(bits));
#else
  Vector<float> result;
  for (int64_t i = 0; i < kWidth<float>; ++i) result[i] = load(Half{bits[i]});
  return result;
#endif
}

inline Vector<float> widen(Vector16Bit bits, BFloat16) {
#if defined(__AVX512F__)  // the compiler would convert half a vector at a time
  return bits_as<Vector<float>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits_as<__m256i>(bits)), 16));
#else
  return bits_as<Vector<float>>(__builtin_convertvector(bits, Vector<uint32_t>) << 16);
#endif
}

inline Vector16Bit narrow(Vector<float> value, Half) {
#if defined(__AVX512F__)
  return bits_as<Vector16Bit>(_mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  return bits_as<Vector16Bit>(_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
#else
  Vector16Bit result;
  for (int64_t i = 0; i < kWidth<float>; ++i) {
    Half half;
    store(value[i], &half);
    result[i] = half.bits;
  }
  return result;
#endif
}

inline Vector16Bit narrow(Vector<float> value, BFloat16) {  // to nearest even; a NaN stays one, as in numeric.h
  const auto bits = bits_as<Vector<uint32_t>>(value);
  const Vector<uint32_t> rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, quiet = (bits >> 16) | 0x40;
  const Vector<uint32_t> chosen = value != value ? quiet : rounded;
#if defined(__AVX512F__)
  return bits_as<Vector16Bit>(_mm512_cvtepi32_epi16(bits_as<__m512i>(chosen)));
#else
  return __builtin_convertvector(chosen, Vector16Bit);
#endif
}

// kWidth<Accumulate<T>> neighbouring elements, at any address.
inline Vector<float> load_vector(const float* from) {
  Vector<float> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline Vector<double> load_vector(const double* from) {
  Vector<double> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <typename T>
inline Vector<float> load_vector(const T* from) {  // Half, BFloat16
  Vector16Bit bits;
  std::memcpy(&bits, from, sizeof bits);
  return widen(bits, T());
}
inline Vector<float> load_vector(const uint8_t* from) {
  Vector8Bit bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, Vector<int32_t>), Vector<float>);
}

inline void store_vector(Vector<float> value, float* to) { std::memcpy(to, &value, sizeof value); }
inline void store_vector(Vector<double> value, double* to) { std::memcpy(to, &value, sizeof value); }
template <typename T>
inline void store_vector(Vector<float> value, T* to) {
  const Vector16Bit bits = narrow(value, T());
  std::memcpy(static_cast<void*>(to), &bits, sizeof bits);
}

// The first `count` of a vector, from 0 to its width: nothing else is read or written, and the rest is 0.
template <typename T>
inline auto load_vector(const T* from, int64_t count) {
  T part[kWidth<Accumulate<T>>] = {};
  std::memcpy(static_cast<void*>(part), static_cast<const void*>(from), size_t(count) * sizeof(T));
  return load_vector(part);
}
template <typename T>
inline void store_vector(Vector<Accumulate<T>> value, T* to, int64_t count) {
  T part[kWidth<Accumulate<T>>];
  store_vector(value, part);
  std::memcpy(static_cast<void*>(to), static_cast<const void*>(part), size_t(count) * sizeof(T));
}
#if defined(__AVX512F__)
inline Vector<float> load_vector(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(first_lanes(count), from); }
inline Vector<float> load_vector(const Half* from, int64_t count) {
  return widen(bits_as<Vector16Bit>(_mm256_maskz_loadu_epi16(first_lanes(count), from)), Half());
}
inline Vector<float> load_vector(const BFloat16* from, int64_t count) {
  return widen(bits_as<Vector16Bit>(_mm256_maskz_loadu_epi16(first_lanes(count), from)), BFloat16());
}
inline void store_vector(Vector<float> value, float* to, int64_t count) { _mm512_mask_storeu_ps(to, first_lanes(count), value); }
inline void store_vector(Vector<float> value, Half* to, int64_t count) {
  _mm256_mask_storeu_epi16(to, first_lanes(count), bits_as<__m256i>(narrow(value, Half())));
}
inline void store_vector(Vector<float> value, BFloat16* to, int64_t count) {
  _mm256_mask_storeu_epi16(to, first_lanes(count), bits_as<__m256i>(narrow(value, BFloat16())));
}
#elif defined(__AVX2__)
inline __m256i first_lanes(int64_t count) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
inline Vector<float> load_vector(const float* from, int64_t count) { return _mm256_maskload_ps(from, first_lanes(count)); }
inline void store_vector(Vector<float> value, float* to, int64_t count) { _mm256_maskstore_ps(to, first_lanes(count), value); }
#endif

// `count` elements, at most a vector's, that lie `stride` apart. Not inlined: a loop over packed elements stays small.
template <typename T>
[[gnu::noinline]] Vector<Accumulate<T>> load_strided(const T* from, int64_t stride, int64_t count) {
  if (stride == 1) return load_vector(from, count);
  Vector<Accumulate<T>> value{};
  for (int64_t i = 0; i < count; ++i) value[i] = load(from[i * stride]);
  return value;
}
template <typename T>
[[gnu::noinline]] void store_strided(Vector<Accumulate<T>> value, T* to, int64_t stride, int64_t count) {
  if (stride == 1) return store_vector(value, to, count);
  for (int64_t i = 0; i < count; ++i) store(Accumulate<T>(value[i]), to + i * stride);
}

// Past the caches, for results too large to be read again from them: `to` must be aligned to kVectorBytes. A kernel that
// uses it calls end_streaming() on each thread before it returns.
inline void stream_vector(Vector<float> value, float* to) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, value);
#elif defined(__AVX2__)
  _mm256_stream_ps(to, value);
#elif defined(__SSE2__)
  _mm_stream_ps(to, value);
#else
  store_vector(value, to);
#endif
}
inline void stream_vector(Vector<double> value, double* to) {
#if defined(__AVX512F__)
  _mm512_stream_pd(to, value);
#elif defined(__AVX2__)
  _mm256_stream_pd(to, value);
#elif defined(__SSE2__)
  _mm_stream_pd(to, value);
#else
  store_vector(value, to);
#endif
}
template <typename T>
inline void stream_vector(Vector<float> value, T* to) {  // Half, BFloat16: `to` aligned to half of kVectorBytes
#if defined(__AVX512F__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits_as<__m256i>(narrow(value, T())));
#elif defined(__AVX2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), bits_as<__m128i>(narrow(value, T())));
#elif defined(__SSE2__) && defined(__x86_64__)
  _mm_stream_si64(reinterpret_cast<long long*>(to), bits_as<long long>(narrow(value, T())));
#else
  store_vector(value, to);
#endif
}
inline void end_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Signed integers as wide as A: what comparing vectors of A gives, and what indexes them.
template <typename A> struct IntegerLike { using type = int32_t; };
template <> struct IntegerLike<double> { using type = int64_t; };
template <typename A> using Integer = typename IntegerLike<A>::type;

// from[index[i]] where the mask is set, 0 elsewhere: nothing else is read.
template <typename A>
inline Vector<A> gather(const A* from, Vector<Integer<A>> index, Vector<Integer<A>> mask) {
  Vector<A> result = {};
  for (int64_t i = 0; i < kWidth<A>; ++i)
    if (mask[i]) result[i] = from[index[i]];
  return result;
}
#if defined(__AVX512F__)
inline Vector<float> gather(const float* from, Vector<int32_t> index, Vector<int32_t> mask) {
  return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), _mm512_movepi32_mask(bits_as<__m512i>(mask)), bits_as<__m512i>(index), from, 4);
}
inline Vector<double> gather(const double* from, Vector<int64_t> index, Vector<int64_t> mask) {
  return _mm512_mask_i64gather_pd(_mm512_setzero_pd(), _mm512_movepi64_mask(bits_as<__m512i>(mask)), bits_as<__m512i>(index), from, 8);
}
#elif defined(__AVX2__)
inline Vector<float> gather(const float* from, Vector<int32_t> index, Vector<int32_t> mask) {
  return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), from, bits_as<__m256i>(index), bits_as<__m256>(mask), 4);
}
inline Vector<double> gather(const double* from, Vector<int64_t> index, Vector<int64_t> mask) {
  return _mm256_mask_i64gather_pd(_mm256_setzero_pd(), from, bits_as<__m256i>(index), bits_as<__m256d>(mask), 8);
}
#endif

// Swaps the lanes of a pair of rows whose numbers differ from the row's in the bit `kStep`: one step of a transposition.
template <int64_t kStep, typename V, size_t... I>
inline void exchange_lanes(V& a, V& b, std::index_sequence<I...>) {
  constexpr size_t width = sizeof...(I), step = size_t(kStep);
  const V low = __builtin_shufflevector(a, b, (I & step ? width + I - step : I)...);
  b = __builtin_shufflevector(a, b, (I & step ? width + I : I + step)...);
  a = low;
}

template <int64_t kStep, typename V>
inline void exchange_rows(V* rows) {
  constexpr int64_t width = int64_t(sizeof(V) / sizeof(rows[0][0]));
  if constexpr (kStep < width) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < width; ++i)
      if ((i & kStep) == 0) exchange_lanes<kStep>(rows[i], rows[i + kStep], std::make_index_sequence<size_t(width)>());
    exchange_rows<2 * kStep>(rows);
  }
}

// Rows become columns: lane j of rows[i] changes places with lane i of rows[j]. As many rows as a vector has lanes.
template <typename V>
inline void transpose(V* rows) {
  exchange_rows<1>(rows);
}

template <int64_t kStep, typename V>
inline void add_exchanged_rows(V* rows) {
  constexpr int64_t width = int64_t(sizeof(V) / sizeof(rows[0][0]));
  if constexpr (kStep < width) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < width / (2 * kStep); ++i) {
      exchange_lanes<kStep>(rows[2 * i], rows[2 * i + 1], std::make_index_sequence<size_t(width)>());
      rows[i] = rows[2 * i] + rows[2 * i + 1];
    }
    add_exchanged_rows<2 * kStep>(rows);
  }
}

// The sum of each row, as a vector. As many rows as a vector has lanes; they are lost. Half the work of a transposition.
template <typename V>
inline V sums_of_rows(V* rows) {
  add_exchanged_rows<1>(rows);
  return rows[0];
}

// Elements place[i] and place[i] + 1 of `from`, for each lane i. On x86 faster than gathering.
template <size_t... I>
inline void load_pairs(const float* from, const int32_t* place, Vector<float>& first, Vector<float>& second, std::index_sequence<I...>) {
  constexpr size_t half = sizeof...(I);
  typedef int64_t Pairs __attribute__((vector_size(kVectorBytes)));
  const auto pair = [&](int32_t at) {
    int64_t value;
    std::memcpy(&value, from + at, sizeof value);
    return value;
  };
  const Pairs low = {pair(place[I])...}, high = {pair(place[half + I])...};
  const Vector<float> a = bits_as<Vector<float>>(low), b = bits_as<Vector<float>>(high);
  first = __builtin_shufflevector(a, b, int(2 * I)..., int(2 * half + 2 * I)...);
  second = __builtin_shufflevector(a, b, int(2 * I + 1)..., int(2 * half + 2 * I + 1)...);
}
template <size_t... I>
inline void load_pairs(const double* from, const int64_t* place, Vector<double>& first, Vector<double>& second, std::index_sequence<I...>) {
  constexpr size_t half = sizeof...(I);
  first = Vector<double>{from[place[I]]..., from[place[half + I]]...};
  second = Vector<double>{from[place[I] + 1]..., from[place[half + I] + 1]...};
}
template <typename A>
inline void load_pairs(const A* from, const Integer<A>* place, Vector<A>& first, Vector<A>& second) {
  load_pairs(from, place, first, second, std::make_index_sequence<size_t(kWidth<A> / 2)>());
}

template <typename V>
inline auto sum_of(V value) {  // in the order of the lanes: the same bits every time
  auto sum = value[0];
  for (int64_t i = 1; i < int64_t(sizeof(V) / sizeof(value[0])); ++i) sum += value[i];
  return sum;
}

// sums[i] = the sum of the lanes of values[i], for four vectors at once; the order is fixed, but not that of sum_of.
#if defined(__AVX2__)
inline void sums_of_four(const Vector<float>* values, float* sums) {
  __m256 half[4];
  for (int i = 0; i < 4; ++i) {
#if defined(__AVX512F__)
    half[i] = _mm256_add_ps(_mm512_castps512_ps256(values[i]), _mm512_extractf32x8_ps(values[i], 1));
#else
    half[i] = values[i];
#endif
  }
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}
#else
inline void sums_of_four(const Vector<float>* values, float* sums) {
  for (int i = 0; i < 4; ++i) sums[i] = sum_of(values[i]);
}
#endif
inline void sums_of_four(const Vector<double>* values, double* sums) {
  for (int i = 0; i < 4; ++i) sums[i] = sum_of(values[i]);
}

template <typename V>
inline auto maximum_of(V value) {
  auto maximum = value[0];
  for (int64_t i = 1; i < int64_t(sizeof(V) / sizeof(value[0])); ++i) maximum = value[i] > maximum ? value[i] : maximum;
  return maximum;
}

// Whether any lane of a comparison's result is set.
template <typename Mask>
inline bool any_of(Mask mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(bits_as<__m512i>(mask), bits_as<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256(bits_as<__m256i>(mask), bits_as<__m256i>(mask));
#elif defined(__SSE2__)
  return _mm_movemask_epi8(bits_as<__m128i>(mask)) != 0;
#else
  for (int64_t i = 0; i < int64_t(sizeof(Mask) / sizeof(mask[0])); ++i)
    if (mask[i]) return true;
  return false;
#endif
}

// The lanes in the opposite order.
template <typename V>
inline V reversed(V value) {
  constexpr int64_t count = int64_t(sizeof(V) / sizeof(value[0]));
  if constexpr (count == 16)
    return __builtin_shufflevector(value, value, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  else if constexpr (count == 8)
    return __builtin_shufflevector(value, value, 7, 6, 5, 4, 3, 2, 1, 0);
  else if constexpr (count == 4)
    return __builtin_shufflevector(value, value, 3, 2, 1, 0);
  else
    return __builtin_shufflevector(value, value, 1, 0);
}

// Bit i is set where a[i] > b[i].
inline uint32_t lanes_greater(Vector<float> a, Vector<float> b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_ps(_mm_cmpgt_ps(a, b)));
#else
  uint32_t lanes = 0;
  for (int64_t i = 0; i < kWidth<float>; ++i) lanes |= uint32_t(a[i] > b[i]) << i;
  return lanes;
#endif
}
inline uint32_t lanes_greater(Vector<double> a, Vector<double> b) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_pd(_mm_cmpgt_pd(a, b)));
#else
  uint32_t lanes = 0;
  for (int64_t i = 0; i < kWidth<double>; ++i) lanes |= uint32_t(a[i] > b[i]) << i;
  return lanes;
#endif
}

// A comparison's result as bits, lane 0 lowest.
template <typename Mask>
inline uint64_t bits_of(Mask mask) {
  constexpr bool kFourBytes = sizeof(mask[0]) == 4;
#if defined(__AVX512DQ__)
  if constexpr (kFourBytes) return _mm512_movepi32_mask(bits_as<__m512i>(mask));
  else return _mm512_movepi64_mask(bits_as<__m512i>(mask));
#elif defined(__AVX2__)
  if constexpr (kFourBytes) return uint32_t(_mm256_movemask_ps(bits_as<__m256>(mask)));
  else return uint32_t(_mm256_movemask_pd(bits_as<__m256d>(mask)));
#elif defined(__SSE2__)
  if constexpr (kFourBytes) return uint32_t(_mm_movemask_ps(bits_as<__m128>(mask)));
  else return uint32_t(_mm_movemask_pd(bits_as<__m128d>(mask)));
#else
  uint64_t bits = 0;
  for (int64_t i = 0; i < int64_t(sizeof(Mask) / sizeof(mask[0])); ++i) bits |= uint64_t(mask[i] != 0) << i;
  return bits;
#endif
}

template <int64_t Count> struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(Count)));
};

// A comparison's result as bytes: 1 in the lanes where it holds, 0 in the others.
template <typename Mask>
inline void store_truth(Mask mask, uint8_t* to) {
  using Bytes = typename BytesOf<sizeof(Mask) / sizeof(mask[0])>::type;
  const Bytes bytes = __builtin_convertvector(mask, Bytes) & 1;
  std::memcpy(to, &bytes, sizeof bytes);
}
template <typename Mask>
inline void store_truth(Mask mask, uint8_t* to, int64_t count) {
  uint8_t part[sizeof(Mask) / sizeof(mask[0])];
  store_truth(mask, part);
  std::memcpy(to, part, size_t(count));
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
