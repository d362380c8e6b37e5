"""Files that are whole or not there: writers at the same moment, and what killed ones leave."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from cmjax.base import atomic_files
from cmjax.base.atomic_files import clear_partials, replacing, write_json, write_text
from cmjax.metrics import cards
from cmjax.program import plan
from cmjax.run import writer

ROOT = pathlib.Path(__file__).parents[2]
WRITES = 20  # of each of two writers


def arrays(path, value):
  with replacing(path) as file:
    np.savez(file, a=np.full(4096 * (1 + value), value))


def read_arrays(path):
  with np.load(path) as found:
    return found["a"]


def pixels(path, value):
  writer.save_png(path, np.full((64, 8 * (1 + value), 3), value, np.uint8))


def card(path, value):
  cards.write(path.parent, path.stem, {"values": [value] * 1000 * (1 + value)})


# name: (write a file that is full of a value, of another length for each; read the values of one)
WRITERS = {
  "scores.json": (lambda path, v: write_json(path, [v] * 1000 * (1 + v)), lambda p: read(p)),
  "page.html": (lambda path, v: write_text(path, f"{v} " * 1000), lambda p: p.read_text().split()),
  "samples.npz": (arrays, read_arrays),
  "picture.png": (pixels, lambda path: np.asarray(Image.open(path))),
  "card.json": (card, lambda path: read(path)["values"]),
  "plan.json": (lambda path, v: plan.write({"a": [v] * 999}, path.parent), lambda p: read(p)["a"]),
}


def read(path):
  return json.loads(path.read_text())


@pytest.mark.parametrize("name", WRITERS)
def test_two_writers_of_one_file_never_fail_and_never_tear_it(tmp_path, name):
  path, (write, values) = tmp_path / name, WRITERS[name]
  write(path, 0)
  torn, failed, stop = [], [], threading.Event()

  def hammer(value):
    try:
      for _ in range(WRITES):
        write(path, value)
    except Exception as error:
      failed.append(error)

  def look():
    while not stop.is_set():
      try:
        (_,) = {str(value) for value in np.unique(values(path))}
      except (ValueError, OSError, SyntaxError, zipfile.BadZipFile) as error:
        torn.append(error)

  writers = [threading.Thread(target=hammer, args=(value,)) for value in (1, 2)]
  reader = threading.Thread(target=look)
  for thread in (reader, *writers):
    thread.start()
  for thread in writers:
    thread.join()
  stop.set()
  reader.join()
  assert not failed and not torn
  assert [p.name for p in tmp_path.iterdir()] == [name]


HAMMER = """
import pathlib, sys
from cmjax.base.atomic_files import write_json
sys.stdin.readline()
for i in range(200):
  write_json(pathlib.Path(sys.argv[1]), [int(sys.argv[2])] * 5000)
"""


def test_nor_do_two_processes(tmp_path):
  path = tmp_path / "scores.json"
  write_json(path, [0] * 5000)
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", HAMMER, str(path), value],
      **dict(cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
    )
    for value in ("1", "2")
  ]
  for process in processes:
    process.stdin.write("go\n")
    process.stdin.flush()
  looks = 0
  while any(process.poll() is None for process in processes):
    assert len(set(read(path))) == 1
    looks += 1
  assert [process.communicate()[1] for process in processes] == ["", ""]
  assert looks and [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def in_the_way(kind, path, elsewhere):
  elsewhere.write_text("theirs")
  {
    "file": lambda: path.write_text("theirs"),
    "folder": path.mkdir,
    "link": lambda: path.symlink_to(elsewhere),
    "broken link": lambda: path.symlink_to("nowhere"),
    "pipe": lambda: os.mkfifo(path),
    "device": lambda: path.symlink_to("/dev/full"),
  }[kind]()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "broken link", "pipe", "device"])
def test_what_has_the_name_of_former_partial_files_is_in_nobodys_way(tmp_path, kind):
  path, other = tmp_path / "scores.json", tmp_path / "scores.json.partial"
  in_the_way(kind, other, tmp_path / "elsewhere")
  before = os.lstat(other)
  write_json(path, [1])
  assert read(path) == [1]
  after = os.lstat(other)
  assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)
  assert (tmp_path / "elsewhere").read_text() == "theirs"


@pytest.mark.parametrize("name", ["a" * 250 + ".json", "ü" * 120, "a b\n.json", "-", ".partial"])
def test_any_name_that_a_file_may_have_can_be_written(tmp_path, name):
  write_text(tmp_path / name, "whole")
  assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "whole")]


def test_a_target_that_cannot_be_replaced_leaves_nothing_of_the_new(tmp_path):
  (tmp_path / "target" / "full").mkdir(parents=True)
  with pytest.raises(OSError):
    write_text(tmp_path / "target", "new")
  assert [p.name for p in tmp_path.iterdir()] == ["target"]


def killed(path):
  """What a writer leaves that was killed midway: its lock has gone with it."""
  partial, file = atomic_files._partial(path)
  file.write(b"half")
  file.close()
  return partial


def test_what_killed_writers_left_is_cleared_and_what_is_being_written_is_not(tmp_path):
  (tmp_path / "cards").mkdir()
  left = [killed(tmp_path / "a.json"), killed(tmp_path / "cards" / "b.json")]
  other = ["a.partial", "a.json.12.partial", "a.0123456789abcdef.partial.txt", "a.json"]
  for name in other:
    (tmp_path / name).write_text("theirs")
  (tmp_path / "folder.0123456789abcdef.partial").mkdir()
  with replacing(tmp_path / "c.json") as file:
    file.write(b"[3")
    clear_partials(tmp_path)
    file.write(b"]")
  assert not any(partial.exists() for partial in left)
  assert read(tmp_path / "c.json") == [3]
  assert {p.name for p in tmp_path.iterdir()} == {
    *(*other, "cards", "c.json", "folder.0123456789abcdef.partial")
  }


def test_one_that_is_cleared_in_the_moment_before_its_lock_is_begun_again(tmp_path, monkeypatch):
  lock, calls = atomic_files.fcntl.flock, []

  def flock(file, flags):
    if not calls:  # of the writer: the other comes first
      calls.append(file.name)
      pathlib.Path(file.name).unlink()
    lock(file, flags)

  monkeypatch.setattr(atomic_files.fcntl, "flock", flock)
  write_json(tmp_path / "a.json", [1])
  assert calls and read(tmp_path / "a.json") == [1]


def test_without_locks_files_are_written_and_nothing_is_cleared(tmp_path, monkeypatch):
  left = killed(tmp_path / "a.json")

  def flock(file, flags):
    raise OSError("no locks")

  monkeypatch.setattr(atomic_files.fcntl, "flock", flock)
  write_json(tmp_path / "b.json", [1])
  clear_partials(tmp_path)
  assert left.exists() and read(tmp_path / "b.json") == [1]
