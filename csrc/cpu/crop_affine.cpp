#include "ops/crop_affine.h"

#include <algorithm>
#include <utility>

#include "common/parallel.h"
#include "common/vector.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kTaskRows = 64;
// Columns handled together: many, so that the processor sees whole rows coming and fetches them ahead; fewer in a turned
// crop, whose rows cross many of the frame's and find in the cache what the one before them fetched.
constexpr int64_t kSegment = 256, kTurnedSegment = 64;
constexpr int64_t kLanes = kWidth<float>;
static_assert(kSegment % kLanes == 0);

using Floats = Vector<float>;
using Words = Vector<uint32_t>;

// One axis of a segment's samples: the first of the two pixels that are blended, and the weight of the second.
struct SegmentAxis {
  int32_t low[kSegment];
  float fraction[kSegment];

  void fill(const double* transform, int64_t x, int64_t y, int64_t count, int64_t size) {
    const double start = crop_row_start(transform, y), step = transform[0];
    if (step == 0) {
      const CropSample sample = crop_sample(start, size);
      std::fill_n(low, kSegment, sample.low);
      std::fill_n(fraction, kSegment, sample.fraction);
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      const CropSample sample = crop_sample(multiply_add(step, double(int32_t(x + i)), start), size);
      low[i] = sample.low;
      fraction[i] = sample.fraction;
    }
  }
};

// A part of one row of a crop. A pair holds the six bytes of two neighbouring pixels, the left one lowest.
struct Segment {
  int64_t count = 0;
  SegmentAxis x{}, y{};
  uint64_t above[kSegment] = {}, below[kSegment] = {};
};

class Frame {
 public:
  Frame(const CropAffineArguments& a, int64_t index)
      : data_(a.image + index * a.stride[0]),
        height_(a.height),
        width_(a.width),
        row_(a.stride[1]),
        column_(a.stride[2]),
        channel_(a.stride[3]) {}

  void gather(Segment* segment) const {
    const int32_t *x = segment->x.low, *y = segment->y.low;
    const int64_t last = segment->count - 1;
    // Positions change steadily along the row: where its ends are inside, all of it is.
    if (is_inside(x[0], y[0]) && is_inside(x[last], y[last])) {
      for (int64_t i = 0; i <= last; ++i) gather_inside(i, segment);
      return;
    }
    for (int64_t i = 0; i <= last; ++i) {
      if (is_inside(x[i], y[i])) {
        gather_inside(i, segment);
      } else {
        segment->above[i] = checked_pair(x[i], y[i]);
        segment->below[i] = checked_pair(x[i], y[i] + 1);
      }
    }
  }

 private:
  // Whether eight bytes can be read from the left pixels of both pairs.
  bool is_inside(int64_t x, int64_t y) const {
    return column_ == 3 && channel_ == 1 && x >= 0 && x < width_ - 2 && y >= 0 && y < height_ - 1;
  }

  void gather_inside(int64_t i, Segment* segment) const {
    const uint8_t* from = data_ + segment->y.low[i] * row_ + segment->x.low[i] * int64_t(3);
    std::memcpy(&segment->above[i], from, sizeof(uint64_t));
    std::memcpy(&segment->below[i], from + row_, sizeof(uint64_t));
  }

  uint64_t checked_pair(int64_t x, int64_t y) const { return pixel(x, y) | pixel(x + 1, y) << 24; }

  uint64_t pixel(int64_t x, int64_t y) const {
    if (x < 0 || x >= width_ || y < 0 || y >= height_) return 0;
    const uint8_t* from = data_ + y * row_ + x * column_;
    return from[0] | uint64_t(from[channel_]) << 8 | uint64_t(from[2 * channel_]) << 16;
  }

  const uint8_t* data_;
  const int64_t height_, width_, row_, column_, channel_;
};

// The even (Part 0) or odd (Part 1) words of two vectors.
template <int64_t Part, int... I>
Words words_of(Words first, Words second, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(first, second, (2 * I + int(Part))...);
}

// The left and right pixels' channels of a vector of pairs, blended along x.
inline void blend_pairs(const uint64_t* pairs, Floats fraction, Floats* value) {
  Words first, second;
  std::memcpy(&first, pairs, sizeof first);
  std::memcpy(&second, pairs + kLanes / 2, sizeof second);
  constexpr auto lanes = std::make_integer_sequence<int, int(kLanes)>();
  const Words low = words_of<0>(first, second, lanes), high = words_of<1>(first, second, lanes);
  const Words left[3] = {low & 255, low >> 8 & 255, low >> 16 & 255}, right[3] = {low >> 24, high & 255, high >> 8 & 255};
  for (int c = 0; c < 3; ++c) {
    const Floats a = __builtin_convertvector(bits_as<Vector<int32_t>>(left[c]), Floats);
    const Floats b = __builtin_convertvector(bits_as<Vector<int32_t>>(right[c]), Floats);
    value[c] = multiply_add(fraction, b - a, a);
  }
}

struct Normalisation {
  Floats scale[3], bias[3];
  int source[3];  // the image's channel of each output channel

  explicit Normalisation(const CropAffineArguments& a) {
    for (int c = 0; c < 3; ++c) {
      scale[c] = broadcast(a.scale[c]);
      bias[c] = broadcast(a.bias[c]);
      source[c] = a.swap_channels ? 2 - c : c;
    }
  }

  // A vector of pixels of the segment, from pixel i on: [3] output channels.
  void pixels(const Segment& segment, int64_t i, Floats* out) const {
    const Floats x = load_vector(segment.x.fraction + i), y = load_vector(segment.y.fraction + i);
    Floats above[3], below[3], value[3];
    blend_pairs(segment.above + i, x, above);
    blend_pairs(segment.below + i, x, below);
    for (int c = 0; c < 3; ++c) value[c] = multiply_add(y, below[c] - above[c], above[c]);
    for (int c = 0; c < 3; ++c) out[c] = multiply_add(value[source[c]], scale[c], bias[c]);
  }
};

// Vector Part of three in which the channels of each pixel lie next to each other.
template <int Part, int... I>
Floats interleaved(const Floats* channel, std::integer_sequence<int, I...>) {
  constexpr int n = int(kLanes);
  const auto at = [](int i) { return Part * n + i; };  // element of the row: channel at % 3 of pixel at / 3
  const Floats two = __builtin_shufflevector(channel[0], channel[1], (at(I) % 3 == 1 ? n + at(I) / 3 : at(I) / 3)...);
  return __builtin_shufflevector(two, channel[2], (at(I) % 3 == 2 ? n + at(I) / 3 : I)...);
}

template <typename T>
void store_planes(const Floats* channel, int64_t plane, int64_t count, T* to) {
  for (int c = 0; c < 3; ++c) {
    if (count >= kLanes)
      store_vector(channel[c], to + c * plane);
    else
      store_vector(channel[c], to + c * plane, count);
  }
}

template <typename T>
void store_interleaved(const Floats* channel, int64_t count, T* to) {
  constexpr auto lanes = std::make_integer_sequence<int, int(kLanes)>();
  const Floats part[3] = {interleaved<0>(channel, lanes), interleaved<1>(channel, lanes), interleaved<2>(channel, lanes)};
  for (int64_t i = 0, rest = 3 * count; i < 3 && rest > 0; ++i, rest -= kLanes) {
    if (rest >= kLanes)
      store_vector(part[i], to + i * kLanes);
    else
      store_vector(part[i], to + i * kLanes, rest);
  }
}

template <typename T>
void write_segment(const CropAffineArguments& a, const Normalisation& normalise, const Segment& segment, T* to) {
  Floats channel[3];
  for (int64_t i = 0; i < segment.count; i += kLanes) {
    normalise.pixels(segment, i, channel);
    const int64_t count = segment.count - i < kLanes ? segment.count - i : kLanes;
    if (a.channels_last)
      store_interleaved(channel, count, to + 3 * i);
    else
      store_planes(channel, a.crop_height * a.crop_width, count, to + i);
  }
}

// Rows [first, last) of crop n.
template <typename T>
void crop_rows(const CropAffineArguments& a, const Normalisation& normalise, int64_t n, int64_t first, int64_t last) {
  const CropTransform transform = crop_transform(a, n);
  const Frame frame(a, a.frame_index ? a.frame_index[n] : 0);
  const int64_t spacing = a.channels_last ? 3 : 1;
  T* out = static_cast<T*>(a.out) + n * 3 * a.crop_height * a.crop_width;
  Segment segment;
  const int64_t span = transform.y[0] == 0 ? kSegment : kTurnedSegment;
  for (int64_t x = 0; x < a.crop_width; x += span) {
    segment.count = a.crop_width - x < span ? a.crop_width - x : span;
    for (int64_t y = first; y < last; ++y) {
      if (y == first || transform.x[1] != 0) segment.x.fill(transform.x, x, y, segment.count, a.width);
      segment.y.fill(transform.y, x, y, segment.count, a.height);
      frame.gather(&segment);
      write_segment(a, normalise, segment, out + (y * a.crop_width + x) * spacing);
    }
  }
}

template <typename T>
void run(const CropAffineArguments& a) {
  const int64_t bands = (a.crop_height + kTaskRows - 1) / kTaskRows;
  const Normalisation normalise(a);
  parallel_for(0, a.count * bands, 1, [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; ++task) {
      const int64_t first = task % bands * kTaskRows, last = first + kTaskRows < a.crop_height ? first + kTaskRows : a.crop_height;
      crop_rows<T>(a, normalise, task / bands, first, last);
    }
  });
}

}  // namespace

void crop_affine(const CropAffineArguments& arguments) {
  switch (arguments.dtype) {
    case DType::float16: return run<Half>(arguments);
    case DType::bfloat16: return run<BFloat16>(arguments);
    default: return run<float>(arguments);
  }
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
