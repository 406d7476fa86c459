// SPDX-License-Identifier: GPL-3.0-or-later
// A SIMULATION of Agora's native engine, for tests alone. It is not Agora's and knows nothing of Agora's network.
//
//   the bridge ─► agora-python-server-sdk, every line of it ─► [this library] ◄── commands of a test (Unix socket)
//
// The SDK's Python loads `libagora_rtc_sdk.so` with ctypes; this is one, with the functions that it calls. Who joins a
// channel here hears the others who did so in this process, and the far users that a test makes by commands. One
// thread does all that Agora's many would do: each 10 ms it moves audio, and calls back. On command it refuses, drops,
// delays, expires tokens, reconnects, and lets any function of its interface fail.
//
// What it was made from is the SDK's own ctypes bindings: names, signatures, layouts. How Agora's engine behaves in
// time (when it calls back, in which order, what it does after an error) is a guess where no document says it.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Ms = std::chrono::milliseconds;
using Samples = std::vector<int16_t>;

// ---------------------------------------------------------------- as the SDK's bindings have it

struct AudioFrame {
  int type, samples_per_channel, bytes_per_sample, channels, samples_per_sec;
  void* buffer;
  int64_t render_time_ms;
  int avsync_type;
  int64_t presentation_ms;
  int audio_track_number;
  uint32_t rtp_timestamp;
  int far_field_flag, rms, voice_prob, music_prob, pitch;
};
static_assert(sizeof(AudioFrame) == 88);

struct ConnInfo {
  uint64_t id;
  const char* channel;
  int state;
  const char* user;
  unsigned internal_uid;
};
static_assert(sizeof(ConnInfo) == 40);

struct ConnConfig {
  int auto_subscribe_audio, auto_subscribe_video, enable_audio_recording_or_playout;
  int max_send_bitrate, min_port, max_port;
  int packet_only, pcm_data_only;
  uint32_t bytes_per_sample, number_of_channels, sample_rate_hz;
  int role, profile;
  int audio_recv_media_packet, audio_recv_encoded_frame, video_recv_media_packet;
};

struct ServiceConfig {
  int enable_audio_processor, enable_audio_device, enable_video;
  void* context;
  const char* app_id;
  unsigned area_code;
  int channel_profile, audio_scenario;
  int use_string_uid, domain_limit, log_level;
  const char* log_file_path;
  uint32_t log_file_size_kb;
  const char* data_dir;
  const char* config_dir;
};

struct EncryptionConfig {
  int mode;
  const char* key;
  uint8_t salt[32];
  bool datastream;
};

struct VolumeInfo {
  const char* user;
  unsigned volume, vad;
  double pitch;
};

struct CapabilityItem {
  uint8_t id;
  const char* name;
};
struct CapabilityItems {
  CapabilityItem* items;
  size_t size;
};
struct Capability {
  CapabilityItems* map;
  int type;
};

using Slot = void (*)();
enum ConnSlot {
  kConnected, kDisconnected, kConnecting, kReconnecting, kReconnected, kLost,
  kWillExpire = 8, kDidExpire, kFailure = 11, kUserJoined, kUserLeft, kEncryptionError = 30,
};
enum UserSlot { kSubscribed = 7, kVolume = 22, kMessage = 34, kMetadata = 36 };
enum FrameSlot { kPlayback = 1, kBeforeMixing = 4, kPosition = 5 };
constexpr size_t kConnSlots = 31, kUserSlots = 37, kFrameSlots = 10;
constexpr int kPlaybackPosition = 1, kBeforeMixingPosition = 8;
constexpr int kPrimedMs = 30;  // of what is pushed, before it begins to be sent
constexpr size_t kWatchedFrames = 50;

// ---------------------------------------------------------------- what there is

struct Connection;

struct Voice {  // of somebody in a channel
  std::deque<int16_t> queue;
  Samples loop;
  size_t position = 0;
  int rate = 0;
  bool primed = false;
  size_t least = SIZE_MAX, taken = 0;  // what was in the queue at least, of so many frames
};

struct Far {  // somebody whom a test has made
  std::string channel, user, cipher;
  Voice voice;
  FILE* record = nullptr;
  ~Far() {
    if (record) fclose(record);
  }
};

struct Track {
  uintptr_t sender = 0;
  std::weak_ptr<Connection> published_by;
};

struct Connection {
  uintptr_t id = 0, user_id = 0, parameters_id = 0;
  ConnConfig config{};
  std::string channel, user, token, cipher;
  bool connected = false, connecting = false, lost = false, muted = false, destroyed = false;
  int generation = 0;  // of connect(): what was planned for an earlier one does not happen
  Voice voice;
  int mix_rate = 0, mix_samples = 0, user_rate = 0;
  int volume_ms = 0, volume_left = 0;
  int renewals = 0;
  Samples mixed;  // less than a call's samples
  std::map<std::string, int16_t> last;  // of each source, for interpolation
  std::set<std::string> undecryptable;
  // With it held are the callbacks made, and the observers changed.
  std::recursive_mutex calling;
  std::vector<Slot> observer, user_observer, frame_observer, capabilities;
};

enum class Kind { kService, kFactory, kSender, kTrack, kConnection, kUser, kParameters, kStream, kCapabilities };

struct Handle {
  Kind kind;
  std::shared_ptr<Connection> connection;
  std::shared_ptr<Track> track;
  void* data = nullptr;
};

struct Failure {
  int code, times;
};

struct Planned {
  std::shared_ptr<Connection> connection;
  std::function<void(Connection&)> call;
};

// Never destroyed: the threads here run until the process is gone.
std::mutex& g_mutex = *new std::mutex;  // of all below; never held while something is called back
std::condition_variable& g_wake = *new std::condition_variable;
auto& g_handles = *new std::map<uintptr_t, Handle>;
uintptr_t g_next = 1000;
auto& g_far = *new std::vector<std::shared_ptr<Far>>;
auto& g_due = *new std::multimap<Clock::time_point, std::function<void()>>;  // run with the mutex held
auto& g_calls = *new std::deque<Planned>;
auto& g_failures = *new std::map<std::string, Failure>;
auto& g_refusals = *new std::map<std::string, int>;
auto& g_log = *new std::vector<std::string>;
int g_delay_ms = 5, g_loss = 0, g_bunch = 1, g_created = 0, g_stale = 0;
int g_inside = 0;                      // calls of the interface from within a callback
bool g_turbo = false, g_late = false, g_no_aiqos = false, g_calling = false;
auto& g_called = *new std::set<std::string>;
thread_local bool t_calls_back = false;
uint64_t g_ticks = 0, g_dropped = 0;

void note(const std::string& line) { g_log.push_back(line); }

// Whether a test wants this call to fail, and how.
bool fails(const char* name, int& code) {
  std::lock_guard<std::mutex> lock(g_mutex);
  g_called.insert(name);
  if (t_calls_back && !g_no_aiqos) {  // the SDK itself calls from there when a far side is too old
    ++g_inside;
    note(std::string("inside a callback: ") + name);
  }
  auto found = g_failures.find(name);
  if (found == g_failures.end() || found->second.times == 0) return false;
  if (found->second.times > 0) --found->second.times;
  code = found->second.code;
  return true;
}
#define MAY_FAIL               \
  int code_ = 0;               \
  if (fails(__func__, code_)) return code_
#define MAY_FAIL_WITH(value)   \
  int code_ = 0;               \
  if (fails(__func__, code_)) return value

void* add(Handle handle) {
  g_handles[++g_next] = std::move(handle);
  return reinterpret_cast<void*>(g_next);
}

Handle* find(void* handle, Kind kind) {
  auto found = g_handles.find(reinterpret_cast<uintptr_t>(handle));
  if (found != g_handles.end() && found->second.kind == kind) return &found->second;
  ++g_stale;
  note("stale handle");
  return nullptr;
}

void forget(void* handle) { g_handles.erase(reinterpret_cast<uintptr_t>(handle)); }

std::shared_ptr<Connection> connection_of(void* handle, Kind kind = Kind::kConnection) {
  Handle* found = find(handle, kind);
  return found ? found->connection : nullptr;
}

std::vector<std::shared_ptr<Connection>> connections(const std::string& channel = "*") {
  std::vector<std::shared_ptr<Connection>> all;
  for (auto& [id, handle] : g_handles)
    if (handle.kind == Kind::kConnection && (channel == "*" || handle.connection->channel == channel))
      all.push_back(handle.connection);
  return all;
}

void plan(int ms, std::function<void()> work) {
  g_due.emplace(Clock::now() + Ms(ms), std::move(work));
  g_wake.notify_all();
}

void call(std::shared_ptr<Connection> connection, std::function<void(Connection&)> work) {
  g_calls.push_back({std::move(connection), std::move(work)});
  g_wake.notify_all();
}

// ---------------------------------------------------------------- calling back

template <typename... Arguments>
void invoke(const std::vector<Slot>& slots, size_t slot, Arguments... arguments) {
  if (slot < slots.size() && slots[slot]) reinterpret_cast<void (*)(Arguments...)>(slots[slot])(arguments...);
}

void* handle_of(uintptr_t id) { return reinterpret_cast<void*>(id); }

void tell_state(const std::shared_ptr<Connection>& connection, size_t slot, int state, int reason) {
  call(connection, [slot, state, reason, channel = connection->channel, user = connection->user](Connection& c) {
    ConnInfo info{c.id, channel.c_str(), state, user.c_str(), 1};
    if (slot == kLost)
      invoke(c.observer, slot, handle_of(c.id), &info);
    else
      invoke(c.observer, slot, handle_of(c.id), &info, reason);
  });
}

void tell_came(const std::shared_ptr<Connection>& connection, const std::string& user) {
  call(connection, [user](Connection& c) {
    invoke(c.observer, kUserJoined, handle_of(c.id), user.c_str());
    invoke(c.user_observer, kSubscribed, handle_of(c.user_id), user.c_str(), handle_of(7));
  });
}

void tell_gone(const std::shared_ptr<Connection>& connection, const std::string& user, int reason) {
  call(connection, [user, reason](Connection& c) {
    invoke(c.observer, kUserLeft, handle_of(c.id), user.c_str(), reason);
  });
}

void tell_others(const std::string& channel, const std::string& user, bool came, int reason = 0) {
  for (auto& other : connections(channel)) {
    if (!other->connected || other->user == user) continue;
    if (came)
      tell_came(other, user);
    else
      tell_gone(other, user, reason);
  }
}

void tell_data(const std::string& channel, const std::string& user, bool metadata, const std::string& data) {
  for (auto& other : connections(channel)) {
    if (!other->connected || other->user == user) continue;
    call(other, [user, metadata, data](Connection& c) {
      if (metadata)
        invoke(c.user_observer, kMetadata, handle_of(c.user_id), user.c_str(), data.data(), data.size());
      else
        invoke(c.user_observer, kMessage, handle_of(c.user_id), user.c_str(), 1, data.data(), data.size());
    });
  }
}

void leave(const std::shared_ptr<Connection>& c, int reason) {
  if (!c->connected && !c->connecting) return;
  bool was_there = c->connected;
  c->connected = c->connecting = c->lost = c->muted = false;
  ++c->generation;
  c->voice = Voice();
  if (was_there) tell_others(c->channel, c->user, false, reason);
}

// ---------------------------------------------------------------- audio

// Of 10 ms; the rates are whole multiples of each other, or else the pitch is right and little more.
Samples convert(const Samples& in, int from, int to, int16_t& last) {
  if (from == to || in.empty()) return in;
  Samples out(in.size() * size_t(to) / size_t(from));
  for (size_t i = 0; i < out.size(); ++i) {
    double at = (double(i) + 1) * from / to - 1;
    if (from > to) {  // the mean of what one sample stands for
      size_t begin = i * size_t(from) / size_t(to), end = (i + 1) * size_t(from) / size_t(to);
      int sum = 0;
      for (size_t j = begin; j < end; ++j) sum += in[j];
      out[i] = int16_t(sum / int(end - begin));
      continue;
    }
    double floor = std::max(-1.0, double(int64_t(at + 1) - 1));
    int16_t before = floor < 0 ? last : in[size_t(floor)];
    int16_t after = in[std::min(in.size() - 1, size_t(floor + 1))];
    out[i] = int16_t(before + (at - floor) * (after - before));
  }
  last = in.back();
  return out;
}

// 10 ms of what somebody says; empty when nothing is there.
Samples take(Voice& voice) {
  if (!voice.rate) return {};
  size_t count = size_t(voice.rate / 100);
  Samples frame;
  if (!voice.loop.empty()) {
    for (size_t i = 0; i < count; ++i) frame.push_back(voice.loop[(voice.position + i) % voice.loop.size()]);
    voice.position = (voice.position + count) % voice.loop.size();
    return frame;
  }
  if (g_turbo) {
    if (voice.queue.size() < count) return {};
  } else {
    if (!voice.primed && voice.queue.size() < count * kPrimedMs / 10) return {};
    voice.primed = voice.queue.size() >= count;
    if (!voice.primed) return {};
    voice.least = std::min(voice.least, voice.queue.size());
    if (++voice.taken == kWatchedFrames) {  // what was never needed is delay
      size_t needed = count * kPrimedMs / 10;
      if (voice.least > needed) voice.queue.erase(voice.queue.begin(), voice.queue.begin() + long(voice.least - needed));
      voice.least = SIZE_MAX;
      voice.taken = 0;
    }
  }
  frame.assign(voice.queue.begin(), voice.queue.begin() + long(count));
  voice.queue.erase(voice.queue.begin(), voice.queue.begin() + long(count));
  return frame;
}

struct Said {
  std::string channel, user, cipher;
  int rate;
  Samples frame;
};

void deliver(Connection& c, const char* channel, const std::string& user, size_t slot, int rate, Samples samples) {
  AudioFrame frame{};
  frame.samples_per_channel = int(samples.size());
  frame.bytes_per_sample = 2;
  frame.channels = 1;
  frame.samples_per_sec = rate;
  frame.buffer = samples.data();
  if (slot >= c.frame_observer.size() || !c.frame_observer[slot]) return;
  if (slot == kPlayback)
    reinterpret_cast<int (*)(void*, const char*, AudioFrame*)>(c.frame_observer[slot])(handle_of(c.user_id), channel,
                                                                                      &frame);
  else
    reinterpret_cast<int (*)(void*, const char*, const char*, AudioFrame*)>(c.frame_observer[slot])(
        handle_of(c.user_id), channel, user.c_str(), &frame);
  std::fill(samples.begin(), samples.end(), int16_t(0x5a5a));  // it was ours: who has kept it hears that
}

unsigned loudness(const Samples& frame) {
  int peak = 0;
  for (int16_t sample : frame) peak = std::max(peak, std::abs(int(sample)));
  return unsigned(peak * 255 / 32768);
}

void hear(const std::shared_ptr<Connection>& c, const std::vector<Said>& all) {
  std::vector<const Said*> heard;
  for (const Said& said : all) {
    if (said.channel != c->channel || said.user == c->user) continue;
    if (said.cipher != c->cipher) {
      if (c->undecryptable.insert(said.user).second)
        call(c, [](Connection& x) { invoke(x.observer, kEncryptionError, handle_of(x.id), 1); });
      continue;
    }
    heard.push_back(&said);
  }
  if (c->volume_ms && (c->volume_left -= 10) <= 0) {
    c->volume_left = c->volume_ms;
    std::vector<std::pair<std::string, unsigned>> volumes;
    for (const Said* said : heard) volumes.emplace_back(said->user, loudness(said->frame));
    call(c, [volumes](Connection& x) {
      std::vector<VolumeInfo> infos;
      unsigned total = 0;
      for (auto& [user, volume] : volumes) {
        infos.push_back({user.c_str(), volume, volume > 20, 0.0});
        total = std::max(total, volume);
      }
      invoke(x.user_observer, kVolume, handle_of(x.user_id), infos.data(), unsigned(infos.size()), int(total));
    });
  }
  if (!c->config.auto_subscribe_audio) return;
  if (c->user_rate) {
    for (const Said* said : heard) {
      Samples samples = convert(said->frame, said->rate, c->user_rate, c->last[said->user]);
      call(c, [samples, user = said->user, channel = c->channel, rate = c->user_rate](Connection& x) {
        deliver(x, channel.c_str(), user, kBeforeMixing, rate, samples);
      });
    }
  }
  if (c->mix_rate) {
    bool alone = std::none_of(g_far.begin(), g_far.end(), [&](auto& far) { return far->channel == c->channel; });
    for (auto& other : connections(c->channel)) alone = alone && (other == c || !other->connected);
    if (heard.empty() && (g_turbo || alone)) return;
    Samples sum(size_t(c->mix_rate / 100));
    for (const Said* said : heard) {
      Samples samples = convert(said->frame, said->rate, c->mix_rate, c->last[said->user]);
      for (size_t i = 0; i < sum.size() && i < samples.size(); ++i)
        sum[i] = int16_t(std::clamp(sum[i] + samples[i], -32768, 32767));
    }
    c->mixed.insert(c->mixed.end(), sum.begin(), sum.end());
    while (c->mixed.size() >= size_t(c->mix_samples)) {
      Samples samples(c->mixed.begin(), c->mixed.begin() + c->mix_samples);
      c->mixed.erase(c->mixed.begin(), c->mixed.begin() + c->mix_samples);
      call(c, [samples, channel = c->channel, rate = c->mix_rate](Connection& x) {
        deliver(x, channel.c_str(), "", kPlayback, rate, samples);
      });
    }
  }
}

// 10 ms of all channels; whether anybody said anything.
bool move_audio() {
  std::vector<Said> all;
  for (auto& c : connections())
    if (c->connected && !c->lost) {  // what is pushed while it is lost, waits
      Samples frame = take(c->voice);
      if (!frame.empty() && !c->muted)
        all.push_back({c->channel, c->user, c->cipher, c->voice.rate, std::move(frame)});
    }
  for (auto& far : g_far) {
    Samples frame = take(far->voice);
    if (!frame.empty()) all.push_back({far->channel, far->user, far->cipher, far->voice.rate, std::move(frame)});
  }
  ++g_ticks;
  if (g_loss && g_ticks * 37 % 100 < uint64_t(g_loss)) {
    ++g_dropped;
    return !all.empty();
  }
  for (auto& c : connections())
    if (c->connected && !c->lost && !c->muted) hear(c, all);
  for (auto& far : g_far) {
    if (!far->record) continue;
    Samples sum(size_t(far->voice.rate / 100));
    bool any = false;
    for (const Said& said : all) {
      if (said.channel != far->channel || said.user == far->user || said.cipher != far->cipher) continue;
      int16_t last = 0;
      Samples samples = convert(said.frame, said.rate, far->voice.rate, last);
      for (size_t i = 0; i < sum.size() && i < samples.size(); ++i)
        sum[i] = int16_t(std::clamp(sum[i] + samples[i], -32768, 32767));
      any = true;
    }
    if (g_turbo && !any) continue;
    fwrite(sum.data(), 2, sum.size(), far->record);
    fflush(far->record);
  }
  return !all.empty();
}

void run() {
  t_calls_back = true;
  std::unique_lock<std::mutex> lock(g_mutex);
  auto next = Clock::now();
  while (true) {
    auto now = Clock::now();
    while (!g_due.empty() && g_due.begin()->first <= now) {
      auto work = std::move(g_due.begin()->second);
      g_due.erase(g_due.begin());
      work();
    }
    if (g_turbo) {
      for (int i = 0; i < 200 && move_audio(); ++i) {
      }
      next = now;
    } else if (now >= next) {
      for (int i = 0; i < g_bunch; ++i) move_audio();
      next += Ms(10 * g_bunch);
      if (now - next > Ms(200)) next = now;  // the machine stood still
    }
    while (!g_calls.empty()) {
      Planned planned = std::move(g_calls.front());
      g_calls.pop_front();
      g_calling = true;
      lock.unlock();
      {
        std::lock_guard<std::recursive_mutex> calling(planned.connection->calling);
        if (!planned.connection->destroyed) planned.call(*planned.connection);
      }
      lock.lock();
      g_calling = false;
    }
    auto until = g_turbo ? Clock::now() + Ms(1) : next;
    if (!g_due.empty()) until = std::min(until, g_due.begin()->first);
    g_wake.wait_until(lock, until);
  }
}

// ---------------------------------------------------------------- commands

std::string unhex(const std::string& text) {
  std::string data;
  for (size_t i = 0; i + 1 < text.size(); i += 2) data.push_back(char(std::stoi(text.substr(i, 2), nullptr, 16)));
  return data;
}

std::string hex(const char* data, size_t size) {
  std::string text;
  char two[3];
  for (size_t i = 0; i < size; ++i) {
    snprintf(two, sizeof two, "%02x", unsigned(uint8_t(data[i])));
    text += two;
  }
  return text;
}

Samples read_samples(const std::string& path) {
  Samples samples;
  if (FILE* file = fopen(path.c_str(), "rb")) {
    fseek(file, 0, SEEK_END);
    samples.resize(size_t(ftell(file)) / 2);
    rewind(file);
    samples.resize(fread(samples.data(), 2, samples.size(), file));
    fclose(file);
  }
  return samples;
}

void drop(const std::shared_ptr<Connection>& c, int ms, int reason) {
  c->lost = true;
  tell_state(c, kReconnecting, 4, 2);
  int generation = c->generation;
  auto later = [c, generation](std::function<void()> work) {
    return [c, generation, work] {
      if (c->generation == generation && c->connected) work();
    };
  };
  if (ms < 0) {
    plan(-ms, later([c] { tell_state(c, kLost, 4, 0); }));
  } else if (reason) {
    plan(ms, later([c, reason] {
      leave(c, 1);
      tell_state(c, kFailure, 5, reason);
    }));
  } else {
    plan(ms, later([c] {
      c->lost = false;
      tell_state(c, kReconnected, 3, 15);
    }));
  }
}

void expire(const std::shared_ptr<Connection>& c, int ms) {
  int generation = c->generation, renewals = c->renewals;
  call(c, [token = c->token](Connection& x) { invoke(x.observer, kWillExpire, handle_of(x.id), token.c_str()); });
  plan(ms, [c, generation, renewals] {
    if (c->generation != generation || c->renewals != renewals || !c->connected) return;
    c->muted = true;
    call(c, [](Connection& x) { invoke(x.observer, kDidExpire, handle_of(x.id)); });
  });
}

std::string stats() {
  std::map<Kind, int> count;
  int in_channel = 0;
  bool busy = g_calling || !g_calls.empty();
  auto look = [&](const Voice& voice) { busy = busy || (voice.rate && voice.queue.size() >= size_t(voice.rate / 100)); };
  for (auto& [id, handle] : g_handles) {
    ++count[handle.kind];
    if (handle.kind != Kind::kConnection || !handle.connection->connected) continue;
    ++in_channel;
    if (!handle.connection->lost) look(handle.connection->voice);
  }
  for (auto& far : g_far) look(far->voice);
  std::ostringstream text;
  text << "{\"services\":" << count[Kind::kService] << ",\"connections\":" << count[Kind::kConnection]
       << ",\"tracks\":" << count[Kind::kTrack] << ",\"senders\":" << count[Kind::kSender]
       << ",\"factories\":" << count[Kind::kFactory] << ",\"observers\":" << count[Kind::kCapabilities]
       << ",\"joined\":" << in_channel << ",\"created\":" << g_created << ",\"stale\":" << g_stale
       << ",\"inside\":" << g_inside
       << ",\"dropped\":" << g_dropped << ",\"busy\":" << busy << "}";
  return text.str();
}

std::shared_ptr<Far> far_of(const std::string& channel, const std::string& user) {
  for (auto& far : g_far)
    if (far->channel == channel && far->user == user) return far;
  return nullptr;
}

std::string obey(const std::string& line) {
  std::istringstream words(line);
  std::string command, channel, user, text;
  int number = 0, other = 0;
  words >> command;
  std::lock_guard<std::mutex> lock(g_mutex);
  if (command == "join") {
    words >> channel >> user >> number;
    auto far = std::make_shared<Far>();
    far->channel = channel;
    far->user = user;
    far->voice.rate = number;
    g_far.push_back(far);
    tell_others(channel, user, true);
  } else if (command == "leave") {
    words >> channel >> user >> number;
    std::erase_if(g_far, [&](auto& far) { return far->channel == channel && far->user == user; });
    tell_others(channel, user, false, number);
  } else if (command == "say" || command == "hush" || command == "burst" || command == "listen" || command == "key") {
    words >> channel >> user >> text;
    auto far = far_of(channel, user);
    if (!far) return "error nobody of that name is there";
    if (command == "say") {
      far->voice.loop = read_samples(text);
      far->voice.position = 0;
    } else if (command == "hush") {
      far->voice.loop.clear();
    } else if (command == "burst") {
      Samples samples = read_samples(text);
      far->voice.queue.insert(far->voice.queue.end(), samples.begin(), samples.end());
    } else if (command == "listen") {
      if (far->record) fclose(far->record);
      far->record = text.empty() ? nullptr : fopen(text.c_str(), "wb");
    } else {
      far->cipher = text;
    }
  } else if (command == "message" || command == "metadata") {
    words >> channel >> user >> text;
    tell_data(channel, user, command == "metadata", unhex(text));
  } else if (command == "fail") {
    words >> text >> number >> other;
    g_failures[text] = {number, other};
  } else if (command == "refuse") {
    words >> channel >> number;
    g_refusals[channel] = number;
  } else if (command == "expire") {
    words >> channel >> number;
    for (auto& c : connections(channel)) expire(c, number);
  } else if (command == "drop") {
    words >> channel >> number >> other;
    for (auto& c : connections(channel)) drop(c, number, other);
  } else if (command == "kick") {
    words >> channel >> number;
    for (auto& c : connections(channel)) {
      leave(c, 1);
      tell_state(c, kDisconnected, 1, number);
    }
  } else if (command == "set") {
    words >> text >> number;
    if (text == "delay") g_delay_ms = number;
    else if (text == "loss") g_loss = number;
    else if (text == "bunch") g_bunch = number;
    else if (text == "turbo") g_turbo = number != 0;
    else if (text == "late") g_late = number != 0;
    else if (text == "no_aiqos") g_no_aiqos = number != 0;
    else return "error there is no such setting";
  } else if (command == "log") {
    words >> number;
    std::string lines;
    for (size_t i = size_t(number); i < g_log.size(); ++i) lines += (lines.empty() ? "" : "\x1f") + g_log[i];
    return "ok " + lines;
  } else if (command == "called") {
    std::string names;
    for (const std::string& name : g_called) names += (names.empty() ? "" : " ") + name;
    return "ok " + names;
  } else if (command == "stats") {
    return "ok " + stats();
  } else if (command == "reset") {
    g_failures.clear();
    g_refusals.clear();
    g_far.clear();
    g_log.clear();
    g_called.clear();
    g_delay_ms = 5, g_loss = 0, g_bunch = 1, g_stale = g_inside = 0;
    g_turbo = g_late = g_no_aiqos = false;
  } else {
    return "error there is no such command";
  }
  g_wake.notify_all();
  return "ok";
}

void serve(int socket) {
  std::string waiting;
  char buffer[4096];
  while (true) {
    ssize_t count = read(socket, buffer, sizeof buffer);
    if (count <= 0) break;
    waiting.append(buffer, size_t(count));
    for (size_t end; (end = waiting.find('\n')) != std::string::npos; waiting.erase(0, end + 1)) {
      std::string answer = obey(waiting.substr(0, end)) + "\n";
      for (size_t sent = 0; sent < answer.size();) {
        ssize_t done = write(socket, answer.data() + sent, answer.size() - sent);
        if (done <= 0) break;
        sent += size_t(done);
      }
    }
  }
  close(socket);
}

void listen_for_commands(const char* path) {
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  unlink(path);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(listener, 8) != 0) abort();
  std::thread([listener] {
    while (true) {
      int accepted = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      if (accepted >= 0) std::thread(serve, accepted).detach();
    }
  }).detach();
}

struct Start {  // after all that stands above
  Start() {
    std::thread(run).detach();
    if (const char* path = getenv("AGORA_SIM_SOCKET")) listen_for_commands(path);
  }
} start;

template <size_t N>
std::vector<Slot> slots_of(void* observer) {
  Slot* slots = static_cast<Slot*>(observer);
  return slots ? std::vector<Slot>(slots, slots + N) : std::vector<Slot>();
}

}  // namespace

// ---------------------------------------------------------------- the interface

extern "C" {

void* agora_service_create() {
  MAY_FAIL_WITH(nullptr);
  std::lock_guard<std::mutex> lock(g_mutex);
  return add({Kind::kService, nullptr, nullptr});
}

int agora_service_initialize(void* service, const ServiceConfig* config) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  if (!find(service, Kind::kService)) return -7;
  std::ostringstream line;
  line << "service " << (config->app_id ? config->app_id : "") << " area=" << config->area_code
       << " scenario=" << config->audio_scenario << " profile=" << config->channel_profile
       << " string_uid=" << config->use_string_uid << " log=" << (config->log_file_path ? config->log_file_path : "")
       << " log_kb=" << config->log_file_size_kb << " log_level=" << config->log_level;
  note(line.str());
  return 0;
}

int agora_service_release(void* service) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  if (!find(service, Kind::kService)) return -7;
  if (!connections().empty()) note("service released before its connections");
  forget(service);
  note("service released");
  return 0;
}

void* agora_service_create_media_node_factory(void* service) {
  MAY_FAIL_WITH(nullptr);
  std::lock_guard<std::mutex> lock(g_mutex);
  return find(service, Kind::kService) ? add({Kind::kFactory, nullptr, nullptr}) : nullptr;
}
void agora_media_node_factory_destroy(void* factory) {
  std::lock_guard<std::mutex> lock(g_mutex);
  forget(factory);
}
int agora_service_enable_extension(void*, const char*, const char*, const char*, unsigned) { MAY_FAIL; return 0; }
int agora_service_set_log_file(void*, const char*, unsigned) { MAY_FAIL; return 0; }
int agora_service_set_log_filter(void*, unsigned) { MAY_FAIL; return 0; }

void* agora_service_get_agora_parameter(void* service) {
  MAY_FAIL_WITH(nullptr);
  return service;
}
int agora_parameter_set_int(void*, const char*, int) { MAY_FAIL; return 0; }
int agora_parameter_set_bool(void*, const char*, bool) { MAY_FAIL; return 0; }
int agora_parameter_set_parameters(void*, const char* json) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  note(std::string("parameters ") + json);
  return 0;
}

void* agora_media_node_factory_create_audio_pcm_data_sender(void* factory) {
  MAY_FAIL_WITH(nullptr);
  std::lock_guard<std::mutex> lock(g_mutex);
  return find(factory, Kind::kFactory) ? add({Kind::kSender, nullptr, nullptr}) : nullptr;
}
void agora_audio_pcm_data_sender_destroy(void* sender) {
  std::lock_guard<std::mutex> lock(g_mutex);
  forget(sender);
}

static void* create_track(void* service, void* sender) {
  std::lock_guard<std::mutex> lock(g_mutex);
  if (!find(service, Kind::kService) || !find(sender, Kind::kSender)) return nullptr;
  auto track = std::make_shared<Track>();
  track->sender = reinterpret_cast<uintptr_t>(sender);
  return add({Kind::kTrack, nullptr, track});
}
void* agora_service_create_custom_audio_track_pcm(void* service, void* sender) {
  MAY_FAIL_WITH(nullptr);
  return create_track(service, sender);
}
void* agora_service_create_direct_custom_audio_track_pcm(void* service, void* sender) {
  MAY_FAIL_WITH(nullptr);
  return create_track(service, sender);
}
void agora_local_audio_track_destroy(void* track) {
  std::lock_guard<std::mutex> lock(g_mutex);
  forget(track);
}
int agora_local_audio_track_set_enabled(void*, int) { MAY_FAIL; return 0; }
void agora_local_audio_track_set_max_bufferd_frame_number(void*, int) {}
void agora_local_audio_track_set_send_delay_ms(void*, int) {}
int agora_local_audio_track_clear_sender_buffer(void* track) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  Handle* handle = find(track, Kind::kTrack);
  if (!handle) return -1;
  if (auto c = handle->track->published_by.lock()) {
    c->voice.queue.clear();
    note("cleared " + c->user);
  }
  return 0;
}

int agora_audio_pcm_data_sender_send(void* sender, const int16_t* data, uint32_t, int64_t, uint32_t samples,
                                     uint32_t bytes_per_sample, uint32_t channels, uint32_t rate) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  if (!find(sender, Kind::kSender) || bytes_per_sample != 2 || channels != 1) return -2;
  for (auto& [id, handle] : g_handles) {
    if (handle.kind != Kind::kTrack || handle.track->sender != reinterpret_cast<uintptr_t>(sender)) continue;
    auto c = handle.track->published_by.lock();
    if (!c || !c->connected) continue;
    c->voice.rate = int(rate);
    c->voice.queue.insert(c->voice.queue.end(), data, data + samples);
    if (g_turbo) g_wake.notify_all();
  }
  return 0;
}

void* agora_rtc_conn_create(void* service, const ConnConfig* config) {
  MAY_FAIL_WITH(nullptr);
  std::lock_guard<std::mutex> lock(g_mutex);
  if (!find(service, Kind::kService)) return nullptr;
  auto c = std::make_shared<Connection>();
  c->config = *config;
  c->id = reinterpret_cast<uintptr_t>(add({Kind::kConnection, c, nullptr}));
  ++g_created;
  std::ostringstream line;
  line << "create profile=" << config->profile << " role=" << config->role
       << " subscribe=" << config->auto_subscribe_audio << " playout=" << config->enable_audio_recording_or_playout;
  note(line.str());
  return handle_of(c->id);
}

void agora_rtc_conn_destroy(void* connection) {
  std::shared_ptr<Connection> c;
  {
    std::lock_guard<std::mutex> lock(g_mutex);
    c = connection_of(connection);
    if (!c) return;
    leave(c, 0);
    forget(connection);
    forget(handle_of(c->user_id));
    forget(handle_of(c->parameters_id));
    note("destroy");
  }
  std::lock_guard<std::recursive_mutex> calling(c->calling);
  c->destroyed = true;
}

void* agora_rtc_conn_get_local_user(void* connection) {
  MAY_FAIL_WITH(nullptr);
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(connection);
  if (!c) return nullptr;
  if (!c->user_id) c->user_id = reinterpret_cast<uintptr_t>(add({Kind::kUser, c, nullptr}));
  return handle_of(c->user_id);
}

void* agora_rtc_conn_get_agora_parameter(void* connection) {
  MAY_FAIL_WITH(nullptr);
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(connection);
  if (!c) return nullptr;
  if (!c->parameters_id) c->parameters_id = reinterpret_cast<uintptr_t>(add({Kind::kParameters, c, nullptr}));
  return handle_of(c->parameters_id);
}

int agora_rtc_conn_connect(void* connection, const char* token, const char* channel, const char* user) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(connection);
  if (!c) return -7;
  if (c->connected || c->connecting) return -8;
  c->channel = channel;
  c->user = *user && strcmp(user, "0") != 0 ? user : std::to_string(100000 + c->id);
  c->token = token;
  c->connecting = true;
  c->mixed.clear();
  c->undecryptable.clear();
  int generation = ++c->generation;
  note("connect " + c->channel + " " + c->user + " " + c->token);
  plan(g_delay_ms, [c, generation] {
    if (c->generation != generation) return;
    c->connecting = false;
    for (const std::string& name : {c->channel, std::string("*")}) {
      auto refused = g_refusals.find(name);
      if (refused == g_refusals.end() || refused->second == 0) continue;
      if (refused->second > 0) tell_state(c, kFailure, 5, refused->second);
      return;  // less than none: it is never answered
    }
    c->connected = true;
    tell_state(c, kConnected, 3, 1);
    tell_others(c->channel, c->user, true);
    for (auto& other : connections(c->channel))
      if (other != c && other->connected) tell_came(c, other->user);
    for (auto& far : g_far)
      if (far->channel == c->channel) tell_came(c, far->user);
    if (c->capabilities.empty()) return;
    call(c, [missing = g_no_aiqos](Connection& x) {
      CapabilityItem item{1, missing ? "none" : "support"};
      CapabilityItems items{&item, 1};
      Capability capability{&items, 19};
      invoke(x.capabilities, 0, handle_of(x.id), &capability, 1);
    });
  });
  return 0;
}

int agora_rtc_conn_disconnect(void* connection) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(connection);
  if (!c) return -7;
  note("disconnect " + c->channel + " " + c->user);
  leave(c, 0);
  plan(2, [c] {
    tell_state(c, kDisconnected, 1, 5);
    if (!g_late) return;
    for (int i = 0; i < 3; ++i) {
      tell_gone(c, "late", 0);
      tell_came(c, "late");
      tell_state(c, kReconnecting, 4, 2);
      tell_state(c, kLost, 4, 0);
      tell_state(c, kFailure, 5, 4);
      call(c, [](Connection& x) {
        invoke(x.observer, kWillExpire, handle_of(x.id), "token");
        invoke(x.observer, kDidExpire, handle_of(x.id));
        invoke(x.observer, kEncryptionError, handle_of(x.id), 1);
        deliver(x, "late", "late", kPlayback, 16000, Samples(320, 20000));
        deliver(x, "late", "late", kBeforeMixing, 16000, Samples(160, 20000));
      });
    }
  });
  return 0;
}

int agora_rtc_conn_renew_token(void* connection, const char* token) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(connection);
  if (!c) return -7;
  c->token = token;
  c->muted = false;
  ++c->renewals;
  note("renew " + c->token);
  return 0;
}

int agora_rtc_conn_register_observer(void* connection, void* observer) {
  MAY_FAIL;
  std::shared_ptr<Connection> c;
  {
    std::lock_guard<std::mutex> lock(g_mutex);
    if (!(c = connection_of(connection))) return -7;
  }
  std::lock_guard<std::recursive_mutex> calling(c->calling);
  c->observer = slots_of<kConnSlots>(observer);
  return 0;
}
int agora_rtc_conn_unregister_observer(void* connection) {
  MAY_FAIL;
  std::shared_ptr<Connection> c;
  {
    std::lock_guard<std::mutex> lock(g_mutex);
    if (!(c = connection_of(connection))) return -7;
  }
  std::lock_guard<std::recursive_mutex> calling(c->calling);
  c->observer.clear();
  return 0;
}

int agora_rtc_conn_create_data_stream(void* connection, int* stream, int, int) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  if (!connection_of(connection)) return -7;
  *stream = 1;
  return 0;
}
int agora_rtc_conn_send_stream_message(void* connection, int, const char* data, uint32_t size) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(connection);
  if (!c) return -7;
  if (size > 1024) return -2;
  if (!c->connected) return -8;
  note("message " + c->user + " " + hex(data, size));
  tell_data(c->channel, c->user, false, std::string(data, size));
  return 0;
}
int agora_rtc_conn_enable_encryption(void* connection, int enabled, const EncryptionConfig* config) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(connection);
  if (!c) return -7;
  c->cipher.clear();
  if (enabled)
    c->cipher = std::to_string(config->mode) + ":" + config->key + ":" +
                hex(reinterpret_cast<const char*>(config->salt), 32);
  note("encryption " + c->cipher);
  return 0;
}
const char* agora_rtc_conn_get_sid(void*) { return "simulated"; }

int agora_local_user_publish_audio(void* user, void* track) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(user, Kind::kUser);
  Handle* handle = find(track, Kind::kTrack);
  if (!c || !handle) return -1;
  handle->track->published_by = c;
  note("publish " + c->user);
  return 0;
}
int agora_local_user_unpublish_audio(void* user, void* track) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(user, Kind::kUser);
  Handle* handle = find(track, Kind::kTrack);
  if (!c || !handle) return -1;
  handle->track->published_by.reset();
  c->voice = Voice();
  return 0;
}
int agora_local_user_set_audio_scenario(void* user, int scenario) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  if (!connection_of(user, Kind::kUser)) return -1;
  note("scenario " + std::to_string(scenario));
  return 0;
}
int agora_local_user_set_audio_encoder_config(void* user, const int* profile) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  if (!connection_of(user, Kind::kUser)) return -1;
  note("profile " + std::to_string(*profile));
  return 0;
}
int agora_local_user_set_playback_audio_frame_parameters(void* user, int channels, int rate, int, int samples) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(user, Kind::kUser);
  if (!c || channels != 1 || samples <= 0) return -2;
  c->mix_rate = rate;
  c->mix_samples = samples;
  return 0;
}
int agora_local_user_set_playback_audio_frame_before_mixing_parameters(void* user, int channels, int rate) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(user, Kind::kUser);
  if (!c || channels != 1) return -2;
  c->user_rate = rate;
  return 0;
}
int agora_local_user_set_audio_volume_indication_parameters(void* user, int interval_ms, int, bool) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(user, Kind::kUser);
  if (!c) return -1;
  c->volume_ms = c->volume_left = interval_ms;
  return 0;
}

static int set_observer(void* user, std::vector<Slot> Connection::*member, std::vector<Slot> slots) {
  std::shared_ptr<Connection> c;
  {
    std::lock_guard<std::mutex> lock(g_mutex);
    if (!(c = connection_of(user, Kind::kUser))) return -1;
  }
  std::lock_guard<std::recursive_mutex> calling(c->calling);  // until no callback is under way
  (*c).*member = std::move(slots);
  return 0;
}

int agora_local_user_register_observer(void* user, void* observer) {
  MAY_FAIL;
  return set_observer(user, &Connection::user_observer, slots_of<kUserSlots>(observer));
}
int agora_local_user_unregister_observer(void* user) {
  MAY_FAIL;
  return set_observer(user, &Connection::user_observer, {});
}
int agora_local_user_register_audio_frame_observer(void* user, void* observer) {
  MAY_FAIL;
  std::vector<Slot> slots = slots_of<kFrameSlots>(observer);
  int position = reinterpret_cast<int (*)(void*)>(slots[kPosition])(user);
  if (!(position & kPlaybackPosition)) slots[kPlayback] = nullptr;
  if (!(position & kBeforeMixingPosition)) slots[kBeforeMixing] = nullptr;
  return set_observer(user, &Connection::frame_observer, slots);
}
int agora_local_user_unregister_audio_frame_observer(void* user) {
  int code = 0;
  bool failed = fails(__func__, code);  // the SDK frees what is called back all the same, so it has to be forgotten
  int done = set_observer(user, &Connection::frame_observer, {});
  return failed ? code : done;
}
int agora_local_user_send_audio_meta_data(void* user, const char* data, size_t size) {
  MAY_FAIL;
  std::lock_guard<std::mutex> lock(g_mutex);
  auto c = connection_of(user, Kind::kUser);
  if (!c || size > 64) return -2;
  note("metadata " + c->user + " " + hex(data, size));
  tell_data(c->channel, c->user, true, std::string(data, size));
  return 0;
}
void* agora_local_user_capabilities_observer_create(void* observer) {
  MAY_FAIL_WITH(nullptr);
  std::lock_guard<std::mutex> lock(g_mutex);
  return add({Kind::kCapabilities, nullptr, nullptr, observer});
}
void agora_local_user_capabilities_observer_destory(void* observer) {
  std::lock_guard<std::mutex> lock(g_mutex);
  forget(observer);
}
int agora_local_user_register_capabilities_observer(void* user, void* observer) {
  MAY_FAIL;
  void* data = nullptr;
  {
    std::lock_guard<std::mutex> lock(g_mutex);
    Handle* handle = find(observer, Kind::kCapabilities);
    if (!handle) return -1;
    data = handle->data;
  }
  return set_observer(user, &Connection::capabilities, slots_of<1>(data));
}
int agora_local_user_unregister_capabilities_observer(void* user, void*) {
  MAY_FAIL;
  return set_observer(user, &Connection::capabilities, {});
}

// The rest of what the SDK binds when it is imported: nothing of it is used by a bridge.
#define UNUSED(name) \
  int name() { return -1; }
UNUSED(agora_audio_encoded_frame_sender_destroy) UNUSED(agora_audio_encoded_frame_sender_send)
UNUSED(agora_audio_sink_create) UNUSED(agora_audio_sink_destroy) UNUSED(agora_audio_track_add_audio_sink)
UNUSED(agora_audio_track_enable_audio_filter) UNUSED(agora_audio_track_set_filter_property)
UNUSED(agora_local_audio_track_adjust_publish_volume) UNUSED(agora_local_audio_track_enable_ear_monitor)
UNUSED(agora_local_audio_track_enable_local_playback) UNUSED(agora_local_audio_track_get_publish_volume)
UNUSED(agora_local_audio_track_get_state) UNUSED(agora_local_audio_track_is_enabled)
UNUSED(agora_local_audio_track_set_total_extra_send_ms) UNUSED(agora_local_user_adjust_playback_signal_volume)
UNUSED(agora_local_user_destroy_local_audio_statistics) UNUSED(agora_local_user_get_local_audio_statistics)
UNUSED(agora_local_user_get_media_control_packet_sender) UNUSED(agora_local_user_get_playback_signal_volume)
UNUSED(agora_local_user_get_user_role) UNUSED(agora_local_user_publish_video)
UNUSED(agora_local_user_register_media_control_packet_receiver)
UNUSED(agora_local_user_register_video_encoded_frame_observer)
UNUSED(agora_local_user_register_video_frame_observer) UNUSED(agora_local_user_send_intra_request)
UNUSED(agora_local_user_set_mixed_audio_frame_parameters)
UNUSED(agora_local_user_set_recording_audio_frame_parameters) UNUSED(agora_local_user_set_user_role)
UNUSED(agora_local_user_subscribe_all_audio) UNUSED(agora_local_user_subscribe_all_video)
UNUSED(agora_local_user_subscribe_audio) UNUSED(agora_local_user_subscribe_video)
UNUSED(agora_local_user_unpublish_video) UNUSED(agora_local_user_unregister_media_control_packet_receiver)
UNUSED(agora_local_user_unregister_video_encoded_frame_observer)
UNUSED(agora_local_user_unregister_video_frame_observer) UNUSED(agora_local_user_unsubscribe_all_audio)
UNUSED(agora_local_user_unsubscribe_all_video) UNUSED(agora_local_user_unsubscribe_audio)
UNUSED(agora_local_user_unsubscribe_video) UNUSED(agora_local_video_track_destroy)
UNUSED(agora_local_video_track_destroy_statistics) UNUSED(agora_local_video_track_enable_simulcast_stream)
UNUSED(agora_local_video_track_get_state) UNUSED(agora_local_video_track_get_statistics)
UNUSED(agora_local_video_track_get_type) UNUSED(agora_local_video_track_set_enabled)
UNUSED(agora_local_video_track_set_video_encoder_config) UNUSED(agora_local_video_track_update_simulcast_stream)
UNUSED(agora_media_node_factory_create_audio_encoded_frame_sender)
UNUSED(agora_media_node_factory_create_video_encoded_image_sender)
UNUSED(agora_media_node_factory_create_video_frame_sender) UNUSED(agora_parameter_convert_path)
UNUSED(agora_parameter_get_array) UNUSED(agora_parameter_get_bool) UNUSED(agora_parameter_get_int)
UNUSED(agora_parameter_get_number) UNUSED(agora_parameter_get_object) UNUSED(agora_parameter_get_string)
UNUSED(agora_parameter_get_uint) UNUSED(agora_parameter_set_array) UNUSED(agora_parameter_set_number)
UNUSED(agora_parameter_set_string) UNUSED(agora_parameter_set_uint)
UNUSED(agora_remote_audio_track_destroy_statistics) UNUSED(agora_remote_audio_track_get_state)
UNUSED(agora_remote_audio_track_get_statistics) UNUSED(agora_remote_video_track_destroy_statistics)
UNUSED(agora_remote_video_track_destroy_track_info) UNUSED(agora_remote_video_track_get_state)
UNUSED(agora_remote_video_track_get_statistics) UNUSED(agora_remote_video_track_get_track_info)
UNUSED(agora_remote_video_track_get_type) UNUSED(agora_remote_video_track_register_media_packet_receiver)
UNUSED(agora_remote_video_track_register_video_encoded_image_receiver)
UNUSED(agora_remote_video_track_unregister_media_packet_receiver)
UNUSED(agora_remote_video_track_unregister_video_encoded_image_receiver)
UNUSED(agora_service_create_custom_audio_track_encoded) UNUSED(agora_service_create_custom_video_track_encoded)
UNUSED(agora_service_create_custom_video_track_frame) UNUSED(agora_video_encoded_frame_observer_create)
UNUSED(agora_video_encoded_frame_observer_destroy) UNUSED(agora_video_encoded_image_receiver_destroy)
UNUSED(agora_video_encoded_image_sender_destroy) UNUSED(agora_video_encoded_image_sender_send)
UNUSED(agora_video_frame_observer2_create) UNUSED(agora_video_frame_observer2_destroy)
UNUSED(agora_video_frame_sender_destroy) UNUSED(agora_video_frame_sender_send)
UNUSED(agora_video_frame_observer_get_rotation_applied)

}  // extern "C"
