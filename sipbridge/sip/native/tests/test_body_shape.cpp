// SPDX-License-Identifier: GPL-3.0-or-later
// sources: body_shape.cpp
#include "../body_shape.hpp"

#include <string>

#include "check.hpp"

namespace {

constexpr std::size_t kMaxBytes = 12000;

const std::string kHead = "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n";
const std::string kAudio = "m=audio 4000 RTP/AVP 0 101\r\na=rtpmap:101 telephone-event/8000\r\na=ptime:20\r\n";

int sdp(const std::string& text) { return bodyFault("application/sdp", text, kMaxBytes).code; }

std::string repeat(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

void ordinaryOffersPass() {
  CHECK(sdp(kHead + kAudio) == 0);
  CHECK(sdp("") == 0);
  CHECK(sdp(kHead + "m=audio 4000 RTP/AVP 0 8 18\r\na=sendonly\r\n") == 0);
  CHECK(sdp("v=0\no=- 1 1 IN IP4 a.example\ns=-\nc=IN IP4 0.0.0.0\nt=0 0\nm=audio 9 RTP/AVP 0\n") == 0);
  CHECK(sdp(kHead + "m=audio 4000/2 UDP/TLS/RTP/SAVPF 111\r\na=rtpmap:111 opus/48000/2\r\na=sendrecv\r\n") == 0);
  CHECK(sdp(kHead + kAudio + "m=video 0 RTP/AVP 96\r\n") == 0);  // refused media needs no map
  CHECK(sdp(kHead + kAudio + "m=image 5000 udptl t38\r\n") == 0);
  CHECK(sdp(kHead + kAudio + "a=rtcp:4001 IN IP4 192.0.2.1\r\na=rtcp:4001\r\n") == 0);
  CHECK(sdp("v=0\r\no=- 1 1 IN IP6 2001:db8::1\r\ns=-\r\nc=IN IP6 2001:db8::1\r\nt=0 0\r\n" + kAudio) == 0);
  CHECK(sdp(kHead + repeat(kAudio, 16)) == 0);
  CHECK(sdp(kHead + kAudio + repeat("a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:abc\r\n", 64)) == 0);
}

void whatTheParsersChokeOnIsRefused() {
  CHECK(sdp(kHead + repeat(kAudio, 17)) == 488);
  CHECK(sdp(kHead + repeat(kAudio, 100)) == 488);
  CHECK(sdp(kHead + kAudio + repeat("a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:abc\r\n", 65)) == 488);
  CHECK(sdp(kHead + repeat("a=crypto:1 x inline:y\r\n", 70) + kAudio) == 488);
  CHECK(sdp(kHead + "m=audio 4000 RTP/AVP 96\r\n") == 488);
  CHECK(sdp(kHead + "m=audio 4000 RTP/AVP 0 96\r\nm=audio 4002 RTP/AVP 0\r\na=rtpmap:96 opus/48000\r\n") == 488);
  CHECK(sdp(kHead + "m=audio 4000 RTP/AVP 65535\r\n") == 400);
  CHECK(sdp(kHead + "m=audio 4000 RTP/AVP -1\r\n") == 400);
  CHECK(sdp(kHead + "m=audio 4000 RTP/AVP 99999999999999999999\r\n") == 400);
  CHECK(sdp(kHead + "m=audio 70000 RTP/AVP 0\r\n") == 400);
  CHECK(sdp(kHead + "m=audio 4000 RTP/AVP\r\n") == 400);
  CHECK(sdp(kHead + "m=\r\n") == 400);
  CHECK(sdp(kHead + "m=audio 4000 RTP/AVP" + repeat(" 0", 33) + "\r\n") == 488);
  for (const char* map : {"65535 opus/48000", "96", "96 opus", "96 opus/", "96 opus/0", "96 opus/x", "96 /8000",
                          "96 opus/8000/0", "96 opus/8000/65535", "x opus/8000", "96 o(pus/8000", ""})
    CHECK(sdp(kHead + "m=audio 4000 RTP/AVP 0\r\na=rtpmap:" + map + "\r\n") == 400);
  CHECK(sdp(kHead + kAudio + "a=ptime:0\r\n") == 488);
  CHECK(sdp(kHead + kAudio + "a=ptime:1\r\n") == 0);
  CHECK(sdp(kHead + kAudio + "a=ptime:65535\r\n") == 488);
  CHECK(sdp(kHead + kAudio + "a=ptime:99999999999\r\n") == 400);
  CHECK(sdp(kHead + kAudio + "a=ptime:\r\n") == 400);
  CHECK(sdp(kHead + kAudio + "a=maxptime:-1\r\n") == 400);
}

void addressesAreNumericAndOfOne() {
  CHECK(sdp("v=0\r\nc=IN IP4 slow.example.com\r\n" + kAudio) == 488);
  CHECK(sdp("v=0\r\nc=IN IP4 239.1.1.1/127\r\n" + kAudio) == 488);
  CHECK(sdp("v=0\r\nc=IN IP4 255.255.255.255\r\n" + kAudio) == 488);
  CHECK(sdp("v=0\r\nc=IN IP6 ff02::1\r\n" + kAudio) == 488);
  CHECK(sdp("v=0\r\nc=IN IP4 2001:db8::1\r\n" + kAudio) == 488);
  CHECK(sdp("v=0\r\nc=IN IPX 1\r\n" + kAudio) == 400);
  CHECK(sdp("v=0\r\nc=\r\n" + kAudio) == 400);
  CHECK(sdp(kHead + kAudio + "a=rtcp:4001 IN IP4 slow.example.com\r\n") == 488);
  CHECK(sdp(kHead + kAudio + "a=rtcp:70000\r\n") == 400);
}

void garbageIsNamed() {
  CHECK(sdp("garbage") == 400);
  CHECK(sdp("v") == 400);
  CHECK(sdp("=0\r\n") == 400);
  CHECK(sdp(std::string("v=0\r\ns=a\0b\r\n", 11)) == 400);
  CHECK(sdp("v=0\r\ns=\x01\r\n") == 400);
  CHECK(sdp("v=0\r\na=" + std::string(3000, 'a') + "\r\n") == 488);
  CHECK(sdp("v=0\r\n" + repeat("a=x\r\n", 600)) == 488);
  CHECK(bodyFault("application/sdp", std::string(kMaxBytes + 1, 'v'), kMaxBytes).code == 413);
  CHECK(bodyFault("application/dtmf-relay", "Signal=5", kMaxBytes).code == 0);
  CHECK(bodyFault("", "anything", kMaxBytes).code == 0);
  CHECK(bodyFault("APPLICATION/SDP ; charset=x", "garbage", kMaxBytes).code == 400);
  CHECK(!bodyFault("application/sdp", "garbage", kMaxBytes).phrase.empty());
}

void multipartsHaveParts() {
  const std::string type = "multipart/mixed;boundary=\"b1\"";
  const auto code = [&](const std::string& body) { return bodyFault(type, body, kMaxBytes).code; };
  const std::string part = "--b1\r\nContent-Type: application/sdp\r\n\r\n";
  CHECK(code(part + kHead + kAudio + "\r\n--b1--\r\n") == 0);
  CHECK(code("preamble\r\n" + part + kHead + kAudio + "\r\n--b1\r\nContent-Type: text/x\r\n\r\ny\r\n--b1--") == 0);
  CHECK(code("") == 400);
  CHECK(code("--b1--\r\n") == 400);
  CHECK(code("--b1\r\n") == 400);
  CHECK(code("--b1\r\n--b1--\r\n") == 400);
  CHECK(code("--b1\r\n\r\n--b1--\r\n") == 400);
  CHECK(code("--b1 x\r\ny\r\n--b1--\r\n") == 400);
  CHECK(code(part + kHead) == 400);
  CHECK(code(repeat("--b1\r\n\r\nx\r\n", 17) + "--b1--") == 400);
  CHECK(bodyFault("multipart/mixed", "--b1--", kMaxBytes).code == 400);
  CHECK(bodyFault("multipart/mixed;boundary=", "--b1--", kMaxBytes).code == 400);
  CHECK(bodyFault("Multipart/Mixed ; x=y; Boundary=b1", part + "y\r\n--b1--", kMaxBytes).code == 0);
}

// Whatever is cut off or changed: an answer, and nothing read outside (the address sanitizer watches).
void noInputHarms() {
  const std::string whole = "--b1\r\nContent-Type: application/sdp\r\n\r\n" + kHead + kAudio +
                            "a=rtcp:1 IN IP4 1.2.3.4\r\na=crypto:1 x\r\n\r\n--b1--\r\n";
  unsigned state = 1;
  for (std::size_t length = 0; length <= whole.size(); ++length) {
    for (int round = 0; round < 20; ++round) {
      std::string text = whole.substr(0, length);
      for (int change = 0; change < round && !text.empty(); ++change) {
        state = state * 1664525u + 1013904223u;
        text[(state >> 8) % text.size()] = static_cast<char>(state >> 24);
      }
      for (const char* type : {"multipart/mixed;boundary=b1", "application/sdp"}) {
        const int code = bodyFault(type, text, kMaxBytes).code;
        CHECK(code == 0 || code == 400 || code == 488);
      }
    }
  }
}

}  // namespace

int main() {
  ordinaryOffersPass();
  whatTheParsersChokeOnIsRefused();
  addressesAreNumericAndOfOne();
  garbageIsNamed();
  multipartsHaveParts();
  noInputHarms();
  return checkResult();
}
