// Rows of Gaussian targets in a buffer that stays in the cache, for the CPU kernels of gaussian_heatmaps and
// gaussian_mse_loss: drawn once, used up by the caller, and zero again.
#pragma once
#include <vector>

#include "common/gaussian_math.h"
#include "common/parallel.h"
#include "common/vector_math.h"

namespace pyposeext::PYPOSEEXT_LEVEL {

// Fills the Gaussians and the weights of all joints.
template <typename A>
void prepare_joints(const GaussianArguments& a) {
  parallel_for(0, a.batch * a.joints, 1 + (1 << 12) / (1 + a.people), [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) prepare_joint<A>(a, i / a.joints, i % a.joints);
  });
}

// A task's rows: few enough that they stay in the first cache, or the second where the channels of a pixel lie together.
inline int64_t rows_of_block(const GaussianArguments& a, bool packed) {
  const int64_t elements = packed ? 1 << 14 : 1 << 13, row = packed ? a.width * channels_of(a) : a.width;
  const int64_t rows = elements / row < 1 ? 1 : elements / row;
  return rows < a.height ? rows : a.height;
}

template <typename A>
class GaussianTarget {
 public:
  GaussianTarget(const GaussianArguments& arguments, bool packed) : a(arguments), packed_(packed) {
    const int64_t pixels = rows_of_block(a, packed) * a.width;
    rows_.resize(size_t(pixels * (packed ? channels_of(a) : 1) + 2 * kWidth<A>));
    if (packed && a.background != Background::none) background_.resize(size_t(pixels + kWidth<A>));
    along_x_.resize(size_t(a.width + kWidth<A>));
    along_y_.resize(size_t(a.height + kWidth<A>));
  }

  // Rows [first, last) of a channel, in the order of the rows; or of all channels, packed. The caller writes 0 over what it
  // has read before it draws again.
  A* draw(int64_t b, int64_t channel, int64_t first, int64_t last) {
    A* rows = aligned(rows_.data());
    if (!packed_) {
      draw_channel(b, channel, first, last, rows, a.width, 1);
      return rows;
    }
    const int64_t channels = channels_of(a);
    for (int64_t c = 0; c < channels; ++c) {
      if (c != background_channel(a)) {
        draw_channel(b, c, first, last, rows + c, channels * a.width, channels);
        continue;
      }
      draw_channel(b, c, first, last, background_.data(), a.width, 1);
      for (int64_t p = 0; p < (last - first) * a.width; ++p) {
        rows[p * channels + c] = background_[p];
        background_[p] = A(0);
      }
    }
    return rows;
  }

 private:
  static A* aligned(A* at) {
    const int64_t beyond = int64_t(reinterpret_cast<uintptr_t>(at) % kVectorBytes);
    return at + (kVectorBytes - beyond) % kVectorBytes / int64_t(sizeof(A));
  }

  void draw_channel(int64_t b, int64_t channel, int64_t first, int64_t last, A* rows, int64_t row_stride, int64_t stride) {
    const GaussianSet<A> set = gaussian_set<A>(a, b, channel);
    for (int64_t i = 0; i < set.count; ++i) draw_gaussian(set.first[i], first, last, rows, row_stride, stride);
    if (!set.background) return;
    const int64_t count = (last - first) * a.width;
    for (int64_t p = 0; p < count; p += kWidth<A>) {
      const int64_t part = count - p < kWidth<A> ? count - p : kWidth<A>;
      store_vector(larger(A(1) - load_vector(rows + p, part), Vector<A>{}), rows + p, part);
    }
  }

  void draw_gaussian(const Gaussian<A>& gaussian, int64_t first, int64_t last, A* rows, int64_t row_stride, int64_t stride) {
    const int64_t top = gaussian.top > first ? gaussian.top : first, bottom = gaussian.bottom < last ? gaussian.bottom : last;
    const int64_t count = gaussian.right - gaussian.left;
    if (top >= bottom || count <= 0) return;
    fill_axis(gaussian.y, top, bottom - top, A(a.amplitude), along_y_.data());
    fill_axis(gaussian.x, gaussian.left, count, A(1), along_x_.data());
    for (int64_t y = top; y < bottom; ++y) {
      const A factor = along_y_[y - top];
      A* row = rows + (y - first) * row_stride + gaussian.left * stride;
      if (stride == 1)
        draw_row(factor, count, row);
      else
        draw_strided_row(factor, count, row, stride);
    }
  }

  // factor * e^(scale * (position - centre)^2) for `count` positions from `start`, then zeros to the end of a vector.
  void fill_axis(A centre, int64_t start, int64_t count, A factor, A* values) const {
    for (int64_t i = 0; i < count; i += kWidth<A>) {
      const Vector<A> distance = lane_numbers<A>() + A(start + i) - centre;
      store_vector(factor * exp_of(A(a.scale) * (distance * distance)), values + i);
    }
    for (int64_t i = count; i % kWidth<A>; ++i) values[i] = A(0);
  }

  // Whole vectors: beyond the Gaussian they keep what is there.
  void draw_row(A factor, int64_t count, A* row) const {
    const Vector<A> cutoff = broadcast(A(a.cutoff));
    for (int64_t i = 0; i < count; i += kWidth<A>) {
      const Vector<A> value = factor * load_vector(along_x_.data() + i);
      store_vector(larger(value < cutoff ? Vector<A>{} : value, load_vector(row + i)), row + i);
    }
  }

  void draw_strided_row(A factor, int64_t count, A* row, int64_t stride) const {
    for (int64_t i = 0; i < count; ++i, row += stride) {
      const A value = factor * along_x_[i];
      if (value > *row && value >= A(a.cutoff)) *row = value;
    }
  }

  GaussianArguments a;
  bool packed_;
  std::vector<A> rows_, background_, along_x_, along_y_;
};

}  // namespace pyposeext::PYPOSEEXT_LEVEL
