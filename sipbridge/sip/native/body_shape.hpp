// SPDX-License-Identifier: GPL-3.0-or-later
//
// Whether the body of a SIP message has a shape that the parsers behind us can take. It refuses what they are known
// to choke on and what no honest peer sends; what is merely wrong is theirs to answer. Pure: text in, verdict out.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

struct BodyFault {
  int code = 0;        // SIP code to answer with: 400, 413 or 488; 0 when nothing is wrong
  std::string phrase;  // what is wrong, fit for a reason phrase
  explicit operator bool() const { return code != 0; }
};

// `contentType` is the header's value with its parameters; empty when there is none. Of a multipart body the frame is
// judged; its parts are to be judged one by one.
BodyFault bodyFault(std::string_view contentType, std::string_view body, std::size_t maxBytes);

// Whether an SDP body without a fault has a stream of secure RTP (RFC 3711), used or not.
bool namesSrtp(std::string_view sdp);
