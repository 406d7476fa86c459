// SPDX-License-Identifier: GPL-3.0-or-later
#include "media_guard.hpp"

#include <pj/lock.h>

#include <mutex>
#include <utility>

namespace {

IpEndpoint endpointOf(const pj_sockaddr& from) {
  IpEndpoint endpoint;
  if (from.addr.sa_family == pj_AF_INET()) {
    endpoint.address = IpAddress::fromV4(&from.ipv4.sin_addr);
  } else if (from.addr.sa_family == pj_AF_INET6()) {
    endpoint.address = IpAddress::fromV6(&from.ipv6.sin6_addr);
  } else {
    return endpoint;
  }
  endpoint.port = pj_sockaddr_get_port(&from);
  return endpoint;
}

// No address, or 0.0.0.0, which Linux takes for this machine.
bool namesNobody(const pj_sockaddr& address) { return endpointOf(address).address.isUnspecified(); }

pj_sockaddr nextPort(const pj_sockaddr& rtp) {
  pj_sockaddr rtcp = rtp;
  if (!namesNobody(rtp)) pj_sockaddr_set_port(&rtcp, static_cast<pj_uint16_t>(pj_sockaddr_get_port(&rtp) + 1));
  return rtcp;
}

// Lives as long as the group lock of the transports below, like these: a packet may be on its way up while the
// call is being closed.
class MediaGuard final : public pjmedia_transport, public RtpFeed {
 public:
  MediaGuard(pjmedia_transport* below, std::shared_ptr<MediaSources> sources)
      : pjmedia_transport(), below_(below), sources_(std::move(sources)) {
    pj_ansi_snprintf(name, sizeof name, "guard%p", static_cast<void*>(this));
    type = PJMEDIA_TRANSPORT_TYPE_USER;
    op = &operations_;
    grp_lock = below->grp_lock;
    if (!grp_lock) return;
    pj_grp_lock_add_ref(grp_lock);
    pj_grp_lock_add_handler(grp_lock, nullptr, this, [](void* self) { delete static_cast<MediaGuard*>(self); });
  }

 private:
  static MediaGuard& of(pjmedia_transport* transport) { return *static_cast<MediaGuard*>(transport); }

  // --- from the stream

  pj_status_t attach(pjmedia_transport_attach_param stream) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      named_rtp_ = stream.rem_addr;
      named_rtcp_ = namesNobody(stream.rem_rtcp) ? nextPort(stream.rem_addr) : stream.rem_rtcp;
      multiplexed_ = endpointOf(named_rtp_) == endpointOf(named_rtcp_);
      rtcp_to_ = named_rtcp_;
    }
    stream_ = stream;
    order_.reset();
    sources_->feed = this;
    stream.user_data = this;
    stream.rtp_cb = nullptr;
    stream.rtp_cb2 = &onRtp;
    stream.rtcp_cb = &onRtcp;
    return pjmedia_transport_attach2(below_, &stream);
  }

  pj_status_t sendRtp(const void* packet, pj_size_t size) {
    if (namesNobody(named_rtp_)) return PJ_SUCCESS;
    return pjmedia_transport_send_rtp(below_, packet, size);
  }

  pj_status_t sendRtcp(const void* packet, pj_size_t size) {
    pj_sockaddr to;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      to = rtcp_to_;
    }
    if (namesNobody(to)) return PJ_SUCCESS;
    return pjmedia_transport_send_rtcp2(below_, &to, pj_sockaddr_get_len(&to), packet, size);
  }

  pj_status_t destroy() {
    pjmedia_transport_close(below_);
    if (grp_lock) {
      pj_grp_lock_dec_ref(grp_lock);
    } else {
      delete this;
    }
    return PJ_SUCCESS;
  }

  // --- from the sockets, on the clock's thread; the transports below wait for these before a detach returns

  static void onRtp(pjmedia_tp_cb_param* packet) {
    auto* guard = static_cast<MediaGuard*>(packet->user_data);
    if (!guard) return;  // detached meanwhile
    // a receive error has no source, but tells the stream that the socket is gone
    if (packet->size >= 0 && !guard->admits(*static_cast<pj_sockaddr*>(packet->src_addr), guard->named_rtp_)) return;
    ++guard->sources_->packets;
    if (packet->size >= 0 && !guard->isItsTurn(*packet)) return;
    guard->goesUp(*packet);
    guard->followersGoUp();
  }

  bool isItsTurn(const pjmedia_tp_cb_param& packet) {
    const auto& source = *static_cast<pj_sockaddr*>(packet.src_addr);
    // somebody else's numbers begin anew
    if (pj_sockaddr_cmp(&source, &source_) != 0) order_.reset();
    source_ = source;
    switch (order_.take(static_cast<const char*>(packet.pkt), size_t(packet.size))) {
      case RtpOrder::Turn::kNow: return true;
      case RtpOrder::Turn::kLater: ++sources_->reordered_packets; break;
      case RtpOrder::Turn::kTooLate: ++sources_->late_packets; break;
      case RtpOrder::Turn::kAgain: ++sources_->repeated_packets; break;
    }
    return false;
  }

  void goesUp(pjmedia_tp_cb_param& packet) {
    pjmedia_tp_cb_param upward = packet;
    upward.user_data = stream_.user_data;
    stream_.rtp_cb2(&upward);
    packet.rem_switch = upward.rem_switch;
    if (upward.rem_switch) rtpMoved(*static_cast<pj_sockaddr*>(packet.src_addr));
  }

  void followersGoUp() {
    while (order_.next(held_)) {
      pjmedia_tp_cb_param packet{this, held_.data(), pj_ssize_t(held_.size()), &source_, PJ_FALSE};
      goesUp(packet);
    }
  }

  // --- from the clock

  bool waits() const override { return order_.waits(); }

  void giveUp() override {
    order_.giveUp();
    followersGoUp();
  }

  static void onRtcp(void* self, void* packet, pj_ssize_t size) {
    auto* guard = static_cast<MediaGuard*>(self);
    if (!guard) return;
    if (size >= 0) {
      pjmedia_transport_info info;
      pjmedia_transport_info_init(&info);
      pjmedia_transport_get_info(guard->below_, &info);
      // the callback has no room for a source; that of the packet in hand is what was last received
      const pj_sockaddr& source = guard->multiplexed_ ? info.src_rtp_name : info.src_rtcp_name;
      if (!guard->admits(source, guard->named_rtcp_)) return;
      const std::lock_guard<std::mutex> lock(guard->mutex_);
      guard->rtcp_to_ = source;
    }
    guard->stream_.rtcp_cb(guard->stream_.user_data, packet, size);
  }

  bool admits(const pj_sockaddr& source, const pj_sockaddr& named) {
    if (sources_->policy.admits(endpointOf(source), endpointOf(named))) return true;
    ++sources_->foreign_packets;
    return false;
  }

  // RTCP goes after RTP to another host at once; within one host, only where RTCP comes from.
  void rtpMoved(const pj_sockaddr& to) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (multiplexed_) {
      rtcp_to_ = to;
    } else if (endpointOf(rtcp_to_).address != endpointOf(to).address) {
      rtcp_to_ = nextPort(to);
    }
  }

  static pjmedia_transport_op operations_;

  pjmedia_transport* const below_;
  const std::shared_ptr<MediaSources> sources_;
  pjmedia_transport_attach_param stream_{};
  pj_sockaddr named_rtp_{}, named_rtcp_{};  // by the SDP that the stream was made for
  RtpOrder order_;
  RtpOrder::Packet held_;
  pj_sockaddr source_{};                    // of what came last
  bool multiplexed_ = false;                // RTP and RTCP share a port (RFC 5761)
  std::mutex mutex_;                        // RTCP goes out from other threads than it comes in
  pj_sockaddr rtcp_to_{};
};

pjmedia_transport_op MediaGuard::operations_ = {
    [](pjmedia_transport* self, pjmedia_transport_info* info) {
      return pjmedia_transport_get_info(of(self).below_, info);
    },
    nullptr,  // attach2 has taken its place
    [](pjmedia_transport* self, void*) {
      pjmedia_transport_detach(of(self).below_, &of(self));
      of(self).sources_->feed = nullptr;
    },
    [](pjmedia_transport* self, const void* packet, pj_size_t size) { return of(self).sendRtp(packet, size); },
    [](pjmedia_transport* self, const void* packet, pj_size_t size) { return of(self).sendRtcp(packet, size); },
    // an address of the stream's own choice would be one that nothing admitted
    [](pjmedia_transport* self, const pj_sockaddr_t*, unsigned, const void* packet, pj_size_t size) {
      return of(self).sendRtcp(packet, size);
    },
    [](pjmedia_transport* self, pj_pool_t* pool, unsigned options, const pjmedia_sdp_session* remote,
       unsigned index) { return pjmedia_transport_media_create(of(self).below_, pool, options, remote, index); },
    [](pjmedia_transport* self, pj_pool_t* pool, pjmedia_sdp_session* local, const pjmedia_sdp_session* remote,
       unsigned index) { return pjmedia_transport_encode_sdp(of(self).below_, pool, local, remote, index); },
    [](pjmedia_transport* self, pj_pool_t* pool, const pjmedia_sdp_session* local,
       const pjmedia_sdp_session* remote,
       unsigned index) { return pjmedia_transport_media_start(of(self).below_, pool, local, remote, index); },
    [](pjmedia_transport* self) { return pjmedia_transport_media_stop(of(self).below_); },
    [](pjmedia_transport* self, pjmedia_dir direction, unsigned percent) {
      return pjmedia_transport_simulate_lost(of(self).below_, direction, percent);
    },
    [](pjmedia_transport* self) { return of(self).destroy(); },
    [](pjmedia_transport* self, pjmedia_transport_attach_param* stream) { return of(self).attach(*stream); },
};

}  // namespace

pjmedia_transport* createMediaGuard(pjmedia_transport* below, std::shared_ptr<MediaSources> sources) {
  return new MediaGuard(below, std::move(sources));
}
