// The scan goes down all lines of a strip abreast, keeping per line the last label met and the last other one, and then
// up again, merging what both directions know. Every step is a select on whole rows, so it runs in vector registers.
#include "cpu/label_scan.h"

#include <memory>
#include <type_traits>
#include <vector>

#include "common/macros.h"
#include "common/two_nearest.h"

namespace uf {
namespace {

// Copies to int32; whether all values are labels, that is 0 to 2^31 - 1.
template <class T>
UF_INLINE bool widen(const void* from, int64_t offset, int64_t count, int32_t* __restrict to) {
  using Bits = std::make_unsigned_t<T>;
  const T* source = static_cast<const T*>(from) + offset;
  Bits seen = 0;
  for (int64_t i = 0; i < count; ++i) {
    to[i] = static_cast<int32_t>(source[i]);
    seen |= static_cast<Bits>(source[i]);
  }
  if (std::is_unsigned_v<T>) return true;
  return static_cast<T>(seen) >= 0 && static_cast<uint64_t>(seen) <= std::numeric_limits<int32_t>::max();
}

UF_INLINE bool load_labels(const void* from, DType type, int64_t offset, int64_t count, int32_t* to) {
  switch (type) {  // not dispatch(), which would be compiled for one instruction set
    case DType::kUInt8: return widen<uint8_t>(from, offset, count, to);
    case DType::kInt8: return widen<int8_t>(from, offset, count, to);
    case DType::kUInt16: return widen<uint16_t>(from, offset, count, to);
    case DType::kInt16: return widen<int16_t>(from, offset, count, to);
    case DType::kInt32: return widen<int32_t>(from, offset, count, to);
    default: return widen<int64_t>(from, offset, count, to);
  }
}

template <class T>
BadLabel first_bad(const void* from, int64_t offset, int64_t count) {
  const T* source = static_cast<const T*>(from) + offset;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = source[i];
    if (value < 0 || value > std::numeric_limits<int32_t>::max()) return {true, value};
  }
  return {};
}

BadLabel first_bad_label(const void* from, DType type, int64_t offset, int64_t count) {
  return dispatch_integral(type, [&]<class T>(T) { return first_bad<T>(from, offset, count); });
}

struct Strip {
  const void* labels;
  DType type;
  LabelPlanes planes;
  int64_t offset;  // of the first pixel of the strip, in labels and in planes
  int64_t length;  // of the lines
  int64_t stride;  // from one position of a line to the next
  int64_t width;   // lines
};

enum State { kRow, kLabel1, kPosition1, kLabel2, kPosition2, kStates };

template <bool kLabels>
UF_INLINE void start_state(int64_t width, int32_t position, int32_t* state) {
  for (int64_t i = 0; i < width; ++i) {
    state[kLabel1 * width + i] = 0;
    state[kPosition1 * width + i] = position;
    if (kLabels) state[kLabel2 * width + i] = 0;
    state[kPosition2 * width + i] = position;
  }
}

// The planes from one line on; images have no second label.
template <bool kLabels>
UF_INLINE LabelPlanes line_at(const LabelPlanes& planes, int64_t offset) {
  return {planes.label1 + offset, planes.steps1 + offset, planes.steps2 + offset, kLabels ? planes.label2 + offset : nullptr};
}

template <bool kLabels>
UF_INLINE BadLabel scan_strip(const Strip& s, int32_t* state) {
  const int64_t width = s.width;
  const int32_t* __restrict row = state + kRow * width;
  int32_t* __restrict l1 = state + kLabel1 * width;
  int32_t* __restrict p1 = state + kPosition1 * width;
  int32_t* __restrict l2 = state + kLabel2 * width;
  int32_t* __restrict p2 = state + kPosition2 * width;

  start_state<kLabels>(width, -kNoSteps, state);
  for (int64_t y = 0; y < s.length; ++y) {
    const int64_t offset = s.offset + y * s.stride;
    if (!load_labels(s.labels, s.type, offset - s.offset, width, state + kRow * width)) {
      return first_bad_label(s.labels, s.type, offset - s.offset, width);
    }
    const LabelPlanes line = line_at<kLabels>(s.planes, offset);
    const int32_t here = static_cast<int32_t>(y);
#pragma GCC ivdep
    for (int64_t i = 0; i < width; ++i) {
      LabelScan scan{l1[i], p1[i], kLabels ? l2[i] : 0, p2[i]};
      scan.meet(row[i], here);
      l1[i] = line.label1[i] = scan.label1;
      p1[i] = scan.position1;
      p2[i] = scan.position2;
      line.steps1[i] = here - scan.position1;
      line.steps2[i] = here - scan.position2;
      if (kLabels) l2[i] = line.label2[i] = scan.label2;
    }
  }

  start_state<kLabels>(width, kNoSteps + static_cast<int32_t>(s.length), state);
  for (int64_t y = s.length - 1; y >= 0; --y) {
    const int64_t offset = s.offset + y * s.stride;
    const LabelPlanes line = line_at<kLabels>(s.planes, offset);
    const int32_t here = static_cast<int32_t>(y);
#pragma GCC ivdep
    for (int64_t i = 0; i < width; ++i) {
      const TwoLabels above{line.label1[i], line.steps1[i], kLabels ? line.label2[i] : 0, line.steps2[i]};
      LabelScan scan{l1[i], p1[i], kLabels ? l2[i] : 0, p2[i]};
      const int32_t own = above.label1 & -int32_t{above.steps1 == 0};  // the label of this very pixel
      scan.meet(own, here);
      l1[i] = scan.label1;
      p1[i] = scan.position1;
      p2[i] = scan.position2;
      if (kLabels) l2[i] = scan.label2;
      const TwoLabels below{scan.label1, scan.position1 - here, scan.label2, scan.position2 - here};
      const TwoLabels both = merge(above, below);
      line.label1[i] = both.label1;
      line.steps1[i] = both.steps1;
      line.steps2[i] = both.steps2;
      if (kLabels) line.label2[i] = both.label2;
    }
  }
  return {};
}

UF_MULTIVERSION BadLabel scan_strip_of_image(const Strip& s, int32_t* state) { return scan_strip<false>(s, state); }
UF_MULTIVERSION BadLabel scan_strip_of_volume(const Strip& s, int32_t* state) { return scan_strip<true>(s, state); }

}  // namespace

BadLabel scan_labels(const DistanceGrid& grid, int64_t images, const void* labels, DType type,
                     const LabelPlanes& planes, const Parallel& parallel) {
  const bool volume = planes.label2 != nullptr;
  const int64_t lanes = grid.lanes(), size = element_size(type);
  const int64_t width = strip_width(grid, (volume ? 4 : 3) * static_cast<int64_t>(sizeof(int32_t)));
  const int64_t strips = (lanes + width - 1) / width;
  const Pieces pieces(images * strips, parallel.threads());
  const auto states = std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(pieces.count * kStates * width));
  std::vector<BadLabel> bad(static_cast<size_t>(pieces.count));
  pieces.run(parallel, [&](int64_t piece, int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t lane = unit % strips * width;
      Strip strip{};
      strip.offset = unit / strips * grid.pixels() + lane;
      strip.labels = static_cast<const char*>(labels) + strip.offset * size;
      strip.type = type;
      strip.planes = planes;
      strip.length = grid.scan;
      strip.stride = lanes;
      strip.width = std::min(width, lanes - lane);
      int32_t* state = states.get() + piece * kStates * width;
      const BadLabel found = volume ? scan_strip_of_volume(strip, state) : scan_strip_of_image(strip, state);
      if (found.found) bad[static_cast<size_t>(piece)] = found;
    }
  });
  for (const BadLabel& b : bad) {
    if (b.found) return b;
  }
  return {};
}

}  // namespace uf
