"""What gets through to standard error while TensorFlow is kept quiet: in a process of its own, as C++ writes it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from ringserve.workers.quiet import quiet

ROOT = Path(__file__).parents[2]

NOISE = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795245810.903857   26562 port.cc:153] oneDNN custom operations are on.
E0000 00:00:1795245814.465797   26562 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error
E0000 00:00:1731000000.0 1 cuda_fft.cc:477] Unable to register cuFFT factory: Attempting to register factory
2024-11-07 10:00:00.123456: I tensorflow/core/platform/cpu_feature_guard.cc:210] This binary is optimized
W0000 00:00:1795245815.515924   26567 x.cc:1] something
To enable the following instructions: AVX2, in other operations, rebuild TensorFlow with the appropriate flags.
"""
NEWS = """\
E0000 00:00:1795245814.465797   26562 cuda_driver.cc:1] out of memory
F0000 00:00:1795245814.465797   26562 x.cc:9] Check failed: a == b
2024-11-07 10:00:00.123456: E tensorflow/x.cc:1] a real error
terminate called after throwing an instance of 'std::bad_alloc'
"""
PROGRAM = """
import os, sys
from ringserve.workers.quiet import quiet
noise, news = sys.argv[2:4]
with quiet(sys.argv[1]):
    os.write(2, noise.encode())
    os.write(2, news[:10].encode())
    os.write(2, news[10:].encode())
    os.write(2, b"no end of line")
    if sys.argv[4] == "abort":
        os.abort()
os.write(2, b"\\nI0000 after\\n")
assert not os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children") or not open(
    f"/proc/{os.getpid()}/task/{os.getpid()}/children").read()
"""


def run(log_level: str, way: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, log_level, NOISE, NEWS, way],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_noise_is_dropped_and_errors_are_not() -> None:
    assert run("info", "go on") == (0, f"{NEWS}no end of line\nI0000 after\n")


def test_debug_shows_everything() -> None:
    assert run("debug", "go on") == (0, f"{NOISE}{NEWS}no end of line\nI0000 after\n")


def test_last_words_come_out() -> None:
    status, text = run("info", "abort")
    assert status < 0
    assert text == f"{NEWS}no end of line"


@pytest.mark.parametrize("log_level", ["info", "debug"])
def test_what_the_pool_does_with_it(log_level: str) -> None:
    """The real import and the real first look for devices."""
    program = """
import sys
from ringserve.workers import device
from ringserve.workers.quiet import quiet
device.prepare(1)
with quiet(sys.argv[1]):
    import ringserve.workers.servable
with quiet(sys.argv[1]):
    from ringserve.workers import session
    session.start_threads(1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, log_level], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120
    )
    assert done.returncode == 0
    assert bool(done.stderr) is (log_level == "debug")


def test_nobody_who_reads_keeps_nobody_waiting() -> None:
    """The child that passes lines on drops what is not taken, and goes on reading."""
    program = """
import os, sys
from ringserve.config import process
process.set_up_log("test", "info", "text")
from ringserve.workers.quiet import quiet
with quiet("info"):
    for _ in range(10_000):
        os.write(2, b"x" * 500 + b"\\n")
"""
    out, into = os.pipe()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=into, timeout=60)
    assert done.returncode == 0
    os.close(out)
    os.close(into)


def test_without_room_for_one_more_process_the_noise_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process() -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", no_process)
    before = os.listdir("/proc/self/fd")
    ran = False
    with quiet("info"):
        ran = True
    assert ran
    assert os.listdir("/proc/self/fd") == before
