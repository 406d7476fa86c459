// SPDX-License-Identifier: GPL-3.0-or-later
//
// Digest authentication as a server sees it (RFC 7616, RFC 8760, RFC 3261 section 22): nonces that carry
// their own proof, the check of a response, and the count of uses. No SIP library, no clock, no thread:
// the time is passed in (seconds on any monotonic scale), the caller serialises the calls.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>

enum class DigestAlgorithm { Md5, Sha256 };

// The fields of one Authorization header as sent, quotes removed, nothing else changed.
struct GateCredential {
  std::string username, realm, nonce, uri, response, algorithm, cnonce, qop, nc;
};

// Lower-case hexadecimal hash of `text`; empty when the crypto library refuses the algorithm (FIPS and MD5).
std::string digestHash(DigestAlgorithm algorithm, std::string_view text);

// "MD5" (also for an absent parameter, RFC 3261 22.4) and "SHA-256"; false for anything else ("-sess" too).
bool digestAlgorithm(std::string_view name, DigestAlgorithm& algorithm);

// What is wrong with the shape of a credential, or "" when it can be computed.
std::string digestFault(const GateCredential& credential);

// Whether `credential.response` is the right one for this method and password. Takes the same time for a
// right and a wrong response. The credential must have passed digestFault().
bool digestMatches(const GateCredential& credential, std::string_view method, std::string_view password);

// Makes and recognises nonces without remembering them: time, 64 random bits, and an HMAC-SHA-256 over both
// and the address that asked. So a nonce proves that this address received our challenge.
class NonceMint {
 public:
  enum class State { Foreign, Fresh, Expired };

  NonceMint();  // draws its secret; throws std::runtime_error without a source of randomness

  std::string issue(double now_s, std::string_view address) const;
  State inspect(std::string_view nonce, std::string_view address, double now_s, double lifetime_s,
                  double& issuedAt_s) const;

  // A keyed 64-bit fingerprint: nobody outside can find two texts with the same one.
  std::uint64_t fingerprint(std::string_view text) const;

 private:
  std::string seal(std::string_view text) const;  // 16 bytes of the HMAC

  std::string secret_;
};

// Remembers which (nonce, nonce count) pairs were used, each for one request. Only requests with a right
// response may be entered, so a stranger cannot fill it. Bounded: when it must forget a pair that is still
// valid, every nonce as old as that one is refused from then on, so forgetting never allows a replay.
class NonceUses {
 public:
  enum class Use {
    First,   // never seen
    Again,   // the very same request, sent again by its transport
    Replay,  // the pair served another request, or one that must not be repeated
    Forgotten,
  };

  explicit NonceUses(std::size_t capacity = 65536) : capacity_(capacity) {}

  // `nc` is 0 without qop: then a nonce serves one request. `request` is the fingerprint of the request.
  Use enter(std::string_view nonce, std::uint32_t nc, std::uint64_t request, double issuedAt_s, double now_s,
              double lifetime_s);

  // The request must not be repeated: from now on its pair is a replay whoever sends it.
  void close(std::string_view nonce, std::uint32_t nc);

  std::size_t size() const { return uses_.size(); }

 private:
  struct Age {
    std::string key;
    double issuedAt_s;
  };

  static std::string keyOf(std::string_view nonce, std::uint32_t nc);

  std::size_t capacity_;
  std::unordered_map<std::string, std::uint64_t> uses_;  // 0: closed
  std::deque<Age> order_;                                // oldest entry first
  double floor_s_ = -1e300;                              // nonces issued up to here are forgotten
};
