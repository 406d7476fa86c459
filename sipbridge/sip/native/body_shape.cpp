// SPDX-License-Identifier: GPL-3.0-or-later
#include "body_shape.hpp"

#include <arpa/inet.h>

#include <bitset>

namespace {

// pjmedia keeps this many of each and silently forgets the rest, so that its answer no longer fits the offer.
constexpr int kMaxMediaLines = 16;
constexpr int kMaxFormats = 32;
// pjmedia's SDES code has room for the tags of 64 and does not look.
constexpr int kMaxCryptoLines = 64;
constexpr int kMaxLines = 512;
constexpr std::size_t kMaxLineBytes = 2048;
constexpr int kMaxParts = 16;
constexpr std::size_t kMaxBoundaryBytes = 70;  // RFC 2046 5.1.1
constexpr int kFirstDynamicPayload = 96;
constexpr int kMaxPayload = 127;
constexpr int kMaxClockRate_hz = 384000;
constexpr int kMaxChannels = 64;
constexpr int kMaxPtime_ms = 200;
constexpr int kMaxMaxptime_ms = 65535;

char lowerChar(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool sameText(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (lowerChar(a[i]) != lowerChar(b[i])) return false;
  return true;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// Takes the text up to the separator off `rest`, the separator too.
std::string_view take(std::string_view& rest, char separator) {
  const std::size_t at = rest.find(separator);
  const std::string_view first = rest.substr(0, at);
  rest.remove_prefix(at == std::string_view::npos ? rest.size() : at + 1);
  return first;
}

// A decimal number of at most nine digits; -1 for anything else.
int number(std::string_view text) {
  if (text.empty() || text.size() > 9) return -1;
  int value = 0;
  for (char c : text) {
    if (c < '0' || c > '9') return -1;
    value = value * 10 + (c - '0');
  }
  return value;
}

// Takes the next line off `rest`, without its end.
std::string_view takeLine(std::string_view& rest) {
  std::string_view line = take(rest, '\n');
  if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  return line;
}

BodyFault malformed(std::string what) { return {400, "Bad SDP: " + std::move(what)}; }
BodyFault unacceptable(std::string what) { return {488, "Not Acceptable: " + std::move(what)}; }

// "IN IP4 192.0.2.1": a name would make the media library ask the DNS and wait for it, on the thread of all calls; a
// group address would make us send to many.
BodyFault addressFault(std::string_view text) {
  if (take(text, ' ') != "IN") return malformed("network type of an address");
  const std::string_view family = take(text, ' ');
  std::string address(take(text, '/'));  // the rest is the TTL of a group
  if (family == "IP4") {
    unsigned char bytes[4];
    if (inet_pton(AF_INET, address.c_str(), bytes) != 1) return unacceptable("media address is not numeric");
    if (bytes[0] >= 224) return unacceptable("media address of a group");
    return {};
  }
  if (family == "IP6") {
    unsigned char bytes[16];
    if (inet_pton(AF_INET6, address.c_str(), bytes) != 1) return unacceptable("media address is not numeric");
    if (bytes[0] == 0xff) return unacceptable("media address of a group");
    return {};
  }
  return malformed("family of an address");
}

// What one m= section said, until the next begins.
struct Media {
  bool used = false;  // its port is not 0
  bool rtp = false;
  int cryptoLines = 0;
  std::bitset<kMaxPayload + 1> payloads, mapped;
};

BodyFault mediaFault(const Media& media) {
  if (media.cryptoLines > kMaxCryptoLines) return unacceptable("more than 64 crypto lines");
  // The negotiation looks for the map of each and trusts that it is there.
  if (media.used && media.rtp)
    for (int payload = kFirstDynamicPayload; payload <= kMaxPayload; ++payload)
      if (media.payloads[static_cast<std::size_t>(payload)] && !media.mapped[static_cast<std::size_t>(payload)])
        return unacceptable("no rtpmap for payload type " + std::to_string(payload));
  return {};
}

BodyFault mediaLineFault(std::string_view value, Media& media) {
  media = Media();
  if (take(value, ' ').empty()) return malformed("m= without a type");
  std::string_view ports = take(value, ' ');
  const int port = number(take(ports, '/'));
  if (port < 0 || port > 65535) return malformed("m= without a port");
  media.used = port != 0;
  const std::string_view transport = take(value, ' ');
  if (transport.empty()) return malformed("m= without a transport");
  media.rtp = transport.find("RTP/") != std::string_view::npos;
  int formats = 0;
  while (!value.empty()) {
    const std::string_view format = take(value, ' ');
    if (format.empty()) continue;
    if (++formats > kMaxFormats) return unacceptable("more than 32 formats in a media line");
    if (!media.rtp) continue;
    const int payload = number(format);
    if (payload < 0 || payload > kMaxPayload) return malformed("payload type outside 0 to 127");
    media.payloads.set(static_cast<std::size_t>(payload));
  }
  if (media.used && formats == 0) return malformed("m= without a format");
  return {};
}

// "111 opus/48000/2"
BodyFault rtpmapFault(std::string_view value, Media& media) {
  const int payload = number(take(value, ' '));
  if (payload < 0 || payload > kMaxPayload) return malformed("rtpmap outside 0 to 127");
  value = trim(value);
  const std::string_view name = take(value, '/');
  if (name.empty() || name.size() > 64) return malformed("rtpmap without a name");
  for (char c : name)  // the token of RFC 4566 section 9, as far as the parser knows it
    if (c <= ' ' || c > '~' || std::string_view("\"(),/:;<=>?@[\\]").find(c) != std::string_view::npos)
      return malformed("rtpmap name");
  const int rate_hz = number(take(value, '/'));
  if (rate_hz < 1 || rate_hz > kMaxClockRate_hz) return malformed("rtpmap clock rate");
  if (!value.empty()) {
    const int channels = number(trim(value));
    if (channels < 1 || channels > kMaxChannels) return malformed("rtpmap channels");
  }
  media.mapped.set(static_cast<std::size_t>(payload));
  return {};
}

BodyFault attributeFault(std::string_view value, bool inMedia, Media& media) {
  std::string_view rest = value;
  const std::string_view name = take(rest, ':');
  if (sameText(name, "rtpmap")) return inMedia && media.rtp ? rtpmapFault(trim(rest), media) : BodyFault();
  if (sameText(name, "crypto")) {
    ++media.cryptoLines;
  } else if (sameText(name, "ptime")) {
    // "20.0" is sent by some; the fraction means nothing.
    const int ptime_ms = number(take(rest = trim(rest), '.'));
    if (ptime_ms < 0) return malformed("ptime is no number");
    if (ptime_ms < 1 || ptime_ms > kMaxPtime_ms) return unacceptable("ptime outside 1 to 200 ms");
  } else if (sameText(name, "maxptime")) {
    const int maxptime_ms = number(take(rest = trim(rest), '.'));
    if (maxptime_ms < 1 || maxptime_ms > kMaxMaxptime_ms) return malformed("maxptime");
  } else if (sameText(name, "rtcp")) {
    const int port = number(take(rest = trim(rest), ' '));
    if (port < 0 || port > 65535) return malformed("rtcp port");
    if (!trim(rest).empty()) return addressFault(trim(rest));
  }
  return {};
}

BodyFault sdpFault(std::string_view body) {
  int lines = 0, mediaLines = 0;
  Media media;
  while (!body.empty()) {
    const std::string_view line = takeLine(body);
    if (line.empty()) continue;  // the parser ends at the first one that is not at the end
    if (++lines > kMaxLines) return unacceptable("more than 512 lines");
    if (line.size() > kMaxLineBytes) return unacceptable("a line of more than 2048 bytes");
    for (unsigned char c : line)
      if (c < ' ' && c != '\t') return malformed("control character");
    if (line.size() < 2 || line[0] < 'a' || line[0] > 'z' || line[1] != '=') return malformed("a line without a type");
    const std::string_view value = line.substr(2);
    BodyFault fault;
    switch (line[0]) {
      case 'm':
        if (++mediaLines > kMaxMediaLines) return unacceptable("more than 16 media lines");
        fault = mediaFault(media);
        if (!fault) fault = mediaLineFault(value, media);
        break;
      case 'a':
        fault = attributeFault(value, mediaLines > 0, media);
        break;
      case 'c':
        fault = addressFault(trim(value));
        break;
      default:
        break;
    }
    if (fault) return fault;
  }
  return mediaFault(media);
}

// The value of a parameter of a Content-Type, quotes removed.
std::string_view parameter(std::string_view contentType, std::string_view wanted) {
  take(contentType, ';');
  while (!contentType.empty()) {
    std::string_view value = take(contentType, ';');
    const std::string_view name = trim(take(value, '='));
    if (!sameText(name, wanted)) continue;
    value = trim(value);
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"') value = value.substr(1, value.size() - 2);
    return value;
  }
  return {};
}

std::string_view mediaType(std::string_view contentType) { return trim(take(contentType, ';')); }

bool isMultipart(std::string_view type) { return type.size() > 10 && sameText(type.substr(0, 10), "multipart/"); }

// What the parts hold is judged one by one, as pjsip parsed them: it knows folded and compact headers.
BodyFault multipartFault(std::string_view contentType, std::string_view body) {
  const std::string_view boundary = parameter(contentType, "boundary");
  if (boundary.empty() || boundary.size() > kMaxBoundaryBytes) return {400, "Bad multipart: no boundary"};
  const std::string delimiter = "--" + std::string(boundary);
  std::size_t at = body.find(delimiter);
  int parts = 0;
  while (at != std::string_view::npos) {
    std::string_view rest = body.substr(at + delimiter.size());
    if (rest.substr(0, 2) == "--")
      return parts > 0 ? BodyFault() : BodyFault{400, "Bad multipart: no part"};
    if (++parts > kMaxParts) return {400, "Bad multipart: more than 16 parts"};
    if (!trim(takeLine(rest)).empty()) return {400, "Bad multipart: text after a boundary"};
    const std::size_t end = rest.find(delimiter);
    if (end == std::string_view::npos) break;
    const std::string_view part = rest.substr(0, end);
    if (trim(part).empty() || part == "\r\n" || part == "\n") return {400, "Bad multipart: an empty part"};
    at = static_cast<std::size_t>(rest.data() - body.data()) + end;
  }
  return {400, "Bad multipart: no end"};
}

}  // namespace

BodyFault bodyFault(std::string_view contentType, std::string_view body, std::size_t maxBytes) {
  if (body.size() > maxBytes) return {413, "Body of more than " + std::to_string(maxBytes) + " bytes"};
  const std::string_view type = mediaType(contentType);
  if (isMultipart(type)) return multipartFault(contentType, body);
  return sameText(type, "application/sdp") ? sdpFault(body) : BodyFault();
}

bool namesSrtp(std::string_view sdp) {
  while (!sdp.empty()) {
    std::string_view line = takeLine(sdp);
    if (line.substr(0, 2) != "m=") continue;
    take(line, ' ');  // the type
    take(line, ' ');  // the port
    if (take(line, ' ').find("RTP/SAVP") != std::string_view::npos) return true;
  }
  return false;
}
