"""One writer at a time in a workdir: real processes, one of which is refused or killed."""

import errno
import fcntl
import json
import logging
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import threading

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


def test_whether_a_lock_is_held_is_seen_without_taking_it(holder, tmp_path):
  workdir = tmp_path / "run"
  before = (workdir / "lock").read_text()
  assert lock.is_held(workdir) and not lock.is_held(workdir, "evaluate")
  assert not lock.is_held(tmp_path / "none") and not (tmp_path / "none").exists()
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert not lock.is_held(workdir)  # though the file still has its name
  assert (workdir / "lock").read_text() == before
  assert [path.name for path in workdir.iterdir()] == ["lock"]


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


def test_where_a_file_system_has_no_locks_there_is_a_lease(tmp_path, monkeypatch):
  def flock(file, flags):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

  monkeypatch.setattr(fcntl, "flock", flock)
  with lock.hold(tmp_path) as check:
    check()
    with pytest.raises(ValueError, match=f"Another run trains in .*: process {os.getpid()} on "):
      with lock.hold(tmp_path):
        pass
  with lock.hold(tmp_path):  # it was let go
    assert [path.name for path in (tmp_path / "lock.lease").iterdir()] == ["000002.json"]


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


TOGETHER = [("train", "evaluate"), ("train", "average"), ("convert", "search"),
            ("evaluate", "average"), ("search", "sample"), ("train", "sample")]  # fmt: skip
APART = [("train", "train"), ("train", "convert"), ("convert", "convert"), ("prepare", "prepare"),
         ("evaluate", "evaluate"), ("average", "average"), ("sample", "sample")]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), TOGETHER)
def test_what_writes_other_things_goes_on_beside(tmp_path, first, second):
  with lock.hold(tmp_path, first), lock.hold(tmp_path, second):
    pass


@pytest.mark.parametrize(("first", "second"), APART)
def test_what_writes_the_same_is_refused_in_one_line_with_who_holds_it(tmp_path, first, second):
  with lock.hold(tmp_path, first):
    with pytest.raises(ValueError) as refused, lock.hold(tmp_path, second):
      pass
  says = str(refused.value)
  assert says.startswith(f"{lock.TASKS[first].busy} {tmp_path}: process {os.getpid()} on ")
  assert "\n" not in says and lock.TASKS[first].advice in says
  with lock.hold(tmp_path, second):  # once it has ended
    pass


def test_who_may_wait_says_for_whom_and_comes_next(tmp_path, caplog):
  caplog.set_level(logging.INFO, "cmjax")
  order, waiting = [], threading.Event()

  def second():
    waiting.set()
    with lock.hold(tmp_path, "search", wait=True):
      order.append("second")

  with lock.hold(tmp_path, "search", wait=True):
    thread = threading.Thread(target=second)
    thread.start()
    assert waiting.wait(30)
    while "This one waits for it" not in caplog.text:
      pass
    order.append("first")
  thread.join()
  assert order == ["first", "second"]
  assert (
    f"Another process writes searched times in {tmp_path}: process {os.getpid()}" in caplog.text
  )
  assert len(caplog.records) == 1


def replaced(workdir):
  workdir.rename(workdir.with_name("away"))
  workdir.mkdir()


def with_another_lock(workdir):
  replaced(workdir)
  (workdir / "lock").write_text('{"host": "elsewhere"}')


def linked(workdir):
  replaced(workdir)
  workdir.rmdir()
  workdir.symlink_to(workdir.with_name("other"))
  workdir.with_name("other").mkdir()


GONE = {
  "renamed": lambda workdir: workdir.rename(workdir.with_name("away")),
  "removed": shutil.rmtree,
  "replaced": replaced,
  "replaced by another run's": with_another_lock,
  "a link to another": linked,
  "below what was renamed": lambda workdir: workdir.parent.rename(workdir.parents[1] / "away"),
}
STAYS = {
  "nothing": lambda workdir: None,
  "the lock's file removed": lambda workdir: (workdir / "lock").unlink(),
  "renamed and back": lambda workdir: workdir.rename("x") and pathlib.Path("x").rename(workdir),
  "other files": lambda workdir: (workdir / "file").write_text("new"),
  "moved, and a link in its place": lambda workdir: workdir.symlink_to(
    workdir.rename(workdir.with_name("away"))
  ),
}


@pytest.mark.parametrize("change", GONE.values(), ids=GONE)
def test_a_workdir_that_is_no_longer_there_is_noticed(tmp_path, change):
  workdir = tmp_path / "above" / "run"
  with lock.hold(workdir) as check:
    check()
    change(workdir)
    with pytest.raises(OSError, match="above/run was renamed, removed or replaced while") as error:
      check()
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", STAYS.values(), ids=STAYS)
def test_one_that_is_the_same_is_not(tmp_path, change, monkeypatch):
  monkeypatch.chdir(tmp_path)
  workdir = tmp_path / "above" / "run"
  with lock.hold(workdir) as check:
    change(workdir)
    check()


def test_nor_is_one_on_a_mount_that_gives_folders_new_numbers(tmp_path, monkeypatch):
  with lock.hold(tmp_path) as check:
    monkeypatch.setattr(os.path, "samestat", lambda a, b: False)
    check()


def test_who_holds_a_lock_clears_what_killed_writers_left(tmp_path):
  (tmp_path / "cards").mkdir()
  names = ("scores.json.0123456789abcdef.partial", "cards/a.json.fedcba9876543210.partial")
  for task in lock.TASKS:
    for name in names:
      (tmp_path / name).write_text("half")
    with lock.hold(tmp_path, task):
      assert not any((tmp_path / name).exists() for name in names)


def test_a_workdir_that_cannot_be_written_says_so(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(ValueError, match="Cannot write to the workdir .*file.*: .* another --workd"):
    with lock.hold(tmp_path / "file"):
      pass
