// SPDX-License-Identifier: GPL-3.0-or-later
#include "pj_stream.hpp"

#include <cstring>
#include <utility>
#include <vector>

PjStream::PjStream(pjmedia_stream* stream, std::shared_ptr<MediaSources> sources)
    : common_(reinterpret_cast<pjmedia_stream_common*>(stream)), sources_(std::move(sources)) {
  pjmedia_stream_get_port(stream, &port_);
  rate_hz_ = PJMEDIA_PIA_SRATE(&port_->info);
  frame_samples_ = PJMEDIA_PIA_SPF(&port_->info);
  pjmedia_stream_info info;
  pjmedia_stream_get_info(stream, &info);
  conceals_ = info.param->setting.plc != 0;
  const unsigned entry_ms = info.param->info.frm_ptime / (info.param->info.frm_ptime_denum ? info.param->info.frm_ptime_denum : 1);
  const unsigned frame_ms = unsigned(frame_samples_ * 1000 / rate_hz_);
  buffer_frames_ = std::max(1u, entry_ms ? frame_ms / entry_ms : 1u);
}

LegStream::Head PjStream::head() {
  if (decoded_left_ > 0) return Head::kFrame;
  const unsigned packets = sources_->packets.load(std::memory_order_relaxed);
  if (!waiting_ && packets == packets_seen_) return Head::kEmpty;
  packets_seen_ = packets;
  Head head = bufferHead();
  gap_ = head == Head::kEmpty && sources_->feed && sources_->feed->waits();
  if (gap_) head = Head::kLost;
  waiting_ = head != Head::kEmpty;
  return head;
}

LegStream::Head PjStream::bufferHead() {
  pj_mutex_lock(common_->jb_mutex);
  char type = PJMEDIA_JB_ZERO_EMPTY_FRAME, last = PJMEDIA_JB_ZERO_EMPTY_FRAME;
  pj_uint32_t samples = 0;
  pjmedia_jbuf_peek_frame(common_->jb, 0, nullptr, nullptr, &type, &samples, nullptr, nullptr);
  // a packet shorter than our frame waits for the next one
  if (type == PJMEDIA_JB_NORMAL_FRAME) {
    pjmedia_jbuf_peek_frame(common_->jb, buffer_frames_ - 1, nullptr, nullptr, &last, nullptr, nullptr, nullptr);
  }
  pj_mutex_unlock(common_->jb_mutex);
  if (type == PJMEDIA_JB_MISSING_FRAME) return Head::kLost;
  if (last == PJMEDIA_JB_ZERO_EMPTY_FRAME) return Head::kEmpty;
  if (samples > frame_samples_) decoded_left_ = unsigned(samples / frame_samples_);
  return Head::kFrame;
}

bool PjStream::get(int16_t* samples) {
  if (decoded_left_ > 0) --decoded_left_;
  bool given = true;
  if (!gap_ || conceals_) {  // for an empty buffer pjmedia gives what the codec makes up
    pjmedia_frame frame;
    std::memset(&frame, 0, sizeof frame);
    frame.buf = samples;
    frame.size = frame_samples_ * sizeof(int16_t);
    given = pjmedia_port_get_frame(port_, &frame) == PJ_SUCCESS && frame.type == PJMEDIA_FRAME_TYPE_AUDIO;
  }
  if (gap_ && sources_->feed) sources_->feed->giveUp();
  gap_ = false;
  return given;
}

unsigned PjStream::late() {
  const unsigned late = sources_->late_packets.load(std::memory_order_relaxed);
  return late - std::exchange(late_seen_, late);
}

void PjStream::put(const int16_t* samples) {
  static const std::vector<int16_t> kSilence(48000 * 120 / 1000);  // no codec has longer frames
  const bool silent = sources_->silent.load(std::memory_order_relaxed) && frame_samples_ <= kSilence.size();
  pjmedia_frame frame;
  std::memset(&frame, 0, sizeof frame);
  frame.type = PJMEDIA_FRAME_TYPE_AUDIO;
  frame.buf = const_cast<int16_t*>(silent ? kSilence.data() : samples);
  frame.size = frame_samples_ * sizeof(int16_t);
  frame.timestamp.u64 = sent_samples_;
  sent_samples_ += frame_samples_;
  pjmedia_port_put_frame(port_, &frame);
}
