// SPDX-License-Identifier: GPL-3.0-or-later
#include "../jitter_queue.hpp"

#include <cstddef>
#include <cstdlib>
#include <functional>
#include <new>
#include <tuple>

#include "check.hpp"

namespace {

unsigned long long g_allocations = 0;

}  // namespace

void* operator new(size_t size) {
  ++g_allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

using Samples = std::vector<int16_t>;
using Wave = std::function<double(double)>;  // of the time in seconds

constexpr double kPi = 3.14159265358979323846;
constexpr unsigned kRatesHz[] = {8000, 16000, 48000};
constexpr unsigned kMaxMs = 200;

Wave sine(double hz, double amplitude = 10000) {
  return [=](double t) { return amplitude * std::sin(2 * kPi * hz * t); };
}

// A voiced sound: the harmonics of a pitch that glides as in speech.
Wave voice(double pitch_hz = 125) {
  return [=](double t) {
    const double phase = 2 * kPi * (pitch_hz * t + 3 * std::sin(2 * kPi * 0.7 * t));
    double sum = 0;
    for (int k = 1; k <= 6; ++k) sum += std::sin(k * phase + k * k) / k;
    return 5000 * sum;
  };
}

Samples record(const Wave& wave, unsigned rate_hz, size_t count, size_t from = 0) {
  Samples samples(count);
  for (size_t i = 0; i < count; ++i) samples[i] = int16_t(std::lrint(wave(double(from + i) / rate_hz)));
  return samples;
}

int peak(const Samples& samples) {
  int most = 0;
  for (int sample : samples) most = std::max(most, std::abs(sample));
  return most;
}

int largestStep(const Samples& samples) {
  int largest = 0;
  for (size_t i = 1; i < samples.size(); ++i) largest = std::max(largest, std::abs(samples[i] - samples[i - 1]));
  return largest;
}

double rms(const Samples& samples, size_t from, size_t count) {
  double sum = 0;
  for (size_t i = from; i < from + count; ++i) sum += double(samples[i]) * samples[i];
  return std::sqrt(sum / double(count));
}

// A queue with a wave pushed into it, and all that was popped.
struct Line {
  unsigned rate_hz;
  Wave wave;
  JitterQueue queue;
  size_t pushed = 0;
  Samples heard;
  int own_step = 0;    // the largest of the wave itself
  int faded_step = 0;  // what fading over in 4 ms between any two places of the wave may make of it

  Line(unsigned rate, Wave shape) : rate_hz(rate), wave(std::move(shape)), queue(rate, kMaxMs) {
    const Samples second = record(wave, rate, rate);
    own_step = largestStep(second);
    faded_step = own_step + 2 * peak(second) / int(ms(4)) + 1;
  }

  size_t ms(unsigned milliseconds) const { return size_t(rate_hz) * milliseconds / 1000; }

  void push(unsigned milliseconds) {
    const Samples samples = record(wave, rate_hz, ms(milliseconds), pushed);
    queue.push(samples.data(), samples.size());
    pushed += samples.size();
    CHECK(queue.pushed() == queue.taken() + queue.depth());
  }

  size_t pop(unsigned milliseconds) {
    Samples samples(ms(milliseconds));
    const size_t real = queue.pop(samples.data(), samples.size());
    heard.insert(heard.end(), samples.begin(), samples.end());
    CHECK(queue.pushed() == queue.taken() + queue.depth());
    return real;
  }

  // Packets of 20 ms in time, popped by 5 ms.
  void run(unsigned milliseconds) {
    for (unsigned t = 0; t < milliseconds; t += 20) {
      push(20);
      for (int i = 0; i < 4; ++i) pop(5);
    }
  }
};

void regularArrivalsPassBitByBit() {
  for (unsigned rate_hz : kRatesHz) {
    for (auto [push_ms, pop_ms] : {std::pair{20u, 5u}, {5u, 20u}, {20u, 20u}, {10u, 5u}, {60u, 20u}, {5u, 5u}}) {
      Line line(rate_hz, voice());
      const unsigned step_ms = std::min(push_ms, pop_ms);
      size_t silent = 0;
      for (unsigned t = 0; t < 3000; t += step_ms) {
        if (t % push_ms == 0) line.push(push_ms);
        if (t % pop_ms == 0 && line.pop(pop_ms) == 0) silent = line.heard.size();
      }
      // the very first samples are old when there is enough for a pop
      const size_t dropped = line.pushed - line.queue.depth() - (line.heard.size() - silent);
      CHECK(dropped < line.ms(pop_ms));
      const Samples sent = record(line.wave, rate_hz, line.heard.size() - silent, dropped);
      CHECK(std::equal(sent.begin(), sent.end(), line.heard.begin() + std::ptrdiff_t(silent)));
      CHECK(silent <= line.ms(pop_ms));
      CHECK(line.queue.stats().underruns == 0);
      CHECK(line.queue.stats().trims == 0);
      CHECK(line.queue.stats().overflow_samples == 0);
    }
  }
}

void depthStartsWithTheFirstPush() {
  Line line(8000, sine(400));
  CHECK(line.pop(5) == 0);
  line.push(20);
  CHECK(line.queue.depth() == line.ms(20));
  line.pop(5);
  CHECK(line.queue.depth() == line.ms(15));

  // a packet of 60 ms that is decoded in three
  Line long_packets(8000, sine(400));
  long_packets.pop(5);
  for (int i = 0; i < 3; ++i) long_packets.push(20);
  long_packets.pop(5);
  CHECK(long_packets.queue.depth() == long_packets.ms(55));
}

void whatGatheredBeforeTheFirstPopIsOld() {
  Line line(8000, sine(400));
  for (int i = 0; i < 30; ++i) line.push(20);
  line.pop(5);
  CHECK(line.queue.depth() == line.ms(15));
  const Samples newest = record(line.wave, 8000, 40, line.pushed - 160);
  CHECK(line.heard == newest);

  // the same after a pause of the one who pops; it fades in, for something else was heard before
  line.run(100);
  for (int i = 0; i < 5; ++i) line.push(20);
  line.queue.poppingBegins();
  line.push(20);
  line.heard.clear();
  line.pop(5);
  CHECK(line.queue.depth() == line.ms(15));
  CHECK(std::abs(line.heard.front()) < 400);
  CHECK(line.queue.stats().underruns == 0);
}

void onePushingAnewFindsTheDepthAnew() {
  // pieces of 5 ms from a moment that has nothing to do with the pops of 20 ms
  for (unsigned phase_ms : {0u, 5u, 10u, 15u}) {
    Line line(8000, sine(400));
    line.pop(20);
    for (unsigned t = 0; t < 400; t += 5) {
      if (t % 20 == phase_ms) {
        line.pop(20);
        if (t > 60) CHECK(line.queue.depth() == 0);
      }
      line.push(5);
    }
    CHECK(line.queue.stats().underruns == 0);

    // again, with all that was left of the first time still there
    for (int i = 0; i < 4; ++i) line.pop(20);
    line.queue.pushingBegins();
    const auto underruns = line.queue.stats().underruns;
    for (unsigned t = 0; t < 400; t += 5) {
      if (t % 20 == (phase_ms + 10) % 20) {
        line.pop(20);
        if (t > 60) CHECK(line.queue.depth() == 0);
      }
      line.push(5);
    }
    CHECK(line.queue.stats().underruns == underruns);
    CHECK(largestStep(line.heard) <= line.faded_step);
  }
}

void latenessGrowsTheDepthByItself() {
  for (unsigned rate_hz : kRatesHz) {
    for (unsigned late_ms = 5; late_ms <= 60; late_ms += 5) {
      Line line(rate_hz, voice());
      line.run(100);
      CHECK(line.queue.depth() == 0);
      for (unsigned t = 0; t < late_ms; t += 5) CHECK(line.pop(5) == 0);
      CHECK(line.queue.stats().underruns == 1);
      CHECK(line.queue.stats().concealed_samples == std::min(line.ms(late_ms), line.ms(50)));
      line.run(500);  // from now on all comes as late: nothing more is missing
      CHECK(line.queue.depth() == 0);
      CHECK(line.queue.stats().underruns == 1);
      // packets of the old time find the depth grown by what was bridged
      for (unsigned t = 0; t < late_ms; t += 20) line.push(20);
      line.run(500);
      // and by the little that a queue keeps which was dry
      CHECK(line.queue.depth() >= (late_ms + 19) / 20 * line.ms(20));
      CHECK(line.queue.depth() <= (late_ms + 19) / 20 * line.ms(20) + line.ms(7));
      CHECK(line.queue.stats().underruns == 1);
    }
  }
}

void everyLateSampleIsPlayed() {
  Line line(8000, sine(400));
  line.run(100);
  for (int i = 0; i < 6; ++i) line.pop(5);
  const size_t before = line.heard.size();
  line.run(40);
  const Samples late = record(line.wave, 8000, line.ms(40), line.ms(100));
  // but for the 4 ms in which it is faded in
  CHECK(std::equal(late.begin() + 32, late.end(), line.heard.begin() + std::ptrdiff_t(before + 32)));
}

void spareDepthIsGivenBack() {
  for (unsigned rate_hz : kRatesHz) {
    for (const Wave& wave : {voice(), voice(210), sine(180), sine(437), sine(1000), sine(3100)}) {
      Line line(rate_hz, wave);
      line.run(100);
      line.push(60);
      line.run(1900);
      CHECK(line.queue.stats().trims == 0);
      CHECK(line.queue.depth() == line.ms(60));
      line.run(1500);
      CHECK(line.queue.stats().trims > 0);
      CHECK(line.queue.depth() >= line.ms(5) - 1);
      CHECK(line.queue.depth() < line.ms(10));
      CHECK(line.queue.stats().trimmed_samples == line.ms(60) - line.queue.depth());
      CHECK(line.queue.stats().underruns == 0);
      CHECK(largestStep(line.heard) <= line.own_step * 1.1);

      const auto trims = line.queue.stats().trims;
      line.run(5000);  // what is left is not worth a cut
      CHECK(line.queue.stats().trims == trims);
    }
  }
}

void spareDepthIsGivenBackInSilenceAndNoise() {
  Line silence(8000, [](double) { return 0.0; });
  silence.run(100);
  silence.push(60);
  silence.run(2600);
  CHECK(silence.queue.depth() < silence.ms(10));
  CHECK(silence.queue.stats().trims <= 7);  // as much at once as a cut may take
  CHECK(peak(silence.heard) == 0);

  // noise repeats nowhere: after half a second of looking the best place has to do
  unsigned seed = 1;
  Line noise(8000, [&](double) {
    seed = seed * 1664525 + 1013904223;
    return double(int(seed >> 16) % 8000) - 4000;
  });
  noise.run(100);
  noise.push(60);
  noise.run(4000);
  CHECK(noise.queue.depth() < noise.ms(10));
  CHECK(noise.queue.stats().underruns == 0);
  CHECK(largestStep(noise.heard) <= 8000 * 1.05);
}

void spareDepthIsGivenBackInAPause() {
  // noise with pauses of 60 ms, two a second
  unsigned seed = 1;
  Line line(8000, [&](double t) {
    seed = seed * 1664525 + 1013904223;
    return std::fmod(t + 0.1, 0.5) < 0.06 ? 0.0 : double(int(seed >> 16) % 8000) - 4000;
  });
  line.run(100);
  line.push(60);
  for (unsigned long long trims = 0; trims == 0 && line.pushed < line.ms(4000); ) {
    line.push(20);
    for (int i = 0; i < 4; ++i) {
      line.pop(5);
      if (line.queue.stats().trims == trims) continue;
      trims = line.queue.stats().trims;
      CHECK(rms(line.heard, line.heard.size() - 40, 32) == 0);
    }
  }
  CHECK(line.queue.stats().trims > 0);
}

void depthThatIsNeededIsKept() {
  Line line(8000, voice());
  line.run(100);
  line.push(40);
  CHECK(line.queue.depth() == line.ms(40));
  // once a second a packet comes 40 ms late
  for (int second = 0; second < 8; ++second) {
    line.run(960);
    for (int i = 0; i < 8; ++i) line.pop(5);
    line.push(20);
    line.push(20);
  }
  CHECK(line.queue.stats().underruns == 0);
  CHECK(line.queue.stats().trims == 0);
  CHECK(line.queue.depth() == line.ms(40));
}

void spareThatIsNeededAtLastIsNotGivenBack() {
  // noise lets the queue look for a place for long; meanwhile the spare depth is used up by something late
  unsigned seed = 1;
  Line line(8000, [&](double) {
    seed = seed * 1664525 + 1013904223;
    return double(int(seed >> 16) % 8000) - 4000;
  });
  line.run(100);
  line.push(40);
  line.run(2420);
  for (int i = 0; i < 8 && line.queue.depth() > 0; ++i) line.pop(5);
  const auto trims = line.queue.stats().trims;
  line.run(1000);
  CHECK(line.queue.stats().trims == trims);
  CHECK(line.queue.stats().underruns == 0);
}

void gapIsExtendedAndFaded() {
  for (unsigned rate_hz : kRatesHz) {
    for (const Wave& wave : {voice(), voice(85), sine(120), sine(437), sine(1000), sine(2777)}) {
      for (unsigned cut_ms : {0u, 5u, 10u, 15u}) {  // in which phase of the wave it breaks off
        Line line(rate_hz, wave);
        line.run(200);
        line.push(20);
        for (unsigned t = 20; t > cut_ms; t -= 5) line.pop(5);
        for (unsigned t = 0; t < cut_ms; t += 5) line.pop(5);
        const size_t end = line.heard.size();
        for (int i = 0; i < 20; ++i) CHECK(line.pop(5) == 0);
        CHECK(largestStep(line.heard) <= line.own_step * 1.1 + 1);
        // 5 ms go on as loud as before, then it fades, and 50 ms after the break it is silent
        const double level = rms(line.heard, end - line.ms(20), line.ms(20));
        CHECK(rms(line.heard, end, line.ms(10)) > 0.7 * level);
        CHECK(rms(line.heard, end, line.ms(10)) < 1.4 * level);
        CHECK(rms(line.heard, end + line.ms(40), line.ms(10)) < 0.3 * level);
        CHECK(rms(line.heard, end + line.ms(50), line.ms(50)) == 0);
        CHECK(line.queue.stats().concealed_samples == line.ms(50));

        line.run(100);  // and comes back without a click
        CHECK(largestStep(line.heard) <= line.faded_step);
        CHECK(line.queue.stats().underruns == 1);
      }
    }
  }
}

void gapThatEndsEarlyIsJoined() {
  for (unsigned rate_hz : kRatesHz) {
    for (unsigned gap_ms = 5; gap_ms <= 45; gap_ms += 5) {
      Line line(rate_hz, sine(300));
      for (int gap = 0; gap < 3; ++gap) {
        line.run(200);
        for (unsigned t = 0; t < gap_ms; t += 5) line.pop(5);
      }
      line.run(100);
      CHECK(line.queue.stats().underruns == 3);
      CHECK(largestStep(line.heard) <= line.faded_step);
    }
  }
}

void joinsGoOnOverShortPops() {
  Line line(8000, sine(300));
  line.run(200);
  for (int i = 0; i < 3; ++i) line.pop(5);
  line.push(20);
  for (int i = 0; i < 20; ++i) line.pop(1);
  CHECK(largestStep(line.heard) <= line.faded_step);
}

void shortBeginningWaitsForOnePop() {
  Line line(8000, sine(400));
  line.run(100);
  line.pop(20);
  line.push(5);
  CHECK(line.pop(20) == 0);  // it would stutter
  line.push(5);
  CHECK(line.pop(20) == 0);
  CHECK(line.pop(20) == line.ms(10));  // no more came: this is all there is
  CHECK(line.queue.taken() == line.queue.pushed());
}

void clearSilencesWithin4Ms() {
  for (unsigned rate_hz : kRatesHz) {
    for (const Wave& wave : {voice(), sine(150), sine(1000)}) {
      for (unsigned waiting_ms : {0u, 5u, 15u, 95u}) {
        Line line(rate_hz, wave);
        line.run(200);
        if (waiting_ms > 0) line.push(waiting_ms + 5);
        if (waiting_ms > 0) line.pop(5);
        CHECK(line.queue.depth() == line.ms(waiting_ms));
        const size_t end = line.heard.size();
        line.queue.clear();
        CHECK(line.queue.depth() == 0);
        CHECK(line.queue.taken() == line.queue.pushed());
        line.pop(20);
        CHECK(rms(line.heard, end + line.ms(4), line.ms(16)) == 0);
        CHECK(rms(line.heard, end, line.ms(2)) > 0);
        CHECK(largestStep(line.heard) <= line.faded_step + peak(line.heard) / int(line.ms(4)));
        CHECK(line.queue.stats().underruns == 0);
        CHECK(line.queue.stats().concealed_samples == 0);
        line.run(100);
        CHECK(largestStep(line.heard) <= line.faded_step + peak(line.heard) / int(line.ms(4)));
      }
      // while it bridges a gap
      Line line(rate_hz, wave);
      line.run(200);
      line.pop(5);
      const size_t end = line.heard.size();
      line.queue.clear();
      line.pop(20);
      CHECK(rms(line.heard, end + line.ms(4), line.ms(16)) == 0);
      CHECK(largestStep(line.heard) <= line.faded_step + peak(line.heard) / int(line.ms(4)));
    }
  }
  JitterQueue unused(8000, kMaxMs);
  unused.clear();
  int16_t out[40];
  CHECK(unused.pop(out, 40) == 0);
}

void overflowDropsTheOldest() {
  for (unsigned rate_hz : kRatesHz) {
    Line line(rate_hz, sine(337));
    line.run(200);
    line.push(20);
    line.pop(5);
    for (int i = 0; i < 300; ++i) line.push(20);  // six seconds
    CHECK(line.queue.depth() == line.ms(kMaxMs));
    CHECK(line.queue.stats().overflow_samples == line.ms(15) + 300 * line.ms(20) - line.ms(kMaxMs));
    for (int i = 0; i < 40; ++i) CHECK(line.pop(5) == line.ms(5));
    CHECK(largestStep(line.heard) <= line.faded_step);
    const Samples newest = record(line.wave, rate_hz, line.ms(190), line.pushed - line.ms(190));
    CHECK(std::equal(newest.begin(), newest.end(), line.heard.end() - std::ptrdiff_t(newest.size())));
    CHECK(line.queue.stats().underruns == 0);

    // one push of more than there is room for
    line.pop(5);
    line.push(20);
    line.pop(5);
    const auto before = line.queue.stats().overflow_samples;
    line.push(1000);
    CHECK(line.queue.depth() == line.ms(kMaxMs));
    CHECK(line.queue.stats().overflow_samples == before + line.ms(1015) - line.ms(kMaxMs));
    line.pop(20);
    CHECK(largestStep(line.heard) <= line.faded_step);
  }
}

void overflowForLongMakesNoClick() {
  // the one who pushes is faster than the one who pops, for two seconds
  Line line(8000, sine(300));
  line.run(100);
  for (int i = 0; i < 100; ++i) {
    line.push(20);
    line.push(5);
    for (int k = 0; k < 4; ++k) line.pop(5);
  }
  CHECK(line.queue.depth() <= line.ms(kMaxMs));
  CHECK(line.queue.stats().overflow_samples + line.queue.stats().trimmed_samples >= line.ms(300));
  CHECK(largestStep(line.heard) <= line.faded_step);
}

void anotherRateStartsAnew() {
  Line line(8000, sine(400));
  line.run(100);
  line.pop(5);
  line.push(20);
  line.push(20);
  line.pop(5);
  CHECK(line.queue.stats().concealed_samples == 40);
  line.queue.configure(16000, kMaxMs);
  CHECK(line.queue.rateHz() == 16000);
  CHECK(line.queue.depth() == 0);
  CHECK(line.queue.pushed() == line.queue.taken());
  CHECK(line.queue.stats().concealed_samples == 80);
  Samples out(320, 1);
  CHECK(line.queue.pop(out.data(), 80) == 0);
  CHECK(peak({out.begin(), out.begin() + 80}) == 0);
  const Samples in = record(sine(400), 16000, 320);
  line.queue.push(in.data(), in.size());
  CHECK(line.queue.pop(out.data(), 320) == 320);
  CHECK(out == in);
  for (int i = 0; i < 100; ++i) line.queue.push(in.data(), in.size());
  CHECK(line.queue.depth() == 3200);
}

void loudestSamplesDoNotWrap() {
  Line line(8000, [](double t) { return std::fmod(t, 0.01) < 0.005 ? 32767.0 : -32768.0; });
  line.run(200);
  for (int i = 0; i < 12; ++i) line.pop(5);
  line.run(200);
  line.push(60);
  line.run(3000);
  line.queue.clear();
  line.pop(20);
  CHECK(largestStep(line.heard) <= 65535);
  CHECK(line.queue.stats().trims > 0);
}

// A sine whose samples come from a clock that is faster or slower, in packets at the ticks; popped by ticks of 5 ms.
struct DriftingLine {
  static constexpr int kHz = 1000, kAmplitude = 10000;
  const unsigned rate_hz;
  const double packet_ms;
  JitterQueue queue;
  const Samples second;
  Samples packet, out;
  double due_ms = 3.3, now_ms = 0;
  size_t sent = 0;
  double largest_break = 0, least_ms = 1e9, most_ms = -1e9, worst_sinad_db = 1e9;
  int uneven_windows = 0, windows = 0;

  DriftingLine(unsigned rate, double ppm, unsigned length_ms = 20)
      : rate_hz(rate), packet_ms(length_ms * (1 + ppm * 1e-6)), queue(rate, 400), second(record(sine(kHz, kAmplitude), rate, rate)), packet(rate * length_ms / 1000), out(rate / 200) {}

  // `watch`: whether what is heard is looked at from here on.
  void run(double seconds, bool watch) {
    const double w = 2 * kPi * kHz / rate_hz, prediction = 2 * std::cos(w);
    const double nominal_ms = double(packet.size()) * 1000 / rate_hz;
    const double end_ms = now_ms + seconds * 1000;
    Samples window;
    bool clean = watch;
    double before[2] = {};
    for (int pops = 0; now_ms < end_ms; ++pops) {
      now_ms += 5;
      for (; due_ms <= now_ms; due_ms += packet_ms) {
        for (auto& sample : packet) sample = second[sent++ % rate_hz];
        queue.push(packet.data(), packet.size());
      }
      clean = queue.pop(out.data(), out.size()) == out.size() && clean;
      if (queue.taken() + queue.depth() != queue.pushed()) least_ms = -1e9;
      if (!watch) continue;
      const double delay_ms = now_ms - double(queue.taken()) * 1000 / rate_hz / nominal_ms * packet_ms;
      least_ms = std::min(least_ms, delay_ms);
      most_ms = std::max(most_ms, delay_ms);
      for (int16_t sample : out) {
        // a sine obeys this whatever its phase; a jump of a fiftieth of a sample shows
        if (pops > 0) largest_break = std::max(largest_break, std::abs(sample - prediction * before[0] + before[1]));
        before[1] = before[0];
        before[0] = sample;
      }
      window.insert(window.end(), out.begin(), out.end());
      if (window.size() < rate_hz / 25) continue;
      ++windows;
      double db = sinadDb(window, w);
      if (db < 55) db = std::max(sinadDb(window, w * 1.002), sinadDb(window, w * 0.998));
      if (db < 55) ++uneven_windows; else worst_sinad_db = std::min(worst_sinad_db, db);
      window.clear();
    }
    CHECK(!watch || clean);
  }

  // Of a stretch against the sine that fits best.
  static double sinadDb(const Samples& window, double w) {
    double c = 0, s = 0, all = 0, cc = 0, ss = 0, cs = 0;
    double re = 1, im = 0;
    const double cos_w = std::cos(w), sin_w = std::sin(w);
    for (int16_t x : window) {
      c += x * re, s += x * im, all += double(x) * x, cc += re * re, ss += im * im, cs += re * im;
      const double next = re * cos_w - im * sin_w;
      im = re * sin_w + im * cos_w;
      re = next;
    }
    const double det = cc * ss - cs * cs, a = (c * ss - s * cs) / det, b = (s * cc - c * cs) / det;
    return 10 * std::log10(all / std::max(1e-9, all - a * c - b * s));
  }
};

void clocksOfDifferentSpeedMakeNoJump() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr double kSlow = 0.05;
#else
  constexpr double kSlow = 1;
#endif
  for (auto [rate_hz, ppm, length_ms, hours] : {std::tuple{8000u, 100.0, 20u, 4.0}, {8000u, -100.0, 20u, 4.0}, {8000u, 200.0, 20u, 1.0},
                                                {8000u, -200.0, 20u, 1.0}, {16000u, 100.0, 20u, 0.3}, {8000u, -100.0, 60u, 0.3}}) {
    DriftingLine line(rate_hz, ppm, length_ms);
    line.run(200, false);  // it begins dry, or with too much
    const auto underruns = line.queue.stats().underruns;
    CHECK(underruns <= 1);
    line.run(hours * 3600 * kSlow, true);
    CHECK(line.queue.stats().underruns == underruns);
    CHECK(line.queue.stats().trims == 0);
    CHECK(line.most_ms - line.least_ms <= 10 + 5);  // and a tick's own
    // reading faster or slower shows as 22 at most, samples are rounded to one
    CHECK(line.largest_break <= 40);
    // but for the windows in which it begins or ends
    CHECK(line.uneven_windows <= 2 + line.windows / 100);
  }
}

void clocksOfOneSpeedLeaveEachBit() {
  Line line(8000, voice());
  line.pop(5);
  line.run(20);
  line.heard.clear();
  const size_t first = line.pushed;
  const Samples packet = record(line.wave, 8000, 160);
  Samples out(40), heard(160);
  bool same = true;
  for (int i = 0; i < 3 * 3600 * 50; ++i) {
    line.queue.push(packet.data(), packet.size());
    for (int k = 0; k < 4; ++k) {
      line.queue.pop(out.data(), out.size());
      same = same && std::equal(out.begin(), out.end(), packet.begin() + 40 * k);
    }
  }
  CHECK(same && first == 160);
  CHECK(line.queue.depth() == 0 && line.queue.stats().underruns == 0);
}

void aQueueThatWasDryKeepsALittle() {
  for (unsigned rate_hz : kRatesHz) {
    Line line(rate_hz, sine(300));
    line.run(100);
    line.pop(5);  // a tick too late, for good
    for (int i = 0; i < 20; ++i) line.push(20), line.pop(5), line.pop(5), line.pop(5), line.pop(5);
    line.run(8000);
    CHECK(line.queue.depth() >= line.ms(6) && line.queue.depth() <= line.ms(7) + 1);
    CHECK(largestStep(line.heard) <= line.faded_step);
    const size_t heard = line.heard.size();
    line.pop(5);  // so that the next tick of lateness is not heard
    line.run(100);
    CHECK(line.queue.stats().underruns == 1);
    line.run(10000);  // and it is there again
    CHECK(line.queue.depth() >= line.ms(6) && line.queue.depth() <= line.ms(7) + 1);
    CHECK(largestStep({line.heard.begin() + std::ptrdiff_t(heard), line.heard.end()}) <= line.own_step * 1.01 + 2);
  }
}

void plentyIsNotAddedTo() {
  // dry once, and from then on there is more than enough: nothing is to be read slower
  Line line(8000, sine(300));
  line.run(100);
  for (int i = 0; i < 4; ++i) line.pop(5);
  line.push(10);
  line.push(10);
  line.run(1800);
  CHECK(line.queue.depth() == line.ms(20));
}

void wholeFramesKeepNoSpare() {
  Line line(8000, sine(300));
  line.queue.setWhole(true);
  const auto run = [&](unsigned milliseconds) {
    for (unsigned t = 0; t < milliseconds; t += 20) line.push(20), line.pop(20);
  };
  run(100);
  line.pop(20);
  run(5000);
  CHECK(line.queue.depth() == 0);
  line.push(20);
  run(3000);
  CHECK(line.queue.depth() < line.ms(3));
  CHECK(line.queue.stats().underruns == 1 && line.queue.stats().trims > 0);
  CHECK(largestStep(line.heard) <= line.faded_step);
}

void changeOfKindInMidGlideMakesNoJump() {
  Line line(8000, sine(300));
  line.run(100);
  line.pop(5);
  line.run(900);  // it is being read slower by now
  for (int i = 0; i < 20; ++i) {
    line.queue.setWhole(i % 2 == 0);
    line.run(20 + i * 40);
  }
  const Samples later(line.heard.begin() + 1000, line.heard.end());
  CHECK(largestStep(later) <= line.own_step * 1.1 + 2);
  CHECK(line.queue.stats().underruns == 1);
}

// A line of packets of 20 ms of which some are holes.
Samples heardWithHoles(Line& line, const std::vector<bool>& lost, unsigned pop_ms, unsigned spare_ms) {
  line.run(200);
  if (spare_ms > 0) line.push(spare_ms);
  line.heard.clear();
  for (unsigned t = 0; t < lost.size() * 20; t += 5) {
    if (t % 20 == 0 && !lost[t / 20]) line.push(20);
    if (t % 20 == 0 && lost[t / 20]) line.queue.pushHole(line.ms(20)), line.pushed += line.ms(20);
    CHECK(line.queue.pushed() == line.queue.taken() + line.queue.depth());
    if (t % pop_ms == 0) CHECK(line.pop(pop_ms) == line.ms(pop_ms));
  }
  return line.heard;
}

void holesAreMadeUpFromWhatWasHeard() {
  for (unsigned rate_hz : kRatesHz) {
    for (const Wave& wave : {voice(), sine(300), sine(437)}) {
      for (auto [pop_ms, spare_ms] : {std::pair{5u, 0u}, {20u, 0u}, {5u, 15u}, {20u, 15u}, {5u, 7u}, {20u, 13u}}) {
        Line line(rate_hz, wave);
        const auto heard = heardWithHoles(line, {false, false, true, false, false, false}, pop_ms, spare_ms);
        const size_t start = line.ms(40 + spare_ms), end = start + line.ms(20);
        const double level = rms(heard, 0, line.ms(40));
        CHECK(rms(heard, start, line.ms(10)) > 0.7 * level && rms(heard, start, line.ms(10)) < 1.4 * level);
        CHECK(rms(heard, start + line.ms(10), line.ms(10)) > 0.3 * level);
        CHECK(largestStep(heard) <= line.faded_step);
        // before and after it all is as it was, in time
        const Samples sent = record(wave, rate_hz, heard.size(), line.ms(200));
        CHECK(std::equal(sent.begin(), sent.begin() + std::ptrdiff_t(start), heard.begin()));
        CHECK(std::equal(sent.begin() + std::ptrdiff_t(end + line.ms(4)), sent.end(), heard.begin() + std::ptrdiff_t(end + line.ms(4))));
        CHECK(line.queue.stats().underruns == 0);
        CHECK(line.queue.stats().concealed_samples == line.ms(20));
      }
    }
  }
}

void holesInARowFade() {
  for (unsigned rate_hz : kRatesHz) {
    Line line(rate_hz, sine(300));
    const auto heard = heardWithHoles(line, {false, true, true, true, true, true, false, false}, 5, 0);
    CHECK(rms(heard, line.ms(20), line.ms(10)) > 0.7 * rms(heard, 0, line.ms(20)));
    double before = 1e9;
    for (unsigned t = 20; t < 80; t += 10) {
      const double level = rms(heard, line.ms(t), line.ms(10));
      CHECK(level <= before * 1.05);
      before = level;
    }
    CHECK(rms(heard, line.ms(100), line.ms(20)) == 0);
    CHECK(largestStep(heard) <= line.faded_step);
    CHECK(line.queue.depth() == 0);
  }
}

void holesStandAnything() {
  unsigned seed = 1;
  const auto random = [&](unsigned below) {
    seed = seed * 1664525 + 1013904223;
    return (seed >> 16) % below;
  };
  const Samples few(8, 100);
  for (unsigned rate_hz : {8000u, 48000u}) {
    Line line(rate_hz, sine(300));
    line.run(100);
    for (int i = 0; i < 20000; ++i) {
      switch (random(8)) {
        case 0: line.queue.pushHole(random(unsigned(line.ms(25)))); break;
        case 1: for (unsigned k = random(60); k > 0; --k) line.queue.pushHole(line.ms(1)), line.queue.push(few.data(), few.size()); break;
        case 2: if (random(20) == 0) line.queue.clear(); break;
        case 3: if (random(20) == 0) line.queue.setWhole(random(2) == 0); break;
        case 4: if (random(50) == 0) line.queue.poppingBegins(); break;
        case 5: if (random(100) == 0) line.queue.configure(rate_hz, kMaxMs); break;
        default: line.push(1 + random(20));
      }
      for (unsigned k = random(8); k > 0; --k) line.pop(5);
      CHECK(line.queue.pushed() == line.queue.taken() + line.queue.depth());
      CHECK(line.queue.depth() <= line.ms(kMaxMs));
      if (line.heard.size() > rate_hz) line.heard.clear();
    }
    // and whatever happened, what comes is heard
    line.queue.clear();
    line.run(500);
    line.heard.clear();
    line.run(100);
    CHECK(rms(line.heard, 0, line.ms(100)) > 6000);
  }
}

void moreHolesThanFitAreStillTimed() {
  Line line(8000, sine(300));
  line.run(100);
  const Samples loud(4, 5000);
  for (int i = 0; i < 60; ++i) line.queue.push(loud.data(), 4), line.queue.pushHole(4);
  const size_t waiting = line.queue.depth();
  CHECK(waiting == 60 * 8);
  CHECK(line.pop(60) == waiting);
  // those that are next to each other are one
  for (int i = 0; i < 100; ++i) line.queue.pushHole(8);
  CHECK(line.pop(100) == line.ms(100));
  CHECK(rms(line.heard, line.heard.size() - line.ms(40), line.ms(40)) == 0);
  line.heard.clear();
  line.run(100);
  CHECK(rms(line.heard, line.ms(20), line.ms(80)) > 6000);
}

void clearedHolesAreGone() {
  Line line(8000, sine(300));
  line.run(100);
  line.queue.pushHole(160);
  line.pop(5);
  line.queue.clear();
  line.pop(20);
  line.heard.clear();
  line.run(100);
  const Samples sent = record(line.wave, 8000, line.ms(96), line.ms(104));
  CHECK(std::equal(sent.begin(), sent.end(), line.heard.begin() + std::ptrdiff_t(line.ms(4))));
}

void nothingIsAllocatedOnTheWay() {
  JitterQueue queue(8000, kMaxMs);
  const Samples in = record(voice(), 8000, 160);
  Samples out(160);
  const auto before = g_allocations;
  for (int i = 0; i < 1000; ++i) {
    if (i % 400 >= 12) queue.push(in.data(), in.size());
    if (i % 400 == 20) for (int k = 0; k < 20; ++k) queue.push(in.data(), in.size());
    if (i % 400 == 300) queue.clear();
    for (int k = 0; k < 4; ++k) queue.pop(out.data(), 40);
  }
  CHECK(queue.stats().underruns > 0);
  CHECK(queue.stats().trims > 0);
  CHECK(queue.stats().overflow_samples > 0);
  CHECK(g_allocations == before);
}

}  // namespace

int main() {
  regularArrivalsPassBitByBit();
  depthStartsWithTheFirstPush();
  whatGatheredBeforeTheFirstPopIsOld();
  onePushingAnewFindsTheDepthAnew();
  latenessGrowsTheDepthByItself();
  everyLateSampleIsPlayed();
  spareDepthIsGivenBack();
  spareDepthIsGivenBackInSilenceAndNoise();
  spareDepthIsGivenBackInAPause();
  depthThatIsNeededIsKept();
  spareThatIsNeededAtLastIsNotGivenBack();
  gapIsExtendedAndFaded();
  gapThatEndsEarlyIsJoined();
  joinsGoOnOverShortPops();
  shortBeginningWaitsForOnePop();
  clearSilencesWithin4Ms();
  overflowDropsTheOldest();
  overflowForLongMakesNoClick();
  anotherRateStartsAnew();
  loudestSamplesDoNotWrap();
  clocksOfDifferentSpeedMakeNoJump();
  clocksOfOneSpeedLeaveEachBit();
  aQueueThatWasDryKeepsALittle();
  plentyIsNotAddedTo();
  wholeFramesKeepNoSpare();
  changeOfKindInMidGlideMakesNoJump();
  holesAreMadeUpFromWhatWasHeard();
  holesInARowFade();
  holesStandAnything();
  moreHolesThanFitAreStillTimed();
  clearedHolesAreGone();
  nothingIsAllocatedOnTheWay();
  return checkResult();
}
