#include "ops/roi_pooling.h"

#include <vector>

#include "common/parallel.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kChannelBlock = 64;   // sums of a forward bin that stay in registers and L1
constexpr int64_t kGradientBlock = 16;  // channels of one backward task: one cache line of float

// The pixels and weights of each bin along one axis, without the zeros: bin p has taps [begin[p], begin[p + 1]).
template <typename A>
struct AxisTaps {
  std::vector<int64_t> begin, pixel;
  std::vector<A> weight;

  void fill(const RoiAxis<A>& axis, int64_t bins, int64_t size) {
    begin.assign(1, 0);
    pixel.clear();
    weight.clear();
    for (int64_t p = 0; p < bins; ++p) {
      int64_t first, last;
      pixel_range(axis, p, 1, size, &first, &last);
      for (int64_t i = first; i < last; ++i) {
        const A w = axis_weight(axis, p, i, size);
        if (w == A(0)) continue;
        pixel.push_back(i);
        weight.push_back(w);
      }
      begin.push_back(int64_t(pixel.size()));
    }
  }
};

template <typename A>
void fill_taps(const RoiAlignArguments& a, const RoiLevel& level, int64_t k, int64_t t, AxisTaps<A>* y, AxisTaps<A>* x) {
  const A* box = roi_box<A>(a, k, t);
  y->fill(roi_axis(box[1], box[3], A(level.scale), a.pooled_height, a.sampling_ratio, a.aligned), a.pooled_height, level.height);
  x->fill(roi_axis(box[0], box[2], A(level.scale), a.pooled_width, a.sampling_ratio, a.aligned), a.pooled_width, level.width);
}

// One bin of up to kChannelBlock channels that lie `stride` elements apart. With Packed the stride is 1, which the
// compiler vectorises.
template <bool Packed, typename T, typename A>
void sum_bin(const T* source, const RoiLevel& level, const AxisTaps<A>& y, int64_t p, const AxisTaps<A>& x, int64_t q, int64_t channels, A* sum) {
  const int64_t stride = Packed ? 1 : level.stride[1];
  for (int64_t c = 0; c < channels; ++c) sum[c] = A(0);
  for (int64_t i = y.begin[p]; i < y.begin[p + 1]; ++i) {
    for (int64_t j = x.begin[q]; j < x.begin[q + 1]; ++j) {
      const A w = y.weight[i] * x.weight[j];
      const T* pixel = source + y.pixel[i] * level.stride[3] + x.pixel[j] * level.stride[4];
      for (int64_t c = 0; c < channels; ++c) sum[c] = multiply_add(w, A(load(pixel[c * stride])), sum[c]);
    }
  }
}

// Channels outermost where they are planes, so that a plane stays in the cache for all bins of the roi.
template <bool Packed, typename T, typename A>
void pool_roi(const RoiAlignArguments& a, const RoiLevel& level, const T* source, T* out, const AxisTaps<A>& y, const AxisTaps<A>& x) {
  const int64_t block = Packed ? kChannelBlock : 1;
  A sum[kChannelBlock];
  for (int64_t c = 0; c < a.channels; c += block) {
    const int64_t channels = a.channels - c < block ? a.channels - c : block;
    for (int64_t p = 0; p < a.pooled_height; ++p) {
      for (int64_t q = 0; q < a.pooled_width; ++q) {
        sum_bin<Packed>(source + c * level.stride[1], level, y, p, x, q, channels, sum);
        T* bin = out + c * a.pooled_stride[1] + p * a.pooled_stride[3] + q * a.pooled_stride[4];
        for (int64_t i = 0; i < channels; ++i) store(sum[i], bin + i * a.pooled_stride[1]);
      }
    }
  }
}

template <typename T>
void forward(const RoiAlignArguments& a) {
  using A = Accumulate<T>;
  parallel_for(0, a.rois * a.frames, 1, [&](int64_t from, int64_t to) {
    AxisTaps<A> y, x;
    for (int64_t task = from; task < to; ++task) {
      const int64_t k = task / a.frames, t = task % a.frames, image = roi_image<A>(a, k);
      const RoiLevel& level = a.level[roi_level<A>(a, k)];
      fill_taps(a, level, k, t, &y, &x);
      if (image < 0) y.fill(RoiAxis<A>{A(0), A(0), A(0)}, a.pooled_height, level.height);
      const T* source = static_cast<const T*>(level.data) + (image < 0 ? 0 : image * level.stride[0] + t * level.stride[2]);
      T* out = static_cast<T*>(a.pooled) + k * a.pooled_stride[0] + t * a.pooled_stride[2];
      if (level.stride[1] == 1 && a.channels > 1)
        pool_roi<true>(a, level, source, out, y, x);
      else
        pool_roi<false>(a, level, source, out, y, x);
    }
  });
}

// A task owns a block of channels of one image, frame and level, and adds its rois in their order: the result has the
// same bits for any number of threads.
template <typename T, typename A>
void gradient_block(const RoiAlignArguments& a, int64_t l, int64_t image, int64_t t, int64_t c, const std::vector<int64_t>& rois,
                    const std::vector<AxisTaps<A>>& taps, std::vector<A>* scratch) {
  const RoiLevel& level = a.level[l];
  const int64_t channels = a.channels - c < kGradientBlock ? a.channels - c : kGradientBlock;
  scratch->assign(size_t(level.height * level.width * kGradientBlock), A(0));
  A gradient[kGradientBlock] = {};
  for (int64_t k : rois) {
    const AxisTaps<A>&y = taps[2 * (k * a.frames + t)], &x = taps[2 * (k * a.frames + t) + 1];
    const T* source = static_cast<const T*>(a.pooled) + k * a.pooled_stride[0] + c * a.pooled_stride[1] + t * a.pooled_stride[2];
    for (int64_t p = 0; p < a.pooled_height; ++p) {
      for (int64_t q = 0; q < a.pooled_width; ++q) {
        const T* bin = source + p * a.pooled_stride[3] + q * a.pooled_stride[4];
        for (int64_t i = 0; i < channels; ++i) gradient[i] = load(bin[i * a.pooled_stride[1]]);
        for (int64_t i = y.begin[p]; i < y.begin[p + 1]; ++i) {
          for (int64_t j = x.begin[q]; j < x.begin[q + 1]; ++j) {
            const A w = y.weight[i] * x.weight[j];
            A* pixel = scratch->data() + (y.pixel[i] * level.width + x.pixel[j]) * kGradientBlock;
            for (int64_t n = 0; n < kGradientBlock; ++n) pixel[n] = multiply_add(w, gradient[n], pixel[n]);
          }
        }
      }
    }
  }
  T* out = static_cast<T*>(level.data) + image * level.stride[0] + c * level.stride[1] + t * level.stride[2];
  for (int64_t i = 0; i < channels; ++i)
    for (int64_t row = 0; row < level.height; ++row)
      for (int64_t column = 0; column < level.width; ++column)
        store((*scratch)[(row * level.width + column) * kGradientBlock + i], out + i * level.stride[1] + row * level.stride[3] + column * level.stride[4]);
}

template <typename T>
void backward(const RoiAlignArguments& a) {
  using A = Accumulate<T>;
  std::vector<AxisTaps<A>> taps(size_t(2 * a.rois * a.frames));
  parallel_for(0, a.rois * a.frames, 8, [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; ++task)
      fill_taps(a, a.level[roi_level<A>(a, task / a.frames)], task / a.frames, task % a.frames, &taps[2 * task], &taps[2 * task + 1]);
  });
  std::vector<std::vector<int64_t>> rois_of(size_t(a.levels * a.batch));  // level by level, image by image
  for (int64_t k = 0; k < a.rois; ++k) {
    const int64_t image = roi_image<A>(a, k);
    if (image >= 0) rois_of[roi_level<A>(a, k) * a.batch + image].push_back(k);
  }
  const int64_t blocks = (a.channels + kGradientBlock - 1) / kGradientBlock, per_image = a.frames * blocks;
  parallel_for(0, a.levels * a.batch * per_image, 1, [&](int64_t from, int64_t to) {
    std::vector<A> scratch;
    for (int64_t task = from; task < to; ++task) {
      const int64_t owner = task / per_image, t = task % per_image / blocks, c = task % blocks * kGradientBlock;
      gradient_block<T>(a, owner / a.batch, owner % a.batch, t, c, rois_of[owner], taps, &scratch);
    }
  });
}

}  // namespace

void roi_pooling_forward(const RoiAlignArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { forward<decltype(zero)>(arguments); });
}

void roi_pooling_backward(const RoiAlignArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { backward<decltype(zero)>(arguments); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
