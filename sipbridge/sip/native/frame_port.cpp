// SPDX-License-Identifier: GPL-3.0-or-later
#include "frame_port.hpp"

FramePort::FramePort(PortBank& bank, unsigned rate_hz)
    : FramePortParts{bank, std::make_shared<PortQueues>(rate_hz, bank.maxMs()), 0} {
  id_ = bank_.add(queues_);
}

FramePort::~FramePort() { close(); }

void FramePort::onFrameReceived(pj::MediaFrame& frame) {
  if (frame.type != PJMEDIA_FRAME_TYPE_AUDIO || frame.buf.empty()) return;
  queues_->received(reinterpret_cast<const int16_t*>(frame.buf.data()), frame.buf.size() / sizeof(int16_t));
}

void FramePort::onFrameRequested(pj::MediaFrame& frame) {
  frame.buf.resize(frame.size);
  frame.type = PJMEDIA_FRAME_TYPE_AUDIO;
  queues_->requested(reinterpret_cast<int16_t*>(frame.buf.data()), frame.buf.size() / sizeof(int16_t));
}
