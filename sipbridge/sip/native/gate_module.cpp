// SPDX-License-Identifier: GPL-3.0-or-later
#include "gate_module.hpp"

#include <pjsua-lib/pjsua.h>
#include <pjsua-lib/pjsua_internal.h>

#include <algorithm>
#include <ctime>
#include <pjsua2.hpp>

#include "body_shape.hpp"

#define THIS_FILE "gate"  // names its lines in pjsip's log

namespace {

constexpr std::size_t kUriBuffer = 1024;

pjsip_endpoint* g_endpoint = nullptr;
Gate* g_gate = nullptr;
pjsip_module g_requests, g_responses;

std::string_view view(const pj_str_t& text) {
  return text.slen > 0 ? std::string_view(text.ptr, static_cast<std::size_t>(text.slen)) : std::string_view();
}

std::string copy(const pj_str_t& text) { return std::string(view(text)); }

pj_str_t borrowed(const std::string& text) {
  return {const_cast<char*>(text.data()), static_cast<pj_ssize_t>(text.size())};
}

bool isStream(const pjsip_transport* transport) { return (transport->flag & PJSIP_TRANSPORT_DATAGRAM) == 0; }

std::string transportName(const pjsip_transport* transport) {
  if (!isStream(transport)) return "udp";
  return transport->flag & PJSIP_TRANSPORT_SECURE ? "tls" : "tcp";
}

// The URI as text; one that does not fit is reported as longer than any limit.
std::string printed(pjsip_uri_context_e context, const void* uri) {
  char buffer[kUriBuffer];
  const int length = uri ? pjsip_uri_print(context, uri, buffer, sizeof buffer) : 0;
  return length < 0 ? std::string(kUriBuffer, '?') : std::string(buffer, static_cast<std::size_t>(length));
}

const pjsip_sip_uri* sipUri(const void* uri) {
  const void* bare = uri ? pjsip_uri_get_uri(uri) : nullptr;
  if (!bare || !(PJSIP_URI_SCHEME_IS_SIP(bare) || PJSIP_URI_SCHEME_IS_SIPS(bare))) return nullptr;
  return static_cast<const pjsip_sip_uri*>(bare);
}

std::string userOf(const void* uri) {
  const pjsip_sip_uri* sip = sipUri(uri);
  return sip ? copy(sip->user) : "";
}

// The Request-URI as it was sent; the client's digest is over this text.
std::string requestUri(const pjsip_rx_data* rdata) {
  std::string_view line(rdata->msg_info.msg_buf, static_cast<std::size_t>(rdata->msg_info.len));
  line = line.substr(0, line.find_first_of("\r\n"));
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  if (first == std::string_view::npos || last <= first) return "";
  return std::string(line.substr(first + 1, last - first - 1));
}

GateRequest::Method methodOf(const pjsip_method& method) {
  using Method = GateRequest::Method;
  switch (method.id) {
    case PJSIP_INVITE_METHOD: return Method::Invite;
    case PJSIP_ACK_METHOD: return Method::Ack;
    case PJSIP_CANCEL_METHOD: return Method::Cancel;
    case PJSIP_OPTIONS_METHOD: return Method::Options;
    case PJSIP_REGISTER_METHOD: return Method::Register;
    case PJSIP_BYE_METHOD: return Method::Other;
    default: break;
  }
  for (const char* known : {"INFO", "UPDATE", "PRACK", "REFER", "NOTIFY", "SUBSCRIBE", "MESSAGE", "PUBLISH"})
    if (view(method.name) == known) return Method::Other;
  return Method::Unknown;
}

bool isKnown(pjsip_rx_data* rdata) {
  if (rdata->msg_info.msg->line.req.method.id == PJSIP_CANCEL_METHOD) {
    pj_str_t key;
    pjsip_tsx_create_key(rdata->tp_info.pool, &key, PJSIP_ROLE_UAS, pjsip_get_invite_method(), rdata);
    pjsip_transaction* invite = pjsip_tsx_layer_find_tsx2(&key, PJ_TRUE);
    if (!invite) return false;
    pj_grp_lock_dec_ref(invite->grp_lock);
    return true;
  }
  const pj_str_t& local = rdata->msg_info.to->tag;
  // pjsip's dialog layer lets REGISTER alone even with a tag, so it would come to pjsua as a new request.
  if (local.slen == 0 || rdata->msg_info.msg->line.req.method.id == PJSIP_REGISTER_METHOD) return false;
  const pj_str_t none = {nullptr, 0};
  const pj_str_t& callId = rdata->msg_info.cid->id;
  // With no remote tag: a call that we make and whose first answer this request has overtaken.
  return pjsip_ua_find_dialog(&callId, &local, &rdata->msg_info.from->tag, PJ_FALSE) ||
         pjsip_ua_find_dialog(&callId, &local, &none, PJ_FALSE);
}

// The dialog keeps which connection its call was last heard on, for connectionLost(). Never dereferenced.
void noteConnection(const pjsip_rx_data* rdata, const pj_str_t& localTag, const pj_str_t& remoteTag) {
  pjsip_dialog* dialog = pjsip_ua_find_dialog(&rdata->msg_info.cid->id, &localTag, &remoteTag, PJ_FALSE);
  if (dialog) dialog->mod_data[g_requests.id] = isStream(rdata->tp_info.transport) ? rdata->tp_info.transport : nullptr;
}

std::string contentType(const pjsip_ctype_hdr* header) {
  if (!header) return "";
  std::string text = copy(header->media.type) + "/" + copy(header->media.subtype);
  for (const pjsip_param* p = header->media.param.next; p != &header->media.param; p = p->next)
    text += ";" + copy(p->name) + "=" + copy(p->value);
  return text;
}

struct Body {
  std::string type;
  bool typeTwice = false;
  long declared = -1;  // Content-Length
  std::string_view text;
  std::vector<std::string_view> sdpParts;
};

Body bodyOf(pjsip_rx_data* rdata) {
  Body found;
  pjsip_msg* message = rdata->msg_info.msg;
  const auto* type = static_cast<pjsip_ctype_hdr*>(pjsip_msg_find_hdr(message, PJSIP_H_CONTENT_TYPE, nullptr));
  found.type = contentType(type);
  found.typeTwice = type && pjsip_msg_find_hdr(message, PJSIP_H_CONTENT_TYPE, type->next) != nullptr;
  if (rdata->msg_info.clen) found.declared = rdata->msg_info.clen->len;
  pjsip_msg_body* body = message->body;
  if (!body) return found;
  pjsip_media_type multipart, sdp;
  pjsip_media_type_init2(&sdp, const_cast<char*>("application"), const_cast<char*>("sdp"));
  pjsip_media_type_init2(&multipart, const_cast<char*>("multipart"), const_cast<char*>("mixed"));
  if (pj_stricmp(&body->content_type.type, &multipart.type) == 0) {
    pj_str_t raw = {nullptr, 0};
    pjsip_multipart_get_raw(body, nullptr, &raw);
    found.text = view(raw);
    for (pjsip_multipart_part* part = pjsip_multipart_get_first_part(body); part;
         part = pjsip_multipart_get_next_part(body, part))
      if (part->body && pjsip_media_type_cmp(&part->body->content_type, &sdp, PJ_FALSE) == 0)
        found.sdpParts.emplace_back(static_cast<const char*>(part->body->data), part->body->len);
    return found;
  }
  // Of a datagram pjsip takes all that follows the header; what Content-Length does not count is no part of the
  // message (RFC 3261 18.3).
  if (found.declared >= 0 && static_cast<unsigned long>(found.declared) < body->len)
    body->len = static_cast<unsigned>(found.declared);
  found.text = {static_cast<const char*>(body->data), body->len};
  return found;
}

// See Gate::contactOf(): the telephone's own user and parameters at the address that it was heard from.
std::string contactTarget(pjsip_rx_data* rdata, const pjsip_sip_uri* contact) {
  pj_pool_t* pool = rdata->tp_info.pool;
  pjsip_sip_uri* target = pjsip_sip_uri_create(pool, PJ_FALSE);
  target->user = contact->user;
  target->host = pj_str(rdata->pkt_info.src_name);
  target->port = rdata->pkt_info.src_port;
  const std::string transport = transportName(rdata->tp_info.transport);
  if (transport != "udp") pj_strdup2(pool, &target->transport_param, transport.c_str());
  target->user_param = contact->user_param;
  pjsip_param_clone(pool, &target->other_param, &contact->other_param);
  return printed(PJSIP_URI_IN_REQ_URI, target);
}

void readRegister(pjsip_rx_data* rdata, GateRequest& request) {
  pjsip_msg* message = rdata->msg_info.msg;
  const auto* expires = static_cast<pjsip_expires_hdr*>(pjsip_msg_find_hdr(message, PJSIP_H_EXPIRES, nullptr));
  if (expires) request.expires_s = static_cast<long>(expires->ivalue);
  auto* contact = static_cast<pjsip_contact_hdr*>(pjsip_msg_find_hdr(message, PJSIP_H_CONTACT, nullptr));
  for (; contact; contact = static_cast<pjsip_contact_hdr*>(
                      pjsip_msg_find_hdr(message, PJSIP_H_CONTACT, contact->next))) {
    if (contact->star) {
      request.contactStar = true;
      continue;
    }
    GateContact known;
    const pjsip_sip_uri* uri = sipUri(contact->uri);
    known.uri = printed(PJSIP_URI_IN_CONTACT_HDR, pjsip_uri_get_uri(contact->uri));
    if (uri) known.target = contactTarget(rdata, uri);
    if (contact->expires != PJSIP_EXPIRES_NOT_SPECIFIED) known.expires_s = static_cast<long>(contact->expires);
    request.longestUri = std::max({request.longestUri, known.uri.size(), known.target.size()});
    request.contacts.push_back(std::move(known));
  }
}

void readCredentials(pjsip_msg* message, GateRequest& request) {
  const pjsip_hdr* end = &message->hdr;
  for (pjsip_hdr* header = message->hdr.next; header != end; header = header->next) {
    if (header->type != PJSIP_H_AUTHORIZATION) continue;
    const auto* authorization = reinterpret_cast<pjsip_authorization_hdr*>(header);
    if (pj_stricmp2(&authorization->scheme, "Digest") != 0) continue;
    const pjsip_digest_credential& digest = authorization->credential.digest;
    request.credentials.push_back({copy(digest.username), copy(digest.realm), copy(digest.nonce), copy(digest.uri),
                                   copy(digest.response), copy(digest.algorithm), copy(digest.cnonce),
                                   copy(digest.qop), copy(digest.nc)});
  }
}

GateRequest read(pjsip_rx_data* rdata) {
  pjsip_msg* message = rdata->msg_info.msg;
  const pjsip_method& method = message->line.req.method;
  GateRequest request;
  request.method = methodOf(method);
  request.methodName = copy(method.name);
  request.address = rdata->pkt_info.src_name;
  request.port = rdata->pkt_info.src_port;
  request.transport = transportName(rdata->tp_info.transport);
  request.cut = !isStream(rdata->tp_info.transport) && rdata->pkt_info.len >= PJSIP_MAX_PKT_LEN;
  request.known = isKnown(rdata);
  request.toTag = rdata->msg_info.to->tag.slen > 0;
  request.callId = copy(rdata->msg_info.cid->id);
  request.branch = copy(rdata->msg_info.via->branch_param);
  request.cseq = rdata->msg_info.cseq->cseq;
  request.uri = requestUri(rdata);
  request.user = userOf(message->line.req.uri);
  request.fromUser = userOf(rdata->msg_info.from->uri);
  request.toUser = userOf(rdata->msg_info.to->uri);
  request.longestUri = std::max({printed(PJSIP_URI_IN_REQ_URI, message->line.req.uri).size(),
                                 printed(PJSIP_URI_IN_FROMTO_HDR, rdata->msg_info.from->uri).size(),
                                 printed(PJSIP_URI_IN_FROMTO_HDR, rdata->msg_info.to->uri).size()});
  const Body body = bodyOf(rdata);
  request.contentLength = body.declared;
  request.contentType = body.type;
  request.contentTypeTwice = body.typeTwice;
  request.body = body.text;
  request.sdpParts = body.sdpParts;
  readCredentials(message, request);
  if (request.method == GateRequest::Method::Register) {
    readRegister(rdata, request);
  } else if (const auto* contact =
                 static_cast<pjsip_contact_hdr*>(pjsip_msg_find_hdr(message, PJSIP_H_CONTACT, nullptr))) {
    if (contact->uri)
      request.longestUri = std::max(request.longestUri, printed(PJSIP_URI_IN_CONTACT_HDR, contact->uri).size());
  }
  return request;
}

void answer(pjsip_rx_data* rdata, const GateRequest& request, const GateVerdict& verdict) {
  pj_pool_t* pool = rdata->tp_info.pool;
  pjsip_hdr headers;
  pj_list_init(&headers);
  const auto add = [&](const std::string& name, const std::string& value) {
    const pj_str_t itsName = borrowed(name), itsValue = borrowed(value);
    pj_list_push_back(&headers, pjsip_generic_string_hdr_create(pool, &itsName, &itsValue));
  };
  for (const auto& [name, value] : verdict.headers) add(name, value);
  if (request.method == GateRequest::Method::Register && verdict.code == 200) {
    char date[64];
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    gmtime_r(&now, &utc);
    // A telephone sets its clock by this (RFC 3261 10.3).
    if (std::strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &utc) > 0) add("Date", date);
  }
  const pj_str_t phrase = borrowed(verdict.phrase);
  pjsip_endpt_respond_stateless(g_endpoint, rdata, verdict.code, verdict.phrase.empty() ? nullptr : &phrase, &headers,
                                nullptr);
}

pj_bool_t onRequest(pjsip_rx_data* rdata) {
  // An answer goes where the request came from and nowhere else: `maddr` would let a stranger name the place, which
  // pjsip may even have to ask the DNS for.
  rdata->msg_info.via->maddr_param = pj_str_t{nullptr, 0};
  const GateRequest request = read(rdata);
  const GateVerdict verdict = g_gate->judge(request);
  g_gate->noteRefusal(request, verdict);
  switch (verdict.action) {
    case GateVerdict::Action::PassWithoutBody:
      if (rdata->msg_info.msg->body) g_gate->cutCall(request.callId, verdict.phrase);
      rdata->msg_info.msg->body = nullptr;
      [[fallthrough]];
    case GateVerdict::Action::Pass:
      if (request.toTag) noteConnection(rdata, rdata->msg_info.to->tag, rdata->msg_info.from->tag);
      return PJ_FALSE;
    case GateVerdict::Action::Answer:
      PJ_LOG(4, (THIS_FILE, "%s from %s:%d refused: %d %s", request.methodName.c_str(), request.address.c_str(),
                 request.port, verdict.code, verdict.phrase.c_str()));
      answer(rdata, request, verdict);
      break;
    case GateVerdict::Action::Drop:
      PJ_LOG(5, (THIS_FILE, "%s from %s:%d dropped", request.methodName.c_str(), request.address.c_str(),
                 request.port));
      break;
  }
  if (verdict.hangUp && isStream(rdata->tp_info.transport)) pjsip_transport_shutdown(rdata->tp_info.transport);
  return PJ_TRUE;
}

// Nobody can be told that a response is bad. Without its body the call ends as one whose answer brought no SDP.
pj_bool_t onResponse(pjsip_rx_data* rdata) {
  const Body body = bodyOf(rdata);
  BodyFault fault = bodyFault(body.type, body.text, g_gate->maxBodyBytes());
  for (std::string_view part : body.sdpParts)
    if (!fault) fault = bodyFault("application/sdp", part, g_gate->maxBodyBytes());
  if (fault && rdata->msg_info.msg->body) {
    PJ_LOG(2, (THIS_FILE, "body of a response from %s:%d ignored: %s", rdata->pkt_info.src_name,
               rdata->pkt_info.src_port, fault.phrase.c_str()));
    g_gate->countMalformed();
    rdata->msg_info.msg->body = nullptr;
  }
  if (rdata->msg_info.cseq->method.id == PJSIP_INVITE_METHOD)
    noteConnection(rdata, rdata->msg_info.from->tag, rdata->msg_info.to->tag);
  return PJ_FALSE;
}

// The connection's next bytes would be read as the start of a message, so it cannot go on; neither can its calls.
void connectionLost(pjsip_transport* transport) {
  for (unsigned i = 0; i < pjsua_var.ua_cfg.max_calls; ++i) {
    const pjsip_inv_session* invite = pjsua_var.calls[i].inv;
    if (!invite || !invite->dlg) continue;
    const bool heardHere = invite->dlg->mod_data[g_requests.id] == transport ||
                           (invite->invite_tsx && invite->invite_tsx->transport == transport);
    if (heardHere)
      g_gate->cutCall(copy(invite->dlg->call_id->id),
                      "a SIP message of more than " + std::to_string(PJSIP_MAX_PKT_LEN) + " bytes closed the connection");
  }
  pjsip_transport_shutdown2(transport, PJ_TRUE);
  // pjsip closes a connection only when the last transaction on it is gone, half a minute from now.
  if (!(transport->flag & PJSIP_TRANSPORT_SECURE))
    pj_sock_shutdown(pjsip_tcp_transport_get_socket(transport), PJ_SD_BOTH);
}

void onDropped(pjsip_tp_dropped_data* data) {
  if (data->tp->is_shutdown) return;  // the rest of what was dropped before
  const bool stream = isStream(data->tp);
  const bool tooLong = stream ? data->status == PJSIP_ERXOVERFLOW : data->len >= PJSIP_MAX_PKT_LEN;
  if (tooLong) {
    g_gate->countOversize();
    if (stream) connectionLost(data->tp);
  } else if (data->status != PJ_EIGNORED) {
    g_gate->countMalformed();
  }
}

pjsip_module makeModule(const char* name, int priority) {
  pjsip_module module{};
  module.name = pj_str(const_cast<char*>(name));
  module.id = -1;
  module.priority = priority;
  return module;
}

}  // namespace

void GateModule::install(pjsip_endpoint* endpoint, Gate& gate) {
  g_endpoint = endpoint;
  g_gate = &gate;
  g_requests = makeModule("gate", PJSIP_MOD_PRIORITY_UA_PROXY_LAYER - 1);
  g_requests.on_rx_request = &onRequest;
  g_responses = makeModule("gate-responses", PJSIP_MOD_PRIORITY_TSX_LAYER - 1);
  g_responses.on_rx_response = &onResponse;
  for (pjsip_module* module : {&g_requests, &g_responses}) {
    const pj_status_t status = pjsip_endpt_register_module(endpoint, module);
    if (status != PJ_SUCCESS)
      throw pj::Error(status, "pjsip_endpt_register_module", "the request gate", __FILE__, __LINE__);
  }
  pjsip_tpmgr_set_drop_data_cb(pjsip_endpt_get_tpmgr(endpoint), &onDropped);
}
