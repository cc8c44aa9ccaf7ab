// The gradient came with the loss; what is left is its product with the gradient that arrives: one read, one write.
#include "common/half.h"
#include "common/macros.h"
#include "cpu/weighted_cross_entropy.h"

namespace uf {
namespace {

constexpr int64_t kGrainValues = 1 << 16;  // less work than this is not worth waking a second thread for

template <class T, class A>
UF_INLINE void scale_range(const T* __restrict in, T* __restrict out, int64_t count, A factor) {
  for (int64_t i = 0; i < count; ++i) out[i] = narrow<T>(widen(in[i]) * factor);
}

// factors (count), repeated for each of the `inner` values of a pixel where those lie side by side
template <class T, class A>
UF_INLINE void scale_pixels(const T* __restrict in, T* __restrict out, int64_t count, int64_t inner,
                            const A* __restrict factors) {
  if (inner == 1) {
    for (int64_t i = 0; i < count; ++i) out[i] = narrow<T>(widen(in[i]) * factors[i]);
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t k = 0; k < inner; ++k) out[i * inner + k] = narrow<T>(widen(in[i * inner + k]) * factors[i]);
}

#define UF_SCALE(NAME, T, A)                                                                                      \
  UF_MULTIVERSION void NAME##_range(const T* in, T* out, int64_t count, A factor) {                               \
    scale_range(in, out, count, factor);                                                                          \
  }                                                                                                               \
  UF_MULTIVERSION void NAME##_pixels(const T* in, T* out, int64_t count, int64_t inner, const A* factors) {       \
    scale_pixels(in, out, count, inner, factors);                                                                 \
  }

UF_SCALE(scale_float64, double, double)
UF_SCALE(scale_float32, float, float)
UF_SCALE(scale_bfloat16, BFloat16, float)
#undef UF_SCALE

template <class T, class A, class Range, class Pixels>
void run_backward(int64_t batch, int64_t classes, int64_t pixels, bool channels_last, const void* grad,
                  const void* grad_output, bool each_pixel, void* out, const Parallel& parallel, Range&& range,
                  Pixels&& pixelwise) {
  const T* from = static_cast<const T*>(grad);
  const A* factor = static_cast<const A*>(grad_output);
  T* to = static_cast<T*>(out);
  if (!each_pixel) {
    parallel(batch * classes * pixels, kGrainValues,
             [&](int64_t begin, int64_t end) { range(from + begin, to + begin, end - begin, *factor); });
    return;
  }
  const int64_t inner = channels_last ? classes : 1, planes = channels_last ? 1 : classes;
  parallel(batch * planes, kGrainValues / (inner * pixels + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t at = plane * inner * pixels;
      pixelwise(from + at, to + at, pixels, inner, factor + plane / planes * pixels);
    }
  });
}

}  // namespace

void weighted_cross_entropy_backward(int64_t batch, int64_t classes, int64_t pixels, bool channels_last, FloatType type,
                                     const void* grad, const void* grad_output, bool each_pixel, void* out,
                                     const Parallel& parallel) {
  if (type == FloatType::kFloat64)
    run_backward<double, double>(batch, classes, pixels, channels_last, grad, grad_output, each_pixel, out, parallel,
                                 scale_float64_range, scale_float64_pixels);
  else if (type == FloatType::kBFloat16)
    run_backward<BFloat16, float>(batch, classes, pixels, channels_last, grad, grad_output, each_pixel, out, parallel,
                                  scale_bfloat16_range, scale_bfloat16_pixels);
  else
    run_backward<float, float>(batch, classes, pixels, channels_last, grad, grad_output, each_pixel, out, parallel,
                               scale_float32_range, scale_float32_pixels);
}

}  // namespace uf
