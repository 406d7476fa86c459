// SPDX-License-Identifier: GPL-3.0-or-later
// What all parts of the load generator share: its clock, its units, its way to give up.
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cstdint>
#include <string>

constexpr int64_t kMs = 1000000, kSecond = 1000 * kMs;
constexpr int64_t kFrame = 20 * kMs;
// All that is heard is looked at with 8 kHz, whatever the codec.
constexpr int kRate = 8000, kFrameSamples = 160;
constexpr int64_t kSample = 125000;  // ns

inline int64_t nowNs() {
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * kSecond + t.tv_nsec;
}

[[noreturn]] inline void fail(const std::string& text) {
  fprintf(stderr, "load: %s\n", text.c_str());
  exit(2);
}
