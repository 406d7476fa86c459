// SPDX-License-Identifier: GPL-3.0-or-later
// A call whose audio goes through the clock and a FramePort instead of pjsua2's conference bridge.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <pjsua2.hpp>

#include "engine.hpp"
#include "frame_port.hpp"

// What is counted about the RTP of a call, by pjmedia's RTCP session; over all streams that it has had.
struct RtpStats {
  bool running = false;             // the call has a stream
  bool receiving = false;           // it was negotiated to receive
  bool sending = false;
  bool silence_suppressed = false;  // agreed: the far side may stop sending while nobody speaks (CN, Opus DTX)
  unsigned long long received_packets = 0, sent_packets = 0;
  unsigned long long lost_packets = 0, late_packets = 0, reordered_packets = 0, duplicate_packets = 0;
  double jitter_ms = 0;             // of what arrives (RFC 3550 6.4.1)
  double remote_jitter_ms = 0;      // of what the far side receives from us, by its reports
  unsigned long long remote_lost_packets = 0;
  double round_trip_ms = 0;
  unsigned long long foreign_packets = 0;  // RTP and RTCP from addresses that are not the far side's; dropped
  std::string codec;                // "PCMU/8000"
};

#ifndef SWIG
class PjStream;
struct MediaSources;
#endif

// Thread: the SIP thread. Python subclasses it for the callbacks of a call's life; those of its media end here.
class BridgeCall : public pj::Call {
 public:
  BridgeCall(Engine& engine, pj::Account& account, FramePort& port, int call_id = PJSUA_INVALID_ID);
  ~BridgeCall() override;

  // What the SDP of this call offers and answers, in this order of preference; names as in SDP, any case.
  void setCodecs(const std::vector<std::string>& names) { codecs_ = names; }
  // The address in the SDP of this call; empty leaves pjsua2's choice.
  void setMediaAddress(const std::string& address) { media_address_ = address; }
  // Where RTP may come from and go to beside the address that the far side's SDP names: see SourcePolicy. `networks`
  // as "192.0.2.0/24" or an address alone, `nat` "off", "on" or "auto". Before the first SDP; without it, nowhere.
  void setMediaSources(const std::vector<std::string>& networks, const std::string& nat,
                       const std::string& signalling_address);
  // makeCall() whose INVITE is sent to next_hop ("sip:192.0.2.1:5060") whatever host its Request-URI names, "" for
  // the ordinary way. The message does not show it; over TLS the certificate has to name the host.
  void makeCallBy(const std::string& uri, const pj::CallOpParam& prm, const std::string& next_hop)
      PJSUA2_THROW(pj::Error);
  // The far side is sent silence instead of what its leg is given, until this is taken back. Any thread.
  void setSilent(bool silent);
  RtpStats rtpStats();
  // RFC 4733 was agreed on for what we send.
  bool canSendTelephoneEvents();
  // Samples a packet of telephone-event of this digit take; false when the stream cannot (no event type agreed on).
  bool sendTelephoneEvent(const std::string& digit, unsigned duration_ms);

  void onCreateMediaTransport(pj::OnCreateMediaTransportParam& prm) override;
  void onStreamCreated(pj::OnStreamCreatedParam& prm) override;
  void onStreamDestroyed(pj::OnStreamDestroyedParam& prm) override;
  void onCallSdpCreated(pj::OnCallSdpCreatedParam& prm) override;

 private:
#ifndef SWIG
  Engine& engine_;
  int account_id_;
  int port_id_;
  std::shared_ptr<PortQueues> queues_;
  std::vector<std::string> codecs_;
  std::string media_address_;
  std::string server_name_;  // of the call that is being made, where it goes by a next hop
  std::shared_ptr<MediaSources> sources_;
  std::unordered_map<void*, std::shared_ptr<PjStream>> streams_;
  RtpStats before_;  // of the streams that re-INVITEs have replaced, or of the last one
#endif
};
