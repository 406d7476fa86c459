// SPDX-License-Identifier: GPL-3.0-or-later
// The sockets of a call's RTP and RTCP, read by the clock: all packets of a tick in a few system calls.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include <pjmedia/transport.h>

// Thread: receive() on the clock's, the rest on the SIP thread. Callbacks run inside of receive().
class RtpReceiver : public std::enable_shared_from_this<RtpReceiver> {
 public:
  RtpReceiver();
  ~RtpReceiver();

  // Hands on what has come. Of one socket at most kMostPackets, and no longer than half a tick or so in all: what is
  // left waits for the next tick, and the system drops what is too much. So a flood at one call holds up no other.
  void receive();

  // From now on sending and receiving over the sockets of this UDP transport of pjmedia is ours; the rest of it, and its
  // place under SRTP, stay as they are. It may have no sockets, then nothing is done.
  void takeOver(pjmedia_transport* transport);

 private:
  friend class RtpSockets;
  struct Socket;
  struct Buffers;
  static constexpr unsigned kMostPackets = 32;

  void add(Socket& socket);
  void remove(Socket& socket);
  void read(Socket& socket);

  std::recursive_mutex mutex_;  // a callback may end its own stream
  int epoll_;
  std::unique_ptr<Buffers> buffers_;
};
