// Bytes per element of e bytes: 2 e forward, 3 e backward, which is the limit of both.
#include "cpu/bias_relu.h"

#include <algorithm>
#include <vector>

#include "common/pool_window.h"
#include "cpu/channel_sums.h"
#include "cpu/lanes.h"

namespace uf {
namespace {

constexpr int64_t kGrainElements = 1 << 15;  // less work than this is not worth waking a second thread for
constexpr int64_t kPixelsPerSum = 64;        // pixels that one sum in single precision runs over

// A planar tensor is rows of one channel each; a channels-last one is pixels of all channels.
template <class T, class A>
struct Call {
  BiasReluShape shape;
  const T* in;     // x; in the backward the gradient of the output
  const A* bias;   // null: 0
  const T* mask;   // backward: the output
  T* out;
  double* rows;    // backward: sums, or null
};

// ---- forward. x and out may be one array: no __restrict, and the loops are over single elements

template <class T, class A>
struct ReluPixel {
  const T* x;
  const A* __restrict bias;
  T* out;

  UF_PIECE(c) {
    Bits<T> bits[L];
    UF_LANES(j) bits[j] = rectified_bits(narrow<T>(static_cast<A>(widen(x[c + j]) + bias[c + j])));
    UF_LANES(j) out[c + j] = std::bit_cast<T>(bits[j]);
  }
};

template <class T, class A>
UF_INLINE void relu_row(const T* x, int64_t count, A bias, T* out) {
  constexpr int64_t kBlock = 64;
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    Bits<T> bits[kBlock];
    for (int64_t j = 0; j < kBlock; ++j) bits[j] = rectified_bits(narrow<T>(static_cast<A>(widen(x[i + j]) + bias)));
    for (int64_t j = 0; j < kBlock; ++j) out[i + j] = std::bit_cast<T>(bits[j]);
  }
  for (; i < count; ++i) out[i] = std::bit_cast<T>(rectified_bits(narrow<T>(static_cast<A>(widen(x[i]) + bias))));
}

template <class T, class A>
UF_INLINE void forward(const Call<T, A>& call, int64_t begin, int64_t end) {
  const int64_t channels = call.shape.channels, pixels = call.shape.pixels;
  if (!call.shape.channels_last) {
    for (int64_t plane = begin; plane < end; ++plane)
      relu_row(call.in + plane * pixels, pixels, call.bias ? call.bias[plane % channels] : A(0),
               call.out + plane * pixels);
  } else if (!call.bias) {
    relu_row(call.in + begin * channels, (end - begin) * channels, A(0), call.out + begin * channels);
  } else {
    for (int64_t pixel = begin; pixel < end; ++pixel)
      for_lanes(channels, ReluPixel<T, A>{call.in + pixel * channels, call.bias, call.out + pixel * channels});
  }
}

// ---- backward

template <class T, class A>
struct MaskPixel {
  const T* __restrict grad;
  const T* __restrict mask;
  T* __restrict out;
  A* __restrict sum;

  UF_PIECE(c) {
    UF_LANES(j) {
      const Bits<T> g = where_on(mask[c + j], grad[c + j]);
      out[c + j] = std::bit_cast<T>(g);
      sum[c + j] += widen(std::bit_cast<T>(g));
    }
  }
};

template <class T>
UF_INLINE void mask_row(const T* __restrict grad, const T* __restrict mask, int64_t count, T* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = std::bit_cast<T>(where_on(mask[i], grad[i]));
}

template <class T, class A>
UF_INLINE void backward(const Call<T, A>& call, int64_t begin, int64_t end, A* sums, double* row) {
  constexpr int64_t kBlock = 4096;  // of a plane: its masked gradient is summed while it is in the first-level cache
  const int64_t channels = call.shape.channels, pixels = call.shape.pixels;
  if (!call.shape.channels_last) {
    for (int64_t plane = begin; plane < end; ++plane) {
      double sum = 0;
      for (int64_t start = 0; start < pixels; start += kBlock) {
        const int64_t at = plane * pixels + start, count = std::min(kBlock, pixels - start);
        mask_row(call.in + at, call.mask + at, count, call.out + at);
        if (row) sum += row_sum<A>(call.out + at, count);
      }
      if (row) row[plane] = sum;
    }
  } else if (!row) {
    mask_row(call.in + begin * channels, call.mask + begin * channels, (end - begin) * channels,
             call.out + begin * channels);
  } else {
    for (int64_t start = begin; start < end; start += kPixelsPerSum) {
      std::fill_n(sums, channels, A(0));
      for (int64_t pixel = start; pixel < std::min(end, start + kPixelsPerSum); ++pixel) {
        const int64_t at = pixel * channels;
        for_lanes(channels, MaskPixel<T, A>{call.in + at, call.mask + at, call.out + at, sums});
      }
      for (int64_t c = 0; c < channels; ++c) row[c] += sums[c];
    }
  }
}

#define UF_BIAS_RELU(T, A)                                                                                          \
  UF_MULTIVERSION void run(const Call<T, A>& call, int64_t begin, int64_t end) { forward(call, begin, end); }      \
  UF_MULTIVERSION void run_backward(const Call<T, A>& call, int64_t begin, int64_t end, A* sums, double* row) {    \
    backward(call, begin, end, sums, row);                                                                         \
  }

UF_FLOATING(UF_BIAS_RELU)
#undef UF_BIAS_RELU

template <class T, class A>
void start(const BiasReluShape& s, const void* x, const void* bias, void* out, const Parallel& parallel) {
  const Call<T, A> call = {s,       static_cast<const T*>(x), static_cast<const A*>(bias), nullptr, static_cast<T*>(out),
                           nullptr};
  const int64_t unit = s.channels_last ? s.channels : s.pixels;
  parallel(s.batch * (s.channels_last ? s.pixels : s.channels), kGrainElements / unit + 1,
           [&](int64_t begin, int64_t end) { run(call, begin, end); });
}

template <class T, class A>
void start_backward(const BiasReluShape& s, const void* grad, const void* mask, void* out, double* grad_bias,
                    double* workspace, const Parallel& parallel) {
  const Call<T, A> call = {s, static_cast<const T*>(grad), nullptr, static_cast<const T*>(mask), static_cast<T*>(out),
                           grad_bias ? workspace : nullptr};
  if (!s.channels_last) {
    parallel(s.batch * s.channels, kGrainElements / s.pixels + 1,
             [&](int64_t begin, int64_t end) { run_backward(call, begin, end, nullptr, call.rows); });
  } else {
    const int64_t parts = bias_relu_parts(s), units = s.batch * s.pixels;
    if (call.rows) std::fill_n(workspace, parts * s.channels, 0.0);
    parallel(parts, kGrainElements * parts / (units * s.channels) + 1, [&](int64_t begin, int64_t end) {
      std::vector<A> sums(static_cast<size_t>(s.channels));
      for (int64_t part = begin; part < end; ++part)
        run_backward(call, units * part / parts, units * (part + 1) / parts, sums.data(),
                     call.rows ? call.rows + part * s.channels : nullptr);
    });
  }
  if (grad_bias) add_rows(workspace, bias_relu_parts(s), s.channels, grad_bias);
}

}  // namespace

int64_t bias_relu_parts(const BiasReluShape& s) {
  return s.channels_last ? std::max<int64_t>(1, std::min(s.batch * s.pixels, kSumParts)) : s.batch;
}

void bias_relu(const BiasReluShape& shape, DType type, const void* x, const void* bias, void* out,
               const Parallel& parallel) {
  if (shape.batch * shape.channels * shape.pixels == 0) return;
  return dispatch_floating(type, [&]<class T>(T) { return start<T, Wide<T>>(shape, x, bias, out, parallel); });
}

void bias_relu_backward(const BiasReluShape& shape, DType type, const void* grad, const void* out, void* grad_x,
                        double* grad_bias, double* workspace, const Parallel& parallel) {
  if (shape.batch * shape.channels * shape.pixels == 0) {
    if (grad_bias) std::fill_n(grad_bias, shape.channels, 0.0);
    return;
  }
  return dispatch_floating(type, [&]<class T>(T) { return start_backward<T, Wide<T>>(shape, grad, out, grad_x, grad_bias, workspace, parallel); });
}

}  // namespace uf
