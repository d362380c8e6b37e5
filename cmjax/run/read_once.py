"""A restart reads each byte of a checkpoint once over all processes, and not once on each.

Digests: the files are shared out by their sizes, and every process is told what all have found.
Arrays that several processes hold whole: each reads a part, and the devices gather the parts, over
a network that is faster than the store. A part is what one replica has written (orbax shares the
writing of replicas out as well), so that on as many devices no chunk is read twice.
"""

import concurrent.futures
import functools
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmjax.base import meeting, sharding

THREADS = 8  # files at a time: of a bucket one stream is slow
MIN_SIZE = 2**14  # numbers in an array below which gathering costs more than it saves
# Each process writes its arrays to a folder of its own.
_WRITTEN_BY = re.compile(r"(?:.*/)?ocdbt\.process_(\d+)/")


def digests(folder: epath.Path, sizes: Mapping[str, int], what: str) -> dict[str, str]:
  """The sha256 of files of a folder, by their names; every process must ask for the same.

  Args:
    folder: where they are.
    sizes: {name: bytes}.
    what: they are of, for the others to meet by.

  Returns:
    Of a file that cannot be read, the reason in the digest's place.
  """
  index, count = sharding.process()
  own = shares(sizes, count)[index]
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    found = dict(zip(own, pool.map(lambda name: _digest(folder / name), own), strict=True))
  return {name: one for part in meeting.exchange(what, found) for name, one in part.items()}


def _digest(path: Any) -> str:
  try:
    with path.open("rb") as file:  # by parts: a file may be larger than what memory is left
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    return f"{type(error).__name__}: {error.strerror or error}"


def shares(sizes: Mapping[str, int], count: int) -> list[list[str]]:
  """Which process reads which files: each file once, and all processes about as much.

  A process gets those that it will read again, as it has written them, where that is no longer way:
  then they are in the memory of its host.

  >>> shares({"a": 5, "b": 3, "c": 2}, 2)
  [['a'], ['b', 'c']]
  """
  loads, parts = [0] * count, [[] for _ in range(count)]
  for name, size in sorted(sizes.items(), key=lambda one: (-one[1], one[0])):
    match = _WRITTEN_BY.match(name)
    writer = int(match[1]) if match else -1
    chosen = min(range(count), key=lambda i: (loads[i] - size * (i == writer), i))
    loads[chosen] += size
    parts[chosen].append(name)
  return parts


def in_parts(layout: Any) -> Any:
  """The layout of a state in which no two processes read the same: replicas are split as well.

  Args:
    layout: `jax.ShapeDtypeStruct`s, with the shardings that are wanted in the end.
  """
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_split(x.shape, x.sharding)), layout
  )


def together(state: Any, layout: Any) -> Any:
  """A state that was read `in_parts`, as its layout says: the devices gather what is in parts."""
  arrays, structure = jax.tree.flatten(state)
  wanted = [x.sharding for x in structure.flatten_up_to(layout)]
  split = [i for i, x in enumerate(arrays) if wanted[i] is not None and x.sharding != wanted[i]]
  if split:
    gather = jax.jit(lambda parts: parts, out_shardings=[wanted[i] for i in split])
    for i, whole in zip(split, gather([arrays[i] for i in split]), strict=True):
      arrays[i] = whole
  return jax.tree.unflatten(structure, arrays)


def _split(shape: tuple[int, ...], wanted: Any) -> Any:
  """A sharding of an array that also splits it over the replicas that several processes hold."""
  if not isinstance(wanted, NamedSharding) or math.prod(shape) < MIN_SIZE:
    return wanted
  mesh = wanted.mesh
  axes = [_axes(part) for part in wanted.spec]
  axes += [()] * (len(shape) - len(axes))
  used = {axis for part in axes for axis in part}
  free = tuple(axis for axis, size in mesh.shape.items() if axis not in used and size > 1)
  if not free or not _in_several_processes(mesh, free):
    return wanted
  replicas = math.prod(mesh.shape[axis] for axis in free)
  for i, size in enumerate(shape):  # the first axis that it divides: the one that orbax takes
    if size % (replicas * math.prod(mesh.shape[axis] for axis in axes[i])) == 0:
      axes[i] += free
      return NamedSharding(mesh, PartitionSpec(*(part or None for part in axes)))
  return wanted


def _axes(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (part,) if isinstance(part, str) else tuple(part or ())


@functools.lru_cache(maxsize=64)
def _in_several_processes(mesh: Mesh, free: tuple[str, ...]) -> bool:
  """Whether replicas along these axes of a mesh are on devices of several processes."""
  order = [mesh.axis_names.index(axis) for axis in free]
  processes = np.vectorize(_process_of)(mesh.devices)
  together = np.moveaxis(processes, order, range(len(order)))
  flat = together.reshape(math.prod(together.shape[: len(order)]), -1)
  return bool(np.any(flat != flat[:1]))


def _process_of(device: Any) -> int:
  return device.process_index
