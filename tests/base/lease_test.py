"""Leases: a live holder's is never taken, a dead one's after a stated time, by one of two."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
from etils import epath

from cmjax.base import lease
from cmjax.base.lease import DEAD, RENEW, Held, Lease

ROOT = pathlib.Path(__file__).parents[2]


class Clock:
  """A clock that goes on where somebody sleeps; `then` happens meanwhile."""

  def __init__(self, then=lambda: None):
    self.now, self.then = 1000.0, then

  def __call__(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds
    self.then()


@pytest.fixture(name="folder")
def _folder(tmp_path, monkeypatch):
  """Of leases whose holders do not know each other's machines, nor renew by themselves."""
  monkeypatch.setattr(lease, "_process", dict)
  monkeypatch.setattr(Lease, "_beat", lambda self: None)
  return epath.Path(tmp_path) / "lock.lease"


def a_lease(folder, clock, creates=True, **about):
  about = {"pid": 7, "host": "here", "task": "train"} | about
  return Lease(folder, about, creates=creates, clock=clock, sleep=clock.sleep)


def numbers(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("creates", [True, False])
def test_a_dead_holders_lease_is_taken_after_the_stated_time_and_no_sooner(folder, caplog, creates):
  clock = Clock()
  a_lease(folder, clock, creates, pid=1, host="gone").take()
  began = clock.now
  assert (DEAD, RENEW) == (90.0, 15.0)  # as docs/guides/buckets.md says
  second = a_lease(folder, clock, creates)
  second.take()
  assert DEAD - 1 <= clock.now - began <= DEAD + 10
  assert "Process 1 on gone held" in caplog.text and "it is taken over" in caplog.text
  assert numbers(folder) == ["000002.json"] and second.check() == ""


@pytest.mark.parametrize("wait", [False, True])
def test_a_live_holders_lease_is_never_taken(folder, wait):
  first_clock = Clock()
  first = a_lease(folder, first_clock, pid=1, host="lives")
  first.take()
  clock, seen = Clock(), []

  def meanwhile():
    if clock.now % RENEW < 3:
      first.renew()
    if clock.now > 1000 + 10 * DEAD:
      first.let_go()

  clock.then = meanwhile
  second = a_lease(folder, clock)
  if not wait:
    with pytest.raises(Held) as held:
      second.take()
    assert held.value.args[0]["host"] == "lives" and clock.now - 1000 < 2 * RENEW
    assert first.check() == "" and numbers(folder) == ["000001.json"]
  else:
    second.take(wait=True, say=seen.append)
    assert clock.now > 1000 + 10 * DEAD and seen[0]["pid"] == 1


def test_an_old_lease_is_taken_at_once_by_the_clock_of_its_place(folder):
  clock = Clock()
  a_lease(folder, clock).take()
  when = os.stat(folder / "000001.json").st_mtime - DEAD - 1
  os.utime(folder / "000001.json", (when, when))
  a_lease(folder, clock).take()
  assert clock.now == 1000.0


def test_whether_a_lease_is_held_is_seen_by_its_last_beat(folder):
  assert not lease.holds(folder)
  held = a_lease(folder, Clock())
  held.take()
  assert lease.holds(folder)
  path = folder / "000001.json"
  for silent, lives in ((DEAD - 20, True), (DEAD + 5, False)):
    then = time.time() - silent
    os.utime(path, (then, then))
    assert lease.holds(folder) == lives
  held.let_go()
  assert not lease.holds(folder) and numbers(folder) == ["000001.json"]


def test_a_lease_that_was_let_go_is_taken_at_once(folder):
  clock = Clock()
  first = a_lease(folder, clock)
  first.take()
  first.let_go()
  second = a_lease(folder, clock)
  second.take()
  assert clock.now == 1000.0 and second.number == 2


def test_who_lost_it_learns_so_at_the_next_beat_and_writes_none_any_more(folder):
  clock, other = Clock(), Clock()
  first = a_lease(folder, clock, pid=1)
  first.take()
  a_lease(folder, other, pid=2, host="there").take()
  first.renew()
  assert first.check() == "process 2 on there"
  first.renew()
  first.let_go()
  found = lease.newest(folder)
  assert found.number == 2 and found.content["pid"] == 2 and not found.free


def test_who_could_not_renew_for_long_looks_before_it_goes_on(folder):
  clock, other = Clock(), Clock()
  first = a_lease(folder, clock, pid=1)
  first.take()
  clock.now += DEAD - 2 * RENEW - 1
  before = (folder / "000001.json").read_text()
  assert first.check() == "" and (folder / "000001.json").read_text() == before
  clock.now += 2
  assert first.check() == "" and (folder / "000001.json").read_text() != before
  a_lease(folder, other, pid=2, host="there").take()
  clock.now += DEAD
  assert first.check() == "process 2 on there"


def test_a_lease_whose_folder_is_gone_is_lost(folder):
  first = a_lease(folder, Clock())
  first.take()
  folder.rmtree()
  first.renew()
  assert "removed" in first.check()


@pytest.mark.parametrize("creates", [True, False])
def test_of_two_who_take_it_at_the_same_moment_one_has_it(folder, monkeypatch, creates):
  """The other comes between the look and the writing, or writes over it before it is read back."""
  clock, other_clock = Clock(), Clock()
  one, other = (a_lease(folder, c, creates, pid=p) for c, p in ((clock, 1), (other_clock, 2)))
  folder.mkdir(parents=True)
  seen = lease.newest(folder)
  if creates:
    assert other._write_next(seen) and not one._write_next(seen)
  else:
    content = json.dumps(other._content).encode()
    clock.then = lambda: (folder / "000001.json").write_bytes(content)
    assert not one._write_next(seen)
  assert lease.newest(folder).content["pid"] == 2


HOLDER = """
import pathlib, sys, time
from etils import epath
from cmjax.base.lease import Lease
import os
Lease(epath.Path(sys.argv[1]), {"pid": os.getpid(), "host": "here"}, creates=True).take()
print("held", flush=True)
time.sleep(600)
"""


def test_of_this_machine_a_living_process_is_known_at_once_and_so_is_a_dead_one(tmp_path):
  folder, clock = epath.Path(tmp_path) / "lock.lease", Clock()
  command = [sys.executable, "-c", HOLDER, str(folder)]
  with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(Held):
      a_lease(folder, clock).take()
    process.kill()
  a_lease(folder, clock).take()
  assert clock.now == 1000.0
