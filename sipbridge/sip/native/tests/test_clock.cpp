// SPDX-License-Identifier: GPL-3.0-or-later
// sources: clock.cpp
#include "../clock.hpp"

#include <algorithm>
#include <chrono>
#include <climits>
#include <map>
#include <random>
#include <set>

#include "check.hpp"

namespace {

constexpr unsigned kTickMs = 5;
constexpr int kFrame = 160;  // 20 ms at 8 kHz
constexpr int kFrameTicks = 4;
using Samples = std::vector<int16_t>;
using SteadyTime = std::chrono::steady_clock;

// Runs something once a tick. The clock serves its streams in the order in which they were attached: as the first it
// counts the ticks for the others, as the last it does the media thread's work at its best.
class EachTick : public LegStream {
 public:
  explicit EachTick(std::function<void()> work) : work_(std::move(work)) {}
  unsigned rateHz() const override { return 8000; }
  size_t frameSamples() const override { return kFrame; }
  Head head() override {
    work_();
    return Head::kEmpty;
  }
  bool get(int16_t*) override { return false; }
  bool conceals() const override { return true; }
  void put(const int16_t*) override {}

 private:
  std::function<void()> work_;
};

// A telephone whose packets arrive in the ticks that the test names. A sample is 1000 + its place, so that what is heard
// tells how long it took; made up for a lost packet: -1000.
class Telephone : public LegStream {
 public:
  explicit Telephone(const int& tick, int frame_samples = kFrame) : tick_(tick), frame_samples_(frame_samples) {}

  unsigned rateHz() const override { return 8000; }
  size_t frameSamples() const override { return size_t(frame_samples_); }

  Head head() override {
    touch();
    for (; !arrivals_.empty() && arrivals_.begin()->first <= tick_; arrivals_.erase(arrivals_.begin())) {
      if (arrivals_.begin()->second >= next_) arrived_.insert(arrivals_.begin()->second);
    }
    if (arrived_.empty()) return Head::kEmpty;
    return *arrived_.begin() == next_ ? Head::kFrame : Head::kLost;
  }

  bool get(int16_t* samples) override {
    touch();
    const bool lost = arrived_.erase(next_) == 0;
    for (int i = 0; i < frame_samples_; ++i) samples[i] = int16_t(lost ? -1000 : 1000 + (next_ * frame_samples_ + i) % 30000);
    ++next_;
    return true;
  }

  bool conceals() const override { return true; }

  void put(const int16_t* samples) override {
    touch();
    sent_ticks.push_back(tick_);
    sent.insert(sent.end(), samples, samples + frame_samples_);
  }

  void arrives(int packet, int tick) { arrivals_.emplace(tick, packet); }
  void arriveInTime(int first, int last, int phase) {
    for (int packet = first; packet < last; ++packet) arrives(packet, packet * kFrameTicks + phase);
  }

  void detached() { detached_ = true; }

  std::vector<int> sent_ticks;
  Samples sent;
  std::atomic<int> touched_after_detach{0};

 private:
  void touch() {
    if (detached_) ++touched_after_detach;
  }

  const int& tick_;
  const int frame_samples_;
  std::multimap<int, int> arrivals_;  // tick, packet
  std::set<int> arrived_;
  int next_ = 0;
  std::atomic<bool> detached_{false};
};

PortUse inPieces() {
  PortUse use;
  use.read = use.written = true;
  return use;
}

// A clock with telephones, and the media thread's work done on the clock's own thread: each hears itself.
struct World {
  Clock clock{kTickMs};
  int tick = -1;
  struct Leg {
    std::shared_ptr<Telephone> telephone;
    std::shared_ptr<PortQueues> port;
    Samples heard;
    bool in_pieces = true;
  };
  std::vector<std::unique_ptr<Leg>> legs;
  std::function<bool()> media_runs = [] { return true; };
  bool works = false;
  int undone_ticks = 0;  // of the media thread, done as soon as it runs

  World() {
    clock.attach(std::make_shared<EachTick>([this] { ++tick; }), std::make_shared<PortQueues>(8000, 200));
    clock.done(ULLONG_MAX);  // nobody is to be waited for
  }

  // One whose whole frames go to another leg, and with the other way round.
  Leg& addLinked(Leg* other = nullptr, int frame_samples = kFrame) {
    Leg& leg = add(frame_samples);
    link(leg, other ? *other : leg);
    if (other) link(*other, leg);
    return leg;
  }

  static void link(Leg& from, Leg& to) {
    PortUse use;
    use.whole = use.heard = true;
    use.listener = to.port;
    from.port->use(use);
    from.in_pieces = false;
  }

  Leg& add(int frame_samples = kFrame) {
    auto leg = std::make_unique<Leg>();
    leg->telephone = std::make_shared<Telephone>(tick, frame_samples);
    leg->port = std::make_shared<PortQueues>(8000, 200);
    leg->port->use(inPieces());
    clock.attach(leg->telephone, leg->port);
    legs.push_back(std::move(leg));
    return *legs.back();
  }

  void work() {
    ++undone_ticks;
    if (!media_runs()) return;
    for (; undone_ticks > 0; --undone_ticks) {
      for (auto& leg : legs) {
        if (!leg->in_pieces) continue;
        Samples samples(8 * kTickMs);
        CHECK(leg->port->read(samples.data(), samples.size(), 8000));
        leg->heard.insert(leg->heard.end(), samples.begin(), samples.end());
        leg->port->write(samples.data(), samples.size(), 8000);
      }
    }
  }

  void run(int count) {
    if (!works) clock.attach(std::make_shared<EachTick>([this] { work(); }), std::make_shared<PortQueues>(8000, 200));
    works = true;
    while (tick < count - 1) clock.tick();
  }
};

// The place of the first real sample at or after `from`, and how far it is from where it was sent: the delay.
int delayAt(const Samples& heard, size_t from) {
  for (size_t i = from; i < heard.size(); ++i) {
    if (heard[i] >= 1000) return int(i) - (heard[i] - 1000);
  }
  return -1;
}

// Whether all from `from` on is as it was sent, `delay` samples ago.
bool isPure(const Samples& heard, size_t from, int delay) {
  for (size_t i = from; i < heard.size(); ++i) {
    if (heard[i] != 1000 + int(i) - delay) return false;
  }
  return from < heard.size();
}

void framesOfEveryPhaseAreCarried() {
  World world;
  for (int i = 0; i < 32; ++i) world.add().telephone->arriveInTime(0, 30, i % kFrameTicks);
  world.run(100);
  for (int i = 0; i < 32; ++i) {
    const auto& leg = *world.legs[size_t(i)];
    const PortStats stats = leg.port->stats();
    CHECK(stats.capture_underruns == 0);
    CHECK(stats.playback_underruns == 0);
    CHECK(stats.concealed_frames == 0);
    // heard in the tick in which it comes
    CHECK(isPure(leg.heard, size_t(i % kFrameTicks) * 40, i % kFrameTicks * 40));
    // and sent back as soon as 20 ms are together and the slot is there
    const int delay = delayAt(leg.telephone->sent, 0);
    const int first_sent = leg.telephone->sent_ticks.front();
    const int in_the_air = delay + first_sent * 40 - i % kFrameTicks * 40;
    CHECK(in_the_air >= kFrame - 40 && in_the_air <= 2 * kFrame);
    CHECK(isPure(leg.telephone->sent, size_t(3 * kFrame), delay));
  }
}

void slotsAreSpread() {
  World world;
  for (int i = 0; i < 40; ++i) world.add();
  // one that has left makes room in its slot
  for (size_t i : {0, 8, 20, 28}) {
    world.clock.detach(world.legs[i]->telephone.get());
    world.legs[i] = std::make_unique<World::Leg>();
    world.legs[i]->telephone = std::make_shared<Telephone>(world.tick);
    world.legs[i]->port = std::make_shared<PortQueues>(8000, 200);
    world.clock.attach(world.legs[i]->telephone, world.legs[i]->port);
  }
  world.run(60);
  std::map<int, int> in_tick;
  for (const auto& leg : world.legs) {
    CHECK(leg->telephone->sent_ticks.size() >= 12);
    for (int tick : leg->telephone->sent_ticks) ++in_tick[tick];
  }
  // they all began at once, and each likes to send as soon as it can: no tick has more than half above its share
  for (int tick = 14; tick < 60; ++tick) CHECK(in_tick[tick] <= 16);
}

void legsThatComeOneByOneAreSpreadToo() {
  // as many ticks apart as would put all into the same slot, were slots taken in turn
  World world;
  std::vector<std::pair<std::shared_ptr<Telephone>, std::shared_ptr<PortQueues>>> waiting;
  for (int i = 0; i < 40; ++i) {
    waiting.emplace_back(std::make_shared<Telephone>(world.tick), std::make_shared<PortQueues>(8000, 200));
  }
  for (auto& [telephone, port] : waiting) {
    world.clock.attach(telephone, port);
    for (int i = 0; i < 3; ++i) world.clock.tick();
  }
  for (int i = 0; i < 12; ++i) world.clock.tick();
  std::map<int, int> in_slot;
  for (const auto& entry : waiting) ++in_slot[entry.first->sent_ticks.back() % kFrameTicks];
  CHECK(in_slot.size() == kFrameTicks);
  for (const auto& slot : in_slot) CHECK(slot.second >= 8 && slot.second <= 12);
}

void lostPacketIsConcealedOnce() {
  // whichever packet tells of the loss, with more and less in the queue
  for (int spare_ticks = 0; spare_ticks <= 8; ++spare_ticks) {
    World world;
    auto& leg = world.add();
    leg.telephone->arriveInTime(0, 1, 0);
    for (int packet = 1; packet < 30; ++packet) {
      // a late second packet gives the queue its spare depth
      const int tick = packet * kFrameTicks;
      if (packet != 15) leg.telephone->arrives(packet, packet < 5 ? std::max(tick, 4 + spare_ticks) : tick);
    }
    world.run(110);
    const PortStats stats = leg.port->stats();
    const int delay = spare_ticks * 40;
    CHECK(delayAt(leg.heard, 20 * kFrame) == delay);  // as before the loss
    CHECK(isPure(leg.heard, size_t(16 * kFrame + delay + 32), delay));
    for (size_t i = size_t(5 * kFrame + delay + 32); i < size_t(15 * kFrame + delay); ++i) {
      CHECK(leg.heard[i] == 1000 + int(i) - delay);
    }
    CHECK(stats.captured_frames == 28);
    CHECK(stats.concealed_frames + stats.dropped_frames == 1);
    CHECK(stats.capture_underruns == (spare_ticks > 0 ? 1u : 0u) + (spare_ticks < kFrameTicks ? 1u : 0u));
  }
}

void packetsLostInARowKeepTheDelay() {
  for (int lost = 1; lost <= 8; ++lost) {
    World world;
    auto& leg = world.add();
    leg.telephone->arriveInTime(0, 10, 1);
    leg.telephone->arriveInTime(10 + lost, 25, 1);
    world.run(100);
    CHECK(isPure(leg.heard, size_t((10 + lost) * kFrame + 40 + 32), 40));
    const PortStats stats = leg.port->stats();
    CHECK(stats.capture_underruns == 1);
    CHECK(stats.concealed_frames + stats.dropped_frames == unsigned(lost));
  }
}

void packetOutOfOrderIsWaitedFor() {
  // the second packet comes 40 ms late, so there is depth; then two are exchanged
  World world;
  auto& leg = world.add();
  leg.telephone->arrives(0, 0);
  leg.telephone->arrives(1, 12);
  leg.telephone->arrives(2, 12);
  leg.telephone->arriveInTime(3, 10, 0);
  leg.telephone->arrives(11, 40);
  leg.telephone->arrives(10, 44);
  leg.telephone->arriveInTime(12, 25, 0);
  world.run(95);
  const PortStats stats = leg.port->stats();
  CHECK(stats.concealed_frames == 0 && stats.dropped_frames == 0);
  CHECK(stats.capture_underruns == 1);
  CHECK(isPure(leg.heard, size_t(12 * 40 + 32), 8 * 40));
}

void packetThatComesAfterItsTimeIsGivenUp() {
  World world;
  auto& leg = world.add();
  leg.telephone->arriveInTime(0, 10, 0);
  leg.telephone->arriveInTime(11, 25, 0);
  leg.telephone->arrives(10, 47);  // three quarters of a packet after its successor
  world.run(95);
  CHECK(isPure(leg.heard, size_t(11 * kFrame + 32), 0));
}

void latePacketsGrowTheDepthByTheirLateness() {
  for (int late = 1; late <= 6; ++late) {
    World world;
    auto& leg = world.add();
    leg.telephone->arriveInTime(0, 10, 0);
    for (int packet = 10; packet < 25; ++packet) leg.telephone->arrives(packet, std::max(40 + late, packet * kFrameTicks));
    world.run(95);
    CHECK(isPure(leg.heard, size_t((40 + late) * 40 + 32), late * 40));
    CHECK(leg.port->stats().concealed_frames == 0);
    CHECK(leg.port->stats().capture_underruns == 1);
  }
}

void stalledMediaThreadDelaysBriefly() {
  for (int stall = 1; stall <= 40; stall += stall < 8 ? 1 : 8) {
    for (int from = 40; from < 44; ++from) {  // in each part of the slot's period
      World world;
      auto& leg = world.add();
      leg.telephone->arriveInTime(0, 40, 0);
      world.media_runs = [&] { return world.tick < from || world.tick >= from + stall; };
      world.run(130);
      const auto& sent = leg.telephone->sent_ticks;
      const int slot = sent[2] % kFrameTicks;
      const int periods = (129 - sent[0]) / kFrameTicks;
      CHECK(int(sent.size()) == periods + 1);
      int delayed = 0;
      for (size_t i = 0; i < sent.size(); ++i) {
        const int behind = sent[i] - (sent[2] + (int(i) - 2) * kFrameTicks);
        CHECK(behind >= 0 && behind <= 2);
        if (behind > 0) ++delayed;
        if (sent[i] > from + stall + 8) CHECK(sent[i] % kFrameTicks == slot);
      }
      CHECK(delayed <= 1);
      const PortStats stats = leg.port->stats();
      CHECK(stats.sent_frames == sent.size());
      CHECK(stats.playback_underruns <= 1);
      if (stall <= 2) {
        CHECK(stats.playback_underruns == 0);
        CHECK(isPure(leg.telephone->sent, 3 * kFrame, delayAt(leg.telephone->sent, 2 * kFrame)));
      }
      if (stall >= kFrameTicks + 3) CHECK(stats.playback_underruns == 1);
    }
  }
}

void framesOfOtherLengthsKeepTheirCount() {
  for (unsigned tick_ms : {5u, 10u, 20u}) {
    for (int frame_ms : {10, 20, 30, 40, 60}) {
      Clock clock(tick_ms);
      int tick = -1;
      auto telephone = std::make_shared<Telephone>(tick, 8 * frame_ms);
      auto port = std::make_shared<PortQueues>(8000, 200);
      clock.attach(std::make_shared<EachTick>([&] { ++tick; }), std::make_shared<PortQueues>(8000, 200));
      clock.attach(telephone, port);
      for (unsigned t = 0; t < 6000; t += tick_ms) clock.tick();
      const int sent = int(telephone->sent_ticks.size()), expected = 6000 / frame_ms;
      CHECK(sent >= expected - 2 && sent <= expected);
    }
  }
}

// Whether frames were sent at these ticks, one each period.
bool isSteady(const std::vector<int>& ticks, size_t from, int period) {
  for (size_t i = from + 1; i < ticks.size(); ++i) {
    if (ticks[i] - ticks[i - 1] != period) return false;
  }
  return ticks.size() > from + 1;
}

// All that was sent and is no silence goes on from sample to sample, but for joins of 4 ms and what was made up.
int breaks(const Samples& sent, size_t from = 0) {
  int found = 0;
  for (size_t i = from + 1; i < sent.size(); ++i) found += sent[i] != sent[i - 1] + 1 && sent[i] - sent[i - 1] != 1 - 30000;
  return found;
}

void linkedLegsSendInTheTickOfArrival() {
  for (int phase_a = 0; phase_a < kFrameTicks; ++phase_a) {
    for (int phase_b = 0; phase_b < kFrameTicks; ++phase_b) {
      World world;
      auto& others = world.add();
      auto& a = world.addLinked();
      auto& b = world.addLinked(&a);
      auto& echo = world.addLinked();
      others.telephone->arriveInTime(0, 60, 1);
      a.telephone->arriveInTime(0, 60, phase_a);
      b.telephone->arriveInTime(0, 60, phase_b);
      echo.telephone->arriveInTime(0, 60, phase_b);
      world.run(230);
      const auto heardAtOnce = [](const World::Leg& by, int phase) {
        CHECK(by.telephone->sent_ticks.front() == phase);
        CHECK(isSteady(by.telephone->sent_ticks, 0, kFrameTicks));
        CHECK(isPure(by.telephone->sent, 0, 0));
        CHECK(by.port->stats().playback_underruns == 0 && by.port->stats().sent_frames == by.telephone->sent_ticks.size());
      };
      heardAtOnce(b, phase_a);
      heardAtOnce(a, phase_b);
      heardAtOnce(echo, phase_b);
    }
  }
}

void joinsAndLeavesOfOthersDisturbNoLink() {
  World world;
  auto& a = world.addLinked();
  auto& b = world.addLinked(&a);
  a.telephone->arriveInTime(0, 260, 2);
  b.telephone->arriveInTime(0, 260, 3);
  std::minstd_rand random(1);
  std::vector<std::shared_ptr<Telephone>> others;
  for (int i = 0; i < 1000; ++i) {
    world.run(i + 1);
    if (others.size() < 30 || random() % 2) {
      others.push_back(std::make_shared<Telephone>(world.tick));
      world.clock.attach(others.back(), std::make_shared<PortQueues>(8000, 200));
    } else {
      world.clock.detach(others[random() % others.size()].get());
    }
  }
  for (const auto* leg : {&a, &b}) {
    CHECK(isSteady(leg->telephone->sent_ticks, 0, kFrameTicks));
    CHECK(breaks(leg->telephone->sent) == 0);
    CHECK(leg->telephone->sent_ticks.size() >= 249);
  }
}

void linkedFramesOfOtherLengthsLoseNothing() {
  for (int from_ms : {10, 20, 30, 60}) {
    for (int to_ms : {10, 20, 30, 60}) {
      World world;
      auto& a = world.addLinked(nullptr, 8 * from_ms);
      auto& b = world.addLinked(&a, 8 * to_ms);
      for (int packet = 0; packet * from_ms < 10000; ++packet) a.telephone->arrives(packet, packet * from_ms / int(kTickMs) + 1);
      world.run(1990);
      size_t begins = 0;
      while (begins < b.telephone->sent.size() && b.telephone->sent[begins] == 0) ++begins;
      // once there is enough to begin with it goes on; at most 4 ms of it are faded in
      size_t steady = begins + size_t(8 * (from_ms + to_ms) * 2);
      CHECK(breaks(b.telephone->sent, steady) == 0);
      CHECK(b.port->stats().playback_underruns <= 1);
      // delay: the length of both at most, and a tick
      const int newest = b.telephone->sent.back() - 1000;
      CHECK(1990 * 40 - newest % 30000 - 2 * 30000 <= 8 * (from_ms + to_ms + 10));
      CHECK(b.telephone->sent_ticks.size() >= size_t(9900 / to_ms));
    }
  }
}

void linkedFramesOfOtherLengthsFollowTheTalkersClock() {
  // a tick later, or earlier, every two seconds or so: 2500 ppm
  for (int step : {1, -1}) {
    for (auto [from_ms, to_ms] : {std::pair{20, 30}, {30, 20}, {10, 20}, {20, 60}, {20, 20}}) {
      World world;
      auto& a = world.addLinked(nullptr, 8 * from_ms);
      auto& b = world.addLinked(&a, 8 * to_ms);
      const int ticks = from_ms / int(kTickMs);
      for (int packet = 0; packet * from_ms < 60000; ++packet) a.telephone->arrives(packet, packet * ticks + step * (packet * ticks / 400));
      world.run(11500);
      const PortStats heard = b.port->stats();
      CHECK(heard.playback_underruns <= 1);
      CHECK(heard.playback_depth_ms <= from_ms + to_ms);
      CHECK(heard.overflow_ms == 0);
      CHECK(a.port->stats().capture_underruns == 0);
    }
  }
}

void whoHearsNobodySendsSilenceAtItsOwnPace() {
  // linked with one that has no stream, then one whose stream brings nothing
  for (bool has_stream : {false, true}) {
    World world;
    auto& b = world.add();
    World::Leg gone;
    gone.port = std::make_shared<PortQueues>(8000, 200);
    World::link(b, gone);
    World::link(gone, b);
    gone.telephone = std::make_shared<Telephone>(world.tick);
    if (has_stream) world.clock.attach(gone.telephone, gone.port);
    b.telephone->arriveInTime(0, 100, 1);
    world.run(400);
    CHECK(b.telephone->sent_ticks.size() >= 98);
    CHECK(isSteady(b.telephone->sent_ticks, 0, kFrameTicks));
    CHECK(b.telephone->sent == Samples(b.telephone->sent.size(), 0));
    CHECK(b.port->stats().capture_underruns == 0);
  }
}

void heldTalkerIsHeardAgainAtOnce() {
  for (int phase = 0; phase < kFrameTicks; ++phase) {
    World world;
    auto& a = world.addLinked();
    auto& b = world.addLinked(&a);
    a.telephone->arriveInTime(0, 50, 1);
    for (int packet = 50; packet < 150; ++packet) a.telephone->arrives(packet, packet * kFrameTicks + 400 + phase);
    world.run(900);
    const auto& ticks = b.telephone->sent_ticks;
    for (size_t i = 1; i < ticks.size(); ++i) CHECK(ticks[i] - ticks[i - 1] >= 1 && ticks[i] - ticks[i - 1] <= kFrameTicks + 2);
    CHECK(std::find(ticks.begin(), ticks.end(), 200 + 400 + phase) != ticks.end());
    const size_t again = size_t(std::find(ticks.begin(), ticks.end(), 600 + phase) - ticks.begin()) * kFrame;
    CHECK(b.telephone->sent[again + 40] == 1000 + 50 * kFrame + 40);
    CHECK(breaks(b.telephone->sent, again + 40) == 0);
  }
}

void lossesOfALinkAreMadeUpInTime() {
  World world;
  auto& a = world.addLinked();
  auto& b = world.addLinked(&a);
  for (int packet = 0; packet < 240; ++packet) {
    if (packet % 10 != 9) a.telephone->arrives(packet, packet * kFrameTicks + 1);
  }
  world.run(900);
  const auto& ticks = b.telephone->sent_ticks;
  for (size_t i = 0; i < ticks.size(); ++i) {
    // the one that is made up is waited for, and costs the next one no time
    CHECK(ticks[i] == int(i) * kFrameTicks + 1 + (i % 10 == 9 ? 2 : 0));
    if (i % 10 != 9) CHECK(b.telephone->sent[i * kFrame + 159] == 1000 + (int(i) * kFrame + 159) % 30000);
  }
  CHECK(b.port->stats().playback_underruns == 0);
}

void lossAtTheBeginningOfALinkHoldsNobody() {
  // in pieces there was half a frame left when the next packet turned out to be lost
  for (int change = 40; change < 56; ++change) {
    World world;
    auto& a = world.add();
    auto& b = world.add();
    for (int packet = 0; packet < 200; ++packet) {
      if (packet != 10 && packet != 11) a.telephone->arrives(packet, packet * kFrameTicks);
    }
    world.run(change);
    World::link(a, b);
    World::link(b, a);
    world.run(700);
    CHECK(b.telephone->sent_ticks.size() >= 165);
    CHECK(breaks(b.telephone->sent, size_t(kFrame) * 160) == 0);  // what was spare has been given back
    CHECK(a.port->stats().capture_depth_ms <= 40);
  }
}

void eitherLegOfALinkMayGo() {
  for (int at = 100; at < 104; ++at) {
    World world;
    auto& a = world.addLinked();
    auto& b = world.addLinked(&a);
    a.telephone->arriveInTime(0, 300, 1);
    b.telephone->arriveInTime(0, 300, 2);
    world.run(at);
    world.clock.detach(a.telephone.get());
    a.telephone->detached();
    world.run(200);
    const auto& ticks = b.telephone->sent_ticks;
    for (size_t i = 1; i < ticks.size(); ++i) CHECK(ticks[i] - ticks[i - 1] >= 1 && ticks[i] - ticks[i - 1] <= kFrameTicks + 2);
    CHECK(Samples(b.telephone->sent.end() - 10 * kFrame, b.telephone->sent.end()) == Samples(10 * kFrame, 0));
    CHECK(a.telephone->touched_after_detach == 0);

    // and come back with another stream on the same port
    auto again = std::make_shared<Telephone>(world.tick);
    world.clock.attach(again, a.port);
    for (int packet = 0; packet < 100; ++packet) again->arrives(packet, 203 + packet * kFrameTicks);
    world.run(500);
    CHECK(isSteady(again->sent_ticks, 5, kFrameTicks));
    CHECK(breaks(again->sent, 5 * kFrame) == 0);
    CHECK(breaks(b.telephone->sent, b.telephone->sent.size() - 40 * kFrame) == 0);
    CHECK(isSteady(ticks, ticks.size() - 40, kFrameTicks));
    CHECK(ticks.back() % kFrameTicks == 203 % kFrameTicks);
  }
}

void changesBetweenPiecesAndWholeCostLittle() {
  World world;
  auto& a = world.add();
  auto& b = world.add();
  a.telephone->arriveInTime(0, 2600, 1);
  b.telephone->arriveInTime(0, 2600, 3);
  for (int change = 0; change < 16; ++change) {
    if (change % 2 == 0) {
      a.port->use(inPieces()), b.port->use(inPieces());
      a.in_pieces = b.in_pieces = true;
    } else {
      World::link(a, b), World::link(b, a);
    }
    world.run(world.tick + 1 + 601);  // long enough to give back what a change has cost
  }
  for (const auto* leg : {&a, &b}) {
    const PortStats stats = leg->port->stats();
    CHECK(stats.capture_underruns <= 8);
    CHECK(stats.capture_depth_ms <= 40 && stats.playback_depth_ms <= 40);
    CHECK(stats.overflow_ms == 0);
    const auto& ticks = leg->telephone->sent_ticks;
    for (size_t i = 1; i < ticks.size(); ++i) CHECK(ticks[i] - ticks[i - 1] >= 1 && ticks[i] - ticks[i - 1] <= 2 * kFrameTicks);
    CHECK(int(ticks.size()) >= 16 * 601 / kFrameTicks - 20);
  }
}

void pulledLegIsSentWithoutTheMediaThreadToo() {
  Clock clock(kTickMs);
  int tick = -1;
  auto telephone = std::make_shared<Telephone>(tick);
  auto port = std::make_shared<PortQueues>(8000, 200);
  PortUse use;
  use.whole = use.pulled = true;
  port->use(use);
  clock.attach(std::make_shared<EachTick>([&] { ++tick; }), std::make_shared<PortQueues>(8000, 200));
  clock.attach(telephone, port);
  for (int i = 0; i < 200; ++i) clock.tick();
  CHECK(telephone->sent_ticks.size() >= 48);
  CHECK(isSteady(telephone->sent_ticks, 0, kFrameTicks));

  // it is asked for what is due, in the tick in which it is sent
  int given = 0, asked = 0;
  std::atomic<bool> running{true};
  std::thread media([&] {
    for (unsigned long long last = 200; running;) {
      const auto now = clock.wait(last, 100);
      if (now == last) continue;
      last = now;
      if (const size_t count = port->wanted()) {
        Samples frame(count);
        for (auto& sample : frame) sample = int16_t(1000 + given++ % 30000);
        port->write(frame.data(), count, 8000);
        ++asked;
        CHECK(port->wanted() == 0);
      }
      clock.done(now);
    }
  });
  const size_t before = telephone->sent_ticks.size();
  telephone->sent.clear();
  for (int i = 0; i < 400; ++i) clock.tick();
  running = false;
  media.join();
  CHECK(telephone->sent_ticks.size() - before >= 99);
  CHECK(asked > 0 && port->stats().playback_depth_ms <= 20);
  // whatever the machine did to the thread: nothing is sent twice or out of order
  int last = 0;
  for (size_t i = size_t(kFrame) - 1; i < telephone->sent.size(); i += kFrame) {
    const int sample = telephone->sent[i];
    if (port->stats().playback_underruns == 0 && sample > 0) CHECK(sample > last || last > 29000);
    if (sample > 0) last = sample;
  }
}

void doneIsOfATickAndThoseBeforeIt() {
  // a media thread that is done before it was asked is not waited for; it is in the tick after that
  Clock clock(20);
  auto port = std::make_shared<PortQueues>(8000, 200);
  port->use(inPieces());
  const int tick = 0;
  clock.attach(std::make_shared<Telephone>(tick), port);
  clock.done(100);
  auto from = SteadyTime::now();
  for (int i = 0; i < 100; ++i) clock.tick();
  CHECK(clock.stats().media_us < 12000 * 0.9);
  from = SteadyTime::now();
  for (int i = 0; i < 10; ++i) clock.tick();
  // 12 ms each, for nobody is done
  CHECK(SteadyTime::now() - from > std::chrono::milliseconds(100));
}

void brokenStreamDoesNotHoldTheClock() {
  struct Broken : EachTick {
    using EachTick::EachTick;
    Head head() override { return head_; }
    bool get(int16_t*) override { return ++gets, good_; }
    Head head_ = Head::kFrame;
    bool good_ = true;
    int gets = 0;
  };
  Clock clock(kTickMs);
  auto endless = std::make_shared<Broken>([] {}), refusing = std::make_shared<Broken>([] {});
  refusing->good_ = false;
  refusing->head_ = LegStream::Head::kLost;
  auto port = std::make_shared<PortQueues>(8000, 200);
  clock.attach(endless, port);
  clock.attach(refusing, std::make_shared<PortQueues>(8000, 200));
  for (int i = 0; i < 10; ++i) clock.tick();
  CHECK(endless->gets == 160);
  CHECK(refusing->gets == 10);
  CHECK(port->stats().capture_depth_ms == 200);
}

void waitEndsWithATickTimeOrStop() {
  Clock clock(kTickMs);
  CHECK(clock.wait(0, 1) == 0);  // not started
  CHECK(clock.wait(7, 0) == 7);
  clock.start();
  clock.start();  // twice is once
  const auto first = clock.wait(0, 10000);
  CHECK(first >= 1);
  CHECK(clock.wait(first, 10000) > first);
  CHECK(clock.wait(0, 0) >= first);  // already gone by
  CHECK(clock.wait(first + 1000000, 1) == first + 1000000);

  // woken, or woken before, it is none of those: the last tick comes back
  std::thread wakes([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    clock.wake();
  });
  const auto woken = clock.wait(first + 1000000, 1000000);
  CHECK(woken >= first && woken < first + 1000000);
  wakes.join();
  clock.wake();
  CHECK(clock.wait(first + 1000000, 1000000) < first + 1000000);
  CHECK(clock.wait(first + 1000000, 1) == first + 1000000);

  // all who wait are told of a tick, and of the end
  std::vector<std::thread> waiting;
  std::atomic<int> told{0}, ended{0};
  for (int i = 0; i < 3; ++i) {
    waiting.emplace_back([&] {
      if (clock.wait(clock.wait(0, 10000), 10000) > 1) ++told;
      if (clock.wait(1000000, 1000000) == 1000000) ++ended;
    });
  }
  for (unsigned long long last = 0; told < 3;) last = clock.wait(last, 10000);
  clock.stop();
  for (auto& thread : waiting) thread.join();
  CHECK(ended == 3);
  CHECK(clock.wait(1000000, 1000000) == 1000000);

  // it may go on
  const auto ticks = clock.stats().ticks;
  clock.start();
  CHECK(clock.wait(ticks, 10000) > ticks);
  clock.stop();
  clock.stop();
}

void onThreadRunsFirstAndOnTheClocksThread() {
  Clock clock(kTickMs);
  std::atomic<std::thread::id> prepared{};
  std::atomic<bool> same{true};
  clock.attach(std::make_shared<EachTick>([&] { same = same && prepared.load() == std::this_thread::get_id(); }),
               std::make_shared<PortQueues>(8000, 200));
  clock.start([&] { prepared = std::this_thread::get_id(); });
  CHECK(clock.wait(0, 10000) > 0);
  clock.stop();
  CHECK(same);
  CHECK(prepared.load() != std::thread::id());
}

// The time of each tick, with one that is held up.
std::vector<SteadyTime::time_point> ticksWithAStop(std::chrono::milliseconds stop, int count, std::vector<int>& sent) {
  Clock clock(kTickMs);
  std::vector<SteadyTime::time_point> times;
  std::atomic<int> ticks{0};
  int tick = -1;
  auto telephone = std::make_shared<Telephone>(tick);
  clock.attach(std::make_shared<EachTick>([&] {
                 times.push_back(SteadyTime::now());
                 if (++tick == 20) std::this_thread::sleep_for(stop);
                 ++ticks;
               }),
               std::make_shared<PortQueues>(8000, 200));
  clock.attach(telephone, std::make_shared<PortQueues>(8000, 200));
  clock.start();
  for (unsigned long long last = 0; ticks < count;) last = clock.wait(last, 1000);
  clock.stop();
  CHECK(clock.stats().late_ticks >= 1);
  sent = telephone->sent_ticks;
  return times;
}

void longStopIsNotReplayed() {
  using std::chrono::milliseconds;
  std::vector<int> sent;
  const auto times = ticksWithAStop(milliseconds(300), 50, sent);
  // 60 ticks went by in the stop; were they made up for, they would all run at once after it
  const auto soon = times[20] + milliseconds(300 + 100);
  CHECK(std::count_if(times.begin() + 21, times.end(), [&](auto time) { return time < soon; }) <= 100 / int(kTickMs) + 2);
  // slots stay where they are among the ticks
  for (size_t i = 1; i < sent.size(); ++i) CHECK(sent[i] - sent[i - 1] == kFrameTicks);
}

void shortStopIsMadeUpFor() {
  using std::chrono::milliseconds;
  std::vector<int> sent;
  const auto times = ticksWithAStop(milliseconds(50), 60, sent);
  // never early; and none was left out, as far as the machine let it
  bool caught_up = false;
  for (size_t i = 1; i < times.size(); ++i) {
    const auto due = times[0] + milliseconds(kTickMs) * i;
    CHECK(times[i] > due - milliseconds(kTickMs) * 30);
    if (i > 20 && times[i] < times[20] + milliseconds(50) + milliseconds(kTickMs) * (i - 21)) caught_up = true;
  }
  CHECK(caught_up);
}

void detachedStreamIsNotTouched() {
  Clock clock(kTickMs);
  const int tick = 0;
  std::vector<std::shared_ptr<Telephone>> telephones;
  auto port = std::make_shared<PortQueues>(8000, 200);
  clock.start();
  unsigned long long last = 0;
  for (int i = 0; i < 20; ++i) {
    telephones.push_back(std::make_shared<Telephone>(tick));
    clock.attach(telephones.back(), port);
    clock.attach(telephones.back(), port);
    last = clock.wait(last, 1000);
    clock.detach(telephones.back().get());
    telephones.back()->detached();
    CHECK(telephones.back().use_count() == 1);
    clock.detach(telephones.back().get());
  }
  for (int i = 0; i < 5; ++i) last = clock.wait(last, 1000);
  clock.stop();
  for (const auto& telephone : telephones) CHECK(telephone->touched_after_detach == 0);
  CHECK(clock.stats().legs == 0);
}

void tenThousandLegsComeAndGo() {
  Clock clock(kTickMs);
  clock.start();
  std::atomic<int> touched{0};
  std::atomic<unsigned long long> kept_frames{0};
  const int tick = 0;
  // some calls stay all the time
  std::vector<std::pair<std::shared_ptr<Telephone>, std::shared_ptr<PortQueues>>> kept;
  for (int i = 0; i < 10; ++i) {
    kept.emplace_back(std::make_shared<Telephone>(tick), std::make_shared<PortQueues>(8000, 200));
    clock.attach(kept.back().first, kept.back().second);
  }
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 2; ++seed) {
    threads.emplace_back([&, seed] {
      std::minstd_rand random(seed);
      std::vector<std::shared_ptr<Telephone>> attached;
      for (int made = 0; made < 5000 || !attached.empty();) {
        if (made < 5000 && (attached.size() < 5 || random() % 2)) {
          attached.push_back(std::make_shared<Telephone>(tick));
          clock.attach(attached.back(), std::make_shared<PortQueues>(8000, 200));
          ++made;
        } else {
          std::swap(attached[random() % attached.size()], attached.back());
          clock.detach(attached.back().get());
          attached.back()->detached();
          touched += attached.back()->touched_after_detach;
          attached.pop_back();
        }
        if (random() % 64 == 0) clock.stats();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  const auto ticks = clock.stats().ticks;
  for (unsigned long long last = ticks; last < ticks + 8;) last = clock.wait(last, 1000);
  CHECK(clock.stats().legs == 10);
  clock.stop();
  CHECK(touched == 0);
  for (auto& [telephone, port] : kept) {
    CHECK(telephone->sent_ticks.size() >= ticks / kFrameTicks);
    CHECK(port->stats().sent_frames == telephone->sent_ticks.size());
  }
}

}  // namespace

int main() {
  framesOfEveryPhaseAreCarried();
  slotsAreSpread();
  legsThatComeOneByOneAreSpreadToo();
  lostPacketIsConcealedOnce();
  packetsLostInARowKeepTheDelay();
  packetOutOfOrderIsWaitedFor();
  packetThatComesAfterItsTimeIsGivenUp();
  latePacketsGrowTheDepthByTheirLateness();
  stalledMediaThreadDelaysBriefly();
  framesOfOtherLengthsKeepTheirCount();
  linkedLegsSendInTheTickOfArrival();
  joinsAndLeavesOfOthersDisturbNoLink();
  linkedFramesOfOtherLengthsLoseNothing();
  linkedFramesOfOtherLengthsFollowTheTalkersClock();
  whoHearsNobodySendsSilenceAtItsOwnPace();
  heldTalkerIsHeardAgainAtOnce();
  lossesOfALinkAreMadeUpInTime();
  lossAtTheBeginningOfALinkHoldsNobody();
  eitherLegOfALinkMayGo();
  changesBetweenPiecesAndWholeCostLittle();
  pulledLegIsSentWithoutTheMediaThreadToo();
  doneIsOfATickAndThoseBeforeIt();
  brokenStreamDoesNotHoldTheClock();
  waitEndsWithATickTimeOrStop();
  onThreadRunsFirstAndOnTheClocksThread();
  longStopIsNotReplayed();
  shortStopIsMadeUpFor();
  detachedStreamIsNotTouched();
  tenThousandLegsComeAndGo();
  return checkResult();
}
