// SPDX-License-Identifier: GPL-3.0-or-later
#include "../frame_slot.hpp"

#include <functional>
#include <random>
#include <vector>

#include "../jitter_queue.hpp"
#include "check.hpp"

namespace {

constexpr unsigned kRateHz = 8000;
constexpr int kNever = -1;
using LateMs = std::function<double(int frame, double at_ms)>;  // kNever: it is lost
using Samples = std::vector<int16_t>;

double never(int, double) { return kNever; }
double inTime(int, double) { return 0; }

// A line whose packets come at the pace of another clock, and the clock's work on it: what has come is pushed, and a
// frame is handed on whenever the slot says so. All samples of a frame are its number, and one more.
struct Line {
  const int tick_ms, period_ms;
  const double ppm, phase_ms;
  const LateMs late_ms;
  const size_t frame_samples;
  FrameSlot slot;
  JitterQueue queue{kRateHz, 400};

  struct Handed {
    int64_t at_ms;
    int frame;         // kNever: at least a part of it is made up
    double delay_ms;   // since a packet that is not late would have come
  };
  std::vector<Handed> handed;
  int sent = 0;

  Line(int tick, int period, LateMs late = inTime, double phase = 0, double drift_ppm = 0)
      : tick_ms(tick),
        period_ms(period),
        ppm(drift_ppm),
        phase_ms(phase),
        late_ms(std::move(late)),
        frame_samples(kRateHz * size_t(period) / 1000),
        slot(tick * 1000000LL, period * 1000000LL) {
    queue.setWhole(true);
    queue.pop(nullptr, 0);
    schedule();
  }

  // Until this time.
  void run(double until_ms) {
    Samples samples(frame_samples);
    for (; double(now_ms_) <= until_ms; now_ms_ += tick_ms) {
      size_t came = 0;
      for (; due_ms_ <= double(now_ms_); schedule()) {
        for (; lost_ > 0; --lost_) came += loss();
        std::fill(samples.begin(), samples.end(), int16_t(1 + sent % 30000));
        queue.push(samples.data(), samples.size());
        bridged_ = 0;
        came += samples.size();
        ++sent;
      }
      slot.arrived(came);
      while (slot.takes(now_ms_ * 1000000LL, queue.depth(), frame_samples)) {
        const auto concealed = queue.stats().concealed_samples;
        const size_t real = queue.pop(samples.data(), samples.size());
        bridged_ += frame_samples - real;
        // but for the 4 ms in which it is faded in after a gap
        const bool pure = real == frame_samples && queue.stats().concealed_samples == concealed &&
                          samples[32] == samples.back() && samples.back() > 0;
        const double emitted_ms = double(queue.taken() + skipped_) * 1000 / kRateHz * (1 + ppm * 1e-6) - period_ms + phase_ms;
        handed.push_back({now_ms_, pure ? samples.back() - 1 : kNever, real == frame_samples ? double(now_ms_) - emitted_ms : 0});
      }
    }
  }

  double concealedShare(double from_ms) const {
    double all = 0, concealed = 0;
    for (const Handed& one : handed) {
      if (double(one.at_ms) < from_ms) continue;
      ++all;
      if (one.frame == kNever) ++concealed;
    }
    return all > 0 ? concealed / all : 1;
  }

  double mostDelay(double from_ms, double until_ms = 1e12) const {
    double most = -1;
    for (const Handed& one : handed) {
      if (double(one.at_ms) >= from_ms && double(one.at_ms) < until_ms) most = std::max(most, one.delay_ms);
    }
    return most;
  }

  // When a frame was handed on; kNever when it was not, or twice.
  int64_t handedAt(int frame) const {
    int64_t at = kNever;
    for (const Handed& one : handed) {
      if (one.frame != frame) continue;
      if (at != kNever) return kNever;
      at = one.at_ms;
    }
    return at;
  }

 private:
  // As PortQueues does: what was bridged already is not played a second time.
  size_t loss() {
    const size_t skipped = std::min(bridged_, frame_samples), rest = frame_samples - skipped;
    bridged_ -= skipped;
    skipped_ += skipped;
    queue.pushHole(rest);
    ++sent;
    return rest;
  }

  // When the next packet comes: in order, so that it waits for those before it.
  void schedule() {
    for (lost_ = 0;; ++lost_) {
      const double at_ms = phase_ms + next_ * double(period_ms) * (1 + ppm * 1e-6), late = late_ms(next_, at_ms);
      ++next_;
      if (late == kNever && lost_ < 100000) continue;
      due_ms_ = late == kNever ? 1e12 : std::max(due_ms_, at_ms + late);
      return;
    }
  }

  int64_t now_ms_ = 0;
  int next_ = 0, lost_ = 0;
  double due_ms_ = 0;
  size_t bridged_ = 0, skipped_ = 0;
};

void regularFramesAreHandedOnInTheTickOfTheirArrival() {
  for (int tick_ms : {5, 10}) {
    for (int period_ms : {10, 20, 30, 60}) {
      for (int phase_ms = 0; phase_ms < period_ms; phase_ms += tick_ms) {
        Line line(tick_ms, period_ms, inTime, phase_ms);
        line.run(20000);
        CHECK(line.handed.size() == size_t(line.sent));
        for (size_t i = 0; i < line.handed.size(); ++i) {
          CHECK(line.handed[i].frame == int(i) && line.handed[i].delay_ms == 0);
        }
        CHECK(line.slot.waitedTicks() == 0);
      }
    }
  }
}

void lateFrameIsWaitedForAndMovesTheSlot() {
  for (int late_ticks = 1; late_ticks <= 2; ++late_ticks) {
    Line line(5, 20, [=](int frame, double) { return frame >= 50 ? late_ticks * 5 : 0; });
    line.run(1900);
    for (int frame = 0; frame < line.sent; ++frame) CHECK(line.handedAt(frame) == frame * 20 + (frame >= 50 ? late_ticks * 5 : 0));
    CHECK(line.concealedShare(0) == 0);
  }
  // a single one is late: what follows is in step with it
  Line line(5, 20, [](int frame, double) { return frame == 50 ? 10 : 0; });
  line.run(1900);
  for (int frame = 0; frame < line.sent - 1; ++frame) CHECK(line.handedAt(frame) == frame * 20 + (frame >= 50 ? 10 : 0));
}

void frameThatIsTooLateIsMadeUpOnce() {
  for (int late_ms : {15, 20, 25, 35, 45, 55}) {
    Line line(5, 20, [=](int frame, double) { return frame == 50 ? late_ms : 0; });
    line.run(1900);
    int concealed = 0;
    for (size_t i = 0; i < line.handed.size(); ++i) {
      if (line.handed[i].frame != kNever) continue;
      ++concealed;
      CHECK(i >= 50);
      CHECK(line.handed[i].at_ms == 1000 + 20 * concealed - 10);  // two ticks after its turn
    }
    // from its turn plus two ticks on, one each period until it is there; it and all that follow are played
    CHECK(concealed == (late_ms + 5) / 20);
    for (int frame = 51; frame < line.sent - 4; ++frame) CHECK(line.handedAt(frame) != kNever);
    CHECK(line.mostDelay(0) <= late_ms + 20);
  }
}

void slotMovesUpToFramesThatHaveWaited() {
  // late once, then never again: a tick is kept for ten seconds
  for (int late_ticks = 1; late_ticks <= 2; ++late_ticks) {
    Line line(5, 20, [=](int frame, double) { return frame == 50 ? late_ticks * 5 : 0; });
    line.run(20000);
    CHECK(line.mostDelay(1000, 3000) == late_ticks * 5);
    CHECK(line.mostDelay(1020 + 2500, 1000 + 10000) == 5);
    CHECK(line.mostDelay(1000 + 12100) == 0);
    CHECK(line.concealedShare(0) == 0);
    CHECK(line.queue.stats().trims == 0);
  }
  // what is needed within two seconds is kept
  Line line(5, 20, [](int frame, double) { return frame % 90 == 50 ? 10 : 0; });
  line.run(60000);
  for (const auto& one : line.handed) CHECK(one.at_ms < 1000 || one.delay_ms == 10);
  CHECK(line.concealedShare(0) == 0);
}

void lostPacketsMoveNothing() {
  for (int period_ms : {10, 20, 30, 60}) {
    for (int in_a_row = 1; in_a_row <= 3; ++in_a_row) {
      Line line(5, period_ms, [=](int frame, double) { return frame % 25 >= 25 - in_a_row ? kNever : 0; }, 5);
      line.run(20000);
      CHECK(std::abs(int(line.handed.size()) - line.sent) <= 3);
      for (const auto& one : line.handed) CHECK(one.frame == kNever || one.delay_ms == 0);
      int heard = 0;
      for (const auto& one : line.handed) heard += one.frame != kNever;
      CHECK(heard == line.sent - line.sent / 25 * in_a_row);
    }
  }
}

void whoWasAwayIsTakenUpAtOnce() {
  // silent for two seconds, then in another phase
  for (int phase_ms = 0; phase_ms < 20; phase_ms += 5) {
    Line line(5, 20, [=](int frame, double) { return frame < 50 ? 0 : 2000 + phase_ms; });
    line.run(6000);
    CHECK(line.handedAt(50) == 3000 + phase_ms);
    for (int frame = 50; frame < line.sent; ++frame) CHECK(line.handedAt(frame) == line.handedAt(50) + (frame - 50) * 20);
  }
}

void stoppedSlotBeginsAnew() {
  Line line(5, 20, inTime);
  line.run(1000);
  line.slot.stop();
  CHECK(line.slot.isDue(0));  // so that what is lost just then holds nobody
  FrameSlot slot(5000000, 20000000);
  CHECK(slot.isDue(0));
  slot.arrived(100);
  CHECK(!slot.takes(0, 100, 160));  // there is no frame yet
  slot.arrived(60);
  CHECK(slot.takes(5000000, 160, 160));
  CHECK(!slot.isDue(5000000) && !slot.isDue(20000000) && slot.isDue(25000000));
  slot.stop();
  slot.arrived(160);
  CHECK(slot.takes(10000000, 160, 160));
}

void clocksOfDifferentSpeedLoseNothing() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr double kHours = 0.3;  // they are slow, and look for something else
#else
  constexpr double kHours = 4;
#endif
  for (int tick_ms : {5, 10}) {
    for (int period_ms : {10, 20, 30, 60}) {
      if (tick_ms == period_ms) continue;  // see the next test
      for (double ppm : {-200.0, -100.0, 100.0, 200.0}) {
        if (tick_ms == 10 && std::abs(ppm) == 200) continue;
        Line line(tick_ms, period_ms, inTime, 3.3, ppm);
        line.run(kHours * 3600e3);
        CHECK(line.handed.size() + 1 >= size_t(line.sent) && line.handed.size() <= size_t(line.sent));
        bool each_once = true;
        for (size_t i = 0; i < line.handed.size(); ++i) each_once = each_once && line.handed[i].frame == int(i) % 30000;
        CHECK(each_once);
        CHECK(line.mostDelay(0) <= tick_ms + 1);  // a tick's own and a step that has not come yet
        CHECK(line.queue.stats().underruns == 0 && line.queue.stats().trims == 0);
      }
    }
  }
}

void frameAsLongAsATickHasNoRoomToMove() {
  // every hundred seconds at 100 ppm a frame is made up, or cut out where it is not heard: nothing else can be
  for (int ms : {10, 20}) {
    for (double ppm : {-100.0, 100.0}) {
      Line line(ms, ms, inTime, 3.3, ppm);
      line.run(1000e3);
      CHECK(line.concealedShare(0) * double(line.handed.size()) <= 11);
      CHECK(line.mostDelay(0) <= 2 * ms + 1);
    }
  }
}

void framesShorterThanATickAndOddOnesAreCarried() {
  for (auto [tick_ms, period_ms] : {std::pair{20, 10}, {10, 5}, {20, 5}, {20, 30}, {10, 25}, {20, 50}, {5, 24}, {20, 60}}) {
    for (double ppm : {-100.0, 0.0, 100.0}) {
      Line line(tick_ms, period_ms, inTime, 3.3, ppm);
      line.run(60e3);
      const int together = 2 + tick_ms / period_ms;
      CHECK(std::abs(int(line.handed.size()) - line.sent) <= together);
      CHECK(line.concealedShare(5000) < 0.001);
      CHECK(line.mostDelay(5000) <= tick_ms + std::max(tick_ms, period_ms));
    }
  }
}

void jitterIsFollowedAndForgotten() {
  for (int tick_ms : {5, 10}) {
    for (int period_ms : {10, 20, 30, 60}) {
      for (int jitter_ms : {20, 40, 60, 100}) {
        for (unsigned seed : {1u, 2u, 3u}) {
          std::minstd_rand random(seed);
          std::uniform_real_distribution<double> late(0, jitter_ms);
          Line line(tick_ms, period_ms, [&](int, double at_ms) { return at_ms < 60000 ? late(random) : 0; }, 3.3, 50);
          line.run(75000);
          CHECK(line.concealedShare(5000) <= 0.01);
          CHECK(line.mostDelay(5000) <= jitter_ms + 40);
          // once it is over nothing of it is left but a tick's own
          CHECK(line.mostDelay(72500) <= 2 * tick_ms);
          CHECK(line.queue.stats().overflow_samples == 0);
        }
      }
    }
  }
}

void rareLatenessCostsNoLastingDelay() {
  // one packet in 500 is very late, and those behind it come with it
  std::minstd_rand random(4);
  Line line(5, 20, [&](int, double) { return random() % 500 == 0 ? 80 : 0; });
  line.run(300e3);
  CHECK(line.concealedShare(0) <= 0.02);
  double sum = 0;
  for (const auto& one : line.handed) sum += one.delay_ms;
  CHECK(sum / double(line.handed.size()) <= 40);
  CHECK(line.mostDelay(0) <= 120);
}

void burstsOfPacketsAreEvenedOut() {
  for (int period_ms : {10, 20, 30}) {
    // three at once
    Line line(5, period_ms, [=](int frame, double) { return (2 - frame % 3) * period_ms; });
    line.run(30e3);
    CHECK(line.concealedShare(1000) == 0);
    CHECK(line.mostDelay(1000) == 2 * period_ms);
    for (size_t i = 10; i < line.handed.size(); ++i) CHECK(line.handed[i].at_ms - line.handed[i - 1].at_ms == period_ms);
    CHECK(line.queue.stats().trims == 0);
  }
}

void lineWithLossAndJitterKeepsToBoth() {
  for (double loss : {0.01, 0.1, 0.2}) {
    std::minstd_rand random(5);
    std::uniform_real_distribution<double> late(0, 40), fate(0, 1);
    Line line(5, 20, [&](int, double) { return fate(random) < loss ? double(kNever) : late(random); }, 3.3, -100);
    line.run(120e3);
    CHECK(line.concealedShare(5000) <= loss * 1.35 + 0.01);
    CHECK(line.mostDelay(5000) <= 40 + (loss < 0.2 ? 40 : 60));
  }
}

void nothingComesEver() {
  Line line(5, 20, never);
  line.run(5000);
  CHECK(line.handed.empty());
}

}  // namespace

int main() {
  regularFramesAreHandedOnInTheTickOfTheirArrival();
  lateFrameIsWaitedForAndMovesTheSlot();
  frameThatIsTooLateIsMadeUpOnce();
  slotMovesUpToFramesThatHaveWaited();
  lostPacketsMoveNothing();
  whoWasAwayIsTakenUpAtOnce();
  stoppedSlotBeginsAnew();
  clocksOfDifferentSpeedLoseNothing();
  frameAsLongAsATickHasNoRoomToMove();
  framesShorterThanATickAndOddOnesAreCarried();
  jitterIsFollowedAndForgotten();
  rareLatenessCostsNoLastingDelay();
  burstsOfPacketsAreEvenedOut();
  lineWithLossAndJitterKeepsToBoth();
  nothingComesEver();
  return checkResult();
}
