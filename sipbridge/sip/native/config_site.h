/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Compile-time limits of pjproject. Copied to pjlib/include/pj/ before it is built. */

/* pjsua's own limits lie above sipbridge's `max_calls`, which answers 503 before they are reached. */
#define PJSUA_MAX_CALLS 1024
#define PJSUA_MAX_ACC 64
#define PJSUA_MAX_CONF_PORTS 4096

/* Media ioqueue: an RTP and an RTCP socket a call, with room to spare. */
#define PJ_IOQUEUE_MAX_HANDLES 4096
/* SIP ioqueue: every listener, every TCP or TLS connection and the waker is one handle. */
#define PJSIP_MAX_TRANSPORTS 1024

/* Longest SIP message, also the receive buffer of a TCP or TLS connection. Real INVITEs pass 4000. */
#define PJSIP_MAX_PKT_LEN 12000
/* A log line longer than this is replaced by an error text: whole messages must fit. */
#define PJ_LOG_MAX_SIZE (PJSIP_MAX_PKT_LEN + 500)

#define PJMEDIA_HAS_VIDEO 0
/* The answer follows our codec order, not the caller's. */
#define PJMEDIA_SDP_NEG_PREFER_REMOTE_CODEC_ORDER 0

#define PJ_HAS_IPV6 1

/* pjmedia would throw away what came before the third frame was asked for; our clock asks when a frame is there. */
#define PJMEDIA_STREAM_SOFT_START 0

/* A loud caller must not change the level of the rest of a G.722 call. */
#define PJMEDIA_G722_STOP_PCM_SHIFT_ON_CLIPPING 0

/* A TCP connection that never sends a request is closed after so many seconds. */
#define PJSIP_TCP_INITIAL_TIMEOUT 30
