// SPDX-License-Identifier: GPL-3.0-or-later
#include "gate.hpp"

#include <arpa/inet.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "body_shape.hpp"

namespace {

constexpr std::size_t kMaxSources = 65536;
constexpr std::size_t kMaxCuts = 4096;
constexpr std::size_t kMaxRefusals = 16;  // told of at once
constexpr std::size_t kMaxUriBytes = 255;  // pjsip prints URIs into buffers of 256
constexpr std::size_t kMaxUserBytes = 128;
constexpr std::size_t kMaxIdBytes = 255;  // Call-ID, branch
constexpr int kV4Prefix = 96;
constexpr const char* kAllowed = "INVITE, ACK, BYE, CANCEL, OPTIONS, REGISTER, UPDATE, PRACK, INFO, REFER, NOTIFY";

double steadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool hasControl(const std::string& text) {
  return std::any_of(text.begin(), text.end(), [](unsigned char c) { return c < ' ' || c == 127; });
}

// The user part of "sip:user@host;..." or "sips:..."; "" without one.
std::string_view userOf(std::string_view uri) {
  const std::size_t scheme = uri.find(':');
  const std::size_t at = uri.find('@');
  if (at == std::string_view::npos || scheme == std::string_view::npos || scheme > at) return {};
  return uri.substr(scheme + 1, at - scheme - 1);
}

std::string quotedText(const std::string& text) {
  std::string result = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + "\"";
}

// An INVITE without a body leaves the offer to us.
bool offersSrtp(const GateRequest& request) {
  if (request.body.empty() || namesSrtp(request.body)) return true;
  return std::any_of(request.sdpParts.begin(), request.sdpParts.end(), namesSrtp);
}

}  // namespace

Gate::Gate() : Gate(steadySeconds) {}

Gate::Gate(std::function<double()> clock_s) : clock_s_(std::move(clock_s)), decoy_(mint_.issue(0, "decoy")) {}

bool Gate::parseAddress(const std::string& text, Network& address) {
  const std::string bare = text.substr(0, text.find('%'));  // without the zone
  address = Network();
  address.bits = 128;
  if (inet_pton(AF_INET, bare.c_str(), address.bytes.data() + 12) == 1) {
    address.bytes[10] = address.bytes[11] = 0xff;
    return true;
  }
  return inet_pton(AF_INET6, bare.c_str(), address.bytes.data()) == 1;
}

bool Gate::parseNetwork(const std::string& text, Network& network) {
  const std::size_t slash = text.find('/');
  const std::string address = text.substr(0, slash);
  if (!parseAddress(address, network)) return false;
  if (slash == std::string::npos) return true;
  const std::string length = text.substr(slash + 1);
  if (length.empty() || length.size() > 3 || length.find_first_not_of("0123456789") != std::string::npos) return false;
  const bool v4 = address.find(':') == std::string::npos;
  const int bits = std::stoi(length);
  if (bits > (v4 ? 32 : 128)) return false;
  network.bits = v4 ? bits + kV4Prefix : bits;
  return true;
}

std::string Gate::configure(const GatePolicy& policy, const std::vector<GateTrunk>& trunks) {
  std::vector<std::vector<Network>> networks;
  for (const GateTrunk& trunk : trunks) {
    std::vector<Network> own;
    for (const std::string& text : trunk.addresses) {
      Network network;
      if (!parseNetwork(text, network)) return "trunk " + trunk.name + ": no network: " + text;
      own.push_back(network);
    }
    if (trunk.phone && trunk.username.empty()) return "trunk " + trunk.name + ": a phone needs a user";
    networks.push_back(std::move(own));
  }
  DigestAlgorithm known;
  for (const std::string& name : policy.algorithms)
    if (name.empty() || !digestAlgorithm(name, known)) return "algorithms: not known: " + name;
  if (policy.algorithms.empty()) return "algorithms: none";
  if (policy.realm.empty() || hasControl(policy.realm)) return "realm: not printable";
  std::lock_guard<std::mutex> lock(mutex_);
  policy_ = policy;
  trunks_ = trunks;
  networks_ = std::move(networks);
  trunk_calls_.assign(trunks_.size(), 0);
  calls_ = 0;
  current_trunk_ = -1;
  current_user_.clear();
  sources_.clear();
  source_ages_.clear();
  registrations_.clear();
  cuts_.clear();
  stats_ = GateStats();
  return "";
}

void Gate::setDraining(bool draining) {
  std::lock_guard<std::mutex> lock(mutex_);
  draining_ = draining;
}

int Gate::currentTrunk() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return current_trunk_;
}

std::string Gate::currentUser() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return current_user_;
}

void Gate::callStarted(int trunk) {
  std::lock_guard<std::mutex> lock(mutex_);
  ++calls_;
  if (trunk < 0 || static_cast<std::size_t>(trunk) >= trunk_calls_.size()) return;
  ++trunk_calls_[static_cast<std::size_t>(trunk)];
}

void Gate::callEnded(int trunk) {
  std::lock_guard<std::mutex> lock(mutex_);
  calls_ = std::max(0, calls_ - 1);
  if (trunk < 0 || static_cast<std::size_t>(trunk) >= trunk_calls_.size()) return;
  int& count = trunk_calls_[static_cast<std::size_t>(trunk)];
  count = std::max(0, count - 1);
}

const Gate::Registration* Gate::registrationOf(const std::string& user, double now_s) const {
  const auto found = registrations_.find(user);
  return found != registrations_.end() && found->second.until_s > now_s ? &found->second : nullptr;
}

std::string Gate::contactOf(const std::string& user) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const Registration* registration = registrationOf(user, clock_s_());
  return registration ? registration->contact.target : "";
}

int Gate::trunkOfUser(const std::string& user) const {
  std::lock_guard<std::mutex> lock(mutex_);
  for (std::size_t i = 0; i < trunks_.size(); ++i)
    if (!user.empty() && trunks_[i].username == user) return static_cast<int>(i);
  return -1;
}

std::vector<std::string> Gate::registered() const {
  std::lock_guard<std::mutex> lock(mutex_);
  const double now_s = clock_s_();
  std::vector<std::string> users;
  for (const auto& [user, registration] : registrations_)
    if (registration.until_s > now_s) users.push_back(user);
  return users;
}

GateStats Gate::stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  const double now_s = clock_s_();
  GateStats stats = stats_;
  for (const auto& [key, source] : sources_) stats.bannedSources += source.bannedUntil_s > now_s;
  for (const auto& [user, registration] : registrations_) stats.registeredPhones += registration.until_s > now_s;
  stats.activeCalls = calls_;
  return stats;
}

std::vector<GateCut> Gate::takeCutCalls() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<GateCut> taken;
  taken.swap(cuts_);
  return taken;
}

std::vector<GateRefusal> Gate::takeRefusals() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<GateRefusal> taken;
  taken.swap(refusals_);
  return taken;
}

void Gate::noteRefusal(const GateRequest& request, const GateVerdict& verdict) {
  const bool dropped = verdict.action == GateVerdict::Action::Drop;
  // a challenge is not a refusal yet, and an ACK was never to be answered
  const bool answered = verdict.action == GateVerdict::Action::Answer && verdict.code >= 400 && verdict.code != 401;
  if ((!dropped && !answered) || request.method == GateRequest::Method::Ack) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (refusals_.size() >= kMaxRefusals) return;
  refusals_.push_back({request.methodName, request.uri,
                       request.address + ":" + std::to_string(request.port) + " " + request.transport,
                       dropped ? 0 : verdict.code, verdict.phrase});
}

void Gate::cutCall(const std::string& callId, const std::string& reason) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (cuts_.size() < kMaxCuts) cuts_.push_back({callId, reason});
}

void Gate::countMalformed() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++stats_.malformed;
}

void Gate::countOversize() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++stats_.oversize;
}

std::size_t Gate::maxBodyBytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<std::size_t>(std::max(0, policy_.maxBodyBytes));
}

// The longest prefix of this trunk that the address lies in; -1 for none.
int Gate::prefixOf(int trunk, const Network& address) const {
  int longest = -1;
  for (const Network& network : networks_[static_cast<std::size_t>(trunk)]) {
    const std::size_t whole = static_cast<std::size_t>(network.bits) / 8;
    const int rest = network.bits % 8;
    if (std::memcmp(network.bytes.data(), address.bytes.data(), whole) != 0) continue;
    if (rest != 0 && (network.bytes[whole] ^ address.bytes[whole]) >> (8 - rest) != 0) continue;
    longest = std::max(longest, network.bits);
  }
  return longest;
}

// The longest prefix decides, as in routing. Two exceptions keep telephones apart from a trunk whose addresses hold
// them too: a REGISTER is meant for a telephone's trunk if there is one, and what comes from the very address and port
// of a registered telephone is that telephone.
Gate::Standing Gate::standingOf(const GateRequest& request, double now_s) const {
  Standing standing;
  Network address;
  if (!parseAddress(request.address, address)) return standing;
  int longest = -1;
  std::vector<int> prefixes(trunks_.size(), -1);
  for (std::size_t i = 0; i < trunks_.size(); ++i) {
    prefixes[i] = prefixOf(static_cast<int>(i), address);
    longest = std::max(longest, prefixes[i]);
  }
  standing.addressKnown = longest >= 0;

  if (request.method == GateRequest::Method::Register) {
    for (std::size_t i = 0; i < trunks_.size(); ++i)
      if (trunks_[i].phone && (networks_[i].empty() || prefixes[i] >= 0))
        standing.provable.push_back(static_cast<int>(i));
    if (!standing.provable.empty()) return standing;
  }
  for (const auto& [user, registration] : registrations_) {
    if (registration.port != request.port || registration.until_s <= now_s) continue;
    if (registration.address != request.address || registration.transport != request.transport) continue;
    standing.provable.push_back(registration.trunk);
  }
  if (!standing.provable.empty()) return standing;

  for (std::size_t i = 0; i < trunks_.size(); ++i) {
    if (longest >= 0 && prefixes[i] == longest && trunks_[i].username.empty()) {
      standing.trusted = static_cast<int>(i);
      return standing;
    }
  }
  for (std::size_t i = 0; i < trunks_.size(); ++i)
    if (!trunks_[i].username.empty() && (networks_[i].empty() || (longest >= 0 && prefixes[i] == longest)))
      standing.provable.push_back(static_cast<int>(i));
  return standing;
}

Gate::Source& Gate::sourceOf(const std::string& address, double now_s) {
  Network network;
  std::string key = address;
  if (parseAddress(address, network)) {
    static const unsigned char v4Prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    const bool v4 = std::memcmp(network.bytes.data(), v4Prefix, sizeof v4Prefix) == 0;
    key.assign(reinterpret_cast<const char*>(network.bytes.data()), v4 ? 16 : 8);
  }
  const auto found = sources_.find(key);
  if (found != sources_.end()) {
    source_ages_.splice(source_ages_.begin(), source_ages_, found->second.age);
    return found->second;
  }
  if (sources_.size() >= kMaxSources) {
    // The one not heard for longest; of the last few rather one that is not banned.
    auto oldest = std::prev(source_ages_.end());
    auto chosen = oldest;
    for (int i = 0; i < 8 && chosen != source_ages_.begin() && sources_[*chosen].bannedUntil_s > now_s; ++i) --chosen;
    if (sources_[*chosen].bannedUntil_s > now_s) chosen = oldest;
    sources_.erase(*chosen);
    source_ages_.erase(chosen);
  }
  source_ages_.push_front(key);
  Source& source = sources_[key];
  source.age = source_ages_.begin();
  source.tokens = policy_.burst;
  source.filledAt_s = now_s;
  return source;
}

bool Gate::takeToken(Source& source, double now_s) const {
  const double earned = (now_s - source.filledAt_s) * policy_.requestsPerSecond;
  source.tokens = std::min<double>(policy_.burst, source.tokens + earned);
  source.filledAt_s = now_s;
  if (source.tokens < 1) return false;
  source.tokens -= 1;
  return true;
}

GateVerdict Gate::refuse(int code, std::string phrase) {
  GateVerdict verdict;
  verdict.action = GateVerdict::Action::Answer;
  verdict.code = code;
  verdict.phrase = std::move(phrase);
  if (code == 403) ++stats_.forbidden;
  return verdict;
}

GateVerdict Gate::unavailable(const char* phrase) {
  GateVerdict verdict = refuse(503, phrase);
  verdict.headers.emplace_back("Retry-After", std::to_string(policy_.retryAfterSeconds));
  return verdict;
}

GateVerdict Gate::silence() {
  GateVerdict verdict;
  verdict.hangUp = true;
  return verdict;
}

GateVerdict Gate::refuseStranger() {
  if (policy_.refuseAloud) return refuse(403);
  ++stats_.unanswered;
  return silence();
}

GateVerdict Gate::challenge(const GateRequest& request, bool stale, double now_s) {
  ++stats_.challenged;
  GateVerdict verdict = refuse(401);
  const std::string nonce = mint_.issue(now_s, request.address);
  // A client takes the first that it knows (RFC 8760 2.4), or, when it is old, the first there is.
  for (const std::string& algorithm : policy_.algorithms)
    verdict.headers.emplace_back("WWW-Authenticate",
                                 "Digest realm=" + quotedText(policy_.realm) + ", nonce=\"" + nonce + "\", algorithm=" +
                                     algorithm + ", qop=\"auth\"" + (stale ? ", stale=true" : ""));
  return verdict;
}

// True with the proof filled in; else the verdict is the answer.
bool Gate::authenticate(const GateRequest& request, const Standing& standing, Source& source, double now_s,
                        Proof& proof, GateVerdict& verdict) {
  const auto credential = std::find_if(request.credentials.begin(), request.credentials.end(),
                                       [&](const GateCredential& c) { return c.realm == policy_.realm; });
  if (credential == request.credentials.end()) {
    verdict = challenge(request, false, now_s);
    return false;
  }
  const std::string fault = digestFault(*credential);
  if (!fault.empty()) {
    ++stats_.malformed;
    verdict = refuse(400, "Bad Authorization: " + fault);
    return false;
  }
  // A nonce of another address, another start, or too long ago says nothing about the password: the response is not
  // even looked at, so that no guess is answered that does not count.
  double issuedAt_s = 0;
  if (mint_.inspect(credential->nonce, request.address, now_s, policy_.nonceSeconds, issuedAt_s) !=
      NonceMint::State::Fresh) {
    verdict = challenge(request, true, now_s);
    return false;
  }
  int trunk = -1;
  for (int candidate : standing.provable)
    if (trunks_[static_cast<std::size_t>(candidate)].username == credential->username) {
      trunk = candidate;
      break;
    }
  const std::string& password = trunk >= 0 ? trunks_[static_cast<std::size_t>(trunk)].password : decoy_;
  const bool matches = digestMatches(*credential, request.methodName, password);
  if (trunk < 0 || !matches) {
    // The nonce was sent to this address, so the address is not forged and may be shut out.
    ++stats_.wrongPasswords;
    if (source.failures == 0 || now_s - source.failuresSince_s > policy_.banSeconds) {
      source.failures = 0;
      source.failuresSince_s = now_s;
    }
    if (++source.failures >= policy_.banAfter && policy_.banAfter > 0) {
      source.failures = 0;
      source.bannedUntil_s = now_s + policy_.banSeconds;
      ++stats_.bans;
    }
    verdict = challenge(request, false, now_s);
    return false;
  }
  source.failures = 0;
  // Some clients sign their server's URI for every request; one who signs a user means that one (RFC 7616 3.4.6).
  const std::string_view signedUser = userOf(credential->uri);
  if (!signedUser.empty() && signedUser != userOf(request.uri)) {
    ++stats_.malformed;
    verdict = refuse(400, "Bad Authorization: uri is not the Request-URI");
    return false;
  }
  const std::string count = credential->qop.empty() ? "0" : credential->nc;
  const auto nc = static_cast<std::uint32_t>(std::strtoul(count.c_str(), nullptr, 16));
  const std::uint64_t fingerprint =
      mint_.fingerprint(request.methodName + "\n" + request.callId + "\n" + std::to_string(request.cseq) + "\n" +
                        request.branch + "\n" + request.address + "\n" + std::to_string(request.port));
  const NonceUses::Use use =
      uses_.enter(credential->nonce, nc, fingerprint, issuedAt_s, now_s, policy_.nonceSeconds);
  if (use == NonceUses::Use::Replay || use == NonceUses::Use::Forgotten) {
    ++stats_.replays;
    verdict = challenge(request, true, now_s);
    return false;
  }
  proof = {trunk, credential->username, credential->nonce, nc};
  return true;
}

bool Gate::shapeFault(const GateRequest& request, GateVerdict& verdict) {
  BodyFault fault;
  if (request.contentLength > static_cast<long>(request.body.size())) {
    fault = {400, "Content-Length is more than the body"};
  } else {
    const auto maxBytes = static_cast<std::size_t>(std::max(0, policy_.maxBodyBytes));
    fault = bodyFault(request.contentType, request.body, maxBytes);
    for (std::string_view part : request.sdpParts)
      if (!fault) fault = bodyFault("application/sdp", part, maxBytes);
  }
  if (!fault && request.contentTypeTwice) fault = {400, "Content-Type twice"};
  if (!fault && request.uri.size() > kMaxUriBytes) fault = {414, "Request-URI Too Long"};
  if (!fault && request.longestUri > kMaxUriBytes) fault = {400, "A URI or name of more than 255 bytes"};
  if (!fault && (request.callId.size() > kMaxIdBytes || request.branch.size() > kMaxIdBytes))
    fault = {400, "Call-ID or branch of more than 255 bytes"};
  for (const std::string* user : {&request.user, &request.fromUser, &request.toUser}) {
    if (!fault && user->size() > kMaxUserBytes) fault = {400, "A user of more than 128 bytes"};
    if (!fault && hasControl(*user)) fault = {400, "Control character in a URI"};
  }
  if (!fault) return false;
  ++stats_.malformed;
  verdict = refuse(fault.code, fault.phrase);
  return true;
}

GateVerdict Gate::judgeKnown(const GateRequest& request) {
  ++stats_.inDialog;
  GateVerdict verdict;
  const bool faulty = shapeFault(request, verdict);
  if (!faulty) verdict.action = GateVerdict::Action::Pass;
  if (faulty && request.method == GateRequest::Method::Ack) verdict.action = GateVerdict::Action::PassWithoutBody;
  return verdict;
}

GateVerdict Gate::judgeInvite(const GateRequest& request, const Proof& proof) {
  const GateTrunk& trunk = trunks_[static_cast<std::size_t>(proof.trunk)];
  if (trunk.phone && request.fromUser != proof.user) return refuse(403, "From is not the user of this telephone");
  if (trunk.srtpRequired && !offersSrtp(request)) return refuse(488, "Not Acceptable: SRTP is required");
  if (draining_) {
    ++stats_.draining;
    return unavailable("Shutting Down");
  }
  if ((policy_.maxCalls > 0 && calls_ >= policy_.maxCalls) ||
      (trunk.maxCalls > 0 && trunk_calls_[static_cast<std::size_t>(proof.trunk)] >= trunk.maxCalls)) {
    ++stats_.full;
    return unavailable("Too Many Calls");
  }
  // A refused INVITE that its transport repeats is judged again. One that is let in is not: pjsip's transaction answers
  // its repetitions, and the same proof after that is a replay.
  if (!proof.user.empty()) uses_.close(proof.nonce, proof.nc);
  current_trunk_ = proof.trunk;
  current_user_ = proof.user;
  ++stats_.admitted;
  GateVerdict verdict;
  verdict.action = GateVerdict::Action::Pass;
  return verdict;
}

GateVerdict Gate::registerPhone(const GateRequest& request, const Proof& proof, double now_s) {
  if (!trunks_[static_cast<std::size_t>(proof.trunk)].phone) return refuse(403, "Not a telephone");
  if (request.toUser != proof.user) return refuse(403, "To is not the user of this telephone");
  const Registration* present = registrationOf(proof.user, now_s);
  if (present && present->callId == request.callId && request.cseq < present->cseq) return refuse(500, "Out of Order");

  GateVerdict verdict = refuse(200);
  if (request.contactStar) {
    if (request.expires_s != 0 || !request.contacts.empty()) {
      ++stats_.malformed;
      return refuse(400, "Contact * is for Expires 0 alone");
    }
    registrations_.erase(proof.user);
  }
  const GateContact* newest = nullptr;
  int kept = 0;
  long expires_s = 0;
  for (const GateContact& contact : request.contacts) {
    if (contact.target.empty()) {
      ++stats_.malformed;
      return refuse(400, "Contact is no SIP URI");
    }
    long wanted_s = contact.expires_s >= 0 ? contact.expires_s : request.expires_s;
    if (wanted_s < 0) wanted_s = policy_.maxExpiresSeconds;
    if (wanted_s == 0) {
      if (present && present->contact.uri == contact.uri) registrations_.erase(proof.user);
      present = registrationOf(proof.user, now_s);
      continue;
    }
    if (wanted_s < policy_.minExpiresSeconds) {
      verdict = refuse(423, "Interval Too Brief");
      verdict.headers.emplace_back("Min-Expires", std::to_string(policy_.minExpiresSeconds));
      return verdict;
    }
    newest = &contact;
    expires_s = std::min<long>(wanted_s, policy_.maxExpiresSeconds);
    ++kept;
  }
  if (newest) {
    Registration& registration = registrations_[proof.user];
    registration.contact = *newest;
    registration.address = request.address;
    registration.port = request.port;
    registration.transport = request.transport;
    registration.callId = request.callId;
    registration.cseq = request.cseq;
    registration.trunk = proof.trunk;
    registration.until_s = now_s + static_cast<double>(expires_s);
  }
  ++stats_.registrations;
  if (const Registration* bound = registrationOf(proof.user, now_s))
    verdict.headers.emplace_back("Contact", "<" + bound->contact.uri + ">;expires=" +
                                                std::to_string(static_cast<long>(bound->until_s - now_s + 0.5)));
  if (kept > 1) verdict.headers.emplace_back("Warning", "399 sipbridge \"only the last contact is kept\"");
  return verdict;
}

GateVerdict Gate::judge(const GateRequest& request) {
  using Method = GateRequest::Method;
  std::lock_guard<std::mutex> lock(mutex_);
  const double now_s = clock_s_();
  current_trunk_ = -1;
  current_user_.clear();
  if (request.cut) {
    ++stats_.oversize;
    return GateVerdict();
  }
  if (request.known) return judgeKnown(request);
  if (request.method == Method::Ack) return GateVerdict();  // of an answer of ours; nobody answers an ACK

  const Standing standing = standingOf(request, now_s);
  const bool stranger = standing.trusted < 0 && standing.provable.empty();
  Source& source = sourceOf(request.address, now_s);
  if (standing.trusted < 0 && source.bannedUntil_s > now_s) {
    ++stats_.fromBanned;
    return silence();
  }
  if (!takeToken(source, now_s)) {
    ++stats_.tooFast;
    return standing.addressKnown ? unavailable("Too Many Requests") : silence();
  }
  if (request.method == Method::Cancel || (request.toTag && request.method != Method::Register))
    return stranger ? refuseStranger() : refuse(481);  // of a call that is gone
  if (stranger) return refuseStranger();
  if (request.method == Method::Other || request.method == Method::Unknown) {
    if (!standing.addressKnown) return refuseStranger();
    GateVerdict verdict = refuse(request.method == Method::Other ? 405 : 501);
    verdict.headers.emplace_back("Allow", kAllowed);
    return verdict;
  }

  GateVerdict verdict;
  Proof proof;
  proof.trunk = standing.trusted;
  if (standing.trusted < 0 && !authenticate(request, standing, source, now_s, proof, verdict)) return verdict;
  if (shapeFault(request, verdict)) return verdict;
  if (request.method == Method::Register)
    return standing.trusted >= 0 ? refuse(403, "No telephone registers here") : registerPhone(request, proof, now_s);
  if (request.method == Method::Invite) return judgeInvite(request, proof);
  if (draining_) {
    ++stats_.draining;
    return unavailable("Shutting Down");
  }
  ++stats_.admitted;
  verdict.action = GateVerdict::Action::Pass;
  return verdict;
}
