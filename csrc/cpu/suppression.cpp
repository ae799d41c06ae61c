// Greedy suppression on the CPU. Each group, in the order of falling scores, is cut into tiles of columns. A tile is decided
// once all tiles before it in its group have suppressed what they can there; threads take whatever tile has work ready, so
// one large group and many small ones are shared out alike, and the result is the same for any number of threads.
#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "common/parallel.h"
#include "common/radix_sort.h"
#include "common/similarity.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kMostTileEntries = 256;

struct Tile {
  int64_t first;          // the first tile of its group
  int64_t begin;          // its first position; its entries that are not suppressed are moved to the front
  int64_t alive;          // how many these are
  int64_t fields;         // where in the store its columns begin
  int64_t stride;         // elements from one field's column to the next
  int64_t applied = -1;   // the tile up to which those before have been applied; -1 until its fields have been gathered
  std::atomic<bool> taken{false}, decided{false};
};

template <typename Similarity> class Suppressor {
 public:
  using Value = typename Similarity::Value;

  Suppressor(const SuppressionArguments& arguments, const Similarity& similarity) : a_(arguments), similarity_(similarity) {}

  void run() {
    sort_by_score();
    split_groups();
    if (pairs_ * similarity_.fields() < kWorthThreads || thread_count() == 1)
      decide_tiles();
    else
      parallel_for(0, thread_count(), 1, [&](int64_t, int64_t) { decide_tiles(); });
    write_kept();
  }

 private:
  static constexpr int64_t kWidth_ = kWidth<Value>;
  static constexpr int64_t kWorthThreads = 5000000;  // fields of pairs: about 0.2 ms of work

  void sort_by_score() {
    order_.resize(size_t(a_.count));
    dispatch_floating(a_.score_dtype, [&](auto zero) {
      using T = decltype(zero);
      using Key = decltype(falling_key(Accumulate<T>()));
      std::vector<Keyed<Key>> entries(static_cast<size_t>(a_.count));
      const T* scores = static_cast<const T*>(a_.scores);
      for (int64_t i = 0; i < a_.count; ++i) entries[size_t(i)] = {falling_key(load(scores[i * a_.score_stride])), i};
      radix_sort(&entries);
      for (int64_t i = 0; i < a_.count; ++i) order_[size_t(i)] = entries[size_t(i)].item;
    });
  }

  // Ranks with equal groups next to each other, falling score inside a group; then the tiles of every group.
  void split_groups() {
    ranks_.resize(size_t(a_.count));
    for (int64_t i = 0; i < a_.count; ++i) ranks_[size_t(i)] = i;
    std::vector<int64_t> begins{0};
    if (a_.groups != nullptr) {
      std::vector<Keyed<uint64_t>> entries(static_cast<size_t>(a_.count));
      for (int64_t i = 0; i < a_.count; ++i) entries[size_t(i)] = {rising_key(a_.groups[order_[size_t(i)] * a_.group_stride]), i};
      radix_sort(&entries);
      for (int64_t i = 0; i < a_.count; ++i) {
        ranks_[size_t(i)] = entries[size_t(i)].item;
        if (i > 0 && entries[size_t(i)].key != entries[size_t(i - 1)].key) begins.push_back(i);
      }
    }
    begins.push_back(a_.count);
    cut_into_tiles(begins);
  }

  void cut_into_tiles(const std::vector<int64_t>& begins) {
    const int64_t fitting = kTileBytes / (similarity_.fields() * int64_t(sizeof(Value))) / kWidth_ * kWidth_;
    const int64_t most = std::clamp(fitting, kLeastTileEntries, kMostTileEntries);
    int64_t count = 0, elements = 0;
    for (size_t group = 0; group + 1 < begins.size(); ++group) count += (begins[group + 1] - begins[group] + most - 1) / most;
    tiles_ = std::vector<Tile>(static_cast<size_t>(count));
    Tile* tile = tiles_.data();
    for (size_t group = 0; group + 1 < begins.size(); ++group) {
      const int64_t first = tile - tiles_.data(), size = begins[group + 1] - begins[group];
      pairs_ += size * (size - 1) / 2;
      for (int64_t begin = begins[group]; begin < begins[group + 1]; begin += most, ++tile) {
        tile->first = first;
        tile->begin = begin;
        tile->alive = std::min(most, begins[group + 1] - begin);
        tile->stride = (tile->alive + kWidth_ - 1) / kWidth_ * kWidth_;
        tile->fields = elements;
        elements += similarity_.fields() * tile->stride;
      }
    }
    store_.resize(size_t(elements));
  }

  // What every thread does until all tiles are decided: the first tile that is free and has work ready, again and again. A
  // thread waits only for work that another thread is doing right now, so any number of threads gets to the end.
  void decide_tiles() {
    const int64_t count = int64_t(tiles_.size());
    for (;;) {
      int64_t open = first_open_.load(std::memory_order_relaxed);
      while (open < count && tiles_[size_t(open)].decided.load(std::memory_order_acquire)) ++open;
      if (open == count) return;
      first_open_.store(open, std::memory_order_relaxed);
      bool worked = false;
      for (int64_t t = open; t < count && !worked; ++t) worked = advance(t);
      if (!worked) std::this_thread::yield();
    }
  }

  // Does what is ready in a tile. False where nothing is, or another thread has it.
  bool advance(int64_t index) {
    Tile& tile = tiles_[size_t(index)];
    if (tile.decided.load(std::memory_order_relaxed) || tile.taken.exchange(true, std::memory_order_acquire)) return false;
    bool worked = false;
    if (!tile.decided.load(std::memory_order_relaxed)) {
      if (tile.applied < 0) {
        gather(&tile);
        worked = true;
      }
      for (; tile.applied < index && tiles_[size_t(tile.applied)].decided.load(std::memory_order_acquire); ++tile.applied) {
        apply(tiles_[size_t(tile.applied)], &tile);
        worked = true;
      }
      if (tile.applied == index) {
        decide(&tile);
        tile.decided.store(true, std::memory_order_release);
        worked = true;
      }
    }
    tile.taken.store(false, std::memory_order_release);
    return worked;
  }

  void gather(Tile* tile) {
    for (int64_t i = 0; i < tile->alive; ++i)
      similarity_.gather(order_[size_t(ranks_[size_t(tile->begin + i)])], store_.data() + tile->fields + i, tile->stride);
    tile->applied = tile->first;
  }

  // The lanes of a tile's vectors that hold an entry.
  void all_lanes(const Tile& tile, uint32_t* lanes) const {
    for (int64_t i = 0; i < tile.alive; i += kWidth_)
      lanes[i / kWidth_] = uint32_t((uint64_t(1) << std::min(kWidth_, tile.alive - i)) - 1);
  }

  // Drops from a tile what the entries of a decided one suppress.
  void apply(const Tile& from, Tile* tile) {
    uint32_t lanes[kMostTileEntries / kWidth_];
    all_lanes(*tile, lanes);
    const Value* rows = store_.data() + from.fields;
    for (int64_t i = 0; i < tile->alive; i += kWidth_) {
      const Value* column = store_.data() + tile->fields + i;
      uint32_t left = lanes[i / kWidth_];
      for (int64_t row = 0; row < from.alive && left != 0; ++row)
        left &= ~similarity_.template suppressed<Vector<Value>>(rows + row, from.stride, column, tile->stride, left);
      lanes[i / kWidth_] = left;
    }
    compact(lanes, tile);
  }

  // Lets the entries of one tile suppress each other, in the order of falling scores.
  void decide(Tile* tile) {
    uint32_t lanes[kMostTileEntries / kWidth_];
    all_lanes(*tile, lanes);
    const Value* columns = store_.data() + tile->fields;
    for (int64_t row = 0; row < tile->alive; ++row) {
      if ((lanes[row / kWidth_] >> row % kWidth_ & 1) == 0) continue;
      uint64_t later = ~uint64_t(1) << row % kWidth_;  // in the row's own vector; all lanes in those behind it
      for (int64_t i = row / kWidth_ * kWidth_; i < tile->alive; i += kWidth_, later = ~uint64_t(0)) {
        const uint32_t wanted = lanes[i / kWidth_] & uint32_t(later);
        if (wanted == 0) continue;
        lanes[i / kWidth_] &= ~(wanted & similarity_.template suppressed<Vector<Value>>(columns + row, tile->stride, columns + i, tile->stride, wanted));
      }
    }
    compact(lanes, tile);
  }

  // Moves the entries whose lanes are set to the front, in their order.
  void compact(const uint32_t* lanes, Tile* tile) {
    int64_t from[kMostTileEntries], count = 0;
    for (int64_t i = 0; i < tile->alive; ++i)
      if (lanes[i / kWidth_] >> i % kWidth_ & 1) from[count++] = i;
    if (count == tile->alive) return;
    for (int64_t i = 0; i < count; ++i) ranks_[size_t(tile->begin + i)] = ranks_[size_t(tile->begin + from[i])];
    for (int64_t field = 0; field < similarity_.fields(); ++field) {
      Value* column = store_.data() + tile->fields + field * tile->stride;
      for (int64_t i = 0; i < count; ++i) column[i] = column[from[i]];
    }
    tile->alive = count;
  }

  void write_kept() {
    std::vector<uint8_t> kept(size_t(a_.count), 0);
    for (const Tile& tile : tiles_)
      for (int64_t i = 0; i < tile.alive; ++i) kept[size_t(ranks_[size_t(tile.begin + i)])] = 1;
    int64_t count = 0;
    for (int64_t rank = 0; rank < a_.count; ++rank)
      if (kept[size_t(rank)]) a_.kept[count++] = order_[size_t(rank)];
    *a_.kept_count = count;
    std::fill(a_.kept + count, a_.kept + a_.count, int64_t(-1));
  }

  static constexpr int64_t kTileBytes = 16384, kLeastTileEntries = 64;

  const SuppressionArguments& a_;
  const Similarity similarity_;
  std::vector<int64_t> order_;  // the entry of each rank: its place in the order of falling scores
  std::vector<int64_t> ranks_;  // the rank of each position; compacted with the tiles
  std::vector<Tile> tiles_;
  std::vector<Value> store_;
  std::atomic<int64_t> first_open_{0};
  int64_t pairs_ = 0;
};

}  // namespace

void nms(const NmsArguments& a) {
  dispatch_floating(a.suppression.dtype, [&](auto zero) { Suppressor(a.suppression, BoxSimilarity<decltype(zero)>(a)).run(); });
}

void oks_nms(const OksNmsArguments& a) {
  dispatch_floating(a.suppression.dtype, [&](auto zero) { Suppressor(a.suppression, OksSimilarity<decltype(zero)>(a)).run(); });
}

void tube_nms(const TubeNmsArguments& a) {
  dispatch_floating(a.suppression.dtype, [&](auto zero) { Suppressor(a.suppression, TubeSimilarity<decltype(zero)>(a)).run(); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
