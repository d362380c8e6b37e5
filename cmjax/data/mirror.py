"""Prepared sets in a bucket (gs://, s3://, ...): copied to a disk once, each shard checked.

array_record reads files of a disk, at random. What `etils.epath` and fsspec reach is therefore
mirrored before it is read: every host needs the whole set, since a batch is drawn from all of it.
"""

import concurrent.futures
import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from etils import epath

from cmjax.base import paths
from cmjax.data.manifest import NAME, Manifest, Shard

logger = logging.getLogger("cmjax")

CACHE = "~/.cache/cmjax/records"
THREADS = 8
PIECE = 2**24  # bytes at a time


def mirror(folder: Any, manifest: Manifest, cache: str | os.PathLike[str] = CACHE) -> epath.Path:
  """The folder of a split on a disk: what is missing there is copied, whole or not at all.

  A set is known by its manifest, so that one prepared anew in the same place is another. What a
  run that was stopped has copied is kept.

  Args:
    folder: of the split, an `epath.Path`.
    manifest: what is in it.
    cache: where mirrors are.

  Raises:
    ValueError: the mirror's folder cannot be made; a shard cannot be read or written, or is not the
      one of the manifest; the disk has not the space.
  """
  made = hashlib.sha256((folder / NAME).read_bytes()).hexdigest()
  target = paths.local(cache) / made[:16]
  try:
    target.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(
      f"Cannot mirror {folder} to {target}: {error.strerror}. Name another folder: "
      "data.records.cache."
    ) from error
  missing = [shard for shard in manifest.shards if not _is_there(target, shard)]
  if missing:
    _copy_all(folder, target, missing, len(manifest.shards))
  return epath.Path(target)


def _copy_all(folder: Any, target: Path, missing: list[Shard], num_shards: int) -> None:
  size, free = sum(shard.num_bytes for shard in missing), shutil.disk_usage(target).free
  if size > free:
    raise ValueError(
      f"{folder} needs {size / 1e9:.2f} GB in {target}, where {free / 1e9:.2f} GB are free; every "
      "host needs all of it, as each batch is drawn from the whole set. Free some space, or name "
      "a folder on a larger disk: data.records.cache. Or mount the bucket, and give that folder as "
      "data.records.path: then records are read from it one by one, and nothing is copied."
    )
  logger.info(
    "Copying %d of %d shards (%.2f GB) from %s to %s ...",
    *(len(missing), num_shards, size / 1e9, folder, target),
  )
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    copies = [pool.submit(_copy, folder / shard.name, target, shard) for shard in missing]
    try:
      for done, copy in enumerate(concurrent.futures.as_completed(copies), start=1):
        copy.result()
        if done % max(1, len(missing) // 10) == 0:
          logger.info("Copied %d of %d shards.", done, len(missing))
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _is_there(target: Path, shard: Shard) -> bool:
  path = target / shard.name
  return path.is_file() and path.stat().st_size == shard.num_bytes


def _copy(source: Any, target: Path, shard: Shard) -> None:
  digest = hashlib.sha256()
  # A name of its own: other processes of this machine may copy the same.
  partial = tempfile.NamedTemporaryFile(dir=target, prefix=shard.name, suffix=".part", delete=False)
  try:
    with partial as file, source.open("rb") as stream:
      left = shard.num_bytes + 1  # the space for more was not looked for
      while piece := stream.read(min(PIECE, left)):
        digest.update(piece)
        file.write(piece)
        left -= len(piece)
    if digest.hexdigest() != shard.sha256:
      raise ValueError(
        f"{source} is not the shard of its manifest: its sha256 is {digest.hexdigest()[:12]}..., "
        f"not {shard.sha256[:12]}...; copy the set into the bucket again."
      )
    os.replace(partial.name, target / shard.name)
  except OSError as error:
    reason = error.strerror or error
    raise ValueError(
      f"Cannot copy {source} to {target}: {reason}. Shards that are whole are kept: start the same "
      "command again."
    ) from error
  finally:
    Path(partial.name).unlink(missing_ok=True)
