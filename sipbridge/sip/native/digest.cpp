// SPDX-License-Identifier: GPL-3.0-or-later
#include "digest.hpp"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <cstring>
#include <stdexcept>

namespace {

constexpr std::size_t kSecretBytes = 32;
constexpr std::size_t kTimeBytes = 8;
constexpr std::size_t kSaltBytes = 8;
constexpr std::size_t kSealBytes = 16;
constexpr std::size_t kNonceHexDigits = 2 * (kTimeBytes + kSaltBytes + kSealBytes);
// Longest field accepted: real clients stay far below, and every field is hashed.
constexpr std::size_t kMaxFieldBytes = 512;

std::string toHex(std::string_view bytes) {
  static const char digits[] = "0123456789abcdef";
  std::string text;
  text.reserve(bytes.size() * 2);
  for (unsigned char byte : bytes) {
    text.push_back(digits[byte >> 4]);
    text.push_back(digits[byte & 15]);
  }
  return text;
}

int hexValue(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
  return -1;
}

bool isHex(std::string_view text) {
  for (char digit : text)
    if (hexValue(digit) < 0) return false;
  return true;
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return result;
}

std::size_t hashHexDigits(DigestAlgorithm algorithm) { return algorithm == DigestAlgorithm::Sha256 ? 64 : 32; }

bool equalInConstantTime(std::string_view a, std::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace

std::string digestHash(DigestAlgorithm algorithm, std::string_view text) {
  unsigned char hash[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  const EVP_MD* type = algorithm == DigestAlgorithm::Sha256 ? EVP_sha256() : EVP_md5();
  if (EVP_Digest(text.data(), text.size(), hash, &length, type, nullptr) != 1) return "";
  return toHex({reinterpret_cast<const char*>(hash), length});
}

bool digestAlgorithm(std::string_view name, DigestAlgorithm& algorithm) {
  const std::string wanted = lower(name);
  if (wanted.empty() || wanted == "md5") {
    algorithm = DigestAlgorithm::Md5;
    return true;
  }
  if (wanted == "sha-256") {
    algorithm = DigestAlgorithm::Sha256;
    return true;
  }
  return false;
}

std::string digestFault(const GateCredential& credential) {
  for (const std::string* field : {&credential.username, &credential.realm, &credential.nonce, &credential.uri,
                                     &credential.response, &credential.algorithm, &credential.cnonce,
                                     &credential.qop, &credential.nc})
    if (field->size() > kMaxFieldBytes) return "field too long";
  if (credential.username.empty()) return "username missing";
  if (credential.nonce.empty()) return "nonce missing";
  if (credential.uri.empty()) return "uri missing";
  DigestAlgorithm algorithm;
  if (!digestAlgorithm(credential.algorithm, algorithm)) return "algorithm not offered";
  if (credential.response.size() != hashHexDigits(algorithm) || !isHex(credential.response))
    return "response is no hash of this algorithm";
  if (credential.qop.empty()) return "";
  if (lower(credential.qop) != "auth") return "qop not offered";
  if (credential.cnonce.empty()) return "cnonce missing";
  if (credential.nc.size() != 8 || !isHex(credential.nc)) return "nc is not eight hexadecimal digits";
  return "";
}

bool digestMatches(const GateCredential& credential, std::string_view method, std::string_view password) {
  DigestAlgorithm algorithm;
  if (!digestAlgorithm(credential.algorithm, algorithm)) return false;
  std::string secret = credential.username + ":" + credential.realm + ":";
  secret.append(password);
  const std::string a1 = digestHash(algorithm, secret);
  OPENSSL_cleanse(secret.data(), secret.size());
  const std::string a2 = digestHash(algorithm, std::string(method) + ":" + credential.uri);
  if (a1.empty() || a2.empty()) return false;
  std::string text = a1 + ":" + credential.nonce + ":";
  if (!credential.qop.empty())
    text += credential.nc + ":" + credential.cnonce + ":" + credential.qop + ":";
  return equalInConstantTime(digestHash(algorithm, text + a2), lower(credential.response));
}

NonceMint::NonceMint() : secret_(kSecretBytes, '\0') {
  if (RAND_bytes(reinterpret_cast<unsigned char*>(secret_.data()), static_cast<int>(kSecretBytes)) != 1)
    throw std::runtime_error("no random numbers for the authentication secret");
}

std::string NonceMint::seal(std::string_view text) const {
  unsigned char mac[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  if (HMAC(EVP_sha256(), secret_.data(), static_cast<int>(secret_.size()),
             reinterpret_cast<const unsigned char*>(text.data()), text.size(), mac, &length) == nullptr)
    throw std::runtime_error("HMAC-SHA-256 is not available");
  return {reinterpret_cast<const char*>(mac), kSealBytes};
}

std::uint64_t NonceMint::fingerprint(std::string_view text) const {
  // The prefix keeps fingerprints and nonces apart: neither can stand in for the other.
  const std::string mac = seal("request\n" + std::string(text));
  std::uint64_t value = 0;
  std::memcpy(&value, mac.data(), sizeof value);
  return value == 0 ? 1 : value;
}

std::string NonceMint::issue(double now_s, std::string_view address) const {
  char head[kTimeBytes + kSaltBytes];
  std::memcpy(head, &now_s, kTimeBytes);
  if (RAND_bytes(reinterpret_cast<unsigned char*>(head + kTimeBytes), static_cast<int>(kSaltBytes)) != 1)
    throw std::runtime_error("no random numbers for a nonce");
  std::string text(head, sizeof head);
  return toHex(text + seal("nonce\n" + text + std::string(address)));
}

NonceMint::State NonceMint::inspect(std::string_view nonce, std::string_view address, double now_s,
                  double lifetime_s, double& issuedAt_s) const {
  issuedAt_s = 0;
  if (nonce.size() != kNonceHexDigits) return State::Foreign;
  std::string bytes;
  bytes.reserve(kNonceHexDigits / 2);
  for (std::size_t i = 0; i < nonce.size(); i += 2) {
    const int high = hexValue(nonce[i]), low = hexValue(nonce[i + 1]);
    if (high < 0 || low < 0) return State::Foreign;
    bytes.push_back(static_cast<char>(high << 4 | low));
  }
  const std::string head = bytes.substr(0, kTimeBytes + kSaltBytes);
  const std::string expected = seal("nonce\n" + head + std::string(address));
  if (!equalInConstantTime(expected, std::string_view(bytes).substr(kTimeBytes + kSaltBytes)))
    return State::Foreign;
  std::memcpy(&issuedAt_s, head.data(), kTimeBytes);
  return now_s - issuedAt_s > lifetime_s ? State::Expired : State::Fresh;
}

std::string NonceUses::keyOf(std::string_view nonce, std::uint32_t nc) {
  // The salt alone tells nonces apart; lower case, since a nonce may come back in either.
  std::string key = lower(nonce.substr(2 * kTimeBytes, 2 * kSaltBytes));
  key.append(reinterpret_cast<const char*>(&nc), sizeof nc);
  return key;
}

NonceUses::Use NonceUses::enter(std::string_view nonce, std::uint32_t nc, std::uint64_t request,
                double issuedAt_s, double now_s, double lifetime_s) {
  while (!order_.empty() && now_s - order_.front().issuedAt_s > lifetime_s) {
    uses_.erase(order_.front().key);
    order_.pop_front();
  }
  std::string key = keyOf(nonce, nc);
  const auto found = uses_.find(key);
  if (found != uses_.end()) return found->second == request ? Use::Again : Use::Replay;
  if (issuedAt_s <= floor_s_) return Use::Forgotten;
  if (uses_.size() >= capacity_) {
    floor_s_ = order_.front().issuedAt_s > floor_s_ ? order_.front().issuedAt_s : floor_s_;
    uses_.erase(order_.front().key);
    order_.pop_front();
    if (issuedAt_s <= floor_s_) return Use::Forgotten;
  }
  uses_.emplace(key, request);
  order_.push_back({std::move(key), issuedAt_s});
  return Use::First;
}

void NonceUses::close(std::string_view nonce, std::uint32_t nc) {
  const auto found = uses_.find(keyOf(nonce, nc));
  if (found != uses_.end()) found->second = 0;
}
