// The gradient of relu_pool_skip in one pass: each pixel's comes from the pooled maximum (if the pixel was it), from the
// skip (if the crop reaches it) and is let through where the ReLU did; its sum over the pixels is that of the bias.
//   bytes per element of x: e / 4 pooled, e * (crop) skip and 1/4 code read; e written
// where separate passes (crop gradient, zero fill, scatter, add, mask, sum over pixels) move 8 e and more.
#include <algorithm>
#include <vector>

#include "common/pool_window.h"
#include "cpu/channel_sums.h"
#include "cpu/copy_rows.h"
#include "cpu/lanes.h"
#include "cpu/relu_pool_skip.h"

namespace uf {
namespace {

template <class T, class A>
struct Call {
  ReluPoolSkipShape shape;
  const T* grad_pooled;
  ImageStride pooled_stride;
  const T* grad_buffer;
  ImageStride buffer_stride;
  const uint8_t* code;
  T* grad_x;
  bool want_bias;
};

template <class T, class A>
struct Scratch {
  Scratch(int64_t pixels, int64_t channels)
      : row((pixels + 1) / 2 * 2 * channels), values(static_cast<size_t>(5 * row)), sums(static_cast<size_t>(channels)) {}
  T* skip(int64_t r) { return values.data() + r * row; }
  T* edge(int64_t r) { return values.data() + (2 + r) * row; }  // windows that reach over the image's edge
  const T* zeros() const { return values.data() + 4 * row; }

  const int64_t row;
  std::vector<T> values;
  std::vector<A> sums;
};

template <class T, class A>
struct UnpoolPixel {
  const uint8_t* __restrict code;
  const T* __restrict pooled;
  const T* __restrict upper;
  const T* __restrict lower;
  int64_t channels;
  T* __restrict to_upper;
  T* __restrict to_lower;
  A* __restrict sum;

  UF_PIECE(c) {
    UF_LANES(j) {
      const int64_t i = c + j;
      const Bits<A> k = code[i];
      const A g = widen(pooled[i]);
      const A v0 = unpool<A>(k, 0, g, widen(upper[i])), v1 = unpool<A>(k, 1, g, widen(upper[channels + i]));
      const A v2 = unpool<A>(k, 2, g, widen(lower[i])), v3 = unpool<A>(k, 3, g, widen(lower[channels + i]));
      to_upper[i] = narrow<T>(v0);
      to_upper[channels + i] = narrow<T>(v1);
      to_lower[i] = narrow<T>(v2);
      to_lower[channels + i] = narrow<T>(v3);
      sum[i] += (v0 + v1) + (v2 + v3);
    }
  }
};

template <class T, class A>
UF_INLINE void unpool_row(const uint8_t* __restrict code, const T* __restrict pooled, const T* __restrict upper,
                          const T* __restrict lower, int64_t windows, T* __restrict to_upper, T* __restrict to_lower) {
  for (int64_t w = 0; w < windows; ++w) {
    const Bits<A> k = code[w];
    const A g = widen(pooled[w]);
    to_upper[2 * w] = narrow<T>(unpool<A>(k, 0, g, widen(upper[2 * w])));
    to_upper[2 * w + 1] = narrow<T>(unpool<A>(k, 1, g, widen(upper[2 * w + 1])));
    to_lower[2 * w] = narrow<T>(unpool<A>(k, 2, g, widen(lower[2 * w])));
    to_lower[2 * w + 1] = narrow<T>(unpool<A>(k, 3, g, widen(lower[2 * w + 1])));
  }
}

template <class T, class A>
UF_INLINE void unpool(bool planar, const uint8_t* code, const T* pooled, int64_t pooled_step, const T* upper,
                      const T* lower, int64_t windows, int64_t channels, T* to_upper, T* to_lower, A* sum) {
  if (planar) {
    unpool_row<T, A>(code, pooled, upper, lower, windows, to_upper, to_lower);
    return;
  }
  for (int64_t w = 0; w < windows; ++w) {
    const int64_t at = 2 * w * channels;
    for_lanes(channels, UnpoolPixel<T, A>{code + w * channels, pooled + w * pooled_step, upper + at, lower + at,
                                          channels, to_upper + at, to_lower + at, sum});
  }
}

// Columns [begin, end) of rows 2j and 2j + 1 of one image; `channels` of them a pixel, planes from channel c on.
template <class T, class A>
UF_INLINE void segment(const Call<T, A>& call, int64_t n, int64_t c, int64_t j, int64_t begin, int64_t end,
                       int64_t channels, Scratch<T, A>& scratch, double* planar_sum) {
  constexpr int64_t e = sizeof(T);
  const ReluPoolSkipShape& s = call.shape;
  const bool last = s.channels_last, pair = 2 * j + 1 < s.height;
  const int64_t pixels = end - begin, windows = (pixels + 1) / 2, complete = pair ? pixels / 2 : 0;

  for (int64_t r = 0; r < 2; ++r) {
    const int64_t skip_y = 2 * j + r - s.skip_top();
    const int64_t from = std::max(begin, s.skip_left()), until = std::min(end, s.skip_left() + s.skip_width);
    T* row = scratch.skip(r);
    const bool inside = call.grad_buffer && skip_y >= 0 && skip_y < s.skip_height && from < until;
    const int64_t before = inside ? (from - begin) * channels : 2 * windows * channels;
    std::fill_n(row, before, T{});
    if (!inside) continue;
    const T* source = call.grad_buffer + n * call.buffer_stride.batch + c * call.buffer_stride.channel +
                      skip_y * call.buffer_stride.y + (from - s.skip_left()) * call.buffer_stride.x;
    copy_rows(reinterpret_cast<char*>(row + before), channels * e, reinterpret_cast<const char*>(source),
              call.buffer_stride.x * e, channels * e, until - from);
    const int64_t behind = before + (until - from) * channels;
    std::fill_n(row + behind, 2 * windows * channels - behind, T{});
  }

  const ImageStride code_stride = dense_stride(s.channels, s.code_height(), s.code_width(), last);
  const ImageStride x_stride = dense_stride(s.channels, s.height, s.width, last);
  const uint8_t* code = call.code + n * code_stride.batch + c * code_stride.channel + j * code_stride.y +
                        begin / 2 * code_stride.x;
  T* upper = call.grad_x + n * x_stride.batch + c * x_stride.channel + 2 * j * x_stride.y + begin * x_stride.x;
  T* lower = upper + (pair ? x_stride.y : 0);
  const bool given = call.grad_pooled && pair;
  const T* pooled = given ? call.grad_pooled + n * call.pooled_stride.batch + c * call.pooled_stride.channel +
                                j * call.pooled_stride.y + begin / 2 * call.pooled_stride.x
                          : scratch.zeros();
  unpool<T, A>(!last, code, pooled, given ? call.pooled_stride.x : channels, scratch.skip(0), scratch.skip(1), complete,
               channels, upper, lower, scratch.sums.data());
  const int64_t done = complete * channels, rest = (pixels - 2 * complete) * channels;
  if (rest > 0) {
    unpool<T, A>(!last, code + done, scratch.zeros(), channels, scratch.skip(0) + 2 * done, scratch.skip(1) + 2 * done,
                 windows - complete, channels, scratch.edge(0), scratch.edge(1), scratch.sums.data());
    std::copy_n(scratch.edge(0), rest, upper + 2 * done);
    if (pair) std::copy_n(scratch.edge(1), rest, lower + 2 * done);
  }
  if (!last && call.want_bias) {
    *planar_sum += row_sum<A>(upper, pixels);
    if (pair) *planar_sum += row_sum<A>(lower, pixels);
  }
}

// Row pairs [begin, end), numbered through all images (channels last); row[c] += the sum of channel c.
template <class T, class A>
UF_INLINE void channels_last_pairs(const Call<T, A>& call, int64_t begin, int64_t end, int64_t step,
                                   Scratch<T, A>& scratch, double* row) {
  const ReluPoolSkipShape& s = call.shape;
  for (int64_t unit = begin; unit < end; ++unit) {
    std::fill(scratch.sums.begin(), scratch.sums.end(), A(0));
    for (int64_t x = 0; x < s.width; x += step)
      segment(call, unit / s.code_height(), 0, unit % s.code_height(), x, std::min(s.width, x + step), s.channels,
              scratch, nullptr);
    if (!call.want_bias) continue;
    for (int64_t c = 0; c < s.channels; ++c) row[c] += scratch.sums[c];
  }
}

// Planes [begin, end), numbered through all images; row[plane] = the plane's sum.
template <class T, class A>
UF_INLINE void planar_planes(const Call<T, A>& call, int64_t begin, int64_t end, Scratch<T, A>& scratch, double* row) {
  const ReluPoolSkipShape& s = call.shape;
  for (int64_t plane = begin; plane < end; ++plane) {
    double sum = 0;
    for (int64_t j = 0; j < s.code_height(); ++j)
      segment(call, plane / s.channels, plane % s.channels, j, 0, s.width, 1, scratch, &sum);
    if (call.want_bias) row[plane] = sum;
  }
}

template <class T, class A>
UF_INLINE void work(const Call<T, A>& call, int64_t begin, int64_t end, int64_t step, Scratch<T, A>& scratch,
                    double* row) {
  if (call.shape.channels_last)
    channels_last_pairs(call, begin, end, step, scratch, row);
  else
    planar_planes(call, begin, end, scratch, row);
}

#define UF_WORK(T, A)                                                                                                  \
  UF_MULTIVERSION void run(const Call<T, A>& call, int64_t begin, int64_t end, int64_t step, Scratch<T, A>& scratch,   \
                           double* row) {                                                                              \
    work(call, begin, end, step, scratch, row);                                                                        \
  }

UF_FLOATING(UF_WORK)
#undef UF_WORK

template <class T, class A>
void start(const Call<T, A>& call, double* grad_bias, double* workspace, const Parallel& parallel) {
  const ReluPoolSkipShape& s = call.shape;
  const int64_t parts = relu_pool_skip_parts(s);
  if (s.channels_last) {
    const int64_t step = std::min(s.width, std::max<int64_t>(2, pool_skip::kSegmentBytes / (s.channels * int64_t(sizeof(T))) / 2 * 2));
    const int64_t units = s.batch * s.code_height(), pair = 2 * s.width * s.channels;
    if (call.want_bias) std::fill_n(workspace, parts * s.channels, 0.0);
    parallel(parts, pool_skip::kGrainElements / (pair * ((units + parts - 1) / parts)) + 1, [&](int64_t begin, int64_t end) {
      Scratch<T, A> scratch(step, s.channels);
      for (int64_t part = begin; part < end; ++part)
        run(call, units * part / parts, units * (part + 1) / parts, step, scratch, workspace + part * s.channels);
    });
  } else {
    parallel(s.batch * s.channels, pool_skip::kGrainElements / (s.height * s.width) + 1, [&](int64_t begin, int64_t end) {
      Scratch<T, A> scratch(s.width, 1);
      run(call, begin, end, s.width, scratch, workspace);
    });
  }
  if (call.want_bias) add_rows(workspace, parts, s.channels, grad_bias);
}

template <class T, class A>
void start(const ReluPoolSkipShape& s, const void* grad_pooled, const ImageStride& pooled_stride,
           const void* grad_buffer, const ImageStride& buffer_stride, const uint8_t* code, void* grad_x,
           double* grad_bias, double* workspace, const Parallel& parallel) {
  const Call<T, A> call = {s,
                           static_cast<const T*>(grad_pooled),
                           pooled_stride,
                           static_cast<const T*>(grad_buffer),
                           buffer_stride,
                           code,
                           static_cast<T*>(grad_x),
                           grad_bias != nullptr};
  start(call, grad_bias, workspace, parallel);
}

}  // namespace

int64_t relu_pool_skip_parts(const ReluPoolSkipShape& s) {
  return s.channels_last ? std::max<int64_t>(1, std::min(s.batch * s.code_height(), kSumParts)) : s.batch;
}

void relu_pool_skip_backward(const ReluPoolSkipShape& shape, DType type, const void* grad_pooled,
                             const ImageStride& pooled_stride, const void* grad_buffer,
                             const ImageStride& buffer_stride, const uint8_t* code, void* grad_x, double* grad_bias,
                             double* workspace, const Parallel& parallel) {
  if (shape.batch * shape.channels == 0) {
    if (grad_bias) std::fill_n(grad_bias, shape.channels, 0.0);
    return;
  }
  return dispatch_floating(type, [&]<class T>(T) { return start<T, Wide<T>>(shape, grad_pooled, pooled_stride, grad_buffer, buffer_stride, code, grad_x, grad_bias, workspace, parallel); });
}

}  // namespace uf
