// With d = x - mean, r = 1 / sqrt(var + eps), z = d r w + b and h = g f'(z), over the M numbers of a set:
//
//   grad_x = r (w h - A / M - d r^2 B / M),  A = sum w h,  B = sum w h d
//   grad_weight = sum h d r,  grad_bias = sum h,  grad_slope = sum of g z where z is not positive
//
// so one pass over g and x gives three sums of each channel of an image, and one more the result. Source: Ioffe and Szegedy, Batch
// normalization (ICML 2015), section 3; the statistics of a set are constants where they are fixed, and A = B = 0.
#include "cpu/norm_activation.h"

#include "cpu/channel_sums.h"
#include "cpu/lanes.h"

namespace uf {
namespace {

constexpr int kSums = 3;  // of h, of h d, and of g z

// Of R rows, added up before they go to the sums in memory.
template <class T, class A, Activation kind, int R>
struct AddGradients {
  const T* __restrict grad;
  const T* __restrict x;
  int64_t width;
  Columns<A> columns;
  A* __restrict bias_sum;
  A* __restrict weight_sum;
  A* __restrict slope_sum;

  UF_PIECE(c) {
    const A* __restrict mean = columns.mean;
    const A* __restrict scale = columns.scale;
    const A* __restrict bias = columns.bias;
    const A* __restrict slope = columns.slope;
    UF_LANES(j) {
      A of_bias = 0, of_weight = 0, of_slope = 0;
      for (int r = 0; r < R; ++r) {
        const int64_t at = r * width + c + j;
        const A d = widen(x[at]) - mean[c + j], z = d * scale[c + j] + bias[c + j], g = widen(grad[at]);
        const A h = g * activation_slope<kind>(z, slope[c + j]);
        of_bias += h;
        of_weight += h * d;
        if constexpr (kind == Activation::kLeaky) of_slope += z > 0 ? A(0) : g * z;
      }
      bias_sum[c + j] += of_bias;
      weight_sum[c + j] += of_weight;
      if constexpr (kind == Activation::kLeaky) slope_sum[c + j] += of_slope;
    }
  }
};

// Adds to sums (kSums, width) in double; scratch (kSums * width).
template <class T, class A, Activation kind>
UF_INLINE void sum_rows(const T* grad, const T* x, int64_t rows, int64_t width, const Columns<A>& columns, A* scratch,
                        double* sums) {
  const int64_t block = rows_per_sum(width);
  for (int64_t start = 0; start < rows; start += block) {
    std::fill_n(scratch, kSums * width, A(0));
    const int64_t end = std::min(rows, start + block);
    int64_t row = start;
    for (; row + 4 <= end; row += 4)
      for_lanes(width, AddGradients<T, A, kind, 4>{grad + row * width, x + row * width, width, columns, scratch,
                                                   scratch + width, scratch + 2 * width});
    for (; row < end; ++row)
      for_lanes(width, AddGradients<T, A, kind, 1>{grad + row * width, x + row * width, width, columns, scratch,
                                                   scratch + width, scratch + 2 * width});
    for (int64_t c = 0; c < kSums * width; ++c) sums[c] += scratch[c];
  }
}

// What is subtracted from r w h: constant + linear d.
template <class A>
struct Subtracted {
  const A* constant;
  const A* linear;
};

template <class T, class A, Activation kind>
struct ApplyGradient {
  const T* __restrict grad;
  const T* __restrict x;
  Columns<A> columns;
  Subtracted<A> less;
  T* __restrict grad_x;

  UF_PIECE(c) {
    const A* __restrict mean = columns.mean;
    const A* __restrict scale = columns.scale;
    const A* __restrict bias = columns.bias;
    const A* __restrict slope = columns.slope;
    const A* __restrict constant = less.constant;
    const A* __restrict linear = less.linear;
    UF_LANES(j) {
      const A d = widen(x[c + j]) - mean[c + j], z = d * scale[c + j] + bias[c + j];
      const A h = widen(grad[c + j]) * activation_slope<kind>(z, slope[c + j]);
      grad_x[c + j] = narrow<T>(h * scale[c + j] - (constant[c + j] + linear[c + j] * d));
    }
  }
};

template <class T, class A, Activation kind>
UF_INLINE void apply_rows(const T* grad, const T* x, int64_t rows, int64_t width, const Columns<A>& columns,
                          const Subtracted<A>& less, T* grad_x) {
  for (int64_t row = 0; row < rows; ++row)
    for_lanes(width,
              ApplyGradient<T, A, kind>{grad + row * width, x + row * width, columns, less, grad_x + row * width});
}

template <class T, class A>
struct SumRows {
  const T *grad, *x;
  int64_t rows, width;
  Columns<A> columns;
  A* scratch;
  double* sums;

  template <Activation kind>
  UF_INLINE void call() const {
    sum_rows<T, A, kind>(grad, x, rows, width, columns, scratch, sums);
  }
};

template <class T, class A>
struct ApplyRows {
  const T *grad, *x;
  int64_t rows, width;
  Columns<A> columns;
  Subtracted<A> less;
  T* grad_x;

  template <Activation kind>
  UF_INLINE void call() const {
    apply_rows<T, A, kind>(grad, x, rows, width, columns, less, grad_x);
  }
};

#define UF_NORM_ACTIVATION(T, A)                                                                                      \
  UF_MULTIVERSION void run(Activation kind, const SumRows<T, A>& call) { with_activation(kind, call); }               \
  UF_MULTIVERSION void run(Activation kind, const ApplyRows<T, A>& call) { with_activation(kind, call); }

UF_FLOATING(UF_NORM_ACTIVATION)
#undef UF_NORM_ACTIVATION

template <class T, class A>
struct Backward {
  const Jobs& jobs;
  const T* grad;
  const T* x;
  const A* mean;  // (sets)
  const A* var;
  T* grad_x;
  const ChannelNumbers<A>& numbers;
  std::vector<A> means, scales, constants, linears;  // (images, channels)
  std::vector<double> sums;                          // (images, kSums, channels)

  void run_all(const Parallel& parallel) {
    const NormActivationShape& s = jobs.s;
    for (std::vector<A>* each : {&means, &scales, &constants, &linears})
      each->resize(static_cast<size_t>(jobs.images() * s.channels));
    sums.resize(static_cast<size_t>(jobs.images() * kSums * s.channels));
    jobs.run(parallel, [&](int64_t job, const Parallel& threads) {
      if (s.channels_last)
        pixels(job, threads);
      else
        planes(job, threads);
    });
  }

  double inverse_deviation(int64_t set) const { return 1 / std::sqrt(static_cast<double>(var[set]) + jobs.s.eps); }

  void coefficients(int64_t image, int64_t channel, int64_t set) {
    const int64_t at = image * jobs.s.channels + channel;
    means[at] = mean[set];
    scales[at] = static_cast<A>(numbers.weight[channel] * inverse_deviation(set));
  }

  // From the sums of the channels [begin, end) of one set to what is subtracted.
  void subtract(int64_t image, int64_t set, int64_t begin, int64_t end, int64_t count) {
    const double* of = sums.data() + image * kSums * jobs.s.channels;
    double a = 0, b = 0;
    for (int64_t c = begin; c < end; ++c) {
      a += numbers.weight[c] * of[c];
      b += numbers.weight[c] * of[jobs.s.channels + c];
    }
    const double r = inverse_deviation(set), m = static_cast<double>(count);
    for (int64_t at = image * jobs.s.channels + begin; at < image * jobs.s.channels + end; ++at) {
      constants[at] = jobs.s.fixed ? A(0) : static_cast<A>(r * a / m);
      linears[at] = jobs.s.fixed ? A(0) : static_cast<A>(r * r * r * b / m);
    }
  }

  Columns<A> columns() const { return {means.data(), scales.data(), numbers.bias.data(), numbers.slope.data()}; }

  void planes(int64_t job, const Parallel& threads) {
    const NormActivationShape& s = jobs.s;
    const bool batch = s.groups == 0;
    const int64_t image = batch ? 0 : job / s.groups, width = batch ? 1 : jobs.units;
    const int64_t begin_channel = batch ? job : job % s.groups * width;
    for (int64_t c = begin_channel; c < begin_channel + width; ++c) coefficients(image, c, job);
    std::vector<double> found(static_cast<size_t>(jobs.units * kSums));
    jobs.each(threads, [&](int64_t begin, int64_t end) {
      A scratch[kSums * kColumns];
      for (int64_t i = begin; i < end; ++i) {
        const int64_t plane = jobs.plane(job, i), channel = plane % s.channels;
        const PlaneColumns<A> of(columns(), batch ? channel : plane, channel);
        matrices_of_plane(s.pixels, [&](int64_t start, int64_t rows, int64_t lanes) {
          double added[kSums * kColumns] = {};
          const int64_t at = plane * s.pixels + start;
          run(s.activation, SumRows<T, A>{grad + at, x + at, rows, lanes, of.columns(), scratch, added});
          for (int64_t k = 0; k < kSums; ++k)
            for (int64_t lane = 0; lane < lanes; ++lane) found[i * kSums + k] += added[k * lanes + lane];
        });
      }
    });
    for (int64_t i = 0; i < jobs.units; ++i)
      for (int64_t k = 0; k < kSums; ++k)
        sums[(image * kSums + k) * s.channels + jobs.plane(job, i) % s.channels] += found[i * kSums + k];
    subtract(image, job, begin_channel, begin_channel + width, jobs.elements);
    jobs.each(threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t plane = jobs.plane(job, i), channel = plane % s.channels, coefficient = batch ? channel : plane;
        const PlaneColumns<A> of(columns(), coefficient, channel);
        A constant[kColumns], linear[kColumns];
        std::fill_n(constant, kColumns, constants[coefficient]);
        std::fill_n(linear, kColumns, linears[coefficient]);
        matrices_of_plane(s.pixels, [&](int64_t start, int64_t rows, int64_t lanes) {
          const int64_t at = plane * s.pixels + start;
          run(s.activation,
              ApplyRows<T, A>{grad + at, x + at, rows, lanes, of.columns(), {constant, linear}, grad_x + at});
        });
      }
    });
  }

  void pixels(int64_t job, const Parallel& threads) {
    const NormActivationShape& s = jobs.s;
    const int64_t rows = jobs.units, channels = s.channels, first = job * rows * channels, width = channels / jobs.sets;
    for (int64_t c = 0; c < channels; ++c) coefficients(job, c, job * jobs.sets + c / width);
    Columns<A> of = columns();
    of.mean += job * channels;
    of.scale += job * channels;
    std::vector<double> found(static_cast<size_t>(jobs.parts() * kSums * channels));
    jobs.each_part<A>(threads, kSums * channels, [&](int64_t part, int64_t from, int64_t to, A* scratch) {
      const int64_t at = first + from * channels;
      run(s.activation,
          SumRows<T, A>{grad + at, x + at, to - from, channels, of, scratch, found.data() + part * kSums * channels});
    });
    add_rows(found.data(), jobs.parts(), kSums * channels, sums.data() + job * kSums * channels);
    for (int64_t set = 0; set < jobs.sets; ++set)
      subtract(job, job * jobs.sets + set, set * width, (set + 1) * width, rows * width);
    const Subtracted<A> less = {constants.data() + job * channels, linears.data() + job * channels};
    jobs.each(threads, [&](int64_t begin, int64_t end) {
      const int64_t at = first + begin * channels;
      run(s.activation, ApplyRows<T, A>{grad + at, x + at, end - begin, channels, of, less, grad_x + at});
    });
  }

  // The sums over the images; those of h d still lack the deviation of each image.
  void numbers_of_channels(A* grad_weight, A* grad_bias, A* grad_slope) const {
    const int64_t channels = jobs.s.channels;
    for (int64_t c = 0; c < channels; ++c) {
      double weight = 0, bias = 0, slope = 0;
      for (int64_t image = 0; image < jobs.images(); ++image) {
        const double* of = sums.data() + image * kSums * channels + c;
        const int64_t set = jobs.s.groups == 0 ? c : image * jobs.s.groups + c / (channels / jobs.s.groups);
        bias += of[0];
        weight += of[channels] * inverse_deviation(set);
        slope += of[2 * channels];
      }
      if (grad_weight) grad_weight[c] = static_cast<A>(weight);
      if (grad_bias) grad_bias[c] = static_cast<A>(bias);
      if (grad_slope) grad_slope[c] = static_cast<A>(slope);
    }
  }
};

}  // namespace

void norm_activation_backward(const NormActivationShape& shape, DType type, const void* grad, const void* x,
                              const NormActivationChannels& channels, const void* mean, const void* var, void* grad_x,
                              void* grad_weight, void* grad_bias, void* grad_slope, double*, const Parallel& parallel) {
  const Jobs jobs(shape);
  dispatch_floating(type, [&]<class T>(T) {
    using A = Wide<T>;
    A *weight = static_cast<A*>(grad_weight), *bias = static_cast<A*>(grad_bias), *slope = static_cast<A*>(grad_slope);
    if (shape.batch * shape.channels * shape.pixels == 0) {
      for (A* gradient : {weight, bias, slope})
        if (gradient) std::fill_n(gradient, shape.channels, A(0));
      return;
    }
    const ChannelNumbers<A> numbers(shape, channels);
    Backward<T, A> backward = {jobs,
                               static_cast<const T*>(grad),
                               static_cast<const T*>(x),
                               static_cast<const A*>(mean),
                               static_cast<const A*>(var),
                               static_cast<T*>(grad_x),
                               numbers,
                               {}, {}, {}, {}, {}};
    backward.run_all(parallel);
    backward.numbers_of_channels(weight, bias, slope);
  });
}

}  // namespace uf
