// SPDX-License-Identifier: GPL-3.0-or-later
// The two jitter queues of one call leg and what is counted about them.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "jitter_queue.hpp"

// A snapshot for people: milliseconds and counts, since the port was made.
struct PortStats {
  unsigned rate_hz = 0;
  double capture_depth_ms = 0, playback_depth_ms = 0;  // at this moment
  double mean_capture_depth_ms = 0, mean_playback_depth_ms = 0;
  unsigned long long captured_frames = 0;   // decoded from the telephone
  unsigned long long concealed_frames = 0;  // of these, made up by the codec for a lost packet
  unsigned long long dropped_frames = 0;    // lost ones whose time had been bridged when the loss was known
  unsigned long long sent_frames = 0;
  unsigned long long capture_underruns = 0, playback_underruns = 0;
  double capture_concealed_ms = 0, playback_concealed_ms = 0;
  unsigned long long capture_trims = 0, playback_trims = 0;
  double overflow_ms = 0;  // of both, dropped because too much waited
  int capture_peak = 0, playback_peak = 0;  // largest |sample| since the last snapshot
};

// A mark that was reached: everything pushed before it was taken by the stream's send side (or cleared).
struct PortMark {
  unsigned long long id = 0;
  bool cleared = false;
};

#ifndef SWIG
// Thread: the clock on one side, the media thread on the other; each holds the lock for a copy.
class PortQueues {
 public:
  PortQueues(unsigned rate_hz, unsigned max_ms)
      : max_ms_(max_ms), capture_(rate_hz, max_ms), playback_(rate_hz, max_ms), rate_hz_(rate_hz) {}

  unsigned rateHz() const { return rate_hz_.load(std::memory_order_relaxed); }

  // The stream was remade with another codec. What waited at the old rate is dropped.
  void setRate(unsigned rate_hz) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (rate_hz == rate_hz_) return;
    settleMarks(true);
    capture_.configure(rate_hz, max_ms_);
    playback_.configure(rate_hz, max_ms_);
    bridged_ = 0;
    rate_hz_ = rate_hz;
  }

  // --- clock side

  // A stream begins to send; what has waited for one until now is old.
  void sendingBegins() {
    std::lock_guard<std::mutex> lock(mutex_);
    playback_.poppingBegins();
  }

  // The audio of a packet.
  void received(const int16_t* samples, size_t count) {
    const int peak = peakOf(samples, count);
    std::lock_guard<std::mutex> lock(mutex_);
    capture_.push(samples, count);
    ++captured_frames_;
    bridged_ = 0;
    capture_peak_ = std::max(capture_peak_, peak);
  }

  // What the codec made up for a lost packet. The part of its time that the queue has bridged already is not played a
  // second time: a loss changes no delay.
  void lost(const int16_t* samples, size_t count) {
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t skipped = std::min(bridged_, count);
    bridged_ -= skipped;
    capture_.push(samples + skipped, count - skipped);
    ++captured_frames_;
    if (skipped < count) ++concealed_frames_; else ++dropped_frames_;
  }

  size_t captureDepth() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return capture_.depth();
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
    playback_depth_sum_ms_ += toMs(playback_.depth());
    playback_.pop(samples, count);
    ++sent_frames_;
    playback_peak_ = std::max(playback_peak_, peakOf(samples, count));
    settleMarks(false);
  }

  // --- media side

  // Whether somebody reads the capture and writes the playback from now on.
  void setActive(bool active) {
    if (active_.exchange(active, std::memory_order_relaxed) || !active) return;
    std::lock_guard<std::mutex> lock(mutex_);
    capture_.poppingBegins();
    playback_.pushingBegins();
    bridged_ = 0;
  }

  // False when the rate is another one by now; samples are then left alone.
  bool read(int16_t* samples, size_t count, unsigned rate_hz) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (rate_hz != rate_hz_) return false;
    capture_depth_sum_ms_ += toMs(capture_.depth());
    ++capture_reads_;
    const size_t real = capture_.pop(samples, count);
    if (captured_frames_ > 0) bridged_ = std::min(bridged_ + (count - real), size_t(rate_hz_));
    return true;
  }

  bool write(const int16_t* samples, size_t count, unsigned rate_hz) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (rate_hz != rate_hz_) return false;
    playback_.push(samples, count);
    return true;
  }

  // --- control, any thread
  void clear() {
    std::lock_guard<std::mutex> lock(mutex_);
    settleMarks(true);
    playback_.clear();
  }

  void mark(unsigned long long id) {
    std::lock_guard<std::mutex> lock(mutex_);
    marks_.push_back({id, playback_.pushed()});
    settleMarks(false);
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
    if (capture_reads_) s.mean_capture_depth_ms = capture_depth_sum_ms_ / double(capture_reads_);
    if (sent_frames_) s.mean_playback_depth_ms = playback_depth_sum_ms_ / double(sent_frames_);
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

  mutable std::mutex mutex_;
  const unsigned max_ms_;  // the most either queue may hold
  JitterQueue capture_, playback_;
  std::atomic<unsigned> rate_hz_;
  std::atomic<bool> active_{false};
  std::deque<Mark> marks_;
  std::vector<PortMark> reached_;
  size_t bridged_ = 0;  // samples made up on read() since the last packet that came
  unsigned long long captured_frames_ = 0, concealed_frames_ = 0, dropped_frames_ = 0, sent_frames_ = 0;
  double capture_depth_sum_ms_ = 0, playback_depth_sum_ms_ = 0;
  unsigned long long capture_reads_ = 0;
  int capture_peak_ = 0, playback_peak_ = 0;
};
#endif
