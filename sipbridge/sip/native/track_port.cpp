// SPDX-License-Identifier: GPL-3.0-or-later
#include "track_port.hpp"

#include <stdexcept>

namespace {

unsigned checkedRate(unsigned rate_hz) {
  for (unsigned known : {8000u, 12000u, 16000u, 24000u, 48000u}) {
    if (rate_hz == known) return rate_hz;
  }
  throw std::invalid_argument("a track has no rate of " + std::to_string(rate_hz) + " Hz");
}

std::shared_ptr<AudioCodec> codecOf(const std::string& name, const TrackSettings& settings) {
  std::shared_ptr<AudioCodec> codec = makeAudioCodec(name, settings.rate_hz, settings.opus);
  if (!codec) throw std::invalid_argument("no codec \"" + name + "\" at " + std::to_string(settings.rate_hz) + " Hz");
  return codec;
}

TrackStream::Options optionsOf(const TrackSettings& settings) {
  TrackStream::Options options;
  options.rate_hz = settings.rate_hz;
  for (const TrackFormat& format : settings.receives) {
    options.formats.push_back({format.payload_type, codecOf(format.codec, settings)});
  }
  if (!settings.sends.codec.empty()) options.send = {settings.sends.payload_type, codecOf(settings.sends.codec, settings)};
  options.ssrc = settings.ssrc;
  options.first_sequence = settings.first_sequence;
  options.first_timestamp = settings.first_timestamp;
  options.cname = settings.cname.substr(0, 255);
  options.nack = settings.nack;
  options.level_id = settings.level_id & 15;
  return options;
}

}  // namespace

TrackPort::TrackPort(Clock& clock, PortBank& bank, Outbox& outbox, const TrackSettings& settings)
    : RemotePort(clock, bank, checkedRate(settings.rate_hz)),
      stream_(std::make_shared<TrackStream>(optionsOf(settings), id(), outbox)) {
  RemotePort::attach(stream_);
}
