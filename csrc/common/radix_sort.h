// A stable sort by integer keys, and keys for falling scores and rising group numbers.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/numeric.h"

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

template <typename Key> struct Keyed {
  Key key;
  int64_t item;
};

// By rising key, a byte at a time from the lowest. A byte that all keys share costs nothing.
template <typename Key>
inline void radix_sort(std::vector<Keyed<Key>>* entries) {
  constexpr int kBytes = int(sizeof(Key));
  int64_t begins[kBytes][256] = {};
  for (const Keyed<Key>& entry : *entries)
    for (int byte = 0; byte < kBytes; ++byte) ++begins[byte][entry.key >> (8 * byte) & 255];
  const int64_t count = int64_t(entries->size());
  std::vector<Keyed<Key>> other(entries->size());
  for (int byte = 0; byte < kBytes; ++byte) {
    if (count == 0 || begins[byte][entries->front().key >> (8 * byte) & 255] == count) continue;
    int64_t total = 0;
    for (int64_t& begin : begins[byte]) total += std::exchange(begin, total);
    for (const Keyed<Key>& entry : *entries) other[size_t(begins[byte][entry.key >> (8 * byte) & 255]++)] = entry;
    entries->swap(other);
  }
}

// Rises as the score falls; NaN comes before all, and -0 equals 0, as in torch.sort.
inline uint32_t falling_key(float score) {
  if (score != score) return 0;
  const uint32_t bits = bits_of_float(score + 0.0f);
  return bits >> 31 ? bits : ~bits & 0x7fffffff;
}
inline uint64_t falling_key(double score) {
  if (score != score) return 0;
  uint64_t bits;
  score += 0.0;
  std::memcpy(&bits, &score, sizeof bits);
  return bits >> 63 ? bits : ~bits & 0x7fffffffffffffff;
}

inline uint64_t rising_key(int64_t number) { return uint64_t(number) ^ uint64_t(1) << 63; }

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
