// SPDX-License-Identifier: GPL-3.0-or-later
// sources:
#include "../stream_resampler.hpp"

#include <cstdio>
#include <random>

#include "check.hpp"

namespace {

using Samples = std::vector<int16_t>;

constexpr double kLevel = 10000;
constexpr size_t kDelay = 14;  // samples of the lower rate

double wave(double hz, double second) { return kLevel * std::sin(2 * M_PI * hz * second); }

Samples tone(double hz, unsigned rate_hz, double seconds) {
  Samples samples(size_t(rate_hz * seconds));
  for (size_t i = 0; i < samples.size(); ++i) samples[i] = int16_t(std::lrint(wave(hz, double(i) / rate_hz)));
  return samples;
}

Samples convert(const Samples& in, unsigned rate_in_hz, unsigned rate_out_hz) {
  StreamResampler resampler(rate_in_hz, rate_out_hz);
  Samples out;
  for (size_t at = 0; at < in.size(); at += rate_in_hz / 50) {
    resampler.process(in.data() + at, std::min<size_t>(rate_in_hz / 50, in.size() - at), out);
  }
  return out;
}

// The largest error against the wave as it was `delay` ago, in parts of its level.
double error(double hz, unsigned rate_in_hz, unsigned rate_out_hz) {
  const Samples out = convert(tone(hz, rate_in_hz, 0.5), rate_in_hz, rate_out_hz);
  const double delay = double(kDelay) / std::min(rate_in_hz, rate_out_hz);
  double most = 0;
  for (size_t i = rate_out_hz / 50; i < out.size(); ++i) {
    most = std::max(most, std::abs(out[i] - wave(hz, double(i) / rate_out_hz - delay)) / kLevel);
  }
  return most;
}

void aToneComesOutAsItIs() {
  for (unsigned in : {8000U, 16000U, 24000U, 48000U, 44100U}) {
    for (unsigned out : {8000U, 16000U, 24000U, 48000U, 44100U}) {
      if (in == out) continue;
      for (double part : {0.05, 0.5, 0.8}) {
        const double hz = part * std::min(in, out) / 2;
        if (error(hz, in, out) > 0.003) std::printf("%u to %u Hz, %g Hz: %g\n", in, out, hz, error(hz, in, out));
        CHECK(error(hz, in, out) <= 0.003);
      }
    }
  }
}

// What the lower rate has no room for is gone: 60 dB and more.
void nothingIsHeardTwice() {
  const Samples out = convert(tone(5500, 16000, 0.5), 16000, 8000);
  for (size_t i = 400; i < out.size(); ++i) CHECK(std::abs(out[i]) <= int(kLevel / 1000));
}

void howItIsCutMakesNoDifference() {
  std::mt19937 chance(1);
  for (auto [in, out] : {std::pair{8000U, 16000U}, {48000U, 8000U}, {16000U, 24000U}, {44100U, 16000U}}) {
    const Samples said = tone(700, in, 0.3), whole = convert(said, in, out);
    CHECK(whole.size() == (said.size() * out + in - 1) / in);
    StreamResampler resampler(in, out);
    Samples pieces;
    for (size_t at = 0; at < said.size();) {
      const size_t size = std::min<size_t>(chance() % 300, said.size() - at);
      resampler.process(said.data() + at, size, pieces);
      at += size;
      CHECK(pieces.size() == (at * out + in - 1) / in);
    }
    CHECK(pieces == whole);
  }
}

void whatIsTooLoudIsLimited() {
  Samples square(1600);
  for (size_t i = 0; i < square.size(); ++i) square[i] = i / 40 % 2 ? -32768 : 32767;
  const Samples out = convert(square, 8000, 16000);
  CHECK(*std::max_element(out.begin(), out.end()) == 32767);
  CHECK(*std::min_element(out.begin(), out.end()) == -32768);
  // an overflow would jump from one end to the other in the middle of a plateau
  for (size_t i = 200; i < out.size(); ++i) {
    if ((i - 2 * kDelay) % 80 >= 20 && (i - 2 * kDelay) % 80 < 60) CHECK(std::abs(out[i] - out[i - 1]) < 5000);
  }
}

}  // namespace

int main() {
  aToneComesOutAsItIs();
  nothingIsHeardTwice();
  howItIsCutMakesNoDifference();
  whatIsTooLoudIsLimited();
  return checkResult();
}
