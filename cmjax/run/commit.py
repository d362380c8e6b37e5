"""How a folder that orbax writes becomes a whole one: by its name, or by a file that comes last.

Where folders can be renamed, a checkpoint is written under another name (`ByName`). Where they
cannot, as in object stores and in some mounted buckets, it has its own name at once, and counts
when `commit_success.txt` is in it (`ByFile`). Both put the digests of all files in before that.
"""

import asyncio
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from cmjax.base import place, stores
from cmjax.base.atomic_files import write_json, write_text

DIGESTS = "digests.json"
COMMIT = ocp.path.atomicity_types.COMMIT_SUCCESS_FILE
UNFINISHED = "unfinished"  # in a step that counts when COMMIT is there: it was begun
# Orbax writes when the saving began and ended to it, the last after the digests.
_TIMES = "_CHECKPOINT_METADATA"
_TEMPORARY = ocp.path.atomicity_types.TMP_DIR_SUFFIX

Digests = Callable[[Any], dict[str, str]]


class ByName(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """A folder that orbax writes: a step, to which its digests are added before its last rename."""

  _step: Any = None  # where the step is to be seen; None for a folder inside of one
  digests: Digests

  @classmethod
  def from_final(cls, final_path: Any, **options: Any) -> "ByName":
    """The folder that becomes `final_path`: what is to be written is here at first."""
    if _TEMPORARY in final_path.parent.name:
      return super().from_final(final_path, **options)  # pyright: ignore[reportReturnType]
    # To orbax this is still the name of one that is not complete.
    whole = final_path.with_name(f"{final_path.name}{_TEMPORARY}-whole")
    written: Any = super().from_final(whole, **options)
    written._step = final_path
    return written

  @classmethod
  async def validate(cls, temporary_path: Any) -> None:
    """Raises if a folder is none that was begun and not ended."""
    if not await asyncio.to_thread(_is_unfinished, temporary_path):
      await super().validate(temporary_path)

  @classmethod
  async def validate_final(cls, final_path: Any) -> None:
    """Raises if a folder is not whole."""
    if await asyncio.to_thread(_is_unfinished, final_path):
      raise ocp.path.atomicity.ValidationError(f"{final_path} has no {COMMIT}.")
    await super().validate_final(final_path)

  @classmethod
  def from_temporary(cls, temporary_path: Any, **options: Any) -> Any:
    """A folder that was begun and not ended."""
    if _TEMPORARY in temporary_path.name:
      return super().from_temporary(temporary_path, **options)
    return cls(temporary_path, temporary_path, **options)  # begun by `ByFile`

  def get_final(self) -> Any:
    """Where the folder is to be seen."""
    return super().get_final() if self._step is None else self._step

  async def finalize(self) -> None:
    """Gives the folder its digests and then its name, on one process."""
    whole = Path(super().get_final())
    if self._step is not None:  # of a save that failed before
      await asyncio.to_thread(shutil.rmtree, whole, ignore_errors=True)
    await super().finalize()
    if self._step is not None:
      await asyncio.to_thread(_complete, type(self).digests, whole, Path(self._step))


def _complete(digests: Digests, whole: Path, step: Path) -> None:
  write_json(whole / DIGESTS, digests(whole), indent=None)
  os.rename(whole, step)


class ByFile(ocp.path.atomicity.CommitFileTemporaryPath):
  """A folder that orbax writes under its own name: a step, to which COMMIT is added at last."""

  digests: Digests

  @classmethod
  async def validate(cls, temporary_path: Any) -> None:
    """Raises if a folder is none that was begun and not ended."""
    if not await asyncio.to_thread(_is_unfinished, temporary_path):
      raise ocp.path.atomicity.ValidationError(f"{temporary_path} was not begun here.")

  @classmethod
  async def validate_final(cls, final_path: Any) -> None:
    """Raises if a folder is not whole."""
    if not await asyncio.to_thread(_is_whole, final_path):
      raise ocp.path.atomicity.ValidationError(f"{final_path} has no {COMMIT}.")

  async def create(self) -> Any:
    """Makes the folder, on one process."""
    made = await super().create()
    if _is_step(made):
      await asyncio.to_thread(write_text, made / UNFINISHED, f"It counts if {COMMIT} is there.\n")
    return made

  async def finalize(self) -> None:
    """Gives the folder its digests and then COMMIT, on one process."""
    if _is_step(self._final_path):
      await asyncio.to_thread(self._add_digests)
    await super().finalize()

  def _add_digests(self) -> None:
    found = type(self).digests(self._final_path)
    written = {name: digest for name, digest in found.items() if name not in (_TIMES, UNFINISHED)}
    write_json(self._final_path / DIGESTS, written, indent=None)


def path_class(
  directory: epath.Path, digests: Digests, *, read_only: bool
) -> type[ByName] | type[ByFile]:
  """How folders of a directory become whole: what its place can do; of another run, by its URL."""
  remote = stores.is_remote(directory)
  if os.fspath(directory).startswith("s3://"):
    _write_to_s3(stores.endpoint(directory))
  by_name = not remote if read_only else place.capabilities(directory.parent).renames_folders
  kind: Any = ByName if by_name else ByFile
  return type(kind.__name__, (kind,), {"digests": staticmethod(digests)})


def set_aside(folder: epath.Path, target: epath.Path) -> None:
  """Moves the folder of a step; where there is no such move, copies it and removes it."""
  target.parent.mkdir(parents=True, exist_ok=True)
  if not stores.is_remote(folder):
    shutil.move(folder, target)
    return
  stores.copy_folder(folder, target)
  (folder / COMMIT).unlink(missing_ok=True)  # first: what is left counts no more
  folder.rmtree(missing_ok=True)


def _is_step(path: Any) -> bool:
  return path.name.isdecimal()


def _is_unfinished(path: Any) -> bool:
  return (path / UNFINISHED).exists() and not (path / COMMIT).exists()


def _is_whole(path: Any) -> bool:
  if _TEMPORARY in path.name or not path.is_dir():
    return False
  if (path / COMMIT).exists():
    return True
  if not _is_step(path):  # inside of a step
    return _is_whole(path.parent) if _is_step(path.parent) else False
  # Copied from a disk, where an earlier version of orbax wrote it.
  return (path / DIGESTS).exists() and not (path / UNFINISHED).exists()


@functools.cache
def _write_to_s3(endpoint: str) -> None:
  """Has orbax give s3:// to TensorStore, which can write it, as it gives gs://.

  Orbax knows gs:// alone, in three functions; TensorStore has a driver for both.
  """
  normal, is_store = tensorstore_utils._normalize_path, tensorstore_utils._use_gcs_driver
  spec = gcs_utils.get_kvstore_for_gcs
  is_s3 = lambda path: str(path).startswith("s3://")

  def s3_spec(path: str) -> dict[str, Any]:
    bucket, _, name = path.removeprefix("s3://").partition("/")
    where = {"endpoint": endpoint} if endpoint else {}
    return {"driver": "s3", "bucket": bucket, "path": name, **where}

  tensorstore_utils._normalize_path = lambda path: (
    normal(path).replace("s3:/", "s3://", 1) if is_s3(path) else normal(path)
  )
  tensorstore_utils._use_gcs_driver = lambda path: is_s3(path) or is_store(path)
  gcs_utils.get_kvstore_for_gcs = lambda path: s3_spec(path) if is_s3(path) else spec(path)
