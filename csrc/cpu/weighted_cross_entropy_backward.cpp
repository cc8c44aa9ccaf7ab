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

#define UF_SCALE(T, A)                                                                                           \
  UF_MULTIVERSION void scale(const T* in, T* out, int64_t count, A factor) { scale_range(in, out, count, factor); } \
  UF_MULTIVERSION void scale(const T* in, T* out, int64_t count, int64_t inner, const A* factors) {              \
    scale_pixels(in, out, count, inner, factors);                                                                \
  }

UF_SCALE(double, double)
UF_SCALE(float, float)
UF_SCALE(BFloat16, float)
#undef UF_SCALE

template <class T, class A>
void run_backward(int64_t batch, int64_t classes, int64_t pixels, bool channels_last, const void* grad,
                  const void* grad_output, bool each_pixel, void* out, const Parallel& parallel) {
  const T* from = static_cast<const T*>(grad);
  const A* factor = static_cast<const A*>(grad_output);
  T* to = static_cast<T*>(out);
  if (!each_pixel) {
    parallel(batch * classes * pixels, kGrainValues,
             [&](int64_t begin, int64_t end) { scale(from + begin, to + begin, end - begin, *factor); });
    return;
  }
  const int64_t inner = channels_last ? classes : 1, planes = channels_last ? 1 : classes;
  parallel(batch * planes, kGrainValues / (inner * pixels + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t at = plane * inner * pixels;
      scale(from + at, to + at, pixels, inner, factor + plane / planes * pixels);
    }
  });
}

}  // namespace

void weighted_cross_entropy_backward(int64_t batch, int64_t classes, int64_t pixels, bool channels_last, DType type,
                                     const void* grad, const void* grad_output, bool each_pixel, void* out,
                                     const Parallel& parallel) {
  dispatch<double, BFloat16, float>(type, [&]<class T>(T) {
    run_backward<T, Wide<T>>(batch, classes, pixels, channels_last, grad, grad_output, each_pixel, out, parallel);
  });
}

}  // namespace uf
