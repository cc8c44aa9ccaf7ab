// Every part of the work is a block of equally long rows (cpu/copy_rows.h), in both layouts:
//   planar         a block is one channel plane, a row is one image row
//   channels last  a block is one image row, a "row" is the channels of one pixel
// Each output byte is written once and each input byte inside the crop is read once, which is the limit of the op.
#include "common/crop_concat.h"

#include <algorithm>

#include "cpu/copy_rows.h"

namespace uf {
namespace {

constexpr int64_t kGrainBytes = 1 << 16;  // less work than this is not worth waking a second thread for

int64_t grain(int64_t bytes_per_unit) { return kGrainBytes / (bytes_per_unit > 0 ? bytes_per_unit : 1) + 1; }

struct Start {
  int64_t depth, height, width;
};

Start start_of(const CropConcatShape& s) {
  return {crop_start(s.skip_size[kDepth], s.up_size[kDepth]), crop_start(s.skip_size[kHeight], s.up_size[kHeight]),
          crop_start(s.skip_size[kWidth], s.up_size[kWidth])};
}

int64_t offset(const int64_t stride[kDims], int64_t n, int64_t c, int64_t z, int64_t y, int64_t x) {
  return n * stride[kBatch] + c * stride[kChannel] + z * stride[kDepth] + y * stride[kHeight] + x * stride[kWidth];
}

// The channels of the pixels of one row: where they are, from one pixel to the next, how many bytes.
struct Channels {
  const char* from;
  int64_t pitch, width;
};

Channels channels_at(const char* base, int64_t offset, int64_t pitch, int64_t width) {
  return {width > 0 ? base + offset : base, pitch, width};  // a tensor without channels has no memory to point into
}

// Whether pieces of these lengths, one behind the other from `to` on, are stored past the caches throughout.
bool streams(const char* to, int64_t a, int64_t b, int64_t c = 0) {
  return (static_cast<int64_t>(reinterpret_cast<uintptr_t>(to)) | a | b | c) % 16 == 0;
}

// Pixel by pixel, so that the result is written in one stream.
UF_MULTIVERSION void join_pixels(const Channels& a, const Channels& b, int64_t pixels, char* to, bool streamed) {
  const int64_t width = a.width + b.width;
  if (streamed) {
    for (int64_t x = 0; x < pixels; ++x) {
      stream_short(to + x * width, a.from + x * a.pitch, a.width);
      stream_short(to + x * width + a.width, b.from + x * b.pitch, b.width);
    }
    return;
  }
  const auto is_short = [](const Channels& c) { return c.width > 0 && c.width % 16 == 0 && c.width <= kShortRow; };
  if (is_short(a) && is_short(b)) {
    for (int64_t x = 0; x < pixels; ++x) {
      copy_short(to + x * width, a.from + x * a.pitch, a.width);
      copy_short(to + x * width + a.width, b.from + x * b.pitch, b.width);
    }
    return;
  }
  copy_rows(to, width, a.from, a.pitch, a.width, pixels);
  copy_rows(to + a.width, width, b.from, b.pitch, b.width, pixels);
}

}  // namespace

void crop_concat(const CropConcatShape& shape, const void* skip, const int64_t skip_stride[kDims], const void* up,
                 const int64_t up_stride[kDims], void* out, const Parallel& parallel) {
  const char* from_skip = static_cast<const char*>(skip);
  const char* from_up = static_cast<const char*>(up);
  char* to = static_cast<char*>(out);
  const Start start = start_of(shape);
  const int64_t e = shape.element, c1 = shape.skip_size[kChannel], c2 = shape.up_size[kChannel], channels = c1 + c2;
  const int64_t batch = shape.up_size[kBatch], depth = shape.up_size[kDepth];
  const int64_t height = shape.up_size[kHeight], width = shape.up_size[kWidth];
  const bool past = past_caches(batch * channels * depth * height * width * e);

  if (shape.channels_last) {
    const bool streamed = past && streams(to, c1 * e, c2 * e);
    parallel(batch * depth * height, grain(width * channels * e), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t y = unit % height, z = unit / height % depth, n = unit / height / depth;
        char* row = to + unit * width * channels * e;
        const int64_t s = offset(skip_stride, n, 0, z + start.depth, y + start.height, start.width);
        const int64_t u = offset(up_stride, n, 0, z, y, 0);
        join_pixels(channels_at(from_skip, s * e, skip_stride[kWidth] * e, c1 * e),
                    channels_at(from_up, u * e, up_stride[kWidth] * e, c2 * e), width, row, streamed);
      }
      if (streamed) end_stream();
    });
    return;
  }
  // Planes that adjoin are copied as one: the longer a copy, the sooner it streams past the cache.
  const auto adjoin = [&](const int64_t* stride) {
    return stride[kHeight] == width && (depth == 1 || stride[kDepth] == height * width) &&
           stride[kChannel] == depth * height * width;
  };
  const bool whole_skip = adjoin(skip_stride), whole_up = adjoin(up_stride);
  parallel(batch * channels * depth, grain(height * width * e), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin, planes; unit < end; unit += planes) {
      const int64_t z = unit % depth, c = unit / depth % channels, n = unit / depth / channels;
      const bool first = c < c1;
      const int64_t* stride = first ? skip_stride : up_stride;
      const int64_t source = first ? offset(stride, n, c, z + start.depth, start.height, start.width)
                                   : offset(stride, n, c - c1, z, 0, 0);
      const int64_t behind = (n * channels + (first ? c1 : channels)) * depth;  // the first plane of another tensor
      planes = (first ? whole_skip : whole_up) ? std::min(end, behind) - unit : 1;
      copy_rows(to + unit * height * width * e, width * e, (first ? from_skip : from_up) + source * e,
                stride[kHeight] * e, width * e, height * planes, past);
    }
    if (past) end_stream();
  });
}

void crop_concat_backward(const CropConcatShape& shape, const void* grad, const int64_t grad_stride[kDims],
                          void* grad_skip, const Parallel& parallel) {
  const char* from = static_cast<const char*>(grad);
  char* to = static_cast<char*>(grad_skip);
  const Start start = start_of(shape);
  const int64_t e = shape.element, channels = shape.skip_size[kChannel], batch = shape.skip_size[kBatch];
  const int64_t depth = shape.skip_size[kDepth], height = shape.skip_size[kHeight], width = shape.skip_size[kWidth];
  const int64_t crop_depth = shape.up_size[kDepth], crop_height = shape.up_size[kHeight];
  const int64_t crop_width = shape.up_size[kWidth];
  const int64_t planes = shape.channels_last ? 1 : channels;
  const int64_t pixel = shape.channels_last ? channels * e : e;  // bytes of one step along x in the result

  if (channels == 0) return;
  const int64_t pitch = grad_stride[kWidth] * e;
  const bool streamed = past_caches(batch * channels * depth * height * width * e) &&
                        streams(to, start.width * pixel, crop_width * pixel, width * pixel) &&
                        (pitch == pixel || pixel % 16 == 0);
  const auto clear = [&](char* target, int64_t bytes) {
    if (streamed)
      stream_zeros(target, bytes);
    else
      std::memset(target, 0, static_cast<size_t>(bytes));
  };

  // One unit is one row of the result: of one channel (planar) or of interleaved pixels (channels last).
  parallel(batch * planes * depth * height, grain(width * pixel), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t y = unit % height - start.height, z = unit / height % depth - start.depth;
      const int64_t c = unit / height / depth % planes, n = unit / height / depth / planes;
      char* row = to + unit * width * pixel;
      if (y < 0 || y >= crop_height || z < 0 || z >= crop_depth) {
        clear(row, width * pixel);
        continue;
      }
      const char* source = from + offset(grad_stride, n, c, z, y, 0) * e;
      clear(row, start.width * pixel);
      char* body = row + start.width * pixel;
      if (streamed && pitch == pixel)
        stream_short(body, source, crop_width * pixel);
      else if (streamed)
        for (int64_t x = 0; x < crop_width; ++x) stream_short(body + x * pixel, source + x * pitch, pixel);
      else
        copy_rows(body, pixel, source, pitch, pixel, crop_width);
      clear(body + crop_width * pixel, (width - start.width - crop_width) * pixel);
    }
    if (streamed) end_stream();
  });
}

}  // namespace uf
