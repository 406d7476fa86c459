// SPDX-License-Identifier: GPL-3.0-or-later
// sources: remote_port.cpp outbox.cpp clock.cpp port_bank.cpp
#include "../remote_port.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "check.hpp"

namespace {

constexpr unsigned kTickMs = 5, kFrameMs = 20;
constexpr size_t kFrame = 160;
using Samples = std::vector<int16_t>;

struct House {
  Clock clock{kTickMs};
  PortBank bank{kTickMs, 200};
  Outbox outbox;

  SamplePort port(unsigned member_rate_hz = 8000) { return {clock, bank, outbox, 8000, member_rate_hz, kFrameMs}; }

  // Two that hear each other's whole frames, nobody (0) for one that hears nobody.
  void link(int speaker, int listener) {
    std::vector<int32_t> whole = {speaker, listener, PortBank::kHeard, listener, speaker, PortBank::kHeard};
    bank.layout(nullptr, 0, nullptr, 0, whole.data(), listener ? 6 : 3);
  }

  // What a port heard in some ticks.
  Samples hears(int port_id, int ticks) {
    for (int i = 0; i < ticks; ++i) clock.tick();
    Samples samples;
    for (const Heard& heard : outbox.wait(0)) {
      if (heard.port_id != port_id) continue;
      const size_t at = samples.size();
      samples.resize(at + heard.data.size() / 2);
      std::memcpy(samples.data() + at, heard.data.data(), heard.data.size());
    }
    return samples;
  }
};

void speechGoesFromOneToTheOther() {
  House house;
  SamplePort speaker = house.port();
  SamplePort listener = house.port();
  house.link(speaker.id(), listener.id());
  Samples heard;
  int16_t next = 1000;
  for (int frame = 0; frame < 20; ++frame) {
    Samples said(kFrame);
    for (int16_t& sample : said) sample = next++;
    // in two pieces, of which none is a frame
    speaker.feed(said.data(), 100);
    speaker.feed(said.data() + 100, kFrame - 100);
    const Samples more = house.hears(listener.id(), 4);
    heard.insert(heard.end(), more.begin(), more.end());
  }
  CHECK(heard.size() >= 18 * kFrame);
  size_t start = 0;
  while (start < heard.size() && heard[start] != 1000 + 2 * int16_t(kFrame)) ++start;  // past the beginning's fades
  CHECK(start < 4 * kFrame);
  for (size_t i = start; i < heard.size(); ++i) CHECK(heard[i] == int16_t(1000 + 2 * kFrame + (i - start)));
}

void whatIsClearedIsNotHeard() {
  House house;
  SamplePort speaker = house.port();
  SamplePort listener = house.port();
  house.link(speaker.id(), listener.id());
  const Samples loud(5 * kFrame, 8000);
  speaker.feed(loud.data(), loud.size());
  house.hears(listener.id(), 4);
  speaker.clear();
  house.hears(listener.id(), 8);  // what was on its way fades
  for (int16_t sample : house.hears(listener.id(), 20)) CHECK(sample == 0);
}

void itIsKnownWhatHasBeenHeard() {
  House house;
  SamplePort speaker = house.port();
  SamplePort listener = house.port();
  const Samples loud(3 * kFrame + 10, 8000);
  speaker.feed(loud.data(), loud.size());
  const auto end = speaker.fed();
  CHECK(end == 3 * kFrame);  // the rest is no frame yet
  CHECK(speaker.taken() == 0);
  house.hears(listener.id(), 4);
  CHECK(speaker.fed() == end && speaker.taken() == 0);  // nobody listens, so it waits in the port's queue
  house.link(speaker.id(), listener.id());
  house.hears(listener.id(), 20);
  CHECK(speaker.taken() == end);
  speaker.feed(loud.data(), loud.size());
  CHECK(speaker.fed() == end + 3 * kFrame);
  speaker.clear();
  CHECK(speaker.taken() == speaker.fed() && speaker.taken() == 2 * loud.size());
}

void whatIsWrittenIsHeardUntilItIsCleared() {
  House house;
  SamplePort speaker = house.port();
  SamplePort listener = house.port();
  house.link(speaker.id(), listener.id());
  const Samples loud(5 * kFrame, 8000);
  listener.write(loud.data(), loud.size());
  const Samples heard = house.hears(listener.id(), 8);
  CHECK(std::count(heard.begin(), heard.end(), 8000) >= long(kFrame));
  listener.clearHeard();
  house.hears(listener.id(), 8);
  for (int16_t sample : house.hears(listener.id(), 20)) CHECK(sample == 0);
}

// A member at 16 kHz and another one at 48 kHz, both behind ports of 8 kHz.
void eachHasItsOwnRate() {
  House house;
  SamplePort speaker = house.port(16000);
  SamplePort listener = house.port(48000);
  house.link(speaker.id(), listener.id());
  const Samples said(2 * kFrame, 5000);
  Samples heard;
  for (int frame = 0; frame < 20; ++frame) {
    speaker.feed(said.data(), said.size());
    const Samples more = house.hears(listener.id(), 4);
    CHECK(more.size() == 6 * kFrame);
    heard.insert(heard.end(), more.begin(), more.end());
  }
  CHECK(speaker.fed() == 20 * kFrame);
  for (size_t i = 6 * 5 * kFrame; i < heard.size(); ++i) CHECK(heard[i] == 5000);
}

void aClosedOneIsGone() {
  House house;
  SamplePort listener = house.port();
  {
    SamplePort speaker(house.clock, house.bank, house.outbox, 16000, 16000, 10);
    CHECK(speaker.rateHz() == 16000);
    CHECK(house.bank.size() == 2);
    CHECK(house.clock.stats().legs == 2);
    speaker.close();
    CHECK(house.bank.size() == 1);
    speaker.close();
    const Samples loud(kFrame, 8000);
    speaker.feed(loud.data(), loud.size());
    speaker.clear();
  }
  CHECK(house.clock.stats().legs == 1);
  CHECK(house.hears(listener.id(), 8).size() == 2 * kFrame);  // silence, as a telephone is sent
}

void theOutboxWaitsAndForgetsTheOldest() {
  Outbox outbox;
  CHECK(outbox.wait(1).empty());
  std::thread later([outbox]() mutable {
    outbox.push(7, "seven");
    outbox.flush();
  });
  std::vector<Heard> heard = outbox.wait(5000);
  later.join();
  CHECK(heard.size() == 1 && heard[0].port_id == 7 && heard[0].data == "seven");
  for (size_t i = 0; i < Outbox::kMost + 3; ++i) outbox.push(int(i), "");
  CHECK(outbox.dropped() == 3);
  heard = outbox.wait(0);
  CHECK(heard.size() == Outbox::kMost && heard[0].port_id == 3);
  outbox.close();
  CHECK(outbox.wait(60'000).empty());
}

// Asked for every second tick it waits for two, whatever has been heard by then; a tick that was missed counts.
void theOutboxWaitsForTicks() {
  Outbox outbox;
  std::atomic<int> returned{0};
  std::atomic<size_t> heard{0};
  std::thread waits([&] {
    for (int i = 0; i < 3; ++i) {
      heard = outbox.wait(60'000, 2).size();
      ++returned;
    }
  });
  const auto returns = [&](int times) {
    for (int i = 0; i < 5000 && returned < times; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return returned == times;
  };
  outbox.push(7, "seven");
  outbox.flush();
  outbox.push(7, "eight");
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(returned == 0);
  outbox.flush();
  CHECK(returns(1) && heard == 2);
  outbox.flush();
  outbox.flush();
  CHECK(returns(2) && heard == 0);
  outbox.wake();
  CHECK(returns(3) && heard == 0);
  waits.join();
}

// For the thread sanitizer: the clock, one that feeds, one that takes, one that closes.
void threadsMeet() {
  House house;
  house.clock.start();
  SamplePort first = house.port();
  std::atomic<bool> running{true};
  std::thread taking([&] {
    while (running) house.outbox.wait(20);
  });
  std::thread feeding([&] {
    const Samples loud(kFrame, 8000);
    while (running) {
      first.feed(loud.data(), loud.size());
      first.clear();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  for (int i = 0; i < 50; ++i) {
    SamplePort second = house.port();
    house.link(first.id(), second.id());
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    second.stats();
  }
  running = false;
  taking.join();
  feeding.join();
  house.clock.stop();
}

}  // namespace

int main() {
  speechGoesFromOneToTheOther();
  whatIsClearedIsNotHeard();
  itIsKnownWhatHasBeenHeard();
  whatIsWrittenIsHeardUntilItIsCleared();
  eachHasItsOwnRate();
  aClosedOneIsGone();
  theOutboxWaitsAndForgetsTheOldest();
  theOutboxWaitsForTicks();
  threadsMeet();
  return checkResult();
}
