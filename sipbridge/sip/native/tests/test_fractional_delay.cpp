// SPDX-License-Identifier: GPL-3.0-or-later
#include "../fractional_delay.hpp"

#include <vector>

#include "check.hpp"

namespace {

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
    const double re = FractionalDelay::read(place, [&](int tap) { return std::cos(w * tap); });
    const double im = FractionalDelay::read(place, [&](int tap) { return std::sin(w * tap); });
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
  std::vector<double> samples;
  for (int i = 0; i < 16; ++i) samples.push_back(1000 * std::sin(i * i));
  const auto at = [&](int tap) { return samples[size_t(tap + FractionalDelay::kBehind)]; };
  CHECK(std::abs(FractionalDelay::read(0, at) - at(0)) < 1e-9);
  CHECK(std::abs(FractionalDelay::read(1, at) - at(1)) < 1e-3);
  // nor is there a step on the way there, over the places of the table or at its end
  double before = at(0);
  for (int i = 1; i <= 100000; ++i) {
    const double now = FractionalDelay::read(i / 100000.0, at);
    CHECK(std::abs(now - before) < 0.1);
    before = now;
  }
}

void constantStaysConstant() {
  for (int i = 0; i <= 777; ++i) CHECK(std::abs(FractionalDelay::read(i / 777.0, [](int) { return 10000.0; }) - 10000) < 0.01);
}

}  // namespace

int main() {
  bandIsFlat();
  wholePlacesAreTheSamplesThemselves();
  constantStaysConstant();
  return checkResult();
}
