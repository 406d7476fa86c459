// SPDX-License-Identifier: GPL-3.0-or-later
//
// Puts a Gate in front of pjsip's user agent layer.
#pragma once

#include <pjsip.h>

#include "gate.hpp"

// pjsip runs its modules by priority: transport (8), transactions (16), dialogs (32), pjsua (64). Requests are judged
// at 31: repetitions of what a transaction answers never come here, and nothing was made yet for what does. Responses are
// looked at at 15, before the transaction hands them to the dialog that parses their SDP.
class GateModule {
 public:
  // After the endpoint was made, before its first transport. One gate a process; it must live as long as the endpoint,
  // which unloads the modules as it is destroyed. Throws pj::Error.
  static void install(pjsip_endpoint* endpoint, Gate& gate);
};
