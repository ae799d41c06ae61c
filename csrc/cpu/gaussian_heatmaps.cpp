#include "ops/gaussian_heatmaps.h"

#include "cpu/gaussian_target.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kStreamedBytes = 1 << 23;  // results of this size and more are written past the caches

// Moves `count` numbers out of the buffer and leaves zeros.
template <typename T, typename A>
void move_out(A* from, T* to, int64_t count, bool streamed) {
  int64_t i = 0;
  for (; i < count && reinterpret_cast<uintptr_t>(to + i) % kVectorBytes; ++i) store(from[i], to + i), from[i] = A(0);
  for (; i + kWidth<A> <= count; i += kWidth<A>) {
    const Vector<A> value = load_vector(from + i);
    store_vector(Vector<A>{}, from + i);
    if (streamed)
      stream_vector(value, to + i);
    else
      store_vector(value, to + i);
  }
  for (; i < count; ++i) store(from[i], to + i), from[i] = A(0);
}

template <typename T>
void run(const GaussianHeatmapsArguments& arguments) {
  using A = Accumulate<T>;
  const GaussianArguments& a = arguments.gaussians;
  prepare_joints<A>(a);
  const int64_t channels = channels_of(a), packed_channels = arguments.packed ? channels : 1, maps = a.batch * channels / packed_channels;
  const int64_t pixels = a.height * a.width, total = maps * packed_channels * pixels;
  if (total == 0) return;
  const int64_t rows = rows_of_block(a, arguments.packed), blocks = (a.height + rows - 1) / rows;
  const bool streamed = total * int64_t(sizeof(T)) >= kStreamedBytes;
  parallel_for(0, maps * blocks, 1 + (1 << 15) / (rows * a.width * packed_channels), [&](int64_t from, int64_t to) {
    GaussianTarget<A> target(a, arguments.packed);
    for (int64_t task = from; task < to; ++task) {
      const int64_t map = task / blocks, first = task % blocks * rows, last = first + rows < a.height ? first + rows : a.height;
      const int64_t b = arguments.packed ? map : map / channels, channel = arguments.packed ? 0 : map % channels;
      T* out = static_cast<T*>(arguments.out) + (map * pixels + first * a.width) * packed_channels;
      move_out(target.draw(b, channel, first, last), out, (last - first) * a.width * packed_channels, streamed);
    }
    end_streaming();
  });
}

}  // namespace

void gaussian_heatmaps(const GaussianHeatmapsArguments& arguments) {
  dispatch_floating(arguments.gaussians.dtype, [&](auto zero) { run<decltype(zero)>(arguments); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
