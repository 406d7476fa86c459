// SPDX-License-Identifier: GPL-3.0-or-later
// Keeps the packets of strangers from a call's audio, and the call's audio from strangers.
//
//   stream ◄──► MediaGuard ◄──► SRTP (plain RTP passes) ◄──► UDP sockets
//
// pjmedia sends to wherever enough packets in a row came from. What the stream never sees cannot make it do that:
// RTP and RTCP from an address that SourcePolicy does not admit end here, counted and without a word. The UDP
// transport counts RTCP by itself, below; so the guard names the address of each RTCP packet that goes out.
#pragma once

#include <atomic>
#include <memory>

#include <pjmedia/transport.h>

#include "rtp_order.hpp"
#include "source_policy.hpp"

// Gives a stream the packets in order. Used by the clock's thread; of one stream at a time.
class RtpFeed {
 public:
  virtual ~RtpFeed() = default;
  virtual bool waits() const = 0;  // later packets have come than the one that is missing
  virtual void giveUp() = 0;       // it is not waited for any longer: the stream gets those that follow it
};

// What the guards of one call share with it.
struct MediaSources {
  SourcePolicy policy;  // set before the first media transport is made, not changed after
  std::atomic<unsigned long long> foreign_packets{0};
  std::atomic<unsigned> packets{0};  // RTP that was let through
  std::atomic<unsigned> late_packets{0}, reordered_packets{0}, repeated_packets{0};  // late: and so not heard
  std::atomic<bool> silent{false};  // the far side is on hold, and is sent silence
  RtpFeed* feed = nullptr;  // of the stream that is attached; for the clock's thread
};

// Puts a guard on `below`, which is closed with it. Never fails. Thread: as pjmedia's transports.
// It also puts the packets in order that it lets through.
pjmedia_transport* createMediaGuard(pjmedia_transport* below, std::shared_ptr<MediaSources> sources);
