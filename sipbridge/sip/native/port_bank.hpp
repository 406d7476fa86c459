// SPDX-License-Identifier: GPL-3.0-or-later
// All ports at once: every capture into one matrix, every playback out of one, each in a single call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "port_queues.hpp"

// Rows are laid out by the media thread, which alone calls layout(), read() and write(). Matrices are int16, C order,
// (rows, columns); of row i the first rate_i * tick_ms / 1000 samples are used. add() and remove() from any thread.
// Copies are the same bank: a port has one, and so may outlive the engine's.
class PortBank {
 public:
  PortBank(unsigned tick_ms, unsigned max_ms) : tick_ms_(tick_ms), max_ms_(max_ms) {}

  unsigned maxMs() const { return max_ms_; }

  // Which port is in which row from now on; rates_hz[i] receives its rate, 0 for a port that is gone. A negative id is
  // a row that is only read: somebody else writes that port's playback.
  void layout(const int32_t* ids, size_t id_count, int32_t* rates_hz, size_t rate_count);
  // Number of rows whose port is gone or has changed its rate since layout(): their samples are silence.
  unsigned read(int16_t* matrix, size_t size);
  void write(const int16_t* matrix, size_t size);
  // Ports that exist; from any thread.
  unsigned size();

#ifndef SWIG
  int add(std::shared_ptr<PortQueues> port);
  void remove(int id);

 private:
  struct Row {
    std::shared_ptr<PortQueues> port;
    unsigned rate_hz;
    bool written;
  };
  struct State {
    std::mutex mutex;
    std::unordered_map<int, std::shared_ptr<PortQueues>> ports;
    int next_id = 1;
    std::vector<Row> rows;
  };
  unsigned tick_ms_, max_ms_;  // max_ms_: the most a queue may hold
  std::shared_ptr<State> state_ = std::make_shared<State>();
#endif
};
