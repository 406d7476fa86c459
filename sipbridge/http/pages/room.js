// SPDX-License-Identifier: GPL-3.0-or-later
// A browser in a room: one peer connection, its answer from the server, a data channel for everything but sound.
"use strict";

const room = decodeURIComponent(location.pathname.split("/").pop());
const token = location.hash.slice(1);
const path = `/v1/rooms/${encodeURIComponent(room)}/webrtc`;
const gatherMs = 2000;
const lookMs = 1000;
const quietDbfs = -60;
const mostLines = 200;
const noLongerValid = "This link is no longer valid. Ask for a new one.";

const at = (id) => document.getElementById(id);
let call = null; // while inside: what belongs to this one stay

at("room").textContent = room;
document.title = `${room} – sipbridge`;
for (const key of "123456789*0#") {
  const button = document.createElement("button");
  button.textContent = key;
  button.addEventListener("click", () => press(key));
  at("pad").append(button);
}
if (!token) {
  fail("This link has no key. Ask whoever runs the bridge for one: sipbridge link " + room);
  at("join").disabled = true;
} else if (parseInt(token, 10) * 1000 < Date.now()) {
  fail(noLongerValid); // by this device's clock, so joining may be tried all the same
}

at("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  join();
});
at("message").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("words").value.trim();
  if (text && say({ type: "message", text })) {
    write(`You: ${text}`);
    at("words").value = "";
  }
});
at("leave").addEventListener("click", () => leave(""));
at("mute").addEventListener("click", () => {
  const muted = at("mute").getAttribute("aria-pressed") !== "true";
  at("mute").setAttribute("aria-pressed", String(muted));
  at("mute").textContent = muted ? "Muted" : "Mute";
  call.members.get("").querySelector("span").textContent = muted ? "You (muted)" : "You";
  for (const track of call.microphone.getAudioTracks()) track.enabled = !muted;
});
at("keys").addEventListener("click", () => {
  at("pad").hidden = !at("pad").hidden;
  at("keys").setAttribute("aria-expanded", String(!at("pad").hidden));
});
addEventListener("pagehide", () => leave(""));

async function join() {
  at("join").disabled = true;
  at("error").hidden = true;
  state("Asking for the microphone…");
  const mine = { peer: null, channel: null, microphone: null, location: "", members: new Map(), timers: [], over: false };
  try {
    mine.microphone = await microphone();
    state("Connecting…");
    const peer = (mine.peer = new RTCPeerConnection());
    for (const track of mine.microphone.getAudioTracks()) peer.addTrack(track, mine.microphone);
    mine.channel = peer.createDataChannel("room");
    mine.channel.onmessage = (event) => heard(mine, JSON.parse(event.data));
    peer.ontrack = (event) => {
      at("sound").srcObject = event.streams[0] || new MediaStream([event.track]);
    };
    peer.onconnectionstatechange = () => follow(mine);
    await peer.setLocalDescription(await peer.createOffer());
    await gathered(peer);
    const answer = await post(peer.localDescription.sdp);
    mine.location = answer.location;
    call = mine;
    await peer.setRemoteDescription({ type: "answer", sdp: answer.sdp });
    enter(mine);
  } catch (error) {
    end(mine);
    fail(error.message);
  }
}

async function microphone() {
  if (!navigator.mediaDevices) {
    throw new Error("Browsers give the microphone only to pages over https, or of this machine (http://localhost).");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
  } catch (error) {
    const why = {
      NotAllowedError: "The microphone is not allowed for this page. Allow it beside the address, then join again.",
      NotFoundError: "This device has no microphone.",
      NotReadableError: "The microphone is used by another program.",
    };
    throw new Error(why[error.name] || `The microphone cannot be used: ${error.message}`);
  }
}

// All candidates stand in the offer; those that take long are left out.
function gathered(peer) {
  return new Promise((resolve) => {
    setTimeout(resolve, gatherMs);
    peer.addEventListener("icegatheringstatechange", () => peer.iceGatheringState === "complete" && resolve());
  });
}

async function post(sdp) {
  const name = at("name").value.trim();
  const query = name ? `?name=${encodeURIComponent(name)}` : "";
  let answer;
  try {
    answer = await fetch(path + query, {
      method: "POST",
      headers: { "Content-Type": "application/sdp", Authorization: `Bearer ${token}` },
      body: sdp,
    });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (answer.status === 401) throw new Error(noLongerValid);
  const text = await answer.text();
  if (!answer.ok) throw new Error(`The server says: ${detail(text) || answer.status}`);
  return { sdp: text, location: answer.headers.get("Location") };
}

function detail(text) {
  try {
    return JSON.parse(text).detail;
  } catch {
    return "";
  }
}

function enter(mine) {
  at("entry").hidden = true;
  at("inside").hidden = false;
  meet(mine, "", "You");
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  analyser.fftSize = 1024;
  context.createMediaStreamSource(mine.microphone).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  mine.context = context;
  mine.timers.push(
    setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      level(mine, "", 20 * Math.log10(samples.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 1e-5)));
    }, 100),
    setInterval(() => look(mine), lookMs),
  );
}

function follow(mine) {
  if (mine.over) return;
  const now = mine.peer.connectionState;
  if (now === "connected") {
    mine.wasUp = true;
    state("Connected", true);
  }
  if (now === "disconnected") state("The connection is interrupted…");
  if (now === "failed" && mine === call) {
    leave(mine.wasUp ? "The connection is lost." : "No UDP packet finds a way between this browser and the server.");
  }
}

// --- what the server says

function heard(mine, said) {
  if (said.type === "welcome") {
    for (const { identity, name } of said.members) meet(mine, identity, name);
    mine.identity = said.identity;
  } else if (said.type === "joined") {
    meet(mine, said.identity, said.name);
    write(`${said.name} has joined`, true);
  } else if (said.type === "left") {
    const row = mine.members.get(said.identity);
    if (!row) return;
    row.remove();
    mine.members.delete(said.identity);
    write(`${row.textContent} has left`, true);
  } else if (said.type === "end" && mine === call) {
    mine.location = ""; // it knows
    leave(`The server has ended the connection: ${said.reason}.`);
  } else if (said.type === "dtmf") {
    write(`Key ${said.digit} was pressed`, true);
  } else if (said.type === "message") {
    write(said.topic ? `${said.topic}: ${said.text}` : said.text);
  } else if (said.type === "levels") {
    for (const [identity, dbfs] of Object.entries(said.levels)) level(mine, identity, dbfs);
  } else if (said.type === "line") {
    at("lost-out").textContent = percent(said.loss_percent);
    if (said.round_trip_ms !== null) at("round-trip").textContent = milliseconds(said.round_trip_ms);
  }
}

function say(message) {
  if (!call || call.channel.readyState !== "open") return false;
  call.channel.send(JSON.stringify(message));
  return true;
}

function press(key) {
  if (say({ type: "dtmf", digits: key })) write(`You pressed ${key}`, true);
}

// --- what is shown

function meet(mine, identity, text) {
  if (mine.members.has(identity)) return;
  const row = document.createElement("li");
  const name = document.createElement("span");
  name.textContent = text;
  const meter = document.createElement("meter");
  meter.min = quietDbfs;
  meter.max = 0;
  meter.value = quietDbfs;
  meter.setAttribute("aria-label", `How loud ${text} is`);
  row.append(name, meter);
  mine.members.set(identity, row);
  at("members").append(row);
}

function level(mine, identity, dbfs) {
  const row = mine.members.get(identity);
  if (row) row.querySelector("meter").value = Math.max(quietDbfs, dbfs);
}

async function look(mine) {
  let sound, before = mine.sound;
  for (const entry of (await mine.peer.getStats()).values()) {
    if (entry.type === "inbound-rtp" && entry.kind === "audio") sound = entry;
  }
  if (!sound || mine.over) return;
  mine.sound = sound;
  if (!before) return;
  const played = sound.jitterBufferEmittedCount - before.jitterBufferEmittedCount;
  if (played > 0) at("delay").textContent = milliseconds((1000 * (sound.jitterBufferDelay - before.jitterBufferDelay)) / played);
  const lost = sound.packetsLost - before.packetsLost, came = sound.packetsReceived - before.packetsReceived;
  if (lost + came > 0) at("lost-in").textContent = percent((100 * Math.max(0, lost)) / (lost + came));
}

const milliseconds = (value) => `${Math.round(value)} ms`;
const percent = (value) => `${value.toFixed(value < 10 ? 1 : 0)} %`;

function write(text, isEvent) {
  const line = document.createElement("li");
  line.textContent = text;
  if (isEvent) line.className = "event";
  at("log").append(line);
  while (at("log").childElementCount > mostLines) at("log").firstChild.remove();
  at("log").scrollTop = at("log").scrollHeight;
}

function state(text, isUp) {
  at("state").textContent = text;
  at("state").className = isUp ? "up" : "";
}

function fail(text) {
  at("error").textContent = text;
  at("error").hidden = false;
}

// --- its end

function leave(why) {
  if (!call) return;
  const mine = call;
  call = null;
  if (mine.location) {
    // goes out even when the page is closed
    fetch(mine.location, { method: "DELETE", keepalive: true, headers: { Authorization: `Bearer ${token}` } }).catch(() => {});
  }
  end(mine);
  if (why) fail(why);
}

function end(mine) {
  mine.over = true;
  for (const timer of mine.timers) clearInterval(timer);
  if (mine.context) mine.context.close();
  if (mine.peer) mine.peer.close();
  if (mine.microphone) for (const track of mine.microphone.getTracks()) track.stop();
  at("sound").srcObject = null;
  at("members").replaceChildren();
  at("log").replaceChildren();
  for (const id of ["round-trip", "delay", "lost-in", "lost-out"]) at(id).textContent = "–";
  at("mute").setAttribute("aria-pressed", "false");
  at("mute").textContent = "Mute";
  at("pad").hidden = true;
  at("keys").setAttribute("aria-expanded", "false");
  at("inside").hidden = true;
  at("entry").hidden = false;
  at("join").disabled = !token;
  state("Not connected");
}
