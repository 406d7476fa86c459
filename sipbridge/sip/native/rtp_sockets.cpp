// SPDX-License-Identifier: GPL-3.0-or-later
#include "rtp_sockets.hpp"

#include <pj/lock.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

namespace {

constexpr int64_t kLongestNs = 2'500'000;
constexpr unsigned kPacketsACall = 8;
constexpr size_t kPacketBytes = 2000;  // as pjmedia's own
constexpr size_t kEvents = 256;

int64_t nowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

pj_status_t sendTo(int fd, const pj_sockaddr& to, const void* packet, pj_size_t size) {
  const auto* address = reinterpret_cast<const sockaddr*>(&to);
  const ssize_t sent =
      ::sendto(fd, packet, size, MSG_DONTWAIT | MSG_NOSIGNAL, address, socklen_t(pj_sockaddr_get_len(&to)));
  // no room in the system's buffer is a lost packet, as anywhere on the way
  return sent >= 0 || errno == EAGAIN || errno == ENOBUFS ? PJ_SUCCESS : PJ_STATUS_FROM_OS(errno);
}

}  // namespace

class RtpSockets;

struct RtpReceiver::Socket {
  int fd;
  RtpSockets* owner;
  bool is_rtcp;
  bool added = false;
};

struct RtpReceiver::Buffers {
  std::array<mmsghdr, kPacketsACall> messages{};
  std::array<iovec, kPacketsACall> parts{};
  std::array<pj_sockaddr, kPacketsACall> sources{};
  std::array<std::array<char, kPacketBytes>, kPacketsACall> packets{};

  Buffers() {
    for (unsigned i = 0; i < kPacketsACall; ++i) {
      parts[i] = {packets[i].data(), kPacketBytes};
      messages[i].msg_hdr.msg_iov = &parts[i];
      messages[i].msg_hdr.msg_iovlen = 1;
      messages[i].msg_hdr.msg_name = &sources[i];
    }
  }
};

// Lives as long as the group lock of the transport below, like that one.
class RtpSockets final : public pjmedia_transport {
 public:
  RtpSockets(pjmedia_transport* below, const pjmedia_sock_info& sockets, std::shared_ptr<RtpReceiver> receiver)
      : pjmedia_transport(),
        below_(below),
        receiver_(std::move(receiver)),
        rtp_{int(sockets.rtp_sock), this, false},
        rtcp_{int(sockets.rtcp_sock), this, true} {
    pj_ansi_snprintf(name, sizeof name, "rtp%p", static_cast<void*>(this));
    type = PJMEDIA_TRANSPORT_TYPE_UDP;
    op = &operations_;
    grp_lock = below->grp_lock;
    if (!grp_lock) return;
    pj_grp_lock_add_ref(grp_lock);
    pj_grp_lock_add_handler(grp_lock, nullptr, this, [](void* self) { delete static_cast<RtpSockets*>(self); });
  }

  // In receive().
  void hasCome(bool is_rtcp, char* packet, pj_ssize_t size, pj_sockaddr& source) {
    // packet types of RTCP on the port of RTP (RFC 5761 4)
    if (is_rtcp || (multiplexed_ && size > 1 && (packet[1] & 0x7f) >= 64 && (packet[1] & 0x7f) < 96)) {
      rtcp_source_ = source;
      if (multiplexed_) rtp_source_ = source;
      if (stream_.rtcp_cb) stream_.rtcp_cb(stream_.user_data, packet, size);
      return;
    }
    rtp_source_ = source;
    pjmedia_tp_cb_param received{stream_.user_data, packet, size, &source, PJ_FALSE};
    stream_.rtp_cb2(&received);
    if (received.rem_switch) rtp_to_ = source;
  }

 private:
  static RtpSockets& of(pjmedia_transport* transport) { return *static_cast<RtpSockets*>(transport); }

  pj_status_t attach(const pjmedia_transport_attach_param& stream) {
    detach();
    stream_ = stream;
    rtp_to_ = stream.rem_addr;
    multiplexed_ = pj_sockaddr_has_addr(&stream.rem_rtcp) && pj_sockaddr_cmp(&stream.rem_addr, &stream.rem_rtcp) == 0;
    receiver_->add(rtp_);
    receiver_->add(rtcp_);
    return PJ_SUCCESS;
  }

  void detach() {
    receiver_->remove(rtp_);
    receiver_->remove(rtcp_);
  }

  pj_status_t destroy() {
    detach();
    pjmedia_transport_close(below_);
    if (grp_lock) {
      pj_grp_lock_dec_ref(grp_lock);
    } else {
      delete this;
    }
    return PJ_SUCCESS;
  }

  void getInfo(pjmedia_transport_info* info) {
    info->src_rtp_name = rtp_source_;
    info->src_rtcp_name = rtcp_source_;
  }

  static pjmedia_transport_op operations_;

  pjmedia_transport* const below_;
  const std::shared_ptr<RtpReceiver> receiver_;
  RtpReceiver::Socket rtp_, rtcp_;
  pjmedia_transport_attach_param stream_{};
  bool multiplexed_ = false;
  pj_sockaddr rtp_to_{}, rtp_source_{}, rtcp_source_{};
};

pjmedia_transport_op RtpSockets::operations_ = {
    [](pjmedia_transport* self, pjmedia_transport_info* info) {
      const pj_status_t status = pjmedia_transport_get_info(of(self).below_, info);
      of(self).getInfo(info);
      return status;
    },
    nullptr,  // attach2 has taken its place
    [](pjmedia_transport* self, void*) { of(self).detach(); },
    [](pjmedia_transport* self, const void* packet, pj_size_t size) {
      return sendTo(of(self).rtp_.fd, of(self).rtp_to_, packet, size);
    },
    nullptr,  // send_rtcp2 says where to
    [](pjmedia_transport* self, const pj_sockaddr_t* to, unsigned, const void* packet, pj_size_t size) {
      RtpSockets& sockets = of(self);
      return sendTo(sockets.multiplexed_ ? sockets.rtp_.fd : sockets.rtcp_.fd, *static_cast<const pj_sockaddr*>(to), packet, size);
    },
    [](pjmedia_transport* self, pj_pool_t* pool, unsigned options, const pjmedia_sdp_session* remote,
       unsigned index) { return pjmedia_transport_media_create(of(self).below_, pool, options, remote, index); },
    [](pjmedia_transport* self, pj_pool_t* pool, pjmedia_sdp_session* local, const pjmedia_sdp_session* remote,
       unsigned index) { return pjmedia_transport_encode_sdp(of(self).below_, pool, local, remote, index); },
    // pjmedia's own reading is never begun
    [](pjmedia_transport*, pj_pool_t*, const pjmedia_sdp_session*, const pjmedia_sdp_session*, unsigned) {
      return pj_status_t(PJ_SUCCESS);
    },
    [](pjmedia_transport*) { return pj_status_t(PJ_SUCCESS); },
    [](pjmedia_transport*, pjmedia_dir, unsigned) { return pj_status_t(PJ_ENOTSUP); },
    [](pjmedia_transport* self) { return of(self).destroy(); },
    [](pjmedia_transport* self, pjmedia_transport_attach_param* stream) { return of(self).attach(*stream); },
};

RtpReceiver::RtpReceiver() : epoll_(epoll_create1(EPOLL_CLOEXEC)), buffers_(std::make_unique<Buffers>()) {}

RtpReceiver::~RtpReceiver() { close(epoll_); }

void RtpReceiver::add(Socket& socket) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = &socket;
  socket.added = epoll_ctl(epoll_, EPOLL_CTL_ADD, socket.fd, &event) == 0;
}

// When it returns nothing more comes of the socket.
void RtpReceiver::remove(Socket& socket) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (!socket.added) return;
  epoll_ctl(epoll_, EPOLL_CTL_DEL, socket.fd, nullptr);
  socket.added = false;
}

void RtpReceiver::receive() {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const int64_t until_ns = nowNs() + kLongestNs;
  std::array<epoll_event, kEvents> events;
  for (;;) {
    const int count = epoll_wait(epoll_, events.data(), int(events.size()), 0);
    for (int i = 0; i < count; ++i) read(*static_cast<Socket*>(events[size_t(i)].data.ptr));
    if (count < int(kEvents) || nowNs() > until_ns) return;
  }
}

void RtpReceiver::read(Socket& socket) {
  for (unsigned done = 0; done < kMostPackets && socket.added;) {
    for (auto& message : buffers_->messages) message.msg_hdr.msg_namelen = sizeof(pj_sockaddr);
    const int count = recvmmsg(socket.fd, buffers_->messages.data(), kPacketsACall, MSG_DONTWAIT, nullptr);
    for (int i = 0; i < count && socket.added; ++i) {
      socket.owner->hasCome(socket.is_rtcp, buffers_->packets[size_t(i)].data(),
                            pj_ssize_t(buffers_->messages[size_t(i)].msg_len), buffers_->sources[size_t(i)]);
    }
    if (count < int(kPacketsACall)) return;
    done += unsigned(count);
  }
}

pjmedia_transport* RtpReceiver::overSocketsOf(pjmedia_transport* below, std::shared_ptr<RtpReceiver> receiver) {
  pjmedia_transport_info info;
  pjmedia_transport_info_init(&info);
  if (pjmedia_transport_get_info(below, &info) != PJ_SUCCESS || info.sock_info.rtp_sock == PJ_INVALID_SOCKET) return below;
  return new RtpSockets(below, info.sock_info, std::move(receiver));
}
