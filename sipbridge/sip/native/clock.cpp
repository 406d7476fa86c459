// SPDX-License-Identifier: GPL-3.0-or-later
#include "clock.hpp"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <utility>

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

constexpr int kMaxSendWaitTicks = 2;    // a late media thread moves a packet by so much before it is concealed
constexpr int kMaxCatchUpTicks = 20;    // after a longer stop of the machine the lost time is not played in a burst
constexpr int kMaxFramesATick = 16;     // whatever a broken buffer says, one leg cannot hold the clock
constexpr size_t kAhead = 3;            // legs
constexpr double kMediaShare = 0.6;     // of a tick, how long the media thread is waited for

}  // namespace

Clock::Clock(unsigned tick_ms) : tick_ms_(tick_ms), tick_ns_(tick_ms * 1000000LL) {}

Clock::~Clock() { stop(); }

void Clock::start(std::function<void()> on_thread, std::function<void()> receive, std::function<void()> sent) {
  if (running_.exchange(true)) return;
  {
    std::lock_guard<std::mutex> lock(tick_mutex_);
    stopped_ = false;
  }
  thread_ = std::thread([this, on_thread, receive, sent] {
    if (on_thread) on_thread();
    run(receive, sent);
  });
}

void Clock::stop() {
  running_ = false;
  if (thread_.joinable()) thread_.join();
  {
    std::lock_guard<std::mutex> lock(tick_mutex_);
    stopped_ = true;
  }
  tick_changed_.notify_all();
}

unsigned long long Clock::wait(unsigned long long last, unsigned timeout_ms) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  std::unique_lock<std::mutex> lock(tick_mutex_);
  while (tick_ <= last && !stopped_ && !(woken_ && tick_ < last)) {
    awaited_tick_ = std::min(awaited_tick_, last + 1);
    if (tick_changed_.wait_until(lock, until) == std::cv_status::timeout) break;
  }
  const bool woken = std::exchange(woken_, false);
  return woken ? tick_ : std::max(tick_, last);
}

void Clock::wake() {
  {
    std::lock_guard<std::mutex> lock(tick_mutex_);
    woken_ = true;
    if (awaited_tick_ == kNever || awaited_tick_ <= tick_ + 1) return;  // it comes to that by itself
  }
  tick_changed_.notify_all();
}

void Clock::done(unsigned long long tick) {
  {
    std::lock_guard<std::mutex> lock(tick_mutex_);
    done_tick_ = tick;
  }
  media_done_.notify_one();
}

ClockStats Clock::stats() {
  std::lock_guard<std::mutex> legs_lock(legs_mutex_);
  std::lock_guard<std::mutex> lock(stats_mutex_);
  ClockStats snapshot = stats_;
  snapshot.legs = unsigned(legs_.size());
  stats_.worst_late_ms = 0;
  return snapshot;
}

double Clock::mediaMs() {
  std::lock_guard<std::mutex> lock(stats_mutex_);
  return stats_.media_us / 1e3;
}

void Clock::attach(std::shared_ptr<LegStream> stream, std::shared_ptr<PortQueues> port) {
  const int64_t period_ns = 1000000000LL * int64_t(stream->frameSamples()) / stream->rateHz();
  const size_t samples = stream->frameSamples();
  port->sendingBegins();
  auto leg = std::unique_ptr<Leg>(new Leg{std::move(stream), std::move(port), std::vector<int16_t>(samples), period_ns,
                                          0, 0, false, FrameSlot(tick_ns_, period_ns)});
  std::lock_guard<std::mutex> lock(legs_mutex_);
  leg->send_ns = freeSlot(period_ns);
  leg_of_[leg->port.get()] = leg.get();
  legs_.push_back(std::move(leg));
}

void Clock::detach(const LegStream* stream) {
  std::lock_guard<std::mutex> lock(legs_mutex_);
  const auto goes = [&](const auto& leg) {
    if (leg->stream.get() != stream) return false;
    const auto named = leg_of_.find(leg->port.get());
    if (named != leg_of_.end() && named->second == leg.get()) leg_of_.erase(named);
    return true;
  };
  legs_.erase(std::remove_if(legs_.begin(), legs_.end(), goes), legs_.end());
}

// How many frames are due in each tick of a period; the slot of a time is its tick modulo the length.
std::vector<unsigned> Clock::slotLoads(int64_t period_ns) const {
  std::vector<unsigned> load(size_t(std::max<int64_t>(1, period_ns / tick_ns_)));
  for (const auto& leg : legs_) ++load[size_t(leg->send_ns / tick_ns_) % load.size()];
  return load;
}

// The first frame of a new leg is due in a period or more, in the tick in which the fewest others are.
int64_t Clock::freeSlot(int64_t period_ns) const {
  std::vector<unsigned> load = slotLoads(period_ns);
  const auto slotOf = [&](int64_t ns) -> unsigned& { return load[size_t(ns / tick_ns_) % load.size()]; };
  int64_t best = now_ns_ + period_ns;
  for (size_t i = 1; i < load.size(); ++i) {
    const int64_t other = now_ns_ + period_ns + int64_t(i) * tick_ns_;
    if (slotOf(other) < slotOf(best)) best = other;
  }
  return best;
}

// What is looked at first of the legs after this one: it has left the caches since the last tick.
void Clock::prefetch(size_t index) const {
  if (index + 2 * kAhead < legs_.size()) {
    const char* leg = reinterpret_cast<const char*>(legs_[index + 2 * kAhead].get());
    __builtin_prefetch(leg);
    __builtin_prefetch(leg + 64);
  }
  if (index + kAhead < legs_.size()) {
    const Leg& leg = *legs_[index + kAhead];
    __builtin_prefetch(leg.stream.get());
    __builtin_prefetch(reinterpret_cast<const char*>(leg.stream.get()) + 64);
    __builtin_prefetch(leg.port.get());
  }
}

void Clock::capture(Leg& leg) {
  const size_t count = leg.frame.size();
  const size_t tick_samples = leg.stream->rateHz() * tick_ms_ / 1000;
  leg.came = 0;
  if (leg.stream->late() > 0) leg.port->cameTooLate(count);
  for (int i = 0; i < kMaxFramesATick; ++i) {
    const auto head = leg.stream->head();
    if (head == LegStream::Head::kEmpty) return;
    const bool lost = head == LegStream::Head::kLost;
    // it may only be out of order: wait while there is something to play
    if (lost) {
      const size_t depth = leg.port->captureDepth();
      if (leg.port->whole() ? depth >= count || !leg.slot.isDue(now_ns_) : depth >= 2 * tick_samples) return;
    }
    if (!leg.stream->get(leg.frame.data())) return;
    if (lost) {
      leg.came += leg.port->lost(leg.stream->conceals() ? leg.frame.data() : nullptr, count);
    } else {
      leg.came += leg.port->received(leg.frame.data(), count);
    }
  }
}

void Clock::handOn(Leg& leg) {
  if (!leg.port->whole()) {
    leg.slot.stop();
    return;
  }
  const size_t count = leg.frame.size();
  leg.slot.arrived(leg.came);
  while (leg.slot.mayTake(now_ns_) && leg.slot.takes(now_ns_, leg.port->captureDepth(), count)) {
    const auto listener = leg.port->takeWhole(leg.frame.data(), count, leg.slot.waitedTicks() * double(tick_ms_));
    if (!listener || !listener->write(leg.frame.data(), count, leg.port->rateHz())) continue;
    const auto to = leg_of_.find(listener.get());
    if (to != leg_of_.end() && to->second->frame.size() == count) sendNow(*to->second);
  }
}

// What it sends goes on in step with this frame.
void Clock::sendNow(Leg& leg) {
  leg.send_ns = now_ns_ + leg.period_ns;
  leg.port->requested(leg.frame.data(), leg.frame.size());
  leg.stream->put(leg.frame.data());
}

// Its first frame is whole: it goes out at once, and the others at its pace. In a slot that was in step with nothing
// each frame would wait for the rest of the call. A tick that has half more than its share already is passed over.
int64_t Clock::slotInStep(const Leg& leg) const {
  const std::vector<unsigned> load = slotLoads(leg.period_ns);
  const size_t most = legs_.size() * 3 / (2 * load.size()) + 1;
  int64_t slot_ns = now_ns_;
  while (slot_ns < leg.send_ns && load[size_t(slot_ns / tick_ns_) % load.size()] >= most) slot_ns += tick_ns_;
  return std::min(slot_ns, leg.send_ns);
}

void Clock::send(Leg& leg) {
  const size_t count = leg.frame.size();
  if (!leg.port->playbackActive()) {
    leg.in_step = false;
  } else if (!leg.in_step && leg.port->playbackHas(count)) {
    leg.in_step = true;
    leg.send_ns = slotInStep(leg);
  }
  // a wait ends before the next frame is due
  const int64_t longest_wait_ns = std::min(kMaxSendWaitTicks * tick_ns_, leg.period_ns - tick_ns_);
  for (; leg.send_ns <= now_ns_; leg.send_ns += leg.period_ns) {
    const int64_t late_ns = now_ns_ - leg.send_ns;
    if (late_ns < longest_wait_ns && leg.port->playbackIsLate(count)) return;
    // whose frames come from another leg, of another length, is to follow that leg's clock
    if (late_ns >= tick_ns_ && !leg.port->fedByMedia() && leg.port->playbackHas(count)) leg.send_ns = now_ns_;
    leg.port->requested(leg.frame.data(), count);
    leg.stream->put(leg.frame.data());
  }
}

void Clock::tick() {
  const int64_t started_ns = nowNs();
  bool waits = false;
  {
    std::lock_guard<std::mutex> lock(legs_mutex_);
    now_ns_ += tick_ns_;
    for (size_t i = 0; i < legs_.size(); ++i) {
      prefetch(i);
      capture(*legs_[i]);
      handOn(*legs_[i]);
    }
    for (auto& leg : legs_) {
      if (leg->send_ns > now_ns_ || !leg->port->fedByMedia()) continue;
      leg->port->want(leg->frame.size());
      waits = true;
    }
  }
  bool is_awaited;
  {
    std::lock_guard<std::mutex> lock(tick_mutex_);
    is_awaited = ++tick_ >= awaited_tick_;
    if (is_awaited) awaited_tick_ = kNever;
  }
  if (is_awaited) tick_changed_.notify_all();
  double waited_us = 0;
  if (waits) {
    const int64_t from_ns = nowNs();
    waitForMedia(started_ns + int64_t(kMediaShare * double(tick_ns_)));
    waited_us = double(nowNs() - from_ns) / 1e3;
  }
  {
    std::lock_guard<std::mutex> lock(legs_mutex_);
    for (size_t i = 0; i < legs_.size(); ++i) {
      prefetch(i);
      send(*legs_[i]);
    }
  }
  if (!waits) return;
  std::lock_guard<std::mutex> lock(stats_mutex_);
  stats_.media_us = stats_.media_us * 0.99 + 0.01 * waited_us;
}

// Whether it is done; false when it is late, or there is none.
bool Clock::waitForMedia(int64_t until_ns) {
  std::unique_lock<std::mutex> lock(tick_mutex_);
  const auto until = std::chrono::steady_clock::time_point(std::chrono::nanoseconds(until_ns));
  return media_done_.wait_until(lock, until, [&] { return done_tick_ >= tick_; });
}

void Clock::run(const std::function<void()>& receive, const std::function<void()>& sent) {
  sched_param priority{};
  priority.sched_priority = 10;
  {
    std::lock_guard<std::mutex> lock(stats_mutex_);
    stats_.real_time = pthread_setschedparam(pthread_self(), SCHED_RR, &priority) == 0;
  }
  pthread_setname_np(pthread_self(), "clock");
  int64_t next_ns = nowNs();
  while (running_) {
    next_ns += tick_ns_;
    sleepUntil(next_ns);
    const int64_t started_ns = nowNs();
    const int64_t late_ns = started_ns - next_ns;
    if (late_ns > kMaxCatchUpTicks * tick_ns_) next_ns = started_ns;
    if (receive) receive();
    tick();
    if (sent) sent();
    std::lock_guard<std::mutex> lock(stats_mutex_);
    ++stats_.ticks;
    if (late_ns > tick_ns_ / 2) ++stats_.late_ticks;
    stats_.worst_late_ms = std::max(stats_.worst_late_ms, double(late_ns) / 1e6);
    stats_.busy_us = stats_.busy_us * 0.99 + 0.01 * double(nowNs() - started_ns) / 1e3;
  }
}
