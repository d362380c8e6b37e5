"""One mesh for one device and for a pod: which array lives where.

The mesh has two axes. `data` replicates the parameters; `fsdp` shards parameters, optimizer state
and averages. Both split the batch.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, *, devices: list[Any] | None = None) -> Mesh:
  """The mesh over all devices; -1 means what is left of them (on one axis at most)."""
  devices = jax.devices() if devices is None else devices
  sizes = {"data": data, "fsdp": fsdp}
  known = math.prod(size for size in sizes.values() if size != -1)
  if list(sizes.values()).count(-1) > 1 or any(s < 1 and s != -1 for s in sizes.values()):
    raise ValueError(f"mesh={sizes}: sizes are positive, and -1 (the rest) for at most one axis.")
  if -1 in sizes.values() and len(devices) % known == 0:
    sizes = {axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()}
  if math.prod(sizes.values()) != len(devices):
    raise ValueError(
      f"mesh={sizes} does not fit {len(devices)} devices: data * fsdp must equal their number. "
      f"Take data=-1 and an fsdp that divides {len(devices)}."
    )
  # jax >= 0.10 defaults to explicit axes, where a sharded and a replicated array do not combine.
  return jax.make_mesh(
    tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device has whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: its first axis over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def shard_params(tree: Any, mesh: Mesh, *, min_size: int = 2**14) -> Any:
  """The sharding of each array of a state, averages and Adam moments like their parameters.

  Rules, first match wins: arrays of fewer than `min_size` numbers are replicated (gathering them
  costs more than it saves); others are split over `fsdp` along their last axis that it divides
  (output channels where it can be); what it divides nowhere is replicated.

  Args:
    tree: arrays or `jax.ShapeDtypeStruct`s, e.g. from `jax.eval_shape`.
    mesh: of `make_mesh`.
    min_size: numbers in an array below which it is replicated.
  """
  fsdp = mesh.shape["fsdp"]

  def leaf(x):
    axes = [axis for axis, size in enumerate(x.shape) if size % fsdp == 0]
    if fsdp == 1 or math.prod(x.shape) < min_size or not axes:
      return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*[None] * axes[-1], "fsdp"))

  return jax.tree.map(leaf, tree)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises an error that names the nearest batch size if the devices do not divide this one."""
  num_devices = mesh.size
  if batch_size % num_devices:
    nearest = num_devices * max(1, round(batch_size / num_devices))
    raise ValueError(
      f"batch_size={batch_size} must be a multiple of the {num_devices} devices. "
      f"Nearest: {nearest}."
    )


def process() -> tuple[int, int]:
  """This process's index, and how many there are."""
  return jax.process_index(), jax.process_count()


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's slice of a batch as its part of the global arrays."""
  to_global = jax.make_array_from_process_local_data
  return {name: to_global(batch_sharding(mesh), array) for name, array in batch.items()}


def create(init: Callable[..., Any], mesh: Mesh, *args: Any) -> tuple[Any, Any]:
  """init(*args) with every array made where it lives, and the shardings; nothing is copied."""
  shardings = shard_params(jax.eval_shape(init, *args), mesh)
  return jax.jit(init, out_shardings=shardings)(*args), shardings


def gather(tree: Any, mesh: Mesh) -> Any:
  """The tree with every array whole on every device."""
  return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
