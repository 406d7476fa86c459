// SPDX-License-Identifier: GPL-3.0-or-later
// sources:
#include "../source_policy.hpp"

#include "check.hpp"

namespace {

IpEndpoint at(const char* address, uint16_t port = 4000) { return {*IpAddress::parse(address), port}; }

// What each `nat` says to: the SDP's address and port, another port of it, an address in the trunk's networks, the
// address that is signalled from, and one that has nothing to do with the call.
struct Row {
  bool exact, port, network, signalling, stranger;
};

void check(Nat nat, const char* named, const char* signalling, const Row& row) {
  const SourcePolicy policy({"203.0.113.0/24", "2001:db8:1::/48"}, nat, signalling);
  CHECK(policy.admits(at(named), at(named)) == row.exact);
  CHECK(policy.admits(at(named, 4002), at(named)) == row.port);
  CHECK(policy.admits(at("203.0.113.77"), at(named)) == row.network);
  CHECK(policy.admits(at("2001:db8:1::77"), at(named)) == row.network);
  CHECK(policy.admits(at(signalling), at(named)) == row.signalling);
  CHECK(policy.admits(at("203.0.114.1"), at(named)) == row.stranger);
  CHECK(policy.admits(at("2001:db8:2::1"), at(named)) == row.stranger);
}

void offTakesTheSdpAtItsWord() {
  for (const char* named : {"198.51.100.1", "192.168.1.20", "2001:db8:9::1"}) {
    check(Nat::kOff, named, "198.51.100.9", {true, false, false, false, false});
  }
}

void onFollowsWhereThePeerIsKnownToBe() {
  for (const char* named : {"198.51.100.1", "192.168.1.20", "2001:db8:9::1"}) {
    check(Nat::kOn, named, "198.51.100.9", {true, true, true, true, false});
  }
}

void autoFollowsWhenTheSdpNeedNotBeRight() {
  for (const char* named :
       {"10.1.2.3", "172.31.0.1", "192.168.1.20", "100.127.0.1", "169.254.3.4", "fd00::1", "fe80::1"}) {
    check(Nat::kAuto, named, named, {true, true, true, true, false});
    check(Nat::kAuto, named, "198.51.100.9", {true, true, true, true, false});
  }
  // a carrier whose media comes from another machine than its signalling
  check(Nat::kAuto, "198.51.100.1", "198.51.100.9", {true, true, true, true, false});
  // one that says in SDP where it signals from knows its own address
  for (const char* named : {"198.51.100.1", "172.32.0.1", "100.128.0.1", "2001:db8:9::1"}) {
    check(Nat::kAuto, named, named, {true, true, false, true, false});
  }
}

void withoutNetworksTheSignallingAddressIsAll() {
  for (const Nat nat : {Nat::kOn, Nat::kAuto}) {
    const SourcePolicy policy({}, nat, "198.51.100.9");
    CHECK(policy.admits(at("198.51.100.9", 31000), at("192.168.1.20")));
    CHECK(!policy.admits(at("198.51.100.10", 31000), at("192.168.1.20")));
  }
}

void aHeldCallTakesNothing() {
  for (const Nat nat : {Nat::kOff, Nat::kOn, Nat::kAuto}) {
    const SourcePolicy policy({"0.0.0.0/0", "::/0"}, nat, "198.51.100.9");
    CHECK(!policy.admits(at("198.51.100.9"), at("0.0.0.0")));
    CHECK(!policy.admits(at("0.0.0.0"), at("0.0.0.0")));
    CHECK(!policy.admits(at("2001:db8::1"), at("::")));
    CHECK(!policy.admits(at("198.51.100.9"), IpEndpoint()));
  }
}

void beforeItIsToldTheSdpAloneCounts() {
  const SourcePolicy policy;
  CHECK(policy.admits(at("198.51.100.1"), at("198.51.100.1")));
  CHECK(!policy.admits(at("198.51.100.1", 4002), at("198.51.100.1")));
}

void namesAreNoSources() {
  const SourcePolicy policy({"sip.example.com", "192.0.2.0/33", "192.0.2.0/", "192.0.2.0/2x", "192.0.2.0/-1", ""},
                            Nat::kOn, "sip.example.com");
  CHECK(!policy.admits(at("192.0.2.1"), at("198.51.100.1")));
  CHECK(policy.admits(at("198.51.100.1", 9), at("198.51.100.1")));
}

void bothSpellingsOfAnIPv4AddressAreEqual() {
  CHECK(*IpAddress::parse("::ffff:192.0.2.1") == *IpAddress::parse("192.0.2.1"));
  CHECK(IpNetwork::parse("192.0.2.0/24")->contains(*IpAddress::parse("::ffff:192.0.2.1")));
  CHECK(IpAddress::parse("::ffff:0.0.0.0")->isUnspecified());
  CHECK(!IpAddress::parse("::ffff:0.0.0.1")->isUnspecified());
  CHECK(!IpAddress::parse("::1")->isUnspecified());
}

void networksEndWhereTheyEnd() {
  const auto holds = [](const char* network, const char* address) {
    return IpNetwork::parse(network)->contains(*IpAddress::parse(address));
  };
  CHECK(holds("192.0.2.128/25", "192.0.2.128") && holds("192.0.2.128/25", "192.0.2.255"));
  CHECK(!holds("192.0.2.128/25", "192.0.2.127"));
  CHECK(holds("192.0.2.1/32", "192.0.2.1") && !holds("192.0.2.1/32", "192.0.2.0"));
  CHECK(holds("192.0.2.1", "192.0.2.1") && !holds("192.0.2.1", "192.0.2.2"));
  CHECK(holds("0.0.0.0/0", "192.0.2.1") && !holds("0.0.0.0/0", "2001:db8::1"));
  CHECK(holds("::/0", "2001:db8::1") && holds("2001:db8::/33", "2001:db8:7fff::1"));
  CHECK(!holds("2001:db8::/33", "2001:db8:8000::1"));
  CHECK(holds("2001:db8::1/128", "2001:db8::1") && !holds("2001:db8::1/128", "2001:db8::2"));
}

}  // namespace

int main() {
  offTakesTheSdpAtItsWord();
  onFollowsWhereThePeerIsKnownToBe();
  autoFollowsWhenTheSdpNeedNotBeRight();
  withoutNetworksTheSignallingAddressIsAll();
  aHeldCallTakesNothing();
  beforeItIsToldTheSdpAloneCounts();
  namesAreNoSources();
  bothSpellingsOfAnIPv4AddressAreEqual();
  networksEndWhereTheyEnd();
  return checkResult();
}
