// SPDX-License-Identifier: GPL-3.0-or-later
//
// Who is let in: judges each SIP request that starts something, before a call, a dialog or a port exists for it.
// Also the little that a telephone on the desk needs of a registrar. No SIP library here: gate_module.cpp turns
// messages into GateRequest and verdicts into answers.
#pragma once

#include <string>
#include <vector>

#ifndef SWIG
#include <array>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "digest.hpp"
#endif

// A peer that may call. With addresses, a request must come from them; with a user, it must prove to be that user;
// with both, both.
struct GateTrunk {
  std::string name;
  bool phone = false;                  // registers itself (kind = "phone"); needs a user
  std::vector<std::string> addresses;  // "192.0.2.0/24", "2001:db8::/32"
  std::string username, password;      // digest; no user when empty
  int maxCalls = 0;                    // at once, both directions; 0 = as many as all
  bool srtpRequired = false;           // an offer of plain RTP is told so
};

struct GatePolicy {
  bool refuseAloud = false;       // a stranger hears 403 instead of nothing
  int maxCalls = 0;               // of all trunks at once, both directions; 0 = no limit
  int maxBodyBytes = 12000;       // longest body of a message
  double requestsPerSecond = 50;  // of one source that start something, in the long run
  int burst = 200;                // and at once
  int banAfter = 10;              // wrong passwords of one source ...
  int banSeconds = 300;           // ... within this time shut it out for this time
  std::string realm = "sipbridge";
  std::vector<std::string> algorithms{"SHA-256", "MD5"};  // of the challenges, in this order; see gate.cpp
  int retryAfterSeconds = 10;     // what a 503 says
  int nonceSeconds = 300;         // how long a nonce serves
  int minExpiresSeconds = 60;     // of a registration
  int maxExpiresSeconds = 3600;
};

// Counted since configure(), except where a state is named.
struct GateStats {
  long long admitted = 0;        // requests let in that started something
  long long inDialog = 0;        // requests that belonged to a call
  long long registrations = 0;   // REGISTERs obeyed
  long long challenged = 0;      // 401
  long long wrongPasswords = 0;  // with a nonce of ours, so the address is real
  long long replays = 0;         // a nonce count used for another request
  long long forbidden = 0;       // 403
  long long draining = 0;        // 503 while draining
  long long full = 0;            // 503 by a limit of calls
  long long tooFast = 0;         // over the rate: 503 to a trunk, silence to others
  long long malformed = 0;       // shape refused, requests and responses
  long long oversize = 0;        // longer than a SIP message may be
  long long unanswered = 0;      // strangers
  long long fromBanned = 0;      // requests dropped by a ban
  long long bans = 0;
  int bannedSources = 0;         // now
  int registeredPhones = 0;      // now
  int activeCalls = 0;           // now
};

// A call that cannot go on: its connection was closed under it, or the answer to our offer was no SDP.
struct GateCut {
  std::string callId;  // the SIP Call-ID
  std::string reason;
};

// A request that was turned away, for the log.
struct GateRefusal {
  std::string method, uri, source;  // "INVITE", the Request-URI, "192.0.2.1:5060 udp"
  int code = 0;                     // 0: it got no answer at all
  std::string reason;
};

#ifndef SWIG
struct GateContact {
  std::string uri;     // as sent
  std::string target;  // where the telephone can be reached, see Gate::contactOf(); empty for no SIP URI
  long expires_s = -1;  // its own parameter; -1 without one
};

struct GateRequest {
  enum class Method { Invite, Ack, Cancel, Options, Register, Other, Unknown };

  Method method = Method::Unknown;
  std::string methodName;
  std::string address;    // the source's, numeric
  int port = 0;
  std::string transport;  // "udp", "tcp", "tls"
  bool known = false;     // belongs to a dialog or transaction of ours
  bool toTag = false;
  bool cut = false;       // did not fit into the receive buffer
  std::string callId, branch;
  long cseq = 0;
  std::string uri;        // Request-URI as sent
  std::string user, fromUser, toUser;
  std::size_t longestUri = 0;  // bytes of the longest of Request-URI, From, To, Contact, names included
  long contentLength = -1;     // what the header says; -1 without one
  std::string contentType;
  bool contentTypeTwice = false;
  std::string_view body;
  std::vector<std::string_view> sdpParts;  // of a multipart body
  std::vector<GateCredential> credentials;
  std::vector<GateContact> contacts;  // REGISTER
  bool contactStar = false;           // "Contact: *"
  long expires_s = -1;                // header of REGISTER; -1 without one
};

struct GateVerdict {
  enum class Action {
    Pass,
    PassWithoutBody,  // cannot be answered (ACK), and its body must not be parsed; the phrase says why
    Drop,
    Answer,
  };

  Action action = Action::Drop;
  int code = 0;
  std::string phrase;   // empty: the code's usual one
  bool hangUp = false;  // nothing more is wanted from this connection (TCP, TLS)
  std::vector<std::pair<std::string, std::string>> headers;
};
#endif

// Thread: any; each method takes the gate's lock for as long as it computes. judge() runs on the SIP thread, and what
// currentTrunk() and currentUser() tell is true there until the next request: during onIncomingCall of the same call.
class Gate {
 public:
  Gate();

  // Before any request. Returns "" or what is wrong with the arguments; then nothing has changed.
  std::string configure(const GatePolicy& policy, const std::vector<GateTrunk>& trunks);
  // New calls are refused from now on (or no longer).
  void setDraining(bool draining);

  // The trunk of the INVITE that was let in last, as index into configure()'s trunks, and its digest user ("" when
  // its address was enough).
  int currentTrunk() const;
  std::string currentUser() const;

  // The counts that maxCalls is judged by: for each call of either direction, once each. Trunk -1 is none.
  void callStarted(int trunk);
  void callEnded(int trunk);

  // The URI that reaches the registered telephone of this user, "" without one. Its host and port are the address the
  // REGISTER came from, not the Contact's, so a telephone behind NAT is reached; with ";transport=tcp" or "tls" pjsip
  // finds the connection that is open to that address and sends on it.
  std::string contactOf(const std::string& user) const;
  int trunkOfUser(const std::string& user) const;  // -1 for nobody's
  std::vector<std::string> registered() const;     // users, sorted

  GateStats stats() const;

  // Calls for the application to end, since the last time asked.
  std::vector<GateCut> takeCutCalls();

  // What was turned away since the last time asked; of many only the first.
  std::vector<GateRefusal> takeRefusals();

#ifndef SWIG
  void noteRefusal(const GateRequest& request, const GateVerdict& verdict);
  explicit Gate(std::function<double()> clock_s);  // seconds, never backwards

  GateVerdict judge(const GateRequest& request);
  void countMalformed();
  void countOversize();
  void cutCall(const std::string& callId, const std::string& reason);
  std::size_t maxBodyBytes() const;

 private:
  struct Network {
    std::array<unsigned char, 16> bytes{};
    int bits = 0;  // prefix length; IPv4 lies at ::ffff:0:0/96
  };

  // One source address (IPv6: its /64, which one peer has whole).
  struct Source {
    double tokens = 0, filledAt_s = 0;
    int failures = 0;
    double failuresSince_s = 0, bannedUntil_s = 0;
    std::list<std::string>::iterator age;
  };

  struct Registration {
    GateContact contact;
    std::string address, transport, callId;
    int port = 0, trunk = -1;
    long cseq = 0;
    double until_s = 0;
  };

  // What a source may be, before it has proven anything.
  struct Standing {
    int trusted = -1;          // the trunk that it is by its address alone
    std::vector<int> provable;  // trunks that it may prove to be
    bool addressKnown = false;  // some trunk has this address
  };

  // Who the source turned out to be.
  struct Proof {
    int trunk = -1;
    std::string user, nonce;
    std::uint32_t nc = 0;
  };

  Standing standingOf(const GateRequest& request, double now_s) const;
  int prefixOf(int trunk, const Network& address) const;
  Source& sourceOf(const std::string& address, double now_s);
  bool takeToken(Source& source, double now_s) const;
  bool authenticate(const GateRequest& request, const Standing& standing, Source& source, double now_s, Proof& proof,
                    GateVerdict& verdict);
  GateVerdict challenge(const GateRequest& request, bool stale, double now_s);
  GateVerdict refuse(int code, std::string phrase = "");
  GateVerdict unavailable(const char* phrase);
  GateVerdict judgeKnown(const GateRequest& request);
  GateVerdict judgeInvite(const GateRequest& request, const Proof& proof);
  GateVerdict registerPhone(const GateRequest& request, const Proof& proof, double now_s);
  GateVerdict silence();
  GateVerdict refuseStranger();
  bool shapeFault(const GateRequest& request, GateVerdict& verdict);
  const Registration* registrationOf(const std::string& user, double now_s) const;

  static bool parseAddress(const std::string& text, Network& address);
  static bool parseNetwork(const std::string& text, Network& network);

  std::function<double()> clock_s_;
  mutable std::mutex mutex_;
  GatePolicy policy_;
  std::vector<GateTrunk> trunks_;
  std::vector<std::vector<Network>> networks_;  // of each trunk
  bool draining_ = false;
  int current_trunk_ = -1;
  std::string current_user_;
  std::vector<int> trunk_calls_;
  int calls_ = 0;
  NonceMint mint_;
  NonceUses uses_;
  std::string decoy_;  // the password of users that do not exist
  std::unordered_map<std::string, Source> sources_;
  std::list<std::string> source_ages_;  // used last at the front
  std::map<std::string, Registration> registrations_;
  std::vector<GateCut> cuts_;
  std::vector<GateRefusal> refusals_;
  GateStats stats_;
#endif
};
