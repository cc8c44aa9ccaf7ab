// One pass over the rows of the frame: coordinates of a block of 64 pixels, its taps (shared by all images with the same
// interpolation), then one read per image and channel. Nothing of the size of the image is stored but the outputs.
#include "cpu/elastic_warp.h"

#include "cpu/elastic_strip.h"
#include "cpu/elastic_field.h"
#include "cpu/elastic_sample.h"
#include "cpu/elastic_taps.h"

namespace uf {
namespace warp {
namespace {

constexpr int kKinds = 3;
constexpr int64_t kGrainPixels = 1 << 13;  // less work than this is not worth waking a second thread for

// One block of frame pixels: what the images that are read there share, made when one of them asks for it.
template <class A>
struct Block {
  BlockRow<A> row;
  Coordinates<A> at;
  AxisTaps<A> y[kKinds], x[kKinds];
  bool located, made[kKinds];

  void start(const BlockRow<A>& of_row) {
    row = of_row;
    located = false;
    std::fill_n(made, kKinds, false);
  }

  // The place of the taps in y and x.
  int ask(Interpolation kind, const WarpFrame& frame) {
    const int i = static_cast<int>(kind);
    if (!located) block_coordinates(row, at);
    located = true;
    if (!made[i]) {
      make_taps(kind, frame.padding, at.origin_y, at.y, frame.height, y[i]);
      make_taps(kind, frame.padding, at.origin_x, at.x, frame.width, x[i]);
      made[i] = true;
    }
    return i;
  }
};

// Where the crop of an output lies in the frame.
struct Window {
  Range rows, columns;

  Window(const WarpFrame& frame, int64_t out_height, int64_t out_width)
      : rows(Range::centred(frame.height, out_height)), columns(Range::centred(frame.width, out_width)) {}

  // Of the pixels (y, first + begin) to (y, first + end), those that lie in the window.
  Range part(int64_t y, int64_t first, Range of) const {
    if (!rows.contains(y)) return {0, 0};
    return {std::max(columns.begin - first, of.begin), std::min(columns.end - first, of.end)};
  }
};

template <class Image>
bool is_empty(const Image& image) {
  return image.channels == 0 || image.out_height == 0 || image.out_width == 0;
}

template <class A>
struct Target {
  const WarpImage* image;
  Window window;
  Sampler<A> sampler, plain;
  StripSampler strip_sampler;  // may be null
  int64_t extent;
  Fill fill;
};

template <class A>
std::vector<Target<A>> make_targets(const WarpFrame& frame, const WarpImage* images, int count) {
  std::vector<Target<A>> targets;
  for (int i = 0; i < count; ++i) {
    const WarpImage& image = images[i];
    if (is_empty(image)) continue;
    const int64_t extent = (frame.height - 1) * image.stride[2] + (frame.width - 1) * image.stride[3];
    targets.push_back({&image, Window(frame, image.out_height, image.out_width),
                       choose_sampler<A>(image.interpolation, image.type, image.element_size, extent),
                       plain_sampler<A>(image.interpolation, image.type, image.element_size, extent),
                       avx512_sampler(frame, image, extent), extent, make_fill(image.type, image.fill)});
  }
  return targets;
}

// Where the channels of one image come from and go to.
struct Planes {
  const char* input;
  char* output;
  int64_t in_channel, out_channel;  // bytes from one channel to the next

  // From frame pixel (y, x) of sample n on.
  template <class A>
  Planes(const Target<A>& target, int64_t n, int64_t y, int64_t x) {
    const WarpImage& image = *target.image;
    const int64_t size = image.element_size, pixels = image.out_height * image.out_width;
    const int64_t first = (y - target.window.rows.begin) * image.out_width + x - target.window.columns.begin;
    input = static_cast<const char*>(image.input) + n * image.stride[0] * size;
    output = static_cast<char*>(image.output) + (n * image.channels * pixels + first) * size;
    in_channel = image.stride[1] * size;
    out_channel = pixels * size;
  }
};

// Frame pixels (y, x) with `begin` <= x - first < `end`.
template <class A>
void sample_strip(const WarpFrame& frame, const Target<A>& target, int64_t n, int64_t y, int64_t first, Range part,
                  const Places& places) {
  const WarpImage& image = *target.image;
  const Planes planes(target, n, y, first + part.begin);
  target.strip_sampler({&places, frame.padding, static_cast<int32_t>(frame.height), static_cast<int32_t>(frame.width),
                        planes.input, image.stride[2], image.stride[3], target.extent, image.channels,
                        planes.in_channel, planes.out_channel, target.fill, planes.output,
                        static_cast<int>(part.begin), static_cast<int>(part.end)});
}

// The lanes of a block by way of its taps.
template <class A>
void sample_block(const WarpFrame& frame, const Target<A>& target, int64_t n, int64_t y, int64_t first, Range lanes,
                  Block<A>& block) {
  const WarpImage& image = *target.image;
  const Planes planes(target, n, y, first + lanes.begin);
  const int kind = block.ask(image.interpolation, frame);
  SampleArgs<A> args{planes.input,
                     image.stride[2],
                     image.stride[3],
                     target.extent,
                     static_cast<int32_t>(frame.width),
                     &block.y[kind],
                     &block.x[kind],
                     target.fill,
                     target.plain,
                     planes.output,
                     static_cast<int>(lanes.begin),
                     static_cast<int>(lanes.end - lanes.begin)};
  for (int64_t c = 0; c < image.channels; ++c) {
    args.plane = planes.input + c * planes.in_channel;
    args.out = planes.output + c * planes.out_channel;
    target.sampler(args);
  }
}

// The blocks `blocks`, at most a strip of them, of one row.
template <class A>
void warp_strip(const WarpFrame& frame, const std::vector<Target<A>>& targets, const ElasticField<A>& field, int64_t n,
                int64_t y, Range blocks, const A* row, Locator locate, Places& places, Block<A>& block) {
  const int64_t count = blocks.end - blocks.begin, first = blocks.begin * kBlock;
  uint32_t placed = 0;
  const auto is_placed = [&placed](int64_t b) { return (placed >> b & 1) != 0; };
  if constexpr (sizeof(A) == sizeof(float)) {
    if (locate) placed = locate(frame, field.strip_row(n, y, blocks, row), places);
    for (int64_t begin = 0, end = 0; begin < count; begin = end) {
      for (end = begin + 1; end < count && is_placed(end) == is_placed(begin);) ++end;
      if (!is_placed(begin)) continue;
      for (const Target<A>& target : targets) {
        const Range part = target.window.part(y, first, {begin * kBlock, end * kBlock});
        if (target.strip_sampler && part.begin < part.end) sample_strip(frame, target, n, y, first, part, places);
      }
    }
  }
  for (int64_t b = 0; b < count; ++b) {
    bool started = false;
    for (const Target<A>& target : targets) {
      if (is_placed(b) && target.strip_sampler) continue;
      const int64_t x = first + b * kBlock;
      const Range lanes = target.window.part(y, x, {0, kBlock});
      if (lanes.begin >= lanes.end) continue;
      if (!started) block.start(field.block_row(n, y, blocks.begin + b, row));
      started = true;
      sample_block(frame, target, n, y, x, lanes, block);
    }
  }
}

template <class A>
void forward(const WarpFrame& frame, const WarpImage* images, int count, const Parallel& parallel) {
  const std::vector<Target<A>> targets = make_targets<A>(frame, images, count);
  if (targets.empty()) return;
  Range rows = targets[0].window.rows, columns = targets[0].window.columns;
  bool use_places = false;
  for (const Target<A>& target : targets) {
    rows = rows.join(target.window.rows);
    columns = columns.join(target.window.columns);
    use_places = use_places || target.strip_sampler;
  }
  const Locator locate = use_places ? avx512_locator() : nullptr;
  const ElasticField<A> field(frame, rows, columns);
  const int64_t height = rows.end - rows.begin, grain = kGrainPixels / (columns.end - columns.begin) + 1;
  parallel(frame.batch * height, grain, [&](int64_t begin, int64_t end) {
    std::vector<A> row(static_cast<size_t>(field.row_size()));
    Places places;
    Block<A> block;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / height, y = rows.begin + unit % height;
      field.row(n, y, row.data());
      for (int64_t b = field.blocks().begin; b < field.blocks().end; b += kStripBlocks) {
        const Range strip{b, std::min(b + kStripBlocks, field.blocks().end)};
        warp_strip(frame, targets, field, n, y, strip, row.data(), locate, places, block);
      }
    }
  });
}

// Input rows begin <= y < end, which one thread alone adds to.
struct Band {
  Range rows;

  bool touches(const TapIndex& taps, int count) const {
    for (int t = 0; t < count; ++t) {
      for (int k = 0; k < kBlock; ++k) {
        if (rows.contains(taps.index[t][k])) return true;
      }
    }
    return false;
  }
};

template <class A>
void scatter_block(const Band& band, const AxisTaps<A>& ty, const AxisTaps<A>& tx, int taps, Range lanes,
                   const A* grad, A* plane, int64_t width) {
  for (int64_t k = lanes.begin; k < lanes.end; ++k) {
    for (int v = 0; v < taps; ++v) {
      const int64_t y = ty.index[v][k];
      if (!band.rows.contains(y) || (ty.outside && !ty.inside[v][k])) continue;
      const A g = grad[k - lanes.begin], part = taps == 1 ? g : g * ty.weight[v][k];
      for (int u = 0; u < taps; ++u) {
        if (tx.outside && !tx.inside[u][k]) continue;
        plane[y * width + tx.index[u][k]] += taps == 1 ? part : part * tx.weight[u][k];
      }
    }
  }
}

// The transpose of forward. A unit of work is a band of input rows of one sample: it goes over all output pixels, in their
// order, and adds those that land in the band. No two threads add to one pixel and the sums are the same for any number.
template <class A>
void backward(const WarpFrame& frame, const WarpGradient* gradients, int count, const Parallel& parallel) {
  const int64_t height = frame.height, width = frame.width;
  if (frame.batch == 0 || height == 0 || width == 0) return;
  Range rows{0, height}, columns{0, width};
  std::vector<Window> windows;
  for (int i = 0; i < count; ++i) {
    windows.emplace_back(frame, gradients[i].out_height, gradients[i].out_width);
    if (is_empty(gradients[i])) continue;
    rows = rows.join(windows.back().rows);
    columns = columns.join(windows.back().columns);
  }
  const ElasticField<A> field(frame, rows, columns);
  const int64_t wished = (parallel.threads() + frame.batch - 1) / frame.batch;
  const int64_t bands = std::max<int64_t>(std::min(wished, height), 1);
  parallel(frame.batch * bands, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> row(static_cast<size_t>(field.row_size()));
    Block<A> block;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / bands, part = unit % bands;
      const Band band{{height * part / bands, height * (part + 1) / bands}};
      for (int i = 0; i < count; ++i) {
        A* planes = static_cast<A*>(gradients[i].grad_input) + n * gradients[i].channels * height * width;
        for (int64_t c = 0; c < gradients[i].channels; ++c) {
          std::fill(planes + (c * height + band.rows.begin) * width, planes + (c * height + band.rows.end) * width, A(0));
        }
      }
      for (int64_t y = rows.begin; y < rows.end; ++y) {
        field.row(n, y, row.data());
        for (int64_t index = field.blocks().begin; index < field.blocks().end; ++index) {
          block.start(field.block_row(n, y, index, row.data()));
          for (int i = 0; i < count; ++i) {
            const WarpGradient& g = gradients[i];
            const Window& window = windows[static_cast<size_t>(i)];
            const Range lanes = window.part(y, index * kBlock, {0, kBlock});
            if (is_empty(g) || lanes.begin >= lanes.end) continue;
            const int kind = block.ask(g.interpolation, frame), taps = tap_count(g.interpolation);
            block.y[kind].expand(taps);
            block.x[kind].expand(taps);
            if (!band.touches(block.y[kind], taps)) continue;
            const int64_t first =
                (y - window.rows.begin) * g.out_width + index * kBlock + lanes.begin - window.columns.begin;
            for (int64_t c = 0; c < g.channels; ++c) {
              const int64_t image = n * g.channels + c;
              scatter_block(band, block.y[kind], block.x[kind], taps, lanes,
                            static_cast<const A*>(g.grad_output) + image * g.out_height * g.out_width + first,
                            static_cast<A*>(g.grad_input) + image * height * width, width);
            }
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace warp

void elastic_warp(const WarpFrame& frame, const WarpImage* images, int count, const Parallel& parallel) {
  if (frame.batch == 0) return;
  frame.wide ? warp::forward<double>(frame, images, count, parallel)
             : warp::forward<float>(frame, images, count, parallel);
}

void elastic_warp_backward(const WarpFrame& frame, const WarpGradient* gradients, int count, const Parallel& parallel) {
  frame.wide ? warp::backward<double>(frame, gradients, count, parallel)
             : warp::backward<float>(frame, gradients, count, parallel);
}

}  // namespace uf
