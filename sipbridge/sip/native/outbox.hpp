// SPDX-License-Identifier: GPL-3.0-or-later
// What the members without a telephone hear, on its way to the one thread that carries it to them.
#pragma once
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

struct Heard {
  int port_id = 0;
  std::string data;  // a frame of int16 samples, or what the port makes of one
};

// One thread waits, any may push; the clock flushes, once a tick. Copies are the same outbox: a port has one, and so may
// outlive the engine's.
class Outbox {
 public:
  // All that has been heard since it was asked last, in its order. Waits until there is something; or, with
  // `every_ticks`, for so many flushes since it was asked last. Nothing after timeout_ms, or once it is closed.
  std::vector<Heard> wait(unsigned timeout_ms, unsigned every_ticks = 0);
  // Whoever waits has something else to do.
  void wake();
  // Nobody waits any more.
  void close();
  // Frames that a thread which was held for too long has never seen.
  unsigned long long dropped() const;

#ifndef SWIG
  static constexpr size_t kMost = 8192;

  void push(int port_id, std::string data);
  void flush();

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Heard> heard;
    unsigned long long dropped = 0;
    unsigned every_ticks = 0, ticks = 0;  // ticks: since wait() returned last
    bool waits = false, woken = false, closed = false;

    bool isDue() const { return woken || (every_ticks > 0 ? ticks >= every_ticks : !heard.empty()); }
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
#endif
};
