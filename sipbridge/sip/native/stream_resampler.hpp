// SPDX-License-Identifier: GPL-3.0-or-later
// One member's audio at another rate, as it comes.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

// The filter of sipbridge.resample.polyphase, for one channel: a Kaiser-windowed sinc of 14 samples of the lower rate to
// each side, so 0.9 to 1.75 ms of delay. After n samples in, ceil(n * rate_out / rate_in) have come out, however they
// were cut into pieces. One thread at a time.
class StreamResampler {
 public:
  StreamResampler(unsigned rate_in_hz, unsigned rate_out_hz) {
    const unsigned divisor = std::gcd(rate_in_hz, rate_out_hz);
    up_ = rate_out_hz / divisor;
    down_ = rate_in_hz / divisor;
    const size_t spacing = std::max(up_, down_);  // one sample of the lower rate, in steps of rate_in * up
    const size_t reach = kHalfWidth * spacing, size = 2 * reach + 1;
    const size_t taps = (size + up_ - 1) / up_;
    width_ = (taps + kLanes - 1) / kLanes * kLanes;
    rows_.assign(up_ * width_, 0.0F);
    for (size_t phase = 0; phase < up_; ++phase) {
      std::vector<double> row;
      for (size_t at = phase; at < size; at += up_) row.push_back(prototype(double(at) - double(reach), spacing, reach));
      // Equal gain at 0 Hz for each phase, or a constant would come out with a ripple.
      const double gain = std::accumulate(row.begin(), row.end(), 0.0);
      // The newest sample stands at the end, as in the audio.
      for (size_t k = 0; k < row.size(); ++k) rows_[phase * width_ + width_ - 1 - k] = float(row[k] / gain);
    }
    samples_.assign(width_ - 1, 0.0F);
  }

  // What `count` more samples give is added to `out`.
  void process(const int16_t* in, size_t count, std::vector<int16_t>& out) {
    samples_.insert(samples_.end(), in, in + count);
    const size_t end = count * up_;
    for (; place_ < end; place_ += down_) {
      const float* window = &samples_[place_ / up_];
      const float* row = &rows_[place_ % up_ * width_];
      Lanes sums{};
      for (size_t k = 0; k < width_; k += kLanes) sums += load(window + k) * load(row + k);
      const float sum = sums[0] + sums[1] + sums[2] + sums[3];
      out.push_back(int16_t(std::lrint(std::clamp(sum, -32768.0F, 32767.0F))));
    }
    place_ -= end;
    samples_.erase(samples_.begin(), samples_.begin() + std::ptrdiff_t(count));
  }

 private:
  static constexpr size_t kHalfWidth = 14;
  static constexpr double kBeta = 6.4;  // 64 dB over a transition from 85 % to 115 % of the lower Nyquist frequency
  static constexpr size_t kLanes = 4;
  using Lanes = float __attribute__((vector_size(16)));  // one instruction for all of them

  static Lanes load(const float* values) {
    Lanes lanes;
    std::memcpy(&lanes, values, sizeof lanes);
    return lanes;
  }

  static double prototype(double x, size_t spacing, size_t reach) {
    const double angle = M_PI * x / double(spacing), edge = x / double(reach);
    const double sinc = x == 0 ? 1 : std::sin(angle) / angle;
    return sinc * std::cyl_bessel_i(0.0, kBeta * std::sqrt(std::max(0.0, 1 - edge * edge)));
  }

  size_t up_, down_, width_;
  std::vector<float> rows_;     // a row a phase, padded at its old end to whole lanes
  std::vector<float> samples_;  // the last width - 1 that came
  size_t place_ = 0;            // of the next one out behind the next one in, in steps of 1 / up
};
