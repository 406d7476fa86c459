// SPDX-License-Identifier: GPL-3.0-or-later
// The two jitter queues of one call leg and what is counted about them.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "jitter_queue.hpp"

// A snapshot for people: milliseconds and counts, since the port was made.
struct PortStats {
  unsigned rate_hz = 0;
  double capture_depth_ms = 0, playback_depth_ms = 0;  // at this moment
  double capture_wait_ms = 0, playback_wait_ms = 0;    // of a sample, on average of the last second or so
  unsigned long long captured_frames = 0;   // decoded from the telephone
  unsigned long long concealed_frames = 0;  // of these, made up by the codec for a lost packet
  unsigned long long dropped_frames = 0;    // lost ones whose time had been bridged when the loss was known
  unsigned long long sent_frames = 0;
  unsigned long long capture_underruns = 0, playback_underruns = 0;
  double capture_concealed_ms = 0, playback_concealed_ms = 0;
  unsigned long long capture_trims = 0, playback_trims = 0;
  double overflow_ms = 0;  // of both, dropped because too much waited
  bool mixed = false;      // what is heard is made by the media thread, in the tick in which it is sent
  int capture_peak = 0, playback_peak = 0;  // largest |sample| since the last snapshot
};

// A mark that was reached: everything pushed before it was taken by the stream's send side (or cleared).
struct PortMark {
  unsigned long long id = 0;
  bool cleared = false;
};

#ifndef SWIG
class PortQueues;

// What the media thread wants of a port, by its layout.
struct PortUse {
  bool read = false;     // pieces of a tick, by read(),
  bool written = false;  // and by write()
  // Whole frames: the capture is taken frame by frame, as soon as one has come, for those that follow.
  bool whole = false;
  std::weak_ptr<PortQueues> listener;  // hears the frames directly; may be the port itself
  bool delivered = false;              // the media thread takes them, by takeFrames()
  bool muted = false;                  // they are silence for both
  bool heard = false;                  // who listens hears it already, so the first frame is not faded in
  bool pulled = false;                 // the media thread gives a frame whenever one is to be sent
  bool any() const { return read || written || whole || pulled; }
};

// Thread: the clock on one side, the media thread on the other; each holds the lock for a copy.
class PortQueues {
 public:
  PortQueues(unsigned rate_hz, unsigned max_ms)
      : rate_hz_(rate_hz), max_ms_(max_ms), capture_(rate_hz, max_ms), playback_(rate_hz, max_ms) {}

  unsigned rateHz() const { return rate_hz_.load(std::memory_order_relaxed); }

  // The stream was remade with another codec. What waited at the old rate is dropped.
  void setRate(unsigned rate_hz) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (rate_hz == rate_hz_) return;
    settleMarks(true);
    capture_.configure(rate_hz, max_ms_);
    playback_.configure(rate_hz, max_ms_);
    if (tap_) tap_->configure(rate_hz, max_ms_);
    delivery_.clear();
    bridged_ = wanted_ = 0;
    rate_hz_ = rate_hz;
  }

  // --- clock side

  // A stream begins to send; what has waited for one until now is old.
  void sendingBegins() {
    std::lock_guard<std::mutex> lock(mutex_);
    playback_.poppingBegins();
  }

  // The audio of a packet. This and the next return how many samples are new.
  size_t received(const int16_t* samples, size_t count) {
    const int peak = peakOf(samples, count);
    std::lock_guard<std::mutex> lock(mutex_);
    capture_.push(samples, count);
    ++captured_frames_;
    bridged_ = 0;
    capture_peak_ = std::max(capture_peak_, peak);
    level_ = std::max(level_, peak);
    return count;
  }

  // What the codec made up for a lost packet, or nullptr: then the queue makes it up. The part of its time that the queue
  // has bridged already is not played a second time: a loss changes no delay.
  size_t lost(const int16_t* samples, size_t count) {
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t skipped = std::min(bridged_, count);
    bridged_ -= skipped;
    if (samples) {
      capture_.push(samples + skipped, count - skipped);
    } else {
      capture_.pushHole(count - skipped);
    }
    ++captured_frames_;
    if (skipped < count) ++concealed_frames_; else ++dropped_frames_;
    return count - skipped;
  }

  // A packet came that others had overtaken, after its time. From now on there is a frame more of it, for the next one.
  void cameTooLate(size_t count) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (capture_.depth() < 2 * count) capture_.pushHole(count);
  }

  size_t captureDepth() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return capture_.depth();
  }

  // Of all that was ever received, how much has been taken or dropped.
  unsigned long long captureTaken() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return capture_.taken();
  }

  // Somebody writes what is sent, whether there is a frame of it yet or not.
  bool playbackActive() const { return active_.load(std::memory_order_relaxed); }

  bool playbackHas(size_t count) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return playback_.depth() >= count;
  }

  // Somebody is being heard and the next frame is not there yet, though it may come soon.
  bool playbackIsLate(size_t count) const {
    if (!active_.load(std::memory_order_relaxed)) return false;
    std::lock_guard<std::mutex> lock(mutex_);
    return playback_.playing() && playback_.depth() < count;
  }

  void requested(int16_t* samples, size_t count) {
    std::lock_guard<std::mutex> lock(mutex_);
    playback_.pop(samples, count);
    ++sent_frames_;
    playback_peak_ = std::max(playback_peak_, peakOf(samples, count));
    settleMarks(false);
  }

  bool whole() const { return whole_.load(std::memory_order_relaxed); }

  // What the media thread writes is sent in the very tick, so sending waits for it.
  bool fedByMedia() const { return fed_.load(std::memory_order_relaxed); }

  // The next frame of the capture, made up where it is not there, for all who want whole frames; who hears it directly.
  // `waited_ms`: how long it was there before.
  std::shared_ptr<PortQueues> takeWhole(int16_t* samples, size_t count, double waited_ms) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!use_.whole) return nullptr;
    popCapture(samples, count);
    smooth(capture_wait_ms_, waited_ms + toMs(capture_.depth()), count);
    if (use_.read) tap_->push(samples, count);
    mute(samples, count);
    if (use_.delivered && delivery_.size() <= count) delivery_.insert(delivery_.end(), samples, samples + count);
    return use_.listener.lock();
  }

  // The media thread is to give the rest of a frame of `count` samples, to be sent now.
  void want(size_t count) {
    std::lock_guard<std::mutex> lock(mutex_);
    wanted_ = use_.pulled && playback_.depth() < count ? count - playback_.depth() : 0;
  }

  // --- media side

  void use(PortUse use) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!use_.any() && use.any()) {
      capture_.poppingBegins();
      playback_.pushingBegins();
      bridged_ = 0;
    }
    if (!use_.whole) gain_ = use.heard ? 1 : 0;
    if (use.whole && use.read && !tap_) tap_ = std::make_unique<JitterQueue>(unsigned(rate_hz_), max_ms_);
    if (use.whole && use.read && !(use_.whole && use_.read)) tap_->configure(rate_hz_, max_ms_);
    if (!use.delivered) delivery_.clear();
    if (!use.pulled) wanted_ = 0;
    capture_.setWhole(use.whole);
    playback_.setWhole(!use.written);
    use_ = std::move(use);
    active_ = use_.any();
    whole_ = use_.whole;
    fed_ = use_.written || use_.pulled;
  }

  // Frames that were delivered and not taken, as many as there is room for; returns the number of samples.
  size_t takeDelivery(int16_t* samples, size_t room) {
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t count = std::min(delivery_.size(), room);
    std::copy_n(delivery_.begin(), count, samples);
    delivery_.erase(delivery_.begin(), delivery_.begin() + std::ptrdiff_t(count));
    return count;
  }

  size_t wanted() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return wanted_;
  }

  // False when the rate is another one by now; samples are then left alone.
  bool read(int16_t* samples, size_t count, unsigned rate_hz) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (rate_hz != rate_hz_) return false;
    if (use_.whole) {
      tap_->pop(samples, count);
    } else {
      popCapture(samples, count);
      smooth(capture_wait_ms_, toMs(capture_.depth()), count);
    }
    return true;
  }

  bool write(const int16_t* samples, size_t count, unsigned rate_hz) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (rate_hz != rate_hz_) return false;
    smooth(playback_wait_ms_, toMs(playback_.depth()), count);
    playback_.push(samples, count);
    wanted_ -= std::min(wanted_, count);
    return true;
  }

  // --- control, any thread
  void clear() {
    std::lock_guard<std::mutex> lock(mutex_);
    settleMarks(true);
    playback_.clear();
  }

  void clearCapture() {
    std::lock_guard<std::mutex> lock(mutex_);
    capture_.clear();
  }

  void mark(unsigned long long id) {
    std::lock_guard<std::mutex> lock(mutex_);
    marks_.push_back({id, playback_.pushed()});
    settleMarks(false);
  }

  // The largest |sample| that has come since it was asked last, apart from those of stats().
  int takeLevel() {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(level_, 0);
  }

  std::vector<PortMark> takeMarks() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<PortMark> reached;
    reached.swap(reached_);
    return reached;
  }

  PortStats stats() {
    std::lock_guard<std::mutex> lock(mutex_);
    PortStats s;
    const auto &c = capture_.stats(), &p = playback_.stats();
    s.rate_hz = rate_hz_;
    s.capture_depth_ms = toMs(capture_.depth());
    s.playback_depth_ms = toMs(playback_.depth());
    s.capture_wait_ms = capture_wait_ms_;
    s.playback_wait_ms = playback_wait_ms_;
    s.captured_frames = captured_frames_;
    s.concealed_frames = concealed_frames_;
    s.dropped_frames = dropped_frames_;
    s.sent_frames = sent_frames_;
    s.capture_underruns = c.underruns;
    s.playback_underruns = p.underruns;
    s.capture_concealed_ms = toMs(c.concealed_samples);
    s.playback_concealed_ms = toMs(p.concealed_samples);
    s.capture_trims = c.trims;
    s.playback_trims = p.trims;
    s.overflow_ms = toMs(c.overflow_samples + p.overflow_samples);
    s.mixed = fed_;
    s.capture_peak = capture_peak_;
    s.playback_peak = playback_peak_;
    capture_peak_ = playback_peak_ = 0;
    return s;
  }

 private:
  struct Mark {
    unsigned long long id;
    unsigned long long at;
  };

  double toMs(unsigned long long samples) const { return double(samples) * 1000 / rate_hz_; }

  // Follows a figure of which each value stands for so many samples, over about a second.
  void smooth(double& mean, double value, size_t count) const {
    mean += (value - mean) * std::min(1.0, double(count) / rate_hz_);
  }

  void popCapture(int16_t* samples, size_t count) {
    const size_t real = capture_.pop(samples, count);
    if (captured_frames_ > 0) bridged_ = std::min(bridged_ + (count - real), size_t(rate_hz_));
  }

  // A ramp of 4 ms wherever what was heard goes over to silence or back.
  void mute(int16_t* samples, size_t count) {
    const double end = use_.muted ? 0 : 1;
    if (gain_ == 1 && end == 1) return;
    const size_t length = gain_ == end ? 0 : std::min<size_t>(count, rate_hz_ * 4 / 1000);
    for (size_t i = 0; i < length; ++i) {
      samples[i] = int16_t(std::lrint(samples[i] * (gain_ + (end - gain_) * double(i + 1) / double(length))));
    }
    gain_ = end;
    if (end == 0) std::fill(samples + length, samples + count, int16_t(0));
  }

  static int peakOf(const int16_t* samples, size_t count) {
    int low = 0, high = 0;
    for (size_t i = 0; i < count; ++i) {
      low = std::min<int>(low, samples[i]);
      high = std::max<int>(high, samples[i]);
    }
    return std::max(high, -low);
  }

  void settleMarks(bool cleared) {
    while (!marks_.empty() && (cleared || marks_.front().at <= playback_.taken())) {
      reached_.push_back({marks_.front().id, cleared && marks_.front().at > playback_.taken()});
      marks_.pop_front();
    }
  }

  // what is looked at in each tick comes first
  mutable std::mutex mutex_;
  std::atomic<unsigned> rate_hz_;
  std::atomic<bool> active_{false}, whole_{false}, fed_{false};
  const unsigned max_ms_;  // the most either queue may hold
  JitterQueue capture_, playback_;
  PortUse use_;
  double gain_ = 0;                   // of whole frames, at the end of the last one
  std::unique_ptr<JitterQueue> tap_;  // whole frames as they are read in pieces
  std::vector<int16_t> delivery_;
  size_t wanted_ = 0;
  std::deque<Mark> marks_;
  std::vector<PortMark> reached_;
  size_t bridged_ = 0;  // samples made up on read() since the last packet that came
  unsigned long long captured_frames_ = 0, concealed_frames_ = 0, dropped_frames_ = 0, sent_frames_ = 0;
  double capture_wait_ms_ = 0, playback_wait_ms_ = 0;
  int capture_peak_ = 0, playback_peak_ = 0, level_ = 0;
};
#endif
