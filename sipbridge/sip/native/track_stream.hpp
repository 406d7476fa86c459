// SPDX-License-Identifier: GPL-3.0-or-later
// A track as the clock sees it: RTP and RTCP packets on one side, frames of samples on the other.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "audio_codec.hpp"
#include "clock.hpp"
#include "outbox.hpp"
#include "rtp_order.hpp"
#include "rtp_reception.hpp"

// A snapshot. Counts of packets, since the track was made.
struct TrackStats {
  unsigned long long sent = 0, received = 0;
  unsigned long long lost = 0;        // never came, or not yet
  unsigned long long late = 0;        // came when they had been given up
  unsigned long long duplicates = 0;
  unsigned long long ignored = 0;     // of a payload type that is none of ours, or a stream that is over
  unsigned long long malformed = 0;   // no RTP or RTCP, or nothing that the codec understands
  unsigned long long overflow = 0;    // came faster than they could be heard, and were dropped
  unsigned long long resent = 0;      // asked for again by the far side
  double loss_percent = 0;            // of what was to come lately,
  double jitter_ms = 0;               // and how unevenly it does (RFC 3550, 6.4.1)
  double remote_loss_percent = 0;     // what the far side says of our packets
  double remote_jitter_ms = 0;
  double round_trip_ms = -1;          // -1: not known yet
  double silent_ms = 0;               // since the last packet of any kind came
  int payload_type = -1;              // of what came last
  unsigned next_sequence = 0;         // of ours: what the next packet will have
  unsigned next_timestamp = 0;
};

#ifndef SWIG
// received() is called by any thread, stats() too; the rest by the clock.
//
//   received() ──► inbox ──► order ──► decoder ──► frames ──► get()
//   outbox ◄── packet ◄── encoder ◄── put()
//          ◄── reports, and packets that were asked for again
//
// Nothing is lost where packets merely pause (DTX). All queues have an end.
class TrackStream : public LegStream {
 public:
  struct Format {
    int payload_type;
    std::shared_ptr<AudioCodec> codec;
  };
  struct Options {
    unsigned rate_hz = 8000;       // of all codecs
    std::vector<Format> formats;   // what may come; nothing of it where the list is empty
    Format send{-1, nullptr};      // without a codec nothing is sent
    uint32_t ssrc = 0;
    std::string cname;
    bool nack = false;             // packets are sent again when they are asked for
    int first_sequence = -1;       // -1: as chance has it, timestamps too
    uint32_t first_timestamp = 0;
    int level_id = 0;              // of the header extension that says how loud a packet is (RFC 6464); 0: none
  };
  using Now = std::function<int64_t()>;  // ns of a clock that never jumps

  TrackStream(Options options, int port_id, const Outbox& outbox, Now now = &steadyNs);

  // An RTP or RTCP packet as it came.
  void received(const uint8_t* packet, size_t size);
  TrackStats stats() const;

  unsigned rateHz() const override { return options_.rate_hz; }
  size_t frameSamples() const override { return frame_samples_; }
  Head head() override;
  bool get(int16_t* samples) override;
  bool conceals() const override { return concealed_; }
  void put(const int16_t* samples) override;
  unsigned late() override { return unsigned(counts_.late - std::exchange(late_told_, counts_.late)); }

 private:
  struct Packet {
    int64_t arrival_ns;
    std::vector<char> data;
  };
  struct Rtp {
    int payload_type;
    uint16_t sequence;
    uint32_t timestamp, ssrc;
    const uint8_t* payload;
    size_t size;
  };
  struct Sent {
    uint16_t sequence = 0;
    unsigned resent = 0;
    std::string data;  // empty: none yet
  };

  static int64_t steadyNs();
  static bool parse(const uint8_t* data, size_t size, Rtp& rtp);

  void takeInbox();
  void takeRtp(const Packet& packet);
  bool follows(const Rtp& rtp, int64_t arrival_ns);
  void takeRtcp(const Packet& packet);
  void takeReport(const uint8_t* block, int64_t arrival_ns);
  void resend(uint16_t sequence);
  const Format* formatOf(int payload_type) const;
  void decode(const char* data, size_t size);
  void recover();
  void append(const int16_t* samples, size_t count, bool is_lost);
  bool hasFrame() const { return ready_.size() - ready_at_ >= frame_samples_; }
  bool isFrameLost() const;
  void addLevel(std::string& packet, const int16_t* samples) const;
  void report(int64_t now_ns);
  uint64_t ntp(int64_t now_ns) const;

  // what is looked at in each tick comes first
  std::atomic<bool> has_mail_{false};
  size_t ready_at_ = 0;
  const size_t frame_samples_;
  std::vector<int16_t> ready_;  // from ready_at_ on
  unsigned long long late_told_ = 0;
  TrackStats counts_;
  RtpOrder order_;

  const Options options_;
  const int port_id_;
  Outbox outbox_;
  const Now now_;
  const int64_t unix_ns_;  // at the zero of that clock

  std::mutex inbox_mutex_;
  std::vector<Packet> inbox_;
  std::vector<std::vector<char>> spare_;  // buffers for the inbox, so that it seldom asks for memory
  std::atomic<unsigned long long> malformed_{0}, overflow_{0};
  std::atomic<int64_t> last_came_ns_;

  std::vector<Packet> mail_;
  bool has_remote_ = false;
  uint32_t remote_ssrc_ = 0, former_ssrc_ = 0;
  int64_t switched_ns_ = 0;
  RtpReception reception_;
  const Format* format_ = nullptr;  // of what came last
  size_t packet_samples_;
  std::vector<int16_t> decoded_;
  std::deque<std::pair<size_t, bool>> pieces_;  // of it: how many, and whether they are made up
  bool concealed_ = false;

  uint16_t sequence_;
  uint32_t timestamp_;
  uint32_t octets_sent_ = 0;
  bool talks_ = false;  // the last frame was sent
  std::array<Sent, 64> history_;
  std::minstd_rand random_;
  int64_t report_ns_;
  unsigned long long sent_reported_ = 0;
  uint32_t last_report_ = 0;  // of the far side: the middle of its time,
  int64_t last_report_ns_ = 0;  // and when it came

  mutable std::mutex stats_mutex_;
  TrackStats stats_;
};
#endif
