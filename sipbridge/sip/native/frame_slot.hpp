// SPDX-License-Identifier: GPL-3.0-or-later
// When the whole frames of a leg are handed on: as soon as they come, in step with whoever sends them.
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

// A frame is due once in a period. It follows the arrivals by moving in time, a tick at a time, with no sample changed:
// a frame that comes after its turn is waited for (two ticks) and moves the slot to where it came; when all frames of
// two seconds have waited, the slot moves up to them. A line that was late within the last ten seconds keeps a tick of
// spare. Whoever was away for a while is taken up with the first frame that comes. What is later than a slot can move waits in the queue, which then holds frames and not ticks.
//
// So two clocks of different speed cost a step of one tick now and then, and neither a gap nor delay.
//
// Times in ns of the clock's ticks. Used by one thread.
class FrameSlot {
 public:
  FrameSlot(int64_t tick_ns, int64_t period_ns)
      : tick_ns_(tick_ns), period_ns_(period_ns), longest_wait_ns_(std::min(kMaxWaitTicks * tick_ns, period_ns - tick_ns)) {
    forget();
  }

  // The next frame that is whole begins it anew.
  void stop() { running_ = false; }

  // A frame would be taken now, were it there. So it is too before the first one: what is lost then is not waited for.
  bool isDue(int64_t now_ns) const { return !running_ || now_ns >= due_ns_; }

  // Whether takes() may be true.
  bool mayTake(int64_t now_ns) const { return isDue(now_ns) || missed_ > 0; }

  // Once a tick, after its arrivals, of which there were so many samples.
  void arrived(size_t came) {
    newest_ = (newest_ + came_.size() - 1) % came_.size();
    came_[newest_] = came;
  }

  // Whether a frame is to be taken, be it there or to be made up; asked again after each one, since a tick may be longer
  // than a frame. Samples: `depth` wait in all, `frame` make a frame.
  bool takes(int64_t now_ns, size_t depth, size_t frame) {
    const bool back = depth >= frame && int64_t(missed_) * period_ns_ >= kAwayNs;
    if (!running_ || back) {
      if (depth < frame) return false;
      running_ = true;
      due_ns_ = now_ns;
      late_ns_ = now_ns - kCalmNs;
      missed_ = 0;
      forget();
    }
    if (now_ns < due_ns_) return false;
    waited_ticks_ = 0;
    if (depth < frame) {
      if (now_ns - due_ns_ < longest_wait_ns_) return false;
      due_ns_ += period_ns_;
      ++missed_;
      forget();
      return true;
    }
    if (now_ns - due_ns_ >= tick_ns_) {  // less is but a slot between two ticks
      late_ns_ = due_ns_ = now_ns;
      forget();
    }
    due_ns_ += period_ns_;
    waited_ticks_ = spareTicks(depth, frame);
    if (missed_ > 0 && waited_ticks_ > 0) late_ns_ = now_ns;  // it was late, and not lost
    missed_ = 0;
    watch(now_ns, depth - frame, frame);
    return true;
  }

  // Of the frame taken last: how long it was there before.
  int waitedTicks() const { return waited_ticks_; }

 private:
  static constexpr int kMaxWaitTicks = 2;
  static constexpr int64_t kPartNs = 500'000'000;  // of the window, which slides by one
  static constexpr size_t kParts = 4;
  static constexpr int64_t kCalmNs = 10'000'000'000;
  static constexpr int64_t kAwayNs = 200'000'000;

  // For how many ticks all that the frame needs has been there.
  int spareTicks(size_t depth, size_t frame) const {
    for (size_t ticks = 0; ticks < came_.size(); ++ticks) {
      const size_t came = came_[(newest_ + ticks) % came_.size()];
      if (depth < frame + came) return int(ticks);
      depth -= came;
    }
    return int(came_.size());
  }

  void forget() {
    least_ticks_.fill(int(came_.size()));
    least_left_.fill(SIZE_MAX);
    part_ = parts_ = 0;
    part_ns_ = 0;
  }

  void watch(int64_t now_ns, size_t left, size_t frame) {
    least_ticks_[part_] = std::min(least_ticks_[part_], waited_ticks_);
    least_left_[part_] = std::min(least_left_[part_], left);
    part_ns_ += period_ns_;
    if (part_ns_ < kPartNs) return;
    part_ns_ = 0;
    part_ = (part_ + 1) % kParts;
    parts_ = std::min(parts_ + 1, kParts);
    if (parts_ == kParts) {
      const int kept = now_ns - late_ns_ < kCalmNs ? 1 : 0;
      const int least = std::min(*std::min_element(least_ticks_.begin(), least_ticks_.end()), int(period_ns_ / tick_ns_) - 1);
      // a whole frame too much is for the queue to give back
      if (least > kept && *std::min_element(least_left_.begin(), least_left_.end()) < frame) {
        due_ns_ -= (least - kept) * tick_ns_;
        forget();
        return;
      }
    }
    least_ticks_[part_] = int(came_.size());
    least_left_[part_] = SIZE_MAX;
  }

  const int64_t tick_ns_, period_ns_, longest_wait_ns_;
  bool running_ = false;
  int missed_ = 0;  // frames in a row that were not there
  int64_t due_ns_ = 0, late_ns_ = 0, part_ns_ = 0;
  int waited_ticks_ = 0;
  std::array<size_t, 12> came_{};  // in this tick and those before it, from newest_ on, around the end
  size_t newest_ = 0;
  std::array<int, kParts> least_ticks_;
  std::array<size_t, kParts> least_left_;
  size_t part_ = 0, parts_ = 0;
};
