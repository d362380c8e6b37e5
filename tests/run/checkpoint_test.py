"""Checkpoints: what comes back is what was saved, or an error; never something in between."""

import collections
import gc
import hashlib
import itertools
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.run import checkpoint

# A read or write that fails leaves others behind in orbax, which are never awaited or report to an
# event loop that is closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = {"seed": 3, "net": {"name": "mlp", "sizes": [1, 2]}, "clip": None}
STEPS = (10, 20)


def state(step, size=64):
  x = jax.random.normal(jax.random.key(step), (size, 8))
  return {"step": jnp.asarray(step, jnp.int32), "x": x, "none": {}, "y": {"z": x[:3] * 0.1}}


def layout(meta):
  assert meta["config"] == CONFIG
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(state, 0)
  )


def assert_is_state_of(restored, step):
  assert restored.step == step
  jax.tree.map(np.testing.assert_array_equal, restored.state, state(step))


def save(directory, *steps, keep=2):
  checkpoints = checkpoint.Checkpoints(directory, keep=keep)
  for step in steps:
    checkpoints.save(step, state(step), CONFIG, note=f"at {step}")
  checkpoints.close()


@pytest.fixture(autouse=True)
def _collected():
  """What is left behind is found here, not in a test of something else."""
  yield
  gc.collect()


@pytest.fixture(name="workdir")
def _workdir(tmp_path):
  save(tmp_path, *STEPS)
  return tmp_path


@pytest.fixture(name="opened")
def _opened(workdir):
  checkpoints = checkpoint.Checkpoints(workdir)
  yield checkpoints
  checkpoints.close()


def test_the_newest_comes_back_with_the_config_and_the_versions_beside_it(opened):
  restored = opened.restore(layout)
  assert_is_state_of(restored, 20)
  assert restored.meta["note"] == "at 20"
  assert restored.meta["versions"]["jax"] == jax.__version__


def test_the_newest_are_kept_and_a_step_is_saved_once(workdir):
  seal = workdir / "seals" / "20.json"
  before = seal.read_bytes(), seal.stat().st_mtime_ns
  save(workdir, 20)
  assert (seal.read_bytes(), seal.stat().st_mtime_ns) == before
  save(workdir, 30, 40, keep=2)
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["30", "40"]
  assert sorted(p.name for p in (workdir / "seals").iterdir()) == ["30.json", "40.json"]


def test_one_that_was_removed_by_hand_is_saved_again_and_is_whole(workdir):
  for step in STEPS:  # also before one that is there
    shutil.rmtree(workdir / "checkpoints" / str(step))
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(step, state(step), CONFIG, note="again")
    checkpoints.close()
    again = checkpoint.Checkpoints(workdir, read_only=True)
    assert again.steps() == [20, 10]
    restored = again.load(step, layout)
    again.close()
    assert_is_state_of(restored, step)
    assert restored.meta["note"] == "again"


def test_one_step_is_loaded_or_it_is_an_error_and_nothing_is_moved(workdir):
  read = checkpoint.Checkpoints(workdir, read_only=True)
  with pytest.raises(ValueError, match="No checkpoint of step 30 in .* There are: 10, 20"):
    read.load(30, layout)
  truncate(largest(workdir, 10))
  with pytest.raises(ValueError, match="checkpoint of step 10 in .* cannot be read: .* Move it aw"):
    read.load(10, layout)
  read.close()
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["10", "20"]


def test_saving_copies_the_state_before_it_is_donated(tmp_path):
  update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  current = state(5, size=1 << 16)
  checkpoints.save(5, current, CONFIG)
  for _ in range(20):
    current = update(current)
  checkpoints.wait()
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), current
  )
  restored = checkpoints.restore(lambda meta: shapes)
  checkpoints.close()
  jax.tree.map(np.testing.assert_array_equal, restored.state, state(5, size=1 << 16))


def test_a_directory_that_never_had_one_gives_none(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  assert checkpoints.restore(layout) is None
  checkpoints.close()


def largest(workdir, step):
  """The file with most of the numbers."""
  files = (p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file())
  return max(files, key=lambda p: p.stat().st_size)


def metadata(workdir, step):
  """What orbax knows the tensors by."""
  return workdir / "checkpoints" / str(step) / "state" / "_METADATA"


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def zero(path):
  path.write_bytes(bytes(path.stat().st_size))


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


DAMAGE = {"truncated": truncate, "zeroed": zero, "missing": Path.unlink, "one bit": flip}


@pytest.mark.parametrize("find", [largest, metadata])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_newest_is_set_aside_with_a_warning_for_the_one_before(
  workdir, find, damage, caplog
):
  path = find(workdir, 20)
  damage(path)
  checkpoints = checkpoint.Checkpoints(workdir)
  assert_is_state_of(checkpoints.restore(layout), 10)
  assert f"checkpoint of step 20 in {workdir / 'checkpoints'} is broken" in caplog.text
  assert path.name in caplog.text
  assert [p.name.split(".")[0] for p in (workdir / "broken").iterdir()] == ["20"]
  # Its step is free again.
  assert checkpoints.steps() == [10]
  checkpoints.save(20, state(20), CONFIG)
  checkpoints.wait()
  assert_is_state_of(checkpoints.restore(layout), 20)
  checkpoints.close()


@pytest.mark.parametrize("damage", [truncate, zero, Path.unlink])
def test_so_is_one_that_its_run_was_killed_too_early_to_seal(workdir, damage, caplog):
  (workdir / "seals" / "20.json").unlink()
  damage(largest(workdir, 20))
  checkpoints = checkpoint.Checkpoints(workdir)
  assert_is_state_of(checkpoints.restore(layout), 10)
  checkpoints.close()
  assert "step 20" in caplog.text and "is broken" in caplog.text


def test_a_finished_save_is_sealed_without_waiting_for_the_next(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(10, state(10), CONFIG)
  seal, deadline = tmp_path / "seals" / "10.json", time.monotonic() + 30
  while not seal.exists() and time.monotonic() < deadline:
    checkpoints.poll()
  assert seal.exists()
  checkpoints.close()


def test_to_seal_holds_up_nothing_but_the_next_save(tmp_path, monkeypatch):
  begun, go_on, digests = threading.Event(), threading.Event(), checkpoint._digests

  def slow(folder):
    begun.set()
    assert go_on.wait(30)
    return digests(folder)

  monkeypatch.setattr(checkpoint, "_digests", slow)
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=3)
  checkpoints.save(10, state(10), CONFIG)
  deadline = time.monotonic() + 30
  while not begun.is_set() and time.monotonic() < deadline:
    checkpoints.poll()
  checkpoints.poll()  # while it is being read again
  assert begun.is_set() and not (tmp_path / "seals" / "10.json").exists()
  threading.Timer(0.2, go_on.set).start()
  checkpoints.save(20, state(20), CONFIG)
  assert (tmp_path / "seals" / "10.json").exists()

  def fail(folder):
    raise OSError("the disk is gone")

  monkeypatch.setattr(checkpoint, "_digests", fail)
  message = "checkpoint of step 20 could not be .*the disk is gone.* last good one .* step 10"
  with pytest.raises(OSError, match=message):
    while time.monotonic() < deadline + 30:
      checkpoints.poll()
  checkpoints.close()


def test_one_that_is_removed_while_it_is_sealed_is_no_failed_save(tmp_path, monkeypatch, caplog):
  digest = hashlib.file_digest

  def removing(file, name):
    shutil.rmtree(tmp_path / "checkpoints" / "10", ignore_errors=True)
    return digest(file, name)

  checkpoints = checkpoint.Checkpoints(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(hashlib, "file_digest", removing)
    checkpoints.save(10, state(10), CONFIG)
    checkpoints.wait()
  assert "checkpoint of step 10 was removed while it was read back" in caplog.text
  checkpoints.save(20, state(20), CONFIG, note="at 20")
  checkpoints.close()
  assert [path.name for path in (tmp_path / "seals").iterdir()] == ["20.json"]
  again = checkpoint.Checkpoints(tmp_path)
  assert_is_state_of(again.restore(layout), 20)
  again.close()


def test_a_wall_clock_that_is_set_in_mid_save_spoils_nothing(tmp_path, monkeypatch):
  now, days = time.time, itertools.cycle((0, 400, -400))  # at every look
  monkeypatch.setattr(time, "time", lambda: now() + next(days) * 86_400)
  save(tmp_path, *STEPS)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  assert_is_state_of(checkpoints.restore(layout), 20)
  checkpoints.close()


def test_what_an_interrupted_save_left_behind_is_cleared_away(workdir, caplog):
  half = workdir / "checkpoints" / "30.orbax-checkpoint-tmp"
  shutil.copytree(workdir / "checkpoints" / "20", half)
  largest(workdir, half.name).unlink()
  checkpoints = checkpoint.Checkpoints(workdir)
  assert_is_state_of(checkpoints.restore(layout), 20)
  checkpoints.save(30, state(30), CONFIG)
  checkpoints.wait()
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["20", "30"]
  assert_is_state_of(checkpoints.restore(layout), 30)
  checkpoints.close()
  assert "broken" not in caplog.text


def test_nothing_left_to_read_is_an_error_and_never_a_fresh_start(workdir):
  for step in STEPS:
    truncate(largest(workdir, step))
  for _ in range(2):  # nor is it one at the second try
    checkpoints = checkpoint.Checkpoints(workdir)
    with pytest.raises(ValueError, match="No checkpoint in .* can be read; .* are in .*broken"):
      checkpoints.restore(layout)
    checkpoints.close()
  assert len(list((workdir / "broken").iterdir())) == 2


def test_a_state_of_another_shape_is_refused_and_not_taken_for_damage(opened, workdir):
  def other(meta):
    tree = layout(meta)
    x = tree["x"]
    return tree | {"x": jax.ShapeDtypeStruct((32, 8), x.dtype, sharding=x.sharding)}

  with pytest.raises(ValueError, match="step 20 .* is undamaged, but is not of this program's"):
    opened.restore(other)
  assert opened.steps() == [20, 10]
  assert not (workdir / "broken").exists()


def test_an_error_of_the_layout_is_passed_on(opened):
  def refuse(meta):
    raise ValueError("not this config")

  with pytest.raises(ValueError, match="not this config"):
    opened.restore(refuse)
  assert opened.steps() == [20, 10]


def fingerprint(folder):
  return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def test_reading_another_run_changes_nothing_in_it(workdir, caplog):
  (workdir / "checkpoints" / "30.orbax-checkpoint-tmp").mkdir()  # it is being saved just now
  zero(largest(workdir, 20))
  before = fingerprint(workdir)
  assert_is_state_of(checkpoint.read(workdir, layout), 10)
  assert "step 20" in caplog.text
  assert fingerprint(workdir) == before


def test_reading_a_run_without_checkpoints_says_so_and_makes_no_folder(tmp_path):
  with pytest.raises(ValueError, match="No checkpoints in .*gone: train that run first"):
    checkpoint.read(tmp_path / "gone", layout)
  assert not list(tmp_path.iterdir())
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(ValueError, match="has no complete checkpoint yet"):
    checkpoint.read(tmp_path, layout)


def test_an_unwritable_workdir_is_found_before_training(tmp_path):
  (tmp_path / "file").write_text("in the way")
  for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(ValueError, match="Cannot write to the workdir .*file.* --workdir"):
      checkpoint.check_writable(workdir, 0)


Usage = collections.namedtuple("Usage", "total used free")


def test_a_disk_too_full_for_the_checkpoints_is_found_before_training(workdir, monkeypatch):
  monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 5_000_000))
  there = sum(p.stat().st_size for p in (workdir / "checkpoints").rglob("*") if p.is_file())
  # What earlier checkpoints take will be free for later ones.
  checkpoint.check_writable(workdir, 5_000_000 + there)
  with pytest.raises(ValueError, match="has 5.0 MB free, but its checkpoints need 6.0 MB more. Fr"):
    checkpoint.check_writable(workdir, 6_000_000 + there)


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path):
  """A real file system of 2 MB."""
  tmp_path = tmp_path / "disk"
  tmp_path.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(tmp_path)]
  if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("mounting a small file system is not allowed here")
  yield tmp_path
  subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_save_that_the_disk_has_no_room_for_leaves_the_last_good_one(small_disk):
  checkpoints = checkpoint.Checkpoints(small_disk, keep=3)
  checkpoints.save(10, state(10), CONFIG)
  checkpoints.wait()
  filler = small_disk / "filler"
  filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 20 * 4096))

  message = "step 20 could not be written to .*[Nn]o space.*The last good one is that of step 10"
  with pytest.raises(OSError, match=message):
    checkpoints.save(20, state(20, size=4096), CONFIG)
    checkpoints.wait()
  checkpoints.close()
  filler.unlink()

  again = checkpoint.Checkpoints(small_disk, keep=3)
  assert_is_state_of(again.restore(layout), 10)
  again.save(20, state(20), CONFIG)
  again.wait()
  assert_is_state_of(again.restore(layout), 20)
  again.close()
