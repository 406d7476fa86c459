// SPDX-License-Identifier: GPL-3.0-or-later
#include "../rtp_order.hpp"

#include <random>
#include <set>

#include "check.hpp"

namespace {

using Turn = RtpOrder::Turn;

RtpOrder::Packet packet(unsigned number) {
  RtpOrder::Packet made(20, 0);
  made[2] = char(number >> 8 & 0xff);
  made[3] = char(number & 0xff);
  return made;
}

// An order with what goes up in it.
struct Line {
  RtpOrder order;
  std::vector<unsigned> up;

  Turn take(unsigned number) {
    const auto made = packet(number);
    const Turn turn = order.take(made.data(), made.size());
    if (turn == Turn::kNow) up.push_back(number & 0xffff), follow();
    return turn;
  }
  void follow() {
    RtpOrder::Packet held;
    while (order.next(held)) up.push_back(uint8_t(held[2]) << 8 | uint8_t(held[3]));
  }
  void giveUp() { order.giveUp(), follow(); }
};

void packetsInOrderGoThrough() {
  Line line;
  for (unsigned number = 65500; number < 65700; ++number) CHECK(line.take(number) == Turn::kNow);
  CHECK(line.up.size() == 200 && !line.order.waits());
}

void overtakenPacketIsWaitedFor() {
  Line line;
  line.take(10);
  CHECK(line.take(12) == Turn::kLater && line.take(13) == Turn::kLater && line.order.waits());
  CHECK(line.take(12) == Turn::kAgain);
  CHECK(line.take(11) == Turn::kNow && !line.order.waits());
  CHECK((line.up == std::vector<unsigned>{10, 11, 12, 13}));
}

void lostPacketsAreGivenUpOneByOne() {
  Line line;
  line.take(10);
  line.take(13);
  line.giveUp();
  CHECK(line.order.waits() && line.up.size() == 1);
  line.giveUp();
  CHECK(!line.order.waits());
  CHECK((line.up == std::vector<unsigned>{10, 13}));
  CHECK(line.take(11) == Turn::kTooLate);
  CHECK(line.take(11) == Turn::kAgain);
  CHECK(line.take(13) == Turn::kAgain);
  CHECK(line.take(14) == Turn::kNow);
}

void farJumpBeginsAnew() {
  Line line;
  line.take(10);
  line.take(12);
  CHECK(line.take(5000) == Turn::kNow && !line.order.waits());
  CHECK(line.take(5001) == Turn::kNow);
  CHECK(line.take(100) == Turn::kNow);  // back: another source, or the same one after a restart
  CHECK((line.up == std::vector<unsigned>{10, 5000, 5001, 100}));
  line.order.reset();
  CHECK(line.take(99) == Turn::kNow);
}

void shortPacketsAreTheStreamsAffair() {
  RtpOrder order;
  CHECK(order.take("abc", 3) == Turn::kNow);
}

void anyOrderComesOutInOrder() {
  std::mt19937 random(7);
  for (int run = 0; run < 200; ++run) {
    Line line;
    unsigned next = random() & 0xffff;
    line.take(next++);
    std::multiset<std::pair<unsigned, unsigned>> sent;  // when, number
    for (unsigned i = 0; i < 300; ++i) {
      if (random() % 10 == 0) continue;
      sent.emplace(i + random() % 6, next + i);
      if (random() % 20 == 0) sent.emplace(i + random() % 9, next + i);
    }
    for (const auto& [when, number] : sent) {
      line.take(number);
      if (random() % 4 == 0 && line.order.waits()) line.giveUp();
    }
    for (size_t i = 1; i < line.up.size(); ++i) CHECK(int16_t(uint16_t(line.up[i] - line.up[i - 1])) > 0);
    CHECK(line.up.size() > 150);
  }
}

}  // namespace

int main() {
  packetsInOrderGoThrough();
  overtakenPacketIsWaitedFor();
  lostPacketsAreGivenUpOneByOne();
  farJumpBeginsAnew();
  shortPacketsAreTheStreamsAffair();
  anyOrderComesOutInOrder();
  return checkResult();
}
