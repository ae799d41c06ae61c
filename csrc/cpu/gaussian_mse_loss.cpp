#include "ops/gaussian_mse_loss.h"

#include "cpu/gaussian_target.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kStreamedBytes = 1 << 23;  // gradients of this size and more are written past the caches
constexpr int64_t kGrain = 1 << 15;          // elements below which a second thread costs more than it gives

// The maps in parts of whole rows, which depend on nothing but the sizes: so does the order of every sum.
struct Blocks {
  int64_t maps;      // planes; or images, where the channels of a pixel lie together
  int64_t channels;  // of a block: 1, or all
  int64_t rows, per_map;
};

Blocks blocks_of(const GaussianLossArguments& a) {
  const int64_t channels = channels_of(a.gaussians), rows = rows_of_block(a.gaussians, a.packed);
  return {a.gaussians.batch * (a.packed ? 1 : channels), a.packed ? channels : 1, rows, (a.gaussians.height + rows - 1) / rows};
}

struct Block {
  int64_t b, channel, first, last, number;
};

// body(target, block) for all blocks.
template <typename A, typename Body>
void for_blocks(const GaussianLossArguments& a, const Body& body) {
  const Blocks blocks = blocks_of(a);
  const int64_t channels = channels_of(a.gaussians), height = a.gaussians.height;
  parallel_for(0, blocks.maps * blocks.per_map, 1 + kGrain / (blocks.rows * a.gaussians.width * blocks.channels), [&](int64_t from, int64_t to) {
    GaussianTarget<A> target(a.gaussians, a.packed);
    for (int64_t task = from; task < to; ++task) {
      const int64_t map = task / blocks.per_map, number = task % blocks.per_map, first = number * blocks.rows;
      const int64_t last = first + blocks.rows < height ? first + blocks.rows : height;
      body(target, Block{a.packed ? map : map / channels, a.packed ? 0 : map % channels, first, last, number});
    }
    end_streaming();
  });
}

template <typename T>
const T* row_of(const GaussianLossArguments& a, const Block& block, int64_t y) {
  return static_cast<const T*>(a.prediction) + block.b * a.stride[0] + block.channel * a.stride[1] + y * a.stride[2];
}

// Calls body(values, target, count) for the rows of a plane's block: all at once where they follow one another.
template <typename T, typename A, typename Body>
void for_runs(const GaussianLossArguments& a, const Block& block, A* target, const Body& body) {
  const int64_t width = a.gaussians.width;
  if (a.stride[2] == width * a.stride[3]) return body(row_of<T>(a, block, block.first), target, (block.last - block.first) * width);
  for (int64_t y = block.first; y < block.last; ++y) body(row_of<T>(a, block, y), target + (y - block.first) * width, width);
}

template <typename A>
Vector<A> take_vector(A* from) {  // and leaves zeros
  const Vector<A> value = load_vector(from);
  store_vector(Vector<A>{}, from);
  return value;
}

template <typename A>
Vector<A> take_vector(A* from, int64_t count) {
  const Vector<A> value = load_vector(from, count);
  store_vector(Vector<A>{}, from, count);
  return value;
}

template <typename T, typename A>
A sum_of_squares(const T* values, int64_t stride, A* target, int64_t count) {
  constexpr int64_t width = kWidth<A>;
  Vector<A> sum[4] = {};
  int64_t i = 0;
  if (stride == 1) {
    for (; i + 4 * width <= count; i += 4 * width) {
      for (int64_t j = 0; j < 4; ++j) {
        const Vector<A> difference = load_vector(values + i + j * width) - take_vector(target + i + j * width);
        sum[j] = multiply_add(difference, difference, sum[j]);
      }
    }
  }
  for (; i < count; i += width) {
    const int64_t part = count - i < width ? count - i : width;
    const Vector<A> difference = load_strided(values + i * stride, stride, part) - take_vector(target + i, part);
    sum[0] = multiply_add(difference, difference, sum[0]);
  }
  return sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// The sums of a block in which the channels of a pixel lie together. The channels of a vector repeat after as many vectors
// as there are channels, so that each of these has a sum of its own.
template <typename T, typename A>
void sum_packed_squares(const T* values, A* target, int64_t count, int64_t channels, std::vector<A>* sums, double* totals, int64_t step) {
  constexpr int64_t width = kWidth<A>;
  sums->assign(size_t(channels * width), A(0));
  A* sum = sums->data();
  int64_t j = 0;
  for (int64_t i = 0; i < count; i += width, j = j + 1 == channels ? 0 : j + 1) {
    const bool whole = i + width <= count;
    const Vector<A> value = whole ? load_vector(values + i) : load_vector(values + i, count - i);
    const Vector<A> difference = value - (whole ? take_vector(target + i) : take_vector(target + i, count - i));
    store_vector(multiply_add(difference, difference, load_vector(sum + j * width)), sum + j * width);
  }
  for (int64_t c = 0; c < channels; ++c) totals[c * step] = 0;
  for (int64_t i = 0, c = 0; i < channels * width; ++i, c = c + 1 == channels ? 0 : c + 1) totals[c * step] += double(sum[i]);
}

template <typename A>
void write_loss(const GaussianLossArguments& a, const std::vector<double>& partial, int64_t per_map) {
  const GaussianArguments& g = a.gaussians;
  const int64_t channels = channels_of(g);
  double total = 0;
  for (int64_t map = 0; map < g.batch * channels; ++map) {
    const double weight = channel_weight<A>(g, map / channels, map % channels);
    double sum = 0;
    for (int64_t i = 0; i < per_map; ++i) sum += partial[map * per_map + i];
    const double loss = weight == 0 ? 0 : sum * (weight * weight) * loss_scale(g);
    if (a.reduction == Reduction::none) static_cast<A*>(a.loss)[map] = A(loss);
    total += loss;
  }
  if (a.reduction != Reduction::none) *static_cast<A*>(a.loss) = A(total * reduction_scale(a));
}

template <typename T>
void forward(const GaussianLossArguments& a) {
  using A = Accumulate<T>;
  prepare_joints<A>(a.gaussians);
  const int64_t channels = channels_of(a.gaussians), per_map = blocks_of(a).per_map;
  std::vector<double> partial(size_t(a.gaussians.batch * channels * per_map), 0.0);
  for_blocks<A>(a, [&](GaussianTarget<A>& target, const Block& block) {
    double* sums = partial.data() + (block.b * channels + block.channel) * per_map + block.number;
    if (a.packed) {
      thread_local std::vector<A> scratch;
      A* drawn = target.draw(block.b, 0, block.first, block.last);
      const int64_t count = (block.last - block.first) * a.gaussians.width * channels;
      sum_packed_squares(row_of<T>(a, block, block.first), drawn, count, channels, &scratch, sums, per_map);
    } else if (channel_weight<A>(a.gaussians, block.b, block.channel) != A(0)) {
      A* drawn = target.draw(block.b, block.channel, block.first, block.last);
      for_runs<T>(a, block, drawn, [&](const T* values, A* expected, int64_t count) {
        *sums += double(sum_of_squares(values, a.stride[3], expected, count));
      });
    }
  });
  write_loss<A>(a, partial, per_map);
}

template <typename T>
void write_vector(Vector<Accumulate<T>> value, T* to, bool streamed) {
  if (streamed)
    stream_vector(value, to);
  else
    store_vector(value, to);
}

// How many elements lie before the first address that can be streamed to.
template <typename T>
int64_t unaligned_count(const T* out, int64_t count) {
  const int64_t beyond = int64_t(reinterpret_cast<uintptr_t>(out) % kVectorBytes) / int64_t(sizeof(T));
  const int64_t before = beyond == 0 ? 0 : kVectorBytes / int64_t(sizeof(T)) - beyond;
  return before < count ? before : count;
}

// factor * (values - target), for one factor.
template <typename T, typename A>
void gradient_run(const T* values, int64_t stride, A* target, int64_t count, A factor, T* out, bool streamed) {
  constexpr int64_t width = kWidth<A>;
  const auto part = [&](int64_t from, int64_t size) {
    store_vector(factor * (load_strided(values + from * stride, stride, size) - take_vector(target + from, size)), out + from, size);
  };
  int64_t i = unaligned_count(out, count);
  for (int64_t j = 0; j < i; j += width) part(j, i - j < width ? i - j : width);
  if (stride == 1)
    for (; i + width <= count; i += width) write_vector(factor * (load_vector(values + i) - take_vector(target + i)), out + i, streamed);
  for (; i < count; i += width) part(i, count - i < width ? count - i : width);
}

// The same with a factor for each channel of a pixel. A factor of 0 gives 0, also times NaN.
template <typename A>
Vector<A> packed_gradient(Vector<A> factor, Vector<A> difference) {
  return factor == A(0) ? Vector<A>{} : factor * difference;
}

// `factors` holds those of a pixel's channels, and again as many as a vector has elements: a vector may begin with any.
template <typename T, typename A>
void gradient_packed(const T* values, A* target, int64_t count, int64_t channels, const std::vector<A>& factors, T* out, bool streamed) {
  constexpr int64_t width = kWidth<A>;
  int64_t i = unaligned_count(out, count);
  const A* factor = factors.data();
  for (int64_t j = 0, c = 0; j < i; ++j, c = c + 1 == channels ? 0 : c + 1) {
    store(factor[c] == A(0) ? A(0) : factor[c] * (load(values[j]) - target[j]), out + j);
    target[j] = A(0);
  }
  int64_t phase = i % channels;  // the channel that the next vector begins with
  const auto next = [&] {
    const Vector<A> value = load_vector(factor + phase);
    for (phase += width; phase >= channels;) phase -= channels;
    return value;
  };
  for (; i + width <= count; i += width)
    write_vector(packed_gradient<A>(next(), load_vector(values + i) - take_vector(target + i)), out + i, streamed);
  const int64_t rest = count - i;
  if (rest > 0) store_vector(packed_gradient<A>(next(), load_vector(values + i, rest) - take_vector(target + i, rest)), out + i, rest);
}

template <typename T>
void backward(const GaussianLossArguments& a) {
  using A = Accumulate<T>;
  prepare_joints<A>(a.gaussians);
  const int64_t channels = channels_of(a.gaussians), pixels = a.gaussians.height * a.gaussians.width, width = a.gaussians.width;
  const bool streamed = a.gaussians.batch * channels * pixels * int64_t(sizeof(T)) >= kStreamedBytes;
  for_blocks<A>(a, [&](GaussianTarget<A>& target, const Block& block) {
    const int64_t count = (block.last - block.first) * width;
    if (a.packed) {
      thread_local std::vector<A> factors;
      factors.resize(size_t(channels + kWidth<A>));
      for (int64_t i = 0; i < channels + kWidth<A>; ++i)
        factors[i] = i < channels ? gradient_factor<A>(a, block.b, i) : factors[i - channels];
      T* out = static_cast<T*>(a.out) + (block.b * pixels + block.first * width) * channels;
      A* drawn = target.draw(block.b, 0, block.first, block.last);
      gradient_packed(row_of<T>(a, block, block.first), drawn, count * channels, channels, factors, out, streamed);
      return;
    }
    T* out = static_cast<T*>(a.out) + (block.b * channels + block.channel) * pixels + block.first * width;
    const A factor = gradient_factor<A>(a, block.b, block.channel);
    if (factor == A(0)) {
      std::memset(static_cast<void*>(out), 0, size_t(count) * sizeof(T));
      return;
    }
    A* drawn = target.draw(block.b, block.channel, block.first, block.last);
    for_runs<T>(a, block, drawn, [&](const T* values, A* expected, int64_t size) {
      gradient_run(values, a.stride[3], expected, size, factor, out + (expected - drawn), streamed);
    });
  });
}

}  // namespace

void gaussian_mse_loss(const GaussianLossArguments& arguments) {
  dispatch_floating(arguments.gaussians.dtype, [&](auto zero) { forward<decltype(zero)>(arguments); });
}

void gaussian_mse_loss_backward(const GaussianLossArguments& arguments) {
  dispatch_floating(arguments.gaussians.dtype, [&](auto zero) { backward<decltype(zero)>(arguments); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
