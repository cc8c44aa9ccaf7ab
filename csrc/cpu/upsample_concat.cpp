// Along each axis every number is a sum of some of the other map's, with weights that a table holds: two in the forward pass, all
// that came from it in the backward pass. A row of the result is a sum of rows, in the wide type, then of places in that row; what
// is only copied is never widened. Each number of the joined map is written once.
#include "common/upsample_concat.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/crop.h"
#include "common/half.h"
#include "cpu/copy_rows.h"
#include "cpu/lanes.h"

namespace uf {
namespace {

constexpr int64_t kGrainElements = 1 << 14;  // less work than this is not worth waking a second thread for

// For each of `size` numbers `taps` places and weights, tap by tap: those that are not needed have weight 0 and repeat a place.
template <class A>
struct Table {
  int64_t size = 0, taps = 0;
  std::vector<int32_t> place;
  std::vector<A> weight;

  int32_t at(int64_t tap, int64_t i) const { return place[tap * size + i]; }
  A weight_of(int64_t tap, int64_t i) const { return weight[tap * size + i]; }
};

// Where number `at` of the joined map lies in the up-sampled one, -1 for a zero.
int64_t inside(const UpsampleConcatShape& s, int64_t at, int64_t joined, int64_t up) {
  const int64_t i = at - crop_start(joined, up);
  if (i >= 0 && i < up) return i;
  return s.border == Border::kReplicate ? std::clamp<int64_t>(i, 0, up - 1) : -1;
}

// From numbers of x to those of the joined map.
template <class A>
Table<A> forward_table(const UpsampleConcatShape& s, int64_t joined, int64_t size) {
  const bool linear = s.mode == Upsample::kBilinear || s.mode == Upsample::kBilinearAligned;
  Table<A> table = {joined, linear ? 2 : 1, {}, {}};
  table.place.resize(static_cast<size_t>(table.taps * joined));
  table.weight.resize(table.place.size());
  for (int64_t i = 0; i < joined; ++i) {
    const int64_t at = inside(s, i, joined, size * s.factor());
    const UpsampleTaps<A> taps = upsample_taps<A>(s.mode, std::max<int64_t>(at, 0), size);
    for (int64_t tap = 0; tap < table.taps; ++tap) {
      table.place[tap * joined + i] = at < 0 ? 0 : static_cast<int32_t>(taps.place[tap]);  // a map without numbers has no last one
      table.weight[tap * joined + i] = at < 0 ? A(0) : taps.weight[tap];
    }
  }
  return table;
}

template <class A>
Table<A> transposed(const Table<A>& table, int64_t size) {
  std::vector<std::vector<std::pair<int32_t, A>>> users(static_cast<size_t>(size));
  int64_t most = 1;
  for (int64_t i = 0; i < table.size; ++i)
    for (int64_t tap = 0; tap < table.taps; ++tap) {
      if (table.weight_of(tap, i) == 0) continue;
      auto& of = users[table.at(tap, i)];
      of.emplace_back(static_cast<int32_t>(i), table.weight_of(tap, i));
      most = std::max<int64_t>(most, static_cast<int64_t>(of.size()));
    }
  Table<A> result = {size, most, {}, {}};
  result.place.resize(static_cast<size_t>(most * size));
  result.weight.resize(result.place.size());
  for (int64_t i = 0; i < size; ++i)
    for (int64_t tap = 0; tap < most; ++tap) {
      const auto& of = users[i];
      const bool there = tap < static_cast<int64_t>(of.size());
      result.place[tap * size + i] = there ? of[tap].first : of.empty() ? 0 : of[0].first;
      result.weight[tap * size + i] = there ? of[tap].second : A(0);
    }
  return result;
}

// ---- rows

// sum (count) = or += weight * row
template <class T, class A>
UF_INLINE void add_row(const T* __restrict row, A weight, bool first, int64_t count, A* __restrict sum) {
  if (first) {
    UF_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) sum[i] = weight * widen(row[i]);
  } else {
    UF_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) sum[i] += weight * widen(row[i]);
  }
}

// The places of a row of one channel.
template <class T, class A>
UF_INLINE void gather_row(const A* __restrict from, const Table<A>& table, T* __restrict to) {
  const int64_t size = table.size;
  const int32_t* __restrict place = table.place.data();
  const A* __restrict weight = table.weight.data();
  if (table.taps == 1) {
    UF_INDEPENDENT
    for (int64_t i = 0; i < size; ++i) to[i] = narrow<T>(weight[i] * from[place[i]]);
  } else if (table.taps == 2) {
    UF_INDEPENDENT
    for (int64_t i = 0; i < size; ++i)
      to[i] = narrow<T>(weight[i] * from[place[i]] + weight[size + i] * from[place[size + i]]);
  } else {
    for (int64_t i = 0; i < size; ++i) {
      A sum = 0;
      for (int64_t tap = 0; tap < table.taps; ++tap) sum += weight[tap * size + i] * from[place[tap * size + i]];
      to[i] = narrow<T>(sum);
    }
  }
}

// The same for pixels of `channels` numbers, `pitch` from pixel to pixel in the result; `sum` (channels) is scratch.
template <class T, class A>
UF_INLINE void gather_pixels(const A* __restrict from, const Table<A>& table, int64_t channels, int64_t pitch, A* __restrict sum,
                             T* __restrict to) {
  for (int64_t i = 0; i < table.size; ++i) {
    T* __restrict pixel = to + i * pitch;
    const A* __restrict first = from + table.at(0, i) * channels;
    const A first_weight = table.weight_of(0, i);
    if (table.taps == 2) {
      const A* __restrict second = from + table.at(1, i) * channels;
      const A second_weight = table.weight_of(1, i);
      UF_INDEPENDENT
      for (int64_t c = 0; c < channels; ++c) pixel[c] = narrow<T>(first_weight * first[c] + second_weight * second[c]);
      continue;
    }
    UF_INDEPENDENT
    for (int64_t c = 0; c < channels; ++c) sum[c] = first_weight * first[c];
    for (int64_t tap = 1; tap < table.taps; ++tap) {
      if (table.weight_of(tap, i) == 0) continue;
      add_row<A, A>(from + table.at(tap, i) * channels, table.weight_of(tap, i), false, channels, sum);
    }
    UF_INDEPENDENT
    for (int64_t c = 0; c < channels; ++c) pixel[c] = narrow<T>(sum[c]);
  }
}

// A row of the result: `row(y)` finds row y of the other map.
template <class T, class A>
struct Resample {
  const Table<A>& rows;
  const Table<A>& columns;
  int64_t row_pitch, width, channels;  // of the other map; channels = 1: of one channel
  int64_t pixel_pitch;                 // of its pixels
  int64_t out_pitch;
  int64_t begin, end;  // the columns that come from somewhere; the others are zero, whatever a NaN times a weight of 0 is

  UF_INLINE void run(const T* from, int64_t y, A* scratch, T* to) const {
    const int64_t count = width * channels;
    A *sum = scratch, *pixel = scratch + count;
    bool first = true;
    for (int64_t tap = 0; tap < rows.taps; ++tap) {
      const A weight = rows.weight_of(tap, y);
      if (weight == 0) continue;
      const T* row = from + rows.at(tap, y) * row_pitch;
      if (pixel_pitch == channels) {
        add_row(row, weight, first, count, sum);
      } else {
        for (int64_t x = 0; x < width; ++x) add_row(row + x * pixel_pitch, weight, first, channels, sum + x * channels);
      }
      first = false;
    }
    if (first) std::fill_n(sum, count, A(0));
    if (channels == 1 && out_pitch == 1)
      gather_row(sum, columns, to);
    else
      gather_pixels(sum, columns, channels, out_pitch, pixel, to);
    for (int64_t x = 0; x < begin; ++x) std::fill_n(to + x * out_pitch, channels, T{});
    for (int64_t x = end; x < columns.size; ++x) std::fill_n(to + x * out_pitch, channels, T{});
  }
};

#define UF_RESAMPLE(T, A)                                                                                       \
  UF_MULTIVERSION void run(const Resample<T, A>& call, const T* from, int64_t y, A* scratch, T* to) {           \
    call.run(from, y, scratch, to);                                                                             \
  }
UF_FLOATING(UF_RESAMPLE)
#undef UF_RESAMPLE

// ---- what is copied: numbers of one size, whatever they mean

template <class U>
UF_INLINE void twice(const U* __restrict from, int64_t count, U* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[2 * i] = to[2 * i + 1] = from[i];
}

#define UF_TWICE(U) \
  UF_MULTIVERSION void run_twice(const U* from, int64_t count, U* to) { twice(from, count, to); }
UF_TWICE(uint8_t)
UF_TWICE(uint16_t)
UF_TWICE(uint32_t)
UF_TWICE(uint64_t)
#undef UF_TWICE

// A row of one channel: the numbers inside, once or twice, and the border.
template <class U>
void copy_row(const UpsampleConcatShape& s, const U* from, U* to) {
  const int64_t up = s.width * s.factor(), start = s.border == Border::kCrop ? 0 : crop_start(s.out_width, up);
  if (s.factor() == 2)
    run_twice(from, s.width, to + start);
  else
    std::memcpy(to + start, from, static_cast<size_t>(up) * sizeof(U));
  const bool zeros = s.border == Border::kZeros;
  std::fill_n(to, start, zeros ? U(0) : to[start]);
  std::fill_n(to + start + up, s.out_width - start - up, zeros ? U(0) : to[start + up - 1]);
}

// `count` pixels, or rows, of `bytes`, each `factor` times.
UF_MULTIVERSION void run_pixels(const char* from, int64_t pitch, int64_t bytes, int64_t count, int64_t factor, char* to,
                                int64_t out_pitch, bool streamed) {
  for (int64_t repeat = 0; repeat < factor; ++repeat)
    copy_rows(to + repeat * out_pitch, factor * out_pitch, from, pitch, bytes, count, streamed);
}

// A row of pixels of all channels: those inside, and the border.
template <class U>
void copy_pixels(const UpsampleConcatShape& s, const U* from, int64_t pixel_pitch, int64_t out_pitch, U* to, bool streamed) {
  const auto size = static_cast<int64_t>(sizeof(U)), bytes = s.channels * size;
  const int64_t up = s.width * s.factor(), start = s.border == Border::kCrop ? 0 : crop_start(s.out_width, up);
  run_pixels(reinterpret_cast<const char*>(from), pixel_pitch * size, bytes, s.width, s.factor(),
             reinterpret_cast<char*>(to + start * out_pitch), out_pitch * size, streamed);
  const bool zeros = s.border == Border::kZeros;
  for (int64_t i = 0; i < s.out_width; ++i) {
    if (i == start) i = std::min(start + up, s.out_width);
    if (i == s.out_width) break;
    if (zeros)
      std::memset(to + i * out_pitch, 0, static_cast<size_t>(bytes));
    else
      std::memcpy(to + i * out_pitch, to + (i < start ? start : start + up - 1) * out_pitch, static_cast<size_t>(bytes));
  }
}

// f(streamed) makes for each thread what is called with (from, y, to): it writes the up-sampled row y, of one channel or of pixels, for
// every row of the joined map, past the caches where `streamed` says so; the skip beside it.
template <class U, class F>
void join(const UpsampleConcatShape& s, const U* skip, const U* x, U* out, const Parallel& parallel, F f) {
  const int64_t c1 = s.skip_channels, c2 = s.channels, all = c1 + c2, height = s.out_height, width = s.out_width;
  const int64_t top = crop_start(s.skip_height, height), left = crop_start(s.skip_width, width);
  const int64_t skip_at = s.up_first ? c2 : 0, up_at = s.up_first ? 0 : c1;
  const auto size = static_cast<int64_t>(sizeof(U));
  const bool streamed = past_caches(s.batch * all * height * width * size);
  if (s.channels_last) {
    parallel(s.batch * height, kGrainElements / (width * all) + 1, [&](int64_t begin, int64_t end) {
      auto row_of = f(streamed);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t n = unit / height, y = unit % height;
        U* row = out + unit * width * all;
        if (c1 > 0)
          run_pixels(
              reinterpret_cast<const char*>(skip + n * s.skip_stride[0] + (y + top) * s.skip_stride[2] + left * s.skip_stride[3]),
              s.skip_stride[3] * size, c1 * size, width, 1, reinterpret_cast<char*>(row + skip_at), all * size,
              streamed);
        if (c2 > 0) row_of(x + n * s.x_stride[0], y, row + up_at);
      }
      if (streamed) end_stream();
    });
    return;
  }
  // the rest of a plane that is only copied, of the skip or of a map as large as the joined one, goes at once
  const bool as_it_is = s.factor() == 1 && s.height == height && s.width == width;
  parallel(s.batch * all * height, kGrainElements / width + 1, [&](int64_t begin, int64_t end) {
    auto row_of = f(streamed);
    for (int64_t unit = begin, rows; unit < end; unit += rows) {
      const int64_t n = unit / height / all, c = unit / height % all, y = unit % height;
      const bool is_skip = c >= skip_at && c < skip_at + c1;
      U* row = out + unit * width;
      const U* plane = is_skip ? skip + n * s.skip_stride[0] + (c - skip_at) * s.skip_stride[1] + top * s.skip_stride[2] + left
                               : x + n * s.x_stride[0] + (c - up_at) * s.x_stride[1];
      if (is_skip || as_it_is) {
        const int64_t pitch = is_skip ? s.skip_stride[2] : s.x_stride[2];
        rows = std::min(end - unit, height - y);
        run_pixels(reinterpret_cast<const char*>(plane + y * pitch), pitch * size, width * size, rows, 1,
                   reinterpret_cast<char*>(row), width * size, streamed);
      } else {
        rows = 1;
        row_of(plane, y, row);
      }
    }
    if (streamed) end_stream();
  });
}

template <class U>
void join_copies(const UpsampleConcatShape& s, const void* skip, const void* x, void* out, const Parallel& parallel) {
  const int64_t up = s.height * s.factor(), pitch = s.skip_channels + s.channels;
  join(s, static_cast<const U*>(skip), static_cast<const U*>(x), static_cast<U*>(out), parallel, [&](bool streamed) {
    return [&, streamed](const U* from, int64_t y, U* row) {
      const int64_t at = inside(s, y, s.out_height, up);
      const U* source = from + std::max<int64_t>(at, 0) / s.factor() * s.x_stride[2];
      if (s.channels_last) {
        if (at >= 0) return copy_pixels(s, source, s.x_stride[3], pitch, row, streamed);
        for (int64_t i = 0; i < s.out_width; ++i) std::memset(row + i * pitch, 0, static_cast<size_t>(s.channels) * sizeof(U));
      } else if (at >= 0) {
        copy_row(s, source, row);
      } else {
        std::memset(row, 0, static_cast<size_t>(s.out_width) * sizeof(U));
      }
    };
  });
}

template <class T, class A>
void join_interpolated(const UpsampleConcatShape& s, const void* skip, const void* x, void* out, const Parallel& parallel) {
  const Table<A> rows = forward_table<A>(s, s.out_height, s.height), columns = forward_table<A>(s, s.out_width, s.width);
  const int64_t channels = s.channels_last ? s.channels : 1;
  const int64_t up = s.width * s.factor(), start = s.border == Border::kZeros ? crop_start(s.out_width, up) : 0;
  const Resample<T, A> call = {rows, columns, s.x_stride[2], s.width, channels, s.channels_last ? s.x_stride[3] : 1,
                               s.channels_last ? s.skip_channels + s.channels : 1,
                               start, s.border == Border::kZeros ? start + up : s.out_width};
  join(s, static_cast<const T*>(skip), static_cast<const T*>(x), static_cast<T*>(out), parallel, [&](bool) {
    return [&, scratch = std::vector<A>(static_cast<size_t>((s.width + 1) * channels))](const T* from, int64_t y, T* row) mutable {
      run(call, from, y, scratch.data(), row);
    };
  });
}

}  // namespace

void upsample_concat(const UpsampleConcatShape& shape, const void* skip, const void* x, void* out, const Parallel& parallel) {
  if (shape.batch * (shape.skip_channels + shape.channels) * shape.out_height * shape.out_width == 0) return;
  if (shape.mode == Upsample::kNone || shape.mode == Upsample::kNearest) {
    dispatch_bytes(shape.element, [&]<class U>(U) { join_copies<U>(shape, skip, x, out, parallel); });
  } else {
    dispatch_floating(shape.type, [&]<class T>(T) { join_interpolated<T, Wide<T>>(shape, skip, x, out, parallel); });
  }
}

void upsample_concat_backward(const UpsampleConcatShape& s, const void* grad, void* grad_x, const Parallel& parallel) {
  if (s.batch * s.channels * s.height * s.width == 0) return;
  dispatch_floating(s.type, [&]<class T>(T) {
    using A = Wide<T>;
    const Table<A> rows = transposed(forward_table<A>(s, s.out_height, s.height), s.height);
    const Table<A> columns = transposed(forward_table<A>(s, s.out_width, s.width), s.width);
    const int64_t channels = s.channels_last ? s.channels : 1, planes = s.channels_last ? 1 : s.channels;
    const Resample<T, A> call = {rows, columns, s.x_stride[2], s.out_width, channels, s.channels_last ? s.x_stride[3] : 1, channels,
                                 0, s.width};
    const T* from = static_cast<const T*>(grad);
    T* to = static_cast<T*>(grad_x);
    parallel(s.batch * planes * s.height, kGrainElements / (4 * s.width * channels) + 1, [&](int64_t begin, int64_t end) {
      std::vector<A> scratch(static_cast<size_t>((s.out_width + 1) * channels));
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t y = unit % s.height, c = unit / s.height % planes, n = unit / s.height / planes;
        run(call, from + n * s.x_stride[0] + c * s.x_stride[1], y, scratch.data(), to + unit * s.width * channels);
      }
    });
  });
}

}  // namespace uf
