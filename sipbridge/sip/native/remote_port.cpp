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

void SampleStream::feed(const int16_t* samples, size_t count) {
  std::lock_guard<std::mutex> lock(mutex_);
  fed_.insert(fed_.end(), samples, samples + count);
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
  outbox_.push(port_id_, std::string(reinterpret_cast<const char*>(samples), frame_samples_ * sizeof(int16_t)));
}

SamplePort::SamplePort(Clock& clock, PortBank& bank, Outbox& outbox, unsigned rate_hz, unsigned frame_ms)
    : RemotePort(clock, bank, rate_hz),
      stream_(std::make_shared<SampleStream>(rate_hz, rate_hz * frame_ms / 1000, id(), outbox)) {
  RemotePort::attach(stream_);
}

void SamplePort::clear() {
  stream_->clear();
  queues_->clearCapture();
}
