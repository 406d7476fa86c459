// SPDX-License-Identifier: GPL-3.0-or-later
// A queue of samples between two clocks: it holds as little as the arrivals allow, conceals what is late and gives
// back what is too much, without a click.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

// How the depth follows the arrivals: it starts with what the first push brings. A pop that finds too little conceals
// the rest, and since what comes late is still played, the depth has then grown by exactly the lateness. The least
// spare seen over a window of two seconds is depth that no arrival needed: it is taken out again by overlap-add where
// the waveform repeats best (WSOLA; Verhelst and Roelands 1993), or at once where it is silent.
//
// Units: samples of one rate, int16, mono. No lock and no allocation after configure(); the owner guards it.
class JitterQueue {
 public:
  struct Stats {
    uint64_t underruns = 0;          // times it ran dry while playing
    uint64_t concealed_samples = 0;  // made up to bridge them
    uint64_t trims = 0;              // times depth was given back
    uint64_t trimmed_samples = 0;
    uint64_t overflow_samples = 0;   // came while it was full, the oldest dropped
    uint64_t played_samples = 0;     // real samples that were popped
  };

  JitterQueue(unsigned rate_hz, unsigned max_ms) { configure(rate_hz, max_ms); }

  void configure(unsigned rate_hz, unsigned max_ms) {
    rate_hz_ = rate_hz;
    max_ = size_t(rate_hz) * max_ms / 1000;
    buffer_.assign(max_ * 2 + kMaxChunk, 0);
    history_.assign(ms(kHistoryMs), 0);
    template_.assign(ms(kHistoryMs), 0);
    head_ = tail_ = 0;
    playing_ = false;
    extension_left_ = 0;
    resetWindow();
  }

  unsigned rateHz() const { return rate_hz_; }
  size_t depth() const { return tail_ - head_; }
  const Stats& stats() const { return stats_; }

  void push(const int16_t* samples, size_t count) {
    if (count > max_) {
      stats_.overflow_samples += count - max_;
      samples += count - max_;
      count = max_;
    }
    if (depth() + count > max_) {
      const size_t drop = depth() + count - max_;
      head_ += drop;
      written_off_ += drop;
      stats_.overflow_samples += drop;
    }
    if (tail_ + count > buffer_.size()) {
      std::memmove(buffer_.data(), buffer_.data() + head_, depth() * sizeof(int16_t));
      tail_ -= head_;
      head_ = 0;
    }
    std::memcpy(buffer_.data() + tail_, samples, count * sizeof(int16_t));
    tail_ += count;
    pushed_ += count;
  }

  // Fills all of out; returns how many of its samples were real ones (the others are concealment or silence).
  size_t pop(int16_t* out, size_t count) {
    if (give_back_ > 0) shrink(count);
    const size_t real = std::min(count, depth());
    if (real > 0) {
      const int16_t* from = buffer_.data() + head_;
      if (!playing_ && started_) {
        blendIn(out, from, real);
      } else {
        std::memcpy(out, from, real * sizeof(int16_t));
      }
      head_ += real;
      stats_.played_samples += real;
      playing_ = started_ = true;
      remember(out, real);
    }
    if (real < count) {
      if (playing_) {
        ++stats_.underruns;
        beginExtension(ms(kFadeMs), ms(kHoldMs));
        playing_ = false;
      }
      extend(out + real, count - real);
      resetWindow();
    } else {
      watchSpare(count);
    }
    return real;
  }

  // Empties it; what was being heard fades within a few milliseconds instead of stopping in mid-wave.
  void clear() {
    written_off_ += depth();
    head_ = tail_ = 0;
    if (playing_) {
      beginExtension(ms(kClearFadeMs), 0);
      playing_ = false;
    }
    resetWindow();
  }

  // Position in the stream of all pushed samples; a mark set at pushed() is passed once taken() has reached it.
  uint64_t pushed() const { return pushed_; }
  uint64_t taken() const { return stats_.played_samples + written_off_; }
  bool playing() const { return playing_; }

 private:
  static constexpr size_t kMaxChunk = 5760;     // 120 ms at 48 kHz: the longest frame of any codec here
  static constexpr unsigned kHistoryMs = 30;    // what a lost pitch period is looked for in
  static constexpr unsigned kHoldMs = 10;       // the extension keeps its level this long,
  static constexpr unsigned kFadeMs = 50;       // then fades to nothing by here
  static constexpr unsigned kClearFadeMs = 4;
  static constexpr unsigned kBlendMs = 4;       // overlap where extension and new audio, or two cuts, meet
  static constexpr unsigned kWindowMs = 2000;
  static constexpr unsigned kMinSpareMs = 10;   // less than this is not worth a cut

  size_t ms(unsigned milliseconds) const { return size_t(rate_hz_) * milliseconds / 1000; }

  void resetWindow() {
    window_ = 0;
    least_spare_ = SIZE_MAX;
    give_back_ = 0;
  }

  void watchSpare(size_t count) {
    least_spare_ = std::min(least_spare_, depth());
    window_ += count;
    if (window_ < ms(kWindowMs)) return;
    give_back_ = least_spare_ >= ms(kMinSpareMs) ? least_spare_ - ms(kMinSpareMs) / 2 : 0;
    window_ = 0;
    least_spare_ = SIZE_MAX;
  }

  void remember(const int16_t* samples, size_t count) {
    const size_t size = history_.size();
    if (count >= size) {
      std::memcpy(history_.data(), samples + count - size, size * sizeof(int16_t));
    } else {
      std::memmove(history_.data(), history_.data() + count, (size - count) * sizeof(int16_t));
      std::memcpy(history_.data() + size - count, samples, count * sizeof(int16_t));
    }
  }

  // The lag at which the end of the history repeats itself best, by normalised correlation; coarse in steps of 125 us.
  size_t pitchLag() const {
    const size_t size = history_.size(), span = ms(8), step = std::max<size_t>(1, rate_hz_ / 8000);
    const int16_t* end = history_.data() + size - span;
    size_t best = ms(10);
    double best_score = 0;
    for (size_t lag = ms(5) / 2; lag <= ms(20); lag += step) {
      double cross = 0, energy = 1;
      for (size_t i = 0; i < span; i += step) {
        cross += double(end[i]) * end[ptrdiff_t(i) - ptrdiff_t(lag)];
        energy += double(end[ptrdiff_t(i) - ptrdiff_t(lag)]) * end[ptrdiff_t(i) - ptrdiff_t(lag)];
      }
      const double score = cross > 0 ? cross * cross / energy : 0;
      if (score > best_score) best_score = score, best = lag;
    }
    return best;
  }

  void beginExtension(size_t length, size_t hold) {
    const size_t lag = pitchLag();
    std::memcpy(template_.data(), history_.data() + history_.size() - lag, lag * sizeof(int16_t));
    template_length_ = lag;
    extension_length_ = extension_left_ = length;
    extension_hold_ = hold;
  }

  int16_t nextExtension() {
    if (extension_left_ == 0) return 0;
    const size_t at = extension_length_ - extension_left_--;
    const double gain = at < extension_hold_ ? 1.0 : double(extension_left_) / double(extension_length_ - extension_hold_);
    return int16_t(std::lrint(template_[at % template_length_] * gain));
  }

  void extend(int16_t* out, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      if (extension_left_ > 0) ++stats_.concealed_samples;
      out[i] = nextExtension();
    }
    if (count > 0 && started_) remember(out, count);
  }

  // Audio resumes after a gap: cross-fade from what the extension would have gone on with (silence when it has faded).
  void blendIn(int16_t* out, const int16_t* from, size_t count) {
    const size_t blend = std::min(count, ms(kBlendMs));
    for (size_t i = 0; i < blend; ++i) {
      const double weight = double(i + 1) / double(blend + 1);
      out[i] = int16_t(std::lrint(from[i] * weight + nextExtension() * (1 - weight)));
    }
    std::memcpy(out + blend, from + blend, (count - blend) * sizeof(int16_t));
    extension_left_ = 0;
  }

  // Takes up to give_back_ samples out of the front, where the waveform d samples on looks most like the one now.
  void shrink(size_t count) {
    const size_t blend = ms(kBlendMs), step = std::max<size_t>(1, rate_hz_ / 8000);
    const size_t most = std::min(give_back_, ms(10));
    if (most < ms(5) / 2 || depth() < count + most + blend) return;
    int16_t* now = buffer_.data() + head_;
    size_t best = most;
    double best_score = -1e30;
    for (size_t d = ms(5) / 2; d <= most; d += step) {
      double cross = 0, energy = 1;
      for (size_t i = 0; i < blend; i += step) {
        cross += double(now[i]) * now[d + i];
        energy += double(now[d + i]) * now[d + i];
      }
      const double score = cross / std::sqrt(energy);
      // a longer cut is preferred where the match is the same, as it is in silence
      if (score >= best_score) best_score = score, best = d;
    }
    for (size_t i = 0; i < blend; ++i) {
      const double weight = double(i + 1) / double(blend + 1);
      now[best + i] = int16_t(std::lrint(now[i] * (1 - weight) + now[best + i] * weight));
    }
    head_ += best;
    written_off_ += best;
    give_back_ -= best;
    ++stats_.trims;
    stats_.trimmed_samples += best;
  }

  unsigned rate_hz_ = 8000;
  size_t max_ = 0;
  std::vector<int16_t> buffer_;   // [head_, tail_) is what waits
  size_t head_ = 0, tail_ = 0;
  std::vector<int16_t> history_;  // the last samples that were heard
  std::vector<int16_t> template_; // one pitch period, repeated while concealing
  size_t template_length_ = 1, extension_length_ = 0, extension_left_ = 0, extension_hold_ = 0;
  bool playing_ = false;          // the last sample popped was a real one
  bool started_ = false;          // one was, ever
  size_t window_ = 0, least_spare_ = SIZE_MAX, give_back_ = 0;
  uint64_t pushed_ = 0, written_off_ = 0;
  Stats stats_;
};
