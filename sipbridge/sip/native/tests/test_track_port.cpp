// SPDX-License-Identifier: GPL-3.0-or-later
// sources: track_port.cpp track_stream.cpp audio_codec.cpp remote_port.cpp outbox.cpp clock.cpp port_bank.cpp
// pjsip: yes
#include "../track_port.hpp"

#include <atomic>
#include <cmath>
#include <cstring>
#include <iterator>
#include <random>
#include <stdexcept>
#include <thread>

#include "check.hpp"

namespace {

constexpr unsigned kTickMs = 5;
constexpr size_t kFrame = 160;
constexpr int kPayloadType = 96;
using Samples = std::vector<int16_t>;
using Head = LegStream::Head;

bool isReport(const std::string& packet) { return uint8_t(packet[1]) >= 192 && uint8_t(packet[1]) <= 223; }
uint16_t sequenceOf(const std::string& packet) { return uint16_t(uint8_t(packet[2]) << 8 | uint8_t(packet[3])); }
uint32_t word(const std::string& packet, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | uint8_t(packet[at + i]);
  return value;
}

struct Rtp {
  int payload_type = kPayloadType;
  uint16_t sequence = 0;
  uint32_t timestamp = 0, ssrc = 7;
  std::string payload = {};
  int csrcs = 0, extension_words = -1, padding = 0;

  std::string packet() const {
    std::string out;
    out += char(0x80 | csrcs | (extension_words >= 0 ? 0x10 : 0) | (padding ? 0x20 : 0));
    out += char(payload_type);
    const auto add32 = [&](uint32_t value) {
      for (int shift = 24; shift >= 0; shift -= 8) out += char(value >> shift);
    };
    out += char(sequence >> 8);
    out += char(sequence);
    add32(timestamp);
    add32(ssrc);
    for (int i = 0; i < csrcs; ++i) add32(0xdeadbeef);
    if (extension_words >= 0) {
      add32(0xbede0000u | uint32_t(extension_words));
      for (int i = 0; i < extension_words; ++i) add32(0x10ff0000);
    }
    out += payload;
    if (padding) {
      out += std::string(size_t(padding) - 1, '\0');
      out += char(padding);
    }
    return out;
  }
};

// A codec to look through: a frame is one number, all samples of it.
class Plain : public AudioCodec {
 public:
  explicit Plain(bool conceals = false) : conceals_(conceals) {}
  unsigned rateHz() const override { return 8000; }
  unsigned clockHz() const override { return 8000; }
  bool conceals() const override { return conceals_; }
  void encode(const int16_t* samples, std::string& payload) override {
    if (samples[0] == 0 && silent_) return;
    payload += char(samples[0] >> 8);
    payload += char(samples[0]);
  }
  size_t decode(const uint8_t* payload, size_t size, int16_t* samples) override {
    ++decoded_;
    if (size % 2 || size > 12) return 0;
    for (size_t i = 0; i < size / 2; ++i) {
      std::fill_n(samples + i * kFrame, kFrame, int16_t(payload[2 * i] << 8 | payload[2 * i + 1]));
    }
    return size / 2 * kFrame;
  }
  void conceal(const uint8_t* next, size_t, int16_t* samples, size_t count) override {
    std::fill_n(samples, count, int16_t(next ? -(next[0] << 8 | next[1]) : -1));  // as if it had been made of the next one
  }
  void expectLoss(double percent) override { expected_ = percent; }
  void reset() override { ++resets_; }

  bool silent_ = false;
  double expected_ = -1;
  int resets_ = 0, decoded_ = 0;

 private:
  const bool conceals_;
};

// A stream with a time of its own.
struct Track {
  explicit Track(bool conceals = false, bool nack = false, uint32_t ssrc = 1)
      : codec(std::make_shared<Plain>(conceals)),
        stream({8000, {{kPayloadType, codec}}, {kPayloadType, codec}, ssrc, "who@here", nack}, 1, outbox, [this] { return now_ns; }) {}

  void takes(const std::string& packet) { stream.received(reinterpret_cast<const uint8_t*>(packet.data()), packet.size()); }
  void takes(uint16_t sequence, int16_t value) {
    Rtp rtp;
    rtp.sequence = sequence;
    rtp.timestamp = 160u * sequence;
    rtp.payload = {char(value >> 8), char(value)};
    takes(rtp.packet());
  }
  // Everything that there is now, a frame by its first sample; 0 for what the codec cannot make up.
  std::vector<int> heard() {
    std::vector<int> values;
    int16_t frame[kFrame];
    for (Head head = stream.head(); head != Head::kEmpty; head = stream.head()) {
      if (!stream.get(frame)) break;
      values.push_back(head == Head::kLost && !stream.conceals() ? 0 : frame[0]);
    }
    return values;
  }
  std::vector<std::string> says(int16_t value) {
    int16_t frame[kFrame];
    std::fill_n(frame, kFrame, value);
    stream.put(frame);
    now_ns += 20'000'000;
    std::vector<std::string> packets;
    for (Heard& heard : outbox.wait(0)) packets.push_back(std::move(heard.data));
    return packets;
  }
  // After the next frame, which publishes them.
  TrackStats stats() {
    says(1);
    return stream.stats();
  }

  int64_t now_ns = 1'000'000'000'000;
  Outbox outbox;
  std::shared_ptr<Plain> codec;
  TrackStream stream;
};

using Values = std::vector<int>;

void packetsAreHeardInTheirOrder() {
  Track track;
  track.takes(10, 10);
  CHECK(track.heard() == Values{10});
  CHECK(track.heard().empty());
  track.takes(12, 12);
  CHECK(track.stream.head() == Head::kLost);  // whoever has time may wait
  track.takes(11, 11);
  CHECK((track.heard() == Values{11, 12}));
  track.takes(13, 13);
  track.takes(13, 13);
  track.takes(11, 11);
  CHECK(track.heard() == Values{13});
  const TrackStats stats = track.stats();
  CHECK(stats.received == 4 && stats.duplicates == 2 && stats.lost == 0 && stats.late == 0);
}

void numbersBeginAnew() {
  Track track;
  Values expected;
  Rtp rtp;
  rtp.sequence = 65530;
  rtp.timestamp = 0xffffffff - 500;
  for (int i = 1; i <= 12; ++i) {
    rtp.payload = {0, char(i)};
    track.takes(rtp.packet());
    ++rtp.sequence;
    rtp.timestamp += 160;
    track.now_ns += 20'000'000;
    expected.push_back(i);
  }
  CHECK(track.heard() == expected);
  const TrackStats stats = track.stats();
  CHECK(stats.lost == 0 && stats.jitter_ms == 0);

  for (int i = 0; i < 70'000; ++i) {  // and again, on our side
    const auto packets = track.says(5);
    if (i % 1000 == 0) CHECK(!packets.empty());
  }
  uint16_t before = sequenceOf(track.says(5)[0]);
  for (int i = 0; i < 5; ++i) {
    for (const std::string& packet : track.says(5)) {
      if (isReport(packet)) continue;
      CHECK(sequenceOf(packet) == uint16_t(before + 1));
      before = sequenceOf(packet);
    }
  }
}

void theLostIsMadeUp() {
  Track plain;
  plain.takes(1, 100);
  plain.takes(3, 300);
  CHECK((plain.heard() == Values{100, 0, 300}));
  plain.takes(2, 200);  // after its time
  CHECK(plain.heard().empty());
  CHECK(plain.stream.late() == 1 && plain.stream.late() == 0);
  const TrackStats stats = plain.stats();
  CHECK(stats.late == 1 && stats.lost == 0);

  Track able(true);
  able.takes(1, 100);
  able.takes(3, 300);
  CHECK((able.heard() == Values{100, -300, 300}));
  able.takes(6, 600);  // of the first of two there is nothing in the next one
  CHECK((able.heard() == Values{-1, -600, 600}));
  CHECK(able.stats().lost == 3);
}

void aPauseIsNoLoss() {
  Track track(true);
  track.takes(1, 100);
  CHECK(track.heard() == Values{100});
  for (int i = 0; i < 100; ++i) {
    track.now_ns += 20'000'000;
    CHECK(track.heard().empty());
  }
  CHECK(std::abs(track.stream.stats().silent_ms - 2000) < 1e-6);
  Rtp rtp;
  rtp.sequence = 2;
  rtp.timestamp = 160 * 101;
  rtp.payload = {0, 2};
  track.takes(rtp.packet());
  CHECK(track.heard() == Values{2});
  CHECK(track.stats().lost == 0);
}

void keysAndComfortNoiseTakeTheirNumbers() {
  Track track;
  track.takes(1, 100);
  Rtp event;
  event.payload_type = 101;
  event.sequence = 2;
  event.payload = std::string(4, '\1');
  track.takes(event.packet());
  track.takes(3, 300);
  Rtp empty;  // as those that probe a line
  empty.sequence = 4;
  empty.padding = 100;
  track.takes(empty.packet());
  track.takes(5, 500);
  CHECK((track.heard() == Values{100, 300, 500}));
  const TrackStats stats = track.stats();
  CHECK(stats.ignored == 1 && stats.lost == 0 && stats.payload_type == kPayloadType);
}

void headersOfAllShapesAreRead() {
  Track track;
  Rtp rtp;
  Values expected;
  for (int csrcs : {0, 1, 15}) {
    for (int words : {-1, 0, 1, 5}) {
      for (int padding : {0, 1, 200}) {
        ++rtp.sequence;
        rtp.csrcs = csrcs;
        rtp.extension_words = words;
        rtp.padding = padding;
        rtp.payload = {0, char(rtp.sequence)};
        track.takes(rtp.packet());
        const Values heard = track.heard();
        CHECK(heard == Values{int(rtp.sequence)});
      }
    }
  }
  CHECK(track.stats().malformed == 0);
}

void whatIsBrokenIsCounted() {
  Track track;
  Rtp good;
  good.payload = {0, 1};
  const std::string packet = good.packet();
  track.takes("");
  track.takes(packet.substr(0, 11));
  track.takes(std::string(3000, '\x80'));
  std::string other_version = packet;
  other_version[0] = 0x40;
  track.takes(other_version);
  std::string csrcs = packet;
  csrcs[0] = char(0x8f);
  track.takes(csrcs);
  std::string extension = packet;
  extension[0] = char(0x90);
  track.takes(extension);
  std::string padding = packet;
  padding[0] = char(0xa0);
  padding.back() = char(200);
  track.takes(padding);
  CHECK(track.heard().empty());
  CHECK(track.stream.stats().malformed == 7);
  good.payload = {1, 2, 3};  // the codec says no
  track.takes(good.packet());
  CHECK(track.heard() == Values{0});
  CHECK(track.stats().malformed == 8);

  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) {  // garbage, half of it reports
    std::string garbage(random() % 120, '\0');
    for (char& octet : garbage) octet = char(random());
    if (garbage.size() > 2 && random() % 4) garbage[0] = char(0x80 | (garbage[0] & 0x3f));
    if (garbage.size() > 4 && i % 2) garbage[1] = char(192 + random() % 32);
    if (garbage.size() > 4 && i % 4 == 1) garbage[2] = 0, garbage[3] = char(random() % 16);
    track.takes(garbage);
    if (i % 50 == 0) track.heard();
  }
  track.heard();
  Rtp after;  // and goes on
  after.ssrc = 99;
  track.now_ns += 5'000'000'000;
  for (uint16_t i = 1; i <= 5; ++i) {
    after.sequence = i;
    after.payload = {0, char(i)};
    track.takes(after.packet());
  }
  CHECK((track.heard() == Values{1, 2, 3, 4, 5}));
}

void anotherSourceTakesOver() {
  Track track;
  track.takes(1000, 1);
  CHECK(track.heard() == Values{1});
  const int resets = track.codec->resets_;
  Rtp other;
  other.ssrc = 8;
  other.sequence = 5;
  other.payload = {0, 2};
  track.takes(other.packet());
  track.takes(1001, 3);  // a straggler
  other.sequence = 6;
  track.takes(other.packet());
  CHECK((track.heard() == Values{2, 2}));
  CHECK(track.codec->resets_ == resets + 1);
  const TrackStats stats = track.stats();
  CHECK(stats.ignored == 1 && stats.lost == 0);
  track.now_ns += 2'000'000'000;  // and back
  track.takes(1500, 4);
  CHECK(track.heard() == Values{4});
}

void nothingGrowsWithoutEnd() {
  Track track;
  for (uint16_t i = 0; i < 1000; ++i) track.takes(i, 1);
  CHECK(track.heard().size() <= 256);
  CHECK(track.stream.stats().overflow == 744);
  Track other;
  Rtp rtp;  // six frames in each
  for (uint16_t i = 0; i < 200; ++i) {
    rtp.sequence = i;
    rtp.payload = std::string(12, '\1');
    other.takes(rtp.packet());
  }
  CHECK(other.heard().size() <= 20);
  CHECK(other.stats().overflow > 100);
}

// Decoding takes the clock's time, which is everybody's.
void whatNobodyCouldHearIsNotDecoded() {
  Track track;
  for (uint16_t i = 0; i < 200; ++i) track.takes(i, 1);
  CHECK(track.heard().size() == 20);
  CHECK(track.codec->decoded_ == 20);
  CHECK(track.stats().overflow == 180);
  track.takes(200, 2);
  CHECK(track.heard() == Values{2});
}

// Packets of other lengths than ours.
void framesArePutTogether() {
  Track track;
  Rtp rtp;
  rtp.payload = {0, 1, 0, 2, 0, 3};
  track.takes(rtp.packet());
  CHECK((track.heard() == Values{1, 2, 3}));
}

void reportsTellOfTheLine() {
  Track here(false, false, 1), there(false, false, 2);
  std::vector<std::pair<int64_t, std::string>> to_there, to_here;
  constexpr int64_t kWayNs = 40'000'000, kFrameNs = 20'000'000;
  std::mt19937 random(2);
  int sent = 0, reports = 0;
  for (int frame = 0; frame < 1500; ++frame) {
    for (std::string& packet : here.says(5)) {
      if (isReport(packet)) {
        ++reports;
        CHECK(uint8_t(packet[1]) == 200);
        CHECK(packet.size() % 4 == 0);
      }
      if (!isReport(packet) && ++sent % 10 == 0) continue;
      const int64_t jitter_ns = isReport(packet) ? 0 : int64_t(random() % 10'000'000);
      to_there.emplace_back(here.now_ns + kWayNs - kFrameNs + jitter_ns, packet);
    }
    for (std::string& packet : there.says(6)) to_here.emplace_back(there.now_ns + kWayNs - kFrameNs, packet);
    const auto deliver = [](Track& to, auto& packets) {
      for (auto& [due_ns, packet] : packets) {
        if (due_ns <= 0 || due_ns > to.now_ns) continue;
        const int64_t now_ns = std::exchange(to.now_ns, due_ns);
        to.takes(packet);
        to.now_ns = now_ns;
        due_ns = 0;
      }
    };
    deliver(there, to_there);
    deliver(here, to_here);
    here.heard();
    there.heard();
  }
  CHECK(reports >= 10 && reports <= 40);  // in half a minute
  const TrackStats ours = here.stream.stats(), theirs = there.stream.stats();
  CHECK(std::abs(ours.round_trip_ms - 80) < 1);
  CHECK(std::abs(theirs.round_trip_ms - 80) < 1);
  CHECK(std::abs(ours.remote_loss_percent - 10) < 4);
  CHECK(std::abs(theirs.loss_percent - 10) < 4);
  CHECK(std::abs(double(theirs.lost) - 150) <= 3);
  CHECK(std::abs(here.codec->expected_ - 10) < 4);
  CHECK(theirs.jitter_ms > 1 && theirs.jitter_ms < 8);
  CHECK(std::abs(ours.remote_jitter_ms - theirs.jitter_ms) < 2);
  CHECK(ours.lost == 0 && ours.loss_percent == 0);
}

void oneThatOnlyHearsReportsToo() {
  Outbox outbox;
  int64_t now_ns = 5'000'000'000;
  TrackStream stream({8000, {{kPayloadType, std::make_shared<Plain>()}}, {-1, nullptr}, 77, "me", false}, 3, outbox,
                     [&] { return now_ns; });
  const int16_t silence[kFrame] = {};
  std::string last;
  Rtp rtp;
  for (int i = 0; i < 500; ++i) {
    rtp.payload = {0, 1};
    const std::string packet = rtp.packet();
    stream.received(reinterpret_cast<const uint8_t*>(packet.data()), packet.size());
    ++rtp.sequence;
    stream.head();
    stream.put(silence);
    now_ns += 20'000'000;
    for (const Heard& heard : outbox.wait(0)) {
      CHECK(isReport(heard.data) && heard.port_id == 3);
      last = heard.data;
    }
  }
  CHECK(!last.empty() && uint8_t(last[1]) == 201);
  CHECK(word(last, 4) == 77 && word(last, 8) == 7);
}

std::string nack(uint32_t ssrc, uint16_t first, uint16_t more) {
  std::string packet = {char(0x81), char(205), 0, 3};
  for (uint32_t value : {9u, ssrc, uint32_t(first) << 16 | more}) {
    for (int shift = 24; shift >= 0; shift -= 8) packet += char(value >> shift);
  }
  return packet;
}

void packetsAreSentAgain() {
  Track track(false, true, 11);
  std::vector<std::string> sent;
  for (int16_t i = 1; i <= 100; ++i) {
    for (std::string& packet : track.says(i)) {
      if (!isReport(packet)) sent.push_back(packet);
    }
  }
  const auto again = [&](const std::string& request) {
    track.takes(request);
    track.stream.head();
    std::vector<std::string> packets;
    for (Heard& heard : track.outbox.wait(0)) packets.push_back(heard.data);
    return packets;
  };
  const uint16_t last = sequenceOf(sent.back());
  CHECK((again(nack(11, uint16_t(last - 2), 0b10)) == std::vector<std::string>{sent[97], sent[99]}));
  CHECK(again(nack(12, last, 0)).empty());                    // somebody else's
  CHECK(again(nack(11, uint16_t(last - 80), 0)).empty());     // too old
  CHECK(again(nack(11, uint16_t(last + 1), 0xffff)).empty()); // never sent
  CHECK(again(nack(11, last, 0)).size() == 1 && again(nack(11, last, 0)).size() == 1);
  CHECK(again(nack(11, last, 0)).empty());  // three times are enough
  CHECK(track.stats().resent == 4);
  Track off(false, false, 11);
  const std::string packet = off.says(3)[0];
  off.takes(nack(11, sequenceOf(packet), 0));
  off.stream.head();
  CHECK(off.outbox.wait(0).empty());
}

void silenceNeedNotBeSent() {
  Track track;
  track.codec->silent_ = true;
  const std::string first = track.says(3)[0];
  CHECK(uint8_t(first[1]) == (0x80 | kPayloadType));  // the marker
  CHECK(uint8_t(track.says(3)[0][1]) == kPayloadType);
  for (int i = 0; i < 10; ++i) CHECK(track.says(0).empty());
  const std::string next = track.says(4)[0];
  CHECK(uint8_t(next[1]) == (0x80 | kPayloadType));
  CHECK(sequenceOf(next) == uint16_t(sequenceOf(first) + 2));
  CHECK(word(next, 4) == word(first, 4) + 12 * 160);
}

void packetsSayHowLoudTheyAre() {
  Outbox outbox;
  TrackStream::Options options{8000, {}, {kPayloadType, std::make_shared<Plain>()}, 1, "who@here"};
  options.level_id = 3;
  TrackStream stream(options, 1, outbox);
  // a voice, a whisper, silence, all that there can be
  for (const auto& [value, level] : {std::pair{3277, 0x80 | 20}, {33, 60}, {0, 127}, {-32768, 0x80 | 0}}) {
    int16_t frame[kFrame];
    std::fill_n(frame, kFrame, int16_t(value));
    stream.put(frame);
    const std::string packet = outbox.wait(0)[0].data;
    CHECK(uint8_t(packet[0]) == 0x90 && packet.size() == 12 + 8 + 2);
    CHECK(word(packet, 12) == 0xbede0001 && word(packet, 16) == (0x30000000u | uint32_t(level) << 16));
    CHECK(int16_t(uint8_t(packet[20]) << 8 | uint8_t(packet[21])) == int16_t(value));
    CHECK(sequenceOf(packet) == uint16_t(stream.stats().next_sequence - 1));
  }
}

void anotherGoesOnWhereOneWas() {
  Track track;
  for (int i = 0; i < 3; ++i) track.says(3);
  const TrackStats stats = track.stream.stats();
  Outbox outbox;
  TrackStream::Options options{8000, {}, {kPayloadType, track.codec}, 1, "who@here"};
  options.first_sequence = int(stats.next_sequence);
  options.first_timestamp = stats.next_timestamp;
  TrackStream next(options, 2, outbox);
  CHECK(next.stats().next_sequence == stats.next_sequence);
  const int16_t frame[kFrame] = {};
  next.put(frame);
  const std::string expected = track.says(3)[0], packet = outbox.wait(0)[0].data;
  CHECK(sequenceOf(packet) == sequenceOf(expected) && word(packet, 4) == word(expected, 4));
}

// --- with real codecs

struct House {
  Clock clock{kTickMs};
  PortBank bank{kTickMs, 200};
  Outbox outbox;

  TrackPort* make(const std::string& codec, unsigned rate_hz, uint32_t ssrc = 5, OpusSettings opus = {}) {
    TrackSettings settings;
    settings.rate_hz = rate_hz;
    settings.receives = {{kPayloadType, codec}};
    settings.sends = {kPayloadType, codec};
    settings.ssrc = ssrc;
    settings.opus = opus;
    return new TrackPort(clock, bank, outbox, settings);
  }

  void link(int speaker, int listener) {
    std::vector<int32_t> whole = {speaker, listener, PortBank::kHeard, listener, speaker, PortBank::kHeard};
    bank.layout(nullptr, 0, nullptr, 0, whole.data(), 6);
  }

  // The audio packets of a port in a frame's time.
  std::vector<std::string> frame(int port_id) {
    for (int i = 0; i < 4; ++i) clock.tick();
    std::vector<std::string> packets;
    for (const Heard& heard : outbox.wait(0)) {
      if (heard.port_id == port_id && !isReport(heard.data)) packets.push_back(heard.data);
    }
    return packets;
  }
};

void everyCodeOfG711ArrivesAsItIs() {
  for (const char* codec : {"PCMU", "PCMA"}) {
    House house;
    std::unique_ptr<TrackPort> in(house.make(codec, 8000, 1)), out(house.make(codec, 8000, 2));
    house.link(in->id(), out->id());
    Rtp rtp;
    std::string said, heard;
    std::mt19937 random(3);
    for (int frame = 0; frame < 64; ++frame) {
      rtp.payload.clear();
      for (size_t i = 0; i < kFrame; ++i) {
        uint8_t code = uint8_t(random());
        if (code == 0x7f && codec[3] == 'U') code = 0xff;  // minus zero: linear samples have one zero
        rtp.payload += char(code);
      }
      if (frame >= 4) said += rtp.payload;  // after the fade of the beginning
      const std::string packet = rtp.packet();
      in->received(reinterpret_cast<const uint8_t*>(packet.data()), packet.size());
      ++rtp.sequence;
      rtp.timestamp += 160;
      for (const std::string& sent : house.frame(out->id())) heard += sent.substr(12);
    }
    const size_t start = heard.find(said.substr(0, 400));
    CHECK(start != std::string::npos);
    CHECK(heard.size() - start >= said.size() - 2 * kFrame);
    CHECK(said.compare(0, heard.size() - start, heard, start, std::string::npos) == 0);
  }
}

double loudness(const Samples& samples, size_t from) {
  double sum = 0;
  for (size_t i = from; i < samples.size(); ++i) sum += double(samples[i]) * samples[i];
  return std::sqrt(sum / double(samples.size() - from));
}

Samples tone(unsigned rate_hz, double seconds) {
  Samples samples(size_t(rate_hz * seconds));
  for (size_t i = 0; i < samples.size(); ++i) samples[i] = int16_t(8000 * std::sin(2 * M_PI * 500 * double(i) / rate_hz));
  return samples;
}

// What is left of a tone by a codec of which some payloads are lost.
Samples coded(AudioCodec& codec, const Samples& said, int lose_every = 0) {
  const size_t frame = codec.rateHz() / 1000 * AudioCodec::kFrameMs;
  std::vector<std::string> payloads;
  for (size_t at = 0; at + frame <= said.size(); at += frame) {
    payloads.emplace_back();
    codec.encode(said.data() + at, payloads.back());
  }
  Samples heard, decoded(codec.rateHz() / 1000 * AudioCodec::kMaxPacketMs);
  for (size_t i = 0; i < payloads.size(); ++i) {
    const auto bytes = [&](size_t n) { return reinterpret_cast<const uint8_t*>(payloads[n].data()); };
    size_t count = frame;
    if (lose_every && i % size_t(lose_every) == 5 && i + 1 < payloads.size()) {
      codec.conceal(bytes(i + 1), payloads[i + 1].size(), decoded.data(), frame);
    } else {
      count = codec.decode(bytes(i), payloads[i].size(), decoded.data());
    }
    CHECK(count == frame);
    heard.insert(heard.end(), decoded.begin(), decoded.begin() + std::ptrdiff_t(count));
  }
  return heard;
}

void codecsCarryATone() {
  for (const char* name : {"PCMU", "PCMA", "G722", "opus"}) {
    for (unsigned rate_hz : {8000u, 16000u, 24000u, 48000u}) {
      const auto codec = makeAudioCodec(name, rate_hz, {});
      CHECK(codec && codec->rateHz() == rate_hz);
      CHECK(codec->clockHz() == (std::string(name) == "opus" ? 48000u : 8000u));
      const Samples heard = coded(*codec, tone(rate_hz, 1));
      const double level = loudness(heard, heard.size() / 4);
      CHECK(level > 5000 && level < 6200);  // 5657
    }
  }
  const auto opus = makeAudioCodec("opus", 16000, {});
  const Samples gaps = coded(*opus, tone(16000, 2), 10);
  CHECK(loudness(gaps, gaps.size() / 4) > 5000);
  CHECK(!makeAudioCodec("speex", 8000, {}));
  CHECK(!makeAudioCodec("opus", 11025, {}));
}

void garbageDoesNoHarmToACodec() {
  std::mt19937 random(4);
  for (const char* name : {"PCMU", "PCMA", "G722", "opus"}) {
    const auto codec = makeAudioCodec(name, 16000, {});
    Samples decoded(16000 / 1000 * AudioCodec::kMaxPacketMs);
    for (int i = 0; i < 3000; ++i) {
      std::vector<uint8_t> payload(1 + random() % 1900);
      for (uint8_t& octet : payload) octet = uint8_t(random());
      CHECK(codec->decode(payload.data(), payload.size(), decoded.data()) <= decoded.size());
      if (codec->conceals()) codec->conceal(payload.data(), payload.size(), decoded.data(), 320);
    }
  }
}

void opusNeedNotSendSilence() {
  for (const bool dtx : {false, true}) {
    OpusSettings settings;
    settings.dtx = dtx;
    const auto codec = makeAudioCodec("opus", 16000, settings);
    const Samples silence(320, 0);
    int sent = 0;
    for (int i = 0; i < 200; ++i) {
      std::string payload;
      codec->encode(silence.data(), payload);
      sent += !payload.empty();
    }
    CHECK(dtx ? sent < 60 : sent == 200);
  }
}

void whatIsNoneIsRefused() {
  House house;
  int refused = 0;
  for (const auto& [codec, rate_hz] : {std::pair{"speex", 8000u}, {"opus", 11025u}, {"PCMU", 0u}}) {
    try {
      delete house.make(codec, rate_hz);
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  CHECK(refused == 3);
  CHECK(house.bank.size() == 0);
  CHECK(house.clock.stats().legs == 0);
}

// What comes of a far side that is broken, or means harm. RTP and RTCP of ours, of formats that were never agreed on and
// of sources that nobody knows, whose numbers and times leap; half of it with octets changed or cut off, and lengths that
// lie. The same in each run.
class Nonsense {
 public:
  std::string next() {
    std::string packet = chance(3) ? reports() : audio();
    if (chance(2)) spoil(packet);
    return packet;
  }

 private:
  bool chance(unsigned of) { return random_() % of == 0; }
  std::string octets(size_t count) {
    std::string made(count, '\0');
    for (char& octet : made) octet = char(random_());
    return made;
  }

  std::string audio() {
    Rtp rtp;
    rtp.payload_type = chance(4) ? int(random_() % 128) : kPayloadType;
    rtp.sequence = sequence_ = uint16_t(chance(10) ? random_() : sequence_ + 1 + random_() % 3);
    rtp.timestamp = timestamp_ = uint32_t(chance(10) ? random_() : timestamp_ + 960);
    rtp.ssrc = chance(20) ? uint32_t(random_()) : 7;
    constexpr size_t kSizes[] = {0, 1, 2, 80, 160, 1900};
    rtp.payload = octets(kSizes[random_() % std::size(kSizes)]);
    if (chance(4)) rtp.csrcs = int(random_() % 16);
    if (chance(4)) rtp.extension_words = int(random_() % 6);
    if (chance(4)) rtp.padding = int(random_() % 256);
    return rtp.packet();
  }

  std::string reports() {
    constexpr uint8_t kTypes[] = {200, 201, 202, 203, 204, 205, 205, 205, 206, 207};
    constexpr uint32_t kSources[] = {5, 7, 99};
    std::string packets;
    for (size_t i = random_() % 3 + 1; i > 0; --i) {
      const uint8_t type = kTypes[random_() % std::size(kTypes)];
      const size_t words = type == 205 && chance(4) ? 400 : random_() % 20;  // requests for a hundred packets each
      std::string packet = {char(0x80 | (chance(2) ? 1 : random_() % 32)), char(type), char(words >> 8), char(words)};
      packet += octets(4 * words);
      for (size_t at = 4; at + 4 <= packet.size() && at <= 32; at += 4) {  // where sources stand
        if (chance(2)) packet.replace(at, 4, {0, 0, 0, char(kSources[random_() % std::size(kSources)])});
      }
      packets += packet;
    }
    return packets;
  }

  void spoil(std::string& packet) {
    switch (random_() % 6) {
      case 0:
        packet.resize(random_() % (packet.size() + 1));
        break;
      case 1:
        packet += octets(random_() % 40);
        break;
      case 2:
        packet[0] = char(packet[0] | 0x3f);  // CSRCs, an extension and padding, or blocks, that are not there
        break;
      case 3:
        packet[2] = char(random_()), packet[3] = char(random_());  // the length of reports
        break;
      default:
        for (int i = 0; i < 4; ++i) packet[random_() % std::min<size_t>(packet.size(), 40)] = char(random_());
    }
  }

  std::mt19937 random_{6};
  uint16_t sequence_ = 0;
  uint32_t timestamp_ = 0;
};

void nonsenseHarmsNobodyElse() {
  House house;
  TrackSettings settings;
  settings.rate_hz = 16000;
  settings.receives = {{kPayloadType, "opus"}, {0, "PCMU"}, {9, "G722"}};
  settings.sends = {kPayloadType, "opus"};
  settings.ssrc = 5;
  settings.nack = true;
  TrackPort bad(house.clock, house.bank, house.outbox, settings), worse(house.clock, house.bank, house.outbox, settings);
  std::unique_ptr<TrackPort> good(house.make("PCMU", 8000, 1)), hearer(house.make("PCMU", 8000, 2));
  const auto pass = [&](TrackPort& from, TrackPort& to, std::vector<int32_t>& whole) {
    whole.insert(whole.end(), {from.id(), to.id(), PortBank::kHeard});
  };
  std::vector<int32_t> whole;
  pass(*good, *hearer, whole);
  pass(*hearer, *good, whole);
  pass(bad, worse, whole);
  pass(worse, bad, whole);
  house.bank.layout(nullptr, 0, nullptr, 0, whole.data(), unsigned(whole.size()));

  const auto takes = [](TrackPort& port, const std::string& packet) {
    port.received(reinterpret_cast<const uint8_t*>(packet.data()), packet.size());
  };
  Nonsense nonsense;
  std::mt19937 random(7);
  Rtp rtp;
  std::string said, heard;
  for (int frame = 0; frame < 150; ++frame) {
    rtp.payload.clear();
    for (size_t i = 0; i < kFrame; ++i) rtp.payload += char(random() | 0x80);  // but for minus zero
    if (frame >= 4) said += rtp.payload;
    takes(*good, rtp.packet());
    ++rtp.sequence;
    rtp.timestamp += 160;
    for (int i = 0; i < 40; ++i) {
      takes(bad, nonsense.next());
      takes(worse, nonsense.next());
    }
    for (const std::string& sent : house.frame(hearer->id())) heard += sent.substr(12);
  }
  const size_t start = heard.find(said.substr(0, 400));
  CHECK(start != std::string::npos);
  CHECK(heard.size() - start >= said.size() - 2 * kFrame);
  CHECK(said.compare(0, heard.size() - start, heard, start, std::string::npos) == 0);
  CHECK(house.outbox.dropped() == 0);

  const TrackStats stats = bad.trackStats();
  CHECK(stats.malformed > 500 && stats.ignored > 100 && stats.received > 500);
  CHECK(stats.resent > 0 && stats.resent <= 3 * stats.sent);

  // one that comes to its senses is heard
  const auto encoder = makeAudioCodec("opus", 16000, {}), decoder = makeAudioCodec("opus", 16000, {});
  const Samples spoken = tone(16000, 1);
  Samples decoded(16000 / 1000 * AudioCodec::kMaxPacketMs), came;
  Rtp sane;
  sane.ssrc = 1234;
  for (size_t at = 0; at + 320 <= spoken.size(); at += 320) {
    sane.payload.clear();
    encoder->encode(spoken.data() + at, sane.payload);
    takes(bad, sane.packet());
    ++sane.sequence;
    sane.timestamp += 960;
    for (const std::string& sent : house.frame(worse.id())) {
      const size_t count = decoder->decode(reinterpret_cast<const uint8_t*>(sent.data()) + 12, sent.size() - 12, decoded.data());
      came.insert(came.end(), decoded.begin(), decoded.begin() + std::ptrdiff_t(count));
    }
  }
  CHECK(loudness(came, came.size() / 2) > 5000);
}

// For the thread sanitizer: the clock, the network, one that asks and one that closes.
void threadsMeet() {
  House house;
  house.clock.start();
  std::unique_ptr<TrackPort> first(house.make("PCMU", 8000));
  std::atomic<bool> running{true};
  std::thread network([&] {
    Rtp rtp;
    rtp.payload = std::string(kFrame, '\x55');
    while (running) {
      ++rtp.sequence;
      const std::string packet = rtp.packet();
      first->received(reinterpret_cast<const uint8_t*>(packet.data()), packet.size());
      for (const Heard& heard : house.outbox.wait(1)) {
        first->received(reinterpret_cast<const uint8_t*>(heard.data.data()), heard.data.size());
      }
      first->trackStats();
    }
  });
  for (int i = 0; i < 30; ++i) {
    std::unique_ptr<TrackPort> second(house.make("opus", 8000));
    house.link(first->id(), second->id());
    std::this_thread::sleep_for(std::chrono::milliseconds(7));
    second->stats();
  }
  running = false;
  network.join();
  house.clock.stop();
}

}  // namespace

int main() {
  packetsAreHeardInTheirOrder();
  numbersBeginAnew();
  theLostIsMadeUp();
  aPauseIsNoLoss();
  keysAndComfortNoiseTakeTheirNumbers();
  headersOfAllShapesAreRead();
  whatIsBrokenIsCounted();
  anotherSourceTakesOver();
  nothingGrowsWithoutEnd();
  whatNobodyCouldHearIsNotDecoded();
  framesArePutTogether();
  reportsTellOfTheLine();
  oneThatOnlyHearsReportsToo();
  packetsAreSentAgain();
  silenceNeedNotBeSent();
  packetsSayHowLoudTheyAre();
  anotherGoesOnWhereOneWas();
  everyCodeOfG711ArrivesAsItIs();
  codecsCarryATone();
  garbageDoesNoHarmToACodec();
  opusNeedNotSendSilence();
  whatIsNoneIsRefused();
  nonsenseHarmsNobodyElse();
  threadsMeet();
  return checkResult();
}
