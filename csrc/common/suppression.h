// Greedy non-maximum suppression, one engine for every similarity of common/similarity.h: what the ops hand to it.
#pragma once
#include <limits>

#include "common/numeric.h"

namespace pyposeext {

constexpr int64_t kChunk = 1024;                  // CUDA: entries of a group that one block decides together
constexpr int64_t kWordBits = 32;                 // CUDA: entries that one word of the mask is about
constexpr int64_t kChunkWords = kChunk / kWordBits;

struct SuppressionArguments {
  DType dtype;            // of the entries
  int64_t count;          // N
  double threshold;       // an entry goes where its similarity to a kept one is above this
  DType score_dtype;
  const void* scores;     // [N]
  int64_t score_stride;
  const int64_t* groups;  // [N], entries of different groups never suppress each other; or null
  int64_t group_stride;
  int64_t* kept;          // [N]: the entries kept, by falling score, then -1
  int64_t* kept_count;    // []

  // CUDA only, [N] each unless said otherwise. A rank is a place in the order of falling scores; a position is a place in
  // the order of groups and, inside a group, of falling scores.
  const int64_t* order;          // the entry of each rank
  const int64_t* ranks;          // the rank of each position; null where there are no groups
  const int64_t* sorted_groups;  // the group of each position; null where there are none
  void* fields;                  // [fields, N], scratch: what the similarity reads of each position
  int64_t *begins, *ends;        // scratch: the first position of each position's group, and the one behind its last
  uint32_t* mask;                // [kChunkWords, N], scratch: the positions before each in its chunk that suppress it
  uint8_t* removed;              // scratch: positions that are suppressed
  uint8_t* kept_at_rank;         // scratch
};

inline namespace PYPOSEEXT_LEVEL {

// For a value of type A, value > threshold exactly when value > the largest A that is not above the double threshold.
template <typename A>
inline A threshold_as(double threshold) {
  const A rounded = A(threshold);
  return double(rounded) > threshold ? std::nextafter(rounded, -std::numeric_limits<A>::infinity()) : rounded;
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
