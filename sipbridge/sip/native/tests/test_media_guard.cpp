// SPDX-License-Identifier: GPL-3.0-or-later
// sources: media_guard.cpp
// pjsip: yes
#include "../media_guard.hpp"

#include <pjlib.h>

#include <cstring>
#include <vector>

#include "check.hpp"

namespace {

pj_caching_pool pools;

pj_sockaddr at(const char* address, unsigned port) {
  pj_sockaddr result;
  pj_str_t text = pj_str(const_cast<char*>(address));
  const int family = std::strchr(address, ':') ? pj_AF_INET6() : pj_AF_INET();
  pj_sockaddr_init(family, &result, &text, pj_uint16_t(port));
  return result;
}

bool same(const pj_sockaddr& a, const pj_sockaddr& b) { return pj_sockaddr_cmp(&a, &b) == 0; }

// In place of the sockets: keeps what is sent, and delivers what the test says has come.
struct Sockets : pjmedia_transport {
  pj_pool_t* pool = pj_pool_create(&pools.factory, "sockets", 512, 512, nullptr);
  pjmedia_transport_attach_param stream{};
  pj_sockaddr last_rtcp_source{}, last_rtp_source{};
  std::vector<pj_sockaddr> rtcp_sent_to;
  int rtp_sent = 0, detached = 0, closed = 0;

  Sockets() : pjmedia_transport() {
    static pjmedia_transport_op operations = [] {
      pjmedia_transport_op all{};
      all.get_info = [](pjmedia_transport* self, pjmedia_transport_info* info) {
        info->src_rtp_name = of(self).last_rtp_source;
        info->src_rtcp_name = of(self).last_rtcp_source;
        return pj_status_t(PJ_SUCCESS);
      };
      all.attach2 = [](pjmedia_transport* self, pjmedia_transport_attach_param* stream) {
        of(self).stream = *stream;
        return pj_status_t(PJ_SUCCESS);
      };
      all.detach = [](pjmedia_transport* self, void* user_data) {
        CHECK(user_data == of(self).stream.user_data);
        ++of(self).detached;
      };
      all.send_rtp = [](pjmedia_transport* self, const void*, pj_size_t) {
        ++of(self).rtp_sent;
        return pj_status_t(PJ_SUCCESS);
      };
      all.send_rtcp2 = [](pjmedia_transport* self, const pj_sockaddr_t* to, unsigned length, const void*, pj_size_t) {
        CHECK(length == pj_sockaddr_get_len(to));
        of(self).rtcp_sent_to.push_back(*static_cast<const pj_sockaddr*>(to));
        return pj_status_t(PJ_SUCCESS);
      };
      all.destroy = [](pjmedia_transport* self) {
        ++of(self).closed;
        return pj_status_t(pj_grp_lock_dec_ref(self->grp_lock));
      };
      return all;
    }();
    op = &operations;
    pj_grp_lock_create(pool, nullptr, &grp_lock);
    pj_grp_lock_add_ref(grp_lock);
  }
  ~Sockets() { pj_pool_release(pool); }
  static Sockets& of(pjmedia_transport* self) { return *static_cast<Sockets*>(self); }

  // Whether the stream asked to send there from now on.
  bool rtp(pj_sockaddr source, pj_ssize_t size = 172) {
    char packet[172] = {};
    last_rtp_source = source;
    pjmedia_tp_cb_param param{stream.user_data, packet, size, &last_rtp_source, PJ_FALSE};
    stream.rtp_cb2(&param);
    return param.rem_switch;
  }
  void rtcp(pj_sockaddr source, pj_ssize_t size = 8) {
    char packet[8] = {};
    last_rtcp_source = source;
    stream.rtcp_cb(stream.user_data, packet, size);
  }
};

// In place of the stream: counts what it hears, and switches to each new source at once.
struct Stream {
  pj_sockaddr named{};
  int rtp = 0, rtcp = 0, errors = 0;

  pjmedia_transport_attach_param attachTo(pjmedia_transport* guard, pj_sockaddr rtp_at, pj_sockaddr rtcp_at = {}) {
    named = rtp_at;
    pjmedia_transport_attach_param param{};
    param.stream = param.user_data = this;
    param.rem_addr = rtp_at;
    param.rem_rtcp = rtcp_at;
    param.addr_len = pj_sockaddr_get_len(&rtp_at);
    param.rtp_cb2 = [](pjmedia_tp_cb_param* packet) {
      auto* self = static_cast<Stream*>(packet->user_data);
      if (packet->size < 0) {
        ++self->errors;
        return;
      }
      ++self->rtp;
      const auto& source = *static_cast<pj_sockaddr*>(packet->src_addr);
      packet->rem_switch = !same(source, self->named);
      self->named = source;
    };
    param.rtcp_cb = [](void* self, void*, pj_ssize_t size) {
      ++(size < 0 ? static_cast<Stream*>(self)->errors : static_cast<Stream*>(self)->rtcp);
    };
    CHECK(pjmedia_transport_attach2(guard, &param) == PJ_SUCCESS);
    return param;
  }
};

struct World {
  Sockets sockets;
  std::shared_ptr<MediaSources> sources = std::make_shared<MediaSources>();
  Stream stream;
  pjmedia_transport* guard = nullptr;

  explicit World(Nat nat) {
    sources->policy = SourcePolicy({"192.0.2.0/24"}, nat, "198.51.100.9");
    guard = createMediaGuard(&sockets, sources);
  }
  ~World() {
    pjmedia_transport_detach(guard, &stream);
    pjmedia_transport_close(guard);
    CHECK(sockets.detached == 1 && sockets.closed == 1);
    CHECK(sources.use_count() == 1);  // the guard is gone with the group lock
  }
  pj_sockaddr sendRtcp() {
    sockets.rtcp_sent_to.clear();
    CHECK(pjmedia_transport_send_rtcp(guard, "report", 6) == PJ_SUCCESS);
    CHECK(sockets.rtcp_sent_to.size() == 1);
    return sockets.rtcp_sent_to.empty() ? pj_sockaddr() : sockets.rtcp_sent_to.front();
  }
};

void strangersEndHere() {
  World world(Nat::kOn);
  world.stream.attachTo(world.guard, at("203.0.113.1", 4000));
  CHECK(!world.sockets.rtp(at("203.0.113.2", 4000)));
  world.sockets.rtcp(at("203.0.113.2", 4001));
  CHECK(world.stream.rtp == 0 && world.stream.rtcp == 0);
  CHECK(world.sources->foreign_packets == 2);
  CHECK(same(world.sendRtcp(), at("203.0.113.1", 4001)));
  CHECK(!world.sockets.rtp(at("203.0.113.1", 4000)));
  world.sockets.rtcp(at("203.0.113.1", 4001));
  CHECK(world.stream.rtp == 1 && world.stream.rtcp == 1);
  CHECK(world.sources->foreign_packets == 2);
}

void rtcpFollowsRtpToAnotherHost() {
  World world(Nat::kOn);
  world.stream.attachTo(world.guard, at("203.0.113.1", 4000), at("203.0.113.1", 4101));
  CHECK(same(world.sendRtcp(), at("203.0.113.1", 4101)));
  CHECK(world.sockets.rtp(at("203.0.113.1", 5000)));
  CHECK(same(world.sendRtcp(), at("203.0.113.1", 4101)));
  CHECK(world.sockets.rtp(at("192.0.2.7", 5000)));
  CHECK(same(world.sendRtcp(), at("192.0.2.7", 5001)));
  world.sockets.rtcp(at("192.0.2.7", 6001));
  CHECK(same(world.sendRtcp(), at("192.0.2.7", 6001)));
  // what the transport below makes of a stranger's reports is not asked
  for (int i = 0; i < 10; ++i) world.sockets.rtcp(at("203.0.113.2", 4001));
  CHECK(same(world.sendRtcp(), at("192.0.2.7", 6001)));
}

void rtcpOnThePortOfRtp() {
  World world(Nat::kOn);
  world.stream.attachTo(world.guard, at("2001:db8::1", 4000), at("2001:db8::1", 4000));
  CHECK(same(world.sendRtcp(), at("2001:db8::1", 4000)));
  CHECK(world.sockets.rtp(at("192.0.2.7", 5000)));
  CHECK(same(world.sendRtcp(), at("192.0.2.7", 5000)));
  world.sockets.last_rtp_source = at("203.0.113.2", 4000);
  world.sockets.rtcp(at("192.0.2.7", 5001));
  CHECK(world.stream.rtcp == 0);
}

void offTakesTheReportsOfOnePort() {
  World world(Nat::kOff);
  world.stream.attachTo(world.guard, at("203.0.113.1", 4000), at("203.0.113.8", 4101));
  world.sockets.rtcp(at("203.0.113.1", 4001));
  CHECK(world.stream.rtcp == 0);
  world.sockets.rtcp(at("203.0.113.8", 4101));
  CHECK(world.stream.rtcp == 1);
}

void aNewAddressForgetsTheOldOne() {
  World world(Nat::kOn);
  world.stream.attachTo(world.guard, at("203.0.113.1", 4000));
  world.sockets.rtp(at("192.0.2.7", 5000));
  world.stream.attachTo(world.guard, at("203.0.113.2", 4000));
  CHECK(same(world.sendRtcp(), at("203.0.113.2", 4001)));
  world.sockets.rtp(at("203.0.113.1", 4000));
  CHECK(world.stream.rtp == 1);
  world.sockets.rtp(at("203.0.113.2", 4000));
  CHECK(world.stream.rtp == 2);
}

void nothingGoesToNobody() {
  World world(Nat::kOn);
  CHECK(pjmedia_transport_send_rtp(world.guard, "rtp", 3) == PJ_SUCCESS);
  CHECK(pjmedia_transport_send_rtcp(world.guard, "rtcp", 4) == PJ_SUCCESS);
  world.stream.attachTo(world.guard, at("0.0.0.0", 4000));
  CHECK(pjmedia_transport_send_rtp(world.guard, "rtp", 3) == PJ_SUCCESS);
  CHECK(pjmedia_transport_send_rtcp(world.guard, "rtcp", 4) == PJ_SUCCESS);
  CHECK(world.sockets.rtp_sent == 0 && world.sockets.rtcp_sent_to.empty());
  world.stream.attachTo(world.guard, at("203.0.113.1", 4000));
  CHECK(pjmedia_transport_send_rtp(world.guard, "rtp", 3) == PJ_SUCCESS);
  CHECK(world.sockets.rtp_sent == 1);
}

void errorsOfSocketsPass() {
  World world(Nat::kOff);
  world.stream.attachTo(world.guard, at("203.0.113.1", 4000));
  world.sockets.rtp(pj_sockaddr(), -PJ_ESOCKETSTOP);
  world.sockets.rtcp(pj_sockaddr(), -PJ_ESOCKETSTOP);
  CHECK(world.stream.errors == 2);
  CHECK(world.sources->foreign_packets == 0);
}

}  // namespace

int main() {
  CHECK(pj_init() == PJ_SUCCESS);
  pj_log_set_level(0);
  pj_caching_pool_init(&pools, nullptr, 0);
  strangersEndHere();
  rtcpFollowsRtpToAnotherHost();
  rtcpOnThePortOfRtp();
  offTakesTheReportsOfOnePort();
  aNewAddressForgetsTheOldOne();
  nothingGoesToNobody();
  errorsOfSocketsPass();
  pj_caching_pool_destroy(&pools);
  pj_shutdown();
  return checkResult();
}
