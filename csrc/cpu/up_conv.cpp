// Both ways touch each byte once: 2 e bytes per element of the up-sampled image.
#include "cpu/up_conv.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/pool_window.h"
#include "cpu/channel_sums.h"
#include "cpu/lanes.h"

namespace uf {
namespace {

constexpr int64_t kGrainElements = 1 << 15;  // less work than this is not worth waking a second thread for
constexpr int64_t kShortRow = 64;            // pixels; what the ends of its loop cost shows
constexpr int64_t kJoined = 512;             // pixels of short rows that are interleaved as if they were one

// A unit is one row of the input: of all channels (channels last) or of one (planar). It becomes two rows of the image.
template <class T, class A>
struct Call {
  UpConvShape shape;
  T* product;
  T* image;
  ImageStride stride;
  const A* bias;  // null: 0
  double* rows;   // null where nobody wants the sums
};

template <class T, class A>
struct ScatterPixel {
  const T* __restrict product;
  const A* __restrict bias;
  T* __restrict image;

  UF_PIECE(c) {
    UF_LANES(j) image[c + j] = narrow<T>(static_cast<A>(widen(product[c + j]) + bias[c + j]));
  }
};

template <class T>
struct CopyPixel {
  const T* __restrict from;
  T* __restrict to;

  UF_PIECE(c) {
    UF_LANES(j) to[c + j] = from[c + j];
  }
};

template <class T, class A>
struct GatherPixel {
  const T* __restrict image;
  T* __restrict product;
  A* __restrict sum;

  UF_PIECE(c) {
    UF_LANES(j) {
      product[c + j] = image[c + j];
      sum[c + j] += widen(image[c + j]);
    }
  }
};

template <class T, class A>
UF_INLINE void interleave(const T* __restrict left, const T* __restrict right, int64_t width, A bias,
                          T* __restrict image) {
  for (int64_t x = 0; x < width; ++x) {
    image[2 * x] = narrow<T>(static_cast<A>(widen(left[x]) + bias));
    image[2 * x + 1] = narrow<T>(static_cast<A>(widen(right[x]) + bias));
  }
}

// `rows` rows that adjoin in the product and are `step` apart in the image.
template <class T, class A>
UF_INLINE void interleave_rows(const T* __restrict left, const T* __restrict right, int64_t width, int64_t rows, A bias,
                               T* __restrict image, int64_t step) {
  T joined[2 * kJoined];
  interleave(left, right, rows * width, bias, joined);
  for (int64_t y = 0; y < rows; ++y)
    std::memcpy(image + y * step, joined + y * 2 * width, static_cast<size_t>(2 * width) * sizeof(T));
}

template <class U>
UF_INLINE void separate(const U* __restrict image, int64_t width, U* __restrict left, U* __restrict right) {
  for (int64_t x = 0; x < width; ++x) {
    left[x] = image[2 * x];
    right[x] = image[2 * x + 1];
  }
}

// The other way round; returns the sum of the image's numbers, where it is wanted.
template <class T, class A>
UF_INLINE A separate_rows(const T* __restrict image, int64_t step, int64_t width, int64_t rows, T* __restrict left,
                          T* __restrict right, bool want_sum) {
  using U = Bits<T>;
  T joined[2 * kJoined];
  for (int64_t y = 0; y < rows; ++y)
    std::memcpy(joined + y * 2 * width, image + y * step, static_cast<size_t>(2 * width) * sizeof(T));
  separate(reinterpret_cast<const U*>(joined), rows * width, reinterpret_cast<U*>(left), reinterpret_cast<U*>(right));
  return want_sum ? row_sum<A>(joined, 2 * rows * width) : A(0);
}

// How many units from this one on are short rows of the same channel, to be taken together; 1 where there are none.
UF_INLINE int64_t adjoining(const UpConvShape& s, int64_t unit, int64_t end) {
  if (s.channels_last || s.width > kShortRow) return 1;
  return std::min({end - unit, s.height - unit % s.height, kJoined / s.width});
}

// Where a unit lies: its image rows start at image, its products at product (channels last: pixel after pixel of
// (2, 2, C); planar: plane_step from one (dy, dx) to the next).
template <class T>
struct Unit {
  T* image;
  T* product;
  int64_t plane_step, channel;
};

template <class T, class A>
UF_INLINE Unit<T> locate(const Call<T, A>& call, int64_t unit) {
  const UpConvShape& s = call.shape;
  const int64_t planes = s.channels_last ? 1 : s.channels;
  const int64_t y = unit % s.height, c = unit / s.height % planes, n = unit / s.height / planes;
  T* image = call.image + n * call.stride.batch + c * call.stride.channel + 2 * y * call.stride.y;
  if (s.channels_last) return {image, call.product + unit * s.width * 4 * s.channels, 0, 0};
  const int64_t plane = s.height * s.width;
  return {image, call.product + (n * 4 * s.channels + c) * plane + y * s.width, s.channels * plane, c};
}

template <class T, class A>
UF_INLINE void scatter(const Call<T, A>& call, int64_t begin, int64_t end) {
  const UpConvShape& s = call.shape;
  for (int64_t unit = begin, rows; unit < end; unit += rows) {
    const Unit<T> at = locate(call, unit);
    rows = adjoining(s, unit, end);
    for (int64_t dy = 0; dy < 2; ++dy) {
      T* image = at.image + dy * call.stride.y;
      if (!s.channels_last) {
        const T* left = at.product + 2 * dy * at.plane_step;
        const A bias = call.bias ? call.bias[at.channel] : A(0);
        if (rows > 1)
          interleave_rows(left, left + at.plane_step, s.width, rows, bias, image, 2 * call.stride.y);
        else
          interleave(left, left + at.plane_step, s.width, bias, image);
        continue;
      }
      for (int64_t x = 0; x < 2 * s.width; ++x) {
        const T* product = at.product + (x / 2 * 4 + 2 * dy + x % 2) * s.channels;
        if (call.bias)
          for_lanes(s.channels, ScatterPixel<T, A>{product, call.bias, image + x * call.stride.x});
        else
          for_lanes(s.channels, CopyPixel<T>{product, image + x * call.stride.x});
      }
    }
  }
}

template <class T, class A>
UF_INLINE void gather(const Call<T, A>& call, int64_t begin, int64_t end, A* sums, double* row) {
  const UpConvShape& s = call.shape;
  for (int64_t unit = begin, rows; unit < end; unit += rows) {
    const Unit<T> at = locate(call, unit);
    rows = adjoining(s, unit, end);
    std::fill_n(sums, s.channels_last ? s.channels : 0, A(0));
    for (int64_t dy = 0; dy < 2; ++dy) {
      const T* image = at.image + dy * call.stride.y;
      if (!s.channels_last) {
        T* left = at.product + 2 * dy * at.plane_step;
        if (rows > 1) {
          const A sum = separate_rows<T, A>(image, 2 * call.stride.y, s.width, rows, left, left + at.plane_step, row != nullptr);
          if (row) row[unit / s.height] += sum;
          continue;
        }
        using U = Bits<T>;
        separate(reinterpret_cast<const U*>(image), s.width, reinterpret_cast<U*>(left),
                 reinterpret_cast<U*>(left + at.plane_step));
        if (row) row[unit / s.height] += row_sum<A>(image, 2 * s.width);
        continue;
      }
      for (int64_t x = 0; x < 2 * s.width; ++x) {
        T* product = at.product + (x / 2 * 4 + 2 * dy + x % 2) * s.channels;
        if (row)
          for_lanes(s.channels, GatherPixel<T, A>{image + x * call.stride.x, product, sums});
        else
          for_lanes(s.channels, CopyPixel<T>{image + x * call.stride.x, product});
      }
    }
    if (row && s.channels_last)
      for (int64_t c = 0; c < s.channels; ++c) row[c] += sums[c];
  }
}

#define UF_UP_CONV(T, A)                                                                                    \
  UF_MULTIVERSION void run(const Call<T, A>& call, int64_t begin, int64_t end) { scatter(call, begin, end); } \
  UF_MULTIVERSION void run(const Call<T, A>& call, int64_t begin, int64_t end, A* sums, double* row) {      \
    gather(call, begin, end, sums, row);                                                                    \
  }

UF_FLOATING(UF_UP_CONV)
#undef UF_UP_CONV

template <class T, class A>
void start_scatter(const UpConvShape& s, const void* product, const void* bias, void* image, const ImageStride& stride,
                   const Parallel& parallel) {
  const Call<T, A> call = {s,      static_cast<T*>(const_cast<void*>(product)), static_cast<T*>(image),
                           stride, static_cast<const A*>(bias),                 nullptr};
  const int64_t unit = 4 * s.width * (s.channels_last ? s.channels : 1);
  parallel(s.batch * (s.channels_last ? 1 : s.channels) * s.height, kGrainElements / unit + 1,
           [&](int64_t begin, int64_t end) { run(call, begin, end); });
}

template <class T, class A>
void start_gather(const UpConvShape& s, const void* image, const ImageStride& stride, void* product, double* grad_bias,
                  double* workspace, const Parallel& parallel) {
  const Call<T, A> call = {s,      static_cast<T*>(product), static_cast<T*>(const_cast<void*>(image)),
                           stride, nullptr,                  grad_bias ? workspace : nullptr};
  const int64_t parts = up_conv_parts(s);
  if (grad_bias) std::fill_n(workspace, parts * s.channels, 0.0);
  if (s.channels_last) {
    const int64_t units = s.batch * s.height, unit = 4 * s.width * s.channels;
    parallel(parts, kGrainElements * parts / (units * unit) + 1, [&](int64_t begin, int64_t end) {
      std::vector<A> sums(static_cast<size_t>(s.channels));
      for (int64_t part = begin; part < end; ++part)
        run(call, units * part / parts, units * (part + 1) / parts, sums.data(),
            call.rows ? call.rows + part * s.channels : nullptr);
    });
  } else {
    const int64_t plane = 4 * s.height * s.width;
    parallel(s.batch * s.channels, kGrainElements / plane + 1, [&](int64_t begin, int64_t end) {
      run(call, begin * s.height, end * s.height, nullptr, call.rows);
    });
  }
  if (grad_bias) add_rows(workspace, parts, s.channels, grad_bias);
}

}  // namespace

int64_t up_conv_parts(const UpConvShape& s) {
  return s.channels_last ? std::max<int64_t>(1, std::min(s.batch * s.height, kSumParts)) : s.batch;
}

void up_conv_scatter(const UpConvShape& shape, DType type, const void* product, const void* bias, void* image,
                     const ImageStride& stride, const Parallel& parallel) {
  if (shape.batch * shape.channels * shape.height * shape.width == 0) return;
  return dispatch_floating(type, [&]<class T>(T) { return start_scatter<T, Wide<T>>(shape, product, bias, image, stride, parallel); });
}

void up_conv_gather(const UpConvShape& shape, DType type, const void* image, const ImageStride& stride,
                    void* product, double* grad_bias, double* workspace, const Parallel& parallel) {
  if (shape.batch * shape.channels * shape.height * shape.width == 0) {
    if (grad_bias) std::fill_n(grad_bias, shape.channels, 0.0);
    return;
  }
  return dispatch_floating(type, [&]<class T>(T) { return start_gather<T, Wide<T>>(shape, image, stride, product, grad_bias, workspace, parallel); });
}

}  // namespace uf
