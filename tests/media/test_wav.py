# SPDX-License-Identifier: GPL-3.0-or-later
"""Sound files as they are played and recorded."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from sipbridge.errors import MediaError
from sipbridge.media import wav
from sipbridge.media.tones import Tone
from sipbridge.media.wav import LateWavSource, WavRecorder, WavSource, open_wav
from tests.support.audio import find_tone, level_dbfs, read_wav
from tests.support.waiting import wait_until

NOISE = np.random.default_rng(0).integers(-30000, 30000, 8000).astype(np.int16)


def write(
    path: Path, samples: NDArray[np.int16 | np.float64], rate_hz: int = 8000, subtype: str = "PCM_16"
) -> Path:
    """Write by libsndfile."""
    soundfile.write(path, samples, rate_hz, subtype)
    return path


def test_pcm16_at_its_own_rate_is_bit_exact(tmp_path: Path) -> None:
    """Nothing touches a file that needs no conversion; it ends once."""
    source = WavSource(write(tmp_path / "noise.wav", NOISE), 8000)
    pieces = [source.read(300) for _ in range(30)]
    assert [len(piece) for piece in pieces] == [300] * 26 + [200, 0, 0, 0]
    np.testing.assert_array_equal(np.concatenate(pieces), NOISE)


def test_loop(tmp_path: Path) -> None:
    """A loop goes on from the last sample to the first."""
    source = WavSource(write(tmp_path / "noise.wav", NOISE), 8000, loop=True)
    np.testing.assert_array_equal(source.read(20000), np.resize(NOISE, 20000))


@pytest.mark.parametrize(
    ("subtype", "tolerance"),
    [
        ("PCM_U8", 256),
        ("PCM_24", 0),
        ("PCM_32", 0),
        ("FLOAT", 0),
        ("DOUBLE", 0),
        ("ULAW", 600),
        ("ALAW", 600),
    ],
)
def test_encodings(tmp_path: Path, subtype: str, tolerance: int) -> None:
    """Each encoding gives the sound that went in, as exactly as it can."""
    source = WavSource(write(tmp_path / "noise.wav", NOISE / 32768, subtype=subtype), 8000)
    assert np.abs(source.read(8000).astype(int) - NOISE).max() <= tolerance


@pytest.mark.parametrize("rate_hz", [8000, 16000, 48000])
@pytest.mark.parametrize("file_rate_hz", [8000, 11025, 22050, 44100, 96000])
def test_rates(tmp_path: Path, file_rate_hz: int, rate_hz: int) -> None:
    """A file of any rate keeps its pitch, level and length."""
    tone = Tone(1000, file_rate_hz, -12).read(file_rate_hz)
    heard = WavSource(write(tmp_path / "tone.wav", tone, file_rate_hz), rate_hz).read(2 * rate_hz)
    assert len(heard) == pytest.approx(rate_hz, abs=1)
    assert find_tone(heard, rate_hz) == pytest.approx(1000, abs=1)
    assert level_dbfs(heard) == pytest.approx(-12, abs=0.1)


def test_stereo_becomes_mono(tmp_path: Path) -> None:
    """Both channels are heard, and their sum does not overflow."""
    stereo = np.stack((NOISE, np.full_like(NOISE, 30000)), axis=1)
    heard = WavSource(write(tmp_path / "stereo.wav", stereo), 8000).read(8000)
    assert np.abs(heard - (NOISE.astype(int) + 30000) / 2).max() <= 0.5


def test_float_beyond_full_scale_is_cut(tmp_path: Path) -> None:
    """Samples above 1.0 saturate; what is no number is silence."""
    samples = np.array([2.0, -2.0, np.nan, 0.5])
    heard = WavSource(write(tmp_path / "hot.wav", samples, subtype="FLOAT"), 8000).read(4)
    np.testing.assert_array_equal(heard, [32767, -32768, 0, 16384])


def test_empty_file(tmp_path: Path) -> None:
    """A file with no samples is over at once, also in a loop."""
    path = write(tmp_path / "empty.wav", NOISE[:0])
    assert len(WavSource(path, 16000).read(100)) == 0
    assert len(WavSource(path, 16000, loop=True).read(100)) == 0


def test_calls_share_the_samples_not_the_place(tmp_path: Path) -> None:
    """Two calls that play one file read it independently; a file that changed is read anew."""
    path = write(tmp_path / "noise.wav", NOISE)
    first, second = WavSource(path, 8000), WavSource(path, 8000)
    first.read(4000)
    piece = second.read(40)
    np.testing.assert_array_equal(piece, NOISE[:40])
    with pytest.raises(ValueError, match="read-only"):
        piece[:] = 0
    write(path, NOISE[::-1])
    np.testing.assert_array_equal(WavSource(path, 8000).read(8000), NOISE[::-1])


def test_unusable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each error names the file and what is the matter with it."""
    with pytest.raises(MediaError, match=r"absent\.wav: No such file"):
        WavSource(tmp_path / "absent.wav", 8000)
    text = tmp_path / "text.wav"
    text.write_text("not a sound")
    with pytest.raises(MediaError, match=r"text\.wav: cannot be read as a sound file"):
        WavSource(text, 8000)
    with pytest.raises(MediaError, match="cannot be read as a sound file"):
        WavSource(tmp_path, 8000)
    monkeypatch.setattr(wav, "MAX_DURATION_S", 0.5)
    with pytest.raises(MediaError, match=r"long\.wav: longer than"):
        WavSource(write(tmp_path / "long.wav", NOISE), 8000)


@pytest.mark.parametrize(("rate_hz", "channels"), [(8000, 1), (48000, 2)])
def test_recording(tmp_path: Path, rate_hz: int, channels: int) -> None:
    """What is written is what the file holds, to the bit."""
    samples = np.random.default_rng(1).integers(-32768, 32768, (rate_hz, channels)).astype(np.int16)
    recorder = WavRecorder(tmp_path / "call.wav", rate_hz, channels)
    for frame in np.split(samples, 200):
        recorder.write(frame[:, 0] if channels == 1 else frame)
    recorder.close()
    recorder.close()
    assert (recorder.truncated, recorder.dropped_samples, recorder.duration_s) == (False, 0, 1.0)
    heard, heard_rate_hz = soundfile.read(tmp_path / "call.wav", dtype="int16", always_2d=True)
    assert heard_rate_hz == rate_hz
    np.testing.assert_array_equal(heard, samples)


def test_recorder_does_not_keep_the_callers_memory(tmp_path: Path) -> None:
    """The buffer of a tick may be used again at once."""
    recorder = WavRecorder(tmp_path / "call.wav", 8000)
    frame = np.empty(40, np.int16)
    for value in range(100):
        frame[:] = value
        recorder.write(frame)
    recorder.close()
    heard, _ = read_wav(tmp_path / "call.wav")
    np.testing.assert_array_equal(heard, np.repeat(np.arange(100), 40))


def test_file_is_valid_while_it_is_written(tmp_path: Path) -> None:
    """Should the process end now, the file can be read."""
    recorder = WavRecorder(tmp_path / "call.wav", 8000)
    recorder.write(NOISE)
    path = recorder.path
    wait_until(
        lambda: path.stat().st_size > 44 and soundfile.info(path).frames == 8000, 10, "8000 samples on disk"
    )
    recorder.write(NOISE)
    recorder.close()
    assert soundfile.info(path).frames == 16000


def test_nothing_recorded(tmp_path: Path) -> None:
    """A call without sound leaves a valid, empty file; what comes after its end is counted."""
    recorder = WavRecorder(tmp_path / "call.wav", 8000)
    recorder.close()
    recorder.write(NOISE)
    assert recorder.dropped_samples == len(NOISE)
    assert soundfile.info(tmp_path / "call.wav").frames == 0


def test_file_that_cannot_be_made(tmp_path: Path) -> None:
    """This the caller is told, with the name and the reason."""
    with pytest.raises(MediaError, match=r"nowhere/call\.wav: cannot record: No such file"):
        WavRecorder(tmp_path / "nowhere" / "call.wav", 8000)


def test_stalled_disk_drops_and_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing can be written, five seconds are kept and the rest is counted."""
    recorder = WavRecorder(tmp_path / "call.wav", 8000)
    stalled, go_on = threading.Event(), threading.Event()
    append = recorder._append

    def stall(data: bytes) -> int:
        stalled.set()
        go_on.wait()
        return append(data)

    monkeypatch.setattr(recorder, "_append", stall)
    recorder.write(NOISE)
    assert stalled.wait(10)
    for _ in range(7):
        recorder.write(NOISE)
    assert recorder._refused == 3 * 8000
    go_on.set()
    recorder.close()
    assert recorder.dropped_samples == 3 * 8000
    assert not recorder.truncated
    np.testing.assert_array_equal(read_wav(tmp_path / "call.wav")[0], np.tile(NOISE, 5))


def test_full_disk_ends_the_file() -> None:
    """Where there is no room at all, the recorder says so and the caller is not bothered."""
    recorder = WavRecorder(Path("/dev/full"), 8000)
    recorder.write(NOISE)
    recorder.close()
    assert recorder.truncated
    assert recorder.dropped_samples == len(NOISE)
    assert recorder.duration_s == 0


def test_disk_that_fills_up_keeps_what_there_is(tmp_path: Path) -> None:
    """At the limit the file ends, valid, with all that had room."""
    path = tmp_path / "call.wav"
    # The limit on file size is that of the process, so this needs one of its own.
    script = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from sipbridge.media.wav import WavRecorder
        resource.setrlimit(resource.RLIMIT_FSIZE, (10045, 10045))
        recorder = WavRecorder(Path(sys.argv[1]), 8000)
        for start in range(0, 8000, 40):
            recorder.write(np.arange(start, start + 40, dtype=np.int16))
        recorder.close()
        print(recorder.truncated, recorder.dropped_samples)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "3000"]
    np.testing.assert_array_equal(read_wav(path)[0], np.arange(5000))


def test_largest_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file ends before its size no longer fits the header."""
    monkeypatch.setattr(wav, "_MAX_DATA_BYTES", 12000)
    recorder = WavRecorder(tmp_path / "call.wav", 8000)
    recorder.write(NOISE)
    recorder.close()
    assert recorder.truncated
    assert recorder.dropped_samples == 2000
    np.testing.assert_array_equal(read_wav(tmp_path / "call.wav")[0], NOISE[:6000])


# --- files for the media thread, whose rate may change

LEVEL = np.full(800, 8192, np.int16)


def read_until_it_sounds(source: LateWavSource, count: int) -> NDArray[np.int16]:
    for _ in range(100_000):
        samples = source.read(count)
        if len(samples) < count or samples.any():
            return samples
    raise AssertionError("it was never read")


def test_opened_file_follows_the_rate(tmp_path: Path) -> None:
    """At the rate it was opened for it is there at once, at another one by and by; from the start."""
    make = open_wav(write(tmp_path / "a.wav", LEVEL), 8000)
    np.testing.assert_array_equal(make(8000).read(40), np.full(40, 8192))
    late = make(16000)
    assert isinstance(late, LateWavSource)
    read_until_it_sounds(late, 80)
    heard = np.concatenate([late.read(80) for _ in range(10)])
    assert np.abs(heard.astype(int) - 8192).max() < 100


def test_late_file_ends_or_loops(tmp_path: Path) -> None:
    """As it was asked for."""
    path = write(tmp_path / "a.wav", LEVEL)
    once, looped = LateWavSource(path, 8000), LateWavSource(path, 8000, loop=True)
    for source in (once, looped):
        read_until_it_sounds(source, 80)
        for _ in range(9):
            assert len(source.read(80)) == 80
    assert len(once.read(80)) == 0
    assert (looped.read(80) == 8192).all()


def test_late_file_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is there to be told: a line in the log, and the end of the sound."""
    source = LateWavSource(tmp_path / "gone.wav", 8000)
    assert len(read_until_it_sounds(source, 80)) == 0
    assert "gone.wav" in caplog.text


def test_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """This is told at once."""
    with pytest.raises(MediaError, match=r"gone\.wav"):
        open_wav(tmp_path / "gone.wav", 8000)
