// SPDX-License-Identifier: GPL-3.0-or-later
// Follows one listener's delay while somebody speaks without an end, by correlation: what is heard against what was
// said. A queue that is shortened in silence, or a word that comes late, is seen here and not with bursts.
//
//   said    ──[ .. 12288 samples .. ]──►   once in half a second the place is looked for where half a second of
//   heard        [ 4096 samples ]          what was heard fits best (by FFT)
//
// Then every 20 ms of the second before is laid on what was said, at the places found around it. What fits gives a
// delay: arrival of its packet less the moment at which these samples left the talker. What fits nowhere, where
// somebody spoke, was concealed or damaged; what is silent there for longer than 40 ms is a gap.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <deque>
#include <vector>

#include "common.hpp"

using Samples = std::vector<int16_t>;

// A forward transform in place; the size is a power of two.
class Fft {
 public:
  explicit Fft(size_t size) : turns_(size / 2), order_(size) {
    for (size_t i = 0; i < size / 2; ++i) turns_[i] = std::polar(1.0f, float(-2 * M_PI * double(i) / double(size)));
    for (size_t i = 1, j = 0; i < size; ++i) {
      size_t bit = size >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      order_[i] = j;
    }
  }
  void run(std::vector<std::complex<float>>& x) const {
    const size_t size = x.size();
    for (size_t i = 0; i < size; ++i) {
      if (i < order_[i]) std::swap(x[i], x[order_[i]]);
    }
    for (size_t half = 1; half < size; half *= 2) {
      const size_t step = size / (2 * half);
      for (size_t start = 0; start < size; start += 2 * half) {
        for (size_t k = 0; k < half; ++k) {
          const std::complex<float> turn = turns_[k * step], odd = x[start + k + half];
          const std::complex<float> product(odd.real() * turn.real() - odd.imag() * turn.imag(),
                                            odd.real() * turn.imag() + odd.imag() * turn.real());
          x[start + k + half] = x[start + k] - product;
          x[start + k] += product;
        }
      }
    }
  }

 private:
  std::vector<std::complex<float>> turns_;
  std::vector<size_t> order_;
};

// What a talker has said, and when each frame left it.
class Said {
 public:
  // `speech` is said over and over, beginning at frame `first`.
  void begin(const Samples* speech, int64_t first) {
    speech_ = speech;
    offset_ = first * kFrameSamples;
  }
  void sent(int64_t frame, int64_t at) {
    frames_ = frame + 1;
    sent_at_[size_t(frame) % kFrames] = at;
  }
  int64_t frames() const { return frames_; }
  int16_t operator[](int64_t sample) const {
    const int64_t size = int64_t(speech_->size());
    return (*speech_)[size_t(((sample + offset_) % size + size) % size)];
  }
  int64_t placeInSpeech(int64_t frame) const {
    return (offset_ + frame * kFrameSamples) % int64_t(speech_->size());
  }
  // The frame that had left last at this time; of the last five seconds.
  int64_t frameAt(int64_t time) const {
    int64_t frame = frames_ - 1;
    while (frame > 0 && frame > frames_ - int64_t(kFrames) && sent_at_[size_t(frame) % kFrames] > time) --frame;
    return frame;
  }
  bool knows(int64_t sample) const {
    const int64_t frame = sample / kFrameSamples;
    return sample >= 0 && frame < frames_ && frame > frames_ - int64_t(kFrames);
  }
  int64_t timeOf(int64_t sample) const {
    return sent_at_[size_t(sample / kFrameSamples) % kFrames] + sample % kFrameSamples * kSample;
  }

 private:
  static constexpr size_t kFrames = 256;
  const Samples* speech_ = nullptr;
  int64_t offset_ = 0, frames_ = 0;
  int64_t sent_at_[kFrames] = {};
};

struct Gap {
  double at_s, ms;
};

struct Followed {
  struct Second {
    double at_s, delay_ms;
  };
  std::vector<Second> seconds;      // the median of each second in which something could be told
  std::vector<float> delays_ms;     // of every 20 ms that fitted
  std::vector<Gap> gaps;            // silence of more than 40 ms where somebody spoke
  long spoken = 0, damaged = 0;     // 20 ms pieces in which somebody spoke, and those of them that fitted nowhere
  long unmatched = 0;               // half seconds of speech whose place was not found at all
  double longest_gap_ms = 0;
};

class Follower {
 public:
  void begin(const Said* said, int64_t codec_delay, int64_t from) {
    said_ = said;
    codec_delay_ = codec_delay;
    from_ = from;
  }

  // A packet's samples at their place by its timestamp, in samples of 8 kHz that never wrap.
  void hear(int64_t place, const int16_t* samples, int count, int64_t arrived) {
    if (!any_) {
      any_ = true;
      looked_ = cleared_ = end_ = place;
    }
    if (place > end_ + kRing / 2 || place < end_ - kRing / 2) {  // a new stream
      any_ = false;
      places_.clear();
      packets_.clear();
      quiet_ = 0;
      return hear(place, samples, count, arrived);
    }
    for (; cleared_ < place + count; ++cleared_) ring_[index(cleared_)] = 0;
    for (int i = 0; i < count; ++i) ring_[index(place + i)] = samples[i];
    end_ = std::max(end_, place + count);
    packets_.push_back({place, count, arrived});
    while (packets_.size() > kPackets) packets_.pop_front();
  }

  // Called now and then, at least twice a second; looks when half a second more was heard.
  void follow() {
    while (any_ && end_ - kMargin >= looked_ + kWindow) {
      places_.push_back(find(looked_));
      looked_ += kWindow;
      if (places_.size() > 3) places_.pop_front();
      if (places_.size() == 3) examine(looked_ - 2 * kWindow);
    }
  }

  Followed result;

 private:
  static constexpr int64_t kRing = 1 << 15;
  static constexpr int kWindow = 4000, kTemplate = 4096, kLags = 8192, kSize = 16384;
  static constexpr int64_t kMargin = 800;  // what is late may still come into it
  static constexpr size_t kPackets = 250;
  static constexpr int kBlock = kFrameSamples, kSlack = 8;
  static constexpr int kBefore = 64, kAround = kBefore + kWindow + 64;  // of what was said, beside what was heard
  static constexpr double kSpokenRms = 400, kSpoken = kSpokenRms * kSpokenRms;  // -38 dBFS
  static constexpr double kFits = 0.5, kFitsWell = 0.8;
  static constexpr int kQuietPeak = 12, kStep = 40, kGapSamples = 320;  // 5 ms, 40 ms

  struct Packet {
    int64_t place;
    int count;
    int64_t arrived;
  };
  struct Place {
    bool found = false;
    int64_t shift = 0;  // of what was said against what was heard, in samples
  };

  static size_t index(int64_t place) { return size_t(place & (kRing - 1)); }
  int16_t heard(int64_t place) const { return ring_[index(place)]; }

  // When these samples came; 0 for a place at which none did.
  int64_t arrivalOf(int64_t place) const {
    for (auto p = packets_.rbegin(); p != packets_.rend(); ++p) {
      if (place >= p->place && place < p->place + p->count) return p->arrived + (place - p->place) * kSample;
    }
    return 0;
  }

  int64_t firstArrivalFrom(int64_t place) const {
    for (const Packet& p : packets_) {
      if (p.place + p.count > place) return p.arrived;
    }
    return 0;
  }

  Place find(int64_t at) {
    static const Fft fft(kSize);
    static std::vector<std::complex<float>> both(kSize), product(kSize);
    const int64_t first = (said_->frameAt(firstArrivalFrom(at)) + 2) * kFrameSamples - kLags;
    if (first < 0) return {};
    double energy = 0;
    // two real signals by one complex transform: what was said, and i times what was heard
    for (int i = 0; i < kSize; ++i) {
      const float said = i < kLags + kTemplate ? float((*said_)[first + i]) : 0;
      const float was_heard = i < kTemplate ? float(heard(at + i)) : 0;
      both[size_t(i)] = {said, was_heard};
      energy += double(was_heard) * was_heard;
    }
    fft.run(both);
    for (size_t k = 0; k < kSize; ++k) {
      const std::complex<float> a = both[k], b = std::conj(both[(kSize - k) % kSize]);
      const std::complex<float> said = 0.5f * (a + b), was_heard = std::complex<float>(0, -0.5f) * (a - b);
      product[k] = std::conj(said * std::conj(was_heard));  // conjugated, so that forward is backward
    }
    fft.run(product);
    double power = 0;  // of what was said under the template
    for (int i = 0; i < kTemplate; ++i) power += square((*said_)[first + i]);
    double best = 0;
    int lag = -1;
    for (int k = 0; k <= kLags; ++k) {
      const double fit = product[size_t(k)].real() / kSize / std::sqrt(std::max(power * energy, 1.0));
      if (fit > best) {
        best = fit;
        lag = k;
      }
      power += square((*said_)[first + k + kTemplate]) - square((*said_)[first + k]);
    }
    if (best < kFits || energy < kTemplate * square(kSpokenRms / 4)) {
      if (spokenAround(first + kLags - kTemplate)) ++result.unmatched;
      return {};
    }
    return {true, first + lag - at};
  }

  bool spokenAround(int64_t sample) const {
    double power = 0;
    for (int i = 0; i < kTemplate; ++i) power += square((*said_)[sample + i]);
    return power > kTemplate * square(kSpokenRms);
  }

  // The half second from `at` on, for which the places before, at and after it are known.
  void examine(int64_t at) {
    for (int i = 0; i < kWindow; ++i) heard_[size_t(i)] = heard(at + i);
    std::vector<int64_t> shifts;
    for (size_t i : {1, 0, 2}) {  // its own place first
      const Place& place = places_[i];
      const auto near = [&](int64_t shift) { return std::abs(shift - place.shift) <= kSlack / 2; };
      if (place.found && std::none_of(shifts.begin(), shifts.end(), near)) shifts.push_back(place.shift);
    }
    if (shifts.empty()) {
      if (!had_shift_) return;
      shifts.push_back(last_shift_);  // nothing of it was recognised
    }
    had_shift_ = true;
    last_shift_ = shifts[0];
    for (size_t i = 0; i < shifts.size(); ++i) {
      for (int k = 0; k < kAround; ++k) near_[i][size_t(k)] = (*said_)[at + shifts[i] - kBefore + k];
    }
    std::vector<float> delays;
    for (int block = 0; block < kWindow; block += kBlock) {
      const bool spoken = power(&near_[0][size_t(kBefore + block)], kBlock) > kSpoken;
      if (!spoken) {
        endGap(at + block, firstArrivalFrom(at + block) >= from_);
        continue;
      }
      double best = 0;
      size_t best_place = 0;
      int best_slack = 0;
      for (size_t i = 0; i < shifts.size(); ++i) {
        for (int slack = -kSlack; slack <= kSlack; ++slack) {
          const double fit = correlation(&heard_[size_t(block)], &near_[i][size_t(kBefore + block + slack)]);
          if (fit > best) {
            best = fit;
            best_place = i;
            best_slack = slack;
          }
        }
      }
      const int64_t middle = at + block + kBlock / 2, said = middle + shifts[best_place] + best_slack;
      const int64_t arrived = arrivalOf(middle);
      const bool counts = firstArrivalFrom(middle) >= from_;
      if (counts) {
        ++result.spoken;
        if (best < kFits) ++result.damaged;
        if (best > kFitsWell && arrived && said_->knows(said)) {
          delays.push_back(float(double(arrived - said_->timeOf(said) - codec_delay_) / kMs));
        }
      }
      for (int step = 0; step < kBlock; step += kStep) {
        lookForGap(at + block + step, &heard_[size_t(block + step)],
                   &near_[best_place][size_t(kBefore + block + step)], counts);
      }
    }
    if (delays.empty()) return;
    result.delays_ms.insert(result.delays_ms.end(), delays.begin(), delays.end());
    std::nth_element(delays.begin(), delays.begin() + long(delays.size() / 2), delays.end());
    result.seconds.push_back({double(firstArrivalFrom(at) - from_) / kSecond, delays[delays.size() / 2]});
  }

  void lookForGap(int64_t at, const float* was_heard, const float* said, bool counts) {
    bool quiet = std::all_of(was_heard, was_heard + kStep, [](float x) { return std::abs(x) <= kQuietPeak; });
    // speech before and after too: half a word's edge is no gap
    for (int part = -1; part <= 1 && quiet; ++part) quiet = power(said + part * kStep, kStep) > kSpoken;
    if (quiet) {
      quiet_ += kStep;
    } else {
      endGap(at, counts);
    }
  }

  void endGap(int64_t at, bool counts) {
    if (quiet_ > kGapSamples && counts) {
      const double ms = quiet_ * 1000.0 / kRate;
      result.gaps.push_back({double(firstArrivalFrom(at) - from_) / kSecond, ms});
      result.longest_gap_ms = std::max(result.longest_gap_ms, ms);
    }
    quiet_ = 0;
  }

  static double power(const float* samples, int count) {
    float sum = 0;
    for (int i = 0; i < count; ++i) sum += samples[i] * samples[i];
    return sum / float(count);
  }

  static double correlation(const float* a, const float* b) {
    float both = 0, power_a = 0, power_b = 0;
    for (int i = 0; i < kBlock; ++i) {
      both += a[i] * b[i];
      power_a += a[i] * a[i];
      power_b += b[i] * b[i];
    }
    return both / std::sqrt(std::max(power_a * power_b, 1.0f));
  }

  static double square(double x) { return x * x; }

  const Said* said_ = nullptr;
  int64_t codec_delay_ = 0, from_ = 0;
  bool any_ = false;
  int64_t end_ = 0, cleared_ = 0, looked_ = 0;
  int quiet_ = 0;
  bool had_shift_ = false;
  int64_t last_shift_ = 0;
  float heard_[kWindow], near_[3][kAround];
  std::deque<Packet> packets_;
  std::deque<Place> places_;
  std::vector<int16_t> ring_ = std::vector<int16_t>(size_t(kRing));
};
