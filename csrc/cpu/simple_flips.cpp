#include "cpu/simple_flips.h"

#include <algorithm>
#include <array>
#include <functional>
#include <queue>
#include <utility>
#include <vector>

namespace uf {
namespace {

// For the bits of the ring of neighbours, counted around the pixel from an edge neighbour on, whether the pixel is
// simple: whether Yokoi's crossing number of 4-connectivity, the sum over the edge neighbours k of
// x_k - x_k x_(k+1) x_(k+2), is 1.
constexpr std::array<bool, 256> simple_table() {
  std::array<bool, 256> table{};
  for (unsigned bits = 0; bits < 256; ++bits) {
    unsigned crossings = 0;
    for (unsigned k = 0; k < 8; k += 2) {
      const unsigned corner = bits >> (k + 1), next = bits >> (k + 2) % 8;
      crossings += bits >> k & ~(corner & next) & 1;
    }
    table[bits] = crossings == 1;
  }
  return table;
}

constexpr std::array<bool, 256> kSimple = simple_table();

// A mismatch that was not simple at its last turn stays so until a neighbour flips. So after the first sweep only those
// beside a flip are visited again: in the same sweep where their turn is still to come, else in the next one.
class Warp {
 public:
  Warp(int64_t height, int64_t width, const bool* wanted, const double* distance, const bool* mask)
      : height_(height), width_(width) {
    // a dark frame, so that every pixel has eight neighbours
    mask_.assign((height + 2) * stride_, 0);
    turn_.assign(mask_.size(), kNone);
    std::vector<std::pair<double, int64_t>> mismatches;
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        const int64_t pixel = y * width + x;
        mask_[at(y, x)] = mask[pixel];
        if (mask[pixel] != wanted[pixel]) mismatches.emplace_back(-distance[pixel], at(y, x));
      }
    }
    std::sort(mismatches.begin(), mismatches.end());
    for (const auto& [_, place] : mismatches) {
      turn_[place] = static_cast<int64_t>(places_.size());
      places_.push_back(place);
    }
    queued_.assign(places_.size(), 0);
  }

  void run() {
    for (size_t turn = 0; turn < places_.size(); ++turn) queue_if_simple(0, static_cast<int64_t>(turn));
    while (!queue_.empty()) {
      const auto [sweep, turn] = queue_.top();
      queue_.pop();
      queued_[turn] = 0;
      const int64_t place = places_[turn];
      if (!simple(place)) continue;
      mask_[place] ^= 1;
      turn_[place] = kNone;
      for (const int64_t step : ring_) {
        const int64_t other = turn_[place + step];
        if (other != kNone && !queued_[other]) queue_if_simple(sweep + (other < turn), other);
      }
    }
  }

  void write(bool* out) const {
    for (int64_t y = 0; y < height_; ++y) std::copy_n(&mask_[at(y, 0)], width_, out + y * width_);
  }

 private:
  static constexpr int64_t kNone = -1;

  int64_t at(int64_t y, int64_t x) const { return (y + 1) * stride_ + x + 1; }

  bool simple(int64_t place) const {
    unsigned bits = 0;
    for (int k = 0; k < 8; ++k) bits |= static_cast<unsigned>(mask_[place + ring_[k]]) << k;
    return kSimple[bits];
  }

  void queue_if_simple(int64_t sweep, int64_t turn) {
    if (!simple(places_[turn])) return;
    queued_[turn] = 1;
    queue_.emplace(sweep, turn);
  }

  using Visit = std::pair<int64_t, int64_t>;  // sweep, turn in it

  const int64_t height_, width_, stride_ = width_ + 2;
  const std::array<int64_t, 8> ring_ = {1, 1 - stride_, -stride_, -stride_ - 1, -1, stride_ - 1, stride_, stride_ + 1};
  std::vector<uint8_t> mask_;
  std::vector<int64_t> turn_;    // of every pixel, kNone where the masks agree
  std::vector<int64_t> places_;  // by turn
  std::vector<uint8_t> queued_;  // by turn
  std::priority_queue<Visit, std::vector<Visit>, std::greater<>> queue_;
};

}  // namespace

void flip_simple_pixels(int64_t height, int64_t width, const bool* wanted, const double* distance, const bool* mask,
                        bool* out) {
  Warp warp(height, width, wanted, distance, mask);
  warp.run();
  warp.write(out);
}

}  // namespace uf
