"""Checkpoints where no folder can be renamed: whole by a file that comes last."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.base import place
from cmjax.run import checkpoint, commit
from helpers.no_folder_renames import refuse_renames

# A write that fails leaves others behind in orbax, which are never awaited.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
CONFIG = {"seed": 3}


def state(step):
  return {"step": jnp.asarray(step), "x": jnp.arange(4096.0) + step}


def layout(meta):
  assert meta["config"] == CONFIG
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(like, state(0))


def assert_is_state_of(restored, step):
  assert restored.step == step
  jax.tree.map(np.testing.assert_array_equal, restored.state, state(step))


def save(workdir, *steps, keep=2):
  checkpoints = checkpoint.Checkpoints(workdir, keep=keep)
  for step in steps:
    checkpoints.save(step, state(step), CONFIG)
  checkpoints.close()


def killed(*args, **kwargs):
  raise RuntimeError("killed here")


@pytest.fixture(autouse=True)
def _no_renames(monkeypatch):
  refuse_renames(monkeypatch.setattr)


def steps(workdir, **options):
  checkpoints = checkpoint.Checkpoints(workdir, **options)
  checkpoints.close()
  return checkpoints.steps()


def test_it_is_saved_kept_and_read_without_a_rename(tmp_path):
  save(tmp_path, 10, 20, 30, keep=2)
  assert steps(tmp_path) == [30, 20]
  assert_is_state_of(checkpoint.read(tmp_path, layout), 30)
  folder = tmp_path / "checkpoints" / "30"
  assert (folder / commit.COMMIT).exists() and (folder / commit.DIGESTS).exists()
  assert not [path for path in (tmp_path / "checkpoints").iterdir() if "tmp" in path.name]


@pytest.mark.parametrize("stage", ["digests", "COMMIT"])
def test_without_its_last_file_it_is_none_for_any_reader_and_is_removed_by_the_next(
  tmp_path, monkeypatch, stage
):
  save(tmp_path, 10)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  with monkeypatch.context() as patch:
    if stage == "digests":
      patch.setattr(checkpoint, "_digests", killed)
    else:
      add_digests = commit.ByFile._add_digests
      patch.setattr(commit.ByFile, "_add_digests", lambda self: killed(add_digests(self)))
    checkpoints.save(20, state(20), CONFIG)
    with pytest.raises(OSError, match="killed here"):
      checkpoints.wait()
  checkpoints.close()
  folder = tmp_path / "checkpoints" / "20"
  assert (folder / "state").is_dir() and (folder / commit.UNFINISHED).exists()
  assert (folder / commit.DIGESTS).exists() == (stage == "COMMIT")
  assert steps(tmp_path, read_only=True) == [10] and folder.is_dir()  # readers try no renames
  assert_is_state_of(checkpoint.read(tmp_path, layout), 10)
  again = checkpoint.Checkpoints(tmp_path)
  assert again.steps() == [10]
  again.save(30, state(30), CONFIG)
  again.close()
  assert again.steps() == [30, 10] and not folder.exists()


def test_on_a_disk_too_one_that_was_begun_on_such_a_mount_counts_only_when_whole(
  tmp_path, monkeypatch
):
  save(tmp_path, 10, 20)
  (tmp_path / "checkpoints" / "20" / commit.COMMIT).unlink()
  monkeypatch.undo()
  place._tried.cache_clear()
  assert steps(tmp_path, read_only=True) == [10]
  save(tmp_path, 30)
  assert steps(tmp_path) == [30, 10] and not (tmp_path / "checkpoints" / "20").exists()


def test_one_that_a_disk_wrote_is_read_and_never_taken_for_unfinished(tmp_path, monkeypatch):
  monkeypatch.undo()
  save(tmp_path, 10, 20)
  place._tried.cache_clear()
  refuse_renames(monkeypatch.setattr)
  folder = tmp_path / "checkpoints" / "20"
  (folder / commit.COMMIT).unlink()  # of an older orbax
  written = json.loads((folder / commit.DIGESTS).read_text())
  del written[commit.COMMIT]
  (folder / commit.DIGESTS).write_text(json.dumps(written))
  assert steps(tmp_path) == [20, 10]
  again = checkpoint.Checkpoints(tmp_path)
  assert_is_state_of(again.restore(layout), 20)
  again.close()


def test_a_broken_one_is_set_aside_by_copying(tmp_path, caplog):
  save(tmp_path, 10, 20)
  next((tmp_path / "checkpoints" / "20" / "state" / "d").iterdir()).write_bytes(b"other")
  again = checkpoint.Checkpoints(tmp_path)
  assert_is_state_of(again.restore(layout), 10)
  again.close()
  assert "The checkpoint of step 20" in caplog.text
  (broken,) = (tmp_path / "broken").iterdir()
  assert broken.name.startswith("20.") and (broken / "state").is_dir()
  assert not (tmp_path / "checkpoints" / "20").exists()
