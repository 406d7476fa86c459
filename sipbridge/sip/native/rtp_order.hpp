// SPDX-License-Identifier: GPL-3.0-or-later
// Puts RTP packets in order before pjmedia sees them: its jitter buffer, when it is empty, takes whatever comes for the
// next packet, so it would neither notice a loss nor take a packet that was overtaken.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

// Packets in order go through at once. One that comes before its turn is held until those before it have come, or are
// given up, because what has come is about to be needed (giveUp). What comes after that is too late.
//
// Sequence numbers of RFC 3550; a jump by more than kFarthest begins anew. Used by one thread.
class RtpOrder {
 public:
  using Packet = std::vector<char>;

  enum class Turn { kNow, kLater, kTooLate, kAgain };

  void reset() {
    started_ = false;
    held_.clear();
  }

  // What becomes of a packet; one that is kLater has been copied.
  Turn take(const char* packet, size_t size) {
    if (size < kHeaderBytes) return Turn::kNow;  // none of RTP's; the stream will say so
    const uint16_t number = uint16_t(uint8_t(packet[2]) << 8 | uint8_t(packet[3]));
    const int16_t ahead = int16_t(number - next_);
    if (!started_ || ahead > kFarthest || ahead < -kFarthest) {
      held_.clear();
      started_ = true;
      next_ = uint16_t(number + 1);
      came_ = 1;
      return Turn::kNow;
    }
    if (ahead < 0) {
      const uint64_t bit = uint64_t(1) << (-ahead - 1);
      if (came_ & bit) return Turn::kAgain;
      came_ |= bit;
      return Turn::kTooLate;
    }
    if (ahead == 0) {
      goOn(true);
      return Turn::kNow;
    }
    const bool first = held_.emplace(number, Packet(packet, packet + size)).second;
    return first ? Turn::kLater : Turn::kAgain;
  }

  // A packet is missing of which later ones have come.
  bool waits() const { return !held_.empty(); }

  // The packet right behind the missing one, or nullptr.
  const Packet* following() const {
    const auto found = held_.find(uint16_t(next_ + 1));
    return found == held_.end() ? nullptr : &found->second;
  }

  // The next missing packet is not waited for any longer.
  void giveUp() { goOn(false); }

  // The next held packet whose turn it is; false when there is none.
  bool next(Packet& packet) {
    const auto found = held_.find(next_);
    if (found == held_.end()) return false;
    packet.swap(found->second);
    held_.erase(found);
    goOn(true);
    return true;
  }

 private:
  static constexpr size_t kHeaderBytes = 12;
  static constexpr int kFarthest = 50;  // packets: a second of the usual ones

  void goOn(bool came) {
    came_ = came_ << 1 | uint64_t(came);
    ++next_;
  }

  bool started_ = false;
  uint16_t next_ = 0;
  uint64_t came_ = 0;  // of the packets before that one; the last bit is the nearest
  std::map<uint16_t, Packet> held_;
};
