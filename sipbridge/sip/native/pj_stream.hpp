// SPDX-License-Identifier: GPL-3.0-or-later
// A pjmedia stream as the clock sees it.
#pragma once
#include <pjmedia/stream.h>

#include "clock.hpp"

// Between the stream's creation and its destruction, both on the SIP thread; the clock's thread calls the rest.
class PjStream : public LegStream {
 public:
  explicit PjStream(pjmedia_stream* stream);
  unsigned rateHz() const override { return rate_hz_; }
  size_t frameSamples() const override { return frame_samples_; }
  Head head() override;
  bool get(int16_t* samples) override;
  void put(const int16_t* samples) override;

 private:
  pjmedia_stream_common* common_;
  pjmedia_port* port_;
  unsigned rate_hz_;
  size_t frame_samples_;
  unsigned buffer_frames_;  // entries of pjmedia's buffer in one frame of ours: G.711 is kept there as 10 ms pieces
  unsigned decoded_left_ = 0;  // frames of ours still in the decoder, from one long Opus packet
  pj_uint64_t sent_samples_ = 0;
};
