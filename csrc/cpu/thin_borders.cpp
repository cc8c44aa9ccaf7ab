#include "cpu/thin_borders.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

namespace uf {
namespace {

struct Reached {
  int64_t pixel;
  int32_t label;  // of the neighbour that reached it
};

// A queue for each distance that occurs. There are few: roots of whole numbers, each met along whole borders.
class Levels {
 public:
  Levels(const int32_t* labels, const float* distance, int64_t pixels) {
    for (int64_t i = 0; i < pixels; ++i) {
      if (labels[i] == 0) ranks_.try_emplace(distance[i], 0);
    }
    std::vector<float> ordered;
    for (const auto& entry : ranks_) ordered.push_back(entry.first);
    std::sort(ordered.begin(), ordered.end());
    for (size_t k = 0; k < ordered.size(); ++k) ranks_[ordered[k]] = k;
    queues_.resize(ordered.size());
  }

  // What lies nearer than the flood has come is due at once.
  void push(float distance, Reached reached) {
    queues_[std::max(ranks_.find(distance)->second, lowest_)].entries.push_back(reached);
  }

  // The first of the lowest level; false when all are empty.
  bool pop(Reached& reached) {
    for (; lowest_ < queues_.size(); ++lowest_) {
      Queue& queue = queues_[lowest_];
      if (queue.taken < queue.entries.size()) {
        reached = queue.entries[queue.taken++];
        return true;
      }
      queue = {};
    }
    return false;
  }

 private:
  struct Queue {
    std::vector<Reached> entries;
    size_t taken = 0;
  };

  std::unordered_map<float, size_t> ranks_;
  std::vector<Queue> queues_;
  size_t lowest_ = 0;
};

class Flood {
 public:
  Flood(int64_t height, int64_t width, const int32_t* labels, const float* distance)
      : height_(height), width_(width), distance_(distance), levels_(labels, distance, height * width) {
    // a frame of lines, so that every pixel has four neighbours
    state_.assign((height + 2) * stride_, kLine);
    for (int64_t y = 0; y < height; ++y) std::copy_n(labels + y * width, width, &state_[at(y, 0)]);
  }

  void run() {
    for (int64_t y = 0; y < height_; ++y) {
      for (int64_t x = 0; x < width_; ++x) {
        if (state_[at(y, x)] > 0) spread(y * width_ + x, state_[at(y, x)]);
      }
    }
    for (Reached next; levels_.pop(next);) {
      int32_t& state = state_[at(next.pixel / width_, next.pixel % width_)];
      state = other_beside(&state, next.label) ? kLine : next.label;
      spread(next.pixel, next.label);  // lines too: what lies behind one belongs to a cell as well
    }
  }

  void write(int32_t* out) const {
    for (int64_t y = 0; y < height_; ++y) {
      for (int64_t x = 0; x < width_; ++x) out[y * width_ + x] = std::max(state_[at(y, x)], 0);
    }
  }

 private:
  static constexpr int32_t kLine = -1, kQueued = -2;

  int64_t at(int64_t y, int64_t x) const { return (y + 1) * stride_ + x + 1; }

  bool other_beside(const int32_t* state, int32_t label) const {
    const auto other = [&](int32_t beside) { return beside > 0 && beside != label; };
    return other(state[-stride_]) || other(state[-1]) || other(state[1]) || other(state[stride_]);
  }

  void spread(int64_t pixel, int32_t label) {
    const int64_t here = at(pixel / width_, pixel % width_);
    const int64_t steps[4] = {-stride_, -1, 1, stride_}, moves[4] = {-width_, -1, 1, width_};
    for (int k = 0; k < 4; ++k) {
      int32_t& beside = state_[here + steps[k]];
      if (beside == 0) {
        beside = kQueued;  // whoever reaches it later would also come later in the queues
        levels_.push(distance_[pixel + moves[k]], {pixel + moves[k], label});
      }
    }
  }

  const int64_t height_, width_, stride_ = width_ + 2;
  const float* distance_;
  std::vector<int32_t> state_;  // label, 0 = not yet reached, kLine or kQueued
  Levels levels_;
};

}  // namespace

void thin_borders(int64_t height, int64_t width, const int32_t* labels, const float* distance, int32_t* out) {
  Flood flood(height, width, labels, distance);
  flood.run();
  flood.write(out);
}

}  // namespace uf
