// SPDX-License-Identifier: GPL-3.0-or-later
// The port of a track: RTP of some network on one side, a leg like any other on the other.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "remote_port.hpp"
#include "track_stream.hpp"

// A payload type and its codec, as negotiated: "PCMU", "PCMA", "G722" or "opus".
struct TrackFormat {
  int payload_type = -1;
  std::string codec;
};

struct TrackSettings {
  unsigned rate_hz = 8000;            // of the port: 8000, 12000, 16000, 24000 or 48000
  std::vector<TrackFormat> receives;  // empty: what comes is not heard
  TrackFormat sends;                  // without a codec nothing is sent but reports
  uint32_t ssrc = 0;                  // ours
  int first_sequence = -1;            // -1: as chance has it, timestamps too
  uint32_t first_timestamp = 0;
  std::string cname;                  // of 255 characters at most
  bool nack = false;                  // the far side may ask for packets again
  int level_id = 0;                   // of the header extension that says how loud each packet is, 1 to 14; 0: none
  OpusSettings opus;
};

// Any thread. Its packets, reports among them, come out of the outbox.
class TrackPort : public RemotePort {
 public:
  // Throws std::invalid_argument for a rate or a codec that there is not.
  TrackPort(Clock& clock, PortBank& bank, Outbox& outbox, const TrackSettings& settings);

  // An RTP or RTCP packet as it came.
  void received(const uint8_t* packet, size_t size) { stream_->received(packet, size); }
  TrackStats trackStats() const { return stream_->stats(); }

#ifndef SWIG
 private:
  std::shared_ptr<TrackStream> stream_;
#endif
};
