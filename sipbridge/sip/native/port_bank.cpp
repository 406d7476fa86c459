// SPDX-License-Identifier: GPL-3.0-or-later
#include "port_bank.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

int PortBank::add(std::shared_ptr<PortQueues> port) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->ports.emplace(state_->next_id, std::move(port));
  return state_->next_id++;
}

void PortBank::remove(int id) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  const auto found = state_->ports.find(id);
  if (found == state_->ports.end()) return;
  for (auto& row : state_->rows) {
    if (row.port == found->second) row.port.reset();
  }
  found->second->setActive(false);
  state_->ports.erase(found);
}

void PortBank::layout(const int32_t* ids, size_t id_count, int32_t* rates_hz, size_t rate_count) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  std::vector<Row> before;
  before.swap(state_->rows);
  for (size_t i = 0; i < std::min(id_count, rate_count); ++i) {
    const auto found = state_->ports.find(int(std::abs(int64_t(ids[i]))));
    Row row{found == state_->ports.end() ? nullptr : found->second, 0, ids[i] > 0};
    if (row.port) {
      row.rate_hz = row.port->rateHz();
      row.port->setActive(true);
    }
    rates_hz[i] = int32_t(row.rate_hz);
    state_->rows.push_back(std::move(row));
  }
  // only those that left: a port that stays must never look idle to the clock, not even for a moment
  for (auto& row : before) {
    const auto same = [&](const Row& now) { return now.port == row.port; };
    if (row.port && std::none_of(state_->rows.begin(), state_->rows.end(), same)) row.port->setActive(false);
  }
}

unsigned PortBank::read(int16_t* matrix, size_t size) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->rows.empty()) return 0;
  const size_t columns = size / state_->rows.size();
  unsigned stale = 0;
  for (size_t i = 0; i < state_->rows.size(); ++i) {
    const Row& row = state_->rows[i];
    int16_t* out = matrix + i * columns;
    if (row.port && row.port->read(out, std::min<size_t>(columns, row.rate_hz * tick_ms_ / 1000), row.rate_hz)) continue;
    std::memset(out, 0, columns * sizeof(int16_t));
    ++stale;
  }
  return stale;
}

void PortBank::write(const int16_t* matrix, size_t size) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->rows.empty()) return;
  const size_t columns = size / state_->rows.size();
  for (size_t i = 0; i < state_->rows.size(); ++i) {
    const Row& row = state_->rows[i];
    if (row.written && row.port) {
      row.port->write(matrix + i * columns, std::min<size_t>(columns, row.rate_hz * tick_ms_ / 1000), row.rate_hz);
    }
  }
}

unsigned PortBank::size() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return unsigned(state_->ports.size());
}
