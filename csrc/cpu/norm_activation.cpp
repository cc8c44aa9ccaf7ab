// Mean and variance of each set, then one more pass for the result; a set that fits the cache is read from memory once.
//
// Each block of numbers is summed about the mean of the block before it, in single precision, and the blocks are put together in
// double (Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979). No mean, however
// large, cancels the digits of a variance: a block whose mean is far from that of its neighbour makes the variance as large.
#include "cpu/norm_activation.h"

#include "cpu/lanes.h"

namespace uf {
namespace {

// ---- moments

// Of count numbers each: their means, and the sums of the squared distances to it.
struct Moments {
  double count = 0, mean = 0, m2 = 0;

  void add(double n, double other_mean, double other_m2) {
    if (n == 0) return;
    const double delta = other_mean - mean, all = count + n;
    mean += delta * (n / all);
    m2 += other_m2 + delta * delta * (count * n / all);
    count = all;
  }

  // Columns of so many numbers each.
  void add_columns(double rows, const double* means, const double* m2s, int64_t width) {
    double sum = 0, within = 0, between = 0;
    for (int64_t c = 0; c < width; ++c) sum += means[c] - means[0], within += m2s[c];
    const double centre = means[0] + sum / static_cast<double>(width);
    for (int64_t c = 0; c < width; ++c) between += (means[c] - centre) * (means[c] - centre);
    add(rows * static_cast<double>(width), centre, within + rows * between);
  }
};

template <class T, class A, int R>
struct AddRows {
  const T* __restrict x;
  int64_t width;
  A* __restrict sum;

  UF_PIECE(c) {
    UF_LANES(j) {
      A added = widen(x[c + j]);
      for (int r = 1; r < R; ++r) added += widen(x[r * width + c + j]);
      sum[c + j] += added;
    }
  }
};

template <class T, class A, int R>
struct AddDistances {
  const T* __restrict x;
  int64_t width;
  const A* __restrict about;
  A* __restrict sum;
  A* __restrict square;

  UF_PIECE(c) {
    UF_LANES(j) {
      const A first = widen(x[c + j]) - about[c + j];
      A added = first, squared = first * first;
      for (int r = 1; r < R; ++r) {
        const A d = widen(x[r * width + c + j]) - about[c + j];
        added += d;
        squared += d * d;
      }
      sum[c + j] += added;
      square[c + j] += squared;
    }
  }
};

// mean and m2 (width) of the rows of each column; scratch (3 * width).
template <class T, class A>
UF_INLINE void moments(const T* x, int64_t rows, int64_t width, A* scratch, double* mean, double* m2) {
  A *about = scratch, *sum = scratch + width, *square = scratch + 2 * width;
  const int64_t block = std::min(rows, rows_per_sum(width));
  std::fill_n(about, width, A(0));
  int64_t row = 0;
  for (; row + 4 <= block; row += 4) for_lanes(width, AddRows<T, A, 4>{x + row * width, width, about});
  for (; row < block; ++row) for_lanes(width, AddRows<T, A, 1>{x + row * width, width, about});
  for (int64_t c = 0; c < width; ++c) {
    about[c] /= static_cast<A>(block);
    mean[c] = m2[c] = 0;
  }
  for (int64_t start = 0; start < rows; start += block) {
    const int64_t end = std::min(rows, start + block);
    std::fill_n(sum, 2 * width, A(0));
    for (row = start; row + 4 <= end; row += 4)
      for_lanes(width, AddDistances<T, A, 4>{x + row * width, width, about, sum, square});
    for (; row < end; ++row) for_lanes(width, AddDistances<T, A, 1>{x + row * width, width, about, sum, square});
    const double n = static_cast<double>(end - start), all = static_cast<double>(end);
    const double part = n / all, both = static_cast<double>(start) * n / all;
    for (int64_t c = 0; c < width; ++c) {
      const double shift = sum[c] / n, here = about[c] + shift, delta = here - mean[c];
      mean[c] += delta * part;
      m2[c] += square[c] - sum[c] * shift + delta * delta * both;
      about[c] = static_cast<A>(here);
    }
  }
}

// ---- the map

template <class T, class A, Activation kind>
struct Apply {
  const T* __restrict x;
  Columns<A> columns;
  T* __restrict y;

  UF_PIECE(c) {
    const A* __restrict mean = columns.mean;
    const A* __restrict scale = columns.scale;
    const A* __restrict bias = columns.bias;
    const A* __restrict slope = columns.slope;
    UF_LANES(j) {
      const A z = (widen(x[c + j]) - mean[c + j]) * scale[c + j] + bias[c + j];
      y[c + j] = narrow<T>(activated<kind>(z, slope[c + j]));
    }
  }
};

template <class T, class A, Activation kind>
UF_INLINE void apply_rows(const T* x, int64_t rows, int64_t width, const Columns<A>& columns, T* y) {
  for (int64_t row = 0; row < rows; ++row)
    for_lanes(width, Apply<T, A, kind>{x + row * width, columns, y + row * width});
}

template <class T, class A>
struct ApplyRows {
  const T* x;
  int64_t rows, width;
  Columns<A> columns;
  T* y;

  template <Activation kind>
  UF_INLINE void call() const {
    apply_rows<T, A, kind>(x, rows, width, columns, y);
  }
};

#define UF_NORM_ACTIVATION(T, A)                                                                                       \
  UF_MULTIVERSION void run_moments(const T* x, int64_t rows, int64_t width, A* scratch, double* mean, double* m2) {    \
    moments(x, rows, width, scratch, mean, m2);                                                                        \
  }                                                                                                                    \
  UF_MULTIVERSION void run_apply(Activation kind, const T* x, int64_t rows, int64_t width, const Columns<A>& columns,  \
                                 T* y) {                                                                               \
    with_activation(kind, ApplyRows<T, A>{x, rows, width, columns, y});                                                \
  }

UF_FLOATING(UF_NORM_ACTIVATION)
#undef UF_NORM_ACTIVATION

// ---- the whole

template <class T, class A>
struct Forward {
  const Jobs& jobs;
  const T* x;
  T* y;
  A* mean;  // (sets)
  A* var;
  const ChannelNumbers<A>& numbers;
  std::vector<A> means, scales;  // (images, channels)

  void run(const Parallel& parallel) {
    const NormActivationShape& s = jobs.s;
    means.resize(static_cast<size_t>(jobs.images() * s.channels));
    scales.resize(means.size());
    jobs.run(parallel, [&](int64_t job, const Parallel& threads) {
      if (s.channels_last)
        pixels(job, threads);
      else
        planes(job, threads);
    });
  }

  void coefficients(int64_t at, int64_t channel, int64_t set, double variance) {
    means[at] = mean[set];
    scales[at] = static_cast<A>(numbers.weight[channel] / std::sqrt(variance + jobs.s.eps));
  }

  // Of the set, from the moments of its channels; `first` is where its coefficients begin.
  double finish(int64_t set, const Moments& all) {
    mean[set] = static_cast<A>(all.mean);
    var[set] = static_cast<A>(all.m2 / all.count);
    return all.m2 / all.count;
  }

  void planes(int64_t job, const Parallel& threads) {
    const NormActivationShape& s = jobs.s;
    double variance = jobs.s.fixed ? static_cast<double>(var[job]) : 0;
    if (!s.fixed) {
      std::vector<Moments> found(static_cast<size_t>(jobs.units));
      jobs.each(threads, [&](int64_t begin, int64_t end) {
        A scratch[3 * kColumns];
        double mean_of[kColumns], m2_of[kColumns];
        for (int64_t i = begin; i < end; ++i) {
          const T* plane = x + jobs.plane(job, i) * s.pixels;
          matrices_of_plane(s.pixels, [&](int64_t at, int64_t rows, int64_t width) {
            run_moments(plane + at, rows, width, scratch, mean_of, m2_of);
            found[i].add_columns(static_cast<double>(rows), mean_of, m2_of, width);
          });
        }
      });
      Moments all;
      for (const Moments& plane : found) all.add(plane.count, plane.mean, plane.m2);
      variance = finish(job, all);
    }
    const int64_t channels_of_set = s.groups == 0 ? 1 : jobs.units;
    const int64_t first = s.groups == 0 ? job : job * jobs.units;
    for (int64_t at = first; at < first + channels_of_set; ++at) coefficients(at, at % s.channels, job, variance);
    const Columns<A> all = {means.data(), scales.data(), numbers.bias.data(), numbers.slope.data()};
    jobs.each(threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t plane = jobs.plane(job, i), channel = plane % s.channels;
        const PlaneColumns<A> columns(all, s.groups == 0 ? channel : plane, channel);
        matrices_of_plane(s.pixels, [&](int64_t at, int64_t rows, int64_t width) {
          run_apply(s.activation, x + plane * s.pixels + at, rows, width, columns.columns(), y + plane * s.pixels + at);
        });
      }
    });
  }

  void pixels(int64_t job, const Parallel& threads) {
    const NormActivationShape& s = jobs.s;
    const int64_t rows = jobs.units, channels = s.channels, first = job * rows * channels;
    const int64_t channels_of_set = channels / jobs.sets;
    std::vector<Moments> found(static_cast<size_t>(s.fixed ? 0 : channels));
    if (!s.fixed) {
      std::vector<double> sums(static_cast<size_t>(jobs.parts() * 2 * channels));
      jobs.each_part<A>(threads, 3 * channels, [&](int64_t part, int64_t from, int64_t to, A* scratch) {
        double* at = sums.data() + part * 2 * channels;
        run_moments(x + first + from * channels, to - from, channels, scratch, at, at + channels);
      });
      for (int64_t part = 0; part < jobs.parts(); ++part) {
        const double count = static_cast<double>(jobs.part_begin(part + 1) - jobs.part_begin(part));
        const double* at = sums.data() + part * 2 * channels;
        for (int64_t c = 0; c < channels; ++c) found[c].add(count, at[c], at[channels + c]);
      }
    }
    for (int64_t set = 0; set < jobs.sets; ++set) {
      const int64_t number = job * jobs.sets + set, begin = set * channels_of_set;
      double variance = s.fixed ? static_cast<double>(var[number]) : 0;
      if (!s.fixed) {
        Moments all;
        for (int64_t c = begin; c < begin + channels_of_set; ++c) all.add(found[c].count, found[c].mean, found[c].m2);
        variance = finish(number, all);
      }
      for (int64_t c = begin; c < begin + channels_of_set; ++c) coefficients(job * channels + c, c, number, variance);
    }
    const Columns<A> columns = {means.data() + job * channels, scales.data() + job * channels, numbers.bias.data(),
                                numbers.slope.data()};
    jobs.each(threads, [&](int64_t begin, int64_t end) {
      const int64_t at = first + begin * channels;
      run_apply(s.activation, x + at, end - begin, channels, columns, y + at);
    });
  }
};

}  // namespace

void norm_activation(const NormActivationShape& shape, DType type, const void* x, const NormActivationChannels& channels,
                     void* mean, void* var, void* y, double*, const Parallel& parallel) {
  const Jobs jobs(shape);
  dispatch_floating(type, [&]<class T>(T) {
    using A = Wide<T>;
    if (shape.batch * shape.channels * shape.pixels == 0) {
      if (!shape.fixed)
        for (void* statistic : {mean, var}) std::fill_n(static_cast<A*>(statistic), shape.sets(), A(0));
      return;
    }
    const ChannelNumbers<A> numbers(shape, channels);
    Forward<T, A>{jobs, static_cast<const T*>(x), static_cast<T*>(y), static_cast<A*>(mean), static_cast<A*>(var), numbers, {}, {}}
        .run(parallel);
  });
}

}  // namespace uf
