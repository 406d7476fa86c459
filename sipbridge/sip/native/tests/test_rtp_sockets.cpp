// SPDX-License-Identifier: GPL-3.0-or-later
// sources: rtp_sockets.cpp
// pjsip: yes
#include "../rtp_sockets.hpp"

#include <arpa/inet.h>
#include <pjlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"

namespace {

pj_caching_pool pools;

// A UDP socket on the loopback, at a port that the system chooses.
struct Udp {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  pj_sockaddr address{};

  Udp() {
    const pj_str_t host = pj_str(const_cast<char*>("127.0.0.1"));
    pj_sockaddr_init(pj_AF_INET(), &address, &host, 0);
    socklen_t length = sizeof address.ipv4;
    CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0);
    CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  }
  ~Udp() { close(fd); }

  void send(const Udp& to, const std::string& packet) const {
    CHECK(sendto(fd, packet.data(), packet.size(), 0, reinterpret_cast<const sockaddr*>(&to.address), sizeof to.address.ipv4) ==
          ssize_t(packet.size()));
  }
  // The next packet that is there, "" when there is none.
  std::string receive() const {
    char packet[100];
    const ssize_t size = recv(fd, packet, sizeof packet, MSG_DONTWAIT);
    return size < 0 ? "" : std::string(packet, size_t(size));
  }
};

// pjmedia's transport, of which nothing but its sockets and its end is of use.
struct Below : pjmedia_transport {
  pj_pool_t* pool = pj_pool_create(&pools.factory, "below", 512, 512, nullptr);
  Udp rtp, rtcp;
  int closed = 0;

  Below() : pjmedia_transport() {
    static pjmedia_transport_op operations = [] {
      pjmedia_transport_op all{};
      all.get_info = [](pjmedia_transport* self, pjmedia_transport_info* info) {
        info->sock_info.rtp_sock = static_cast<Below*>(self)->rtp.fd;
        info->sock_info.rtcp_sock = static_cast<Below*>(self)->rtcp.fd;
        return pj_status_t(PJ_SUCCESS);
      };
      all.destroy = [](pjmedia_transport* self) {
        ++static_cast<Below*>(self)->closed;
        return pj_status_t(pj_grp_lock_dec_ref(self->grp_lock));
      };
      return all;
    }();
    op = &operations;
    pj_grp_lock_create(pool, nullptr, &grp_lock);
    pj_grp_lock_add_ref(grp_lock);
  }
  ~Below() { pj_pool_release(pool); }
};

// What a stream hears.
struct Stream {
  std::vector<std::string> rtp, rtcp;
  bool follows = false;  // whoever sends
  std::atomic<int> heard{0}, after_detach{0};
  std::atomic<bool> detached{false};

  void attachTo(pjmedia_transport* transport, const pj_sockaddr& rtp_at, const pj_sockaddr& rtcp_at) {
    pjmedia_transport_attach_param param{};
    param.stream = param.user_data = this;
    param.rem_addr = rtp_at;
    param.rem_rtcp = rtcp_at;
    param.addr_len = pj_sockaddr_get_len(&rtp_at);
    param.rtp_cb2 = [](pjmedia_tp_cb_param* packet) {
      auto* self = static_cast<Stream*>(packet->user_data);
      if (self->detached) ++self->after_detach;
      self->rtp.emplace_back(static_cast<char*>(packet->pkt), size_t(packet->size));
      ++self->heard;
      packet->rem_switch = self->follows;
    };
    param.rtcp_cb = [](void* self, void* packet, pj_ssize_t size) {
      static_cast<Stream*>(self)->rtcp.emplace_back(static_cast<char*>(packet), size_t(size));
    };
    CHECK(pjmedia_transport_attach2(transport, &param) == PJ_SUCCESS);
  }
};

struct World {
  std::shared_ptr<RtpReceiver> receiver;
  Below below;
  pjmedia_transport* transport = &below;
  Udp phone, phone_rtcp;
  Stream stream;

  explicit World(std::shared_ptr<RtpReceiver> with = std::make_shared<RtpReceiver>()) : receiver(std::move(with)) {
    receiver->takeOver(transport);
  }
  ~World() {
    pjmedia_transport_close(transport);
    CHECK(below.closed == 1);
  }
  void attach() { stream.attachTo(transport, phone.address, phone_rtcp.address); }
  void send(const std::string& packet) { CHECK(pjmedia_transport_send_rtp(transport, packet.data(), packet.size()) == PJ_SUCCESS); }
};

void packetsGoBothWays() {
  World world;
  world.phone.send(world.below.rtp, "before");
  world.receiver->receive();  // nobody is there for it
  world.attach();
  world.phone.send(world.below.rtp, "one");
  world.phone.send(world.below.rtp, "two");
  world.phone_rtcp.send(world.below.rtcp, "report");
  world.receiver->receive();
  CHECK((world.stream.rtp == std::vector<std::string>{"before", "one", "two"}));
  CHECK((world.stream.rtcp == std::vector<std::string>{"report"}));
  pjmedia_transport_info info;
  pjmedia_transport_info_init(&info);
  CHECK(pjmedia_transport_get_info(world.transport, &info) == PJ_SUCCESS);
  CHECK(pj_sockaddr_cmp(&info.src_rtp_name, &world.phone.address) == 0);
  CHECK(pj_sockaddr_cmp(&info.src_rtcp_name, &world.phone_rtcp.address) == 0);

  world.send("audio");
  CHECK(world.phone.receive() == "audio");
  CHECK(pjmedia_transport_send_rtcp2(world.transport, &world.phone_rtcp.address, 16, "ours", 4) == PJ_SUCCESS);
  CHECK(world.phone_rtcp.receive() == "ours");
}

void audioFollowsWhenTheStreamSaysSo() {
  World world;
  world.attach();
  const Udp moved;
  moved.send(world.below.rtp, "stranger");
  world.receiver->receive();
  world.send("audio");
  CHECK(world.phone.receive() == "audio" && moved.receive().empty());
  world.stream.follows = true;
  moved.send(world.below.rtp, "moved");
  world.receiver->receive();
  world.send("audio");
  CHECK(moved.receive() == "audio" && world.phone.receive().empty());
}

void rtcpOnThePortOfRtpIsToldApart() {
  World world;
  world.stream.attachTo(world.transport, world.phone.address, world.phone.address);
  world.phone.send(world.below.rtp, std::string("\x80\xc8", 2) + "report");  // 200, a sender's report
  world.phone.send(world.below.rtp, std::string("\x80\x80", 2) + "audio");   // PCMU with a mark
  world.receiver->receive();
  CHECK(world.stream.rtcp.size() == 1 && world.stream.rtp.size() == 1);
  CHECK(pjmedia_transport_send_rtcp2(world.transport, &world.phone.address, 16, "ours", 4) == PJ_SUCCESS);
  CHECK(world.phone.receive() == "ours");
}

void floodAtOneHoldsUpNoOther() {
  World flooded, other(flooded.receiver);
  flooded.attach();
  other.attach();
  for (int i = 0; i < 150; ++i) flooded.phone.send(flooded.below.rtp, "flood");
  other.phone.send(other.below.rtp, "speech");
  flooded.receiver->receive();
  CHECK(flooded.stream.rtp.size() == 32);
  CHECK(other.stream.rtp.size() == 1);
  for (int i = 0; i < 5; ++i) flooded.receiver->receive();
  CHECK(flooded.stream.rtp.size() == 150);
}

void nothingComesAfterDetach() {
  World world;
  world.attach();
  std::atomic<bool> running{true};
  std::thread clock([&] {
    pj_thread_desc description;
    pj_thread_t* thread;
    pj_thread_register("clock", description, &thread);
    while (running) world.receiver->receive();
  });
  for (int i = 0; i < 200; ++i) {
    for (int k = 0; k < 5; ++k) world.phone.send(world.below.rtp, "audio");
    pjmedia_transport_detach(world.transport, &world.stream);
    world.stream.detached = true;
    for (int k = 0; k < 3; ++k) world.phone.send(world.below.rtp, "late");
    world.stream.detached = false;
    world.attach();
  }
  world.stream.heard = 0;
  world.phone.send(world.below.rtp, "last");
  while (world.stream.heard == 0) std::this_thread::yield();
  running = false;
  clock.join();
  CHECK(world.stream.after_detach == 0);
}

void transportWithoutSocketsStaysAsItIs() {
  pj_pool_t* pool = pj_pool_create(&pools.factory, "none", 512, 512, nullptr);
  pjmedia_transport_op operations{};
  operations.get_info = [](pjmedia_transport*, pjmedia_transport_info*) { return pj_status_t(PJ_SUCCESS); };
  pjmedia_transport none{};
  none.op = &operations;
  const auto receiver = std::make_shared<RtpReceiver>();
  receiver->takeOver(&none);
  CHECK(none.op == &operations);
  pj_grp_lock_create(pool, nullptr, &none.grp_lock);
  pj_grp_lock_add_ref(none.grp_lock);
  receiver->takeOver(&none);
  CHECK(none.op == &operations);
  pj_grp_lock_dec_ref(none.grp_lock);
  pj_pool_release(pool);
}

}  // namespace

int main() {
  CHECK(pj_init() == PJ_SUCCESS);
  pj_log_set_level(0);
  pj_caching_pool_init(&pools, nullptr, 0);
  packetsGoBothWays();
  audioFollowsWhenTheStreamSaysSo();
  rtcpOnThePortOfRtpIsToldApart();
  floodAtOneHoldsUpNoOther();
  nothingComesAfterDetach();
  transportWithoutSocketsStaysAsItIs();
  pj_caching_pool_destroy(&pools);
  pj_shutdown();
  return checkResult();
}
