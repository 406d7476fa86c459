// SPDX-License-Identifier: GPL-3.0-or-later
// sources: digest.cpp
// libraries: -lcrypto
#include "../digest.hpp"

#include "check.hpp"

namespace {

// The example of RFC 2617 section 3.5 (MD5, qop=auth).
GateCredential rfc2617() {
  GateCredential c;
  c.username = "Mufasa";
  c.realm = "testrealm@host.com";
  c.nonce = "dcd98b7102dd2f0e8b11d0f600bfb0c093";
  c.uri = "/dir/index.html";
  c.qop = "auth";
  c.nc = "00000001";
  c.cnonce = "0a4f113b";
  c.response = "6629fae49393a05397450978507c4ef1";
  return c;
}

// The example of RFC 7616 section 3.9.1 (both algorithms, qop=auth).
GateCredential rfc7616() {
  GateCredential c;
  c.username = "Mufasa";
  c.realm = "http-auth@example.org";
  c.nonce = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v";
  c.uri = "/dir/index.html";
  c.qop = "auth";
  c.nc = "00000001";
  c.cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";
  return c;
}

void hashesAreThoseOfTheStandards() {
  CHECK(digestHash(DigestAlgorithm::Md5, "") == "d41d8cd98f00b204e9800998ecf8427e");
  CHECK(digestHash(DigestAlgorithm::Sha256, "abc") ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

void examplesOfTheRfcsMatch() {
  CHECK(digestMatches(rfc2617(), "GET", "Circle Of Life"));
  GateCredential c = rfc7616();
  c.algorithm = "MD5";
  c.response = "8ca523f5e9506fed4657c9700eebdbec";
  CHECK(digestFault(c).empty());
  CHECK(digestMatches(c, "GET", "Circle of Life"));
  c.algorithm = "SHA-256";
  c.response = "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1";
  CHECK(digestFault(c).empty());
  CHECK(digestMatches(c, "GET", "Circle of Life"));
  CHECK(!digestMatches(c, "GET", "circle of life"));
  CHECK(!digestMatches(c, "INVITE", "Circle of Life"));
}

void withoutQopTheOldFormIsComputed() {
  GateCredential c = rfc2617();
  c.qop.clear();
  c.nc.clear();
  c.cnonce.clear();
  const std::string a1 = digestHash(DigestAlgorithm::Md5, "Mufasa:testrealm@host.com:Circle Of Life");
  const std::string a2 = digestHash(DigestAlgorithm::Md5, "GET:/dir/index.html");
  c.response = digestHash(DigestAlgorithm::Md5, a1 + ":" + c.nonce + ":" + a2);
  CHECK(digestFault(c).empty());
  CHECK(digestMatches(c, "GET", "Circle Of Life"));
  c.response[0] = c.response[0] == '0' ? '1' : '0';
  CHECK(!digestMatches(c, "GET", "Circle Of Life"));
}

void shapesThatCannotBeComputedAreNamed() {
  const auto faultAfter = [](void (*change)(GateCredential&)) {
    GateCredential c = rfc2617();
    change(c);
    return !digestFault(c).empty();
  };
  CHECK(digestFault(rfc2617()).empty());
  CHECK(faultAfter([](GateCredential& c) { c.username.clear(); }));
  CHECK(faultAfter([](GateCredential& c) { c.nonce.clear(); }));
  CHECK(faultAfter([](GateCredential& c) { c.uri.clear(); }));
  CHECK(faultAfter([](GateCredential& c) { c.response = "12"; }));
  CHECK(faultAfter([](GateCredential& c) { c.response[3] = 'x'; }));
  CHECK(faultAfter([](GateCredential& c) { c.algorithm = "MD5-sess"; }));
  CHECK(faultAfter([](GateCredential& c) { c.algorithm = "SHA-256"; }));  // the response is too short for it
  CHECK(faultAfter([](GateCredential& c) { c.qop = "auth-int"; }));
  CHECK(faultAfter([](GateCredential& c) { c.cnonce.clear(); }));
  CHECK(faultAfter([](GateCredential& c) { c.nc = "1"; }));
  CHECK(faultAfter([](GateCredential& c) { c.nc = "0000000g"; }));
  CHECK(faultAfter([](GateCredential& c) { c.username = std::string(600, 'a'); }));
}

void aNonceProvesItsAgeAndItsAddress() {
  NonceMint mint, other;
  double issued = 0;
  const std::string nonce = mint.issue(100, "192.0.2.1");
  CHECK(nonce != mint.issue(100, "192.0.2.1"));
  CHECK(mint.inspect(nonce, "192.0.2.1", 130, 60, issued) == NonceMint::State::Fresh);
  CHECK(issued == 100);
  CHECK(mint.inspect(nonce, "192.0.2.1", 161, 60, issued) == NonceMint::State::Expired);
  CHECK(mint.inspect(nonce, "192.0.2.2", 130, 60, issued) == NonceMint::State::Foreign);
  CHECK(other.inspect(nonce, "192.0.2.1", 130, 60, issued) == NonceMint::State::Foreign);
  for (std::size_t i = 0; i < nonce.size(); ++i) {
    std::string changed = nonce;
    changed[i] = changed[i] == '0' ? '1' : '0';
    CHECK(mint.inspect(changed, "192.0.2.1", 130, 60, issued) == NonceMint::State::Foreign);
  }
  for (const char* text : {"", "0", "not a nonce", "zz"})
    CHECK(mint.inspect(text, "192.0.2.1", 130, 60, issued) == NonceMint::State::Foreign);
  CHECK(mint.fingerprint("a") == mint.fingerprint("a"));
  CHECK(mint.fingerprint("a") != mint.fingerprint("b"));
  CHECK(mint.fingerprint("a") != other.fingerprint("a"));
}

void aCountServesOneRequest() {
  NonceMint mint;
  NonceUses uses;
  const std::string nonce = mint.issue(0, "a");
  CHECK(uses.enter(nonce, 1, 11, 0, 1, 60) == NonceUses::Use::First);
  CHECK(uses.enter(nonce, 1, 11, 0, 2, 60) == NonceUses::Use::Again);
  CHECK(uses.enter(nonce, 1, 12, 0, 2, 60) == NonceUses::Use::Replay);
  CHECK(uses.enter(nonce, 3, 13, 0, 2, 60) == NonceUses::Use::First);  // UDP may swap two requests
  CHECK(uses.enter(nonce, 2, 14, 0, 2, 60) == NonceUses::Use::First);
  uses.close(nonce, 1);
  CHECK(uses.enter(nonce, 1, 11, 0, 3, 60) == NonceUses::Use::Replay);
  CHECK(uses.size() == 3);
  uses.enter(mint.issue(100, "a"), 1, 15, 100, 100, 60);
  CHECK(uses.size() == 1);  // the expired ones went
}

void forgettingNeverAllowsAReplay() {
  NonceMint mint;
  NonceUses uses(4);
  std::string nonces[6];
  for (int i = 0; i < 6; ++i) {
    nonces[i] = mint.issue(i, "a");
    CHECK(uses.enter(nonces[i], 1, 7, i, 10, 60) == NonceUses::Use::First);
    CHECK(uses.size() <= 4);
  }
  CHECK(uses.enter(nonces[0], 1, 8, 0, 10, 60) == NonceUses::Use::Forgotten);
  CHECK(uses.enter(nonces[1], 1, 8, 1, 10, 60) == NonceUses::Use::Forgotten);
  CHECK(uses.enter(nonces[2], 1, 8, 2, 10, 60) == NonceUses::Use::Replay);
  CHECK(uses.enter(nonces[5], 2, 8, 5, 10, 60) == NonceUses::Use::First);
}

}  // namespace

int main() {
  hashesAreThoseOfTheStandards();
  examplesOfTheRfcsMatch();
  withoutQopTheOldFormIsComputed();
  shapesThatCannotBeComputedAreNamed();
  aNonceProvesItsAgeAndItsAddress();
  aCountServesOneRequest();
  forgettingNeverAllowsAReplay();
  return checkResult();
}
