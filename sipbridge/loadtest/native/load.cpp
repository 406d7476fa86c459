// SPDX-License-Identifier: GPL-3.0-or-later
// Many telephones in one thread: SIP calls over UDP that say something and look for it where it should be heard. It
// prints what it saw as one JSON object, unjudged; Python does the statistics.
//
//   leg A ──► bridge ──► legs B, C, ...    --mode room   calls to one address, --room-size of them in a room; one talks
//   leg A ──► bridge ──► leg A             --mode echo   one call, which hears itself
//   leg A ──────────────► legs B, C, ...    --mode wire   no bridge: what this program itself adds, 0 ms
//
// What is said is silence and now and then a short burst, or with --speech speech without an end (follower.hpp).
//
// Added delay: from (the first packet that has the burst is sent + the burst's place in it) to (the packet that has it
// arrives + its place there), less what the codecs themselves take (codecs.hpp). A burst sent in the middle of a packet
// and one at its start thus read the same, and a wire reads 0 whatever the packets' length. Times are the sender's clock
// right before sendto() and the kernel's stamp of the arriving datagram, so this thread's own wake-ups are not in them.
// On a bad line (impairment.hpp) the first is the time at which the packet would have left on a good one: what its
// jitter costs is delay too.
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

#include "codecs.hpp"
#include "common.hpp"
#include "follower.hpp"
#include "impairment.hpp"

namespace {

constexpr int kDeafSamples = 800;          // after an onset: the rest of the same burst
constexpr int kFramesASecond = 50;
constexpr int64_t kT1 = 500 * kMs, kGiveUp = 32 * kSecond;  // RFC 3261, 17.1.1.2
constexpr int64_t kGap = 40 * kMs;
constexpr int64_t kShortestSleep = 4 * kMs / 5;  // what is due within it is sent together
constexpr int64_t kReceiveEvery = 2 * kMs;
constexpr int64_t kFollowEvery = 250 * kMs;

struct Options {
  std::string mode = "room";
  std::string uri = "sip:bench{room}@127.0.0.1:5060";
  std::vector<std::string> sources;
  int calls = 2;
  double rate = 40;      // calls a second, set up and ended
  double settle_s = 3;   // from the last answer to the first burst
  double measure_s = 15;
  int rtp_port = 12000;  // of the first call; two ports a call, on every source address
  int room_size = 2;
  std::vector<const CodecKind*> codecs;  // of the calls in turn, over and over
  double drift_ppm = 0;   // every second caller's clock is faster by it, the others' slower
  Impairment impairment;  // of what callers send
  uint32_t seed = 1;
  std::string speech;  // PREFIX of files PREFIX.RATE.s16, of the same speech; empty: bursts
  std::string record;  // folder for what was heard
};

// One of a call's packets is late or lost only once: both are told apart by its extended number.
struct Received {
  bool any = false;
  int64_t first = 0, highest = 0;  // extended sequence numbers
  int64_t last_ns = 0;
  uint64_t seen = 0;  // of the 64 numbers up to the highest, the highest in the lowest bit
  long packets = 0, late_or_twice = 0, twice = 0, gaps = 0, other_payloads = 0;
  double longest_gap_ms = 0;
};

enum class State { kWaiting, kInviting, kUp, kEnding, kOver };

struct Leg {
  int index = 0;
  State state = State::kWaiting;
  bool speaks = false, listens = false;
  Leg* talker = nullptr;  // whom it hears, if it listens
  std::vector<Leg*> listeners;
  const CodecKind* kind = nullptr;
  std::unique_ptr<Codec> codec;
  std::unique_ptr<Line> line;  // where it is a bad one
  int64_t frame_ns = kFrame;   // 20 ms of its own clock
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
  int64_t first_sent = 0;
  int burst_frame = 0;  // which of the 50 frames of a second
  double sent_phase_ms = -1;  // within 20 ms, of the measured packet that left most in time
  int64_t least_late = 0;     // how late that was
  std::vector<uint32_t> lost_frames;  // of those measured, counted from `measured_frame`
  uint32_t measured_frame = 0;
  std::unique_ptr<Said> said;          // of a talker of speech
  std::unique_ptr<Follower> follower;  // of one who listens to it
  int64_t follow_at = 0;
  Samples heard;  // of a recording
  int64_t heard_from = 0;
  Received got;
  // the burst that is on its way to this leg, and until which sample no other is looked for
  int64_t burst_onset = 0;
  bool deaf = false;
  int64_t deaf_until = 0;
  int64_t codec_delay = 0;  // of the way from its talker
  // where in the stream heard, in samples of 8 kHz
  bool any_heard = false;
  uint32_t last_timestamp = 0;
  int64_t place = 0;
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
std::map<const CodecKind*, std::vector<uint8_t>> silence;  // a payload of it, for those who only listen
std::map<int, Samples> speech;                             // by rate

// A packet that a bad line holds back.
struct Held {
  int64_t at;
  uint64_t number;  // of two for one moment the first goes first
  Leg* leg;
  std::vector<uint8_t> packet;
  bool operator>(const Held& other) const { return at != other.at ? at > other.at : number > other.number; }
};
std::priority_queue<Held, std::vector<Held>, std::greater<Held>> held;
uint64_t held_count = 0;
bool measuring = false, bursting = false;
int64_t measured_from = 0, measured_until = 0;
std::vector<Heard> heard;
std::vector<double> setup_ms, send_late_ms;
std::map<std::string, int> failures;
double measured_cpu_s = 0;
long bursts_sent = 0, bursts_dropped = 0, bursts_unasked = 0, ended_early = 0, rtp_sent = 0, rtp_dropped = 0;

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
  const std::string at = leg.source, type = std::to_string(leg.kind->payload_type);
  const std::string events_hz = std::to_string(leg.kind->clock_hz);  // RFC 4733, 2.1: the clock of the audio
  return "v=0\r\no=- 1 1 IN IP4 " + at + "\r\ns=-\r\nc=IN IP4 " + at + "\r\nt=0 0\r\nm=audio " +
         std::to_string(leg.rtp_port) + " RTP/AVP " + type + " 101\r\na=rtpmap:" + type + " " + leg.kind->rtpmap +
         "\r\na=rtpmap:101 telephone-event/" + events_hz + "\r\na=fmtp:101 0-15\r\na=ptime:20\r\na=sendrecv\r\n";
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
    leg.to = header(message, "To", 't');
    sendSip(leg, makeRequest(leg, "ACK", leg.invite_branch));
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

void sendNow(const Leg& leg, const uint8_t* packet, size_t size) {
  sendto(leg.rtp_fd, packet, size, 0, reinterpret_cast<const sockaddr*>(&leg.peer), sizeof leg.peer);
}

// A frame's payload; where in it a burst begins, in samples of 8 kHz, or -1.
int fill(Leg& leg, uint8_t* payload, int* place) {
  *place = -1;
  const int count = leg.kind->frameSamples();
  int16_t frame[960] = {};
  if (leg.said) {
    const Samples& words = speech.at(leg.kind->rate_hz);
    const size_t from = size_t(leg.said->placeInSpeech(leg.frames)) * size_t(count / kFrameSamples);
    memcpy(frame, words.data() + from, size_t(count) * 2);
  } else if (bursting && leg.speaks && int(leg.frames % kFramesASecond) == leg.burst_frame) {
    *place = int(random_engine() % (kFrameSamples - kBurstSamples));
    addBurst(*leg.kind, *place, frame);
  }
  // without a state, silence is always the same
  if (!leg.speaks || (*place < 0 && !leg.said && leg.kind->rate_hz == kRate)) {
    const std::vector<uint8_t>& same = silence.at(leg.kind);
    memcpy(payload, same.data(), same.size());
    return int(same.size());
  }
  return leg.codec->encode(frame, payload);
}

void sendFrame(Leg& leg) {
  uint8_t packet[12 + kMaxPayload];
  packet[0] = 0x80;
  packet[1] = uint8_t((leg.frames == 0 ? 0x80 : 0) | leg.kind->payload_type);
  const uint16_t sequence = htons(leg.sequence);
  const uint32_t timestamp = htonl(leg.timestamp), ssrc = htonl(leg.ssrc);
  memcpy(packet + 2, &sequence, 2);
  memcpy(packet + 4, &timestamp, 4);
  memcpy(packet + 8, &ssrc, 4);
  int place = -1;
  const size_t size = 12 + size_t(fill(leg, packet + 12, &place));
  const int64_t now = nowNs();
  if (leg.frames == 0) leg.first_sent = now;
  bool leaves = true;
  if (!leg.line) {
    sendNow(leg, packet, size);
  } else {
    const std::vector<int64_t> times = leg.line->leave(now);
    leaves = !times.empty();
    for (int64_t at : times) held.push({at, held_count++, &leg, {packet, packet + size}});
  }
  if (place >= 0 && leaves) {
    for (Leg* listener : leg.listeners) {
      ++bursts_sent;
      listener->burst_onset = now + place * kSample;
    }
  } else if (place >= 0) {
    bursts_dropped += long(leg.listeners.size());
  }
  if (leg.said) leg.said->sent(leg.frames, now);
  if (measuring) {
    if (leg.sent_phase_ms < 0) leg.measured_frame = leg.frames;
    if (leg.sent_phase_ms < 0 || now - leg.due < leg.least_late) {
      leg.sent_phase_ms = double(now % kFrame) / kMs;
      leg.least_late = now - leg.due;
    }
    ++rtp_sent;
    if (!leaves) {
      ++rtp_dropped;
      leg.lost_frames.push_back(leg.frames - leg.measured_frame);
    }
    send_late_ms.push_back(double(now - leg.due) / kMs);
  }
  ++leg.sequence;
  ++leg.frames;
  leg.timestamp += uint32_t(leg.kind->clock_hz / kFramesASecond);
  leg.due += leg.frame_ns;
}

void listen(Leg& leg, const int16_t* samples, int count, int64_t place, int64_t arrived) {
  for (int i = 0; i < count; ++i) {
    if (std::abs(int(samples[i])) < kHeardPeak) continue;
    const int64_t at = place + i;
    if (leg.deaf && at < leg.deaf_until) continue;
    leg.deaf = true;
    leg.deaf_until = at + kDeafSamples;
    const int64_t onset = arrived + i * kSample;
    if (leg.burst_onset) {
      heard.push_back({double(onset - measured_from) / kSecond,
                       double(onset - leg.burst_onset - leg.codec_delay) / kMs, leg.index});
      leg.burst_onset = 0;
    } else if (measuring) {
      ++bursts_unasked;
    }
  }
}

void record(Leg& leg, const int16_t* samples, int count, int64_t place) {
  if (!measuring && leg.heard.empty()) return;
  if (leg.heard.empty()) leg.heard_from = place;
  const int64_t from = place - leg.heard_from;
  if (from < 0) return;
  if (leg.heard.size() < size_t(from + count)) leg.heard.resize(size_t(from + count));
  std::copy(samples, samples + count, leg.heard.begin() + from);
}

void hear(Leg& leg, const uint8_t* payload, int bytes, uint32_t timestamp, int64_t arrived) {
  int16_t samples[kMaxDecoded];
  const int count = leg.codec->decode(payload, bytes, samples);
  if (leg.any_heard) leg.place += int32_t(timestamp - leg.last_timestamp) / (leg.kind->clock_hz / kRate);
  leg.any_heard = true;
  leg.last_timestamp = timestamp;
  if (leg.follower) leg.follower->hear(leg.place, samples, count, arrived);
  else listen(leg, samples, count, leg.place, arrived);
  if (!options.record.empty()) record(leg, samples, count, leg.place);
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
    if (number > got.highest) {
      const int64_t step = number - got.highest;
      got.seen = (step < 64 ? got.seen << step : 0) | 1;
      got.highest = number;
    } else {
      ++got.late_or_twice;
      const int64_t back = got.highest - number;
      const uint64_t bit = back < 64 ? 1ull << back : 0;
      if (got.seen & bit || number < got.first) ++got.twice;  // before the first: sent before the measured time
      got.seen |= bit;
    }
    ++got.packets;
    if (got.last_ns) {
      const int64_t gap = arrived - got.last_ns;
      got.longest_gap_ms = std::max(got.longest_gap_ms, double(gap) / kMs);
      if (gap > kGap) ++got.gaps;
    }
    got.last_ns = arrived;
  }
  if ((packet[1] & 0x7f) != leg.kind->payload_type) {
    if (measuring) ++got.other_payloads;
  } else if (leg.listens) {
    hear(leg, packet + head, length - head, timestamp, arrived);
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
    for (; !held.empty() && held.top().at <= now; held.pop()) {
      const Held& packet = held.top();
      if (packet.leg->state != State::kOver) sendNow(*packet.leg, packet.packet.data(), packet.packet.size());
    }
    if (now >= receive_at) {
      receive_at = now + kReceiveEvery;
      for (Leg& leg : legs) {
        sipTimers(leg, now);
        if (leg.follower && now >= leg.follow_at) {
          leg.follow_at = now + kFollowEvery;
          leg.follower->follow();
        }
      }
      receiveAll();
      if (now >= deadline || done()) return;
    }
    int64_t due = sending.empty() ? receive_at : std::min(receive_at, sending.top().first);
    if (!held.empty()) due = std::min(due, held.top().at);
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

Samples readSamples(const std::string& path) {
  FILE* file = fopen(path.c_str(), "rb");
  if (!file) fail("cannot read " + path + ": " + strerror(errno));
  Samples samples(1 << 24);
  samples.resize(fread(samples.data(), 2, samples.size(), file));
  fclose(file);
  return samples;
}

// What everybody says, and what is heard of it less the codecs' own delay.
void beginTalk() {
  std::map<const CodecKind*, int64_t> delay;
  for (const CodecKind* kind : options.codecs) {
    if (silence.count(kind)) continue;
    delay[kind] = codecDelay(*kind);
    const auto codec = makeCodec(*kind);
    const std::vector<int16_t> zeros(size_t(kind->frameSamples()));
    uint8_t payload[kMaxPayload];
    int bytes = 0;
    for (int i = 0; i < 10; ++i) bytes = codec->encode(zeros.data(), payload);
    silence[kind] = {payload, payload + bytes};
  }
  if (!options.speech.empty()) {
    speech[kRate] = {};  // what is heard is held against it, whatever the codecs
    for (const CodecKind* kind : options.codecs) speech[kind->rate_hz] = {};
    for (auto& [rate, samples] : speech) {  // 8 kHz is the first
      samples = readSamples(options.speech + "." + std::to_string(rate) + ".s16");
      // whole frames, as many at every rate
      samples.resize(speech[kRate].size() / kFrameSamples * size_t(rate / kFramesASecond));
    }
    if (speech[kRate].size() < size_t(kRate)) fail("the speech is shorter than a second");
  }
  for (Leg& leg : legs) {
    // A bridge decodes what the talker has encoded and encodes it again; on a wire that happens once.
    if (leg.listens) leg.codec_delay = delay[leg.kind] + (options.mode == "wire" ? 0 : delay[leg.talker->kind]);
    if (options.speech.empty() || !leg.speaks) continue;
    leg.said = std::make_unique<Said>();
    leg.said->begin(&speech[kRate], leg.index * 7919);
  }
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
    const int room_number = echo ? i : i / options.room_size;
    leg.index = i;
    leg.source = options.sources[size_t(room_number) % options.sources.size()];
    // not always the first of a room, which has the same codec and drift in all of them
    leg.talker = echo ? &leg : &legs[size_t(room_number * options.room_size + room_number % options.room_size)];
    leg.speaks = leg.talker == &leg;
    leg.listens = echo || !leg.speaks;
    if (leg.listens) leg.talker->listeners.push_back(&leg);
    leg.kind = options.codecs[size_t(i) % options.codecs.size()];
    leg.codec = makeCodec(*leg.kind);
    // at 100 ppm a frame is 2 microseconds shorter or longer
    leg.frame_ns = kFrame + int64_t((i % 2 ? options.drift_ppm : -options.drift_ppm) * double(kFrame) / 1e6);
    if (options.impairment.any()) leg.line = std::make_unique<Line>(options.impairment, options.seed + uint32_t(i));
    char room[16];
    snprintf(room, sizeof room, "%03d", room_number);
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
    leg.burst_frame = room_number % kFramesASecond;
    // RTCP must not come to the next call's RTP, nor be refused: it is let in and left there
    leg.rtcp_fd = socket(AF_INET, SOCK_DGRAM, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(uint16_t(leg.rtp_port + 1));
    inet_pton(AF_INET, leg.source.c_str(), &at.sin_addr);
    if (bind(leg.rtcp_fd, reinterpret_cast<sockaddr*>(&at), sizeof at) != 0) fail("cannot bind an RTCP port");
  }
  beginTalk();
  if (!wire) return;
  const int64_t start = (nowNs() / kFrame + 1) * kFrame;
  for (Leg& leg : legs) {
    leg.peer.sin_family = AF_INET;
    Leg& other = leg.speaks ? *leg.listeners[0] : *leg.talker;
    leg.peer.sin_port = htons(uint16_t(other.rtp_port));
    inet_pton(AF_INET, other.source.c_str(), &leg.peer.sin_addr);
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
  for (Leg& leg : legs) {
    if (!leg.listens || !leg.talker->said) continue;
    leg.follower = std::make_unique<Follower>();
    leg.follower->begin(leg.talker->said.get(), leg.codec_delay, measured_from);
    leg.follow_at = measured_from + leg.index * kFollowEvery / options.calls;  // not all at once
  }
  measured_cpu_s = -cpuSeconds();
  measuring = bursting = true;
  tell("measuring");
  runUntil(measured_from + int64_t(options.measure_s * double(kSecond)), never);
  measuring = bursting = false;
  measured_until = nowNs();
  measured_cpu_s += cpuSeconds();
  tell("measured");
  // the last bursts arrive, the last words are followed
  runUntil(nowNs() + (options.speech.empty() ? kSecond : 2 * kSecond), never);
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
  for (size_t i = 0; i < values.size(); ++i) printf("%s%.4f", i ? ", " : "", values[i]);
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

void writeRecording(const Leg& leg) {
  const std::string path = options.record + "/" + std::to_string(leg.index) + ".s16";
  FILE* file = fopen(path.c_str(), "wb");
  if (!file || fwrite(leg.heard.data(), 2, leg.heard.size(), file) != leg.heard.size() || fclose(file)) {
    fail("cannot write " + path + ": " + strerror(errno));
  }
}

void reportSpeech() {
  printf("\"speech\": [");
  const char* separator = "";
  for (const Leg& leg : legs) {
    if (!leg.follower || !leg.any_heard) continue;
    const Followed& found = leg.follower->result;
    const Leg& talker = *leg.talker;
    printf("%s{\"leg\": %d, \"codec\": \"%s\", \"talker\": %d, \"talker_codec\": \"%s\", \"spoken\": %ld, "
           "\"damaged\": %ld, \"unmatched\": %ld, ",
           separator, leg.index, leg.kind->name, talker.index, talker.kind->name, found.spoken, found.damaged,
           found.unmatched);
    separator = ", ";
    std::vector<double> at_s, each_ms, gap_at_s, gap_ms;
    for (const auto& second : found.seconds) {
      at_s.push_back(second.at_s);
      each_ms.push_back(second.delay_ms);
    }
    for (const Gap& gap : found.gaps) {
      gap_at_s.push_back(gap.at_s);
      gap_ms.push_back(gap.ms);
    }
    printNumbers("at_s", at_s);
    printNumbers("delay_ms", each_ms);
    printNumbers("delays_ms", summary({found.delays_ms.begin(), found.delays_ms.end()}, 201));
    printNumbers("gap_at_s", gap_at_s);
    printNumbers("gap_ms", gap_ms);
    printf("\"speech_from\": %lld, \"lost_frames\": [",
           static_cast<long long>(talker.said->placeInSpeech(talker.measured_frame)));
    for (size_t i = 0; i < talker.lost_frames.size(); ++i) printf("%s%u", i ? ", " : "", talker.lost_frames[i]);
    printf("]}");
    if (!options.record.empty()) writeRecording(leg);
  }
  printf("], ");
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
  std::vector<double> phases_ms;
  for (const Leg& leg : legs) {
    if (leg.sent_phase_ms >= 0) phases_ms.push_back(leg.sent_phase_ms);
  }
  printNumbers("phases_ms", phases_ms);
  std::vector<double> first_sent_s;  // Unix time, for whoever else has noted when it came
  for (const Leg& leg : legs) first_sent_s.push_back(double(leg.first_sent) / kSecond);
  printNumbers("first_sent_s", first_sent_s);
  if (!options.speech.empty()) reportSpeech();
  printf("\"bursts_sent\": %ld, \"bursts_dropped\": %ld, \"bursts_unasked\": %ld, \"rtp_sent\": %ld, "
         "\"rtp_dropped\": %ld, \"bursts\": [",
         bursts_sent, bursts_dropped, bursts_unasked, rtp_sent, rtp_dropped);
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
    printf("%s{\"packets\": %ld, \"expected\": %ld, \"late_or_twice\": %ld, \"twice\": %ld, \"other_payloads\": %ld, "
           "\"gaps_over_40_ms\": %ld, \"longest_gap_ms\": %.3f}",
           separator, got.packets, expected, got.late_or_twice, got.twice, got.other_payloads, got.gaps, got.longest_gap_ms);
    separator = ", ";
  }
  printf("], \"cpu_s\": %.3f}\n", measured_cpu_s);
}

void usage() {
  fail("usage: load [--mode room|echo|wire] [--uri sip:USER{room}@HOST[:PORT]] [--calls N] [--rate CALLS_A_SECOND] "
       "[--settle SECONDS] [--seconds SECONDS] [--source ADDRESS]... [--rtp-port FIRST] [--room-size N] "
       "[--codecs PCMU*5,G722*5,opus] [--drift-ppm PPM] [--loss PERCENT] [--loss-burst MEAN] [--jitter MS] "
       "[--reorder PERCENT] [--duplicate PERCENT] [--seed N] [--speech PREFIX] [--record FOLDER]");
}

// "PCMU*5,opus": five of the one, one of the other, and so on in turn.
void parseCodecs(const std::string& text) {
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string item = text.substr(at, end - at);
    const size_t star = item.find('*');
    const int count = star == std::string::npos ? 1 : atoi(item.c_str() + star + 1);
    for (int i = 0; i < count; ++i) options.codecs.push_back(&codecNamed(item.substr(0, star)));
    at = end + 1;
  }
}

void parse(int count, char** arguments) {
  Impairment& impairment = options.impairment;
  const std::map<std::string, double*> numbers = {
      {"--rate", &options.rate},           {"--settle", &options.settle_s},
      {"--seconds", &options.measure_s},   {"--drift-ppm", &options.drift_ppm},
      {"--loss", &impairment.loss_percent}, {"--loss-burst", &impairment.loss_burst},
      {"--jitter", &impairment.jitter_ms}, {"--reorder", &impairment.reorder_percent},
      {"--duplicate", &impairment.duplicate_percent}};
  for (int i = 1; i < count; i += 2) {
    const std::string name = arguments[i];
    if (i + 1 == count) usage();
    const char* value = arguments[i + 1];
    if (const auto number = numbers.find(name); number != numbers.end()) *number->second = atof(value);
    else if (name == "--mode") options.mode = value;
    else if (name == "--uri") options.uri = value;
    else if (name == "--calls") options.calls = atoi(value);
    else if (name == "--source") options.sources.push_back(value);
    else if (name == "--rtp-port") options.rtp_port = atoi(value);
    else if (name == "--room-size") options.room_size = atoi(value);
    else if (name == "--codecs") parseCodecs(value);
    else if (name == "--seed") options.seed = uint32_t(atoi(value));
    else if (name == "--speech") options.speech = value;
    else if (name == "--record") options.record = value;
    else usage();
  }
  if (options.codecs.empty()) options.codecs.push_back(&kCodecs[0]);
  const bool echo = options.mode == "echo", wire = options.mode == "wire";
  if (!echo && !wire && options.mode != "room") usage();
  if (options.calls < 1 || options.rate <= 0 || options.room_size < 2) usage();
  if (!echo && options.calls % options.room_size) fail("the calls do not fill their rooms");
  if (wire && options.room_size != 2) fail("a wire has two ends");
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
