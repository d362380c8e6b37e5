"""The stacks of all threads: when they are asked for, and when nothing goes on."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from cmjax.run.stacks import Stacks


@pytest.fixture(name="tmp_path")
def _tmp_path(tmp_path):
  return epath.Path(tmp_path)  # as `paths.place` gives it


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


class Life:
  """Of a run: its signs of life are counted."""

  turns = 0


@pytest.fixture(name="opened")
def _opened(tmp_path):
  """Stacks whose thread never looks by itself: (stacks, clock, life, stream)."""
  clock, life, stream = Clock(), Life(), io.StringIO()
  doing = lambda: "evaluations"
  with Stacks(
    *(tmp_path, 3, 100.0, lambda: life.turns, doing), stream=stream, clock=clock, tick=1e6
  ) as stacks:
    stacks.look()
    yield stacks, clock, life, stream


def count(stream):
  return stream.getvalue().count("Current thread")


def test_a_signal_writes_the_stacks_to_the_file_and_to_the_screen_and_the_run_goes_on(opened):
  stacks, _, _, stream = opened
  os.kill(os.getpid(), signal.SIGUSR2)
  text = stacks.path.read_text()
  assert stacks.path.name == "stacks.3.txt" and "Current thread" in text
  assert "test_a_signal_writes" in text and "stacks.py" in text  # of two threads
  assert stream.getvalue() == ""
  stacks.look()
  stacks.look()
  assert stream.getvalue() == text


def test_a_stall_is_told_once_and_again_after_twice_as_long(opened, caplog):
  stacks, clock, life, stream = opened
  told = []
  for clock.now in range(0, 500, 10):
    stacks.look()
    told.append(count(stream))
  assert [clock_ for clock_, n in zip(range(0, 500, 10), told, strict=True) if n == 1][0] == 100
  assert (told[19], told[20], told[39], told[40], told[-1]) == (1, 2, 2, 3, 3)
  assert "No step has ended for 100 s (now: evaluations)" in caplog.text
  life.turns += 1
  stacks.look()
  clock.now += 99
  stacks.look()
  assert count(stream) == 3
  clock.now += 1
  stacks.look()
  assert count(stream) == 4


def test_without_a_limit_nothing_is_a_stall(tmp_path):
  clock, stream = Clock(), io.StringIO()
  with Stacks(tmp_path, 0, None, lambda: 0, lambda: "", stream=stream, clock=clock) as stacks:
    clock.now = 1e9
    stacks.look()
  assert stream.getvalue() == "" and list(tmp_path.iterdir()) == []


def test_somebody_elses_handler_stays(tmp_path):
  heard = []
  before = signal.signal(signal.SIGUSR2, lambda *_: heard.append(1))
  try:
    with Stacks(tmp_path, 0, None, lambda: 0, lambda: "", stream=io.StringIO()):
      signal.raise_signal(signal.SIGUSR2)
  finally:
    signal.signal(signal.SIGUSR2, before)
  assert heard == [1] and list(tmp_path.iterdir()) == []


def test_a_process_that_hangs_in_a_library_answers_too(tmp_path):
  """Its main thread never comes back to Python, where a handler of Python's would run."""
  code = (
    "import ctypes, sys, time; from pathlib import Path; from cmjax.run.stacks import Stacks\n"
    "with Stacks(Path(sys.argv[1]), 0, None, lambda: 0, lambda: '', tick=0.1):\n"
    "  print('there', flush=True)\n"
    "  def hang(): ctypes.CDLL(None).pthread_join(ctypes.c_ulong(main), None)\n"
    "  import threading; main = threading.get_ident()\n"
    "  lock = (ctypes.c_byte * 64)()\n"
    "  libc = ctypes.CDLL(None)\n"
    "  libc.pthread_mutex_lock(lock); libc.pthread_mutex_lock(lock)\n"  # never returns
  )
  command = [sys.executable, "-c", code, str(tmp_path)]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  try:
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    path, deadline = tmp_path / "stacks.0.txt", time.monotonic() + 20
    time.sleep(0.3)
    process.send_signal(signal.SIGUSR2)
    while "Current thread" not in path.read_text() and time.monotonic() < deadline:
      time.sleep(0.05)
    assert "<string>" in path.read_text() and process.poll() is None
    time.sleep(0.5)
  finally:
    process.kill()
    _, errors = process.communicate()
  assert "Current thread" in errors


def test_a_program_answers_before_it_has_a_workdir_and_after_it_left_it(tmp_path):
  code = (
    "import signal, sys; from pathlib import Path\n"
    "from cmjax.commands import start\n"
    "from cmjax.run.stacks import Stacks\n"
    "def ask(): signal.raise_signal(signal.SIGUSR2)\n"
    "def run(command):\n"
    "  ask()\n"
    "  with Stacks(Path(command.values.workdir), 0, None, lambda: 0, lambda: ''): ask()\n"
    "  ask()\n"
    "start.join_and_run = run\n"
    "start.start(['x', '--config=toy2d_sct', '--workdir=' + sys.argv[1]], 'train')\n"
  )
  command = [sys.executable, "-c", code, str(tmp_path)]
  ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
  assert ran.returncode == 0, ran.stderr
  assert (tmp_path / "stacks.0.txt").read_text().count("in ask") == 1
  assert ran.stderr.count("in ask") == 3
