// One pass over the rows of the frame: coordinates of a block of 64 pixels, its taps (shared by all images with the same
// interpolation), then one read per image and channel. Nothing of the size of the image is stored but the outputs.
#include "cpu/elastic_warp.h"


#include "cpu/elastic_field.h"
#include "cpu/elastic_sample.h"
#include "cpu/elastic_taps.h"

namespace uf {
namespace warp {
namespace {

constexpr int kKinds = 3;
constexpr int64_t kGrainPixels = 1 << 13;  // less work than this is not worth waking a second thread for

// Taps of one block, made on first use for each interpolation.
template <class A>
struct BlockTaps {
  AxisTaps<A> y[kKinds], x[kKinds];
  bool made[kKinds];

  int ask(Interpolation kind, const WarpFrame& frame, const Coordinates<A>& at) {
    const int i = static_cast<int>(kind);
    if (!made[i]) {
      make_taps(kind, frame.padding, at.origin_y, at.y, frame.height, y[i]);
      make_taps(kind, frame.padding, at.origin_x, at.x, frame.width, x[i]);
      made[i] = true;
    }
    return i;
  }
};

template <class A>
struct Scratch {
  explicit Scratch(int64_t row_size) : row(static_cast<size_t>(row_size)) {}
  std::vector<A> row;
  Coordinates<A> at;
  BlockTaps<A> taps;
};

// Where the crop of an output lies in the frame.
struct Window {
  Range rows, columns;

  Window(const WarpFrame& frame, int64_t out_height, int64_t out_width)
      : rows(Range::centred(frame.height, out_height)), columns(Range::centred(frame.width, out_width)) {}

  // The part of a block that lies in the window, as lanes.
  Range lanes(int64_t block) const {
    return {std::max<int64_t>(columns.begin - block * kBlock, 0),
            std::min<int64_t>(columns.end - block * kBlock, kBlock)};
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
                       plain_sampler<A>(image.interpolation, image.type, image.element_size, extent), extent,
                       make_fill(image.type, image.fill)});
  }
  return targets;
}

// All channels of one image for the lanes of a block.
template <class A>
void sample_block(const WarpFrame& frame, const Target<A>& target, int64_t n, int64_t y, int64_t block, Range lanes, int kind,
                  Scratch<A>& scratch) {
  const WarpImage& image = *target.image;
  const int64_t size = image.element_size, height = image.out_height, width = image.out_width;
  const char* input = static_cast<const char*>(image.input) + n * image.stride[0] * size;
  const int64_t first = (y - target.window.rows.begin) * width + block * kBlock + lanes.begin - target.window.columns.begin;
  char* output = static_cast<char*>(image.output) + (n * image.channels * height * width + first) * size;
  SampleArgs<A> args{input,
                     image.stride[2],
                     image.stride[3],
                     target.extent,
                     static_cast<int32_t>(frame.width),
                     &scratch.taps.y[kind],
                     &scratch.taps.x[kind],
                     target.fill,
                     target.plain,
                     output,
                     static_cast<int>(lanes.begin),
                     static_cast<int>(lanes.end - lanes.begin)};
  for (int64_t c = 0; c < image.channels; ++c) {
    args.plane = input + c * image.stride[1] * size;
    args.out = output + c * height * width * size;
    target.sampler(args);
  }
}

template <class A>
void forward(const WarpFrame& frame, const WarpImage* images, int count, const Parallel& parallel) {
  const std::vector<Target<A>> targets = make_targets<A>(frame, images, count);
  if (targets.empty()) return;
  Range rows = targets[0].window.rows, columns = targets[0].window.columns;
  for (const Target<A>& target : targets) {
    rows = rows.join(target.window.rows);
    columns = columns.join(target.window.columns);
  }
  const ElasticField<A> field(frame, rows, columns);
  const int64_t height = rows.end - rows.begin, grain = kGrainPixels / (columns.end - columns.begin) + 1;
  parallel(frame.batch * height, grain, [&](int64_t begin, int64_t end) {
    Scratch<A> scratch(field.row_size());
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / height, y = rows.begin + unit % height;
      field.row(n, y, scratch.row.data());
      for (int64_t block = field.blocks().begin; block < field.blocks().end; ++block) {
        bool located = false;
        for (const Target<A>& target : targets) {
          const Range lanes = target.window.lanes(block);
          if (!target.window.rows.contains(y) || lanes.begin >= lanes.end) continue;
          if (!located) {
            field.coordinates(n, y, block, scratch.row.data(), scratch.at);
            std::fill_n(scratch.taps.made, kKinds, false);
            located = true;
          }
          const int kind = scratch.taps.ask(target.image->interpolation, frame, scratch.at);
          sample_block(frame, target, n, y, block, lanes, kind, scratch);
        }
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
    Scratch<A> scratch(field.row_size());
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
        field.row(n, y, scratch.row.data());
        for (int64_t block = field.blocks().begin; block < field.blocks().end; ++block) {
          bool located = false;
          for (int i = 0; i < count; ++i) {
            const WarpGradient& g = gradients[i];
            const Window& window = windows[static_cast<size_t>(i)];
            const Range lanes = window.lanes(block);
            if (is_empty(g) || !window.rows.contains(y) || lanes.begin >= lanes.end) continue;
            if (!located) {
              field.coordinates(n, y, block, scratch.row.data(), scratch.at);
              std::fill_n(scratch.taps.made, kKinds, false);
              located = true;
            }
            const int kind = scratch.taps.ask(g.interpolation, frame, scratch.at), taps = tap_count(g.interpolation);
            scratch.taps.y[kind].expand(taps);
            scratch.taps.x[kind].expand(taps);
            if (!band.touches(scratch.taps.y[kind], taps)) continue;
            const int64_t first =
                (y - window.rows.begin) * g.out_width + block * kBlock + lanes.begin - window.columns.begin;
            for (int64_t c = 0; c < g.channels; ++c) {
              const int64_t image = n * g.channels + c;
              scatter_block(band, scratch.taps.y[kind], scratch.taps.x[kind], taps, lanes,
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
