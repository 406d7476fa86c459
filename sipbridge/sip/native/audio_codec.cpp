// SPDX-License-Identifier: GPL-3.0-or-later
#include "audio_codec.hpp"

#include <opus/opus.h>
#include <pjmedia/alaw_ulaw.h>
#include <speex/speex_resampler.h>
#include <strings.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

extern "C" {
// Of pjmedia's G.722, without its endpoint and pools.
#include <pjmedia-codec/../../src/pjmedia-codec/g722/g722_dec.h>
#include <pjmedia-codec/../../src/pjmedia-codec/g722/g722_enc.h>
}

namespace {

constexpr size_t kG711Frame = 8000 / 1000 * AudioCodec::kFrameMs;
constexpr size_t kG722Frame = 16000 / 1000 * AudioCodec::kFrameMs;
constexpr size_t kMaxOctets = 8000 / 1000 * AudioCodec::kMaxPacketMs;  // of G.711 and G.722

class G711 : public AudioCodec {
 public:
  explicit G711(bool is_alaw) : is_alaw_(is_alaw) {}
  unsigned rateHz() const override { return 8000; }
  unsigned clockHz() const override { return 8000; }

  void encode(const int16_t* samples, std::string& payload) override {
    const size_t start = payload.size();
    payload.resize(start + kG711Frame);
    for (size_t i = 0; i < kG711Frame; ++i) {
      payload[start + i] = char(is_alaw_ ? pjmedia_linear2alaw(samples[i]) : pjmedia_linear2ulaw(samples[i]));
    }
  }

  size_t decode(const uint8_t* payload, size_t size, int16_t* samples) override {
    const size_t count = std::min(size, kMaxOctets);
    for (size_t i = 0; i < count; ++i) {
      samples[i] = int16_t(is_alaw_ ? pjmedia_alaw2linear(payload[i]) : pjmedia_ulaw2linear(payload[i]));
    }
    return count;
  }

 private:
  const bool is_alaw_;
};

// At the level that other telephones have, as the SIP legs: see Engine::install().
class G722 : public AudioCodec {
 public:
  G722() {
    g722_enc_init(&encoder_);
    g722_dec_init(&decoder_);
  }
  unsigned rateHz() const override { return 16000; }
  unsigned clockHz() const override { return 8000; }  // RFC 3551, 4.5.2

  void encode(const int16_t* samples, std::string& payload) override {
    int16_t halved[kG722Frame];
    for (size_t i = 0; i < kG722Frame; ++i) halved[i] = int16_t(samples[i] / 2);
    char octets[kG722Frame / 2];
    pj_size_t size = sizeof octets;
    if (g722_enc_encode(&encoder_, halved, kG722Frame, octets, &size) == PJ_SUCCESS) payload.append(octets, size);
  }

  size_t decode(const uint8_t* payload, size_t size, int16_t* samples) override {
    size = std::min(size, kMaxOctets);
    pj_size_t count = 2 * size;
    if (size == 0 || g722_dec_decode(&decoder_, const_cast<uint8_t*>(payload), size, samples, &count) != PJ_SUCCESS) return 0;
    for (size_t i = 0; i < count; ++i) samples[i] = int16_t(std::clamp<int>(samples[i], -16384, 16383) * 2);
    return count;
  }

  void reset() override { g722_dec_init(&decoder_); }

 private:
  g722_enc_t encoder_;
  g722_dec_t decoder_;
};

class Opus : public AudioCodec {
 public:
  Opus(unsigned rate_hz, const OpusSettings& settings) : rate_hz_(rate_hz), settings_(settings) {
    int error = 0;
    encoder_.reset(opus_encoder_create(int(rate_hz), 1, OPUS_APPLICATION_VOIP, &error));
    decoder_.reset(opus_decoder_create(int(rate_hz), 1, &error));
    if (!isGood()) return;
    opus_encoder_ctl(encoder_.get(), OPUS_SET_SIGNAL(OPUS_SIGNAL_VOICE));
    opus_encoder_ctl(encoder_.get(), OPUS_SET_BITRATE(int(settings.bitrate)));
    opus_encoder_ctl(encoder_.get(), OPUS_SET_COMPLEXITY(int(settings.complexity)));
    opus_encoder_ctl(encoder_.get(), OPUS_SET_INBAND_FEC(settings.fec ? 1 : 0));
    opus_encoder_ctl(encoder_.get(), OPUS_SET_DTX(settings.dtx ? 1 : 0));
    expectLoss(0);
  }
  bool isGood() const { return encoder_ && decoder_; }
  unsigned rateHz() const override { return rate_hz_; }
  unsigned clockHz() const override { return 48000; }  // RFC 7587, 4.1
  bool conceals() const override { return true; }

  void encode(const int16_t* samples, std::string& payload) override {
    unsigned char octets[kMaxPayload];
    const int size = opus_encode(encoder_.get(), samples, int(rate_hz_ / 1000 * kFrameMs), octets, sizeof octets);
    // of two octets or less is a frame that need not be sent
    if (size > 2 || (size > 0 && !settings_.dtx)) payload.append(reinterpret_cast<const char*>(octets), size_t(size));
  }

  size_t decode(const uint8_t* payload, size_t size, int16_t* samples) override {
    return decode(payload, size, samples, rate_hz_ / 1000 * kMaxPacketMs, 0);
  }

  void conceal(const uint8_t* next, size_t next_size, int16_t* samples, size_t count) override {
    if (next && decode(next, next_size, samples, count, 1) == count) return;
    if (decode(nullptr, 0, samples, count, 0) != count) std::fill_n(samples, count, int16_t(0));
  }

  void expectLoss(double percent) override {
    const int expected = int(std::lround(std::clamp(percent, kLeastLossPercent, kMostLossPercent)));
    if (expected == expected_loss_) return;
    expected_loss_ = expected;
    opus_encoder_ctl(encoder_.get(), OPUS_SET_PACKET_LOSS_PERC(expected));
  }

  void reset() override { opus_decoder_ctl(decoder_.get(), OPUS_RESET_STATE); }

 private:
  // Without an expected loss the encoder sends nothing for FEC. The first loss would come before the first report of one.
  static constexpr double kLeastLossPercent = 5, kMostLossPercent = 30;
  static constexpr size_t kMaxPayload = 1275;
  struct Free {
    void operator()(OpusEncoder* encoder) const { opus_encoder_destroy(encoder); }
    void operator()(OpusDecoder* decoder) const { opus_decoder_destroy(decoder); }
  };

  size_t decode(const uint8_t* payload, size_t size, int16_t* samples, size_t room, int fec) {
    const int count = opus_decode(decoder_.get(), payload, int(size), samples, int(room), fec);
    return count > 0 ? size_t(count) : 0;
  }

  const unsigned rate_hz_;
  const OpusSettings settings_;
  int expected_loss_ = -1;
  std::unique_ptr<OpusEncoder, Free> encoder_;
  std::unique_ptr<OpusDecoder, Free> decoder_;
};

// A codec for a port of another rate.
class Resampled : public AudioCodec {
 public:
  Resampled(std::unique_ptr<AudioCodec> codec, unsigned rate_hz)
      : codec_(std::move(codec)),
        rate_hz_(rate_hz),
        decoded_(codec_->rateHz() / 1000 * kMaxPacketMs),
        down_(speex_resampler_init(1, rate_hz, codec_->rateHz(), SPEEX_RESAMPLER_QUALITY_VOIP, nullptr)),
        up_(speex_resampler_init(1, codec_->rateHz(), rate_hz, SPEEX_RESAMPLER_QUALITY_VOIP, nullptr)) {}
  bool isGood() const { return down_ && up_; }
  unsigned rateHz() const override { return rate_hz_; }
  unsigned clockHz() const override { return codec_->clockHz(); }
  bool conceals() const override { return codec_->conceals(); }
  void expectLoss(double percent) override { codec_->expectLoss(percent); }

  void encode(const int16_t* samples, std::string& payload) override {
    const size_t frame = codec_->rateHz() / 1000 * kFrameMs;
    convert(down_.get(), samples, rate_hz_ / 1000 * kFrameMs, decoded_.data(), frame);
    codec_->encode(decoded_.data(), payload);
  }

  size_t decode(const uint8_t* payload, size_t size, int16_t* samples) override {
    const size_t came = codec_->decode(payload, size, decoded_.data()), count = came * rate_hz_ / codec_->rateHz();
    convert(up_.get(), decoded_.data(), came, samples, count);
    return count;
  }

  void conceal(const uint8_t* next, size_t next_size, int16_t* samples, size_t count) override {
    const size_t made = count * codec_->rateHz() / rate_hz_;
    codec_->conceal(next, next_size, decoded_.data(), made);
    convert(up_.get(), decoded_.data(), made, samples, count);
  }

  void reset() override {
    codec_->reset();
    speex_resampler_reset_mem(up_.get());
  }

 private:
  struct Free {
    void operator()(SpeexResamplerState* state) const { speex_resampler_destroy(state); }
  };

  static void convert(SpeexResamplerState* state, const int16_t* from, size_t from_count, int16_t* to, size_t to_count) {
    spx_uint32_t taken = spx_uint32_t(from_count), given = spx_uint32_t(to_count);
    speex_resampler_process_int(state, 0, from, &taken, to, &given);
    std::fill(to + given, to + to_count, int16_t(0));
  }

  const std::unique_ptr<AudioCodec> codec_;
  const unsigned rate_hz_;
  std::vector<int16_t> decoded_;
  std::unique_ptr<SpeexResamplerState, Free> down_, up_;
};

std::unique_ptr<AudioCodec> makeAtItsRate(const std::string& name, unsigned rate_hz, const OpusSettings& settings) {
  const auto is = [&](const char* other) { return strcasecmp(name.c_str(), other) == 0; };
  if (is("PCMU") || is("PCMA")) return std::make_unique<G711>(is("PCMA"));
  if (is("G722")) return std::make_unique<G722>();
  if (!is("opus")) return nullptr;
  auto made = std::make_unique<Opus>(rate_hz, settings);
  return made->isGood() ? std::move(made) : nullptr;
}

}  // namespace

std::unique_ptr<AudioCodec> makeAudioCodec(const std::string& name, unsigned rate_hz, const OpusSettings& settings) {
  std::unique_ptr<AudioCodec> codec = makeAtItsRate(name, rate_hz, settings);
  if (!codec || codec->rateHz() == rate_hz) return codec;
  auto resampled = std::make_unique<Resampled>(std::move(codec), rate_hz);
  return resampled->isGood() ? std::move(resampled) : nullptr;
}
