// A unit of work is a pair of image rows: of all channels (channels last) or of one (planar). Its pixels are rectified into
// a scratch buffer that stays in the first-level cache, and from there go to the skip and, two by two, to the pool. So the
// convolution's output is read once and nothing is written but the results:
//   bytes per element of x: e read; e / 4 pooled, e * (crop) skip and 1/4 code written, for elements of e bytes
// where separate passes move e * (7 + 3 * crop) / 2 and more, and keep the ReLU's output and int64 indices (2 bytes per
// element) for the backward. The code replaces both: it is all that the backward needs.
#include "cpu/relu_pool_skip.h"

#include <algorithm>
#include <vector>

#include "common/pool_window.h"
#include "cpu/copy_rows.h"
#include "cpu/lanes.h"

namespace uf {
namespace {

template <class T, class A>
struct Call {
  ReluPoolSkipShape shape;
  const T* x;
  ImageStride x_stride;
  const A* bias;  // null: 0
  Bits<T>* pooled;
  Bits<T>* buffer;
  uint8_t* code;
};

// ---- rectify: pixels in, bits out

template <class T, class A>
struct RectifyPixel {
  const T* __restrict x;
  const A* __restrict bias;
  Bits<T>* __restrict out;

  UF_PIECE(c) {
    UF_LANES(j) out[c + j] = rectified_bits(narrow<T>(static_cast<A>(widen(x[c + j]) + bias[c + j])));
  }
};

template <class T, class A>
UF_INLINE void rectify_row(const T* __restrict x, int64_t count, A bias, Bits<T>* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = rectified_bits(narrow<T>(static_cast<A>(widen(x[i]) + bias)));
}

// Without a bias nothing is converted: half precision is rectified 32 lanes at a time.
template <class T>
UF_INLINE void rectify_row(const T* __restrict x, int64_t count, Bits<T>* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = rectified_bits(x[i]);
}

template <class T, class A>
UF_INLINE void rectify_pixels(const T* x, int64_t pixels, int64_t step, int64_t channels, const A* bias, Bits<T>* out) {
  if (!bias && step == channels) return rectify_row(x, pixels * channels, out);
  for (int64_t p = 0; p < pixels; ++p) {
    if (bias)
      for_lanes(channels, RectifyPixel<T, A>{x + p * step, bias, out + p * channels});
    else
      rectify_row(x + p * step, channels, out + p * channels);
  }
}

// ---- windows: two rows of bits in, pooled bits and codes out

template <class U, bool kCode>
struct PoolPixel {
  const U* __restrict upper;
  const U* __restrict lower;
  int64_t channels;
  U* __restrict pooled;
  uint8_t* __restrict code;

  UF_PIECE(c) {
    UF_LANES(j) {
      const int64_t i = c + j;
      const PoolWindow<U> w = pool_window(upper[i], upper[channels + i], lower[i], lower[channels + i]);
      pooled[i] = w.largest;
      if constexpr (kCode) code[i] = static_cast<uint8_t>(w.code);
    }
  }
};

template <bool kCode, class U>
UF_INLINE void pool_pixels(const U* upper, const U* lower, int64_t windows, int64_t channels, U* pooled, uint8_t* code) {
  for (int64_t w = 0; w < windows; ++w)
    for_lanes(channels, PoolPixel<U, kCode>{upper + 2 * w * channels, lower + 2 * w * channels, channels,
                                            pooled + w * channels, kCode ? code + w * channels : nullptr});
}

template <bool kCode, class U>
UF_INLINE void pool_row(const U* __restrict upper, const U* __restrict lower, int64_t windows, U* __restrict pooled,
                        uint8_t* __restrict code) {
  for (int64_t w = 0; w < windows; ++w) {
    const PoolWindow<U> window = pool_window(upper[2 * w], upper[2 * w + 1], lower[2 * w], lower[2 * w + 1]);
    pooled[w] = window.largest;
    if constexpr (kCode) code[w] = static_cast<uint8_t>(window.code);
  }
}

// `channels` is that of a pixel in scratch: 1 for a planar row. Windows from `complete` on reach over the image's edge:
// they have a code but are not pooled.
template <class U>
UF_INLINE void pool(const U* upper, const U* lower, int64_t windows, int64_t complete, int64_t channels, U* pooled,
                    U* discarded, uint8_t* code) {
  const int64_t rest = windows - complete, skip = complete * channels;
  if (!code) {
    if (channels == 1)
      pool_row<false>(upper, lower, complete, pooled, code);
    else
      pool_pixels<false>(upper, lower, complete, channels, pooled, code);
  } else if (channels == 1) {
    pool_row<true>(upper, lower, complete, pooled, code);
    pool_row<true>(upper + 2 * skip, lower + 2 * skip, rest, discarded, code + skip);
  } else {
    pool_pixels<true>(upper, lower, complete, channels, pooled, code);
    pool_pixels<true>(upper + 2 * skip, lower + 2 * skip, rest, channels, discarded, code + skip);
  }
}

// ---- one pair of rows

// Columns [begin, end) of rows 2j and 2j + 1 of one image; `channels` of them a pixel, planes from channel c on.
template <class T, class A>
UF_INLINE void segment(const Call<T, A>& call, int64_t n, int64_t c, int64_t j, int64_t begin, int64_t end,
                       int64_t channels, Bits<T>* scratch) {
  using U = Bits<T>;
  constexpr int64_t e = sizeof(U);
  const ReluPoolSkipShape& s = call.shape;
  const int64_t pixels = end - begin, windows = (pixels + 1) / 2, row = 2 * windows * channels;
  const bool last = s.channels_last;
  const ImageStride to = dense_stride(s.buffer_channels, s.skip_height, s.skip_width, last);
  U* rows[2] = {scratch, scratch + row};

  for (int64_t r = 0; r < 2; ++r) {
    const int64_t y = 2 * j + r, skip_y = y - s.skip_top();
    if (y >= s.height) {
      std::fill_n(rows[r], row, U(0));
      continue;
    }
    const T* x = call.x + n * call.x_stride.batch + c * call.x_stride.channel + y * call.x_stride.y +
                 begin * call.x_stride.x;
    if (last)
      rectify_pixels<T, A>(x, pixels, call.x_stride.x, channels, call.bias, rows[r]);
    else if (call.bias)
      rectify_row<T, A>(x, pixels, call.bias[c], rows[r]);
    else
      rectify_row(x, pixels, rows[r]);
    std::fill_n(rows[r] + pixels * channels, row - pixels * channels, U(0));

    const int64_t from = std::max(begin, s.skip_left()), until = std::min(end, s.skip_left() + s.skip_width);
    if (skip_y < 0 || skip_y >= s.skip_height || from >= until) continue;
    U* skip = call.buffer + n * to.batch + c * to.channel + skip_y * to.y + (from - s.skip_left()) * to.x;
    const char* source = reinterpret_cast<const char*>(rows[r] + (from - begin) * channels);
    copy_rows(reinterpret_cast<char*>(skip), to.x * e, source, channels * e, channels * e, until - from);
  }

  const bool pair = 2 * j + 1 < s.height;
  const ImageStride pooled = dense_stride(s.channels, s.pooled_height(), s.pooled_width(), last);
  const ImageStride code = dense_stride(s.channels, s.code_height(), s.code_width(), last);
  pool(rows[0], rows[1], windows, pair ? pixels / 2 : 0, channels,
       pair ? call.pooled + n * pooled.batch + c * pooled.channel + j * pooled.y + begin / 2 * pooled.x : nullptr,
       scratch + 2 * row,
       call.code ? call.code + n * code.batch + c * code.channel + j * code.y + begin / 2 * code.x : nullptr);
}

int64_t segment_pixels(const ReluPoolSkipShape& s, int64_t element) {
  if (!s.channels_last) return s.width;
  return std::min(s.width, std::max<int64_t>(2, pool_skip::kSegmentBytes / (s.channels * element) / 2 * 2));
}

template <class T, class A>
UF_INLINE void pairs(const Call<T, A>& call, int64_t begin, int64_t end, int64_t step, Bits<T>* scratch) {
  const ReluPoolSkipShape& s = call.shape;
  const int64_t rows = s.code_height(), planes = s.channels_last ? 1 : s.channels;
  const int64_t channels = s.channels_last ? s.channels : 1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t j = unit % rows, c = unit / rows % planes, n = unit / rows / planes;
    for (int64_t x = 0; x < s.width; x += step)
      segment(call, n, c, j, x, std::min(s.width, x + step), channels, scratch);
  }
}

#define UF_PAIRS(T, A)                                                                                                 \
  UF_MULTIVERSION void run(const Call<T, A>& call, int64_t begin, int64_t end, int64_t step, Bits<T>* scratch) {       \
    pairs(call, begin, end, step, scratch);                                                                            \
  }

UF_FLOATING(UF_PAIRS)
#undef UF_PAIRS

template <class T, class A>
void start(const ReluPoolSkipShape& s, const void* x, const ImageStride& x_stride, const void* bias, void* pooled,
           void* buffer, uint8_t* code, const Parallel& parallel) {
  using U = Bits<T>;
  const Call<T, A> call = {s,
                           static_cast<const T*>(x),
                           x_stride,
                           static_cast<const A*>(bias),
                           static_cast<U*>(pooled),
                           static_cast<U*>(buffer),
                           code};
  const int64_t step = segment_pixels(s, sizeof(U)), channels = s.channels_last ? s.channels : 1;
  const int64_t units = s.batch * (s.channels_last ? 1 : s.channels) * s.code_height();
  parallel(units, pool_skip::kGrainElements / (2 * s.width * channels) + 1, [&](int64_t begin, int64_t end) {
    std::vector<U> scratch(static_cast<size_t>(5 * ((step + 1) / 2) * channels));  // two rows and discarded windows
    run(call, begin, end, step, scratch.data());
  });
}

}  // namespace

void relu_pool_skip(const ReluPoolSkipShape& shape, DType type, const void* x, const ImageStride& x_stride,
                    const void* bias, void* pooled, void* buffer, uint8_t* code, const Parallel& parallel) {
  if (shape.batch * shape.channels == 0) return;
  return dispatch_floating(type, [&]<class T>(T) { return start<T, Wide<T>>(shape, x, x_stride, bias, pooled, buffer, code, parallel); });
}

}  // namespace uf
