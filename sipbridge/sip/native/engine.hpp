// SPDX-License-Identifier: GPL-3.0-or-later
// The one endpoint of the process, with what pjsua2's own lacks: a way to wake its thread, a judge of requests, a log
// that never waits, and counters.
#pragma once
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <pjsua2.hpp>

#include "clock.hpp"
#include "gate.hpp"
#include "outbox.hpp"
#include "port_bank.hpp"

#ifndef SWIG
class RtpReceiver;
#endif

// Something that happened on a native thread and is told to Python on the SIP thread.
struct EngineEvent {
  enum Kind { kTelephoneEvent, kInfoDigit, kRejected };
  int kind = 0;
  int port_id = 0;  // whose (kTelephoneEvent)
  int call_id = -1; // whose (kInfoDigit)
  int code = 0;     // kRejected: pjsip turned an INVITE away that the gate had let in
  std::string caller, callee, reason;
  std::string digit;
  unsigned duration_ms = 0;
};

struct EngineLog {
  int level = 0;  // pjlib's: 1 error, 2 warning, 3 info, more: debug
  std::string message;
};

struct EngineCounters {
  unsigned calls = 0;          // call slots in use
  unsigned streams = 0;        // under the clock
  unsigned legs = 0;           // the clock's own count of them
  unsigned ports = 0;          // rows in the bank
  unsigned long long pool_bytes = 0;
  unsigned long long dropped_log_lines = 0;
  unsigned transactions = 0;
};

// Thread: made, started and used on the SIP thread; wake(), counters() and the gate's counters from any.
class Engine : public pj::Endpoint {
 public:
  Engine(unsigned tick_ms, unsigned jitter_max_ms);
  ~Engine() override;

  // After libInit(), before any transport: takes over the callbacks, the log and the judging of requests.
  void install() PJSUA2_THROW(pj::Error);
  // After libStart().
  void startClock();
  // Before libDestroy().
  void uninstall();

  // Makes libHandleEvents() return; from any thread, and cheap when it is already awake.
  void wake();
  std::vector<EngineEvent> takeEvents();
  std::vector<EngineLog> takeLog();
  EngineCounters counters();

  // Requests that the gate let in belong to these accounts (by media policy) by the trunk that it found and by the
  // IP version that they came with.
  void setTrunkAccounts(int trunk, int account_v4, int account_v6);
  // All accounts walk the range of RTP ports together; before each call.
  void alignRtpPorts();

  Clock& clock() { return clock_; }
  PortBank& bank() { return bank_; }
  Outbox& outbox() { return outbox_; }
  Gate& gate() { return gate_; }

#ifndef SWIG
  void onTransportState(const pj::OnTransportStateParam& prm) override;
  void onRejectedIncomingCall(pj::OnRejectedIncomingCallParam& prm) override;
  void streamAdded() { ++streams_; }
  void streamRemoved() { --streams_; }
  const std::shared_ptr<RtpReceiver>& receiver() const { return receiver_; }
  void push(EngineEvent event);
  static void onTelephoneEvent(pjmedia_stream* stream, void* user, const pjmedia_stream_dtmf_event* event);

 private:
  static constexpr size_t kLogLines = 4096;
  static void onLog(int level, const char* data, int length);
  static void onWake(pj_ioqueue_key_t* key, pj_ioqueue_op_key_t* op, pj_ssize_t bytes);
  static void onCallTsxState(pjsua_call_id call_id, pjsip_transaction* tsx, pjsip_event* event);
  static void onTransferRequest(pjsua_call_id, const pj_str_t*, pjsip_status_code* code, pjsua_call_setting*);
  static void onReplaceRequest(pjsua_call_id, pjsip_rx_data*, int* code, pj_str_t*, pjsua_call_setting*);
  static void onAccFindForIncoming(const pjsip_rx_data* rdata, pjsua_acc_id* account_id);

  Clock clock_;
  PortBank bank_;
  Outbox outbox_;
  Gate gate_;
  std::shared_ptr<RtpReceiver> receiver_;
  std::atomic<unsigned> streams_{0};

  std::atomic<bool> awake_{false};
  int wake_sockets_[2] = {-1, -1};
  pj_pool_t* pool_ = nullptr;
  pj_ioqueue_key_t* wake_key_ = nullptr;
  pj_ioqueue_op_key_t wake_op_{};
  char wake_buffer_[64];
  pj_ssize_t wake_size_ = 0;

  std::mutex events_mutex_;
  std::vector<EngineEvent> events_;
  std::mutex log_mutex_;
  std::deque<EngineLog> log_;
  std::atomic<unsigned long long> dropped_log_lines_{0};

  std::vector<std::pair<int, int>> trunk_accounts_;
  unsigned next_rtp_port_ = 0;
#endif
};
