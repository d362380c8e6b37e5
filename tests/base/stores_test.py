"""Requests to object stores: a lost connection is waited for, and said once."""

import asyncio
import logging

import pytest

from cmjax.base import stores


class Lost(Exception):
  pass


class Refused(Exception):
  pass


@pytest.fixture(name="slept")
def _slept(monkeypatch):
  """The pauses between tries; the clock goes on in them alone."""
  pauses = []

  async def sleep(seconds):
    pauses.append(seconds)

  monkeypatch.setattr(stores.asyncio, "sleep", sleep)
  monkeypatch.setattr(stores.time, "monotonic", lambda: sum(pauses))
  monkeypatch.setattr(stores, "_lost_since", [])
  return pauses


def answer(*answers):
  """What `_patiently` makes of these answers, the last of them again and again."""
  left = list(answers)

  async def request():
    found = left.pop(0) if len(left) > 1 else left[0]
    if isinstance(found, Exception):
      raise found
    return found

  is_a = lambda kind: lambda error: isinstance(error, kind)
  return asyncio.run(stores._patiently(request, is_a(Lost), is_a(Refused)))


def test_a_minute_without_a_connection_costs_nothing_and_is_said_once(slept, caplog):
  caplog.set_level(logging.INFO, "cmjax")
  assert answer(*[Lost("connection refused")] * 9, 7) == 7
  assert 60 < sum(slept) < 90 and max(slept) == stores.LONGEST_PAUSE
  assert slept[:3] == [0.5, 1.0, 2.0]
  first, last = [record.getMessage() for record in caplog.records]
  assert first.startswith("The object store does not answer (connection refused). Waiting for it")
  assert last == f"The object store answers again, after {sum(slept) - sum(slept[:2]):.0f} s."
  caplog.clear()
  assert answer(Lost("x"), 8) == 8 and not caplog.records  # a hiccup


def test_after_ten_minutes_it_is_an_error_of_the_operating_system(slept):
  with pytest.raises(OSError, match="has not answered for 600 s: nobody is there"):
    answer(Lost("nobody is there"))
  assert 570 < sum(slept) <= 600


def test_other_errors_are_passed_on_at_once_and_credentials_are_named(slept):
  with pytest.raises(FileNotFoundError):
    answer(FileNotFoundError("x"))
  with pytest.raises(
    PermissionError, match="credentials here do not open this bucket: who are you"
  ):
    answer(Refused("who are you"))
  assert slept == []


def test_files_of_a_folder_have_names_and_sizes(tmp_path):
  (tmp_path / "a" / "b").mkdir(parents=True)
  (tmp_path / "a" / "b" / "c").write_bytes(b"123")
  (tmp_path / "z").write_bytes(b"")
  assert stores.files(tmp_path) == {"a/b/c": 3, "z": 0} and stores.size(tmp_path / "a/b/c") == 3
  assert stores.files(tmp_path / "nothing") == {}
