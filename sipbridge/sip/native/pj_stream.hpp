// SPDX-License-Identifier: GPL-3.0-or-later
// A pjmedia stream as the clock sees it.
#pragma once
#include <pjmedia/stream.h>

#include <memory>

#include "clock.hpp"
#include "media_guard.hpp"

// Between the stream's creation and its destruction, both on the SIP thread; the clock's thread calls the rest.
class PjStream : public LegStream {
 public:
  PjStream(pjmedia_stream* stream, std::shared_ptr<MediaSources> sources);
  unsigned rateHz() const override { return rate_hz_; }
  size_t frameSamples() const override { return frame_samples_; }
  Head head() override;
  bool get(int16_t* samples) override;
  bool conceals() const override { return conceals_; }
  unsigned late() override;
  void put(const int16_t* samples) override;

 private:
  Head bufferHead();

  pjmedia_stream_common* common_;
  std::shared_ptr<MediaSources> sources_;
  pjmedia_port* port_;
  unsigned rate_hz_;
  bool conceals_;
  size_t frame_samples_;
  unsigned buffer_frames_;  // entries of pjmedia's buffer in one frame of ours: G.711 is kept there as 10 ms pieces
  bool gap_ = false;           // a packet is missing of which later ones have come
  unsigned late_seen_ = 0;
  unsigned packets_seen_ = 0;  // of those that have come, when its buffer was looked at last
  bool waiting_ = false;       // something was in it then
  unsigned decoded_left_ = 0;  // frames of ours still in the decoder, from one long Opus packet
  pj_uint64_t sent_samples_ = 0;
};
