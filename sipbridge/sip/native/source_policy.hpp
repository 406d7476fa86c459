// SPDX-License-Identifier: GPL-3.0-or-later
// Whose packets belong to a call: a decision about addresses alone, with no SIP library in it.
#pragma once

#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

// An IPv4 or IPv6 address. IPv4 lies at ::ffff:0:0/96, so that both spellings of one address are equal.
struct IpAddress {
  std::array<uint8_t, 16> bytes{};

  static IpAddress fromV4(const void* network_order) {
    IpAddress address;
    address.bytes[10] = address.bytes[11] = 0xff;
    std::memcpy(address.bytes.data() + 12, network_order, 4);
    return address;
  }
  static IpAddress fromV6(const void* network_order) {
    IpAddress address;
    std::memcpy(address.bytes.data(), network_order, 16);
    return address;
  }
  static std::optional<IpAddress> parse(const std::string& text) {
    uint8_t raw[16];
    if (inet_pton(AF_INET, text.c_str(), raw) == 1) return fromV4(raw);
    if (inet_pton(AF_INET6, text.c_str(), raw) == 1) return fromV6(raw);
    return std::nullopt;
  }

  bool operator==(const IpAddress& other) const { return bytes == other.bytes; }
  bool operator!=(const IpAddress& other) const { return bytes != other.bytes; }

  bool isV4() const {
    return std::all_of(bytes.begin(), bytes.begin() + 10, [](uint8_t byte) { return byte == 0; }) &&
           bytes[10] == 0xff && bytes[11] == 0xff;
  }
  // 0.0.0.0 or ::, which name nobody
  bool isUnspecified() const {
    return std::all_of(bytes.begin() + (isV4() ? 12 : 0), bytes.end(), [](uint8_t byte) { return byte == 0; });
  }
};

struct IpNetwork {
  IpAddress address;
  unsigned prefix_bits = 128;  // of the 128

  // "192.0.2.0/24", "2001:db8::/32"; an address alone is a network of one.
  static std::optional<IpNetwork> parse(const std::string& text) {
    const size_t slash = text.find('/');
    const auto address = IpAddress::parse(text.substr(0, slash));
    if (!address) return std::nullopt;
    if (slash == std::string::npos) return IpNetwork{*address, 128};
    const bool v4 = text.find(':') == std::string::npos;
    unsigned bits = 0;
    const char* end = text.data() + text.size();
    const auto read = std::from_chars(text.data() + slash + 1, end, bits);
    if (read.ec != std::errc() || read.ptr != end || bits > (v4 ? 32u : 128u)) return std::nullopt;
    return IpNetwork{*address, v4 ? bits + 96 : bits};
  }

  bool contains(const IpAddress& other) const {
    const size_t whole = prefix_bits / 8;
    const unsigned rest = prefix_bits % 8;
    if (std::memcmp(address.bytes.data(), other.bytes.data(), whole) != 0) return false;
    return rest == 0 || (address.bytes[whole] ^ other.bytes[whole]) >> (8 - rest) == 0;
  }
};

// Addresses that another network cannot reach: RFC 1918, 6598 (carriers' NAT), 3927 and 4291 (link-local), 4193.
inline bool isPrivate(const IpAddress& address) {
  static const std::vector<IpNetwork> networks = [] {
    std::vector<IpNetwork> all;
    for (const char* text : {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16",
                             "fc00::/7", "fe80::/10"}) {
      all.push_back(*IpNetwork::parse(text));
    }
    return all;
  }();
  return std::any_of(networks.begin(), networks.end(), [&](const IpNetwork& n) { return n.contains(address); });
}

struct IpEndpoint {
  IpAddress address;
  uint16_t port = 0;

  bool operator==(const IpEndpoint& other) const { return address == other.address && port == other.port; }
};

enum class Nat {
  kOff,   // its packets come from where its SDP says, address and port
  kOn,    // or from any port there, from any of its networks, from where it signals
  kAuto,  // like kOn when what its SDP says cannot be or need not be right, else from any port of the SDP's address
};

// What one call takes packets from.
//
// A peer behind NAT has a media address that nobody can tell in advance. The first packet that comes does not tell
// it either: whoever sprays all ports of a server may be first ("RTP bleed"). So a changed source is followed only
// where the peer is known to be: in the networks that its trunk lists, and at the address that it signals from,
// which a registered telephone or a user with a password has no list for.
class SourcePolicy {
 public:
  // Says no to all but the SDP's address and port until it is told more.
  SourcePolicy() = default;
  // `signalling`: where the SIP messages of the call come from or go to. What is no address is passed over: a name
  // says nothing of where packets come from.
  SourcePolicy(const std::vector<std::string>& networks, Nat nat, const std::string& signalling)
      : nat_(nat), signalling_(IpAddress::parse(signalling)) {
    for (const auto& text : networks) {
      if (const auto network = IpNetwork::parse(text)) networks_.push_back(*network);
    }
  }

  // Whether a packet from `source` is the peer's, whose SDP at this moment names `named`.
  bool admits(const IpEndpoint& source, const IpEndpoint& named) const {
    if (named.address.isUnspecified()) return false;  // a hold the old way (RFC 2543): nothing is to flow
    if (source == named) return true;
    if (nat_ == Nat::kOff) return false;
    if (source.address == named.address) return true;
    if (nat_ == Nat::kAuto && !isPrivate(named.address) && signalling_ == named.address) return false;
    if (signalling_ == source.address) return true;
    return std::any_of(networks_.begin(), networks_.end(),
                       [&](const IpNetwork& network) { return network.contains(source.address); });
  }

 private:
  Nat nat_ = Nat::kOff;
  std::optional<IpAddress> signalling_;
  std::vector<IpNetwork> networks_;
};
