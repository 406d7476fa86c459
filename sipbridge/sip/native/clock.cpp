// SPDX-License-Identifier: GPL-3.0-or-later
#include "clock.hpp"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <chrono>

namespace {

int64_t nowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

void sleepUntil(int64_t ns) {
  const timespec t = {time_t(ns / 1000000000LL), long(ns % 1000000000LL)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr) != 0) {
  }
}

constexpr unsigned kMaxSendWaitTicks = 2;  // a late media thread moves a packet by so much before it is concealed

}  // namespace

Clock::Clock(unsigned tick_ms) : tick_ms_(tick_ms) {}

Clock::~Clock() { stop(); }

void Clock::start(std::function<void()> on_thread) {
  if (running_.exchange(true)) return;
  thread_ = std::thread([this, on_thread] {
    if (on_thread) on_thread();
    run();
  });
}

void Clock::stop() {
  running_ = false;
  if (thread_.joinable()) thread_.join();
  tick_changed_.notify_all();
}

unsigned long long Clock::wait(unsigned long long last, unsigned timeout_ms) {
  std::unique_lock<std::mutex> lock(tick_mutex_);
  tick_changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return tick_ > last; });
  return std::max(tick_, last);
}

ClockStats Clock::stats() {
  std::lock_guard<std::mutex> legs_lock(legs_mutex_);
  std::lock_guard<std::mutex> lock(stats_mutex_);
  ClockStats snapshot = stats_;
  snapshot.legs = unsigned(legs_.size());
  stats_.worst_late_ms = 0;
  return snapshot;
}

void Clock::attach(std::shared_ptr<LegStream> stream, std::shared_ptr<PortQueues> port) {
  auto leg = std::make_unique<Leg>();
  leg->period_ns = 1000000000LL * int64_t(stream->frameSamples()) / stream->rateHz();
  leg->frame.resize(stream->frameSamples());
  leg->stream = std::move(stream);
  leg->port = std::move(port);
  std::lock_guard<std::mutex> lock(legs_mutex_);
  const int64_t tick_ns = tick_ms_ * 1000000LL;
  const int64_t slots = std::max<int64_t>(1, leg->period_ns / tick_ns);
  leg->send_ns = nowNs() + leg->period_ns + int64_t(next_slot_++ % slots) * tick_ns;
  legs_.push_back(std::move(leg));
}

void Clock::detach(const LegStream* stream) {
  std::lock_guard<std::mutex> lock(legs_mutex_);
  legs_.erase(std::remove_if(legs_.begin(), legs_.end(), [&](const auto& leg) { return leg->stream.get() == stream; }),
              legs_.end());
}

void Clock::capture(Leg& leg) {
  const size_t count = leg.frame.size();
  const size_t tick_samples = leg.stream->rateHz() * tick_ms_ / 1000;
  // bounded: whatever a broken buffer says, one leg cannot hold the clock
  for (int i = 0; i < 16; ++i) {
    const auto head = leg.stream->head();
    if (head == LegStream::Head::kEmpty) return;
    if (head == LegStream::Head::kLost) {
      if (leg.port->lossWasBridged(count)) {
        leg.stream->get(leg.frame.data());
        continue;
      }
      // it may only be out of order: wait while there is something to play
      if (leg.port->captureDepth() >= 2 * tick_samples) return;
    }
    if (!leg.stream->get(leg.frame.data())) return;
    leg.port->received(leg.frame.data(), count, head == LegStream::Head::kLost);
  }
}

void Clock::send(Leg& leg, int64_t tick_ns) {
  const size_t count = leg.frame.size();
  if (!leg.port->playbackActive()) {
    leg.flowing = false;
  } else if (!leg.flowing && leg.port->playbackHas(count)) {
    // the first frame goes out as soon as it is whole: slots that were in step with nothing would let it wait for good
    leg.flowing = true;
    leg.send_ns = tick_ns;
  }
  if (tick_ns < leg.send_ns) return;
  if (leg.waited < kMaxSendWaitTicks && leg.port->playbackActive() && !leg.port->playbackHas(count)) {
    ++leg.waited;
    return;
  }
  leg.port->requested(leg.frame.data(), count);
  leg.stream->put(leg.frame.data());
  // a packet that was waited for moves its slot: the ones after it are then in time
  leg.send_ns += leg.period_ns + leg.waited * tick_ms_ * 1000000LL;
  leg.waited = 0;
  if (leg.send_ns <= tick_ns) leg.send_ns = tick_ns + leg.period_ns;
}

void Clock::run() {
  sched_param priority{};
  priority.sched_priority = 10;
  {
    std::lock_guard<std::mutex> lock(stats_mutex_);
    stats_.real_time = pthread_setschedparam(pthread_self(), SCHED_RR, &priority) == 0;
  }
  pthread_setname_np(pthread_self(), "clock");
  const int64_t period = tick_ms_ * 1000000LL;
  int64_t next = nowNs();
  while (running_) {
    next += period;
    sleepUntil(next);
    const int64_t started = nowNs();
    const int64_t late = started - next;
    // after a stop of the whole machine the lost time is not played back in a burst
    if (late > 20 * period) next = started;
    {
      std::lock_guard<std::mutex> lock(legs_mutex_);
      for (auto& leg : legs_) capture(*leg);
    }
    {
      std::lock_guard<std::mutex> lock(tick_mutex_);
      ++tick_;
    }
    tick_changed_.notify_one();
    {
      std::lock_guard<std::mutex> lock(legs_mutex_);
      for (auto& leg : legs_) send(*leg, next);
    }
    std::lock_guard<std::mutex> lock(stats_mutex_);
    ++stats_.ticks;
    if (late > period / 2) ++stats_.late_ticks;
    stats_.worst_late_ms = std::max(stats_.worst_late_ms, double(late) / 1e6);
    stats_.busy_us = stats_.busy_us * 0.99 + 0.01 * double(nowNs() - started) / 1e3;
  }
}
