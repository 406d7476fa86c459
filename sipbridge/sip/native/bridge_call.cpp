// SPDX-License-Identifier: GPL-3.0-or-later
#include "bridge_call.hpp"

#include "media_guard.hpp"
#include "pj_stream.hpp"
#include "rtp_sockets.hpp"

#include <pjmedia/null_port.h>
#include <pjmedia/transport_srtp.h>
#include <pjsua-lib/pjsua.h>
#include <pjsua-lib/pjsua_internal.h>

#include <algorithm>
#include <cctype>

namespace {

std::string text(const pj_str_t& s) { return s.slen > 0 ? std::string(s.ptr, size_t(s.slen)) : std::string(); }

bool sameName(const std::string& a, const std::string& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](unsigned char x, unsigned char y) {
           return std::tolower(x) == std::tolower(y);
         });
}

// The encoding name of a payload type of this media line; the static types need no rtpmap (RFC 3551 6).
std::string encodingName(const pjmedia_sdp_media* media, const pj_str_t& format) {
  pjmedia_sdp_attr* attr = pjmedia_sdp_media_find_attr2(media, "rtpmap", &format);
  pjmedia_sdp_rtpmap map;
  if (attr && pjmedia_sdp_attr_get_rtpmap(attr, &map) == PJ_SUCCESS) return text(map.enc_name);
  switch (pj_strtoul(&format)) {
    case 0: return "PCMU";
    case 3: return "GSM";
    case 8: return "PCMA";
    case 9: return "G722";
    case 18: return "G729";
    default: return "";
  }
}

// Where it is left unsaid, pjmedia makes a stereo stream of a far side that can send stereo, and interleaves its frames.
void askForMonoOpus(pj_pool_t* pool, pjmedia_sdp_media* media) {
  for (unsigned f = 0; f < media->desc.fmt_count; ++f) {
    const pj_str_t& format = media->desc.fmt[f];
    if (!sameName(encodingName(media, format), "opus")) continue;
    pjmedia_sdp_attr* fmtp = pjmedia_sdp_media_find_attr2(media, "fmtp", &format);
    if (fmtp && text(fmtp->value).find("sprop-stereo=") != std::string::npos) continue;
    const std::string value = (fmtp ? text(fmtp->value) + ";" : text(format) + " ") + "stereo=0;sprop-stereo=0";
    if (fmtp) {
      pj_strdup2(pool, &fmtp->value, value.c_str());
    } else {
      pj_str_t copy;
      pj_strdup2(pool, &copy, value.c_str());
      pjmedia_sdp_media_add_attr(media, pjmedia_sdp_attr_create(pool, "fmtp", &copy));
    }
  }
}

std::string hostOf(pj_pool_t* pool, std::string uri) {
  const pjsip_uri* parsed = pjsip_parse_uri(pool, uri.data(), uri.size(), 0);
  if (!parsed || !(PJSIP_URI_SCHEME_IS_SIP(parsed) || PJSIP_URI_SCHEME_IS_SIPS(parsed))) return "";
  return text(static_cast<const pjsip_sip_uri*>(pjsip_uri_get_uri(parsed))->host);
}

pjmedia_stream* audioStream(int call_id) {
  if (call_id < 0 || call_id >= int(pjsua_var.ua_cfg.max_calls)) return nullptr;
  pjsua_call& call = pjsua_var.calls[call_id];
  for (unsigned i = 0; i < call.med_cnt; ++i) {
    if (call.media[i].type == PJMEDIA_TYPE_AUDIO && call.media[i].strm.a.stream) return call.media[i].strm.a.stream;
  }
  return nullptr;
}

bool hasComfortNoise(const pjmedia_sdp_session* sdp) {
  for (unsigned m = 0; m < sdp->media_count; ++m) {
    for (unsigned f = 0; f < sdp->media[m]->desc.fmt_count; ++f) {
      if (pj_strtoul(&sdp->media[m]->desc.fmt[f]) == 13) return true;  // RFC 3389
    }
  }
  return false;
}

bool hasOpusDtx(const pjmedia_sdp_session* sdp) {
  for (unsigned m = 0; m < sdp->media_count; ++m) {
    for (unsigned a = 0; a < sdp->media[m]->attr_count; ++a) {
      if (text(sdp->media[m]->attr[a]->value).find("usedtx=1") != std::string::npos) return true;  // RFC 7587 6.1
    }
  }
  return false;
}

// Adds what this stream counted to what the ones before it did.
void addStats(pjmedia_stream* stream, int call_id, RtpStats& stats) {
  pjmedia_rtcp_stat rtcp;
  pjmedia_stream_info info;
  if (pjmedia_stream_get_stat(stream, &rtcp) != PJ_SUCCESS) return;
  if (pjmedia_stream_get_info(stream, &info) != PJ_SUCCESS) return;
  stats.running = true;
  stats.receiving = (info.dir & PJMEDIA_DIR_DECODING) != 0;
  stats.sending = (info.dir & PJMEDIA_DIR_ENCODING) != 0;
  stats.received_packets += rtcp.rx.pkt;
  stats.sent_packets += rtcp.tx.pkt;
  stats.lost_packets += rtcp.rx.loss;
  stats.jitter_ms = rtcp.rx.jitter.last / 1000.0;
  stats.remote_jitter_ms = rtcp.tx.jitter.last / 1000.0;
  stats.remote_lost_packets += rtcp.tx.loss;
  stats.round_trip_ms = rtcp.rtt.last / 1000.0;
  stats.codec = text(info.fmt.encoding_name) + "/" + std::to_string(info.fmt.clock_rate);
  const pjsip_inv_session* inv = pjsua_var.calls[call_id].inv;
  const pjmedia_sdp_session *local = nullptr, *remote = nullptr;
  if (inv && inv->neg && pjmedia_sdp_neg_get_active_local(inv->neg, &local) == PJ_SUCCESS &&
      pjmedia_sdp_neg_get_active_remote(inv->neg, &remote) == PJ_SUCCESS) {
    stats.silence_suppressed = (hasComfortNoise(local) && hasComfortNoise(remote)) || hasOpusDtx(remote);
  }
}

}  // namespace

BridgeCall::BridgeCall(Engine& engine, pj::Account& account, FramePort& port, int call_id)
    : pj::Call(account, call_id),
      engine_(engine),
      account_id_(account.getId()),
      port_id_(port.id()),
      queues_(port.queues()),
      sources_(std::make_shared<MediaSources>()) {}

BridgeCall::~BridgeCall() {
  for (auto& entry : streams_) engine_.clock().detach(entry.second.get());
}

void BridgeCall::setMediaSources(const std::vector<std::string>& networks, const std::string& nat,
                                 const std::string& signalling_address) {
  const Nat kind = nat == "on" ? Nat::kOn : nat == "auto" ? Nat::kAuto : Nat::kOff;
  sources_->policy = SourcePolicy(networks, kind, signalling_address);
}

void BridgeCall::onCreateMediaTransport(pj::OnCreateMediaTransportParam& prm) {
  auto* transport = static_cast<pjmedia_transport*>(prm.mediaTp);
  if (!transport) return;
  // pjsua puts SRTP over every transport, also where it is not used; it has the type of what is below it
  pjmedia_transport_info info;
  pjmedia_transport_info_init(&info);
  const bool known = pjmedia_transport_get_info(transport, &info) == PJ_SUCCESS;
  const bool srtp = known && pjmedia_transport_info_get_spc_info(&info, PJMEDIA_TRANSPORT_TYPE_SRTP);
  engine_.receiver()->takeOver(srtp ? pjmedia_transport_srtp_get_member(transport) : transport);
  prm.mediaTp = createMediaGuard(transport, sources_);
}

void BridgeCall::onStreamCreated(pj::OnStreamCreatedParam& prm) {
  auto* stream = static_cast<pjmedia_stream*>(prm.stream);
  auto leg = std::make_shared<PjStream>(stream, sources_);
  // The bridge gets a port that does nothing; the pool is only asked for its factory.
  pj_pool_t* pool = pjsua_pool_create("null", 256, 256);
  pjmedia_port* null_port = nullptr;
  const pj_status_t status = pjmedia_null_port_create(pool, leg->rateHz(), 1, unsigned(leg->frameSamples()), 16, &null_port);
  pj_pool_release(pool);
  if (status != PJ_SUCCESS) return;
  prm.pPort = pj::MediaPort(null_port);
  prm.destroyPort = true;
  pjmedia_stream_set_dtmf_event_callback(stream, &Engine::onTelephoneEvent, reinterpret_cast<void*>(intptr_t(port_id_)));
  queues_->setRate(leg->rateHz());
  streams_[prm.stream] = leg;
  engine_.streamAdded();
  engine_.clock().attach(leg, queues_);
}

void BridgeCall::onStreamDestroyed(pj::OnStreamDestroyedParam& prm) {
  const auto found = streams_.find(prm.stream);
  if (found == streams_.end()) return;
  engine_.clock().detach(found->second.get());
  addStats(static_cast<pjmedia_stream*>(prm.stream), getId(), before_);
  streams_.erase(found);
  engine_.streamRemoved();
}

void BridgeCall::onCallSdpCreated(pj::OnCallSdpCreatedParam& prm) {
  auto* sdp = static_cast<pjmedia_sdp_session*>(prm.sdp.pjSdpSession);
  const pjsua_call& call = pjsua_var.calls[getId()];
  pj_pool_t* pool = call.inv ? call.inv->pool_prov : call.async_call.dlg->pool;  // the first offer comes before the session
  // pjsip sends the dialog's requests with this name and compares a TLS certificate with it, not with the next hop's.
  if (!call.inv && !server_name_.empty()) pj_strdup2(pool, &call.async_call.dlg->initial_dest, server_name_.c_str());
  if (!media_address_.empty()) {
    const bool v6 = media_address_.find(':') != std::string::npos;
    const auto set = [&](pjmedia_sdp_conn* conn) {
      if (!conn) return;
      if ((pj_stricmp2(&conn->addr_type, "IP6") == 0) != v6) return;
      if (pj_stricmp2(&conn->addr, "0.0.0.0") == 0) return;  // a hold the old way stays one
      pj_strdup2(pool, &conn->addr, media_address_.c_str());
    };
    set(sdp->conn);
    for (unsigned i = 0; i < sdp->media_count; ++i) {
      set(sdp->media[i]->conn);
      pjmedia_sdp_attr* rtcp = pjmedia_sdp_media_find_attr2(sdp->media[i], "rtcp", nullptr);
      if (rtcp) pjmedia_sdp_media_remove_attr(sdp->media[i], rtcp);  // it names the old address; the port is RTP's plus one
    }
    sdp->origin.addr_type = pj_str(const_cast<char*>(v6 ? "IP6" : "IP4"));
    pj_strdup2(pool, &sdp->origin.addr, media_address_.c_str());
  }
  for (unsigned m = 0; m < sdp->media_count; ++m) askForMonoOpus(pool, sdp->media[m]);
  if (codecs_.empty()) return;
  for (unsigned m = 0; m < sdp->media_count; ++m) {
    pjmedia_sdp_media* media = sdp->media[m];
    if (pj_stricmp2(&media->desc.media, "audio") != 0 || media->desc.port == 0) continue;
    std::vector<pj_str_t> kept;
    const std::vector<pj_str_t> all(media->desc.fmt, media->desc.fmt + media->desc.fmt_count);
    for (const auto& name : codecs_) {
      for (const auto& format : all) {
        if (sameName(encodingName(media, format), name)) kept.push_back(format);
      }
    }
    if (kept.empty()) continue;
    for (const auto& format : all) {
      if (sameName(encodingName(media, format), "telephone-event")) kept.push_back(format);
    }
    for (const auto& format : all) {
      const bool stays = std::any_of(kept.begin(), kept.end(), [&](const pj_str_t& k) { return pj_strcmp(&k, &format) == 0; });
      if (stays) continue;
      for (const char* name : {"rtpmap", "fmtp"}) {
        if (auto* attr = pjmedia_sdp_media_find_attr2(media, name, &format)) pjmedia_sdp_media_remove_attr(media, attr);
      }
    }
    std::copy(kept.begin(), kept.end(), media->desc.fmt);
    media->desc.fmt_count = unsigned(kept.size());
  }
}

void BridgeCall::makeCallBy(const std::string& uri, const pj::CallOpParam& prm, const std::string& next_hop)
    PJSUA2_THROW(pj::Error) {
  if (next_hop.empty()) {
    makeCall(uri, prm);
    return;
  }
  // pjsua takes a dialog's first hop from its account alone, so the account has it for the length of this call. A
  // route with "hide" is followed and not written (pjsip's pjsip_process_route_set).
  pj_pool_t* pool = pjsua_pool_create("route", 512, 512);
  std::string text = "<" + next_hop + ";lr;hide>";
  pj_str_t name = {const_cast<char*>("Route"), 5};
  auto* route = static_cast<pjsip_route_hdr*>(pjsip_parse_hdr(pool, &name, text.data(), text.size(), nullptr));
  if (!route) {
    pj_pool_release(pool);
    throw pj::Error(PJSIP_EINVALIDURI, "makeCallBy", next_hop, __FILE__, __LINE__);
  }
  pj_list_push_front(&pjsua_var.acc[account_id_].route_set, route);
  server_name_ = hostOf(pool, uri);
  const auto undo = [&] {
    pj_list_erase(route);
    pj_pool_release(pool);
  };
  try {
    makeCall(uri, prm);
  } catch (...) {
    undo();
    throw;
  }
  undo();
}

void BridgeCall::setSilent(bool silent) { sources_->silent.store(silent, std::memory_order_relaxed); }

RtpStats BridgeCall::rtpStats() {
  RtpStats stats = before_;
  stats.running = stats.receiving = stats.sending = false;
  pjmedia_stream* stream = audioStream(getId());
  if (stream && streams_.count(stream)) addStats(stream, getId(), stats);
  stats.foreign_packets = sources_->foreign_packets;
  stats.late_packets = sources_->late_packets;
  stats.reordered_packets = sources_->reordered_packets;
  stats.duplicate_packets = sources_->repeated_packets;
  return stats;
}

bool BridgeCall::canSendTelephoneEvents() {
  pjmedia_stream* stream = audioStream(getId());
  pjmedia_stream_info info;
  return stream && pjmedia_stream_get_info(stream, &info) == PJ_SUCCESS && info.tx_event_pt >= 0;
}

bool BridgeCall::sendTelephoneEvent(const std::string& digit, unsigned duration_ms) {
  pjmedia_stream* stream = audioStream(getId());
  if (!stream) return false;
  pj_str_t digits = {const_cast<char*>(digit.data()), pj_ssize_t(digit.size())};
  return pjmedia_stream_dial_dtmf2(stream, &digits, duration_ms) == PJ_SUCCESS;
}
