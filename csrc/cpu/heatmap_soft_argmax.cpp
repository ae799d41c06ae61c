#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/vector_math.h"
#include "cpu/heatmap_maps.h"
#include "ops/heatmap_argmax.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kRows = 16;                   // whose sums are kept in the accumulation type before they are added in double
constexpr int64_t kStreamedBytes = 16 << 20;    // a result of this size is written past the caches

struct Sums {  // of w, w * x and w * y
  double total = 0, along_x = 0, along_y = 0;
};

template <typename A>
Vector<A> weights(Vector<A> value, const SoftExponent<A>& exponent) {
  return exp2_vector(multiply_add(value, broadcast(exponent.scale), broadcast(exponent.shift)));
}

// `body(values, x, count)` for the vectors of a row: `count` lanes of each lie in it.
template <typename T, typename Body>
void for_row(const T* row, int64_t width, const Body& body) {
  constexpr int64_t lanes = kWidth<Accumulate<T>>;
  int64_t x = 0;
  for (; x + lanes <= width; x += lanes) body(load_vector(row + x), x, lanes);
  if (x < width) body(load_vector(row + x, width - x), x, width - x);
}

// The sums over a dense map. While they are computed the memory behind the map, most often the next one, is fetched.
template <typename T>
Sums sum_map(const MapView<T>& map, const SoftExponent<Accumulate<T>>& exponent) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kWidth<A>;
  const T* next = map.data + map.height * map.width;
  Sums sums;
  for (int64_t first = 0; first < map.height; first += kRows) {
    Vector<A> total{}, along_x{}, along_y{};
    for (int64_t y = first; y < map.height && y < first + kRows; ++y) {
      Vector<A> row{}, numbers = lane_numbers<A>();
      for_row(map.data + y * map.width, map.width, [&](Vector<A> values, int64_t x, int64_t count) {
        __builtin_prefetch(next + y * map.width + x);
        Vector<A> weight = weights(values, exponent);
        if (count < lanes) weight = lane_numbers<A>() < A(count) ? weight : Vector<A>{};
        row += weight;
        along_x = multiply_add(weight, numbers, along_x);
        numbers += A(lanes);
      });
      total += row;
      along_y = multiply_add(row, broadcast(A(y - first)), along_y);
    }
    for (int64_t i = 0; i < lanes; ++i) {
      sums.total += double(total[i]);
      sums.along_x += double(along_x[i]);
      sums.along_y += double(along_y[i]) + double(first) * double(total[i]);
    }
  }
  return sums;
}

// What is known of each lane of packed pixels, and what is summed in it.
template <typename A>
struct PackedLanes {
  explicit PackedLanes(int64_t joints)
      : size(joints * kWidth<A>), shift(size_t(size)), total(size_t(size)), along_x(size_t(size)), along_y(size_t(size)) {}
  int64_t size;
  std::vector<A> shift, total, along_x, along_y;
};

// Adds the sums over rows `first` to `last` of packed pixels to those of each joint.
template <typename T>
void sum_packed_rows(const HeatmapSoftArgmaxArguments& a, int64_t image, int64_t first, int64_t last, PackedLanes<Accumulate<T>>* lanes, Sums* sums) {
  using A = Accumulate<T>;
  const Vector<A> scale = broadcast(soft_exponent(a, A(0)).scale);
  for (std::vector<A>* numbers : {&lanes->total, &lanes->along_x, &lanes->along_y}) std::fill(numbers->begin(), numbers->end(), A(0));
  for (int64_t y = first; y < last; ++y) {
    const PackedRow<T> pixels = packed_row<T>(a, image, y);
    for (int64_t v = 0; v < a.joints; ++v) {
      const int64_t at = v * kWidth<A>;
      const Vector<A> shift = load_vector(&lanes->shift[size_t(at)]);
      Vector<A> row{}, along_x = load_vector(&lanes->along_x[size_t(at)]);
      pixels.for_vectors(v, kNothing<A>, [&](Vector<A> values, int64_t pixel) {
        const Vector<A> weight = exp2_vector(multiply_add(values, scale, shift));
        row += weight;
        along_x = multiply_add(weight, broadcast(A(pixel)), along_x);
      });
      store_vector(along_x, &lanes->along_x[size_t(at)]);
      store_vector(load_vector(&lanes->total[size_t(at)]) + row, &lanes->total[size_t(at)]);
      store_vector(multiply_add(row, broadcast(A(y - first)), load_vector(&lanes->along_y[size_t(at)])), &lanes->along_y[size_t(at)]);
    }
  }
  for (int64_t pixel = 0, i = 0; i < lanes->size; ++pixel) {
    for (int64_t k = 0; k < a.joints; ++k, ++i) {
      const double total = double(lanes->total[size_t(i)]);
      sums[k].total += total;
      sums[k].along_x += double(lanes->along_x[size_t(i)]) + double(pixel) * total;
      sums[k].along_y += double(lanes->along_y[size_t(i)]) + double(first) * total;
    }
  }
}

template <typename T>
void packed_soft_argmax(const HeatmapSoftArgmaxArguments& a) {
  using A = Accumulate<T>;
  parallel_for(0, a.batch, 1, [&](int64_t from, int64_t to) {
    std::vector<A> scratch;
    std::vector<Peak<A>> peaks(size_t(a.joints));
    std::vector<Sums> sums(size_t(a.joints));
    PackedLanes<A> lanes(a.joints);
    for (int64_t image = from; image < to; ++image) {
      find_packed_peaks<T>(a, image, &scratch, peaks.data());
      for (int64_t i = 0; i < lanes.size; ++i) lanes.shift[size_t(i)] = soft_exponent(a, peaks[size_t(i % a.joints)].value).shift;
      std::fill(sums.begin(), sums.end(), Sums());
      for (int64_t first = 0; first < a.height; first += kRows)
        sum_packed_rows<T>(a, image, first, first + kRows < a.height ? first + kRows : a.height, &lanes, sums.data());
      for (size_t k = 0; k < sums.size(); ++k)
        write_mean(a, image * a.joints + int64_t(k), peaks[k], sums[k].total, sums[k].along_x, sums[k].along_y);
    }
  });
}

template <typename T>
void soft_argmax(const HeatmapSoftArgmaxArguments& a) {
  using A = Accumulate<T>;
  if (are_packed(a)) return packed_soft_argmax<T>(a);
  for_maps<T>(a, [&](int64_t map, const auto& view, std::vector<A>&) {
    const Peak<A> peak = find_peak(view);
    const Sums sums = sum_map(view, soft_exponent(a, peak.value));
    write_mean(a, map, peak, sums.total, sums.along_x, sums.along_y);
  });
}

// The gradient of one dense map.
template <typename T, typename A>
void gradient_map(const MapView<T>& map, const SoftGradient<A>& soft, A* out) {
  constexpr int64_t lanes = kWidth<A>;
  const T* next = map.data + map.height * map.width;
  for (int64_t y = 0; y < map.height; ++y) {
    const Vector<A> from_row = broadcast(soft.along_y * (A(y) - soft.mean_y)), along_x = broadcast(soft.along_x);
    Vector<A> from_mean = lane_numbers<A>() - soft.mean_x;
    for_row(map.data + y * map.width, map.width, [&](Vector<A> values, int64_t x, int64_t count) {
      __builtin_prefetch(next + y * map.width + x);
      const Vector<A> result = weights(values, soft.exponent) * multiply_add(along_x, from_mean, from_row);
      if (count == lanes)
        store_vector(result, out + y * map.width + x);
      else
        store_vector(result, out + y * map.width + x, count);
      from_mean += A(lanes);
    });
  }
}

// A finished plane of gradients to where it belongs, converted.
template <typename T>
void write_plane(const HeatmapSoftArgmaxArguments& a, const Accumulate<T>* plane, T* out, int64_t stride_y, int64_t stride_x, bool past_caches) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kWidth<A>;
  const int64_t count = a.height * a.width;
  if (stride_x != 1 || stride_y != a.width) {
    for (int64_t y = 0; y < a.height; ++y)
      for (int64_t x = 0; x < a.width; ++x) store(plane[y * a.width + x], out + y * stride_y + x * stride_x);
    return;
  }
  int64_t i = 0;
  if constexpr (std::is_same_v<T, float>) {
    if (past_caches && reinterpret_cast<uintptr_t>(out) % kVectorBytes == 0)
      for (; i + lanes <= count; i += lanes) stream_vector(load_vector(plane + i), out + i);
  }
  for (; i + lanes <= count; i += lanes) store_vector(load_vector(plane + i), out + i);
  for (; i < count; ++i) store(plane[i], out + i);
}

// The same plane as the mirrored image's map sees it: column W - 1 gets two columns' gradients under the shift, column 0 none.
template <typename A>
void mirror_plane(const HeatmapSoftArgmaxArguments& a, A* plane, A* row) {
  for (int64_t y = 0; y < a.height; ++y) {
    A* values = plane + y * a.width;
    for (int64_t x = 0; x < a.width; ++x) row[x] = A(0);
    for (int64_t x = 0; x < a.width; ++x) row[mirrored_column(x, a.width, a.flip_shift)] += values[x];
    for (int64_t x = 0; x < a.width; ++x) values[x] = row[x];
  }
}

template <typename T>
void soft_argmax_backward(const HeatmapSoftArgmaxArguments& a) {
  using A = Accumulate<T>;
  const bool past_caches = a.batch * a.joints * a.height * a.width * int64_t(sizeof(T)) >= kStreamedBytes;
  for_maps<T>(a, [&](int64_t map, const auto& view, std::vector<A>& memory) {
    memory.resize(size_t(a.height * a.width + a.width));
    A* plane = memory.data();
    gradient_map(view, soft_gradient<A>(a, map), plane);
    const int64_t image = map / a.joints, joint = map % a.joints;
    write_plane(a, plane, static_cast<T*>(a.out) + image * a.out_stride[0] + joint * a.out_stride[1], a.out_stride[2], a.out_stride[3], past_caches);
    if (a.flipped != nullptr) {
      mirror_plane(a, plane, plane + a.height * a.width);
      T* out = static_cast<T*>(a.flipped_out) + image * a.flipped_out_stride[0] + counterpart(a, joint) * a.flipped_out_stride[1];
      write_plane(a, plane, out, a.flipped_out_stride[2], a.flipped_out_stride[3], past_caches);
    }
    if (past_caches) end_streaming();
  });
}

// Packed pixels in and out.
template <typename T>
void packed_soft_argmax_backward(const HeatmapSoftArgmaxArguments& a) {
  using A = Accumulate<T>;
  constexpr int64_t width = kWidth<A>;
  parallel_for(0, a.batch, 1, [&](int64_t from, int64_t to) {
    PackedLanes<A> lanes(a.joints);
    std::vector<A> from_mean(size_t(lanes.size)), mean_y(size_t(lanes.size));
    for (int64_t image = from; image < to; ++image) {
      for (int64_t i = 0; i < lanes.size; ++i) {
        const SoftGradient<A> soft = soft_gradient<A>(a, image * a.joints + i % a.joints);
        lanes.shift[size_t(i)] = soft.exponent.shift, lanes.total[size_t(i)] = soft.exponent.scale;
        lanes.along_x[size_t(i)] = soft.along_x, lanes.along_y[size_t(i)] = soft.along_y;
        from_mean[size_t(i)] = A(i / a.joints) - soft.mean_x, mean_y[size_t(i)] = soft.mean_y;
      }
      for (int64_t y = 0; y < a.height; ++y) {
        const PackedRow<T> pixels = packed_row<T>(a, image, y);
        T* out = static_cast<T*>(a.out) + image * a.out_stride[0] + y * a.out_stride[2];
        for (size_t v = 0; v < size_t(lanes.size); v += size_t(width)) {
          const Vector<A> shift = load_vector(&lanes.shift[v]), scale = load_vector(&lanes.total[v]), along_x = load_vector(&lanes.along_x[v]);
          const Vector<A> from_row = load_vector(&lanes.along_y[v]) * (A(y) - load_vector(&mean_y[v])), column = load_vector(&from_mean[v]);
          pixels.for_vectors(int64_t(v) / width, kNothing<A>, [&](Vector<A> values, int64_t pixel) {
            const Vector<A> weight = exp2_vector(multiply_add(values, scale, shift));
            const Vector<A> result = weight * multiply_add(along_x, column + A(pixel), from_row);
            const int64_t at = pixel * a.joints + int64_t(v), rest = a.width * a.joints - at;
            if (rest >= width)
              store_vector(result, out + at);
            else
              store_vector(result, out + at, rest);
          });
        }
      }
    }
  });
}

}  // namespace

void heatmap_soft_argmax(const HeatmapSoftArgmaxArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { soft_argmax<decltype(zero)>(arguments); });
}

void heatmap_soft_argmax_backward(const HeatmapSoftArgmaxArguments& arguments) {
  const bool packed = are_packed(arguments) && arguments.out_stride[1] == 1 && arguments.out_stride[3] == arguments.joints;
  dispatch_floating(arguments.dtype, [&](auto zero) {
    if (packed)
      packed_soft_argmax_backward<decltype(zero)>(arguments);
    else
      soft_argmax_backward<decltype(zero)>(arguments);
  });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
