"""Processes meet by name, with words and an end; threads with one service stand for them."""

import logging
import threading
import time

import jax
import pytest
from etils import epath

from cmjax.base import meeting, sharding, shared_folder
from helpers.threads import Processes


@pytest.fixture(name="tmp_path")
def _tmp_path(tmp_path):
  return epath.Path(tmp_path)  # as `paths.place` gives it


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
  monkeypatch.setattr(meeting, "FIRST_WORD", 0.2)
  monkeypatch.setattr(meeting, "NEXT_WORDS", 0.3)
  monkeypatch.setattr(meeting, "_POLL", 0.05)


def test_all_have_the_values_of_all_in_their_order_and_no_key_stays_but_the_last(monkeypatch):
  processes = Processes(monkeypatch, 3)
  monkeypatch.setattr(meeting, "_KEPT", 4)

  def work(index):
    time.sleep(0.01 * (3 - index))
    return [meeting.exchange("a", [index, round]) for round in range(10)]

  expected = [[[0, r], [1, r], [2, r]] for r in range(10)]
  assert processes.run(work) == [expected] * 3
  kept = {key for key in processes.service.keys if "/meetings/" in key}
  assert kept == {f"cmjax/meetings/a/{n}/all" for n in range(7, 11)}


def test_one_process_alone_asks_nobody():
  assert meeting.exchange("anything", {"a": 1}) == [{"a": 1}]
  assert sharding.all_agree(True) and not sharding.all_agree(False)


def test_a_wait_that_lasts_names_the_processes_and_hosts_that_have_not_come(monkeypatch, caplog):
  caplog.set_level(logging.INFO)
  processes = Processes(monkeypatch, 3)

  def late(index):
    time.sleep(0.7)
    return meeting.exchange("checkpoint 500")

  def prompt(index):
    with meeting.during("saving"):
      return meeting.exchange("checkpoint 500")

  assert processes.run(prompt, late, late) == [[None] * 3] * 3
  waits = [m for m in caplog.messages if "waits" in m]
  assert len(waits) == 2  # after 0.2 and 0.5 seconds
  for said in waits:
    assert said.startswith("Process 0 on host0 waits at 'saving: checkpoint 500', for ")
    assert "for processes 1, 2 (hosts host1, host2)." in said and "at work" in said
  assert any("all have come to 'saving: checkpoint 500'" in m for m in caplog.messages)
  assert not [key for key in processes.service.keys if "waits" in key]


def test_where_each_waits_at_another_place_all_end_with_what_the_others_wait_at(monkeypatch):
  monkeypatch.setattr(meeting, "LIMIT", 1.0)
  processes = Processes(monkeypatch, 2)
  began = time.monotonic()
  one, two = processes.run(*(lambda _, w=what: meeting.exchange(w) for what in ("save", "score")))
  assert 1.0 <= time.monotonic() - began < 5
  assert isinstance(one, TimeoutError) and isinstance(two, TimeoutError)
  assert "Process 0 on host0 waits at 'save'" in str(one)
  assert "for process 1 (host host1); process 1 waits at 'score'" in str(one)
  assert "process 0 waits at 'save'" in str(two) and "Start the run again" in str(two)


def test_those_at_work_are_waited_for_longer_and_not_for_ever(monkeypatch):
  monkeypatch.setattr(meeting, "LIMIT", 0.4)
  monkeypatch.setattr(meeting, "LIMIT_AT_WORK", 60.0)
  processes, done = Processes(monkeypatch, 2), threading.Event()

  def works(index):
    done.wait(1.5)
    return meeting.exchange("save")

  assert processes.run(lambda _: meeting.exchange("save"), works) == [[None] * 2] * 2

  monkeypatch.setattr(meeting, "LIMIT_AT_WORK", 0.6)
  processes = Processes(monkeypatch, 2)
  first, _ = processes.run(lambda _: meeting.exchange("save"), lambda _: done.wait(2))
  assert isinstance(first, TimeoutError)


def test_a_service_that_is_gone_is_one_error(monkeypatch):
  processes = Processes(monkeypatch, 2)

  def gone(key, timeout_in_ms):
    raise jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect")

  processes.service.blocking_key_value_get = gone
  _, second = processes.run(lambda _: None, lambda _: meeting.exchange("save"))
  assert isinstance(second, ConnectionError) and "cannot be reached any more: UNAVAIL" in str(
    second
  )


def test_of_many_processes_some_are_named():
  assert meeting.named({0: "a"}) == "process 0 (host a)"
  said = meeting.named({i: f"h{i // 4}" for i in range(100)})
  assert said == (
    "processes 0, 1, 2, 3, 4, 5, 6, 7, ... (hosts h0, h1, h2, h3, h4, h5, h6, h7, ...)"
  )


@pytest.mark.parametrize("late", [False, True])
def test_one_folder_is_seen_by_all_also_where_files_show_late(monkeypatch, tmp_path, late):
  processes, reads = Processes(monkeypatch, 2), []
  if late:
    read = type(tmp_path).read_text

    def later(path):
      reads.append(path)
      if len(reads) < 4:
        raise FileNotFoundError(path)
      return read(path)

    monkeypatch.setattr(type(tmp_path), "read_text", later)
  assert processes.run(lambda _: shared_folder.check(tmp_path)) == [None, None]
  assert not list(tmp_path.iterdir())


def test_folders_of_their_own_are_an_error_on_all_that_names_the_hosts(monkeypatch, tmp_path):
  monkeypatch.setattr(shared_folder, "PATIENCE", 0.5)
  processes = Processes(monkeypatch, 3)
  for name in ("shared", "own"):
    (tmp_path / name).mkdir()
  shared, own = (lambda _, n=n: shared_folder.check(tmp_path / n) for n in ("shared", "own"))
  errors = processes.run(shared, own, own)
  for error in errors:
    assert isinstance(error, ValueError)
    assert "processes 1, 2 (hosts host1, host2) do not see what process 0 on host0" in str(error)
  assert not list((tmp_path / "shared").iterdir())


def test_where_the_first_cannot_write_all_say_so(monkeypatch, tmp_path):
  processes = Processes(monkeypatch, 2)
  errors = processes.run(lambda _: shared_folder.check(tmp_path / "none"))
  assert ["Process 0 cannot write to the workdir" in str(e) for e in errors] == [True, True]
