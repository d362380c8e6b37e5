"""One run at a time in a workdir: real processes, one of which is refused or killed."""

import errno
import fcntl
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys

import pytest

from cmjax.base import lock
from helpers import tiny

ROOT = pathlib.Path(__file__).parents[2]
HOLDER = """
import pathlib, sys, time
from cmjax.base import lock
with lock.hold(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(600)
"""


@pytest.fixture(name="holder")
def _holder(tmp_path):
  """Another process, which holds the lock of tmp_path / "run"."""
  command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
  with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()


def test_a_second_run_is_refused_with_the_name_of_the_first_and_writes_nothing(holder, tmp_path):
  workdir = tmp_path / "run"
  before = (workdir / "lock").read_text()
  assert {"host": platform.node(), "pid": holder.pid}.items() <= json.loads(before).items()
  message = f"Another run trains in .*run: process {holder.pid} on .*, since 20.* SIGTERM"
  with pytest.raises(ValueError, match=message):
    tiny.train(tiny.config(), workdir)
  assert [path.name for path in workdir.iterdir()] == ["lock"]
  assert (workdir / "lock").read_text() == before


def test_a_killed_run_blocks_nobody(holder, tmp_path, caplog):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with lock.hold(tmp_path / "run"):
    assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == os.getpid()
  assert not caplog.text


def test_the_lock_is_let_go_in_the_end_and_after_an_error(tmp_path):
  for error in (None, KeyError, SystemExit):
    try:
      with lock.hold(tmp_path):
        with pytest.raises(ValueError, match="Another run trains"), lock.hold(tmp_path):
          pass
        if error:
          raise error
    except (KeyError, SystemExit):
      pass
    assert not (tmp_path / "lock").read_text()


def test_a_run_of_another_host_that_did_not_end_by_itself_is_named(tmp_path, caplog):
  (tmp_path / "lock").write_text('{"host": "elsewhere", "pid": 7, "since": "yesterday"}')
  with lock.hold(tmp_path):
    pass
  assert "process 7 on elsewhere, since yesterday, did not end by itself" in caplog.text


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
  def flock(file, flags):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

  monkeypatch.setattr(fcntl, "flock", flock)
  with lock.hold(tmp_path):
    pass
  assert f"The file system of {tmp_path} has no locks (" in caplog.text


def test_one_process_of_a_run_takes_it_and_all_are_told(tmp_path):
  asked = []
  with lock.hold(tmp_path, primary=False, agree=lambda ok: asked.append(ok) or True):
    assert asked == [True] and not list(tmp_path.iterdir())
  refuse = lambda ok: False
  with pytest.raises(ValueError, match="Process 0 was refused .*: its log says why"):
    with lock.hold(tmp_path, primary=False, agree=refuse):
      pass
  with lock.hold(tmp_path):
    with pytest.raises(ValueError, match="Another run trains"):  # after all were asked
      with lock.hold(tmp_path, agree=lambda ok: asked.append(ok) or ok):
        pass
  assert asked == [True, False]


def test_a_workdir_that_cannot_be_written_says_so(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(ValueError, match="Cannot write to the workdir .*file.*: .* another --workd"):
    with lock.hold(tmp_path / "file"):
      pass
