// SPDX-License-Identifier: GPL-3.0-or-later
// A bad line: what becomes of each packet that a caller sends. One object a caller, seeded, so that a run can be
// repeated: what happens to packet n depends on the seed, the caller and n alone.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "common.hpp"

struct Impairment {
  double loss_percent = 0;
  double loss_burst = 1;  // mean number of packets lost in a row; 1: each packet's fate is its own
  double jitter_ms = 0;   // added to each packet, evenly distributed over 0..jitter_ms; order is kept
  double reorder_percent = 0;    // comes after the packet that follows it
  double duplicate_percent = 0;  // comes twice
  bool any() const { return loss_percent > 0 || jitter_ms > 0 || reorder_percent > 0 || duplicate_percent > 0; }
};

class Line {
 public:
  Line(const Impairment& impairment, uint32_t seed) : impairment_(impairment), random_(seed) {}

  // When the packet sent at `now` leaves: never, once, or twice.
  std::vector<int64_t> leave(int64_t now) {
    // always as many draws, so that one kind of impairment does not change another's pattern
    const double fate = draw(), extra = draw(), order = draw(), twice = draw();
    const double loss = impairment_.loss_percent / 100;
    if (impairment_.loss_burst > 1) {  // Gilbert's two states
      const double leave_bad = 1 / impairment_.loss_burst;
      is_bad_ = is_bad_ ? fate >= leave_bad : fate < loss * leave_bad / (1 - loss);
    } else {
      is_bad_ = fate < loss;
    }
    if (is_bad_) return {};
    int64_t at = now + int64_t(extra * impairment_.jitter_ms * kMs);
    if (order < impairment_.reorder_percent / 100) {
      at += kFrame + kFrame / 4;  // and what follows does not wait for it
    } else {
      at = last_ = std::max(at, last_);
    }
    if (twice < impairment_.duplicate_percent / 100) return {at, at};
    return {at};
  }

 private:
  double draw() { return std::uniform_real_distribution<double>(0, 1)(random_); }
  Impairment impairment_;
  std::mt19937 random_;
  bool is_bad_ = false;
  int64_t last_ = 0;
};
