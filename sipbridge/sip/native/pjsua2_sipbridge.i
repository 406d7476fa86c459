// SPDX-License-Identifier: GPL-3.0-or-later
// pjsua2's own interface with our classes added, as one Python module.
%module(directors="1") pjsua2
%include "pjsua2.i"
%include "stdint.i"

%{
#include "bridge_call.hpp"
#include "clock.hpp"
#include "engine.hpp"
#include "frame_port.hpp"
#include "gate.hpp"
#include "outbox.hpp"
#include "port_bank.hpp"
#include "remote_port.hpp"
#include "track_port.hpp"
%}

// Arrays come and go through the buffer protocol. The typemaps run while the interpreter's lock is held, the body
// between them without it, so no Python object is touched there. A view is empty until its own argument was read: the
// others are released too when one is refused.
%typemap(in, numinputs=1) (int16_t* matrix, size_t size) (Py_buffer view = Py_buffer()) {
  if (PyObject_GetBuffer($input, &view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS)) SWIG_fail;
  $1 = static_cast<$1_ltype>(view.buf);
  $2 = size_t(view.len) / sizeof(int16_t);
}
%typemap(freearg) (int16_t* matrix, size_t size) { if (view$argnum.obj) PyBuffer_Release(&view$argnum); }
%typemap(in, numinputs=1) (const int16_t* matrix, size_t size) (Py_buffer view = Py_buffer()) {
  if (PyObject_GetBuffer($input, &view, PyBUF_C_CONTIGUOUS)) SWIG_fail;
  $1 = static_cast<$1_ltype>(view.buf);
  $2 = size_t(view.len) / sizeof(int16_t);
}
%typemap(freearg) (const int16_t* matrix, size_t size) { if (view$argnum.obj) PyBuffer_Release(&view$argnum); }
%apply (const int16_t* matrix, size_t size) { (const int16_t* samples, size_t count) };
%apply (int16_t* matrix, size_t size) { (int16_t* out, size_t count) };
%typemap(in, numinputs=1) (const uint8_t* packet, size_t size) (Py_buffer view = Py_buffer()) {
  if (PyObject_GetBuffer($input, &view, PyBUF_C_CONTIGUOUS)) SWIG_fail;
  $1 = static_cast<$1_ltype>(view.buf);
  $2 = size_t(view.len);
}
%typemap(freearg) (const uint8_t* packet, size_t size) { if (view$argnum.obj) PyBuffer_Release(&view$argnum); }
%typemap(in, numinputs=1) (const int32_t* ids, size_t id_count) (Py_buffer view = Py_buffer()) {
  if (PyObject_GetBuffer($input, &view, PyBUF_C_CONTIGUOUS)) SWIG_fail;
  $1 = static_cast<$1_ltype>(view.buf);
  $2 = size_t(view.len) / sizeof(int32_t);
}
%typemap(freearg) (const int32_t* ids, size_t id_count) { if (view$argnum.obj) PyBuffer_Release(&view$argnum); }
%apply (const int32_t* ids, size_t id_count) { (const int32_t* whole, size_t whole_count) };
%apply (const int32_t* ids, size_t id_count) { (const int32_t* heads, size_t head_values) };
%typemap(in, numinputs=1) (int32_t* rates_hz, size_t rate_count) (Py_buffer view = Py_buffer()) {
  if (PyObject_GetBuffer($input, &view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS)) SWIG_fail;
  $1 = static_cast<$1_ltype>(view.buf);
  $2 = size_t(view.len) / sizeof(int32_t);
}
%typemap(freearg) (int32_t* rates_hz, size_t rate_count) { if (view$argnum.obj) PyBuffer_Release(&view$argnum); }
%apply (int32_t* rates_hz, size_t rate_count) { (int32_t* heads, size_t head_values) };
%apply (int32_t* rates_hz, size_t rate_count) { (int32_t* peaks, size_t peak_count) };

// (port_id, bytes) each.
%typemap(out) std::vector<Heard> {
  std::vector<Heard>& heard = *(&$1);
  $result = PyList_New(Py_ssize_t(heard.size()));
  for (size_t i = 0; $result && i < heard.size(); ++i) {
    PyObject* item = Py_BuildValue(
        "(iN)", heard[i].port_id, PyBytes_FromStringAndSize(heard[i].data.data(), Py_ssize_t(heard[i].data.size())));
    if (!item) {
      Py_CLEAR($result);
      break;
    }
    PyList_SET_ITEM($result, Py_ssize_t(i), item);
  }
  if (!$result) SWIG_fail;
}

// No call into Python from what these do: only a call's life is told to Python, on the SIP thread.
%feature("nodirector") Engine;
%feature("nodirector") FramePort;
%feature("director") BridgeCall;
%feature("nodirector") BridgeCall::onCreateMediaTransport;
%feature("nodirector") BridgeCall::onStreamCreated;
%feature("nodirector") BridgeCall::onStreamDestroyed;
%feature("nodirector") BridgeCall::onCallSdpCreated;
%feature("nodirector") pj::Call::onStreamPreCreate;

%include "jitter_queue.hpp"
%include "port_queues.hpp"
%include "port_bank.hpp"
%include "clock.hpp"
%template(PortMarkVector) std::vector<PortMark>;
%include "frame_port.hpp"
%ignore Heard;
%nodefaultctor RemotePort;
%include "outbox.hpp"
%nothread SamplePort::feed;  // it costs less than letting go of the interpreter's lock
%include "remote_port.hpp"
%include "std_except.i"
%include "audio_codec.hpp"
%include "track_stream.hpp"
%catches(std::invalid_argument) TrackPort::TrackPort;
%nothread TrackPort::received;  // as above
%template(TrackFormatVector) std::vector<TrackFormat>;
%include "track_port.hpp"
%include "gate.hpp"
%template(GateTrunkVector) std::vector<GateTrunk>;
%template(GateCutVector) std::vector<GateCut>;
%template(GateRefusalVector) std::vector<GateRefusal>;
%include "engine.hpp"
%template(EngineEventVector) std::vector<EngineEvent>;
%template(EngineLogVector) std::vector<EngineLog>;
%include "bridge_call.hpp"
