// SPDX-License-Identifier: GPL-3.0-or-later
#include "track_stream.hpp"

#include <time.h>

#include <algorithm>
#include <cmath>

namespace {

constexpr size_t kRtpHeader = 12, kMaxPacket = 2048;
constexpr size_t kMostMail = 256, kMostSpare = 64;
constexpr size_t kMostFrames = 20;                       // decoded and not taken yet
constexpr int64_t kFormerStreamNs = 1'000'000'000;       // for so long packets of a stream that is over may come
constexpr int64_t kReportEveryNs = 2'000'000'000;        // on average
constexpr unsigned kMostResent = 3;                      // of one packet
constexpr int kNoSound = 127, kQuiet = 50;               // dB below the loudest
constexpr int64_t kNtpToUnixS = 2'208'988'800;           // from 1900 to 1970
constexpr int kSenderReport = 200, kReceiverReport = 201, kDescription = 202, kFeedback = 205;
constexpr int kGenericNack = 1;

uint16_t read16(const uint8_t* at) { return uint16_t(at[0] << 8 | at[1]); }
uint32_t read32(const uint8_t* at) { return uint32_t(at[0]) << 24 | uint32_t(at[1]) << 16 | uint32_t(at[2]) << 8 | at[3]; }

void add16(std::string& to, uint32_t value) {
  to += char(value >> 8);
  to += char(value);
}

void add32(std::string& to, uint32_t value) {
  add16(to, value >> 16);
  add16(to, value);
}

// Where both kinds of packets come by one way (RFC 5761, 4).
bool isRtcp(const uint8_t* packet) { return packet[1] >= 192 && packet[1] <= 223; }

}  // namespace

int64_t TrackStream::steadyNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

TrackStream::TrackStream(Options options, int port_id, const Outbox& outbox, Now now)
    : frame_samples_(options.rate_hz / 1000 * AudioCodec::kFrameMs),
      options_(std::move(options)),
      port_id_(port_id),
      outbox_(outbox),
      now_(std::move(now)),
      unix_ns_([&] {
        timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        return t.tv_sec * 1'000'000'000LL + t.tv_nsec - now_();
      }()),
      last_came_ns_(now_()),
      packet_samples_(frame_samples_),
      decoded_(options_.rate_hz / 1000 * AudioCodec::kMaxPacketMs),
      random_(std::random_device{}()) {
  const bool is_chance = options_.first_sequence < 0;
  // a wrap right at the beginning would be a trap for SRTP
  sequence_ = uint16_t(is_chance ? random_() & 0x7fff : unsigned(options_.first_sequence));
  timestamp_ = is_chance ? uint32_t(random_()) : options_.first_timestamp;
  stats_.next_sequence = sequence_;
  stats_.next_timestamp = timestamp_;
  report_ns_ = now_() + kReportEveryNs / 4;
  stats_.silent_ms = 0;
}

// --- any thread

void TrackStream::received(const uint8_t* packet, size_t size) {
  Rtp rtp;
  if (size < 8 || size > kMaxPacket || packet[0] >> 6 != 2 || (!isRtcp(packet) && !parse(packet, size, rtp))) {
    ++malformed_;
    return;
  }
  const int64_t now_ns = now_();
  last_came_ns_ = now_ns;
  std::lock_guard<std::mutex> lock(inbox_mutex_);
  if (inbox_.size() >= kMostMail) {
    ++overflow_;
    return;
  }
  Packet mail{now_ns, {}};
  if (!spare_.empty()) {
    mail.data = std::move(spare_.back());
    spare_.pop_back();
  }
  mail.data.assign(packet, packet + size);
  inbox_.push_back(std::move(mail));
  has_mail_ = true;
}

TrackStats TrackStream::stats() const {
  TrackStats stats;
  {
    std::lock_guard<std::mutex> lock(stats_mutex_);
    stats = stats_;
  }
  stats.malformed += malformed_;
  stats.overflow += overflow_;
  stats.silent_ms = double(now_() - last_came_ns_) / 1e6;
  return stats;
}

// --- what comes

bool TrackStream::parse(const uint8_t* data, size_t size, Rtp& rtp) {
  if (size < kRtpHeader || data[0] >> 6 != 2) return false;
  size_t header = kRtpHeader + 4 * size_t(data[0] & 15);
  if (data[0] & 0x10) {
    if (header + 4 > size) return false;
    header += 4 + 4 * size_t(read16(data + header + 2));
  }
  if (header > size) return false;
  size_t padding = 0;
  if (data[0] & 0x20) {
    padding = data[size - 1];
    if (padding == 0 || header + padding > size) return false;
  }
  rtp = {data[1] & 0x7f, read16(data + 2), read32(data + 4), read32(data + 8), data + header, size - header - padding};
  return true;
}

void TrackStream::takeInbox() {
  if (!has_mail_.load(std::memory_order_relaxed)) return;
  {
    std::lock_guard<std::mutex> lock(inbox_mutex_);
    mail_.swap(inbox_);
    has_mail_ = false;
  }
  for (const Packet& packet : mail_) {
    if (isRtcp(reinterpret_cast<const uint8_t*>(packet.data.data()))) {
      takeRtcp(packet);
    } else {
      takeRtp(packet);
    }
  }
  std::lock_guard<std::mutex> lock(inbox_mutex_);
  for (Packet& packet : mail_) {
    if (spare_.size() < kMostSpare) spare_.push_back(std::move(packet.data));
  }
  mail_.clear();
}

void TrackStream::takeRtp(const Packet& packet) {
  Rtp rtp;
  parse(reinterpret_cast<const uint8_t*>(packet.data.data()), packet.data.size(), rtp);
  if (options_.formats.empty() || !follows(rtp, packet.arrival_ns)) {
    ++counts_.ignored;
    return;
  }
  const auto turn = order_.take(packet.data.data(), packet.data.size());
  if (turn == RtpOrder::Turn::kAgain) {
    ++counts_.duplicates;
    return;
  }
  ++counts_.received;
  reception_.came(rtp.sequence);
  if (const Format* format = formatOf(rtp.payload_type)) {
    reception_.timed(rtp.timestamp, packet.arrival_ns, format->codec->clockHz());
  }
  if (turn == RtpOrder::Turn::kTooLate) ++counts_.late;
  if (turn != RtpOrder::Turn::kNow) return;
  decode(packet.data.data(), packet.data.size());
  RtpOrder::Packet next;
  while (order_.next(next)) decode(next.data(), next.size());
}

// Whether it belongs to what is heard. A source that is new takes over.
bool TrackStream::follows(const Rtp& rtp, int64_t arrival_ns) {
  if (has_remote_ && rtp.ssrc == remote_ssrc_) return true;
  if (has_remote_) {
    if (rtp.ssrc == former_ssrc_ && arrival_ns - switched_ns_ < kFormerStreamNs) return false;
    former_ssrc_ = remote_ssrc_;
    switched_ns_ = arrival_ns;
  }
  has_remote_ = true;
  remote_ssrc_ = rtp.ssrc;
  last_report_ = 0;
  order_.reset();
  reception_.reset();
  for (const Format& format : options_.formats) format.codec->reset();
  return true;
}

const TrackStream::Format* TrackStream::formatOf(int payload_type) const {
  const auto found = std::find_if(options_.formats.begin(), options_.formats.end(),
                                  [&](const Format& format) { return format.payload_type == payload_type; });
  return found == options_.formats.end() ? nullptr : &*found;
}

void TrackStream::decode(const char* data, size_t size) {
  Rtp rtp;
  parse(reinterpret_cast<const uint8_t*>(data), size, rtp);
  const Format* format = formatOf(rtp.payload_type);
  if (!format) {
    ++counts_.ignored;  // as the keys of a telephone, or comfort noise
    return;
  }
  counts_.payload_type = rtp.payload_type;
  if (rtp.size == 0) return;
  if (ready_.size() - ready_at_ + packet_samples_ > kMostFrames * frame_samples_) {
    ++counts_.overflow;  // as others of its length would be; decoding them would only keep the clock from its work
    return;
  }
  if (format_ && format != format_) format->codec->reset();
  format_ = format;
  const size_t count = format->codec->decode(rtp.payload, rtp.size, decoded_.data());
  if (count == 0) {
    ++counts_.malformed;
    format->codec->conceal(nullptr, 0, decoded_.data(), packet_samples_);
    append(decoded_.data(), packet_samples_, true);
    return;
  }
  packet_samples_ = count;
  append(decoded_.data(), count, false);
}

// The next packet is missing, and what comes after it is needed now.
void TrackStream::recover() {
  if (format_) {
    Rtp next{};
    const RtpOrder::Packet* following = order_.following();
    const bool helps = following &&
                       parse(reinterpret_cast<const uint8_t*>(following->data()), following->size(), next) &&
                       formatOf(next.payload_type) == format_ && next.size > 0;
    if (format_->codec->conceals()) {
      format_->codec->conceal(helps ? next.payload : nullptr, next.size, decoded_.data(), packet_samples_);
    } else {
      std::fill_n(decoded_.begin(), packet_samples_, int16_t(0));
    }
    append(decoded_.data(), packet_samples_, true);
  }
  order_.giveUp();
  RtpOrder::Packet packet;
  while (order_.next(packet)) decode(packet.data(), packet.size());
}

void TrackStream::append(const int16_t* samples, size_t count, bool is_lost) {
  if (ready_at_ > 0) {
    ready_.erase(ready_.begin(), ready_.begin() + std::ptrdiff_t(ready_at_));
    ready_at_ = 0;
  }
  if (ready_.size() + count > kMostFrames * frame_samples_) {
    ++counts_.overflow;
    return;
  }
  ready_.insert(ready_.end(), samples, samples + count);
  if (!pieces_.empty() && pieces_.back().second == is_lost) {
    pieces_.back().first += count;
  } else {
    pieces_.emplace_back(count, is_lost);
  }
}

bool TrackStream::isFrameLost() const {
  size_t left = frame_samples_;
  for (const auto& [count, is_lost] : pieces_) {
    if (is_lost) return true;
    if (count >= left) return false;
    left -= count;
  }
  return false;
}

LegStream::Head TrackStream::head() {
  takeInbox();
  if (hasFrame()) return isFrameLost() ? Head::kLost : Head::kFrame;
  return order_.waits() ? Head::kLost : Head::kEmpty;
}

bool TrackStream::get(int16_t* samples) {
  while (!hasFrame() && order_.waits()) recover();
  if (!hasFrame()) return false;
  concealed_ = format_ && format_->codec->conceals();
  std::copy_n(ready_.begin() + std::ptrdiff_t(ready_at_), frame_samples_, samples);
  ready_at_ += frame_samples_;
  for (size_t left = frame_samples_; left > 0;) {
    const size_t part = std::min(left, pieces_.front().first);
    left -= part;
    pieces_.front().first -= part;
    if (pieces_.front().first == 0) pieces_.pop_front();
  }
  return true;
}

// --- what goes

void TrackStream::put(const int16_t* samples) {
  const int64_t now_ns = now_();
  if (options_.send.codec) {
    std::string packet;
    packet.reserve(kRtpHeader + 160);
    packet += char(options_.level_id ? 0x90 : 0x80);
    packet += char((talks_ ? 0 : 0x80) | options_.send.payload_type);
    add16(packet, sequence_);
    add32(packet, timestamp_);
    add32(packet, options_.ssrc);
    if (options_.level_id) addLevel(packet, samples);
    const size_t header = packet.size();
    options_.send.codec->encode(samples, packet);
    talks_ = packet.size() > header;
    if (talks_) {
      ++counts_.sent;
      octets_sent_ += uint32_t(packet.size() - header);
      if (options_.nack) history_[sequence_ % history_.size()] = {sequence_, 0, packet};
      ++sequence_;
      outbox_.push(port_id_, std::move(packet));
    }
  }
  if (now_ns >= report_ns_) report(now_ns);
  if (options_.send.codec) timestamp_ += options_.send.codec->clockHz() / 1000 * AudioCodec::kFrameMs;
  counts_.lost = uint64_t(reception_.lost());
  counts_.jitter_ms = reception_.jitterMs();
  counts_.next_sequence = sequence_;
  counts_.next_timestamp = timestamp_;
  std::lock_guard<std::mutex> lock(stats_mutex_);
  stats_ = counts_;
}

// RFC 6464, in the shorter form of RFC 8285: how many dB below the loudest that there can be, and whether it may be speech.
void TrackStream::addLevel(std::string& packet, const int16_t* samples) const {
  int64_t energy = 0;
  for (size_t i = 0; i < frame_samples_; ++i) energy += samples[i] * samples[i];
  const double share = double(energy) / double(frame_samples_) / (32768.0 * 32768.0);
  const int level = share > 0 ? int(std::lround(std::min(-10 * std::log10(share), double(kNoSound)))) : kNoSound;
  add32(packet, 0xbede0001);
  packet += char(options_.level_id << 4);
  packet += char((level < kQuiet ? 0x80 : 0) | level);
  add16(packet, 0);
}

uint64_t TrackStream::ntp(int64_t now_ns) const {
  const int64_t unix_ns = unix_ns_ + now_ns;
  const uint64_t seconds = uint64_t(unix_ns / 1'000'000'000 + kNtpToUnixS);
  const uint64_t rest_ns = uint64_t(unix_ns % 1'000'000'000);
  return seconds << 32 | (rest_ns << 32) / 1'000'000'000;
}

// RFC 3550, 6.4: a report with its reception block, and who we are.
void TrackStream::report(int64_t now_ns) {
  report_ns_ = now_ns + int64_t(double(kReportEveryNs) * (0.5 + double(random_()) / double(random_.max())));
  const bool sends = counts_.sent > sent_reported_;
  sent_reported_ = counts_.sent;
  std::string packet;
  packet += char(0x80 | (reception_.started() ? 1 : 0));
  packet += char(sends ? kSenderReport : kReceiverReport);
  add16(packet, (sends ? 6 : 1) + (reception_.started() ? 6 : 0));
  add32(packet, options_.ssrc);
  if (sends) {
    const uint64_t time = ntp(now_ns);
    add32(packet, uint32_t(time >> 32));
    add32(packet, uint32_t(time));
    add32(packet, timestamp_);
    add32(packet, uint32_t(counts_.sent));
    add32(packet, octets_sent_);
  }
  if (reception_.started()) {
    const double fraction = reception_.takeFractionLost();
    counts_.loss_percent = 100 * fraction;
    add32(packet, remote_ssrc_);
    const int64_t lost = std::clamp<int64_t>(reception_.lostOfStream(), -0x800000, 0x7fffff);
    add32(packet, uint32_t(std::lround(std::min(fraction * 256, 255.0))) << 24 | (uint32_t(lost) & 0xffffff));
    add32(packet, reception_.highest());
    add32(packet, reception_.jitter());
    add32(packet, last_report_);
    add32(packet, last_report_ ? uint32_t((now_ns - last_report_ns_) * 65536 / 1'000'000'000) : 0);
  }
  std::string who;
  add32(who, options_.ssrc);
  who += char(1);  // CNAME
  who += char(options_.cname.size());
  who += options_.cname;
  who.resize((who.size() / 4 + 1) * 4);  // ends with a null, at a word
  packet += char(0x81);
  packet += char(kDescription);
  add16(packet, uint32_t(who.size() / 4));
  outbox_.push(port_id_, packet + who);
}

// --- what the far side says of it

void TrackStream::takeRtcp(const Packet& compound) {
  const auto* at = reinterpret_cast<const uint8_t*>(compound.data.data());
  for (size_t left = compound.data.size(); left >= 8;) {
    const size_t size = 4 * (size_t(read16(at + 2)) + 1);
    if (at[0] >> 6 != 2 || size > left) {
      ++counts_.malformed;
      return;
    }
    const int count = at[0] & 31;
    const size_t blocks = at[1] == kSenderReport ? 28 : 8;
    if (at[1] == kSenderReport && size >= blocks && has_remote_ && read32(at + 4) == remote_ssrc_) {
      last_report_ = read32(at + 10);
      last_report_ns_ = compound.arrival_ns;
    }
    if (at[1] == kSenderReport || at[1] == kReceiverReport) {
      for (int i = 0; i < count && blocks + 24 * size_t(i + 1) <= size; ++i) {
        takeReport(at + blocks + 24 * i, compound.arrival_ns);
      }
    }
    if (at[1] == kFeedback && count == kGenericNack && options_.nack && size >= 16 && read32(at + 8) == options_.ssrc) {
      for (size_t i = 12; i + 4 <= size; i += 4) {
        const uint16_t first = read16(at + i), more = read16(at + i + 2);
        resend(first);
        for (int bit = 0; bit < 16; ++bit) {
          if (more >> bit & 1) resend(uint16_t(first + bit + 1));
        }
      }
    }
    at += size;
    left -= size;
  }
}

void TrackStream::takeReport(const uint8_t* block, int64_t arrival_ns) {
  if (read32(block) != options_.ssrc || !options_.send.codec) return;
  counts_.remote_loss_percent = block[4] * 100.0 / 256;
  counts_.remote_jitter_ms = double(read32(block + 12)) * 1000 / options_.send.codec->clockHz();
  options_.send.codec->expectLoss(counts_.remote_loss_percent);
  const uint32_t reported = read32(block + 16), held = read32(block + 20);
  if (reported == 0) return;
  const int32_t trip = int32_t(uint32_t(ntp(arrival_ns) >> 16) - reported - held);  // in 1/65536 s
  if (trip >= 0) counts_.round_trip_ms = trip * 1000.0 / 65536;
}

void TrackStream::resend(uint16_t sequence) {
  Sent& sent = history_[sequence % history_.size()];
  if (sent.data.empty() || sent.sequence != sequence || sent.resent >= kMostResent) return;
  ++sent.resent;
  ++counts_.resent;
  outbox_.push(port_id_, sent.data);
}
