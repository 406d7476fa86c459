// SPDX-License-Identifier: GPL-3.0-or-later
// A queue of samples between two clocks: it holds as little as the arrivals allow, conceals what is late and gives
// back what is too much, without a click.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fractional_delay.hpp"

struct JitterStats {
  unsigned long long underruns = 0;          // times it ran dry while playing
  unsigned long long concealed_samples = 0;  // made up to bridge them
  unsigned long long trims = 0;              // times depth was given back
  unsigned long long trimmed_samples = 0;
  unsigned long long overflow_samples = 0;   // the oldest, dropped because more came than may wait
};

// How the depth follows the arrivals: it starts with what the first push brings. A pop that finds too little conceals
// the rest, and since what comes late is still played, the depth has then grown by exactly the lateness. The least
// spare seen over a window of two seconds is depth that no arrival needed. Much of it is taken out again where the
// waveform repeats itself or is silent, the two sides of the cut laid over each other (WSOLA; Verhelst and Roelands
// 1993). A little of it, as gathers or is used up when the two sides' clocks differ, is followed by reading 0.2 % faster
// or slower for a while. A queue that was ever dry keeps a little spare, so that the next tick's worth of lateness or of
// drift finds it there.
//
// With whole frames (setWhole) the time of a pop follows the arrivals instead, and all spare is given back by cuts.
//
// Wherever what is heard next is not what was to follow (a cut, the end of a gap), it is faded over from the one to the
// other. While arrivals are regular what comes out is what went in, bit by bit.
//
// Units: samples of one rate, int16, mono. No lock, and no allocation after configure(); the owner guards it.
class JitterQueue {
 public:
  JitterQueue(unsigned rate_hz, unsigned max_ms) { configure(rate_hz, max_ms); }

  // Starts anew at a rate: what waits is written off. The counts go on, in samples of the new rate.
  void configure(unsigned rate_hz, unsigned max_ms) {
    written_off_ += depth();
    if (rate_hz_ > 0) {
      for (auto* count : {&stats_.concealed_samples, &stats_.trimmed_samples, &stats_.overflow_samples}) {
        *count = *count * rate_hz / rate_hz_;
      }
    }
    rate_hz_ = rate_hz;
    max_ = ms(std::max(max_ms, kBlendMs));
    buffer_.assign(2 * max_ + FractionalDelay::kBehind, 0);
    history_.assign(ms(kHistoryMs), 0);
    extension_.assign(ms(kFadeMs), 0);
    before_.assign(ms(kBlendMs), 0);
    silence_.assign(ms(20), 0);
    hole_count_ = 0;
    head_ = tail_ = news_ = held_ = 0;
    extension_at_ = extension_end_ = join_at_ = join_end_ = 0;
    playing_ = started_ = popped_ = keeps_spare_ = false;
    fresh_ = true;
    resetWindow();
  }

  // Pops are whole frames that somebody times by their arrival (FrameSlot): spare of any length is too much.
  void setWhole(bool whole) {
    if (whole == whole_) return;
    whole_ = whole;
    const double place = place_;
    resetWindow();
    place_ = place;
    endGlide();
  }

  unsigned rateHz() const { return rate_hz_; }
  size_t depth() const { return tail_ - head_; }
  bool playing() const { return playing_; }  // the last sample popped was a real one
  const JitterStats& stats() const { return stats_; }

  // Positions in the stream of all samples pushed. taken() is pushed() less depth(): what was popped, trimmed, dropped
  // or cleared. A mark set at pushed() is passed once taken() has reached it.
  unsigned long long pushed() const { return pushed_; }
  unsigned long long taken() const { return played_ + written_off_; }

  void push(const int16_t* samples, size_t count) {
    news_ = std::min(popped_ ? news_ + count : count, max_);
    while (count > 0) {
      const size_t piece = std::min(count, max_);
      if (tail_ + piece > buffer_.size()) {
        const size_t gone = head_ - std::min(head_, size_t(FractionalDelay::kBehind));
        std::memmove(buffer_.data(), buffer_.data() + gone, (tail_ - gone) * sizeof(int16_t));
        tail_ -= gone;
        head_ -= gone;
      }
      std::memcpy(buffer_.data() + tail_, samples, piece * sizeof(int16_t));
      tail_ += piece;
      pushed_ += piece;
      if (depth() > max_) {
        stats_.overflow_samples += depth() - max_;
        cut(depth() - max_);
      }
      samples += piece;
      count -= piece;
    }
  }

  // In the place of samples that will never come; made up when it is popped, from what was heard before.
  void pushHole(size_t count) {
    if (count == 0) return;
    inHole();  // forgets those that are over
    if (hole_count_ > 0 && holes_[hole_count_ - 1].end == pushed_) {
      holes_[hole_count_ - 1].end += count;
    } else if (hole_count_ < holes_.size()) {
      holes_[hole_count_++] = {pushed_, pushed_ + count};
    }
    for (size_t left = count; left > 0;) {
      const size_t piece = std::min(left, silence_.size());
      push(silence_.data(), piece);
      left -= piece;
    }
  }

  // Fills all of out; returns how many of its samples were real ones (the others are concealment or silence).
  size_t pop(int16_t* out, size_t count) {
    popped_ = true;
    if (give_back_ > 0 && hole_count_ == 0) shrink(count);
    size_t real = std::min(count, depth());
    if (!playing_ && !inHole() && real < count && depth() != held_) {
      // it begins again with a whole pop, not to stutter; or with what there is when no more came since the last pop
      held_ = depth();
      real = 0;
    }
    if (real > 0 && fresh_) dropOld(count);
    for (size_t at = 0; at < real;) at += inHole() ? popHole(out + at, real - at) : popSamples(out + at, real - at, count);
    if (real < count) {
      if (playing_) {
        ++stats_.underruns;
        keeps_spare_ = true;
        conceal();
      }
      extend(out + real, count - real);
      resetWindow();
    } else {
      watchSpare(count);
    }
    news_ = 0;
    return real;
  }

  // Empties it; what was being heard fades within 4 ms instead of stopping in mid-wave.
  void clear() {
    const size_t fade = ms(kClearFadeMs);
    if (playing_ && depth() >= fade) {
      for (size_t i = 0; i < fade; ++i) extension_[i] = joinedAt(i);
      extension_at_ = 0;
      extension_end_ = fade;
    } else if (playing_) {
      extendHistory(fade, fade);
    }
    const size_t left = std::min(fade, extension_end_ - extension_at_);
    for (size_t i = 0; i < left; ++i) {
      int16_t& sample = extension_[extension_at_ + i];
      sample = int16_t(std::lrint(sample * double(left - 1 - i) / double(left)));
    }
    extension_end_ = extension_at_ + left;
    written_off_ += depth();
    head_ = tail_ = held_ = 0;
    hole_count_ = 0;
    join_at_ = join_end_ = 0;
    playing_ = concealing_ = false;
    resetWindow();
  }

  // Somebody begins to push after a pause. The depth is found anew: it is what the latest pushes have brought by the
  // time that there is enough for a pop.
  void pushingBegins() { fresh_ = true; }

  // Somebody begins to pop after a pause: the same, and of what has gathered until then only the last push counts.
  void poppingBegins() {
    fresh_ = true;
    popped_ = playing_ = concealing_ = false;
    extension_at_ = extension_end_ = 0;
    resetWindow();
  }

 private:
  static constexpr unsigned kHistoryMs = 30;   // what a pitch period is looked for in
  // These three by PESQ of speech at 5 to 20 % of loss: short, since the pitch moves, and a wrong guess is better soft.
  static constexpr unsigned kPitchSpanMs = 4;  // how much of its end has to repeat,
  static constexpr unsigned kPitchMs = 15;     // after so much at most
  static constexpr unsigned kHoldMs = 5;       // the extension keeps its level this long,
  static constexpr unsigned kFadeMs = 50;      // then fades to nothing by here
  static constexpr unsigned kClearFadeMs = 4;
  static constexpr unsigned kBlendMs = 4;      // in which one thing goes over to another
  static constexpr size_t kParts = 4;          // of the window of two seconds, which slides by one
  static constexpr unsigned kPartMs = 500;
  static constexpr unsigned kWorthMs = 12;     // more spare than this is too much,
  static constexpr unsigned kLowMs = 6;        // less than this too little for a queue that keeps some,
  static constexpr unsigned kReserveMs = 7;    // and this much of it stays
  static constexpr unsigned kGlideMs = 10;     // up to so much is given back by reading faster, more by cuts
  static constexpr double kGlide = 0.002;      // how much faster
  static constexpr unsigned kLongestCutMs = 10;
  static constexpr unsigned kPatienceMs = 500;  // how long a good place for a cut is waited for
  static constexpr double kAlike = 0.9;         // what makes one, as a correlation
  static constexpr double kQuiet = 30;          // RMS of what counts as silence: -60 dBFS

  size_t ms(unsigned milliseconds) const { return size_t(rate_hz_) * milliseconds / 1000; }
  // Searches look at one sample in so many: speech is alike or not by what lies below 4 kHz.
  size_t step() const { return std::max<size_t>(1, rate_hz_ / 8000); }
  size_t shortestShift() const { return ms(5) / 2; }

  // --- depth

  void resetWindow() {
    watchAnew();
    give_back_ = 0;
    owed_ = place_ = 0;
  }

  void watchAnew() {
    least_spare_.fill(SIZE_MAX);
    parts_seen_ = part_ = part_samples_ = 0;
  }

  void watchSpare(size_t count) {
    const size_t spare = depth(), reserve = whole_ ? 0 : ms(kReserveMs);
    if (give_back_ > 0) {
      give_back_ = std::min(give_back_, spare > reserve ? spare - reserve : 0);
      patience_ -= std::min(patience_, count);
    }
    least_spare_[part_] = std::min(least_spare_[part_], spare);
    part_samples_ += count;
    if (part_samples_ < ms(kPartMs)) return;
    part_samples_ = 0;
    const size_t least = *std::min_element(least_spare_.begin(), least_spare_.end());
    part_ = (part_ + 1) % kParts;
    least_spare_[part_] = SIZE_MAX;
    parts_seen_ = std::min(parts_seen_ + 1, kParts);
    if (give_back_ == 0 && owed_ <= 0) decide(least, reserve);
  }

  void decide(size_t least, size_t reserve) {
    if (parts_seen_ == kParts && least >= (whole_ ? shortestShift() : ms(kWorthMs))) {
      keeps_spare_ = true;
      const size_t excess = least - reserve;
      if (!whole_ && excess <= ms(kGlideMs)) {
        owed_ = double(excess) - place_;
      } else {
        give_back_ = excess;
        patience_ = ms(kPatienceMs);
        endGlide();
      }
    } else if (!whole_ && keeps_spare_ && owed_ == 0 && least < ms(kLowMs)) {
      owed_ = -double(reserve - least);  // too little is seen at once, too much only after the whole window
    }
  }

  // --- what is popped

  bool inHole() {
    while (hole_count_ > 0 && holes_[0].end <= taken()) {
      std::copy(holes_.begin() + 1, holes_.begin() + std::ptrdiff_t(hole_count_), holes_.begin());
      --hole_count_;
    }
    return hole_count_ > 0 && holes_[0].start <= taken();
  }

  size_t popHole(int16_t* out, size_t count) {
    const size_t made = std::min(count, size_t(holes_[0].end - taken()));
    if (playing_) conceal();
    extend(out, made);
    head_ += made;
    played_ += made;
    return made;
  }

  // Up to the next hole. `whole`: what the pop is for.
  size_t popSamples(int16_t* out, size_t count, size_t whole) {
    if (hole_count_ > 0) count = std::min(count, size_t(holes_[0].start - taken()));
    if (!playing_) resume();
    const size_t used = glides(count, whole) ? glide(out, count) : copy(out, count);
    join_at_ += std::min(used, join_end_ - join_at_);
    head_ += used;
    played_ += used;
    remember(out, count);
    return count;
  }

  // What was heard goes on, made up.
  void conceal() {
    extendHistory(ms(kFadeMs), ms(kHoldMs));
    playing_ = false;
    concealing_ = true;
    place_ = 0;
  }

  // --- reading faster and slower

  // At a plain place with nothing owed it is a copy.
  bool glides(size_t real, size_t count) const { return (owed_ != 0 || place_ != 0) && real == count; }

  // At the next whole sample, so that no fraction of one is jumped over.
  void endGlide() { owed_ = place_ > 0 ? 1 - place_ : 0; }

  // Both return how many samples of the queue were used up.
  size_t copy(int16_t* out, size_t count) {
    std::memcpy(out, buffer_.data() + head_, count * sizeof(int16_t));
    const size_t joined = std::min(count, join_end_ - join_at_);
    for (size_t i = 0; i < joined; ++i) out[i] = joinedAt(i);
    return count;
  }

  // What waits, and before it what was heard; where nothing waits any more, the last sample again.
  void lookAhead(std::vector<float>& samples, size_t count) const {
    const size_t behind = FractionalDelay::kBehind, waiting = std::min(depth(), count - behind);
    samples.resize(count);
    const size_t known = std::min(head_, behind);
    const int16_t* from = buffer_.data() + (head_ - known);
    std::fill_n(samples.begin(), behind - known, float(from[0]));
    std::copy_n(from, known + waiting, samples.begin() + std::ptrdiff_t(behind - known));
    const size_t joined = std::min(waiting, join_end_ - join_at_);
    for (size_t i = 0; i < joined; ++i) samples[behind + i] = joinedAt(i);
    std::fill(samples.begin() + std::ptrdiff_t(behind + waiting), samples.end(), samples[behind + waiting - 1]);
  }

  size_t glide(int16_t* out, size_t count) {
    static thread_local std::vector<float> ahead;  // from kBehind samples before the next one
    lookAhead(ahead, FractionalDelay::kTaps + size_t(double(count) * (1 + kGlide)) + 1);
    double place = place_;
    for (size_t i = 0; i < count; ++i) {
      const auto first = size_t(place);
      const float value = FractionalDelay::read(place - double(first), ahead.data() + first);
      out[i] = int16_t(std::lrintf(std::clamp(value, -32768.0f, 32767.0f)));
      const double step = std::copysign(std::min(kGlide, std::abs(owed_)), owed_);
      owed_ -= step;
      place += 1 + step;
    }
    if (owed_ == 0) {
      place = std::round(place);  // all that was owed is whole samples
      watchAnew();                // what was spare in mid-glide says nothing about now
    }
    const size_t used = std::min(size_t(place), depth());
    place_ = place - double(used);
    return used;
  }

  // Takes up to give_back_ samples out of the front, by a shift after which the waveform goes on as it would have.
  void shrink(size_t count) {
    if (give_back_ < shortestShift()) {
      give_back_ = 0;
      return;
    }
    const size_t blend = ms(kBlendMs), most = std::min(give_back_, ms(kLongestCutMs));
    if (depth() < std::max(count, blend) + most) return;
    const int16_t* now = buffer_.data() + head_;
    double likeness = 0;
    const size_t shift = bestShift(most, likeness, [&](size_t d, size_t step) { return similarity(now, now + d, blend, step); });
    if (likeness < kAlike && patience_ > 0) return;
    cut(shift);
    give_back_ -= shift;
    ++stats_.trims;
    stats_.trimmed_samples += shift;
  }

  void dropOld(size_t count) {
    fresh_ = false;
    const size_t kept = std::max(count, news_);
    if (depth() > kept) cut(depth() - kept);
  }

  // Drops the first samples that wait; what follows them is faded over to from what would have been heard.
  void cut(size_t count) {
    // at a second cut before anything was heard, what would have been is what it was before the first
    if (playing_ && (join_at_ > 0 || join_end_ == 0)) {
      const size_t length = std::min(ms(kBlendMs), depth());
      for (size_t i = 0; i < length; ++i) before_[i] = joinedAt(i);
      join_at_ = 0;
      join_end_ = length;
    }
    head_ += count;
    written_off_ += count;
  }

  // --- what is heard where something is missing

  // The i-th of the samples that wait, as it will be heard.
  int16_t joinedAt(size_t i) const {
    const int16_t sample = buffer_[head_ + i];
    const size_t at = join_at_ + i;
    if (at >= join_end_) return sample;
    const double weight = double(at + 1) / double(join_end_ + 1);
    return int16_t(std::lrint(before_[at] * (1 - weight) + sample * weight));
  }

  // Audio goes on after a gap: faded over to from what the extension would have gone on with, silence when it is over.
  void resume() {
    playing_ = true;
    concealing_ = false;
    held_ = 0;
    join_at_ = join_end_ = 0;
    if (started_) {
      join_end_ = before_.size();
      nextExtension(before_.data(), before_.size());
    }
    started_ = true;
    extension_at_ = extension_end_ = 0;
  }

  size_t nextExtension(int16_t* out, size_t count) {
    const size_t made = std::min(count, extension_end_ - extension_at_);
    std::memcpy(out, extension_.data() + extension_at_, made * sizeof(int16_t));
    std::memset(out + made, 0, (count - made) * sizeof(int16_t));
    extension_at_ += made;
    return made;
  }

  void extend(int16_t* out, size_t count) {
    const size_t made = nextExtension(out, count);
    if (concealing_) stats_.concealed_samples += made;
    if (started_) remember(out, count);
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

  // Makes what follows the history: its last pitch period over and over, level for `hold` samples, then fading.
  void extendHistory(size_t length, size_t hold) {
    const int16_t* end = history_.data() + history_.size();
    const int16_t* last = end - ms(kPitchSpanMs);
    double likeness = 0;
    const size_t lag = bestShift(ms(kPitchMs), likeness, [&](size_t d, size_t step) { return similarity(last, last - d, ms(kPitchSpanMs), step); });
    const int16_t* period = end - lag;
    const size_t blend = std::min(ms(kBlendMs), lag);
    // The loop's end goes over to what came before its start, and its start takes up the last sample heard.
    const double offset = end[-1] - period[-1];
    double loudest = 0;
    for (const int16_t* sample = period; sample < end; ++sample) loudest = std::max(loudest, std::abs(double(*sample)));
    for (size_t i = 0; i < length; ++i) {
      const size_t at = i % lag;
      double sample = period[at];
      if (at + blend >= lag) {
        const double weight = double(at + blend - lag + 1) / double(blend + 1);
        sample += (*(period + at - lag) - sample) * weight;
      }
      if (i < blend) sample += offset * double(blend - i) / double(blend + 1);
      if (i >= hold) sample *= double(length - 1 - i) / double(length - hold);
      extension_[i] = int16_t(std::lrint(std::clamp(sample, -loudest, std::min(loudest, 32767.0))));
    }
    extension_at_ = 0;
    extension_end_ = length;
  }

  // Normalised correlation of two stretches, -1 to 1. Where both are silent any shift is good.
  static double similarity(const int16_t* a, const int16_t* b, size_t length, size_t step) {
    int64_t cross = 0, energy_a = 0, energy_b = 0;
    for (size_t i = 0; i < length; i += step) {
      cross += a[i] * b[i];
      energy_a += a[i] * a[i];
      energy_b += b[i] * b[i];
    }
    const double quiet = kQuiet * kQuiet * double(length / step);
    if (double(energy_a) < quiet && double(energy_b) < quiet) return 1;
    return double(cross) / std::sqrt(std::max(1.0, double(energy_a) * double(energy_b)));
  }

  // The shift of 2.5 ms to `most` that scores best, and its score: first in coarse steps, then to the sample.
  template <typename Score>
  size_t bestShift(size_t most, double& best_score, Score score) const {
    size_t best = most;
    best_score = -2;
    const auto consider = [&](size_t shift, size_t step) {
      const double found = score(shift, step);
      if (found > best_score) best_score = found, best = shift;
    };
    // from the longest: of shifts that are equally good (silence) it is the one that gives back most
    for (size_t shift = most; shift >= shortestShift(); shift -= step()) consider(shift, step());
    if (step() == 1) return best;
    const size_t coarse = best;
    best_score = -2;
    for (size_t shift = std::min(most, coarse + step() - 1); shift + step() > coarse && shift >= shortestShift(); --shift) {
      consider(shift, 1);
    }
    return best;
  }

  unsigned rate_hz_ = 0;
  size_t max_ = 0;
  std::vector<int16_t> buffer_;     // [head_, tail_) is what waits
  size_t head_ = 0, tail_ = 0;
  size_t news_ = 0;                 // came since the last pop; before the first one: with the last push
  size_t held_ = 0;                 // waited at the last pop, and was too little to begin with
  std::vector<int16_t> history_;    // the last samples that were heard
  std::vector<int16_t> extension_;  // what is heard when nothing waits
  size_t extension_at_ = 0, extension_end_ = 0;
  struct Hole {
    unsigned long long start, end;  // as taken()
  };
  std::array<Hole, 32> holes_{};    // in order; that which a cut or an overflow took is passed over
  size_t hole_count_ = 0;
  std::vector<int16_t> silence_;
  std::vector<int16_t> before_;     // what a join fades over from
  size_t join_at_ = 0, join_end_ = 0;
  bool playing_ = false;
  bool started_ = false;            // a real sample was popped, ever
  bool popped_ = false;             // somebody pops
  bool fresh_ = true;               // no real sample was popped since somebody began to push or to pop
  bool concealing_ = false;         // the extension stands for what is late, not for what was cleared
  bool whole_ = false;
  bool keeps_spare_ = false;        // it was dry, or had too much: its arrivals are not regular
  double place_ = 0;                // between the sample at head_ and the next one
  double owed_ = 0;                 // samples to be read beyond those that are popped; negative: not to be read
  std::array<size_t, kParts> least_spare_;
  size_t parts_seen_ = 0, part_ = 0, part_samples_ = 0, give_back_ = 0, patience_ = 0;
  unsigned long long pushed_ = 0, played_ = 0, written_off_ = 0;
  JitterStats stats_;
};
