"""Checkpoints on orbax: asynchronous, atomic, verified; a run goes on from the newest good one.

Whoever is killed loses the steps since the newest complete checkpoint: at most an interval, and
those that were made while the next was being written. `config.checkpoint.asynchronous = False` has
the loop wait for that, so that no more than an interval can be lost.

A checkpoint is `checkpoints/<step>/` with the state, and beside it the config and the versions it
was made with. Orbax writes it under a temporary name; then `digests.json`, the sha256 of its files,
goes into it; then it is renamed. Where folders cannot be renamed, as in a bucket, a last file takes
the place of that (`run/commit.py`). So a kill leaves no half of one, and all that can be read have
digests, by which later damage is found. Versions before wrote them afterwards, to
`seals/<step>.json`: such checkpoints are read as well, and of one without any it is said that it is
unverified. Snapshots of averages and reconstructed averages are written and read in the same way.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from cmjax.base import json_files, meeting, paths, place, sharding, stores
from cmjax.run import commit, read_once
from cmjax.run.commit import DIGESTS

logger = logging.getLogger("cmjax")


def _meet(name: str = "", *, key: str = "", **options: Any) -> None:
  """A barrier of orbax's between all processes, with words and an end; a process alone goes on."""
  meeting.exchange(name or key)


# Orbax takes the time of a save by the wall clock: one during which that clock is set ahead by more
# than a timeout fails. So there is none for what a process does itself (a hundred years), and
# folders are made before `save` returns, as the timeout of making them meanwhile is fixed. Where
# processes wait for each other there is that of `meeting`.
UNHURRIED = ocp.AsyncOptions(
  timeout_secs=100 * 365 * 24 * 3600,
  create_directories_asynchronously=False,
  barrier_sync_fn=_meet,
)
# Its other barriers are collectives of JAX, which wait in silence and for ever; it has no option.
_barriers: Any = sys.modules[ocp.multihost.sync_global_processes.__module__]
_barriers.sync_global_processes = _meet
ABSENT = "not installed"
PACKAGES = ("cmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
  """The versions that decide whether a run can be repeated bit for bit."""
  return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


@functools.cache  # one read of each package's metadata, not one at every save
def version(name: str) -> str:
  """Of an installed package, or `ABSENT`: cmjax itself may be used from its source folder."""
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return ABSENT


def check_writable(
  directory: str | os.PathLike[str], num_bytes: int, folders: tuple[str, ...] = ("checkpoints",)
) -> None:
  """Fails before training, not after hours of it, if the checkpoints of a run do not fit.

  Args:
    directory: the run's workdir; made if missing.
    num_bytes: of all its checkpoints, those that are there already among them.
    folders: where they go, in the workdir.
  """
  directory = paths.place(directory, "workdir")
  try:
    place.capabilities(directory)
    if stores.is_remote(directory):
      return  # a bucket is never full
    with tempfile.TemporaryFile(dir=directory) as probe:  # other processes try it as well
      probe.write(b"0")
  except OSError as error:
    raise ValueError(
      f"Cannot write to the workdir {directory}: {error.strerror or error}. Choose another "
      "--workdir."
    ) from error
  free = shutil.disk_usage(directory).free
  there = sum(_folder_bytes(directory / folder) for folder in folders)
  if free + there < num_bytes:
    raise ValueError(
      f"The workdir {directory} has {free / 1e6:.1f} MB free, but its {' and '.join(folders)} need "
      f"{(num_bytes - there) / 1e6:.1f} MB more. Free some, choose another --workdir, or lower "
      f"checkpoint.keep{', or raise snapshots.every_steps' * ('snapshots' in folders)}."
    )


def _folder_bytes(folder: epath.Path) -> int:
  return sum(stores.files(folder).values())


LISTINGS = 10  # at most, while checkpoints go


class _Manager(ocp.CheckpointManager):
  """Orbax's, but for two things.

  It leaves it to the train loop to ask JAX whether a process was told to stop: JAX keeps the number
  of the last question to find the one to stop at. Orbax asks at each save, and again in its thread,
  with the number of the step: then a signal would never be answered.

  And a checkpoint may go while the folder is listed: a run beside removes it, or a store still
  answers what a process that was killed had asked for. Then it is listed again.
  """

  def reached_preemption(self, step: int) -> bool:
    """No: the loop asks (`sharding.told_to_stop`)."""
    return False

  def _load_checkpoint_infos(self, *args: Any, **kwargs: Any) -> Any:
    for _ in range(LISTINGS - 1):
      with contextlib.suppress(FileNotFoundError):
        return super()._load_checkpoint_infos(*args, **kwargs)
      time.sleep(0.5)
    return super()._load_checkpoint_infos(*args, **kwargs)


class Restored(NamedTuple):
  """What a checkpoint holds."""

  step: int
  state: Any
  meta: dict[str, Any]  # {config, versions}


class Checkpoints:
  """The checkpoints of one run.

  Args:
    directory: the run's workdir.
    keep: how many of the newest to keep; None: all.
    primary: whether this process moves what is broken (one of them does).
    read_only: for another run's directory: nothing in it is moved, removed or written.
    folder: where they are in the directory; a plural, its singular names one in messages.
    agree: whether all processes of the run say True; each asks at the same moments.
    partial: read only what a layout names of a state; else a layout names all of it.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep: int | None = 2,
    primary: bool = True,
    read_only: bool = False,
    folder: str = "checkpoints",
    agree: Callable[[bool], bool] = bool,
    partial: bool = False,
  ):
    self._partial = partial
    self.workdir = paths.absolute(paths.place(directory, "workdir"))
    self.directory = self.workdir / folder
    self._noun = folder.removesuffix("s")
    self._seals = self.workdir / "seals"
    if folder != "checkpoints":
      self._seals /= folder
    self.primary = primary and not read_only
    self.read_only = read_only
    self._agree = agree
    self._saving: int | None = None
    self._failed: int | None = None
    if read_only and not self.directory.is_dir():
      raise ValueError(
        f"No {folder} in {directory}: train that run first, or correct the path to its workdir."
      )
    kind = commit.path_class(self.directory, lambda path: _digests(path), read_only=read_only)
    # Of another run nothing may be tidied up: it may be training just now.
    options = ocp.CheckpointManagerOptions(
      read_only=read_only,
      create=not read_only,
      max_to_keep=None if read_only else keep,
      cleanup_tmp_directories=not read_only,
      temporary_path_class=kind,
      async_options=UNHURRIED,
      # Several processes may save a checkpoint and a snapshot of one step at the same time.
      multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder),
    )
    self._manager = _Manager(
      self.directory,
      options=options,
      item_names=("state", "meta"),
    )

  def steps(self) -> list[int]:
    """The steps that have a complete checkpoint, newest first."""
    return sorted(self._manager.all_steps(), reverse=True)

  def save(self, step: int, state: Any, config: Mapping[str, Any], **meta: Any) -> None:
    """Starts saving and returns once the state is copied; an earlier save that failed raises.

    Args:
      step: to save it as; one that is there already is left as it is.
      state: a pytree of arrays.
      config: of the run.
      **meta: whatever else JSON can hold, to be found in `Restored.meta`.
    """
    self.wait()
    if step in self.steps():
      return
    meta |= {"config": dict(config), "versions": versions(), "digests": DIGESTS}
    self._saving = step
    with self._explained(), meeting.during(f"{self._noun} {step}"):
      self._manager.save(
        step,
        force=True,  # orbax leaves out, silently, a step before one that is there
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
      )

  def wait(self) -> None:
    """Waits for the save under way."""
    with self._explained():
      self._manager.wait_until_finished()
    self._saving = None

  def poll(self) -> None:
    """Raises what the save under way met, if it has ended by now: not only at the next save."""
    if self._saving is not None and not self._manager.is_saving_in_progress():
      self.wait()

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # orbax passes on whatever its thread met
      if self._saving is not None:  # else orbax says once more what it has said
        self._failed, self._saving = self._saving, None
      good = max((step for step in self.steps() if step != self._failed), default="none")
      raise OSError(
        f"The {self._noun} of step {self._failed} could not be written to {self.directory}: "
        f"{error}. The last good one is of step {good}: start the same command again to go on "
        "from it; if the disk is full, free some space first."
      ) from error

  def remove_after(self, step: int) -> None:
    """Removes those of later steps."""
    self.wait()
    for later in self.steps():
      if later > step:
        self._manager.delete(later)

  def close(self) -> None:
    """Waits for the save under way and lets go of the directory."""
    try:
      self.wait()
    finally:
      with self._explained():  # it waits as well, and fails again if a save has failed
        self._manager.close()

  def restore(self, layout: Callable[[dict[str, Any]], Any]) -> Restored | None:
    """The newest good checkpoint, or None in a directory that never had one.

    A broken one is named in a warning and moved to `broken/`, so that its step can be saved again.

    Args:
      layout: the stored {config, versions} -> `jax.ShapeDtypeStruct`s with shardings, as the state
        is to be laid out. It raises if the stored config does not fit.

    Raises:
      ValueError: there are checkpoints, and not one can be read (starting anew would lose a run
        silently); or the newest is whole, but not of this state.
    """
    existed = self.steps()
    for step in existed:
      whole, meta = False, {}
      why: Exception = OSError("another process cannot read it")
      try:
        whole = self._verify(step)
        meta = self.meta(step)
      except Exception as error:  # orbax has no type for damage: tensorstore's is bare
        why = error
      if not self._agree(bool(meta)):
        self._set_aside(step, why)
        continue
      abstract_state = layout(meta)
      try:
        state = self._read_state(step, abstract_state)
      except Exception as error:
        if whole:
          raise ValueError(
            f"The checkpoint of step {step} in {self.directory} is undamaged, but is not of this "
            f"program's state: {error}\nIt was made with {meta['versions']}; take these versions, "
            "or another --workdir."
          ) from error
        self._set_aside(step, error)
        continue
      if not whole:
        _say_unverified(self._noun, self.directory / str(step))
      return Restored(step, state, meta)
    broken = self.workdir / "broken"
    if existed or broken.exists():
      where = "" if self.read_only else f"; those that were there are in {broken}"
      raise ValueError(
        f"No checkpoint in {self.directory} can be read{where}. Start anew in another --workdir, "
        "or remove what is broken to start anew in this one."
      )
    return None

  def meta(self, step: int) -> dict[str, Any]:
    """What is beside the state of a step: config, versions, and what was given to `save`.

    Raises:
      ValueError: it is damaged, or of another form.
    """
    verified = self._verify(step, "meta/")
    meta = self._read(step, meta=ocp.args.JsonRestore())
    if not verified and "digests" in meta:
      raise ValueError(f"missing files: {[meta['digests']]}")
    return meta

  def load(self, step: int, layout: Callable[[dict[str, Any]], Any]) -> Restored:
    """One step that must be good; nothing is moved, nor another taken in its place.

    Raises:
      ValueError: it is not there, it is damaged, or not laid out as `layout` (see `restore`) says.
    """
    if step not in self.steps():
      there = ", ".join(map(str, sorted(self.steps()))) or "none"
      raise ValueError(f"No {self._noun} of step {step} in {self.directory}. There are: {there}.")
    try:
      whole = self._verify(step)
      meta = self.meta(step)
      restored = Restored(step, self._read_state(step, layout(meta)), meta)
    except Exception as error:  # orbax has no type for damage: tensorstore's is bare
      raise ValueError(
        f"The {self._noun} of step {step} in {self.directory} cannot be read: {error}. Move it "
        "away to go on without it."
      ) from error
    if not whole:
      _say_unverified(self._noun, self.directory / str(step))
    return restored

  def _read_state(self, step: int, layout: Any) -> Any:
    """The state of a step, or of a partial reader what the layout names of it."""
    parts = read_once.in_parts(layout)
    if not self._partial:
      state = self._read(step, state=ocp.args.StandardRestore(parts))
    else:
      how = ocp.checkpoint_utils.construct_restore_args(parts)
      part = ocp.args.PyTreeRestore(item=parts, restore_args=how, partial_restore=True)
      state = self._read(step, state=part)
    return read_once.together(state, layout)

  def _read(self, step: int, **item: Any) -> Any:
    """One item of a checkpoint: `state=...` or `meta=...`."""
    (name,) = item
    with meeting.during(f"reading {self._noun} {step}"):
      return self._manager.restore(step, args=ocp.args.Composite(**item))[name]

  def _verify(self, step: int, below: str = "") -> bool:
    """Raises if a step's files are not as they were written; False for one without digests.

    Args:
      step: which.
      below: how the names of the files begin that are looked at.
    """
    folder, what = self.directory / str(step), f"files of {self._noun} {step}"
    plan = self._files(step, below) if sharding.process()[0] == 0 else None
    plan = meeting.exchange(f"{what}: which", plan)[0]  # so that all come to one verdict
    if plan["refusal"]:
      raise ValueError(plan["refusal"])
    expected = plan["expected"]
    if expected is None:
      return False
    found = read_once.digests(folder, plan["sizes"], f"{what}: digests")
    missing = sorted(set(expected) - set(found))
    changed = sorted(name for name in expected if name in found and expected[name] != found[name])
    if missing or changed:
      raise ValueError(f"missing files: {missing}, changed files: {changed}")
    return True

  def _files(self, step: int, below: str) -> dict[str, Any]:
    """The files of a step: the digests that it says, or None; the sizes that they have."""
    folder = self.directory / str(step)
    paths = (folder / DIGESTS, self._seals / f"{step}.json")
    path = next((path for path in paths if path.exists()), None)
    expected, sizes, refusal = None, {}, ""
    try:
      if path is not None:
        expected = json_files.read(path)
        if not isinstance(expected, dict):
          raise ValueError("it is no table of files")
        expected = {name: one for name, one in expected.items() if name.startswith(below)}
        sizes = _sizes(folder, below)
    except (ValueError, OSError) as error:
      refusal = f"{path.name if path else folder} cannot be read: {error}"
    return {"expected": expected, "sizes": sizes, "refusal": refusal}

  def _set_aside(self, step: int, why: Exception) -> None:
    message = "The checkpoint of step %d in %s is broken (%s). Taking the one before it."
    logger.warning(message, step, self.directory, why)
    if self.read_only:
      return
    if self.primary:
      broken = self.workdir / "broken" / f"{step}.{time.time_ns()}"
      commit.set_aside(self.directory / str(step), broken)
    self._agree(True)  # none looks again before it is moved
    self._manager.reload()


@functools.cache  # once for each, however often it is read
def _say_unverified(noun: str, path: epath.Path) -> None:
  logger.warning(
    "The %s %s is unverified: it has no digests, so damage to its numbers would not be seen. It is "
    "of an earlier version, which was stopped before it wrote them.",
    *(noun, path),
  )


def _digests(folder: Any, below: str = "") -> dict[str, str]:
  """The sha256 of every file below a folder, by its path, as far as these begin with `below`."""
  digests = {}
  for name in _sizes(folder, below):
    with (folder / name).open("rb") as file:  # by parts: it may be larger than what memory is left
      digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
  return digests


def _sizes(folder: Any, below: str = "") -> dict[str, int]:
  """{name: bytes} of the files of a checkpoint, as far as their names begin with `below`."""
  found = stores.files(folder)
  return {name: found[name] for name in found if name.startswith(below) and name != DIGESTS}


def read(
  workdir: str | os.PathLike[str], layout: Callable[[dict[str, Any]], Any], *, partial: bool = False
) -> Restored:
  """The newest good checkpoint of another run, which is not changed by it; `layout` as above.

  With `partial` a layout may name a part of the state: {"ema": {"main": ...}} reads one average,
  and neither the optimizer's moments nor a second copy of the weights.
  """
  checkpoints = Checkpoints(workdir, read_only=True, partial=partial)
  try:
    restored = checkpoints.restore(layout)
  finally:
    checkpoints.close()
  if restored is None:
    raise ValueError(f"{workdir} has no complete checkpoint yet: train that run first.")
  return restored


def num_bytes(tree: Any) -> int:
  """The bytes of all arrays of a tree (or of their shapes)."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
