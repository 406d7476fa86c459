// SPDX-License-Identifier: GPL-3.0-or-later
#include "../fractional_delay.hpp"

#include <array>
#include <cmath>

#include "check.hpp"

namespace {

using Window = std::array<float, FractionalDelay::kTaps>;
constexpr double kPi = 3.14159265358979323846;

// Largest error in gain (dB) and in delay (samples) over all places, of a sine at this share of the band.
struct Error {
  double gain_db = 0, delay = 0;
};

Error errorAt(double share) {
  Error worst;
  const double w = kPi * share;
  for (int i = 0; i <= 1000; ++i) {
    const double place = i / 1000.0;
    Window cosine, sine;
    for (int tap = 0; tap < FractionalDelay::kTaps; ++tap) {
      cosine[size_t(tap)] = float(std::cos(w * (tap - FractionalDelay::kBehind)));
      sine[size_t(tap)] = float(std::sin(w * (tap - FractionalDelay::kBehind)));
    }
    const double re = FractionalDelay::read(place, cosine.data()), im = FractionalDelay::read(place, sine.data());
    worst.gain_db = std::max(worst.gain_db, std::abs(20 * std::log10(std::hypot(re, im))));
    worst.delay = std::max(worst.delay, std::abs(std::remainder(std::atan2(im, re) - w * place, 2 * kPi) / w));
  }
  return worst;
}

void bandIsFlat() {
  for (double share = 0.01; share <= 0.801; share += 0.01) {
    const Error error = errorAt(share);
    CHECK(error.gain_db <= 0.04);
    CHECK(error.delay <= 0.0035);
  }
}

void wholePlacesAreTheSamplesThemselves() {
  Window window;
  for (size_t i = 0; i < window.size(); ++i) window[i] = float(1000 * std::sin(double(i * i)));
  const float first = window[FractionalDelay::kBehind], second = window[FractionalDelay::kBehind + 1];
  CHECK(FractionalDelay::read(0, window.data()) == first);
  CHECK(std::abs(FractionalDelay::read(1, window.data()) - second) < 1e-3f);
  // nor is there a step on the way there, over the places of the table or at its end
  float before = first;
  for (int i = 1; i <= 100000; ++i) {
    const float now = FractionalDelay::read(i / 100000.0, window.data());
    CHECK(std::abs(now - before) < 0.1f);
    before = now;
  }
}

void constantStaysConstant() {
  Window window;
  window.fill(10000);
  for (int i = 0; i <= 777; ++i) CHECK(std::abs(FractionalDelay::read(i / 777.0, window.data()) - 10000) < 0.02f);
}

}  // namespace

int main() {
  bandIsFlat();
  wholePlacesAreTheSamplesThemselves();
  constantStaysConstant();
  return checkResult();
}
