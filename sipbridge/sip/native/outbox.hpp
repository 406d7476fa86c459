// SPDX-License-Identifier: GPL-3.0-or-later
// What the members without a telephone hear, on its way to the one thread that carries it to them.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

struct Heard {
  int port_id = 0;
  std::string data;  // a frame of int16 samples, or what the port makes of one
};

// One thread waits, any may push, and says so by `flush`: once for all that it has. Copies are the same outbox: a port
// has one, and so may outlive the engine's.
class Outbox {
 public:
  // All that has been heard since it was asked last, in its order; nothing after timeout_ms, or once it is closed.
  std::vector<Heard> wait(unsigned timeout_ms) {
    std::unique_lock<std::mutex> lock(state_->mutex);
    state_->waits = true;
    state_->changed.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                             [&] { return !state_->heard.empty() || state_->closed; });
    state_->waits = false;
    std::vector<Heard> heard(std::make_move_iterator(state_->heard.begin()), std::make_move_iterator(state_->heard.end()));
    state_->heard.clear();
    return heard;
  }

  // Nobody waits any more.
  void close() {
    {
      std::lock_guard<std::mutex> lock(state_->mutex);
      state_->closed = true;
    }
    state_->changed.notify_all();
  }

  // Frames that a thread which was held for too long has never seen.
  unsigned long long dropped() const {
    std::lock_guard<std::mutex> lock(state_->mutex);
    return state_->dropped;
  }

#ifndef SWIG
  static constexpr size_t kMost = 8192;

  void push(int port_id, std::string data) {
    std::lock_guard<std::mutex> lock(state_->mutex);
    if (state_->heard.size() >= kMost) {
      state_->heard.pop_front();
      ++state_->dropped;
    }
    state_->heard.push_back({port_id, std::move(data)});
  }

  void flush() {
    bool wakes;
    {
      std::lock_guard<std::mutex> lock(state_->mutex);
      wakes = !state_->heard.empty() && std::exchange(state_->waits, false);
    }
    if (wakes) state_->changed.notify_one();
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Heard> heard;
    unsigned long long dropped = 0;
    bool waits = false, closed = false;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
#endif
};
