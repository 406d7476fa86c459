// SPDX-License-Identifier: GPL-3.0-or-later
// The codecs of tracks (track_port.hpp): samples on one side, RTP payloads on the other.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

struct OpusSettings {
  unsigned bitrate = 32000;  // bit/s
  unsigned complexity = 5;   // 0 to 10
  bool fec = true;           // packets carry what is needed to make up the one before
  bool dtx = false;          // silence is not sent
};

#ifndef SWIG
// One stream's two directions, in frames of 20 ms. Used by one thread.
class AudioCodec {
 public:
  static constexpr unsigned kFrameMs = 20;
  static constexpr unsigned kMaxPacketMs = 120;

  virtual ~AudioCodec() = default;
  virtual unsigned rateHz() const = 0;   // of the samples
  virtual unsigned clockHz() const = 0;  // of RTP timestamps
  // Appends the payload of a frame; nothing where none is to be sent.
  virtual void encode(const int16_t* samples, std::string& payload) = 0;
  // Gives the number of samples, kMaxPacketMs at most; 0 for a payload that is none.
  virtual size_t decode(const uint8_t* payload, size_t size, int16_t* samples) = 0;
  // Whether it can make up what was lost.
  virtual bool conceals() const { return false; }
  // `count` samples in the place of a lost packet; `next` is the payload of the one behind it, if that is there.
  virtual void conceal(const uint8_t* next, size_t next_size, int16_t* samples, size_t count) {
    (void)next, (void)next_size, (void)samples, (void)count;
  }
  // How much the far side has lost lately.
  virtual void expectLoss(double percent) { (void)percent; }
  // Another stream is decoded from now on.
  virtual void reset() {}
};

// "PCMU", "PCMA", "G722" or "opus", for samples at `rate_hz`; nullptr for another name, or a rate that has none. Opus
// itself runs at 8, 12, 16, 24 or 48 kHz; the others have a rate, and are resampled where it is another one.
std::unique_ptr<AudioCodec> makeAudioCodec(const std::string& name, unsigned rate_hz, const OpusSettings& settings);
#endif
