// SPDX-License-Identifier: GPL-3.0-or-later
// sources: port_bank.cpp
#include "../port_bank.hpp"

#include <atomic>
#include <climits>
#include <thread>

#include "check.hpp"

namespace {

constexpr unsigned kTickMs = 5;
constexpr size_t kColumns = 80;  // a tick of the fastest rate here
using Samples = std::vector<int16_t>;

std::shared_ptr<PortQueues> makePort(unsigned rate_hz = 8000) { return std::make_shared<PortQueues>(rate_hz, 200); }

void receive(PortQueues& port, int16_t value) {
  const Samples samples(port.rateHz() / 50, value);
  port.received(samples.data(), samples.size());
}

int16_t send(PortQueues& port) {
  Samples samples(port.rateHz() / 200);
  port.requested(samples.data(), samples.size());
  return samples.back();
}

// A bank and the matrices of the media thread; what is not written by read() stays 99.
struct Media {
  PortBank bank{kTickMs, 200};
  std::vector<int32_t> rates_hz;
  Samples matrix;

  std::vector<int32_t> layout(const std::vector<int32_t>& ids, const std::vector<int32_t>& whole = {}) {
    rates_hz.assign(ids.size(), -1);
    bank.layout(ids.data(), ids.size(), rates_hz.data(), rates_hz.size(), whole.data(), whole.size());
    return rates_hz;
  }

  unsigned read() {
    matrix.assign(rates_hz.size() * kColumns, 99);
    return bank.read(matrix.data(), matrix.size());
  }

  void write() { bank.write(matrix.data(), matrix.size()); }

  // Whether all of row's first `count` samples have a value, and those after another.
  bool row(size_t row, size_t count, int16_t value, int16_t rest = 99) const {
    for (size_t i = 0; i < kColumns; ++i) {
      if (matrix[row * kColumns + i] != (i < count ? value : rest)) return false;
    }
    return true;
  }
};

void rowsAreThePortsInOrder() {
  Media media;
  const auto narrow = makePort(), wide = makePort(16000);
  const int narrow_id = media.bank.add(narrow), wide_id = media.bank.add(wide);
  CHECK(narrow_id > 0 && wide_id > 0 && narrow_id != wide_id);
  CHECK(media.bank.size() == 2);
  CHECK(media.bank.maxMs() == 200);
  CHECK((media.layout({wide_id, narrow_id}) == std::vector<int32_t>{16000, 8000}));
  CHECK(media.read() == 0);
  receive(*narrow, 7);
  receive(*wide, 8);
  CHECK(media.read() == 0);
  CHECK(media.row(0, 80, 8) && media.row(1, 40, 7));

  send(*narrow), send(*wide);
  media.write();
  CHECK(send(*narrow) == 7);
  CHECK(send(*wide) == 8);
  CHECK(narrow->stats().playback_depth_ms == 0);
}

void unknownIdsAreSilentRows() {
  Media media;
  const auto port = makePort();
  const int id = media.bank.add(port);
  CHECK((media.layout({id + 1, id, 0, INT_MIN, INT_MAX, -INT_MAX}) == std::vector<int32_t>{0, 8000, 0, 0, 0, 0}));
  receive(*port, 7);
  CHECK(media.read() == 5);
  CHECK(media.row(1, 40, 7));
  for (size_t row : {0, 2, 3, 4, 5}) CHECK(media.row(row, kColumns, 0));
  media.write();
  media.layout({});
  CHECK(media.read() == 0);
  media.write();
}

void negativeIdsAreOnlyRead() {
  Media media;
  const auto port = makePort();
  const int id = media.bank.add(port);
  CHECK(media.layout({-id}) == std::vector<int32_t>{8000});
  send(*port);
  receive(*port, 7);
  CHECK(media.read() == 0);
  CHECK(media.row(0, 40, 7));
  media.write();
  CHECK(port->stats().playback_depth_ms == 0);
  // but somebody does write it
  const Samples other(40, 5);
  port->write(other.data(), other.size(), 8000);
  send(*port);
  CHECK(port->playbackIsLate(160));
}

void layoutIsAsLongAsTheShorterArray() {
  PortBank bank(kTickMs, 200);
  const std::vector<int32_t> ids = {bank.add(makePort()), bank.add(makePort())};
  int32_t rates_hz[2] = {-1, -1};
  bank.layout(ids.data(), 2, rates_hz, 1, nullptr, 0);
  CHECK(rates_hz[0] == 8000 && rates_hz[1] == -1);
  Samples matrix(40, 99);
  CHECK(bank.read(matrix.data(), matrix.size()) == 0);
  CHECK(matrix == Samples(40, 0));
}

void matrixNarrowerThanATickIsNotOverrun() {
  Media media;
  media.layout({media.bank.add(makePort(48000)), media.bank.add(makePort())});
  CHECK(media.read() == 0);
  CHECK(media.row(0, kColumns, 0) && media.row(1, 40, 0));
  media.write();
}

void anotherRateMakesTheRowStale() {
  Media media;
  const auto port = makePort(), other = makePort();
  const std::vector<int32_t> ids = {media.bank.add(port), media.bank.add(other)};
  media.layout(ids);
  CHECK(media.read() == 0);
  port->setRate(16000);
  receive(*port, 7);
  receive(*other, 8);
  CHECK(media.read() == 1);
  CHECK(media.row(0, kColumns, 0) && media.row(1, 40, 8));
  media.write();
  CHECK(port->stats().playback_depth_ms == 0);
  CHECK(other->stats().playback_depth_ms == 5);
  CHECK((media.layout(ids) == std::vector<int32_t>{16000, 8000}));
  CHECK(media.read() == 0);
  CHECK(media.row(0, 80, 7));
}

void removedPortIsSilent() {
  Media media;
  const auto port = makePort();
  const int id = media.bank.add(port);
  media.layout({id});
  receive(*port, 7);
  media.bank.remove(id);
  media.bank.remove(id);
  media.bank.remove(-1);
  CHECK(media.bank.size() == 0);
  CHECK(port.use_count() == 1);  // the bank holds nothing of it
  CHECK(media.read() == 1);
  CHECK(media.row(0, kColumns, 0));
  media.write();
  CHECK(port->stats().playback_depth_ms == 0);
  CHECK(media.layout({id}) == std::vector<int32_t>{0});
  CHECK(media.bank.add(makePort()) != id);
}

void levelsAreTheLoudestSinceTheLastLook() {
  PortBank bank(kTickMs, 200);
  const auto port = makePort();
  const int id = bank.add(port);
  receive(*port, 100);
  receive(*port, -3000);
  receive(*port, 200);
  const std::vector<int32_t> ids = {id, id + 1};
  std::vector<int32_t> peaks(2, -1);
  bank.levels(ids.data(), 2, peaks.data(), 2);
  CHECK((peaks == std::vector<int32_t>{3000, 0}));
  bank.levels(ids.data(), 2, peaks.data(), 2);
  CHECK((peaks == std::vector<int32_t>{0, 0}));
  CHECK(port->stats().capture_peak == 3000);
}

void portOutlivesTheBank() {
  auto media = std::make_unique<Media>();
  PortBank bank = media->bank;
  const int id = bank.add(makePort());
  CHECK(media->bank.size() == 1);
  media.reset();
  bank.remove(id);
  CHECK(bank.size() == 0);
}

void portsOfALayoutAreWaitedFor() {
  Media media;
  const auto stays = makePort(), leaves = makePort();
  const int stays_id = media.bank.add(stays), leaves_id = media.bank.add(leaves);
  media.layout({stays_id, leaves_id});
  // only of one that is heard and written something may be late
  const auto hear = [](PortQueues& port) {
    const Samples samples(40, 7);
    send(port);
    port.write(samples.data(), samples.size(), 8000);
    send(port);
  };
  hear(*stays), hear(*leaves);
  CHECK(stays->playbackIsLate(40) && leaves->playbackIsLate(40));
  media.layout({stays_id});
  CHECK(stays->playbackIsLate(40) && !leaves->playbackIsLate(40));
  media.bank.remove(stays_id);
  CHECK(!stays->playbackIsLate(40));
}

void wholeLegsHearEachOther() {
  Media media;
  const auto a = makePort(), b = makePort();
  const int a_id = media.bank.add(a), b_id = media.bank.add(b);
  // b is tapped besides
  CHECK(media.layout({-b_id}, {a_id, b_id, PortBank::kHeard, b_id, a_id, PortBank::kHeard, 77, a_id, 0, a_id}) == std::vector<int32_t>{8000});
  CHECK(a->whole() && b->whole() && a->playbackActive() && !a->fedByMedia() && !b->fedByMedia());
  Samples frame(160);
  receive(*a, 7), receive(*b, 8);
  CHECK(a->takeWhole(frame.data(), 160, 0) == b && frame == Samples(160, 7));
  CHECK(b->takeWhole(frame.data(), 160, 0) == a && frame == Samples(160, 8));
  CHECK(media.read() == 1);  // 77 is gone
  CHECK(media.row(0, 40, 8));
  media.write();
  CHECK(b->stats().playback_depth_ms == 0);

  // one leaves
  media.layout({-b_id}, {a_id, b_id, PortBank::kHeard, b_id, a_id, PortBank::kHeard});
  CHECK(media.read() == 0);
  media.bank.remove(b_id);
  CHECK(media.read() == 2);  // its row and its frames
  CHECK(media.row(0, kColumns, 0));
  receive(*a, 7);
  CHECK(a->takeWhole(frame.data(), 160, 0) == b);  // it may live on elsewhere
  CHECK(!b->playbackActive() && !b->whole());
  media.layout({a_id}, {});
  CHECK(!a->whole() && a->fedByMedia());
  CHECK(media.read() == 0);
}

void framesAreDeliveredAndGiven() {
  Media media;
  const auto narrow = makePort(), wide = makePort(16000), deaf = makePort();
  const int narrow_id = media.bank.add(narrow), wide_id = media.bank.add(wide), deaf_id = media.bank.add(deaf);
  const int both = PortBank::kDelivered | PortBank::kPulled | PortBank::kHeard;
  media.layout({}, {narrow_id, 0, both, deaf_id, 0, PortBank::kHeard, wide_id, 0, both});
  std::vector<int32_t> heads(6, -1);
  Samples frames(3 * 320, 99), frame(320);
  CHECK(media.bank.takeFrames(heads.data(), heads.size(), frames.data(), frames.size()) == 0);
  for (auto& port : {narrow, wide, deaf}) receive(*port, port->rateHz() == 8000 ? 7 : 8), port->takeWhole(frame.data(), port->rateHz() / 50, 0);
  CHECK(media.bank.takeFrames(heads.data(), heads.size(), frames.data(), frames.size()) == 2);
  CHECK((heads == std::vector<int32_t>{narrow_id, 160, wide_id, 320, -1, -1}));
  CHECK(frames[159] == 7 && frames[160] == 99 && frames[320] == 8 && frames[639] == 8 && frames[640] == 99);

  // with too little room the rest comes later
  for (auto& port : {narrow, wide}) receive(*port, 5), port->takeWhole(frame.data(), port->rateHz() / 50, 0);
  CHECK(media.bank.takeFrames(heads.data(), 2, frames.data(), 320) == 1 && heads[0] == narrow_id);
  CHECK(media.bank.takeFrames(heads.data(), 2, frames.data(), 320) == 1 && heads[0] == wide_id);
  CHECK(media.bank.takeFrames(heads.data(), 0, frames.data(), 0) == 0);

  for (auto& port : {narrow, wide, deaf}) port->want(port->rateHz() / 50);
  CHECK(media.bank.wantedFrames(heads.data(), 2) == 1);
  CHECK(media.bank.wantedFrames(heads.data(), heads.size()) == 2);
  CHECK((heads == std::vector<int32_t>{narrow_id, 160, wide_id, 320, -1, -1} || heads[0] == narrow_id));
  CHECK(heads[2] == wide_id && heads[3] == 320);
  std::fill(frames.begin(), frames.end(), int16_t(3));
  media.bank.giveFrames(heads.data(), 4, frames.data(), 640);
  CHECK(media.bank.wantedFrames(heads.data(), heads.size()) == 0);
  CHECK(narrow->stats().playback_depth_ms == 20 && wide->stats().playback_depth_ms == 20);
  wide->requested(frame.data(), 320);
  CHECK(frame == Samples(320, 3));

  // whose rate has changed meanwhile, or who is gone or was never asked, is given nothing
  narrow->want(320);
  CHECK(media.bank.wantedFrames(heads.data(), heads.size()) == 1);
  narrow->setRate(48000);
  CHECK(media.read() == 1);
  const std::vector<int32_t> given = {narrow_id, 160, deaf_id, 160, wide_id, 320, 77, 160, narrow_id, -5};
  media.bank.giveFrames(given.data(), given.size(), Samples(5 * 320, 3).data(), 5 * 320);
  CHECK(narrow->stats().playback_depth_ms == 0 && deaf->stats().playback_depth_ms == 0);
  CHECK(wide->stats().playback_depth_ms == 20);
  media.bank.remove(wide_id);
  media.bank.giveFrames(given.data() + 4, 2, Samples(320, 3).data(), 320);
  CHECK(wide->stats().playback_depth_ms <= 20);
}

void aRowThatIsWrittenStaysSo() {
  Media media;
  const auto port = makePort();
  const int id = media.bank.add(port);
  media.layout({id, -id});
  CHECK(port->fedByMedia());
  media.layout({-id, id});
  CHECK(port->fedByMedia());
  media.layout({-id});
  CHECK(!port->fedByMedia());
}

void portsComeAndGoWhileOthersAreRead() {
  Media media;
  const auto kept = makePort();
  const int kept_id = media.bank.add(kept);
  std::atomic<int> newest{0};
  std::atomic<bool> running{true};
  std::thread sip([&] {
    for (int i = 0; i < 2000; ++i) {
      const auto port = makePort(i % 2 ? 8000 : 16000);
      const int id = media.bank.add(port);
      newest = id;
      if (i % 5 == 0) port->setRate(48000);
      if (i % 3 == 0) std::this_thread::yield();
      media.bank.remove(id);
    }
    running = false;
  });
  std::thread clock([&] {
    Samples frame(160, 5);
    while (running) {
      kept->received(frame.data(), frame.size());
      kept->requested(frame.data(), frame.size());
      std::this_thread::yield();
    }
  });
  unsigned reads = 0;
  while (running) {
    const int other = newest;
    const int flags = int(reads % 16);
    CHECK(media.layout({kept_id, other, -other}, {other, reads % 2 ? kept_id : other, flags})[0] == 8000);
    for (int i = 0; i < 3; ++i, ++reads) {
      CHECK(media.read() <= 3);
      media.write();
      int32_t heads[4];
      Samples frames(2 * 960);
      media.bank.takeFrames(heads, 4, frames.data(), frames.size());
      media.bank.giveFrames(heads, 2 * media.bank.wantedFrames(heads, 4), frames.data(), frames.size());
    }
  }
  sip.join();
  clock.join();
  CHECK(media.bank.size() == 1);
  CHECK(reads > 0);
}

}  // namespace

int main() {
  levelsAreTheLoudestSinceTheLastLook();
  rowsAreThePortsInOrder();
  unknownIdsAreSilentRows();
  negativeIdsAreOnlyRead();
  layoutIsAsLongAsTheShorterArray();
  matrixNarrowerThanATickIsNotOverrun();
  anotherRateMakesTheRowStale();
  removedPortIsSilent();
  portOutlivesTheBank();
  portsOfALayoutAreWaitedFor();
  wholeLegsHearEachOther();
  framesAreDeliveredAndGiven();
  aRowThatIsWrittenStaysSo();
  portsComeAndGoWhileOthersAreRead();
  return checkResult();
}
