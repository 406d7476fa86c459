// SPDX-License-Identifier: GPL-3.0-or-later
//
// The whole test framework of the native code: CHECK prints what failed and where, checkResult() is main's
// return value. The tests need a compiler and nothing else.
#pragma once

#include <cstdio>

inline int& checkFailures() {
  static int failures = 0;
  return failures;
}

inline int& checkCount() {
  static int count = 0;
  return count;
}

#define CHECK(condition)                                                             \
  do {                                                                             \
    ++checkCount();                                                              \
    if (!(condition)) {                                                          \
      ++checkFailures();                                                       \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                            \
  } while (false)

inline int checkResult() {
  std::fprintf(stderr, "%d checks, %d failed\n", checkCount(), checkFailures());
  return checkFailures() == 0 ? 0 : 1;
}
