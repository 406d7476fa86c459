// SPDX-License-Identifier: GPL-3.0-or-later
#include "../port_queues.hpp"

#include <thread>

#include "check.hpp"

namespace {

constexpr unsigned kMaxMs = 200;
using Samples = std::vector<int16_t>;

PortUse inPieces() {
  PortUse use;
  use.read = use.written = true;
  return use;
}

// A port at 8 kHz with packets of 20 ms, a tick of 5 ms and a ramp as audio, so that a sample tells its place.
struct Port {
  PortQueues queues{8000, kMaxMs};
  int next_in = 1, next_out = 1;
  Samples heard;

  Port() { queues.use(inPieces()); }

  Samples ramp(int& next, size_t count) {
    Samples samples(count);
    for (auto& sample : samples) sample = int16_t(next++);
    return samples;
  }

  void packet() {
    const Samples samples = ramp(next_in, 160);
    queues.received(samples.data(), samples.size());
  }

  void lostPacket(int16_t made_up) {
    const Samples samples(160, made_up);
    next_in += 160;
    queues.lost(samples.data(), samples.size());
  }

  // One tick of the media thread.
  void read() {
    Samples samples(40);
    CHECK(queues.read(samples.data(), samples.size(), 8000));
    heard.insert(heard.end(), samples.begin(), samples.end());
  }

  void write(size_t count = 40) {
    const Samples samples = ramp(next_out, count);
    CHECK(queues.write(samples.data(), samples.size(), 8000));
  }

  Samples request(size_t count = 160) {
    Samples samples(count);
    queues.requested(samples.data(), samples.size());
    return samples;
  }

  // How far behind the newest sample the last one heard is.
  int lag() const { return next_in - heard.back(); }
};

bool is(const PortMark& mark, unsigned long long id, bool cleared) { return mark.id == id && mark.cleared == cleared; }

void bothDirectionsCarryAudio() {
  Port port;
  for (int i = 0; i < 10; ++i) {
    port.packet();
    for (int k = 0; k < 4; ++k) port.read(), port.write();
    const Samples sent = port.request();
    CHECK(sent.front() == 1 + 160 * i);
    CHECK(sent.back() == 160 + 160 * i);
  }
  for (size_t i = 0; i < port.heard.size(); ++i) CHECK(port.heard[i] == int(i) + 1);
  const PortStats stats = port.queues.stats();
  CHECK(stats.rate_hz == 8000);
  CHECK(stats.captured_frames == 10);
  CHECK(stats.sent_frames == 10);
  CHECK(stats.concealed_frames == 0);
  CHECK(stats.dropped_frames == 0);
  CHECK(stats.capture_underruns == 0);
  CHECK(stats.playback_underruns == 0);
  CHECK(stats.capture_depth_ms == 0);
}

void peaksAreOfTheTimeSinceTheLastLook() {
  Port port;
  const Samples loud = {0, 100, -32768, 5}, quiet = {0, 3, -4, 2};
  port.queues.received(loud.data(), loud.size());
  port.queues.write(quiet.data(), quiet.size(), 8000);
  port.request(4);
  PortStats stats = port.queues.stats();
  CHECK(stats.capture_peak == 32768);
  CHECK(stats.playback_peak == 4);
  stats = port.queues.stats();
  CHECK(stats.capture_peak == 0);
  CHECK(stats.playback_peak == 0);
}

void lossThatWasBridgedIsNotPlayedAgain() {
  // a packet is lost; when the next one tells, more or less of its time has gone by
  for (int bridged_ticks = 0; bridged_ticks <= 4; ++bridged_ticks) {
    for (int spare_packets = 0; spare_packets <= 2; ++spare_packets) {
      Port port;
      for (int i = 0; i < spare_packets; ++i) port.packet(), port.read();
      for (int i = 0; i < 10; ++i) {
        port.packet();
        for (int k = 0; k < 4; ++k) port.read();
      }
      while (port.queues.captureDepth() > 0) port.read();
      for (int k = 0; k < bridged_ticks; ++k) port.read();
      const size_t end = port.heard.size();
      port.lostPacket(7);
      port.packet();
      const size_t waiting = port.queues.captureDepth();
      CHECK(waiting == size_t(160 - 40 * bridged_ticks + 160));
      for (size_t k = 0; k < waiting / 40; ++k) port.read();
      for (size_t i = end; i < end + waiting - 160; ++i) CHECK(port.heard[i] == 7 || i < end + 32);  // joined in 4 ms
      // the last sample of the packet is where it would have been with nothing lost
      CHECK(port.heard.back() == port.next_in - 1);
      const PortStats stats = port.queues.stats();
      CHECK(stats.concealed_frames == (bridged_ticks < 4 ? 1u : 0u));
      CHECK(stats.dropped_frames == (bridged_ticks < 4 ? 0u : 1u));
    }
  }
}

void lossesInARowAreCountedOnce() {
  Port port;
  for (int i = 0; i < 10; ++i) {
    port.packet();
    for (int k = 0; k < 4; ++k) port.read();
  }
  const int lag = port.lag();
  for (int k = 0; k < 4 * 3 - 1; ++k) port.read();  // 55 of the 60 ms that are lost
  for (int i = 0; i < 3; ++i) port.lostPacket(7);
  CHECK(port.queues.captureDepth() == 40);
  port.read();
  port.packet();
  for (int k = 0; k < 4; ++k) port.read();
  CHECK(port.lag() == lag);
  const PortStats stats = port.queues.stats();
  CHECK(stats.dropped_frames == 2);
  CHECK(stats.concealed_frames == 1);
  CHECK(stats.capture_underruns == 1);
}

void latePacketIsNoLoss() {
  Port port;
  port.packet();
  for (int k = 0; k < 6; ++k) port.read();  // 10 ms are bridged
  port.packet();                            // but it comes at last: its time is not bridged any more
  port.lostPacket(7);
  CHECK(port.queues.captureDepth() == 320);
}

void marksFireWhenAllBeforeThemWasTaken() {
  Port port;
  port.request();
  port.queues.mark(1);  // nothing before it
  auto marks = port.queues.takeMarks();
  CHECK(marks.size() == 1 && is(marks[0], 1, false));

  port.write(160);
  port.queues.mark(2);
  port.write(100);
  port.queues.mark(3);
  port.queues.mark(4);
  CHECK(port.queues.takeMarks().empty());
  port.request();
  marks = port.queues.takeMarks();
  CHECK(marks.size() == 1 && is(marks[0], 2, false));
  CHECK(port.queues.takeMarks().empty());
  port.request(99);
  CHECK(port.queues.takeMarks().empty());  // one sample is still there
  port.request(1);
  marks = port.queues.takeMarks();
  CHECK(marks.size() == 2 && is(marks[0], 3, false) && is(marks[1], 4, false));
}

void marksInTheMiddleOfAFrameFireAfterIt() {
  Port port;
  port.write(40);
  port.queues.mark(1);
  port.write(120);
  CHECK(port.queues.takeMarks().empty());
  port.request();
  CHECK(port.queues.takeMarks().size() == 1);
}

void clearedMarksSaySo() {
  Port port;
  port.request();
  port.write(160);
  port.queues.mark(1);
  port.write(160);
  port.queues.mark(2);
  port.request();
  port.queues.clear();
  port.queues.mark(3);
  const auto marks = port.queues.takeMarks();
  CHECK(marks.size() == 3 && is(marks[0], 1, false) && is(marks[1], 2, true) && is(marks[2], 3, false));
  CHECK(port.queues.stats().playback_depth_ms == 0);
}

void marksOutliveTrimsAndOverflow() {
  Port port;
  port.request();
  for (int i = 0; i < 30; ++i) port.write(160);
  port.queues.mark(1);
  for (int i = 0; i < 9; ++i) port.request();
  CHECK(port.queues.takeMarks().empty());
  port.request();
  CHECK(port.queues.takeMarks().size() == 1);
  CHECK(port.queues.stats().playback_underruns == 0);
}

void anotherRateDropsWhatWaits() {
  Port port;
  port.packet();
  port.write(160);
  port.queues.mark(1);
  port.queues.setRate(8000);  // no change
  CHECK(port.queues.takeMarks().empty());
  CHECK(port.queues.captureDepth() == 160);
  port.read();
  port.request(80);

  port.queues.setRate(16000);
  auto marks = port.queues.takeMarks();
  CHECK(marks.size() == 1 && is(marks[0], 1, true));
  CHECK(port.queues.rateHz() == 16000);
  CHECK(port.queues.captureDepth() == 0);
  Samples samples(80, 5);
  CHECK(!port.queues.read(samples.data(), 40, 8000));
  CHECK(samples == Samples(80, 5));
  CHECK(!port.queues.write(samples.data(), 40, 8000));
  CHECK(port.queues.stats().playback_depth_ms == 0);
  CHECK(port.queues.write(samples.data(), 80, 16000));
  CHECK(port.queues.stats().playback_depth_ms == 5);
  port.queues.mark(2);
  CHECK(port.queues.takeMarks().empty());
  port.request(80);
  marks = port.queues.takeMarks();
  CHECK(marks.size() == 1 && is(marks[0], 2, false));
}

void lateIsWhoIsHeardAndHasTooLittle() {
  Port port;
  port.request();
  CHECK(!port.queues.playbackIsLate(160));  // nothing was heard yet: there is nothing to wait for
  port.write(160);
  port.write(40);
  port.request();
  CHECK(port.queues.playbackIsLate(160));
  port.write(120);
  CHECK(!port.queues.playbackIsLate(160));
  port.request();
  port.request();
  CHECK(!port.queues.playbackIsLate(160));  // it has run dry: what is late has been concealed
  port.write(160);
  port.request();
  CHECK(port.queues.playbackIsLate(160));
  port.queues.use({});
  CHECK(!port.queues.playbackIsLate(160));  // nobody writes
}

void audioFromBeforeIsNotPlayed() {
  // while there was no stream 200 ms have gathered; and nobody has read what came
  Port port;
  port.queues.use({});
  for (int i = 0; i < 100; ++i) port.packet(), port.write(40);
  port.queues.use(inPieces());
  port.queues.sendingBegins();
  port.write(40);
  const Samples sent = port.request();
  CHECK(sent.back() == port.next_out - 1);
  CHECK(sent.front() == port.next_out - 160);
  port.packet();
  port.read();
  CHECK(port.heard.front() == port.next_in - 160);
}

PortUse whole(const std::shared_ptr<PortQueues>& listener = nullptr, bool heard = true) {
  PortUse use;
  use.whole = true;
  use.listener = listener;
  use.heard = heard;
  return use;
}

void wholeFramesGoToTheListenerAndTheMediaThread() {
  Port port;
  const auto listener = std::make_shared<PortQueues>(8000, kMaxMs);
  PortUse use = whole(listener);
  use.delivered = use.read = true;  // and somebody taps them
  port.queues.use(use);
  CHECK(port.queues.whole() && port.queues.playbackActive() && !port.queues.fedByMedia());
  Samples frame(160), taken(1000), tapped;
  for (int i = 0; i < 10; ++i) {
    port.packet();
    CHECK(port.queues.takeWhole(frame.data(), frame.size(), 0) == listener);
    CHECK(frame.front() == 160 * i + 1 && frame.back() == 160 * i + 160);
    CHECK(port.queues.takeDelivery(taken.data(), taken.size()) == 160);
    CHECK(std::equal(frame.begin(), frame.end(), taken.begin()));
    CHECK(port.queues.takeDelivery(taken.data(), taken.size()) == 0);
    for (int k = 0; k < 4; ++k) port.read();
  }
  for (size_t i = 0; i < port.heard.size(); ++i) CHECK(port.heard[i] == int(i) + 1);
  CHECK(port.queues.stats().capture_underruns == 0);
}

void deliveryThatNobodyTakesIsBounded() {
  Port port;
  PortUse use = whole();
  use.delivered = true;
  port.queues.use(use);
  Samples frame(160), taken(1000);
  for (int i = 0; i < 10; ++i) port.packet(), port.queues.takeWhole(frame.data(), frame.size(), 0);
  CHECK(port.queues.takeDelivery(taken.data(), 100) == 100);  // no more than there is room for
  CHECK(taken[99] == 100);
  CHECK(port.queues.takeDelivery(taken.data(), taken.size()) == 220);
  CHECK(taken[0] == 101 && taken[219] == 320);
  // and gone with the use, or the rate
  port.packet(), port.queues.takeWhole(frame.data(), frame.size(), 0);
  port.queues.use(whole());
  CHECK(port.queues.takeDelivery(taken.data(), taken.size()) == 0);
  port.queues.use(use);
  port.packet(), port.queues.takeWhole(frame.data(), frame.size(), 0);
  port.queues.setRate(16000);
  CHECK(port.queues.takeDelivery(taken.data(), taken.size()) == 0);
}

void goneListenerIsNobody() {
  Port port;
  auto listener = std::make_shared<PortQueues>(8000, kMaxMs);
  port.queues.use(whole(listener));
  listener.reset();
  Samples frame(160);
  port.packet();
  CHECK(port.queues.takeWhole(frame.data(), frame.size(), 0) == nullptr);
  CHECK(frame.back() == 160);  // the capture does not gather
  port.queues.use(inPieces());
  port.packet();
  CHECK(port.queues.takeWhole(frame.data(), frame.size(), 0) == nullptr);
  CHECK(port.queues.captureDepth() == 160);  // nor is it taken from who reads it in pieces
}

void wholeFramesFadeInAndOut() {
  const auto frameOf = [](PortQueues& queues) {
    const Samples loud(160, 10000);
    Samples frame(160);
    queues.received(loud.data(), loud.size());
    queues.takeWhole(frame.data(), frame.size(), 0);
    return frame;
  };
  const auto largestStep = [](const Samples& samples) {
    int step = 0;
    for (size_t i = 1; i < samples.size(); ++i) step = std::max(step, std::abs(samples[i] - samples[i - 1]));
    return step;
  };
  PortQueues queues(8000, kMaxMs);
  queues.use(whole(nullptr, false));
  Samples frame = frameOf(queues);
  CHECK(frame[0] > 0 && frame[0] <= 320 && largestStep(frame) <= 320);
  CHECK(Samples(frame.begin() + 32, frame.end()) == Samples(128, 10000));
  CHECK(frameOf(queues) == Samples(160, 10000));

  PortUse muted = whole();
  muted.muted = true;
  queues.use(muted);
  frame = frameOf(queues);
  CHECK(frame[0] >= 9600 && largestStep(frame) <= 320);
  CHECK(Samples(frame.begin() + 32, frame.end()) == Samples(128, 0));
  CHECK(frameOf(queues) == Samples(160, 0));
  queues.use(whole());  // that it was heard before counts no more: it was muted
  CHECK(largestStep(frameOf(queues)) <= 320);
  CHECK(frameOf(queues) == Samples(160, 10000));

  // who was heard in pieces goes on
  queues.use(inPieces());
  queues.use(whole());
  CHECK(frameOf(queues) == Samples(160, 10000));
}

void wantedIsWhatIsMissing() {
  Port port;
  port.request();
  port.queues.want(160);
  CHECK(port.queues.wanted() == 0);  // the media thread gives it nothing
  PortUse use = whole();
  use.pulled = true;
  port.queues.use(use);
  CHECK(port.queues.fedByMedia());
  port.queues.want(160);
  CHECK(port.queues.wanted() == 160);
  port.write(40);
  CHECK(port.queues.wanted() == 120);
  port.queues.want(160);
  CHECK(port.queues.wanted() == 120);
  port.write(200);
  CHECK(port.queues.wanted() == 0);
  port.queues.want(160);
  CHECK(port.queues.wanted() == 0);
  port.request();
  port.queues.want(160);
  CHECK(port.queues.wanted() == 80);
  port.queues.setRate(16000);  // what is asked for is of the old rate
  CHECK(port.queues.wanted() == 0);
  port.queues.want(320);
  CHECK(port.queues.wanted() == 320);
  port.queues.use(whole());
  CHECK(port.queues.wanted() == 0);
}

void anotherRateOfAWholeLegIsHeardAnew() {
  Port port;
  PortUse use = whole();
  use.read = true;
  port.queues.use(use);
  Samples frame(320), tick(80);
  port.packet();
  port.queues.takeWhole(frame.data(), 160, 0);
  port.read();
  port.queues.setRate(16000);
  CHECK(!port.queues.read(tick.data(), 40, 8000));
  CHECK(port.queues.read(tick.data(), 80, 16000));
  const Samples packet(320, 7);
  port.queues.received(packet.data(), packet.size());
  port.queues.takeWhole(frame.data(), 320, 0);
  CHECK(frame == packet);
  CHECK(port.queues.read(tick.data(), 80, 16000));
  CHECK(tick == Samples(80, 7));
}

void lostWholeFrameIsMadeUpOnce() {
  for (bool bridged : {false, true}) {
    Port port;
    port.queues.use(whole());
    Samples frame(160);
    for (int i = 0; i < 5; ++i) port.packet(), port.queues.takeWhole(frame.data(), 160, 0);
    if (bridged) port.queues.takeWhole(frame.data(), 160, 0);  // it was waited for no longer
    port.next_in += 160;
    CHECK(port.queues.lost(nullptr, 160) == (bridged ? 0u : 160u));
    port.packet();
    if (!bridged) port.queues.takeWhole(frame.data(), 160, 0);
    port.queues.takeWhole(frame.data(), 160, 0);
    CHECK(frame.back() == port.next_in - 1);
    CHECK(port.queues.captureDepth() == 0);
    const PortStats stats = port.queues.stats();
    CHECK(stats.concealed_frames == (bridged ? 0u : 1u) && stats.dropped_frames == (bridged ? 1u : 0u));
  }
}

// The media thread changes what it wants while the clock takes and sends, and a third asks.
void usesMayChangeAtAnyTime() {
  const auto port = std::make_shared<PortQueues>(8000, kMaxMs), other = std::make_shared<PortQueues>(8000, kMaxMs);
  std::atomic<bool> running{true};
  std::thread clock([&] {
    Samples frame(320, 1000);
    for (int i = 0; i < 4000; ++i) {
      const unsigned rate_hz = port->rateHz();
      port->received(frame.data(), rate_hz / 50);
      port->want(rate_hz / 50);
      if (port->whole()) {
        const auto listener = port->takeWhole(frame.data(), rate_hz / 50, 0);
        if (listener) listener->write(frame.data(), rate_hz / 50, rate_hz);
      }
      if (i % 3 == 0) port->lost(nullptr, rate_hz / 50);
      port->requested(frame.data(), rate_hz / 50);
      if (i % 500 == 0) port->setRate(i % 1000 ? 8000 : 16000);
    }
    running = false;
  });
  std::thread control([&] {
    while (running) port->stats(), port->clear(), port->takeMarks(), port->mark(1);
  });
  Samples samples(1000);
  for (unsigned i = 0; running; ++i) {
    PortUse use;
    use.read = i % 2;
    use.written = i % 3 == 0;
    use.whole = use.read || i % 5 == 0;
    use.delivered = i % 7 < 4;
    use.pulled = use.whole && !use.written;
    use.muted = i % 11 == 0;
    if (i % 4 == 0) use.listener = i % 8 ? port : other;
    port->use(use);
    const unsigned rate_hz = port->rateHz();
    if (use.read) port->read(samples.data(), rate_hz / 200, rate_hz);
    if (use.written) port->write(samples.data(), rate_hz / 200, rate_hz);
    port->takeDelivery(samples.data(), samples.size());
    if (const size_t count = port->wanted()) port->write(samples.data(), std::min(count, samples.size()), rate_hz);
  }
  clock.join();
  control.join();
  CHECK(port->stats().capture_depth_ms <= kMaxMs);
}

void threadsMayMeet() {
  PortQueues port(8000, kMaxMs);
  std::atomic<bool> running{true};
  std::thread clock([&] {
    Samples frame(160, 1000);
    for (int i = 0; i < 3000; ++i) {
      port.received(frame.data(), frame.size());
      if (i % 7 == 0) port.lost(frame.data(), frame.size());
      port.captureDepth();
      if (i % 50 == 0) port.sendingBegins();
      if (!port.playbackIsLate(160)) port.requested(frame.data(), frame.size());
    }
    running = false;
  });
  std::thread media([&] {
    Samples samples(480);
    bool active = false;
    while (running) {
      port.use((active = !active) ? inPieces() : PortUse{});
      const unsigned rate_hz = port.rateHz();
      port.read(samples.data(), rate_hz / 200, rate_hz);
      port.write(samples.data(), rate_hz / 200, rate_hz);
    }
  });
  unsigned long long set = 0, reached = 0;
  for (unsigned i = 0; running; ++i) {
    port.mark(++set);
    if (i % 10 == 0) port.clear();
    if (i % 100 == 0) port.setRate(i % 200 ? 8000 : 16000);
    for (const PortMark& mark : port.takeMarks()) CHECK(mark.id == ++reached);
    port.stats();
  }
  clock.join();
  media.join();
  port.clear();
  reached += port.takeMarks().size();
  CHECK(reached == set);
}

}  // namespace

int main() {
  bothDirectionsCarryAudio();
  peaksAreOfTheTimeSinceTheLastLook();
  lossThatWasBridgedIsNotPlayedAgain();
  lossesInARowAreCountedOnce();
  latePacketIsNoLoss();
  marksFireWhenAllBeforeThemWasTaken();
  marksInTheMiddleOfAFrameFireAfterIt();
  clearedMarksSaySo();
  marksOutliveTrimsAndOverflow();
  anotherRateDropsWhatWaits();
  lateIsWhoIsHeardAndHasTooLittle();
  audioFromBeforeIsNotPlayed();
  wholeFramesGoToTheListenerAndTheMediaThread();
  deliveryThatNobodyTakesIsBounded();
  goneListenerIsNobody();
  wholeFramesFadeInAndOut();
  wantedIsWhatIsMissing();
  anotherRateOfAWholeLegIsHeardAnew();
  lostWholeFrameIsMadeUpOnce();
  usesMayChangeAtAnyTime();
  threadsMayMeet();
  return checkResult();
}
