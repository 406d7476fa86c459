// SPDX-License-Identifier: GPL-3.0-or-later
// Many telephones in one thread: SIP calls over UDP whose G.711 audio is silence and, once a second, a short burst
// that is looked for where it should be heard. It prints what it saw as one JSON object, unjudged; bench/run.py does
// the statistics.
//
//   leg A ──burst──► bridge ──► leg B        --mode room   two calls to one address, a room of their own
//   leg A ──burst──► bridge ──► leg A        --mode echo   one call, which hears itself
//   leg A ──burst──────────────► leg B        --mode wire   no bridge: what this program itself adds, 0 ms
//
// Added delay: from (the first packet that has the burst is sent + the burst's place in it) to (the packet that has it
// arrives + its place there). A burst sent in the middle of a packet and one at its start thus read the same, and a
// wire reads 0 whatever the packets' length. Times are the sender's clock right before sendto() and the kernel's stamp
// of the arriving datagram, so this thread's own wake-ups are not in them.
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <queue>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr int64_t kMs = 1000000, kSecond = 1000 * kMs;
constexpr int kFrameSamples = 160;  // 20 ms of G.711
constexpr int64_t kFrame = 20 * kMs, kSample = 125000;
constexpr int kBurstSamples = 16;          // 2 ms of 1 kHz, beginning at its peak: a steep edge, and no step of the mean
constexpr int kBurstPeak = 16000;
constexpr int kHeardPeak = kBurstPeak / 2;  // half of a smoothed edge is where the edge was
constexpr int kDeafSamples = 800;          // after an onset: the rest of the same burst
constexpr int kFramesASecond = 50;
constexpr int64_t kT1 = 500 * kMs, kGiveUp = 32 * kSecond;  // RFC 3261, 17.1.1.2
constexpr int64_t kGap = 40 * kMs;
constexpr int64_t kShortestSleep = 2 * kMs / 5;  // what is due within it is sent together
constexpr int64_t kReceiveEvery = 2 * kMs;
constexpr uint8_t kSilence = 0xff;

struct Options {
  std::string mode = "room";
  std::string uri = "sip:bench{room}@127.0.0.1:5060";
  std::vector<std::string> sources;
  int calls = 2;
  double rate = 40;      // calls a second, set up and ended
  double settle_s = 3;   // from the last answer to the first burst
  double measure_s = 15;
  int rtp_port = 12000;  // of the first call; two ports a call, on every source address
};

int64_t nowNs() {
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * kSecond + t.tv_nsec;
}

[[noreturn]] void fail(const std::string& text) {
  fprintf(stderr, "load: %s\n", text.c_str());
  exit(2);
}

// G.711 µ-law, ITU-T G.711 table 2.
uint8_t toUlaw(int sample) {
  const int sign = sample < 0 ? 0 : 0x80;
  const int magnitude = std::min(std::abs(sample), 32635) + 132;
  const int exponent = 31 - __builtin_clz(unsigned(magnitude)) - 7;
  return uint8_t(sign | (~((exponent << 4) | ((magnitude >> (exponent + 3)) & 15)) & 0x7f));
}

// One of a call's packets is late or lost only once: both are told apart by its extended number.
struct Received {
  bool any = false;
  int64_t first = 0, highest = 0;  // extended sequence numbers
  int64_t last_ns = 0;
  long packets = 0, duplicates_or_late = 0, gaps = 0, other_payloads = 0;
  double longest_gap_ms = 0;
};

enum class State { kWaiting, kInviting, kUp, kEnding, kOver };

struct Leg {
  int index = 0;
  State state = State::kWaiting;
  bool speaks = false, listens = false;
  Leg* heard_by = nullptr;
  // SIP
  int sip_fd = -1;
  std::string room, source, call_id, tag, to, remote_target, request, invite_branch, ack;
  int cseq = 1;
  int64_t start_at = 0, request_at = 0, resend_at = 0, resend_after = 0, answered_at = 0;
  // RTP
  int rtp_fd = -1, rtcp_fd = -1, rtp_port = 0;
  sockaddr_in peer{};
  uint32_t ssrc = 0, timestamp = 0, frames = 0;
  uint16_t sequence = 0;
  int64_t due = 0, phase = 0;
  int burst_frame = 0;  // which of the 50 frames of a second
  Received got;
  // the burst that is on its way to this leg, and until which sample no other is looked for
  int64_t burst_onset = 0;
  bool deaf = false;
  uint32_t deaf_until = 0;
};

struct Heard {
  double at_s, delay_ms;
  int leg;
};

Options options;
std::vector<Leg> legs;
using Due = std::pair<int64_t, Leg*>;
std::priority_queue<Due, std::vector<Due>, std::greater<Due>> sending;  // each leg with its next packet's time
std::map<std::string, int> sip_socket_of;
sockaddr_in server{};
std::string server_host;
int poller = -1;
std::mt19937 random_engine(std::random_device{}());
uint8_t burst[kBurstSamples];
bool measuring = false, bursting = false;
int64_t measured_from = 0, measured_until = 0;
std::vector<Heard> heard;
std::vector<double> setup_ms, send_late_ms;
std::map<std::string, int> failures;
double measured_cpu_s = 0;
long bursts_sent = 0, bursts_unasked = 0, ended_early = 0, rtp_sent = 0;

// ---------------------------------------------------------------------------- SIP

std::string hex(int digits) {
  std::string text;
  while (int(text.size()) < digits) text += "0123456789abcdef"[random_engine() % 16];
  return text;
}

// The value of a header by its long or short name; the first of several.
std::string header(const std::string& message, const char* name, char compact = 0) {
  const size_t length = strlen(name);
  for (size_t at = message.find("\r\n"); at != std::string::npos; at = message.find("\r\n", at)) {
    at += 2;
    const char* line = message.c_str() + at;
    if (*line == '\r') break;
    size_t skip = 0;
    if (strncasecmp(line, name, length) == 0) skip = length;
    else if (compact && tolower(*line) == compact) skip = 1;
    if (!skip) continue;
    while (line[skip] == ' ' || line[skip] == '\t') ++skip;
    if (line[skip] != ':') continue;
    do ++skip; while (line[skip] == ' ' || line[skip] == '\t');
    const size_t end = message.find("\r\n", at);
    return message.substr(at + skip, end - at - skip);
  }
  return "";
}

int sipPort(int fd) {
  sockaddr_in address;
  socklen_t length = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  return ntohs(address.sin_port);
}

void sendSip(const Leg& leg, const std::string& message) {
  sendto(leg.sip_fd, message.data(), message.size(), 0, reinterpret_cast<sockaddr*>(&server), sizeof server);
}

// As telephones do it, with keys beside the audio: a bridge then need not listen for tones.
std::string sdp(const Leg& leg) {
  const std::string at = leg.source;
  return "v=0\r\no=- 1 1 IN IP4 " + at + "\r\ns=-\r\nc=IN IP4 " + at + "\r\nt=0 0\r\nm=audio " +
         std::to_string(leg.rtp_port) + " RTP/AVP 0 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:101 telephone-event/8000\r\n" +
         "a=fmtp:101 0-15\r\na=ptime:20\r\na=sendrecv\r\n";
}

std::string inviteUri(const Leg& leg) {
  std::string uri = options.uri;
  const size_t at = uri.find("{room}");
  if (at != std::string::npos) uri.replace(at, 6, leg.room);
  return uri;
}

std::string makeRequest(Leg& leg, const std::string& method, const std::string& branch) {
  const std::string at = leg.source + ":" + std::to_string(sipPort(leg.sip_fd));
  const bool invite = method == "INVITE";
  const std::string uri = leg.remote_target.empty() ? inviteUri(leg) : leg.remote_target;
  const std::string body = invite ? sdp(leg) : "";
  return method + " " + uri + " SIP/2.0\r\nVia: SIP/2.0/UDP " + at + ";branch=" + branch + ";rport\r\n" +
         "Max-Forwards: 70\r\nFrom: <sip:load" + std::to_string(leg.index) + "@" + at + ">;tag=" + leg.tag +
         "\r\nTo: " + (leg.to.empty() ? "<" + uri + ">" : leg.to) + "\r\nCall-ID: " + leg.call_id + "\r\nCSeq: " +
         std::to_string(leg.cseq) + " " + method + "\r\nContact: <sip:load" + std::to_string(leg.index) + "@" + at +
         ">\r\n" + (invite ? "Content-Type: application/sdp\r\n" : "") + "Content-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}

void sendRequest(Leg& leg, const std::string& method, int64_t now) {
  const std::string branch = "z9hG4bK" + hex(16);
  if (method == "INVITE") leg.invite_branch = branch;
  leg.request = makeRequest(leg, method, branch);
  leg.request_at = nowNs();
  leg.resend_after = kT1;
  leg.resend_at = now + kT1;
  sendSip(leg, leg.request);
}

void over(Leg& leg, const std::string& failure = "") {
  leg.state = State::kOver;
  leg.resend_at = 0;
  if (!failure.empty()) ++failures[failure];
}

void respond(const Leg& leg, const std::string& request, bool with_sdp) {
  std::string text = "SIP/2.0 200 OK\r\n";
  for (size_t at = request.find("\r\n"); at != std::string::npos;) {
    const size_t end = request.find("\r\n", at + 2);
    if (end == std::string::npos || end == at + 2) break;
    const std::string line = request.substr(at + 2, end - at - 2);
    if (strncasecmp(line.c_str(), "via", 3) == 0 || strncasecmp(line.c_str(), "v:", 2) == 0) text += line + "\r\n";
    at = end;
  }
  const std::string body = with_sdp ? sdp(leg) : "";
  text += "From: " + header(request, "From", 'f') + "\r\nTo: " + header(request, "To", 't') + "\r\nCall-ID: " +
          leg.call_id + "\r\nCSeq: " + header(request, "CSeq") + "\r\nContact: <sip:load@" + leg.source + ":" +
          std::to_string(sipPort(leg.sip_fd)) + ">\r\n" + (with_sdp ? "Content-Type: application/sdp\r\n" : "") +
          "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  sendSip(leg, text);
}

void answered(Leg& leg, const std::string& message, int64_t arrived) {
  leg.to = header(message, "To", 't');
  const std::string contact = header(message, "Contact", 'm');
  const size_t open = contact.find('<');
  leg.remote_target = open == std::string::npos ? contact.substr(0, contact.find(';'))
                                                : contact.substr(open + 1, contact.find('>') - open - 1);
  leg.ack = makeRequest(leg, "ACK", "z9hG4bK" + hex(16));
  sendSip(leg, leg.ack);
  leg.resend_at = 0;
  setup_ms.push_back(double(arrived - leg.request_at) / kMs);

  const size_t c = message.find("\nc=IN IP4 "), m = message.find("\nm=audio ");
  if (c == std::string::npos || m == std::string::npos) return over(leg, "no audio in the answer");
  leg.peer.sin_family = AF_INET;
  leg.peer.sin_port = htons(uint16_t(atoi(message.c_str() + m + 9)));
  inet_pton(AF_INET, message.substr(c + 10, message.find_first_of("\r\n", c + 10) - c - 10).c_str(),
            &leg.peer.sin_addr);
  leg.state = State::kUp;
  leg.answered_at = arrived;
  leg.due = (arrived / kFrame + 1) * kFrame + leg.phase;
  sending.push({leg.due, &leg});
}

void handleSip(const std::string& message, int64_t arrived) {
  const size_t index = size_t(atoi(header(message, "Call-ID", 'i').c_str()));
  if (index >= legs.size() || header(message, "Call-ID", 'i') != legs[index].call_id) return;
  Leg& leg = legs[index];
  const std::string cseq = header(message, "CSeq");
  const std::string method = cseq.substr(cseq.find(' ') + 1);
  if (message.compare(0, 8, "SIP/2.0 ") != 0) {  // a request
    if (method == "ACK") return;
    respond(leg, message, method == "INVITE" || method == "UPDATE");
    if (method == "BYE" && leg.state != State::kOver) {
      if (leg.state != State::kEnding) ++ended_early;
      over(leg);
    }
    return;
  }
  const int code = atoi(message.c_str() + 8);
  if (method == "BYE" && leg.state == State::kEnding && code >= 200) return over(leg);
  if (method != "INVITE") return;
  if (code < 200) {
    if (leg.state == State::kInviting) leg.resend_at = leg.request_at + kGiveUp;
  } else if (code < 300) {
    if (leg.state == State::kInviting) answered(leg, message, arrived);
    else if (!leg.ack.empty()) sendSip(leg, leg.ack);
  } else {
    Leg refused = leg;
    refused.to = header(message, "To", 't');
    sendSip(leg, makeRequest(refused, "ACK", leg.invite_branch));
    if (leg.state == State::kInviting) over(leg, std::to_string(code));
  }
}

void sipTimers(Leg& leg, int64_t now) {
  if (leg.state == State::kWaiting && leg.start_at && now >= leg.start_at) {
    leg.state = State::kInviting;
    sendRequest(leg, "INVITE", now);
  }
  if (!leg.resend_at || now < leg.resend_at) return;
  if (now - leg.request_at >= kGiveUp) return over(leg, leg.state == State::kInviting ? "no answer" : "BYE unanswered");
  sendSip(leg, leg.request);
  leg.resend_after *= 2;
  leg.resend_at = now + leg.resend_after;
}

// ---------------------------------------------------------------------------- RTP

void sendFrame(Leg& leg) {
  uint8_t packet[12 + kFrameSamples];
  packet[0] = 0x80;
  packet[1] = uint8_t(leg.frames == 0 ? 0x80 : 0);
  const uint16_t sequence = htons(leg.sequence);
  const uint32_t timestamp = htonl(leg.timestamp), ssrc = htonl(leg.ssrc);
  memcpy(packet + 2, &sequence, 2);
  memcpy(packet + 4, &timestamp, 4);
  memcpy(packet + 8, &ssrc, 4);
  memset(packet + 12, kSilence, kFrameSamples);
  int place = -1;
  if (bursting && leg.speaks && int(leg.frames % kFramesASecond) == leg.burst_frame) {
    place = int(random_engine() % (kFrameSamples - kBurstSamples));
    memcpy(packet + 12 + place, burst, kBurstSamples);
  }
  const int64_t now = nowNs();
  sendto(leg.rtp_fd, packet, sizeof packet, 0, reinterpret_cast<sockaddr*>(&leg.peer), sizeof leg.peer);
  if (place >= 0) {
    ++bursts_sent;
    leg.heard_by->burst_onset = now + place * kSample;
  }
  if (measuring) {
    ++rtp_sent;
    send_late_ms.push_back(double(now - leg.due) / kMs);
  }
  ++leg.sequence;
  ++leg.frames;
  leg.timestamp += kFrameSamples;
  leg.due += kFrame;
}

void listen(Leg& leg, const uint8_t* payload, int count, uint32_t timestamp, int64_t arrived) {
  static const uint8_t loud = uint8_t(toUlaw(kHeardPeak) & 0x7f);  // µ-law counts downwards
  for (int i = 0; i < count; ++i) {
    if ((payload[i] & 0x7f) > loud) continue;
    const uint32_t at = timestamp + uint32_t(i);
    if (leg.deaf && int32_t(at - leg.deaf_until) < 0) continue;
    leg.deaf = true;
    leg.deaf_until = at + kDeafSamples;
    const int64_t onset = arrived + i * kSample;
    if (leg.burst_onset) {
      heard.push_back({double(onset - measured_from) / kSecond, double(onset - leg.burst_onset) / kMs, leg.index});
      leg.burst_onset = 0;
    } else if (measuring) {
      ++bursts_unasked;
    }
  }
}

void handleRtp(Leg& leg, const uint8_t* packet, int length, int64_t arrived) {
  if (length < 12 || packet[0] >> 6 != 2) return;
  const int head = 12 + 4 * (packet[0] & 15);
  if (length < head || packet[0] & 0x10) return;
  const uint16_t sequence = uint16_t(packet[2] << 8 | packet[3]);
  const uint32_t timestamp = uint32_t(packet[4]) << 24 | uint32_t(packet[5]) << 16 | uint32_t(packet[6]) << 8 | packet[7];
  Received& got = leg.got;
  if (measuring) {
    const int64_t number = got.any ? got.highest + int16_t(sequence - uint16_t(got.highest)) : sequence;
    if (!got.any) {
      got.any = true;
      got.first = number;
      got.highest = number - 1;
    }
    if (number > got.highest) got.highest = number;
    else ++got.duplicates_or_late;
    ++got.packets;
    if (got.last_ns) {
      const int64_t gap = arrived - got.last_ns;
      got.longest_gap_ms = std::max(got.longest_gap_ms, double(gap) / kMs);
      if (gap > kGap) ++got.gaps;
    }
    got.last_ns = arrived;
  }
  if ((packet[1] & 0x7f) != 0) {
    if (measuring) ++got.other_payloads;
  } else if (leg.listens) {
    listen(leg, packet + head, length - head, timestamp, arrived);
  }
}

// ---------------------------------------------------------------------------- sockets

// A datagram socket whose datagrams carry the kernel's time of arrival.
int openSocket(const std::string& address, int port, uint64_t key) {
  const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
  const int on = 1, size = 1 << 20;
  setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(uint16_t(port));
  if (fd < 0 || inet_pton(AF_INET, address.c_str(), &at.sin_addr) != 1 ||
      bind(fd, reinterpret_cast<sockaddr*>(&at), sizeof at) != 0) {
    fail("cannot bind " + address + ":" + std::to_string(port) + ": " + strerror(errno));
  }
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = key;
  if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) != 0) fail(strerror(errno));
  return fd;
}

constexpr uint64_t kSipKey = 1ull << 32;

int64_t arrivalOf(msghdr& message) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
      timespec t;
      memcpy(&t, CMSG_DATA(c), sizeof t);
      return t.tv_sec * kSecond + t.tv_nsec;
    }
  }
  return nowNs();
}

void receiveAll() {
  constexpr int kBatch = 8;
  static uint8_t data[kBatch][16384];
  static char control[kBatch][64];
  epoll_event ready[512];
  const int count = epoll_wait(poller, ready, 512, 0);
  for (int i = 0; i < count; ++i) {
    const bool sip = ready[i].data.u64 & kSipKey;
    const uint32_t which = uint32_t(ready[i].data.u64);
    const int fd = sip ? int(which) : legs[which].rtp_fd;
    mmsghdr messages[kBatch];
    iovec buffers[kBatch];
    memset(messages, 0, sizeof messages);
    for (int k = 0; k < kBatch; ++k) {
      buffers[k] = {data[k], sizeof data[k]};
      messages[k].msg_hdr.msg_iov = &buffers[k];
      messages[k].msg_hdr.msg_iovlen = 1;
      messages[k].msg_hdr.msg_control = control[k];
      messages[k].msg_hdr.msg_controllen = sizeof control[k];
    }
    const int got = recvmmsg(fd, messages, kBatch, 0, nullptr);
    for (int k = 0; k < got; ++k) {
      const int64_t arrived = arrivalOf(messages[k].msg_hdr);
      const int length = int(messages[k].msg_len);
      if (sip) handleSip(std::string(reinterpret_cast<char*>(data[k]), size_t(length)), arrived);
      else handleRtp(legs[which], data[k], length, arrived);
    }
  }
}

// ---------------------------------------------------------------------------- the run

// Sends, receives and sleeps until `done` says so or the time is over.
template <typename Done>
void runUntil(int64_t deadline, Done done) {
  for (int64_t receive_at = 0;;) {
    int64_t now = nowNs();
    while (!sending.empty() && sending.top().first <= now) {
      Leg& leg = *sending.top().second;
      sending.pop();
      if (leg.state == State::kOver) continue;
      sendFrame(leg);
      sending.push({leg.due, &leg});
    }
    if (now >= receive_at) {
      receive_at = now + kReceiveEvery;
      for (Leg& leg : legs) sipTimers(leg, now);
      receiveAll();
      if (now >= deadline || done()) return;
    }
    const int64_t due = sending.empty() ? receive_at : std::min(receive_at, sending.top().first);
    const int64_t next = std::max(due, nowNs() + kShortestSleep);
    const timespec until = {time_t(next / kSecond), long(next % kSecond)};
    clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &until, nullptr);
  }
}

bool all(bool (*is)(const Leg&)) { return std::all_of(legs.begin(), legs.end(), is); }

// A line for who started this program, which looks at the bridge at these moments.
void tell(const char* moment) {
  printf("%s\n", moment);
  fflush(stdout);
}

void resolve() {
  std::string host = options.uri.substr(options.uri.find('@') + 1);
  host = host.substr(0, host.find_first_of(";>"));
  const size_t colon = host.find(':');
  const std::string port = colon == std::string::npos ? "5060" : host.substr(colon + 1);
  server_host = host.substr(0, colon);
  addrinfo wanted{}, *found = nullptr;
  wanted.ai_family = AF_INET;
  wanted.ai_socktype = SOCK_DGRAM;
  if (getaddrinfo(server_host.c_str(), port.c_str(), &wanted, &found) != 0) fail("cannot resolve " + server_host);
  memcpy(&server, found->ai_addr, sizeof server);
  freeaddrinfo(found);
  if (!options.sources.empty()) return;
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);  // which of our addresses is on the way there
  sockaddr_in own{};
  socklen_t length = sizeof own;
  if (connect(fd, reinterpret_cast<sockaddr*>(&server), sizeof server) != 0) fail("no way to " + server_host);
  getsockname(fd, reinterpret_cast<sockaddr*>(&own), &length);
  close(fd);
  char text[INET_ADDRSTRLEN];
  options.sources.push_back(inet_ntop(AF_INET, &own.sin_addr, text, sizeof text));
}

void makeLegs() {
  const bool wire = options.mode == "wire", echo = options.mode == "echo";
  legs.resize(size_t(options.calls));
  if (!wire) {
    resolve();
    for (const std::string& source : options.sources) {
      const int fd = openSocket(source, 0, 0);
      epoll_event event{};
      event.events = EPOLLIN;
      event.data.u64 = kSipKey | uint64_t(fd);
      epoll_ctl(poller, EPOLL_CTL_MOD, fd, &event);
      sip_socket_of[source] = fd;
    }
  } else if (options.sources.empty()) {
    options.sources.push_back("127.0.0.1");
  }
  for (int i = 0; i < options.calls; ++i) {
    Leg& leg = legs[size_t(i)];
    const int pair = echo ? i : i / 2;
    leg.index = i;
    leg.source = options.sources[size_t(pair) % options.sources.size()];
    leg.speaks = echo || i % 2 == 0;
    leg.listens = echo || i % 2 == 1;
    leg.heard_by = echo ? &leg : &legs[size_t(i ^ 1)];
    char room[16];
    snprintf(room, sizeof room, "%03d", pair);
    leg.room = room;
    leg.sip_fd = wire ? -1 : sip_socket_of[leg.source];
    leg.call_id = std::to_string(i) + "-" + hex(20);
    leg.tag = hex(8);
    leg.rtp_port = options.rtp_port + 2 * i;
    leg.rtp_fd = openSocket(leg.source, leg.rtp_port, uint64_t(i));
    leg.ssrc = random_engine();
    leg.timestamp = random_engine();
    leg.sequence = uint16_t(random_engine());
    // steps of the golden ratio: any number of callers, and the two of every pair, lie evenly over the 20 ms
    leg.phase = int64_t(std::fmod(i * 0.6180339887498949, 1.0) * double(kFrame));
    leg.burst_frame = pair % kFramesASecond;
    // RTCP must not come to the next call's RTP, nor be refused: it is let in and left there
    leg.rtcp_fd = socket(AF_INET, SOCK_DGRAM, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(uint16_t(leg.rtp_port + 1));
    inet_pton(AF_INET, leg.source.c_str(), &at.sin_addr);
    if (bind(leg.rtcp_fd, reinterpret_cast<sockaddr*>(&at), sizeof at) != 0) fail("cannot bind an RTCP port");
  }
  if (!wire) return;
  const int64_t start = (nowNs() / kFrame + 1) * kFrame;
  for (Leg& leg : legs) {
    leg.peer.sin_family = AF_INET;
    leg.peer.sin_port = htons(uint16_t(leg.heard_by->rtp_port));
    inet_pton(AF_INET, leg.heard_by->source.c_str(), &leg.peer.sin_addr);
    leg.state = State::kUp;
    leg.due = start + leg.phase;
    sending.push({leg.due, &leg});
  }
}

void setUp() {
  const int64_t start = nowNs() + 10 * kMs;
  for (Leg& leg : legs) leg.start_at = start + int64_t(leg.index / options.rate * double(kSecond));
  const int64_t last = start + int64_t(options.calls / options.rate * double(kSecond));
  runUntil(last + kGiveUp + kSecond,
           [] { return all([](const Leg& l) { return l.state == State::kUp || l.state == State::kOver; }); });
}

double cpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + double(t.tv_nsec) / 1e9;
}

void measure() {
  const auto never = [] { return false; };
  runUntil(nowNs() + int64_t(options.settle_s * double(kSecond)), never);
  for (Leg& leg : legs) leg.got = {};
  measured_from = nowNs();
  measured_cpu_s = -cpuSeconds();
  measuring = bursting = true;
  tell("measuring");
  runUntil(measured_from + int64_t(options.measure_s * double(kSecond)), never);
  measuring = bursting = false;
  measured_until = nowNs();
  measured_cpu_s += cpuSeconds();
  tell("measured");
  runUntil(nowNs() + kSecond, never);  // the last bursts arrive
}

void hangUp() {
  int64_t at = nowNs();
  size_t next = 0;
  const auto done = [&] {
    const int64_t now = nowNs();
    for (; next < legs.size() && at <= now; ++next) {
      Leg& leg = legs[next];
      if (leg.state != State::kUp) continue;
      leg.state = State::kEnding;
      ++leg.cseq;
      sendRequest(leg, "BYE", now);
      at += int64_t(double(kSecond) / options.rate);
    }
    return next == legs.size() && all([](const Leg& l) { return l.state != State::kEnding; });
  };
  runUntil(nowNs() + int64_t(options.calls / options.rate * double(kSecond)) + kGiveUp + kSecond, done);
}

void printNumbers(const char* name, const std::vector<double>& values) {
  printf("\"%s\": [", name);
  for (size_t i = 0; i < values.size(); ++i) printf("%s%.3f", i ? ", " : "", values[i]);
  printf("], ");
}

// Of many, the ones at even steps of their order: enough for percentiles.
std::vector<double> summary(std::vector<double> values, size_t count) {
  std::sort(values.begin(), values.end());
  if (values.size() <= count) return values;
  std::vector<double> chosen;
  for (size_t i = 0; i < count; ++i) chosen.push_back(values[i * (values.size() - 1) / (count - 1)]);
  return chosen;
}

void report(int answered_calls) {
  printf("{\"calls\": %d, \"answered\": %d, \"measured_from\": %.6f, \"measured_s\": %.3f, ", options.calls, answered_calls,
         double(measured_from) / kSecond, double(measured_until - measured_from) / kSecond);
  printf("\"failures\": {");
  const char* separator = "";
  for (const auto& [code, count] : failures) {
    printf("%s\"%s\": %d", separator, code.c_str(), count);
    separator = ", ";
  }
  printf("}, \"ended_early\": %ld, ", ended_early);
  printNumbers("setup_ms", setup_ms);
  printNumbers("send_late_ms", summary(send_late_ms, 1001));
  printf("\"bursts_sent\": %ld, \"bursts_unasked\": %ld, \"rtp_sent\": %ld, \"bursts\": [", bursts_sent, bursts_unasked,
         rtp_sent);
  separator = "";
  for (const Heard& h : heard) {
    printf("%s[%.6f, %d, %.3f]", separator, h.at_s, h.leg, h.delay_ms);
    separator = ", ";
  }
  printf("], \"received\": [");
  separator = "";
  for (const Leg& leg : legs) {
    const Received& got = leg.got;
    if (!leg.answered_at && options.mode != "wire") continue;
    const long expected = got.any ? long(got.highest - got.first + 1) : 0;
    printf("%s{\"packets\": %ld, \"expected\": %ld, \"late_or_twice\": %ld, \"other_payloads\": %ld, "
           "\"gaps_over_40_ms\": %ld, \"longest_gap_ms\": %.3f}",
           separator, got.packets, expected, got.duplicates_or_late, got.other_payloads, got.gaps, got.longest_gap_ms);
    separator = ", ";
  }
  printf("], \"cpu_s\": %.3f}\n", measured_cpu_s);
}

void usage() {
  fail("usage: load [--mode room|echo|wire] [--uri sip:USER{room}@HOST[:PORT]] [--calls N] [--rate CALLS_A_SECOND] "
       "[--settle SECONDS] [--seconds SECONDS] [--source ADDRESS]... [--rtp-port FIRST]");
}

void parse(int count, char** arguments) {
  for (int i = 1; i < count; i += 2) {
    const std::string name = arguments[i];
    if (i + 1 == count) usage();
    const char* value = arguments[i + 1];
    if (name == "--mode") options.mode = value;
    else if (name == "--uri") options.uri = value;
    else if (name == "--calls") options.calls = atoi(value);
    else if (name == "--rate") options.rate = atof(value);
    else if (name == "--settle") options.settle_s = atof(value);
    else if (name == "--seconds") options.measure_s = atof(value);
    else if (name == "--source") options.sources.push_back(value);
    else if (name == "--rtp-port") options.rtp_port = atoi(value);
    else usage();
  }
  if (options.mode != "room" && options.mode != "echo" && options.mode != "wire") usage();
  if (options.calls < 1 || options.rate <= 0 || (options.mode != "echo" && options.calls % 2)) usage();
}

}  // namespace

int main(int count, char** arguments) {
  parse(count, arguments);
  prctl(PR_SET_TIMERSLACK, 1);
  // Callers are other machines: a bridge that is busy must not hold them up. Where the system does not allow it, the
  // lateness of what was sent tells.
  sched_param priority{};
  priority.sched_priority = 1;
  sched_setscheduler(0, SCHED_RR, &priority);
  rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  for (int i = 0; i < kBurstSamples; ++i) burst[i] = toUlaw(int(kBurstPeak * std::cos(2 * M_PI * i / 8)));
  poller = epoll_create1(0);
  makeLegs();
  if (options.mode != "wire") setUp();
  const long up = std::count_if(legs.begin(), legs.end(), [](const Leg& l) { return l.state == State::kUp; });
  tell("answered");
  if (up) measure();
  if (options.mode != "wire") hangUp();
  tell("ended");
  report(int(up));
  return 0;
}
