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

// Stands behind the operations of pjmedia's UDP transport, and lives as long as its group lock.
class RtpSockets {
 public:
  RtpSockets(pjmedia_transport* transport, const pjmedia_sock_info& sockets, std::shared_ptr<RtpReceiver> receiver)
      : receiver_(std::move(receiver)),
        rtp_{int(sockets.rtp_sock), this, false},
        rtcp_{int(sockets.rtcp_sock), this, true},
        theirs_(*transport->op),
        ours_(*this, *transport->op) {
    transport->op = &ours_;
    pj_grp_lock_add_handler(transport->grp_lock, nullptr, this, [](void* self) { delete static_cast<RtpSockets*>(self); });
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
  // What is done with the transport, and who does it.
  struct Operations : pjmedia_transport_op {
    RtpSockets& sockets;
    Operations(RtpSockets& sockets, const pjmedia_transport_op& theirs);
  };

  static RtpSockets& of(pjmedia_transport* transport) { return static_cast<Operations*>(transport->op)->sockets; }

  pj_status_t attach(const pjmedia_transport_attach_param& stream) {
    detach();
    stream_ = stream;
    rtp_to_ = stream.rem_addr;
    rtcp_to_ = stream.rem_rtcp;
    multiplexed_ = pj_sockaddr_has_addr(&stream.rem_rtcp) && pj_sockaddr_cmp(&stream.rem_addr, &stream.rem_rtcp) == 0;
    receiver_->add(rtp_);
    receiver_->add(rtcp_);
    return PJ_SUCCESS;
  }

  void detach() {
    receiver_->remove(rtp_);
    receiver_->remove(rtcp_);
  }

  const std::shared_ptr<RtpReceiver> receiver_;
  RtpReceiver::Socket rtp_, rtcp_;
  const pjmedia_transport_op theirs_;
  Operations ours_;
  pjmedia_transport_attach_param stream_{};
  bool multiplexed_ = false;
  pj_sockaddr rtp_to_{}, rtcp_to_{}, rtp_source_{}, rtcp_source_{};
};

RtpSockets::Operations::Operations(RtpSockets& sockets, const pjmedia_transport_op& theirs)
    : pjmedia_transport_op(theirs), sockets(sockets) {
  get_info = [](pjmedia_transport* self, pjmedia_transport_info* info) {
    const pj_status_t status = of(self).theirs_.get_info(self, info);
    info->src_rtp_name = of(self).rtp_source_;
    info->src_rtcp_name = of(self).rtcp_source_;
    return status;
  };
  attach2 = [](pjmedia_transport* self, pjmedia_transport_attach_param* stream) { return of(self).attach(*stream); };
  detach = [](pjmedia_transport* self, void*) { of(self).detach(); };
  send_rtp = [](pjmedia_transport* self, const void* packet, pj_size_t size) {
    return sendTo(of(self).rtp_.fd, of(self).rtp_to_, packet, size);
  };
  send_rtcp = [](pjmedia_transport* self, const void* packet, pj_size_t size) {
    return self->op->send_rtcp2(self, &of(self).rtcp_to_, unsigned(pj_sockaddr_get_len(&of(self).rtcp_to_)), packet, size);
  };
  send_rtcp2 = [](pjmedia_transport* self, const pj_sockaddr_t* to, unsigned, const void* packet, pj_size_t size) {
    RtpSockets& sockets = of(self);
    return sendTo(sockets.multiplexed_ ? sockets.rtp_.fd : sockets.rtcp_.fd, *static_cast<const pj_sockaddr*>(to), packet, size);
  };
  // pjmedia's own reading is never begun
  media_start = [](pjmedia_transport*, pj_pool_t*, const pjmedia_sdp_session*, const pjmedia_sdp_session*, unsigned) {
    return pj_status_t(PJ_SUCCESS);
  };
  media_stop = [](pjmedia_transport*) { return pj_status_t(PJ_SUCCESS); };
  destroy = [](pjmedia_transport* self) {
    of(self).detach();
    return of(self).theirs_.destroy(self);
  };
}

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

void RtpReceiver::takeOver(pjmedia_transport* transport) {
  pjmedia_transport_info info;
  pjmedia_transport_info_init(&info);
  if (!transport->grp_lock || pjmedia_transport_get_info(transport, &info) != PJ_SUCCESS) return;
  if (info.sock_info.rtp_sock == PJ_INVALID_SOCKET) return;
  new RtpSockets(transport, info.sock_info, shared_from_this());
}
