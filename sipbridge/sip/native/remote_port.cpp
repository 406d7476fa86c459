// SPDX-License-Identifier: GPL-3.0-or-later
#include "remote_port.hpp"

#include <algorithm>
#include <string>
#include <utility>

RemotePort::RemotePort(Clock& clock, PortBank& bank, unsigned rate_hz)
    : queues_(std::make_shared<PortQueues>(rate_hz, bank.maxMs())), clock_(clock), bank_(bank), id_(bank_.add(queues_)) {}

void RemotePort::attach(std::shared_ptr<LegStream> stream) {
  clock_.attach(stream, queues_);
  stream_ = std::move(stream);
}

void RemotePort::close() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (stream_) clock_.detach(stream_.get());
  bank_.remove(id_);  // also where there is no stream yet, and will be none
  stream_.reset();
}

SampleStream::SampleStream(unsigned rate_hz, unsigned member_rate_hz, size_t frame_samples, int port_id,
                           const Outbox& outbox)
    : rate_hz_(rate_hz), frame_samples_(frame_samples), port_id_(port_id), outbox_(outbox) {
  if (member_rate_hz != rate_hz) {
    from_member_.emplace(member_rate_hz, rate_hz);
    to_member_.emplace(rate_hz, member_rate_hz);
  }
}

void SampleStream::feed(const int16_t* samples, size_t count) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (from_member_) {
    from_member_->process(samples, count, fed_);
  } else {
    fed_.insert(fed_.end(), samples, samples + count);
  }
}

void SampleStream::clear() {
  std::lock_guard<std::mutex> lock(mutex_);
  cleared_ += fed_.size();
  fed_.clear();
}

unsigned long long SampleStream::fed() {
  std::lock_guard<std::mutex> lock(mutex_);
  return cleared_ + handed_on_ + fed_.size() / frame_samples_ * frame_samples_;
}

unsigned long long SampleStream::cleared() {
  std::lock_guard<std::mutex> lock(mutex_);
  return cleared_;
}

LegStream::Head SampleStream::head() {
  std::lock_guard<std::mutex> lock(mutex_);
  return fed_.size() < frame_samples_ ? Head::kEmpty : Head::kFrame;
}

bool SampleStream::get(int16_t* samples) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (fed_.size() < frame_samples_) return false;
  std::copy_n(fed_.begin(), frame_samples_, samples);
  handed_on_ += frame_samples_;
  fed_.erase(fed_.begin(), fed_.begin() + std::ptrdiff_t(frame_samples_));
  return true;
}

void SampleStream::put(const int16_t* samples) {
  size_t count = frame_samples_;
  if (to_member_) {
    heard_.clear();
    to_member_->process(samples, count, heard_);
    samples = heard_.data();
    count = heard_.size();
  }
  outbox_.push(port_id_, std::string(reinterpret_cast<const char*>(samples), count * sizeof(int16_t)));
}

SamplePort::SamplePort(Clock& clock, PortBank& bank, Outbox& outbox, unsigned rate_hz, unsigned member_rate_hz,
                       unsigned frame_ms)
    : RemotePort(clock, bank, rate_hz),
      stream_(std::make_shared<SampleStream>(rate_hz, member_rate_hz, rate_hz * frame_ms / 1000, id(), outbox)) {
  RemotePort::attach(stream_);
}

void SamplePort::clear() {
  stream_->clear();
  queues_->clearCapture();
}
