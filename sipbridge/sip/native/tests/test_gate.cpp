// SPDX-License-Identifier: GPL-3.0-or-later
// sources: gate.cpp digest.cpp body_shape.cpp
// libraries: -lcrypto
#include "../gate.hpp"

#include <thread>

#include "check.hpp"

namespace {

using Action = GateVerdict::Action;
using Method = GateRequest::Method;

const std::string kSdp =
    "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n";

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct World {
  double now_s = 1000;
  Gate gate{[this] { return now_s; }};
  GatePolicy policy;
  std::vector<GateTrunk> trunks;
  int calls = 0;

  World() { policy.burst = 100000; }

  int trunk(const char* name, std::vector<std::string> addresses, const char* user = "", const char* password = "",
            bool phone = false) {
    GateTrunk trunk;
    trunk.name = name;
    trunk.addresses = std::move(addresses);
    trunk.username = user;
    trunk.password = password;
    trunk.phone = phone;
    trunks.push_back(trunk);
    return static_cast<int>(trunks.size()) - 1;
  }

  void start() { CHECK(gate.configure(policy, trunks).empty()); }

  GateRequest request(Method method, const std::string& address, int port = 5060) {
    GateRequest r;
    r.method = method;
    switch (method) {
      case Method::Invite: r.methodName = "INVITE"; break;
      case Method::Ack: r.methodName = "ACK"; break;
      case Method::Cancel: r.methodName = "CANCEL"; break;
      case Method::Options: r.methodName = "OPTIONS"; break;
      case Method::Register: r.methodName = "REGISTER"; break;
      case Method::Other: r.methodName = "SUBSCRIBE"; break;
      case Method::Unknown: r.methodName = "DANCE"; break;
    }
    r.address = address;
    r.port = port;
    r.transport = "udp";
    r.callId = "call" + std::to_string(++calls);
    r.branch = "z9hG4bK" + r.callId;
    r.cseq = 1;
    r.uri = "sip:100@192.0.2.99";
    r.user = r.toUser = "100";
    r.fromUser = "200";
    if (method == Method::Invite) {
      r.contentType = "application/sdp";
      r.body = kSdp;
      r.contentLength = static_cast<long>(kSdp.size());
    }
    return r;
  }

  // The same request as its sender repeats it after a challenge.
  GateRequest answer(GateRequest r, const GateVerdict& challenge, const std::string& user, const std::string& password,
                     const char* algorithm = "SHA-256", int nc = 1) {
    for (const auto& [name, value] : challenge.headers) {
      if (name != "WWW-Authenticate" || !contains(value, std::string("algorithm=") + algorithm)) continue;
      const std::size_t at = value.find("nonce=\"") + 7;
      sign(r, value.substr(at, value.find('"', at) - at), user, password, algorithm, nc);
    }
    ++r.cseq;
    r.branch += "b";
    return r;
  }

  void sign(GateRequest& r, const std::string& nonce, const std::string& user, const std::string& password,
            const char* algorithm, int nc) {
    GateCredential c;
    c.username = user;
    c.realm = policy.realm;
    c.nonce = nonce;
    c.uri = r.uri;
    c.algorithm = algorithm;
    if (nc > 0) {
      char text[9];
      std::snprintf(text, sizeof text, "%08x", static_cast<unsigned>(nc));
      c.nc = text;
      c.qop = "auth";
      c.cnonce = "cnonce";
    }
    DigestAlgorithm kind = DigestAlgorithm::Md5;
    digestAlgorithm(algorithm, kind);
    c.response = digestHash(kind, digestHash(kind, user + ":" + c.realm + ":" + password) + ":" + nonce + ":" +
                                      (nc > 0 ? c.nc + ":cnonce:auth:" : "") +
                                      digestHash(kind, r.methodName + ":" + c.uri));
    r.credentials = {c};
  }

  // Challenge and answer in one: what the second request is answered with.
  GateVerdict prove(const GateRequest& r, const std::string& user, const std::string& password,
                    const char* algorithm = "SHA-256") {
    return gate.judge(answer(r, gate.judge(r), user, password, algorithm));
  }

  GateRequest registration(const std::string& user, const std::string& address, int port, long expires_s = 300) {
    GateRequest r = request(Method::Register, address, port);
    r.toUser = r.fromUser = user;
    r.uri = "sip:192.0.2.99";
    r.user = "";
    r.expires_s = expires_s;
    const std::string uri = "sip:" + user + "@10.0.0.5:5060";
    r.contacts = {{uri, "sip:" + user + "@" + address + ":" + std::to_string(port), -1}};
    return r;
  }
};

std::string header(const GateVerdict& verdict, const std::string& name) {
  for (const auto& [key, value] : verdict.headers)
    if (key == name) return value;
  return "";
}

bool stale(const GateVerdict& verdict) { return contains(header(verdict, "WWW-Authenticate"), "stale=true"); }

bool passes(const GateVerdict& verdict) { return verdict.action == Action::Pass; }

bool silent(const GateVerdict& verdict) { return verdict.action == Action::Drop; }

int code(const GateVerdict& verdict) { return verdict.action == Action::Answer ? verdict.code : 0; }

void strangersHearNothing() {
  World w;
  w.trunk("pbx", {"192.0.2.0/24"});
  w.start();
  for (Method method : {Method::Invite, Method::Options, Method::Register, Method::Other, Method::Unknown, Method::Ack,
                        Method::Cancel})
    CHECK(silent(w.gate.judge(w.request(method, "198.51.100.1"))));
  CHECK(w.gate.judge(w.request(Method::Invite, "198.51.100.1")).hangUp);
  CHECK(!w.gate.judge(w.request(Method::Ack, "198.51.100.1")).hangUp);
  GateRequest bye = w.request(Method::Other, "198.51.100.1");
  bye.toTag = true;
  CHECK(silent(w.gate.judge(bye)));
  CHECK(w.gate.stats().unanswered == 8);
  CHECK(w.gate.currentTrunk() == -1);
}

void strangersHear403WhenAskedFor() {
  World w;
  w.trunk("pbx", {"192.0.2.0/24"});
  w.policy.refuseAloud = true;
  w.start();
  CHECK(code(w.gate.judge(w.request(Method::Invite, "198.51.100.1"))) == 403);
  CHECK(code(w.gate.judge(w.request(Method::Options, "198.51.100.1"))) == 403);
  CHECK(code(w.gate.judge(w.request(Method::Register, "198.51.100.1"))) == 403);
  CHECK(silent(w.gate.judge(w.request(Method::Ack, "198.51.100.1"))));
}

void theLongestPrefixIsTheTrunk() {
  World w;
  const int wide = w.trunk("wide", {"10.0.0.0/8", "2001:db8::/32"});
  const int narrow = w.trunk("narrow", {"10.1.2.0/23"});
  const int host = w.trunk("host", {"10.1.2.3", "2001:db8::5"});
  const int odd = w.trunk("odd", {"192.168.1.128/25"});
  w.start();
  const auto trunkAt = [&](const char* address) {
    CHECK(passes(w.gate.judge(w.request(Method::Invite, address))));
    return w.gate.currentTrunk();
  };
  CHECK(trunkAt("10.9.9.9") == wide);
  CHECK(trunkAt("10.1.3.255") == narrow);
  CHECK(trunkAt("10.1.2.3") == host);
  CHECK(trunkAt("::ffff:10.1.2.3") == host);
  CHECK(trunkAt("2001:db8::5") == host);
  CHECK(trunkAt("2001:db8::6") == wide);
  CHECK(trunkAt("192.168.1.128") == odd);
  CHECK(silent(w.gate.judge(w.request(Method::Invite, "192.168.1.127"))));
  CHECK(w.gate.currentUser().empty());
}

void badArgumentsAreNamed() {
  for (const char* text : {"", "10.0.0.0/33", "10.0.0/8", "::1/129", "10.0.0.0/", "10.0.0.0/-1", "name"}) {
    World w;
    w.trunk("a", {text});
    CHECK(!w.gate.configure(w.policy, w.trunks).empty());
  }
  World w;
  w.trunk("phone", {}, "", "", true);
  CHECK(!w.gate.configure(w.policy, w.trunks).empty());
  for (const std::vector<std::string>& algorithms : {std::vector<std::string>{}, {"SHA-1"}, {""}}) {
    World other;
    other.policy.algorithms = algorithms;
    CHECK(!other.gate.configure(other.policy, other.trunks).empty());
  }
}

void theOrderOfChallengesIsThePolicys() {
  World w;
  w.trunk("carrier", {}, "alice", "secret");
  w.policy.algorithms = {"MD5"};
  w.start();
  const GateVerdict verdict = w.gate.judge(w.request(Method::Invite, "198.51.100.1"));
  CHECK(verdict.headers.size() == 1);
  CHECK(contains(header(verdict, "WWW-Authenticate"), "algorithm=MD5"));
}

void aUserProvesItself() {
  for (const char* algorithm : {"SHA-256", "MD5"}) {
    World w;
    const int trunk = w.trunk("carrier", {}, "alice", "secret");
    w.start();
    const GateVerdict first = w.gate.judge(w.request(Method::Invite, "198.51.100.1"));
    CHECK(code(first) == 401);
    CHECK(first.headers.size() == 2);
    CHECK(contains(first.headers[0].second, "SHA-256"));
    CHECK(contains(first.headers[1].second, "MD5"));
    CHECK(!stale(first));
    CHECK(passes(w.prove(w.request(Method::Invite, "198.51.100.1"), "alice", "secret", algorithm)));
    CHECK(w.gate.currentTrunk() == trunk);
    CHECK(w.gate.currentUser() == "alice");
    CHECK(passes(w.prove(w.request(Method::Options, "198.51.100.1"), "alice", "secret", algorithm)));
    CHECK(w.gate.currentTrunk() == -1);
    CHECK(silent(w.gate.judge(w.request(Method::Other, "198.51.100.1"))));
  }
}

void wrongUserAndWrongPasswordLookAlike() {
  World w;
  w.trunk("carrier", {}, "alice", "secret");
  w.start();
  const auto shape = [](GateVerdict v) {
    std::string text = std::to_string(v.code) + v.phrase;
    for (const auto& [name, value] : v.headers) {
      const std::size_t at = value.find("nonce=\"") + 7;
      text += name + value.substr(0, at) + value.substr(value.find('"', at));
    }
    return text;
  };
  const GateVerdict user = w.prove(w.request(Method::Invite, "198.51.100.1"), "bob", "secret");
  const GateVerdict password = w.prove(w.request(Method::Invite, "198.51.100.1"), "alice", "guess");
  CHECK(code(user) == 401);
  CHECK(shape(user) == shape(password));
  CHECK(shape(user) == shape(w.gate.judge(w.request(Method::Invite, "198.51.100.1"))));
  CHECK(w.gate.stats().wrongPasswords == 2);
}

void addressesAndUserAreBothAsked() {
  World w;
  const int trunk = w.trunk("both", {"192.0.2.0/24"}, "alice", "secret");
  w.start();
  CHECK(silent(w.gate.judge(w.request(Method::Invite, "198.51.100.1"))));
  CHECK(code(w.gate.judge(w.request(Method::Invite, "192.0.2.1"))) == 401);
  CHECK(passes(w.prove(w.request(Method::Invite, "192.0.2.1"), "alice", "secret")));
  CHECK(w.gate.currentTrunk() == trunk);
  CHECK(code(w.gate.judge(w.request(Method::Other, "192.0.2.1"))) == 405);
}

void aProofServesOnce() {
  World w;
  w.trunk("carrier", {}, "alice", "secret");
  w.start();
  const GateRequest plain = w.request(Method::Invite, "198.51.100.1");
  const GateRequest signedOnce = w.answer(plain, w.gate.judge(plain), "alice", "secret");
  CHECK(passes(w.gate.judge(signedOnce)));
  GateVerdict verdict = w.gate.judge(signedOnce);  // a copy, when the transaction is gone
  CHECK(code(verdict) == 401);
  CHECK(stale(verdict));
  GateRequest other = signedOnce;
  other.callId = "another";
  CHECK(code(w.gate.judge(other)) == 401);
  CHECK(w.gate.stats().replays == 2);
  // The same nonce with the next count is a new proof.
  GateRequest next = w.request(Method::Invite, "198.51.100.1");
  w.sign(next, signedOnce.credentials[0].nonce, "alice", "secret", "SHA-256", 2);
  CHECK(passes(w.gate.judge(next)));
  // Without qop a nonce serves one request.
  const GateRequest old = w.answer(plain, w.gate.judge(plain), "alice", "secret", "MD5", 0);
  CHECK(passes(w.gate.judge(old)));
  other = old;
  other.callId = "yet another";
  CHECK(code(w.gate.judge(other)) == 401);
}

void aRefusedInviteMayBeRepeatedByItsTransport() {
  World w;
  w.trunk("carrier", {}, "alice", "secret");
  w.start();
  w.gate.setDraining(true);
  const GateRequest plain = w.request(Method::Invite, "198.51.100.1");
  const GateRequest invite = w.answer(plain, w.gate.judge(plain), "alice", "secret");
  CHECK(code(w.gate.judge(invite)) == 503);
  CHECK(code(w.gate.judge(invite)) == 503);
  GateRequest elsewhere = invite;
  elsewhere.port = 6000;
  CHECK(code(w.gate.judge(elsewhere)) == 401);
}

void anOldOrForeignNonceIsStale() {
  World w;
  w.trunk("carrier", {}, "alice", "secret");
  w.start();
  const GateRequest plain = w.request(Method::Invite, "198.51.100.1");
  const GateVerdict first = w.gate.judge(plain);
  w.now_s += w.policy.nonceSeconds + 1;
  GateVerdict verdict = w.gate.judge(w.answer(plain, first, "alice", "secret"));
  CHECK(code(verdict) == 401);
  CHECK(stale(verdict));
  CHECK(passes(w.gate.judge(w.answer(plain, verdict, "alice", "secret"))));
  // A guess with a nonce of one's own tells nothing, right or wrong.
  GateRequest own = w.request(Method::Invite, "198.51.100.1");
  for (const char* password : {"secret", "guess"}) {
    w.sign(own, "0123456789", "alice", password, "SHA-256", 1);
    CHECK(stale(w.gate.judge(own)));
  }
  // Nor may the nonce of one address be used at another.
  GateRequest moved = w.answer(plain, w.gate.judge(plain), "alice", "secret");
  moved.address = "198.51.100.2";
  CHECK(stale(w.gate.judge(moved)));
  CHECK(w.gate.stats().wrongPasswords == 0);
}

void aBadAuthorizationIsABadRequest() {
  World w;
  w.trunk("carrier", {}, "alice", "secret");
  w.start();
  const GateRequest plain = w.request(Method::Invite, "198.51.100.1");
  GateRequest r = w.answer(plain, w.gate.judge(plain), "alice", "secret");
  r.credentials[0].nc = "1";
  CHECK(code(w.gate.judge(r)) == 400);
  r = w.answer(plain, w.gate.judge(plain), "alice", "secret");
  r.credentials[0].response = "short";
  CHECK(code(w.gate.judge(r)) == 400);
  r = w.answer(plain, w.gate.judge(plain), "alice", "secret");
  r.uri = "sip:900123@192.0.2.99";  // a proof for one number dials no other
  CHECK(code(w.gate.judge(r)) == 400);
  r = w.answer(plain, w.gate.judge(plain), "alice", "secret");
  r.credentials[0].realm = "elsewhere";  // of another server on the way
  CHECK(code(w.gate.judge(r)) == 401);
}

void guessingIsShutOut() {
  World w;
  w.trunk("carrier", {}, "alice", "secret");
  w.policy.banAfter = 3;
  w.start();
  const auto guess = [&] { return w.prove(w.request(Method::Register, "198.51.100.1"), "alice", "guess"); };
  CHECK(code(guess()) == 401);
  CHECK(code(guess()) == 401);
  CHECK(passes(w.prove(w.request(Method::Invite, "198.51.100.1"), "alice", "secret")));  // begins anew
  for (int i = 0; i < 3; ++i) CHECK(code(guess()) == 401);
  CHECK(silent(w.gate.judge(w.request(Method::Invite, "198.51.100.1"))));
  CHECK(code(w.gate.judge(w.request(Method::Invite, "198.51.100.2"))) == 401);
  CHECK(w.gate.stats().bans == 1);
  CHECK(w.gate.stats().bannedSources == 1);
  w.now_s += w.policy.banSeconds + 1;
  CHECK(code(w.gate.judge(w.request(Method::Invite, "198.51.100.1"))) == 401);
  CHECK(w.gate.stats().bannedSources == 0);
  // Slow guesses do not add up; IPv6 guesses from one network do.
  for (int i = 0; i < 5; ++i) {
    w.prove(w.request(Method::Invite, "198.51.100.3"), "alice", "guess");
    w.now_s += w.policy.banSeconds;
  }
  CHECK(code(w.gate.judge(w.request(Method::Invite, "198.51.100.3"))) == 401);
  for (const char* address : {"2001:db8::1", "2001:db8::2", "2001:db8::3"})
    w.prove(w.request(Method::Invite, address), "alice", "guess");
  CHECK(silent(w.gate.judge(w.request(Method::Invite, "2001:db8::4"))));
}

void forgedGuessesShutNobodyOut() {
  World w;
  w.trunk("both", {"192.0.2.0/24"}, "alice", "secret");
  w.policy.banAfter = 3;
  w.start();
  for (int i = 0; i < 20; ++i) {
    GateRequest forged = w.request(Method::Invite, "192.0.2.1");  // its sender never saw a nonce of ours
    w.sign(forged, std::string(64, 'a'), "alice", "guess", "MD5", 1);
    CHECK(code(w.gate.judge(forged)) == 401);
  }
  CHECK(passes(w.prove(w.request(Method::Invite, "192.0.2.1"), "alice", "secret")));
}

void tooManyRequestsAreRefused() {
  World w;
  w.trunk("pbx", {"192.0.2.0/24"});
  w.policy.burst = 5;
  w.policy.requestsPerSecond = 2;
  w.start();
  for (int i = 0; i < 5; ++i) CHECK(passes(w.gate.judge(w.request(Method::Invite, "192.0.2.1"))));
  const GateVerdict verdict = w.gate.judge(w.request(Method::Invite, "192.0.2.1"));
  CHECK(code(verdict) == 503);
  CHECK(header(verdict, "Retry-After") == "10");
  CHECK(passes(w.gate.judge(w.request(Method::Invite, "192.0.2.2"))));
  GateRequest bye = w.request(Method::Other, "192.0.2.1");
  bye.known = bye.toTag = true;
  CHECK(passes(w.gate.judge(bye)));  // calls in progress are not disturbed
  w.now_s += 1;
  CHECK(passes(w.gate.judge(w.request(Method::Invite, "192.0.2.1"))));
  CHECK(passes(w.gate.judge(w.request(Method::Invite, "192.0.2.1"))));
  CHECK(code(w.gate.judge(w.request(Method::Invite, "192.0.2.1"))) == 503);
  for (int i = 0; i < 8; ++i) CHECK(silent(w.gate.judge(w.request(Method::Invite, "198.51.100.1"))));
  CHECK(w.gate.stats().tooFast == 5);
  CHECK(w.gate.stats().unanswered == 5);
}

void manySourcesTakeBoundedMemory() {
  World w;
  w.trunk("carrier", {}, "alice", "secret");
  w.policy.banAfter = 1;
  w.start();
  w.prove(w.request(Method::Invite, "198.51.100.1"), "alice", "guess");
  GateRequest r = w.request(Method::Options, "");
  for (int i = 0; i < 70000; ++i) {
    r.address = "10." + std::to_string(i >> 16) + "." + std::to_string(i >> 8 & 255) + "." + std::to_string(i & 255);
    w.gate.judge(r);
  }
  CHECK(silent(w.gate.judge(w.request(Method::Invite, "198.51.100.1"))));  // a ban outlives them
  CHECK(w.gate.stats().bannedSources == 1);
}

void limitsOfCallsAre503() {
  World w;
  const int small = w.trunk("small", {"192.0.2.1"});
  const int large = w.trunk("large", {"192.0.2.2"});
  w.trunks[static_cast<std::size_t>(small)].maxCalls = 1;
  w.policy.maxCalls = 3;
  w.start();
  CHECK(passes(w.gate.judge(w.request(Method::Invite, "192.0.2.1"))));
  w.gate.callStarted(small);
  GateVerdict verdict = w.gate.judge(w.request(Method::Invite, "192.0.2.1"));
  CHECK(code(verdict) == 503);
  CHECK(header(verdict, "Retry-After") == "10");
  w.gate.callStarted(large);
  CHECK(passes(w.gate.judge(w.request(Method::Invite, "192.0.2.2"))));
  w.gate.callStarted(-1);
  CHECK(code(w.gate.judge(w.request(Method::Invite, "192.0.2.2"))) == 503);
  CHECK(passes(w.gate.judge(w.request(Method::Options, "192.0.2.2"))));
  w.gate.callEnded(small);
  CHECK(passes(w.gate.judge(w.request(Method::Invite, "192.0.2.1"))));
  CHECK(w.gate.stats().activeCalls == 2);
  CHECK(w.gate.stats().full == 2);
}

void drainingRefusesNewCallsOnly() {
  World w;
  w.trunk("pbx", {"192.0.2.0/24"});
  w.start();
  w.gate.setDraining(true);
  CHECK(code(w.gate.judge(w.request(Method::Invite, "192.0.2.1"))) == 503);
  CHECK(header(w.gate.judge(w.request(Method::Options, "192.0.2.1")), "Retry-After") == "10");
  GateRequest reinvite = w.request(Method::Invite, "192.0.2.1");
  reinvite.known = reinvite.toTag = true;
  CHECK(passes(w.gate.judge(reinvite)));
  CHECK(silent(w.gate.judge(w.request(Method::Invite, "198.51.100.1"))));
  w.gate.setDraining(false);
  CHECK(passes(w.gate.judge(w.request(Method::Invite, "192.0.2.1"))));
}

void bodiesAreLookedAtInsideCallsToo() {
  World w;
  w.trunk("pbx", {"192.0.2.0/24"});
  w.start();
  const std::string bad = kSdp + "a=ptime:65535\r\n";
  for (bool known : {false, true}) {
    GateRequest r = w.request(Method::Invite, "192.0.2.1");
    r.known = r.toTag = known;
    r.body = bad;
    r.contentLength = static_cast<long>(bad.size());
    CHECK(code(w.gate.judge(r)) == 488);
    r.body = kSdp;
    CHECK(code(w.gate.judge(r)) == 400);  // Content-Length says more
    r.contentLength = -1;
    CHECK(passes(w.gate.judge(r)));
    const std::string large = kSdp + "a=" + std::string(20000, 'x');
    r.body = large;
    CHECK(code(w.gate.judge(r)) == 413);
  }
  const std::string frame = "--b\r\nc: application/sdp\r\n\r\n" + bad + "--b--\r\n";
  GateRequest parts = w.request(Method::Invite, "192.0.2.1");
  parts.contentType = "multipart/mixed;boundary=b";
  parts.body = frame;
  parts.contentLength = static_cast<long>(frame.size());
  CHECK(passes(w.gate.judge(parts)));
  parts.sdpParts = {kSdp, bad};
  CHECK(code(w.gate.judge(parts)) == 488);
  GateRequest ack = w.request(Method::Ack, "192.0.2.1");
  ack.known = ack.toTag = true;
  ack.contentType = "application/sdp";
  ack.body = bad;
  CHECK(w.gate.judge(ack).action == Action::PassWithoutBody);
  GateRequest cut = w.request(Method::Invite, "192.0.2.1");
  cut.cut = true;
  CHECK(silent(w.gate.judge(cut)));
  CHECK(w.gate.stats().oversize == 1);
}

void plainRtpIsRefusedWhereSrtpIsRequired() {
  const std::string secure =
      "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 4000 RTP/SAVP 0\r\n";
  World w;
  w.trunks[static_cast<std::size_t>(w.trunk("pbx", {"192.0.2.0/24"}))].srtpRequired = true;
  w.trunk("other", {"192.0.3.0/24"});
  w.start();
  const auto codeOf = [&](const std::string& body, std::vector<std::string_view> parts) {
    GateRequest r = w.request(Method::Invite, "192.0.2.1");
    r.body = body;
    r.sdpParts = std::move(parts);
    r.contentLength = static_cast<long>(body.size());
    const GateVerdict verdict = w.gate.judge(r);
    return passes(verdict) ? 0 : verdict.code;
  };
  CHECK(codeOf(kSdp, {}) == 488);
  CHECK(codeOf(kSdp + "a=tool:RTP/SAVP\r\n", {}) == 488);
  CHECK(codeOf(secure, {}) == 0);
  CHECK(codeOf("", {}) == 0);
  GateRequest parts = w.request(Method::Invite, "192.0.2.1");
  parts.contentType = "multipart/mixed;boundary=b";
  parts.body = "--b\r\nc: text/x\r\n\r\nx\r\n--b--\r\n";
  parts.contentLength = static_cast<long>(parts.body.size());
  parts.sdpParts = {kSdp};
  CHECK(code(w.gate.judge(parts)) == 488);
  parts.sdpParts = {kSdp, secure};
  CHECK(passes(w.gate.judge(parts)));
  CHECK(passes(w.gate.judge(w.request(Method::Invite, "192.0.3.1"))));
}

void absurdHeadersAreRefused() {
  World w;
  w.trunk("pbx", {"192.0.2.0/24"});
  w.start();
  const auto codeAfter = [&](void (*change)(GateRequest&)) {
    GateRequest r = w.request(Method::Invite, "192.0.2.1");
    change(r);
    return code(w.gate.judge(r));
  };
  CHECK(codeAfter([](GateRequest& r) { r.callId = std::string(300, 'a'); }) == 400);
  CHECK(codeAfter([](GateRequest& r) { r.branch = std::string(300, 'a'); }) == 400);
  CHECK(codeAfter([](GateRequest& r) { r.uri = std::string(300, 'a'); }) == 414);
  CHECK(codeAfter([](GateRequest& r) { r.longestUri = 300; }) == 400);
  CHECK(codeAfter([](GateRequest& r) { r.contentTypeTwice = true; }) == 400);
  CHECK(codeAfter([](GateRequest& r) { r.fromUser = std::string(200, 'a'); }) == 400);
  CHECK(codeAfter([](GateRequest& r) { r.fromUser = "a\r\nVia: b"; }) == 400);
  CHECK(codeAfter([](GateRequest& r) { r.user = std::string("a\0b", 3); }) == 400);
}

void whatRefersToNothingIs481() {
  World w;
  w.trunk("pbx", {"192.0.2.0/24"});
  w.start();
  CHECK(code(w.gate.judge(w.request(Method::Cancel, "192.0.2.1"))) == 481);
  GateRequest bye = w.request(Method::Other, "192.0.2.1");
  bye.toTag = true;
  CHECK(code(w.gate.judge(bye)) == 481);
  GateRequest reinvite = w.request(Method::Invite, "192.0.2.1");
  reinvite.toTag = true;
  CHECK(code(w.gate.judge(reinvite)) == 481);
  CHECK(silent(w.gate.judge(w.request(Method::Ack, "192.0.2.1"))));
}

void otherMethodsAreNotAllowed() {
  World w;
  w.trunk("pbx", {"192.0.2.0/24"});
  w.start();
  const GateVerdict verdict = w.gate.judge(w.request(Method::Other, "192.0.2.1"));
  CHECK(code(verdict) == 405);
  CHECK(!header(verdict, "Allow").empty());
  CHECK(code(w.gate.judge(w.request(Method::Unknown, "192.0.2.1"))) == 501);
  CHECK(code(w.gate.judge(w.request(Method::Register, "192.0.2.1"))) == 403);
}

void aPhoneRegistersAndCanBeCalled() {
  World w;
  w.trunk("loopback", {"127.0.0.0/8"});
  const int desk = w.trunk("desk", {}, "alice", "secret", true);
  w.start();
  for (const char* address : {"198.51.100.1", "127.0.0.1"}) {
    CHECK(code(w.gate.judge(w.registration("alice", address, 4444))) == 401);
    const GateVerdict verdict = w.prove(w.registration("alice", address, 4444, 300), "alice", "secret");
    CHECK(code(verdict) == 200);
    CHECK(header(verdict, "Contact") == "<sip:alice@10.0.0.5:5060>;expires=300");
    CHECK(w.gate.contactOf("alice") == "sip:alice@" + std::string(address) + ":4444");
  }
  CHECK(w.gate.registered() == std::vector<std::string>{"alice"});
  CHECK(w.gate.trunkOfUser("alice") == desk);
  CHECK(w.gate.trunkOfUser("bob") == -1);
  CHECK(w.gate.trunkOfUser("") == -1);
  CHECK(w.gate.contactOf("bob").empty());
  // Its call comes from where it registered: the telephone's trunk, though the address is in another.
  GateRequest call = w.request(Method::Invite, "127.0.0.1", 4444);
  call.fromUser = "alice";
  CHECK(passes(w.prove(call, "alice", "secret")));
  CHECK(w.gate.currentTrunk() == desk);
  call = w.request(Method::Invite, "127.0.0.1", 4444);
  call.fromUser = "ceo";
  CHECK(code(w.prove(call, "alice", "secret")) == 403);
  CHECK(passes(w.gate.judge(w.request(Method::Invite, "127.0.0.1", 5060))));  // another program there
  CHECK(w.gate.currentTrunk() == 0);
  w.now_s += 301;
  CHECK(w.gate.contactOf("alice").empty());
  CHECK(w.gate.registered().empty());
}

void registrationsHaveBounds() {
  World w;
  w.trunk("desk", {}, "alice", "secret", true);
  w.trunk("carrier", {}, "carrier", "secret");
  w.start();
  const char* address = "198.51.100.1";
  const auto judged = [&](const GateRequest& r) { return w.prove(r, "alice", "secret"); };
  GateVerdict verdict = judged(w.registration("alice", address, 4444, 10));
  CHECK(code(verdict) == 423);
  CHECK(header(verdict, "Min-Expires") == "60");
  CHECK(w.gate.registered().empty());
  for (long expires_s : {999999L, -1L})
    CHECK(contains(header(judged(w.registration("alice", address, 4444, expires_s)), "Contact"), "expires=3600"));
  CHECK(code(judged(w.registration("bob", address, 4444))) == 403);  // another's address of record
  CHECK(code(w.prove(w.registration("carrier", address, 4444), "carrier", "secret")) == 401);  // no telephone

  GateRequest query = w.registration("alice", address, 4444);
  query.contacts.clear();
  CHECK(contains(header(judged(query), "Contact"), "10.0.0.5"));

  GateRequest two = w.registration("alice", address, 4444);
  two.contacts.push_back({"sip:alice@10.0.0.6", "sip:alice@198.51.100.1:5555", -1});
  verdict = judged(two);
  CHECK(code(verdict) == 200);
  CHECK(!header(verdict, "Warning").empty());
  CHECK(w.gate.contactOf("alice") == "sip:alice@198.51.100.1:5555");

  GateRequest elsewhere = w.registration("alice", address, 4444);
  elsewhere.contacts[0].target.clear();  // mailto:
  CHECK(code(judged(elsewhere)) == 400);

  GateRequest gone = w.registration("alice", address, 4444, 0);  // of a contact that is kept no more
  CHECK(code(judged(gone)) == 200);
  CHECK(!w.gate.contactOf("alice").empty());
  gone.contacts[0].uri = "sip:alice@10.0.0.6";
  CHECK(header(judged(gone), "Contact").empty());
  CHECK(w.gate.contactOf("alice").empty());

  CHECK(code(judged(w.registration("alice", address, 4444))) == 200);
  GateRequest star = w.registration("alice", address, 4444, 0);
  star.contacts.clear();
  star.contactStar = true;
  GateRequest wrong = star;
  wrong.expires_s = 300;
  CHECK(code(judged(wrong)) == 400);
  CHECK(!w.gate.contactOf("alice").empty());
  CHECK(code(judged(star)) == 200);
  CHECK(w.gate.contactOf("alice").empty());

  GateRequest late = w.registration("alice", address, 4444);
  late.cseq = 10;
  CHECK(code(judged(late)) == 200);
  late.cseq = 3;
  CHECK(code(judged(late)) == 500);
}

void phonesOfOneNetworkAreToldApart() {
  World w;
  const int alice = w.trunk("a", {"192.0.2.0/24"}, "alice", "one", true);
  const int bob = w.trunk("b", {"192.0.2.0/24"}, "bob", "two", true);
  w.start();
  CHECK(silent(w.gate.judge(w.registration("alice", "198.51.100.1", 1))));
  CHECK(code(w.prove(w.registration("bob", "192.0.2.7", 1), "bob", "two")) == 200);
  CHECK(code(w.prove(w.registration("alice", "192.0.2.7", 2), "alice", "one")) == 200);
  GateRequest call = w.request(Method::Invite, "192.0.2.7", 2);
  call.fromUser = "alice";
  CHECK(passes(w.prove(call, "alice", "one")));
  CHECK(w.gate.currentTrunk() == alice);
  call = w.request(Method::Invite, "192.0.2.7", 9);
  call.fromUser = "bob";
  CHECK(passes(w.prove(call, "bob", "two")));
  CHECK(w.gate.currentTrunk() == bob);
}

void aRepeatedRegisterIsAnsweredAgain() {
  World w;
  w.trunk("desk", {}, "alice", "secret", true);
  w.start();
  const GateRequest plain = w.registration("alice", "198.51.100.1", 4444);
  const GateRequest proven = w.answer(plain, w.gate.judge(plain), "alice", "secret");
  CHECK(code(w.gate.judge(proven)) == 200);
  CHECK(code(w.gate.judge(proven)) == 200);
  GateRequest stolen = proven;  // a copy from elsewhere does not take the telephone over
  stolen.port = 6666;
  CHECK(code(w.gate.judge(stolen)) == 401);
  CHECK(w.gate.contactOf("alice") == "sip:alice@198.51.100.1:4444");
}

void cutCallsAreTold() {
  Gate gate;
  gate.cutCall("a@b", "too long");
  const std::vector<GateCut> cuts = gate.takeCutCalls();
  CHECK(cuts.size() == 1 && cuts[0].callId == "a@b" && cuts[0].reason == "too long");
  CHECK(gate.takeCutCalls().empty());
}

void othersMayAskWhileItJudges() {
  World w;
  w.trunk("pbx", {"192.0.2.0/24"});
  w.start();
  std::thread judge([&] {
    for (int i = 0; i < 2000; ++i) w.gate.judge(w.request(Method::Invite, "192.0.2.1"));
  });
  for (int i = 0; i < 2000; ++i) {
    w.gate.setDraining(i % 2 == 0);
    w.gate.callStarted(0);
    w.gate.stats();
    w.gate.callEnded(0);
  }
  judge.join();
  CHECK(w.gate.stats().activeCalls == 0);
}

}  // namespace

int main() {
  strangersHearNothing();
  strangersHear403WhenAskedFor();
  theLongestPrefixIsTheTrunk();
  badArgumentsAreNamed();
  theOrderOfChallengesIsThePolicys();
  aUserProvesItself();
  wrongUserAndWrongPasswordLookAlike();
  addressesAndUserAreBothAsked();
  aProofServesOnce();
  aRefusedInviteMayBeRepeatedByItsTransport();
  anOldOrForeignNonceIsStale();
  aBadAuthorizationIsABadRequest();
  guessingIsShutOut();
  forgedGuessesShutNobodyOut();
  tooManyRequestsAreRefused();
  manySourcesTakeBoundedMemory();
  limitsOfCallsAre503();
  drainingRefusesNewCallsOnly();
  bodiesAreLookedAtInsideCallsToo();
  plainRtpIsRefusedWhereSrtpIsRequired();
  absurdHeadersAreRefused();
  whatRefersToNothingIs481();
  otherMethodsAreNotAllowed();
  aPhoneRegistersAndCanBeCalled();
  registrationsHaveBounds();
  phonesOfOneNetworkAreToldApart();
  aRepeatedRegisterIsAnsweredAgain();
  cutCallsAreTold();
  othersMayAskWhileItJudges();
  return checkResult();
}
