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

  enum Whole { kDelivered = 1, kPulled = 2, kMuted = 4, kHeard = 8 };

  // Which port is in which row from now on; rates_hz[i] receives its rate, 0 for a port that is gone. A negative id is
  // a row that is only read: somebody else writes that port's playback.
  //
  // `whole` are the legs whose frames are handed on whole, as triples: the id of the port, that of the port that hears
  // its frames directly (0: none), and flags: kDelivered (takeFrames() has them), kPulled (frames() says when one is to
  // be given to it), kMuted, kHeard (the listener hears it already, so the first frame is not faded in). Such a port may
  // be in a row besides, a read-only one.
  void layout(const int32_t* ids, size_t id_count, int32_t* rates_hz, size_t rate_count, const int32_t* whole,
              size_t whole_count);
  // The rate of each port, 0 for one that is gone.
  void rates(const int32_t* ids, size_t id_count, int32_t* rates_hz, size_t rate_count);
  // Number of ports that are gone or have changed their rate since layout(): the samples of their rows are silence.
  unsigned read(int16_t* matrix, size_t size);
  void write(const int16_t* matrix, size_t size);
  // Whole frames that have come, one a row; heads[i] receives the port's id and the number of samples. Returns how many.
  unsigned takeFrames(int32_t* heads, size_t head_values, int16_t* matrix, size_t size);
  // Frames that are to be given now: of each the port's id and the number of samples. Returns how many.
  unsigned wantedFrames(int32_t* heads, size_t head_values);
  // Row i has the samples that heads[i] says; in the order of wantedFrames(). Nothing is taken of a changed rate.
  void giveFrames(const int32_t* heads, size_t head_values, const int16_t* matrix, size_t size);
  // takeMarks() reports it once all that was written to the port before it has been sent, or cleared.
  void mark(int id, unsigned long long mark);
  std::vector<PortMark> takeMarks();
  // How loud what came from each port was at most since this was asked last, 0 for one that is gone. Any thread.
  void levels(const int32_t* ids, size_t id_count, int32_t* peaks, size_t peak_count);
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
  struct WholeLeg {
    int id;
    std::shared_ptr<PortQueues> port;
    unsigned rate_hz;
    bool delivered, pulled;
  };
  struct State {
    std::mutex mutex;
    std::unordered_map<int, std::shared_ptr<PortQueues>> ports;
    int next_id = 1;
    std::vector<Row> rows;
    std::vector<WholeLeg> whole;
    std::vector<PortMark> cleared;  // of ports that are gone
  };
  std::shared_ptr<PortQueues> find(int id) const;

  unsigned tick_ms_, max_ms_;  // max_ms_: the most a queue may hold
  std::shared_ptr<State> state_ = std::make_shared<State>();
#endif
};
