// SPDX-License-Identifier: GPL-3.0-or-later
#include "engine.hpp"

#include <fcntl.h>
#include <pjmedia-codec.h>
#include <pjsua-lib/pjsua.h>
#include <pjsua-lib/pjsua_internal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cctype>
#include <cstring>

#include "gate_module.hpp"
#include "rtp_sockets.hpp"

#define THIS_FILE "engine.cpp"
using pj::Error;  // pjsua2's macros name these without their namespaces
using std::string;

namespace {

Engine* g_engine = nullptr;  // pjlib's log and pjsua's callbacks carry no pointer of ours

// The digit of an INFO body: "Signal=5\r\nDuration=160" (application/dtmf-relay) or a bare "5" (application/dtmf).
bool parseInfoDigit(const std::string& subtype, const std::string& body, EngineEvent& event) {
  const auto valid = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) || std::strchr("*#ABCD", c); };
  if (subtype == "dtmf") {
    for (char c : body) {
      if (std::isspace(static_cast<unsigned char>(c))) continue;
      event.digit = char(std::toupper(static_cast<unsigned char>(c)));
      return valid(event.digit[0]);
    }
    return false;
  }
  size_t at = 0;
  while (at < body.size()) {
    const size_t end = std::min(body.find_first_of("\r\n", at), body.size());
    const std::string line = body.substr(at, end - at);
    at = end + 1;
    const size_t equals = line.find('=');
    if (equals == std::string::npos) continue;
    std::string key, value;
    for (char c : line.substr(0, equals)) if (!std::isspace(static_cast<unsigned char>(c))) key += char(std::tolower(static_cast<unsigned char>(c)));
    for (char c : line.substr(equals + 1)) if (!std::isspace(static_cast<unsigned char>(c))) value += char(std::toupper(static_cast<unsigned char>(c)));
    if (key == "signal" && value.size() == 1 && valid(value[0])) event.digit = value;
    if (key == "signal" && (value == "10" || value == "11")) event.digit = value == "10" ? "*" : "#";  // RFC 4733 event codes
    if (key == "duration") event.duration_ms = unsigned(std::strtoul(value.c_str(), nullptr, 10));
  }
  return !event.digit.empty();
}

}  // namespace

Engine::Engine(unsigned tick_ms, unsigned jitter_max_ms)
    : clock_(tick_ms), bank_(tick_ms, jitter_max_ms), receiver_(std::make_shared<RtpReceiver>()) {
  g_engine = this;
  pj_log_set_log_func(&Engine::onLog);
}

Engine::~Engine() {
  clock_.stop();
  g_engine = nullptr;
}

void Engine::install() PJSUA2_THROW(pj::Error) {
  pj_log_set_log_func(&Engine::onLog);
  // The level that other bridges and telephones have: with pjmedia's own setting G.722 is 6 dB louder than G.711.
  pjmedia_codec_g722_set_pcm_shift(1);
  // Concealment by pjmedia's own PLC delays all that a decoder gives by 5 ms. The jitter queue conceals for these.
  for (const char* codec : {"PCMU/8000", "PCMA/8000", "G722/16000", "GSM/8000"}) {
    const pj_str_t id = {const_cast<char*>(codec), pj_ssize_t(std::strlen(codec))};
    pjmedia_codec_param settings;
    if (pjsua_codec_get_param(&id, &settings) != PJ_SUCCESS) continue;  // it is not compiled in
    settings.setting.plc = 0;
    PJSUA2_CHECK_EXPR(pjsua_codec_set_param(&id, &settings));
  }
  pjsua_var.ua_cfg.cb.on_call_tsx_state = &Engine::onCallTsxState;
  pjsua_var.ua_cfg.cb.on_acc_find_for_incoming = &Engine::onAccFindForIncoming;
  pjsua_var.ua_cfg.cb.on_call_transfer_request = nullptr;
  pjsua_var.ua_cfg.cb.on_call_transfer_request2 = &Engine::onTransferRequest;
  pjsua_var.ua_cfg.cb.on_call_replace_request2 = &Engine::onReplaceRequest;
  pjsua_var.ua_cfg.cb.on_dtmf_event = nullptr;  // each stream tells the engine itself, not pjsua2's bounded job queue

  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, wake_sockets_) != 0) {
    throw Error(PJ_RETURN_OS_ERROR(errno), "install", "socketpair", THIS_FILE, __LINE__);
  }
  pool_ = pjsua_pool_create("engine", 512, 512);
  pj_ioqueue_callback callback{};
  callback.on_read_complete = &Engine::onWake;
  PJSUA2_CHECK_EXPR(pj_ioqueue_register_sock(pool_, pjsip_endpt_get_ioqueue(pjsua_get_pjsip_endpt()), wake_sockets_[0],
                                             this, &callback, &wake_key_));
  pj_ioqueue_op_key_init(&wake_op_, sizeof wake_op_);
  onWake(wake_key_, &wake_op_, -PJ_EPENDING);
  GateModule::install(pjsua_get_pjsip_endpt(), gate_);
}

void Engine::startClock() {
  pjmedia_endpt_stop_threads(pjsua_var.med_endpt);  // the clock reads the sockets
  clock_.start(
      [] {
        static thread_local pj_thread_desc description;
        static thread_local pj_thread_t* thread;
        pj_thread_register("clock", description, &thread);
      },
      [receiver = receiver_] { receiver->receive(); }, [outbox = outbox_]() mutable { outbox.flush(); });
}

void Engine::uninstall() {
  clock_.stop();
  if (wake_key_) pj_ioqueue_unregister(wake_key_);  // closes its socket too
  wake_key_ = nullptr;
  if (wake_sockets_[1] >= 0) close(wake_sockets_[1]);
  wake_sockets_[0] = wake_sockets_[1] = -1;
  if (pool_) pj_pool_release(pool_);
  pool_ = nullptr;
}

void Engine::wake() {
  if (awake_.exchange(true)) return;
  const char byte = 1;
  if (wake_sockets_[1] >= 0 && ::send(wake_sockets_[1], &byte, 1, MSG_NOSIGNAL) < 0) awake_ = false;
}

void Engine::onWake(pj_ioqueue_key_t* key, pj_ioqueue_op_key_t* op, pj_ssize_t) {
  auto* engine = static_cast<Engine*>(pj_ioqueue_get_user_data(key));
  for (;;) {
    engine->awake_ = false;
    engine->wake_size_ = sizeof engine->wake_buffer_;
    if (pj_ioqueue_recv(key, op, engine->wake_buffer_, &engine->wake_size_, 0) != PJ_SUCCESS) return;
    if (engine->wake_size_ <= 0) return;
  }
}

// The call that needed the connection only learns that some certificate was not good.
void Engine::onTransportState(const pj::OnTransportStateParam& prm) {
  const pj::TlsInfo& tls = prm.tlsInfo;
  if (prm.lastError != PJSIP_TLS_ECERTVERIF || tls.isEmpty()) return;
  std::string faults;
  for (const std::string& fault : tls.verifyMsgs) faults += (faults.empty() ? "" : "; ") + fault;
  PJ_LOG(2, (THIS_FILE, "the certificate of %s (%s) is refused: %s", tls.remoteAddr.c_str(),
             tls.remoteCertInfo.subjectCn.c_str(), faults.c_str()));
}

void Engine::push(EngineEvent event) {
  {
    std::lock_guard<std::mutex> lock(events_mutex_);
    events_.push_back(std::move(event));
  }
  wake();
}

std::vector<EngineEvent> Engine::takeEvents() {
  std::lock_guard<std::mutex> lock(events_mutex_);
  std::vector<EngineEvent> taken;
  taken.swap(events_);
  return taken;
}

std::vector<EngineLog> Engine::takeLog() {
  std::lock_guard<std::mutex> lock(log_mutex_);
  std::vector<EngineLog> taken(log_.begin(), log_.end());
  log_.clear();
  return taken;
}

void Engine::onLog(int level, const char* data, int length) {
  if (!g_engine) return;
  while (length > 0 && (data[length - 1] == '\n' || data[length - 1] == '\r')) --length;
  std::lock_guard<std::mutex> lock(g_engine->log_mutex_);
  if (g_engine->log_.size() >= kLogLines) {
    ++g_engine->dropped_log_lines_;
    return;
  }
  g_engine->log_.push_back({level, std::string(data, size_t(length))});
}

void Engine::onTelephoneEvent(pjmedia_stream*, void* user, const pjmedia_stream_dtmf_event* event) {
  if (!g_engine || (event->flags & PJMEDIA_STREAM_DTMF_IS_UPDATE)) return;
  EngineEvent told;
  told.kind = EngineEvent::kTelephoneEvent;
  told.port_id = int(reinterpret_cast<intptr_t>(user));
  told.digit = char(event->digit);
  told.duration_ms = event->duration;
  g_engine->push(std::move(told));
}

void Engine::onCallTsxState(pjsua_call_id call_id, pjsip_transaction* tsx, pjsip_event* event) {
  static const pjsip_method info = {PJSIP_OTHER_METHOD, {const_cast<char*>("INFO"), 4}};
  if (!g_engine || tsx->role != PJSIP_ROLE_UAS || tsx->state != PJSIP_TSX_STATE_TRYING ||
      pjsip_method_cmp(&tsx->method, &info) != 0 || event->body.tsx_state.type != PJSIP_EVENT_RX_MSG) {
    return;
  }
  pjsip_rx_data* rdata = event->body.tsx_state.src.rdata;
  const pjsip_msg_body* body = rdata->msg_info.msg->body;
  if (!body || pj_stricmp2(&body->content_type.type, "application") != 0) return;
  std::string subtype(body->content_type.subtype.ptr, size_t(body->content_type.subtype.slen));
  for (char& c : subtype) c = char(std::tolower(static_cast<unsigned char>(c)));
  if (subtype != "dtmf" && subtype != "dtmf-relay") return;
  EngineEvent told;
  told.kind = EngineEvent::kInfoDigit;
  told.call_id = call_id;
  const bool understood = parseInfoDigit(subtype, std::string(static_cast<const char*>(body->data), body->len), told);
  pjsip_dlg_respond(pjsip_rdata_get_dlg(rdata) ? pjsip_rdata_get_dlg(rdata) : pjsua_var.calls[call_id].inv->dlg, rdata,
                    understood ? 200 : 400, nullptr, nullptr, nullptr);
  if (understood) g_engine->push(std::move(told));
}

// Left alone, pjsua would dial whatever a far side asks for.
void Engine::onTransferRequest(pjsua_call_id, const pj_str_t*, pjsip_status_code* code, pjsua_call_setting*) {
  *code = PJSIP_SC_DECLINE;
}

void Engine::onReplaceRequest(pjsua_call_id, pjsip_rx_data*, int* code, pj_str_t*, pjsua_call_setting*) {
  *code = PJSIP_SC_DECLINE;
}

void Engine::onRejectedIncomingCall(pj::OnRejectedIncomingCallParam& prm) {
  EngineEvent told;
  told.kind = EngineEvent::kRejected;
  told.call_id = prm.callId;
  told.code = prm.statusCode;
  told.caller = prm.remoteInfo;
  told.callee = prm.localInfo;
  told.reason = prm.reason;
  push(std::move(told));
}

void Engine::onAccFindForIncoming(const pjsip_rx_data* rdata, pjsua_acc_id* account_id) {
  if (!g_engine) return;
  const int trunk = g_engine->gate_.currentTrunk();
  if (trunk >= 0 && size_t(trunk) < g_engine->trunk_accounts_.size()) {
    const auto& accounts = g_engine->trunk_accounts_[size_t(trunk)];
    const bool v6 = (rdata->tp_info.transport->key.type & PJSIP_TRANSPORT_IPV6) != 0;
    *account_id = v6 ? accounts.second : accounts.first;
  }
  g_engine->alignRtpPorts();
}

void Engine::setTrunkAccounts(int trunk, int account_v4, int account_v6) {
  if (trunk < 0) return;
  if (trunk_accounts_.size() <= size_t(trunk)) trunk_accounts_.resize(size_t(trunk) + 1);
  trunk_accounts_[size_t(trunk)] = {account_v4, account_v6};
}

void Engine::alignRtpPorts() {
  unsigned next = next_rtp_port_;
  for (auto& account : pjsua_var.acc) {
    if (account.valid && account.next_rtp_port != next_rtp_port_ && account.next_rtp_port != 0) next = account.next_rtp_port;
  }
  for (auto& account : pjsua_var.acc) {
    if (account.valid) account.next_rtp_port = pj_uint16_t(next);
  }
  next_rtp_port_ = next;
}

EngineCounters Engine::counters() {
  EngineCounters counters;
  counters.calls = pjsua_call_get_count();
  counters.streams = streams_;
  counters.legs = clock_.stats().legs;
  counters.ports = bank_.size();
  counters.pool_bytes = pjsua_var.cp.used_size;
  counters.dropped_log_lines = dropped_log_lines_;
  counters.transactions = pjsip_tsx_layer_get_tsx_count();
  return counters;
}
