// SPDX-License-Identifier: GPL-3.0-or-later
// The audio port of one call leg: pjsua2's AudioMediaPort with the two jitter queues, and no Python in a frame.
#pragma once
#include <memory>

#include <pjsua2.hpp>

#include "port_bank.hpp"
#include "port_queues.hpp"

#ifndef SWIG
// What a frame needs. It is a base of the port, in front of pjsua2's own: until that one is gone the conference bridge
// may be in the middle of a frame.
struct FramePortParts {
  PortBank bank_;
  std::shared_ptr<PortQueues> queues_;
  int id_;
};
#endif

// The clock hands it frames straight through its queues, at the rate of the stream. Connected to pjsua2's conference
// bridge instead (createPort(), then startTransmit()), it works the same way through the two callbacks.
class FramePort :
#ifndef SWIG
    private FramePortParts,
#endif
    public pj::AudioMediaPort {
 public:
  FramePort(PortBank& bank, unsigned rate_hz);
  ~FramePort() override;

  int id() const { return id_; }
  unsigned rateHz() const { return queues_->rateHz(); }
  // Empties the playback queue at once; pending marks count as cleared.
  void clear() { queues_->clear(); }
  // At the port's rate; for what does not go through the bank.
  void write(const int16_t* samples, size_t count) { queues_->write(samples, count, queues_->rateHz()); }
  PortStats stats() { return queues_->stats(); }
  // No more in the bank from now on. The memory goes with the last owner, the clock being one.
  void close() { bank_.remove(id_); }

#ifndef SWIG
  void onFrameReceived(pj::MediaFrame& frame) override;
  void onFrameRequested(pj::MediaFrame& frame) override;
  const std::shared_ptr<PortQueues>& queues() const { return queues_; }
#endif
};
