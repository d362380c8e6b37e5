"""TensorBoard's files where a place cannot append: put whole, at each flush, part by part."""

import time

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from cmjax.run import events


def read(folder):
  """[(step, {tag: value})] of all files, in their order."""
  found = []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      event = Event.FromString(data[12 : 12 + size])
      values = {value.tag: value.simple_value for value in event.summary.value}
      found += [(event.step, values)] if values else []
      data = data[16 + size :]
  return found


@pytest.mark.parametrize("appends", [True, False])
def test_every_event_is_there_in_the_end(tmp_path, appends, monkeypatch):
  one = events.Events(tmp_path, 0, appends=appends)
  for step in (1, 2):
    one.scalars(step, {"loss": step / 2})
  one.image(2, "samples", np.zeros((2, 2, 3), np.uint8))
  one.close()
  assert [pair for pair in read(tmp_path / "tensorboard") if "loss" in pair[1]] == [
    (1, {"loss": 0.5}),
    (2, {"loss": 1.0}),
  ]


def flush_until(one, condition):
  """tensorboardX has a thread that writes: what is flushed is what it has come to."""
  deadline = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < deadline
    one._flush()
    time.sleep(0.01)


def test_a_flush_puts_what_is_new_and_a_full_file_is_followed_by_another(tmp_path, monkeypatch):
  monkeypatch.setattr(events, "PART_BYTES", 400)
  made, target = tmp_path / "local", tmp_path / "run" / "tensorboard"
  monkeypatch.setattr(events.tempfile, "mkdtemp", lambda prefix: made.mkdir() or str(made))
  one = events.Events(tmp_path / "run", 0, appends=False)
  one.scalars(1, {"loss": 1.0})
  flush_until(one, lambda: target.exists() and read(target))
  (first,) = target.iterdir()
  assert read(target) == [(1, {"loss": 1.0})]
  for step in range(2, 12):
    one.scalars(step, {"loss": 1.0})
  flush_until(one, lambda: len(read(target)) == 11 and len(list(made.iterdir())) == 2)
  one.scalars(12, {"loss": 1.0})
  flush_until(one, lambda: len(read(target)) == 12)
  assert len(list(target.iterdir())) == 2 and [path.name for path in made.iterdir()] != [first.name]
  one.close()
  assert [step for step, _ in read(target)] == [*range(1, 13)] and not made.exists()
