"""What a place can do is found by trying, and nothing of it stays."""

import errno
import fcntl
import os

import pytest

from cmjax.base import place
from helpers.no_folder_renames import refuse_renames

ALL = place.Capabilities(renames_folders=True, appends=True, locks=True, creates=True)


def test_a_disk_can_do_all_and_nothing_stays(tmp_path):
  assert place.capabilities(tmp_path / "new" / "run") == ALL
  assert list((tmp_path / "new" / "run").iterdir()) == []


def test_what_a_mount_refuses_is_found_one_by_one(tmp_path, monkeypatch):
  def flock(file, flags):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

  with monkeypatch.context() as patch:
    refuse_renames(patch.setattr)
    assert place.capabilities(tmp_path / "a") == ALL._replace(renames_folders=False)
  with monkeypatch.context() as patch:
    patch.setattr(fcntl, "flock", flock)
    assert place.capabilities(tmp_path / "b") == ALL._replace(locks=False)
  with monkeypatch.context() as patch:  # of a mount whose locks keep nobody out
    patch.setattr(fcntl, "flock", lambda file, flags: None)
    assert place.capabilities(tmp_path / "c") == ALL._replace(locks=False)
  with monkeypatch.context() as patch:
    patch.setattr(place, "create", lambda path, content: path.write_bytes(content))
    assert place.capabilities(tmp_path / "d") == ALL._replace(creates=False)
  assert not any(list(folder.iterdir()) for folder in tmp_path.iterdir())


def test_a_place_that_does_not_list_what_was_written_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(place, "LISTED_WITHIN", 0.1)
  write = place.epath.Path.write_bytes
  elsewhere = lambda path, data: write(path.with_name("other"), data)
  monkeypatch.setattr(place.epath.Path, "write_bytes", elsewhere)
  with pytest.raises(OSError, match="is not listed after 0.1 s"):
    place.capabilities(tmp_path)
  assert list(tmp_path.iterdir()) == []
