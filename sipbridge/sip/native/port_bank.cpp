// SPDX-License-Identifier: GPL-3.0-or-later
#include "port_bank.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

int PortBank::add(std::shared_ptr<PortQueues> port) {
  std::lock_guard<std::mutex> lock(mutex_);
  ports_.emplace(next_id_, std::move(port));
  return next_id_++;
}

void PortBank::remove(int id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = ports_.find(id);
  if (found == ports_.end()) return;
  for (auto& row : rows_) {
    if (row.port == found->second) row.port.reset();
  }
  found->second->setActive(false);
  ports_.erase(found);
}

void PortBank::layout(const int32_t* ids, size_t id_count, int32_t* rates_hz, size_t rate_count) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Row> before;
  before.swap(rows_);
  for (size_t i = 0; i < std::min(id_count, rate_count); ++i) {
    const auto found = ports_.find(int(std::abs(int64_t(ids[i]))));
    Row row{found == ports_.end() ? nullptr : found->second, 0, ids[i] > 0};
    if (row.port) {
      row.rate_hz = row.port->rateHz();
      row.port->setActive(true);
    }
    rates_hz[i] = int32_t(row.rate_hz);
    rows_.push_back(std::move(row));
  }
  // only those that left: a port that stays must never look idle to the clock, not even for a moment
  for (auto& row : before) {
    const auto same = [&](const Row& now) { return now.port == row.port; };
    if (row.port && std::none_of(rows_.begin(), rows_.end(), same)) row.port->setActive(false);
  }
}

unsigned PortBank::read(int16_t* matrix, size_t size) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (rows_.empty()) return 0;
  const size_t columns = size / rows_.size();
  unsigned stale = 0;
  for (size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    int16_t* out = matrix + i * columns;
    if (row.port && row.port->read(out, std::min<size_t>(columns, row.rate_hz * tick_ms_ / 1000), row.rate_hz)) continue;
    std::memset(out, 0, columns * sizeof(int16_t));
    ++stale;
  }
  return stale;
}

void PortBank::write(const int16_t* matrix, size_t size) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (rows_.empty()) return;
  const size_t columns = size / rows_.size();
  for (size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    if (row.written && row.port) {
      row.port->write(matrix + i * columns, std::min<size_t>(columns, row.rate_hz * tick_ms_ / 1000), row.rate_hz);
    }
  }
}

unsigned PortBank::size() {
  std::lock_guard<std::mutex> lock(mutex_);
  return unsigned(ports_.size());
}
