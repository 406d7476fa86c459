// SPDX-License-Identifier: GPL-3.0-or-later
// A signal read between its samples.
#pragma once
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>

// Windowed sinc of 16 taps at 128 places between two samples, and linear between two places. At place 0 it is the sample
// itself. Flat to 0.04 dB up to 0.8 of the band (Laakso et al., "Splitting the unit delay", 1996; Kaiser window).
class FractionalDelay {
 public:
  static constexpr int kBehind = 7;  // samples that are needed before the one at the place,
  static constexpr int kAhead = 8;   // and after it

  static constexpr int kTaps = kBehind + 1 + kAhead;

  // The value `place` (0 to 1) after window[kBehind]; the window has kTaps samples.
  static float read(double place, const float* window) {
    const double scaled = place * kPlaces;
    const auto row = size_t(scaled);
    const auto part = float(scaled - double(row));
    Four low{}, high{};
    for (size_t tap = 0; tap < kTaps; tap += 4) {
      const Four samples = load(window + tap);
      low += samples * load(&table_[row][tap]);
      high += samples * load(&table_[row + 1][tap]);
    }
    const Four both = low + (high - low) * part;
    return both[0] + both[1] + both[2] + both[3];
  }

 private:
  static constexpr int kPlaces = 128;
  static constexpr double kBeta = 5.5;  // the flattest for these taps
  using Table = std::array<std::array<float, kTaps>, kPlaces + 2>;

  using Four = float __attribute__((vector_size(16)));  // one instruction for all of them

  static Four load(const float* values) {
    Four four;
    std::memcpy(&four, values, sizeof four);
    return four;
  }

  static Table makeTable() {
    Table table{};
    for (size_t row = 0; row < table.size(); ++row) {
      const double place = double(row) / kPlaces;
      double sum = 0;
      std::array<double, kTaps> taps{};
      for (int tap = 0; tap < kTaps; ++tap) {
        const double x = tap - kBehind - place, edge = x / (kTaps / 2 + 0.5);
        const double sinc = std::abs(x) < 1e-12 ? 1 : std::sin(M_PI * x) / (M_PI * x);
        taps[size_t(tap)] = std::abs(edge) < 1 ? sinc * std::cyl_bessel_i(0.0, kBeta * std::sqrt(1 - edge * edge)) : 0;
        sum += taps[size_t(tap)];
      }
      for (int tap = 0; tap < kTaps; ++tap) table[row][size_t(tap)] = float(taps[size_t(tap)] / sum);
    }
    return table;
  }

  static inline const Table table_ = makeTable();
};
