// SPDX-License-Identifier: GPL-3.0-or-later
// What a receiver counts of a stream, for its reports (RFC 3550, 6.4.1 and appendices A.1, A.3 and A.8).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

// Used by one thread.
class RtpReception {
 public:
  // Another stream begins.
  void reset() {
    lost_before_ = lost();
    started_ = timed_ = false;
    cycles_ = received_ = expected_reported_ = received_reported_ = 0;
    jitter_ = 0;
  }

  // A packet that had not come before.
  void came(uint16_t sequence) {
    const int16_t ahead = int16_t(sequence - highest_);
    if (!started_ || ahead > kMaxDropout || ahead < -kMaxMisorder) {
      if (started_) reset();
      started_ = true;
      first_ = highest_ = sequence;
    } else if (ahead > 0) {
      if (sequence < highest_) cycles_ += 1 << 16;
      highest_ = sequence;
    }
    ++received_;
  }

  // Its time, where it has audio.
  void timed(uint32_t timestamp, int64_t arrival_ns, unsigned clock_hz) {
    const int64_t ticks = arrival_ns / 1000 * clock_hz / 1'000'000;
    const uint32_t transit = uint32_t(ticks) - timestamp;
    const double change = std::abs(double(int32_t(transit - transit_)));
    // more is a pause, or another clock
    if (timed_ && change < clock_hz) jitter_ += (change - jitter_) / 16;
    transit_ = transit;
    timed_ = true;
    clock_hz_ = clock_hz;
  }

  bool started() const { return started_; }
  uint32_t highest() const { return uint32_t(cycles_) + highest_; }  // with cycles
  uint32_t jitter() const { return uint32_t(jitter_); }              // in timestamp units
  double jitterMs() const { return jitter_ * 1000 / clock_hz_; }
  // In all, streams before this one included.
  int64_t lost() const { return lost_before_ + std::max<int64_t>(0, expected() - received_); }
  // Of this stream; negative where more came than was expected.
  int64_t lostOfStream() const { return expected() - received_; }

  // Of the packets expected since it was asked last, 0 to 1.
  double takeFractionLost() {
    const int64_t due = expected() - expected_reported_, came = received_ - received_reported_;
    expected_reported_ = expected();
    received_reported_ = received_;
    return due <= 0 || came >= due ? 0 : double(due - came) / double(due);
  }

 private:
  static constexpr int kMaxDropout = 3000, kMaxMisorder = 100;

  int64_t expected() const { return started_ ? int64_t(highest()) - first_ + 1 : 0; }

  bool started_ = false, timed_ = false;
  uint16_t first_ = 0, highest_ = 0;
  int64_t cycles_ = 0, received_ = 0, lost_before_ = 0;
  int64_t expected_reported_ = 0, received_reported_ = 0;
  uint32_t transit_ = 0;
  double jitter_ = 0;
  unsigned clock_hz_ = 8000;
};
