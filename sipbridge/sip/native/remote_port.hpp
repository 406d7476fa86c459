// SPDX-License-Identifier: GPL-3.0-or-later
// A port without a telephone: a program, a browser, a track of some network is a leg like any other.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "clock.hpp"
#include "outbox.hpp"
#include "port_bank.hpp"
#include "stream_resampler.hpp"

// In the bank and under the clock until close(). What it hears comes frame by frame out of the outbox. Any thread.
class RemotePort {
 public:
  virtual ~RemotePort() { close(); }
  RemotePort(const RemotePort&) = delete;
  RemotePort& operator=(const RemotePort&) = delete;

  int id() const { return id_; }
  unsigned rateHz() const { return queues_->rateHz(); }
  PortStats stats() { return queues_->stats(); }
  // What it hears, for what does not go through the bank: more of it, at the port's rate; an end to what waits.
  void write(const int16_t* samples, size_t count) { queues_->write(samples, count, queues_->rateHz()); }
  void clearHeard() { queues_->clear(); }
  void close();

#ifndef SWIG
 protected:
  RemotePort(Clock& clock, PortBank& bank, unsigned rate_hz);
  // Once, at the end of the constructor of whoever has the stream.
  void attach(std::shared_ptr<LegStream> stream);

  const std::shared_ptr<PortQueues> queues_;

 private:
  Clock& clock_;
  PortBank bank_;
  const int id_;
  std::mutex mutex_;
  std::shared_ptr<LegStream> stream_;  // until it is closed
#endif
};

#ifndef SWIG
// Frames of samples both ways, at the member's rate where that is not the port's: what is fed, in pieces of any size,
// lies here until the next tick.
class SampleStream : public LegStream {
 public:
  SampleStream(unsigned rate_hz, unsigned member_rate_hz, size_t frame_samples, int port_id, const Outbox& outbox);

  void feed(const int16_t* samples, size_t count);
  void clear();
  unsigned long long fed();      // samples, up to the last whole frame
  unsigned long long cleared();  // of them

  unsigned rateHz() const override { return rate_hz_; }
  size_t frameSamples() const override { return frame_samples_; }
  Head head() override;
  bool get(int16_t* samples) override;
  bool conceals() const override { return false; }
  void put(const int16_t* samples) override;

 private:
  const unsigned rate_hz_;
  const size_t frame_samples_;
  const int port_id_;
  Outbox outbox_;
  std::mutex mutex_;
  std::vector<int16_t> fed_;
  unsigned long long cleared_ = 0, handed_on_ = 0;
  std::optional<StreamResampler> from_member_;  // under the mutex
  std::optional<StreamResampler> to_member_;    // the clock's, as is the next one
  std::vector<int16_t> heard_;
};
#endif

// A member that speaks and hears samples.
class SamplePort : public RemotePort {
 public:
  // What the member says and hears has its own rate; positions are counted at the port's.
  SamplePort(Clock& clock, PortBank& bank, Outbox& outbox, unsigned rate_hz, unsigned member_rate_hz, unsigned frame_ms);

  // What the member says. It is heard in its own time; more than a queue holds is dropped.
  void feed(const int16_t* samples, size_t count) { stream_->feed(samples, count); }
  // What was fed and has not been heard is dropped.
  void clear();
  // Positions in all that was ever fed: behind the last whole frame, and behind what was taken to be heard, or dropped.
  unsigned long long fed() { return stream_->fed(); }
  unsigned long long taken() { return stream_->cleared() + queues_->captureTaken(); }

#ifndef SWIG
 private:
  std::shared_ptr<SampleStream> stream_;
#endif
};
