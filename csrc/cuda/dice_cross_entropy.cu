// One pass over the logits for the sums, one for the gradient; between them a few numbers an image.
//
// A block takes a part of one image, a thread one pixel after the other with all its classes: up to four in registers, whose sums stay
// there until the end. More classes pass through a running softmax and are read a second time, mostly from the caches, four pixels a
// thread; a warp adds up each class, 64 classes a block. Every block leaves one row of sums in memory. The rows are added up in a fixed
// order, without atomics, and one block makes the loss and its slopes of them.
//
// Bytes a pixel: K logits, target (1 to 8, or K wide numbers) and weight (4 or 8) read; backward the same and K gradients written. The
// limit is those bytes / copy bandwidth.
#include "common/dice_cross_entropy.h"

#include "cuda/block_sum.h"
#include "cuda/channel_sums.h"
#include "cuda/dice_pixels.h"

namespace uf::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kFew = 4;                          // classes in registers; more, or several sigmoids, are kClasses of a block
constexpr int64_t kPixels = 4, kTile = kThreads * kPixels;  // of a thread, of a block at a time
constexpr int64_t kMostTiles = 8;                // a thread adds up at most 32 pixels in the precision of the arithmetic
constexpr int64_t kBusy = 1024;                  // blocks that fill a GPU
constexpr int kClasses = 64;
// Of a multiprocessor: 128 registers a thread, which the sums in float64 do not fit into.
template <class T>
constexpr int kBlocks = sizeof(Wide<T>) == 8 ? 1 : 2;
constexpr int64_t kKept = 256;                   // slopes of classes in shared memory

// How an image is cut: a row of `width` sums from each part, that is both, predicted and truth of each class, the cross-entropy of each
// chunk of classes, and the divisor.
struct Cut {
  int64_t chunks, tiles, parts, width;

  explicit Cut(const DiceCrossEntropyShape& s)
      : chunks(s.classes <= kFew && (s.classes == 1 || !s.sigmoid) ? 1 : ceil_div(s.classes, kClasses)) {
    const int64_t all = ceil_div(s.pixels, kTile), wanted = s.batch * all * chunks / kBusy;
    tiles = wanted < 1 ? 1 : wanted < kMostTiles ? wanted : kMostTiles;
    parts = ceil_div(all, tiles);
    width = 3 * s.classes + chunks + 1;
  }
};

// The part of this block.
struct Part {
  int64_t image, first, last;  // tiles
  int64_t row, chunk;

  __device__ Part(const Cut& cut, int64_t pixels) {
    row = blockIdx.x / cut.chunks;
    chunk = blockIdx.x - row * cut.chunks;
    image = row / cut.parts;
    const int64_t all = ceil_div(pixels, kTile);
    first = (row - image * cut.parts) * cut.tiles;
    last = first + cut.tiles < all ? first + cut.tiles : all;
  }
};

template <class T, int K, bool kSigmoid>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) few_sums_kernel(const DiceCall call, const Cut cut, double* rows) {
  using A = Wide<T>;
  __shared__ double scratch[kWarps];
  const Part part(cut, call.shape.pixels);
  A both[K] = {}, predicted[K] = {}, truth[K] = {}, loss = 0, share = 0;
  for (int64_t tile = part.first; tile < part.last; ++tile) {
#pragma unroll
    for (int64_t i = 0; i < kPixels; ++i) {
      const int64_t at = tile * kTile + i * kThreads + threadIdx.x;
      if (at >= call.shape.pixels) break;
      const DicePixel<T, K, kSigmoid> pixel(call, part.image, at, true);
      A x[K], cost = 0;
#pragma unroll
      for (int k = 0; k < K; ++k) x[k] = pixel.logit(k);
      share += pixel.share;
      if constexpr (kSigmoid) {
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const Sigmoid<A> s(x[k]);
          const A t = pixel.truth(k), p = pixel.weight * s.probability();
          both[k] += p * t;
          predicted[k] += p;
          truth[k] += pixel.weight * t;
          if (call.shape.cross_entropy) cost += s.cost(t, pixel.weight_of_class(k));
        }
      } else {
        const auto softmax = softmax_of(pixel, x);
        const A y = A(1) + softmax.rest, inverse = A(1) / y, log = log1p_nonnegative(softmax.rest, y, inverse);
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const A t = pixel.truth(k), c = pixel.factor(k, t);
          const A p = pixel.weight * (exp_nonpositive(x[k] - softmax.largest) * inverse);
          both[k] += p * t;
          predicted[k] += p;
          truth[k] += pixel.weight * t;
          if (call.shape.cross_entropy) cost += c == 0 ? A(0) : c * ((softmax.largest - x[k]) + log);
        }
      }
      loss += pixel.weight * cost;
    }
  }
  double* row = rows + part.row * cut.width;
  const auto write = [&](int64_t at, A value) {
    const double sum = block_sum<kThreads>(static_cast<double>(value), scratch);
    if (threadIdx.x == 0) row[at] = sum;
    __syncthreads();
  };
#pragma unroll
  for (int k = 0; k < K; ++k) {
    write(k, both[k]);
    write(K + k, predicted[k]);
    write(2 * K + k, truth[k]);
  }
  write(3 * K, loss);
  write(3 * K + 1, share);
}

template <class T, bool kSigmoid>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) many_sums_kernel(const DiceCall call, const Cut cut, double* rows) {
  using A = Wide<T>;
  using Pixel = DicePixel<T, 0, kSigmoid>;
  __shared__ double scratch[kWarps], stage[kWarps][3][kClasses];
  const Part part(cut, call.shape.pixels);
  const int64_t begin = part.chunk * kClasses, left = call.shape.classes - begin, count = left < kClasses ? left : kClasses;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int i = lane; i < 3 * kClasses; i += kWarp) stage[warp][i / kClasses][i % kClasses] = 0;
  double loss = 0, share = 0;
  for (int64_t tile = part.first; tile < part.last; ++tile) {
    const int64_t start = tile * kTile + threadIdx.x;
    const auto pixel_of = [&](int i) {
      const int64_t at = start + i * kThreads;
      return Pixel(call, part.image, at < call.shape.pixels ? at : 0, at < call.shape.pixels);
    };
    const Pixel pixels[kPixels] = {pixel_of(0), pixel_of(1), pixel_of(2), pixel_of(3)};
    A largest[kPixels], inverse[kPixels], log[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      share += static_cast<double>(pixels[i].share);
      if constexpr (!kSigmoid) {
        const auto softmax = softmax_of(pixels[i], static_cast<const A*>(nullptr));
        const A y = A(1) + softmax.rest;
        largest[i] = softmax.largest;
        inverse[i] = A(1) / y;
        log[i] = log1p_nonnegative(softmax.rest, y, inverse[i]);
      }
    }
    A cost = 0;
    for (int64_t c = 0; c < count; ++c) {
      const int64_t k = begin + c;
      A both = 0, predicted = 0, truth = 0;
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        const Pixel& pixel = pixels[i];
        const A x = pixel.logit(k), t = pixel.truth(k);
        A p, of_class = 0;
        if constexpr (kSigmoid) {
          const Sigmoid<A> s(x);
          p = pixel.weight * s.probability();
          if (call.shape.cross_entropy) of_class = s.cost(t, pixel.weight_of_class(k));
        } else {
          const A factor = pixel.factor(k, t);
          p = pixel.weight * (exp_nonpositive(x - largest[i]) * inverse[i]);
          if (call.shape.cross_entropy) of_class = factor == 0 ? A(0) : factor * ((largest[i] - x) + log[i]);
        }
        both += p * t;
        predicted += p;
        truth += pixel.weight * t;
        cost += pixel.weight * of_class;
      }
      both = warp_sum(both);
      predicted = warp_sum(predicted);
      truth = warp_sum(truth);
      if (lane == 0) {
        stage[warp][0][c] += static_cast<double>(both);
        stage[warp][1][c] += static_cast<double>(predicted);
        stage[warp][2][c] += static_cast<double>(truth);
      }
    }
    loss += static_cast<double>(cost);
  }
  double* row = rows + part.row * cut.width;
  loss = block_sum<kThreads>(loss, scratch);
  __syncthreads();
  share = block_sum<kThreads>(share, scratch);
  if (threadIdx.x == 0) {
    row[3 * call.shape.classes + part.chunk] = loss;
    if (part.chunk == 0) row[3 * call.shape.classes + cut.chunks] = share;
  }
  for (int64_t i = threadIdx.x; i < 3 * count; i += kThreads) {
    const int64_t which = i / count, c = i - which * count;
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += stage[w][which][c];
    row[which * call.shape.classes + begin + c] = sum;
  }
}

// ---- from sums to the loss

// From rows (N, width) to the arrays of the operator, by the threads [thread, ...) of so many.
__device__ void write_sums(const DiceCrossEntropyShape& s, const Cut& cut, const double* totals, const DiceCrossEntropySums& sums,
                           int64_t thread, int64_t threads) {
  const int64_t k = s.classes;
  for (int64_t i = thread; i < s.batch * 3 * k; i += threads) {
    const int64_t n = i / (3 * k), at = i - n * 3 * k, which = at / k;
    double* out = which == 0 ? sums.both : which == 1 ? sums.predicted : sums.truth;
    out[n * k + at - which * k] = totals[n * cut.width + at];
  }
  for (int64_t n = thread; n < s.batch; n += threads) {
    double loss = 0;
    for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) loss += totals[n * cut.width + 3 * k + chunk];
    sums.cross_entropy[n] = loss;
    sums.counted[n] = totals[n * cut.width + 3 * k + cut.chunks];
  }
}

__global__ void __launch_bounds__(kThreads)
    region_sums_kernel(const DiceCrossEntropyShape s, const Cut cut, const double* totals, const DiceCrossEntropySums sums) {
  write_sums(s, cut, totals, sums, static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, int64_t{gridDim.x} * kThreads);
}

// One block: the sums are few.
template <class A>
__global__ void __launch_bounds__(kThreads)
    loss_kernel(const DiceCrossEntropyShape s, const Cut cut, const DiceCrossEntropyOptions o, const double* totals,
                const DiceCrossEntropySums sums, const A* class_weight, A* result, double* slopes) {
  __shared__ double losses[kWarps], numbers[kWarps], dices[kWarps];
  write_sums(s, cut, totals, sums, threadIdx.x, kThreads);
  __syncthreads();
  double loss = 0, number = 0, dice = 0;
  for (int64_t n = threadIdx.x; n < s.batch; n += kThreads) {
    loss += sums.cross_entropy[n];
    number += sums.counted[n];
  }
  loss = block_sum<kThreads>(loss, losses);
  number = block_sum<kThreads>(number, numbers);
  const double each = of_cross_entropy(s, o, number);
  const int64_t regions = dice_regions(s, o), width = 2 * s.classes + 1;
  for (int64_t i = threadIdx.x; i < regions * s.classes; i += kThreads) {
    const int64_t n = i / s.classes, c = i - n * s.classes, end = o.batch ? s.batch : n + 1;
    double both = 0, total = 0;
    for (int64_t image = n; image < end; ++image) {
      both += sums.both[image * s.classes + c];
      total += sums.predicted[image * s.classes + c] + sums.truth[image * s.classes + c];
    }
    const double weight = class_weight ? static_cast<double>(class_weight[c]) : 1.0;
    const DiceOfRegion region = dice_of_region(s, o, c, weight, both, total);
    dice += region.loss;
    for (int64_t image = n; image < end; ++image) {
      slopes[image * width + c] = region.by_both;
      slopes[image * width + s.classes + c] = region.by_predicted;
    }
  }
  for (int64_t n = threadIdx.x; n < s.batch; n += kThreads) slopes[n * width + 2 * s.classes] = each;
  dice = block_sum<kThreads>(dice, dices);
  if (threadIdx.x == 0) *result = static_cast<A>(dice + (s.cross_entropy ? each * loss : 0));
}

// ---- the gradient

template <class T, int K, bool kSigmoid>
__global__ void __launch_bounds__(kThreads, 2)
    dice_gradient_kernel(const DiceCall call, const int64_t tiles, const double* __restrict__ slopes, T* __restrict__ grad) {
  using A = Wide<T>;
  constexpr int64_t kShared = K > 0 ? K : kKept;
  __shared__ A both[kShared], predicted[kShared];
  const DiceCrossEntropyShape& s = call.shape;
  const int64_t classes = K > 0 ? K : s.classes, image = blockIdx.x / tiles, tile = blockIdx.x - image * tiles;
  const double* of = slopes + image * (2 * classes + 1);
  for (int64_t k = threadIdx.x; k < classes && k < kShared; k += kThreads) {
    both[k] = static_cast<A>(of[k]);
    predicted[k] = static_cast<A>(of[classes + k]);
  }
  __syncthreads();
  const A of_loss = static_cast<A>(of[2 * classes]);
  for (int64_t i = 0; i < kPixels; ++i) {
    const int64_t at = tile * kTile + i * kThreads + threadIdx.x;
    if (at >= s.pixels) break;
    const DicePixel<T, K, kSigmoid> pixel(call, image, at, true);
    T* to = grad + image * classes * s.pixels + at * s.grad_pixel_stride;
    dice_gradient(
        pixel, [&](int64_t k) { return k < kShared ? both[k] : static_cast<A>(of[k]); },
        [&](int64_t k) { return k < kShared ? predicted[k] : static_cast<A>(of[classes + k]); }, of_loss,
        [&](int64_t k, A value) { to[k * s.grad_class_stride] = narrow<T>(value); });
  }
}

// ---- launches

// f<K, kSigmoid>() with the number of classes that are held in registers, or 0.
template <class F>
cudaError_t with_classes(const DiceCrossEntropyShape& s, const F& f) {
  if (s.sigmoid) return s.classes == 1 ? f.template operator()<1, true>() : f.template operator()<0, true>();
  switch (s.classes) {
    case 2: return f.template operator()<2, false>();
    case 3: return f.template operator()<3, false>();
    case 4: return f.template operator()<4, false>();
    default: return f.template operator()<0, false>();
  }
}

// totals (N, width) <- the pixels of each image; workspace: dice_cross_entropy_workspace doubles, of which the first are totals.
template <class T>
cudaError_t add_up(const DiceCrossEntropyShape& s, const DiceCrossEntropyInputs& inputs, double* workspace, cudaStream_t stream) {
  const Cut cut(s);
  const DiceCall call = {s, inputs};
  double* rows = workspace + s.batch * cut.width;
  const int64_t blocks = s.batch * cut.parts * cut.chunks;
  const cudaError_t error = with_classes(s, [&]<int K, bool kSigmoid>() {
    if constexpr (K > 0)
      return launch(few_sums_kernel<T, K, kSigmoid>, blocks, kThreads, stream, call, cut, rows);
    else
      return launch(many_sums_kernel<T, kSigmoid>, blocks, kThreads, stream, call, cut, rows);
  });
  if (error != cudaSuccess || s.batch == 0) return error;
  return channel_sums(rows, cut.parts, cut.width, DType::kFloat64, workspace, stream, s.batch);
}

}  // namespace

int64_t dice_cross_entropy_workspace(const DiceCrossEntropyShape& s) {
  const Cut cut(s);
  return s.batch * (cut.parts + 1) * cut.width;
}

cudaError_t region_sums(const DiceCrossEntropyShape& shape, const DiceCrossEntropyInputs& inputs, const DiceCrossEntropySums& sums,
                        double* workspace, BadClass&, cudaStream_t stream) {
  return dispatch_floating(shape.type, [&]<class T>(T) {
    const cudaError_t error = add_up<T>(shape, inputs, workspace, stream);
    if (error != cudaSuccess) return error;
    const int64_t blocks = ceil_div(shape.batch * 3 * shape.classes, kThreads);
    return launch(region_sums_kernel, blocks, kThreads, stream, shape, Cut(shape), static_cast<const double*>(workspace), sums);
  });
}

cudaError_t dice_cross_entropy(const DiceCrossEntropyShape& shape, const DiceCrossEntropyInputs& inputs,
                               const DiceCrossEntropyOptions& options, const DiceCrossEntropySums& sums, void* loss, double* slopes,
                               double* workspace, BadClass&, cudaStream_t stream) {
  return dispatch_floating(shape.type, [&]<class T>(T) {
    using A = Wide<T>;
    const cudaError_t error = add_up<T>(shape, inputs, workspace, stream);
    if (error != cudaSuccess) return error;
    return launch(loss_kernel<A>, 1, kThreads, stream, shape, Cut(shape), options, static_cast<const double*>(workspace), sums,
                  static_cast<const A*>(inputs.class_weight), static_cast<A*>(loss), slopes);
  });
}

cudaError_t dice_cross_entropy_backward(const DiceCrossEntropyShape& shape, const DiceCrossEntropyInputs& inputs, const double* slopes,
                                        void* grad_logits, cudaStream_t stream) {
  const DiceCall call = {shape, inputs};
  const int64_t tiles = ceil_div(shape.pixels, kTile);
  return dispatch_floating(shape.type, [&]<class T>(T) {
    return with_classes(shape, [&]<int K, bool kSigmoid>() {
      return launch(dice_gradient_kernel<T, K, kSigmoid>, shape.batch * tiles, kThreads, stream, call, tiles, slopes,
                    static_cast<T*>(grad_logits));
    });
  });
}

}  // namespace uf::cuda
