"""Checkpoints: what comes back is what was saved, or an error; never something in between."""

import collections
import contextlib
import functools
import gc
import itertools
import json
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from orbax.checkpoint._src.path import step as step_lib

from cmjax.base import atomic_files, sharding
from cmjax.run import checkpoint, commit
from helpers.earlier_versions import as_before

# A read or write that fails leaves others behind in orbax, which are never awaited or report to an
# event loop that is closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = {"seed": 3, "net": {"name": "mlp", "sizes": [1, 2]}, "clip": None}
STEPS = (10, 20)


@functools.cache
def numbers(step, size=64):
  x = np.random.default_rng(step).standard_normal((size, 8), np.float32)
  return {"step": np.asarray(step, np.int32), "x": x, "none": {}, "y": {"z": x[:3] * 0.1}}


def state(step, size=64):
  return jax.tree.map(jnp.asarray, numbers(step, size))


def layout(meta):
  assert meta["config"] == CONFIG
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), numbers(0)
  )


def assert_is_state_of(restored, step):
  assert restored.step == step
  jax.tree.map(np.testing.assert_array_equal, restored.state, numbers(step))


def save(directory, *steps, keep=2):
  checkpoints = checkpoint.Checkpoints(directory, keep=keep)
  for step in steps:
    checkpoints.save(step, state(step), CONFIG, note=f"at {step}")
  checkpoints.close()


@pytest.fixture(autouse=True, scope="module")
def _collected():
  """What is left behind is found here, not in a test of something else."""
  yield
  gc.collect()


@pytest.fixture(name="saved", scope="module")
def _saved(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("saved")
  save(workdir, *STEPS)
  return workdir


@pytest.fixture(name="workdir")
def _workdir(saved, tmp_path):
  return shutil.copytree(saved, tmp_path, dirs_exist_ok=True)


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


def test_a_save_asks_jax_nothing_about_signals(tmp_path, monkeypatch):
  """Whoever asks it with another number than the train loop has signals ignored for good."""
  asked = []
  answer = lambda number: asked.append(number) or False
  monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", answer)
  save(tmp_path, 4, 8)
  assert asked == []
  assert [sharding.told_to_stop() for _ in range(3)] == [False] * 3
  assert np.diff(asked).tolist() == [1, 1]


def test_one_that_goes_while_the_folder_is_listed_is_not_there(workdir, monkeypatch):
  """A store may still remove objects for a process that was killed."""
  times = step_lib.Metadata.commit_timestamp

  def late(self):
    if self.step == STEPS[0]:
      shutil.rmtree(self.path, ignore_errors=True)
    return times.fget(self)

  monkeypatch.setattr(step_lib.Metadata, "commit_timestamp", property(late))
  checkpoints = checkpoint.Checkpoints(workdir)
  assert checkpoints.steps() == sorted(STEPS[1:], reverse=True)
  checkpoints.close()


def test_the_newest_are_kept_and_a_step_is_saved_once(workdir):
  before = fingerprint(workdir / "checkpoints" / "20")
  save(workdir, 20)
  assert fingerprint(workdir / "checkpoints" / "20") == before
  save(workdir, 30, 40, keep=2)
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["30", "40"]


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
  jax.tree.map(np.testing.assert_array_equal, restored.state, numbers(5, size=1 << 16))


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


@pytest.mark.parametrize(
  ("sealed", "damage"),
  [
    *((True, damage) for damage in (truncate, zero, Path.unlink, flip)),
    *((False, damage) for damage in (truncate, zero, Path.unlink)),  # killed too early to seal
  ],
)
def test_so_is_one_of_an_earlier_version_by_its_seal_or_what_reads_it(
  workdir, sealed, damage, caplog
):
  as_before(workdir, 20, sealed=sealed)
  damage(largest(workdir, 20))
  checkpoints = checkpoint.Checkpoints(workdir)
  assert_is_state_of(checkpoints.restore(layout), 10)
  checkpoints.close()
  assert "step 20" in caplog.text and "is broken" in caplog.text


def test_one_of_an_earlier_version_is_read_as_it_was(workdir, caplog):
  for step in STEPS:
    as_before(workdir, step, sealed=True)
  checkpoints = checkpoint.Checkpoints(workdir)
  assert_is_state_of(checkpoints.restore(layout), 20)
  assert_is_state_of(checkpoints.load(10, layout), 10)
  checkpoints.close()
  assert not caplog.text


READERS = {
  "restore": lambda workdir: checkpoint.Checkpoints(workdir).restore(layout),
  "load": lambda workdir: checkpoint.Checkpoints(workdir).load(20, layout),
  "read": lambda workdir: checkpoint.read(workdir, layout),
  "partial read": lambda workdir: checkpoint.read(
    workdir, lambda meta: {"x": layout(meta)["x"]}, partial=True
  ),
  "load of another's": lambda workdir: checkpoint.Checkpoints(workdir, read_only=True).load(
    20, layout
  ),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_without_digests_it_is_read_with_a_word_once_and_never_gets_any(workdir, reader, caplog):
  as_before(workdir, 20, sealed=False)
  before = fingerprint(workdir / "checkpoints" / "20")
  for _ in range(2):
    assert reader(workdir).step == 20
  (said,) = (record.message for record in caplog.records if record.name == "cmjax")
  assert "checkpoints/20 is unverified: it has no digests" in said
  assert fingerprint(workdir / "checkpoints" / "20") == before
  assert not list((workdir / "seals").iterdir())


@pytest.mark.parametrize("name", [checkpoint.DIGESTS, "meta/metadata", "commit_success.txt"])
def test_digests_that_are_gone_are_damage_and_not_an_earlier_version(workdir, name, caplog):
  (workdir / "checkpoints" / "20" / name).unlink()
  checkpoints = checkpoint.Checkpoints(workdir)
  assert_is_state_of(checkpoints.restore(layout), 10)
  checkpoints.close()
  assert "is broken (missing files: " in caplog.text and "unverified" not in caplog.text


STRAY = ("notes.txt", "x.json", "20.json.partial", ".DS_Store", "-1.json", "1e3.json", "a/b.json")


@pytest.mark.parametrize("folder", ["seals", "checkpoints", "."])
def test_stray_files_stop_no_save(workdir, folder):
  as_before(workdir, 10, sealed=True)
  for name in STRAY:
    path = workdir / folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("not ours")
  save(workdir, 30, 40)
  assert_is_state_of(checkpoint.read(workdir, layout), 40)
  assert all((workdir / folder / name).read_text() == "not ours" for name in STRAY)


def hold_up(monkeypatch):
  """Digests that are not made before the second event; the first says that they were begun."""
  begun, go_on, digests = threading.Event(), threading.Event(), checkpoint._digests

  def slow(folder, below=""):
    begun.set()
    assert go_on.wait(30)
    return digests(folder, below)

  monkeypatch.setattr(checkpoint, "_digests", slow)
  return begun, go_on


def test_none_is_there_to_be_read_before_its_digests_and_the_loop_does_not_wait(
  tmp_path, monkeypatch
):
  begun, go_on = hold_up(monkeypatch)
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=3)
  checkpoints.save(10, state(10), CONFIG)
  assert begun.wait(30)
  checkpoints.poll()
  other = checkpoint.Checkpoints(tmp_path, read_only=True)
  assert other.steps() == [] and not (tmp_path / "checkpoints" / "10").exists()
  other.close()
  go_on.set()
  checkpoints.close()
  assert (tmp_path / "checkpoints" / "10" / checkpoint.DIGESTS).exists()
  assert_is_state_of(checkpoint.read(tmp_path, layout), 10)


def test_a_save_that_fails_is_told_as_soon_as_it_has_ended(workdir, monkeypatch):
  def fail(folder, below=""):
    raise OSError("the disk is gone")

  monkeypatch.setattr(checkpoint, "_digests", fail)
  checkpoints = checkpoint.Checkpoints(workdir)
  checkpoints.save(30, state(30), CONFIG)
  message, deadline = "step 30 could not be .*the disk is gone.* last good .* step 20", 30
  with pytest.raises(OSError, match=message):
    for _ in range(deadline * 1000):
      time.sleep(1e-3)
      checkpoints.poll()
  checkpoints.close()


def killed(*args, **kwargs):
  raise RuntimeError("killed here")


class Dying:
  """A module as another sees it, one function of which is never come back from."""

  def __init__(self, module, name):
    self._module, self._name = module, name

  def __getattr__(self, name):
    return killed if name == self._name else getattr(self._module, name)


STAGES = {
  "before the digests": (checkpoint, "_digests", killed),
  "before their file": (commit, "write_json", killed),
  "before they are written": (atomic_files, "json", Dying(json, "dumps")),
  "before they are on the disk": (atomic_files, "os", Dying(os, "fsync")),
  "before they have their name": (atomic_files, "os", Dying(os, "replace")),
  "before the checkpoint has its name": (commit, "os", Dying(os, "rename")),
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_kill_at_any_moment_leaves_none_that_is_not_whole(workdir, monkeypatch, stage, caplog):
  complete = commit._complete

  def dying(digests, whole, step):
    with monkeypatch.context() as patch:
      patch.setattr(*stage)
      complete(digests, whole, step)

  checkpoints = checkpoint.Checkpoints(workdir)
  with monkeypatch.context() as patch:
    patch.setattr(commit, "_complete", dying)
    checkpoints.save(30, state(30), CONFIG)
    with pytest.raises(OSError, match="killed here"):
      checkpoints.wait()
  checkpoints.close()
  assert_is_state_of(checkpoint.read(workdir, layout), 20)
  again = checkpoint.Checkpoints(workdir)
  assert_is_state_of(again.restore(layout), 20)
  again.save(30, state(30), CONFIG)
  again.close()
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["20", "30"]
  assert_is_state_of(checkpoint.read(workdir, layout), 30)
  assert "unverified" not in caplog.text and "broken" not in caplog.text


def bit_flips(number, files, seed=0):
  """Flips one bit at a time, in one of the files, and takes it back; yields the file."""
  draw, files = random.Random(seed), sorted(path for path in files if path.is_file())
  for _ in range(number):
    path = draw.choice([path for path in files if path.stat().st_size])
    content = path.read_bytes()
    at = draw.randrange(len(content))
    changed = bytes([content[at] ^ 1 << draw.randrange(8)])
    path.write_bytes(content[:at] + changed + content[at + 1 :])
    yield path
    path.write_bytes(content)


@pytest.mark.parametrize("number", [60, pytest.param(500, marks=pytest.mark.soak)])
@pytest.mark.parametrize("version", ["this", "before"])
def test_no_flipped_bit_is_read_in_silence(workdir, number, version):
  if version == "before":
    as_before(workdir, 20, sealed=True)
  read = checkpoint.Checkpoints(workdir, read_only=True)
  files = [*(workdir / "checkpoints" / "20").rglob("*"), *(workdir / "seals").glob("*")]
  for path in bit_flips(number, files):
    with pytest.raises(ValueError, match="step 20 in .* cannot be read: "):
      read.load(20, layout)
    of_meta = "meta" in path.relative_to(workdir).parts
    with pytest.raises(ValueError) if of_meta else contextlib.suppress(ValueError):
      read.meta(20)
  assert_is_state_of(read.load(20, layout), 20)
  read.close()


@pytest.mark.parametrize("content", ["[1]", "3", "[" * 10**5, '{"a": "b", "a": "c"}'])
def test_digests_that_are_no_table_are_named(workdir, content):
  (workdir / "checkpoints" / "20" / "digests.json").write_text(content)
  read = checkpoint.Checkpoints(workdir, read_only=True)
  with pytest.raises(ValueError, match="step 20 in .* cannot be read: digests.json cannot be read"):
    read.load(20, layout)
  read.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [6, pytest.param(60, marks=pytest.mark.soak)])
def test_every_flipped_bit_is_gone_round_by_a_run_that_goes_on(
  workdir, tmp_path_factory, caplog, number
):
  for i, _ in enumerate(bit_flips(number, (workdir / "checkpoints" / "20").rglob("*"), seed=1)):
    copy = shutil.copytree(workdir, tmp_path_factory.mktemp("flip") / "run")
    caplog.clear()
    checkpoints = checkpoint.Checkpoints(copy)
    assert_is_state_of(checkpoints.restore(layout), 10)
    checkpoints.close()
    assert "step 20" in caplog.text and "is broken" in caplog.text, i


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

  message = "step 20 could not be written to .*[Nn]o space.*The last good one is of step 10"
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
