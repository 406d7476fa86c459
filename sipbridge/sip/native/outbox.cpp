// SPDX-License-Identifier: GPL-3.0-or-later
#include "outbox.hpp"

#include <chrono>
#include <iterator>
#include <utility>

std::vector<Heard> Outbox::wait(unsigned timeout_ms, unsigned every_ticks) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  state_->every_ticks = every_ticks;
  state_->waits = true;
  state_->changed.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                           [&] { return state_->isDue() || state_->closed; });
  state_->waits = state_->woken = false;
  state_->ticks = 0;
  std::vector<Heard> heard(std::make_move_iterator(state_->heard.begin()), std::make_move_iterator(state_->heard.end()));
  state_->heard.clear();
  return heard;
}

void Outbox::wake() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->woken = true;
  }
  state_->changed.notify_all();
}

void Outbox::close() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->closed = true;
  }
  state_->changed.notify_all();
}

unsigned long long Outbox::dropped() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->dropped;
}

void Outbox::push(int port_id, std::string data) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->heard.size() >= kMost) {
    state_->heard.pop_front();
    ++state_->dropped;
  }
  state_->heard.push_back({port_id, std::move(data)});
}

void Outbox::flush() {
  bool wakes;
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    ++state_->ticks;
    wakes = state_->isDue() && std::exchange(state_->waits, false);
  }
  if (wakes) state_->changed.notify_one();
}
