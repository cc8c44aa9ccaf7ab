// What the forward and the backward pass of a normalisation share: how a map is cut into matrices of rows of columns.
//
// A matrix has a coefficient for each column: the pixels of a channels-last map are its rows and the channels its columns; a plane
// of a planar map is cut into rows of kColumns pixels of one channel. All maths runs along the rows, so that it vectorises.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/macros.h"
#include "common/norm_activation.h"
#include "cpu/parallel.h"

namespace uf {

constexpr int64_t kColumns = 32;
constexpr int64_t kParts = 32;               // of a channels-last image: sums do not depend on the number of threads
constexpr int64_t kGrainElements = 1 << 15;  // less work than this is not worth waking a second thread for

// Rows that sums in single precision run over before they are added up in double: of 16 KiB, but for many columns.
UF_INLINE int64_t rows_per_sum(int64_t width) { return std::max<int64_t>(16, 4096 / width); }

// Of each column.
template <class A>
struct Columns {
  const A* mean;
  const A* scale;
  const A* bias;
  const A* slope;
};

// f.call<kind>() for the activation that is asked for.
template <class F>
UF_INLINE void with_activation(Activation kind, const F& f) {
  switch (kind) {
    case Activation::kNone: return f.template call<Activation::kNone>();
    case Activation::kRelu: return f.template call<Activation::kRelu>();
    case Activation::kLeaky: return f.template call<Activation::kLeaky>();
    case Activation::kSilu: return f.template call<Activation::kSilu>();
  }
}

// f(offset, rows, width) for the matrices of a plane: whole rows, then what is left.
template <class F>
UF_INLINE void matrices_of_plane(int64_t pixels, F f) {
  const int64_t rows = pixels / kColumns;
  if (rows > 0) f(int64_t{0}, rows, kColumns);
  if (pixels > rows * kColumns) f(rows * kColumns, int64_t{1}, pixels - rows * kColumns);
}

// Sets that can be worked on one after the other, each while it is in the cache: an image, or all of the batch, of a channels-last
// map; the planes of one set of a planar one.
struct Jobs {
  explicit Jobs(const NormActivationShape& s) : s(s) {
    if (s.channels_last) {
      count = s.groups == 0 ? 1 : s.batch;
      sets = s.groups == 0 ? s.channels : s.groups;
      units = s.groups == 0 ? s.batch * s.pixels : s.pixels;
      elements = units * s.channels;
    } else {
      count = s.sets();
      sets = 1;
      units = s.groups == 0 ? s.batch : s.channels / s.groups;
      elements = units * s.pixels;
    }
  }

  // Planar: the number of plane i of a job among the N * C planes.
  int64_t plane(int64_t job, int64_t i) const { return s.groups == 0 ? i * s.channels + job : job * units + i; }

  // How many sets of columns have coefficients of their own: one for all images, or one an image.
  int64_t images() const { return s.groups == 0 ? 1 : s.batch; }

  // f(job, threads of that job): jobs side by side where there are enough of them, else one after the other.
  template <class F>
  void run(const Parallel& parallel, F f) const {
    const int64_t threads = parallel.threads();
    if (count % threads == 0 || count >= 4 * threads) {
      const Parallel alone(nullptr, 1);
      parallel(count, kGrainElements / std::max<int64_t>(1, elements) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t job = begin; job < end; ++job) f(job, alone);
      });
    } else {
      for (int64_t job = 0; job < count; ++job) f(job, parallel);
    }
  }

  // f(begin, end) over the units of a job, which are pixels or planes.
  template <class F>
  void each(const Parallel& parallel, F f) const {
    parallel(units, kGrainElements * units / std::max<int64_t>(1, elements) + 1, f);
  }

  // The rows of a channels-last job are summed in parts, whatever the number of threads.
  int64_t parts() const { return std::min(units, kParts); }
  int64_t part_begin(int64_t part) const { return units * part / parts(); }

  // f(part, from, to, scratch) over the parts; a thread's parts share its scratch.
  template <class A, class F>
  void each_part(const Parallel& parallel, int64_t scratch_size, F f) const {
    parallel(parts(), kGrainElements * parts() / elements + 1, [&](int64_t begin, int64_t end) {
      std::vector<A> scratch(static_cast<size_t>(scratch_size));
      for (int64_t part = begin; part < end; ++part) f(part, part_begin(part), part_begin(part + 1), scratch.data());
    });
  }

  const NormActivationShape s;
  int64_t count, sets, units, elements;
};

// The wide numbers of the channels, filled up where the caller gave none.
template <class A>
struct ChannelNumbers {
  ChannelNumbers(const NormActivationShape& s, const NormActivationChannels& given)
      : weight(filled(given.weight, s.channels, A(1))),
        bias(filled(given.bias, s.channels, A(0))),
        slope(filled(given.slope, s.channels, static_cast<A>(s.slope))) {}

  static std::vector<A> filled(const void* given, int64_t count, A missing) {
    if (given == nullptr) return std::vector<A>(static_cast<size_t>(count), missing);
    const A* values = static_cast<const A*>(given);
    return std::vector<A>(values, values + count);
  }

  const std::vector<A> weight, bias, slope;
};

// One number of a channel for all columns of a plane.
template <class A>
struct PlaneColumns {
  explicit PlaneColumns(const Columns<A>& channels, int64_t coefficient, int64_t channel) {
    std::fill_n(mean, kColumns, channels.mean[coefficient]);
    std::fill_n(scale, kColumns, channels.scale[coefficient]);
    std::fill_n(bias, kColumns, channels.bias[channel]);
    std::fill_n(slope, kColumns, channels.slope[channel]);
  }
  Columns<A> columns() const { return {mean, scale, bias, slope}; }

  A mean[kColumns], scale[kColumns], bias[kColumns], slope[kColumns];
};

}  // namespace uf
