// SPDX-License-Identifier: GPL-3.0-or-later
// The one clock of the process: it takes and sends the audio of every call leg and ticks for the media thread.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "frame_slot.hpp"
#include "port_queues.hpp"

#ifndef SWIG
// One RTP stream as the clock sees it. Called on the clock's thread only, between attach() and detach().
class LegStream {
 public:
  enum class Head { kEmpty, kFrame, kLost };  // what is next in the arrival buffer; kLost: a later packet is there
  virtual ~LegStream() = default;
  virtual unsigned rateHz() const = 0;
  virtual size_t frameSamples() const = 0;  // of one packet, in both directions
  virtual Head head() = 0;
  virtual bool get(int16_t* samples) = 0;   // frameSamples() of them
  virtual bool conceals() const = 0;        // what get() gives for a lost one is made up by its codec, else it is nothing
  virtual void put(const int16_t* samples) = 0;
  virtual unsigned late() { return 0; }     // packets that came when they had been given up, since it was asked last
};
#endif

struct ClockStats {
  unsigned legs = 0;
  unsigned long long ticks = 0;
  unsigned long long late_ticks = 0;  // woken more than half a tick after the schedule
  double worst_late_ms = 0;           // since the last snapshot
  double busy_us = 0;                 // from waking up to the last packet sent in a tick, smoothed
  double media_us = 0;                // of it the wait for the media thread, smoothed
  bool real_time = false;             // the system granted real-time priority
};

// Every tick (absolute schedule, so no drift):
// 1. what has come since the last tick is taken from the sockets, and each stream that has a packet gives it to its port;
// 2. whole frames go on to who hears them: they are sent at once, or lie ready for the media thread;
// 3. the media thread is signalled, and waited for if it makes what is to be sent now;
// 4. each other stream whose slot has come sends what its port has for it. Slots are spread over the ticks. Frames keep
//    their count: one that is late is sent up to two ticks after its slot, and the next one in its own slot again.
class Clock {
 public:
  explicit Clock(unsigned tick_ms);
  ~Clock();

  // Waits until a tick later than `last` and returns its number; returns `last` after timeout_ms, or when the clock has
  // been stopped.
  unsigned long long wait(unsigned long long last, unsigned timeout_ms);
  // Whoever waits for a later tick than the next one has something else to do: wait() returns the last tick.
  void wake();
  // The media thread has done its work of this tick.
  void done(unsigned long long tick);
  void stop();
  ClockStats stats();
  // How long it waits for the media thread in a tick, smoothed.
  double mediaMs();
  unsigned tickMs() const { return tick_ms_; }

#ifndef SWIG
  // `on_thread` runs first on the clock's own thread (pjlib wants to know every thread that calls it), `receive` at the
  // beginning of each tick, `sent` at its end.
  void start(std::function<void()> on_thread = {}, std::function<void()> receive = {}, std::function<void()> sent = {});
  void attach(std::shared_ptr<LegStream> stream, std::shared_ptr<PortQueues> port);
  // When it returns the clock no longer touches the stream, nor will.
  void detach(const LegStream* stream);
  // The work of one tick. Public for tests, which have no time.
  void tick();

 private:
  struct Leg {
    std::shared_ptr<LegStream> stream;
    std::shared_ptr<PortQueues> port;
    std::vector<int16_t> frame;
    int64_t period_ns;
    size_t came = 0;       // samples, in this tick
    int64_t send_ns = 0;   // when its next frame is due
    bool in_step = false;  // with whoever writes what it sends
    FrameSlot slot;        // of its whole frames
  };

  void run(const std::function<void()>& receive, const std::function<void()>& sent);
  void prefetch(size_t index) const;
  void capture(Leg& leg);
  void handOn(Leg& leg);
  void sendNow(Leg& leg);
  void send(Leg& leg);
  bool waitForMedia(int64_t until_ns);
  std::vector<unsigned> slotLoads(int64_t period_ns) const;
  int64_t freeSlot(int64_t period_ns) const;
  int64_t slotInStep(const Leg& leg) const;

  const unsigned tick_ms_;
  const int64_t tick_ns_;
  std::thread thread_;
  std::atomic<bool> running_{false};
  std::mutex legs_mutex_;
  std::vector<std::unique_ptr<Leg>> legs_;
  std::unordered_map<const PortQueues*, Leg*> leg_of_;
  int64_t now_ns_ = 0;  // the ticks so far, as time: it stands still while the machine does
  std::mutex tick_mutex_;
  std::condition_variable tick_changed_;
  unsigned long long tick_ = 0;
  static constexpr unsigned long long kNever = ~0ULL;
  unsigned long long awaited_tick_ = kNever;  // the first that somebody waits for
  std::condition_variable media_done_;
  unsigned long long done_tick_ = 0;
  bool stopped_ = false, woken_ = false;
  std::mutex stats_mutex_;
  ClockStats stats_;
#endif
};
