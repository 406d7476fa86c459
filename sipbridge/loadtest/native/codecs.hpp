// SPDX-License-Identifier: GPL-3.0-or-later
// The callers' codecs. G.711 is here; G.722 comes from spandsp and Opus from libopus, each only in a program that was
// built with it (LOAD_G722, LOAD_OPUS), so that a plain test needs a compiler and nothing else.
#pragma once

#include <strings.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "common.hpp"

#ifdef LOAD_G722
#define SPANDSP_EXPOSE_INTERNAL_STRUCTURES 0
#include <spandsp.h>
#endif
#ifdef LOAD_OPUS
#include <opus.h>
#endif

constexpr int kMaxPayload = 1500;
constexpr int kMaxDecoded = 960;  // 120 ms at 8 kHz

// One stream's two directions.
class Codec {
 public:
  virtual ~Codec() = default;
  // 20 ms at the codec's rate; gives the bytes of the payload.
  virtual int encode(const int16_t* samples, uint8_t* payload) = 0;
  // A payload's samples, at 8 kHz; gives their number.
  virtual int decode(const uint8_t* payload, int bytes, int16_t* samples) = 0;
};

struct CodecKind {
  const char* name;
  int payload_type;
  int rate_hz;
  int clock_hz;  // of RTP timestamps: 8000 for G.722, although it samples at 16,000 (RFC 3551, 4.5.2)
  const char* rtpmap;
  int frameSamples() const { return rate_hz / 50; }
};

constexpr CodecKind kCodecs[] = {
    {"PCMU", 0, 8000, 8000, "PCMU/8000"},
    {"PCMA", 8, 8000, 8000, "PCMA/8000"},
    {"G722", 9, 16000, 8000, "G722/8000"},
    {"opus", 111, 48000, 48000, "opus/48000/2"},
};

// ITU-T G.711: table 2 (µ-law) and table 1 (A-law).
inline uint8_t toUlaw(int sample) {
  const int sign = sample < 0 ? 0 : 0x80;
  const int magnitude = std::min(std::abs(sample), 32635) + 132;
  const int exponent = 31 - __builtin_clz(unsigned(magnitude)) - 7;
  return uint8_t(sign | (~((exponent << 4) | ((magnitude >> (exponent + 3)) & 15)) & 0x7f));
}

inline int16_t fromUlaw(uint8_t octet) {
  const int code = ~octet & 0x7f;
  const int magnitude = (((code & 15) << 3) + 132) << (code >> 4);
  return int16_t(octet & 0x80 ? magnitude - 132 : 132 - magnitude);
}

inline uint8_t toAlaw(int sample) {
  const int linear = sample >> 3;
  const int magnitude = linear >= 0 ? linear : -linear - 1;
  const int segment = magnitude < 32 ? 0 : 31 - __builtin_clz(unsigned(magnitude)) - 4;
  const int code = (segment << 4) | ((magnitude >> std::max(segment, 1)) & 15);
  return uint8_t(code ^ (linear >= 0 ? 0xd5 : 0x55));
}

inline int16_t fromAlaw(uint8_t octet) {
  const int code = (octet ^ 0x55) & 0x7f, segment = code >> 4;
  const int step = ((code & 15) << 4) + 8;
  const int magnitude = segment ? (step + 0x100) << (segment - 1) : step;
  return int16_t((octet ^ 0x55) & 0x80 ? magnitude : -magnitude);
}

class G711 : public Codec {
 public:
  G711(uint8_t (*to)(int), int16_t (*from)(uint8_t)) : to_(to) {
    for (int i = 0; i < 256; ++i) decoded_[size_t(i)] = from(uint8_t(i));
  }
  int encode(const int16_t* samples, uint8_t* payload) override {
    for (int i = 0; i < kFrameSamples; ++i) payload[i] = to_(samples[i]);
    return kFrameSamples;
  }
  int decode(const uint8_t* payload, int bytes, int16_t* samples) override {
    const int count = std::min(bytes, kMaxDecoded);
    for (int i = 0; i < count; ++i) samples[i] = decoded_[payload[i]];
    return count;
  }

 private:
  uint8_t (*to_)(int);
  std::array<int16_t, 256> decoded_;
};

#ifdef LOAD_G722
class G722 : public Codec {
 public:
  G722() : encoder_(g722_encode_init(nullptr, 64000, 0)), decoder_(g722_decode_init(nullptr, 64000, 0)) {}
  ~G722() override {
    g722_encode_free(encoder_);
    g722_decode_free(decoder_);
  }
  int encode(const int16_t* samples, uint8_t* payload) override {
    return g722_encode(encoder_, payload, samples, 320);
  }
  int decode(const uint8_t* payload, int bytes, int16_t* samples) override {
    int16_t wide[2 * kMaxDecoded];
    const int count = g722_decode(decoder_, wide, payload, std::min(bytes, kMaxDecoded)) / 2;
    for (int i = 0; i < count; ++i) {  // every second sample, after a short low pass centred on it
      const int after = wide[2 * i + 1];
      samples[i] = int16_t((last_ + 2 * wide[2 * i] + after) / 4);
      last_ = after;
    }
    return count;
  }

 private:
  g722_encode_state_t* encoder_;
  g722_decode_state_t* decoder_;
  int last_ = 0;
};
#endif

#ifdef LOAD_OPUS
class Opus : public Codec {
 public:
  Opus() {
    int error = 0;
    encoder_ = opus_encoder_create(48000, 1, OPUS_APPLICATION_VOIP, &error);
    if (error) fail(opus_strerror(error));
    decoder_ = opus_decoder_create(kRate, 1, &error);
    if (error) fail(opus_strerror(error));
    opus_encoder_ctl(encoder_, OPUS_SET_COMPLEXITY(2));  // these are the callers' costs, not the bridge's
  }
  ~Opus() override {
    opus_encoder_destroy(encoder_);
    opus_decoder_destroy(decoder_);
  }
  int encode(const int16_t* samples, uint8_t* payload) override {
    return std::max(0, int(opus_encode(encoder_, samples, 960, payload, kMaxPayload)));
  }
  int decode(const uint8_t* payload, int bytes, int16_t* samples) override {
    return std::max(0, opus_decode(decoder_, payload, bytes, samples, kMaxDecoded, 0));
  }

 private:
  OpusEncoder* encoder_;
  OpusDecoder* decoder_;
};
#endif

inline const CodecKind& codecNamed(const std::string& name) {
  for (const CodecKind& kind : kCodecs) {
    if (strcasecmp(kind.name, name.c_str()) == 0) return kind;
  }
  fail("no codec " + name + "; PCMU, PCMA, G722 or opus");
}

inline std::unique_ptr<Codec> makeCodec(const CodecKind& kind) {
  switch (kind.payload_type) {
    case 0: return std::make_unique<G711>(toUlaw, fromUlaw);
    case 8: return std::make_unique<G711>(toAlaw, fromAlaw);
#ifdef LOAD_G722
    case 9: return std::make_unique<G722>();
#endif
#ifdef LOAD_OPUS
    case 111: return std::make_unique<Opus>();
#endif
  }
  fail(std::string("this program was built without ") + kind.name);
}

// ---------------------------------------------------------------------------- bursts

constexpr int kBurstSamples = 16;  // 2 ms of 1 kHz, beginning at its peak: a steep edge, and no step of the mean
constexpr int kBurstPeak = 16000;
constexpr int kHeardPeak = kBurstPeak / 2;  // half of a smoothed edge is where the edge was

// Adds a burst that begins `place` samples of 8 kHz into a frame of the codec's rate.
inline void addBurst(const CodecKind& kind, int place, int16_t* frame) {
  const int scale = kind.rate_hz / kRate;
  for (int i = 0; i < kBurstSamples * scale; ++i) {
    frame[place * scale + i] = int16_t(kBurstPeak * std::cos(2 * M_PI * i / (8 * scale)));
  }
}

// How much later a burst is found in what the codec gives back than in what it was given, in ns: the delay that is the
// codec's own (filters, look-ahead), and no bridge's. 0 for G.711.
inline int64_t codecDelay(const CodecKind& kind) {
  constexpr int kFrames = 12, kBurstFrame = 8, kTrials = 8;
  int64_t sum = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto codec = makeCodec(kind);
    const int place = trial * 17;
    int found = -1;
    for (int f = 0; f < kFrames; ++f) {
      std::vector<int16_t> frame(size_t(kind.frameSamples()));
      if (f == kBurstFrame) addBurst(kind, place, frame.data());
      uint8_t payload[kMaxPayload];
      int16_t heard[kMaxDecoded];
      const int count = codec->decode(payload, codec->encode(frame.data(), payload), heard);
      for (int i = 0; i < count && found < 0; ++i) {
        if (std::abs(int(heard[i])) >= kHeardPeak) found = f * kFrameSamples + i;
      }
    }
    if (found < 0) fail(std::string("no burst comes through ") + kind.name);
    sum += (found - kBurstFrame * kFrameSamples - place) * kSample;
  }
  return sum / kTrials;
}
