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
  for (auto& leg : state_->whole) {
    if (leg.port == found->second) leg.port.reset();
  }
  found->second->use({});
  found->second->clear();
  for (const PortMark& mark : found->second->takeMarks()) state_->cleared.push_back(mark);
  state_->ports.erase(found);
}

std::shared_ptr<PortQueues> PortBank::find(int id) const {
  const auto found = state_->ports.find(id);
  return found == state_->ports.end() ? nullptr : found->second;
}

void PortBank::rates(const int32_t* ids, size_t id_count, int32_t* rates_hz, size_t rate_count) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  for (size_t i = 0; i < std::min(id_count, rate_count); ++i) {
    const auto port = find(ids[i]);
    rates_hz[i] = port ? int32_t(port->rateHz()) : 0;
  }
}

void PortBank::layout(const int32_t* ids, size_t id_count, int32_t* rates_hz, size_t rate_count, const int32_t* whole,
                      size_t whole_count) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  std::unordered_map<std::shared_ptr<PortQueues>, PortUse> uses;
  for (const auto& row : state_->rows) {
    if (row.port) uses[row.port];  // no more of use, unless it is named again
  }
  for (const auto& leg : state_->whole) {
    if (leg.port) uses[leg.port];
  }
  state_->rows.clear();
  for (size_t i = 0; i < std::min(id_count, rate_count); ++i) {
    Row row{find(int(std::abs(int64_t(ids[i])))), 0, ids[i] > 0};
    if (row.port) {
      row.rate_hz = row.port->rateHz();
      PortUse& use = uses[row.port];
      use.read = true;
      use.written |= row.written;
    }
    rates_hz[i] = int32_t(row.rate_hz);
    state_->rows.push_back(std::move(row));
  }
  state_->whole.clear();
  for (size_t i = 0; i + 3 <= whole_count; i += 3) {
    const int flags = whole[i + 2];
    WholeLeg leg{whole[i], find(whole[i]), 0, (flags & kDelivered) != 0, (flags & kPulled) != 0};
    if (leg.port) {
      leg.rate_hz = leg.port->rateHz();
      PortUse& use = uses[leg.port];
      use.whole = true;
      use.listener = find(whole[i + 1]);
      use.delivered = leg.delivered;
      use.pulled = leg.pulled;
      use.muted = (flags & kMuted) != 0;
      use.heard = (flags & kHeard) != 0;
    }
    state_->whole.push_back(std::move(leg));
  }
  for (auto& entry : uses) entry.first->use(std::move(entry.second));
}

unsigned PortBank::read(int16_t* matrix, size_t size) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  unsigned stale = 0;
  for (const auto& leg : state_->whole) {
    if (!leg.port || leg.port->rateHz() != leg.rate_hz) ++stale;
  }
  if (state_->rows.empty()) return stale;
  const size_t columns = size / state_->rows.size();
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

unsigned PortBank::takeFrames(int32_t* heads, size_t head_values, int16_t* matrix, size_t size) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  const size_t rows = head_values / 2, columns = rows ? size / rows : 0;
  size_t row = 0;
  for (const auto& leg : state_->whole) {
    if (row == rows) break;
    if (!leg.port || !leg.delivered) continue;
    const size_t count = leg.port->takeDelivery(matrix + row * columns, columns);
    if (count == 0) continue;
    heads[2 * row] = leg.id;
    heads[2 * row + 1] = int32_t(count);
    ++row;
  }
  return unsigned(row);
}

unsigned PortBank::wantedFrames(int32_t* heads, size_t head_values) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  size_t row = 0;
  for (const auto& leg : state_->whole) {
    if (2 * row + 2 > head_values) break;
    const size_t count = leg.port && leg.pulled ? leg.port->wanted() : 0;
    if (count == 0) continue;
    heads[2 * row] = leg.id;
    heads[2 * row + 1] = int32_t(count);
    ++row;
  }
  return unsigned(row);
}

void PortBank::giveFrames(const int32_t* heads, size_t head_values, const int16_t* matrix, size_t size) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  const size_t rows = head_values / 2, columns = rows ? size / rows : 0;
  auto leg = state_->whole.begin();
  for (size_t row = 0; row < rows; ++row) {
    leg = std::find_if(leg, state_->whole.end(), [&](const WholeLeg& other) { return other.id == heads[2 * row]; });
    if (leg == state_->whole.end()) return;
    const size_t count = std::min(columns, size_t(std::max(0, heads[2 * row + 1])));
    if (leg->port && leg->pulled) leg->port->write(matrix + row * columns, count, leg->rate_hz);
  }
}

void PortBank::mark(int id, unsigned long long mark) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  const auto port = find(id);
  if (port) {
    port->mark(mark);
  } else {
    state_->cleared.push_back({mark, true});
  }
}

std::vector<PortMark> PortBank::takeMarks() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  std::vector<PortMark> reached;
  reached.swap(state_->cleared);
  for (const auto& entry : state_->ports) {
    for (const PortMark& mark : entry.second->takeMarks()) reached.push_back(mark);
  }
  return reached;
}

void PortBank::levels(const int32_t* ids, size_t id_count, int32_t* peaks, size_t peak_count) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  for (size_t i = 0; i < std::min(id_count, peak_count); ++i) {
    const auto port = find(ids[i]);
    peaks[i] = port ? port->takeLevel() : 0;
  }
}

unsigned PortBank::size() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return unsigned(state_->ports.size());
}
