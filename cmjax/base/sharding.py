"""One mesh for one device and for a pod: which array lives where.

The mesh has two axes. `data` replicates the parameters; `fsdp` shards parameters, optimizer state
and averages. Both split the batch. Row i of a global batch is the same element on every mesh.
"""

import contextlib
import hashlib
import importlib.util
import io
import itertools
import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cmjax.base import cluster, meeting, paths
from cmjax.base.ranges import Range

AXES = ("data", "fsdp")
Axis = Annotated[int, Range(-1, 2**20)]  # of a mesh
_PIECE = 2**26  # bytes that one process sends at a time: a device has to hold as many of each
_ASKED = itertools.count(1)  # how often this process has asked whether to stop


def make_mesh(
  data: Axis = -1,
  fsdp: Axis = 1,
  *,
  across_slices: bool = False,
  devices: list[Any] | None = None,
) -> Mesh:
  """The mesh over all devices; -1 means what is left of them (on one axis at most).

  Where the devices are several slices (TPU slices, GPU nodes: inside of one the network is fast),
  `fsdp` lies within a slice and `data` goes across: parameters are gathered inside slices, and only
  gradients are summed over the slow network between them.

  Args:
    data: replicas of the parameters.
    fsdp: devices that share one copy of the parameters.
    across_slices: allows an `fsdp` larger than a slice, for what fits in no slice.
    devices: instead of all.

  Raises:
    ValueError: the sizes do not fit the devices, or `fsdp` does not fit into a slice.
  """
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
  layout = _layout(devices, sizes["data"], sizes["fsdp"], across_slices)
  # jax >= 0.10 defaults to explicit axes, where a sharded and a replicated array do not combine.
  return Mesh(layout, AXES, axis_types=(AxisType.Auto,) * 2)


def _layout(devices: list[Any], data: int, fsdp: int, across_slices: bool) -> np.ndarray:
  """The devices [data, fsdp], neighbours in the fastest network along fsdp."""
  # Without this, jax has no mesh for fsdp=8 on v5p:4x4x4; it splits an axis only where it must.
  split = dict(allow_split_physical_axes=True)
  by_process = not hasattr(devices[0], "slice_index")
  slices = Counter(d.process_index if by_process else d.slice_index for d in devices)
  # Processes stand for nodes only on GPUs, and if they are not one process for each GPU.
  if len(slices) == 1 or (by_process and (devices[0].platform != "gpu" or 1 in slices.values())):
    return mesh_utils.create_device_mesh((data, fsdp), devices, **split)
  size, *others = set(slices.values())
  if others:
    raise ValueError(
      f"The slices have {sorted(slices.values())} devices, but must have equally many: start this "
      "run on slices of one size."
    )
  if size % fsdp == 0:
    inner, outer = (size // fsdp, fsdp), (len(slices), 1)
  elif fsdp % size == 0 and across_slices:
    inner, outer = (1, size), (len(devices) // fsdp, fsdp // size)
  else:
    raise ValueError(
      f"fsdp={fsdp} does not fit into one of the {len(slices)} slices of {size} devices: "
      "parameters would be gathered over the slow network between them. Take an fsdp that divides "
      f"{size}; or a multiple of {size}, with across_slices=True in config.mesh."
    )
  return mesh_utils.create_hybrid_device_mesh(
    inner, outer, devices, process_is_granule=by_process, **split
  )


def cpu_devices(number: int) -> list[Any]:
  """So many CPU devices, to compile for what is not there; before any use of JAX, or what it has.

  Raises:
    ValueError: if JAX has started with fewer.
  """
  with contextlib.suppress(RuntimeError):  # it has started
    jax.config.update("jax_num_cpu_devices", max(number, jax.config.jax_num_cpu_devices))
  devices = jax.devices("cpu")
  if len(devices) < number:
    raise ValueError(
      f"JAX has started with {len(devices)} CPU devices, and {number} are asked for: set "
      f"jax_num_cpu_devices={number} first, or start another process."
    )
  return devices[:number]


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device has whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: its first axis over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The rows of a global batch that are on this process's devices, ascending: int64 [b].

  They need not be neighbours: on a TPU's torus the mesh goes through several hosts in turns.
  """
  rows, indices = np.arange(batch_size), batch_sharding(mesh).devices_indices_map((batch_size,))
  mine = [rows[i] for d, (i,) in indices.items() if d.process_index == jax.process_index()]
  return np.sort(np.concatenate(mine))


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


def start(
  coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
  """Joins this process to the others of its run; alone it stays alone. Before any use of a device.

  Clusters say where the others are: `cluster.ROWS` by variables, Cloud TPU by its metadata.
  Elsewhere all three arguments say it; num_processes=1 without the others says that there are none.
  Every process must see the same workdir. When one dies the others end within about 100 seconds,
  and the run goes on when all are started again.

  Args:
    coordinator: host:port of process 0.
    num_processes: of the run.
    process_id: of this one, from 0.

  Raises:
    ValueError: for some of the three but not all, an id that is none of the processes', or a
      cluster that tells half of it.
    OthersMissing: the others cannot be reached.
  """
  given = (coordinator, num_processes, process_id)
  if given == (None, 1, None):
    return
  if any(a is not None for a in given) and None in given:
    raise ValueError(
      f"coordinator={coordinator}, num_processes={num_processes}, process_id={process_id}: give "
      "all three, or none where the cluster says it (TPU, SLURM, MPI, Kubernetes)."
    )
  if num_processes is not None and process_id is not None:
    if not 0 <= process_id < num_processes:
      raise ValueError(f"process_id={process_id} must be from 0 to {num_processes - 1}.")
    _join(cluster.Told("the command line", num_processes, process_id, coordinator))
  elif (told := cluster.read()) is None:
    _ask_jax()
  elif told.number > 1:
    _join(told)


class OthersMissing(RuntimeError):
  """The other processes of a run did not come, or went away again: start the same again."""


def _join(told: cluster.Told) -> None:
  try:
    jax.distributed.initialize(
      told.coordinator, told.number, told.process, local_device_ids=told.devices
    )
  except ValueError as error:
    if "coordinator_address" not in str(error):
      raise
    raise ValueError(
      f"{told.cluster}: this is process {told.process} of {told.number}, but JAX does not find "
      "process 0 there. For a TPU install jax[tpu], for Open MPI 5 mpi4py; or give --coordinator, "
      "--num_processes and --process_id."
    ) from error
  except RuntimeError as error:  # JAX has no type of its own for it
    if not any(word in str(error) for word in ("DEADLINE_EXCEEDED", "UNAVAILABLE", "ABORTED")):
      raise
    raise OthersMissing(
      f"{told.cluster}: process {told.process} of {told.number} did not reach all others at "
      f"{told.coordinator or 'process 0'}: {str(error).splitlines()[0]}"
    ) from error
  meeting.introduce()


def _ask_jax() -> None:
  """Where no variables tell: Cloud TPU has metadata, and Kubernetes an API."""
  in_job = cluster.is_in_job()
  if in_job is False:
    return  # a notebook, a plain pod: JAX would take it for a part of a Job
  if in_job and importlib.util.find_spec("kubernetes") is None:
    raise ValueError(
      f"{cluster.INDEX} says that this is a pod of an Indexed Job, but not how many there are. Set "
      "JAX_COORDINATOR_ADDRESS, NNODES and NODE_RANK as launch/jobset.sh does, or install "
      "jax[k8s]; or give --num_processes=1 to start alone."
    )
  try:
    jax.distributed.initialize()
  except ValueError as error:
    if "coordinator_address" not in str(error):  # which is how it says that there is no cluster
      raise
  else:
    meeting.introduce()


def keep_compiled(folder: str | Path) -> None:
  """Keeps compiled programs in a folder, for the next start of the same; before the first of them.

  A cache that JAX was told of otherwise (JAX_COMPILATION_CACHE_DIR) is left as it is. Programs for
  a CPU are not made for every CPU: each kind has a folder of its own, in homes that machines share.
  """
  if jax.config.jax_compilation_cache_dir is not None:
    return
  info = Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
  kind = hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
  jax.config.update("jax_compilation_cache_dir", os.fspath(paths.place(folder) / kind))


def process() -> tuple[int, int]:
  """This process's index, and how many there are."""
  return jax.process_index(), jax.process_count()


def host_device() -> Any:
  """This process's CPU as a device, beside whatever else it has: for float64.

  Raises:
    ValueError: where JAX was started without it.
  """
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError as error:
    raise ValueError(
      "JAX has no CPU backend beside the accelerator, for float64: add it to JAX_PLATFORMS (as in "
      "tpu,cpu), or set doctor.probe_every_steps=None."
    ) from error


def told_to_stop() -> bool:
  """Whether all processes stop here, since one of them got SIGTERM.

  All must ask equally often, from when they joined: they agree in the background on the first time
  that none has asked yet. JAX compares that number for equality, so it must rise by one each time,
  and nobody else may tell JAX of another. Hence no step is counted: a dispatch may take several,
  and a resumed run begins at a high one. For several processes: JAX then listens for the signal.
  """
  return multihost_utils.reached_preemption_sync_point(next(_ASKED))


def from_all(values: list[float]) -> np.ndarray:
  """The numbers that all processes call this with, float32 [processes, n]; each must call it."""
  return np.asarray(multihost_utils.process_allgather(np.asarray(values, np.float32)))


def all_agree(ok: bool, what: str = "a question to all") -> bool:
  """Whether `ok` is true on every process; each must ask, for the same that is named."""
  return all(meeting.exchange(what, bool(ok)))


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's `local_rows` of a batch as its part of the global arrays."""
  to_global = jax.make_array_from_process_local_data
  return {name: to_global(batch_sharding(mesh), array) for name, array in batch.items()}


def create(init: Callable[..., Any], mesh: Mesh, *args: Any) -> tuple[Any, Any]:
  """init(*args) with every array made where it lives, and the shardings; nothing is copied."""
  shardings = shard_params(jax.eval_shape(init, *args), mesh)
  return jax.jit(init, out_shardings=shardings)(*args), shardings


def gather(tree: Any, mesh: Mesh) -> Any:
  """The tree with every array whole on every device; what is on the host must be alike on all."""
  meeting.exchange("gathering of arrays")
  return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def local_values(array: jax.Array) -> tuple[np.ndarray, np.ndarray]:
  """The rows of an array split by `batch_sharding` that this process has: their numbers, ascending.

  Returns:
    int64 [b], and the rows [b, ...].
  """
  numbers = np.arange(len(array))
  shards = [(numbers[s.index[0]], np.asarray(s.data)) for s in array.addressable_shards]
  shards.sort(key=lambda shard: shard[0][0])
  rows, values = (np.concatenate(part) for part in zip(*shards, strict=True))
  return rows, values


def everyone(array: np.ndarray) -> list[np.ndarray]:
  """The arrays that all processes call this with, in their order: of any shapes, bit for bit.

  Every process must call it. What travels are bytes: JAX would make float32 of float64.
  """
  if jax.process_count() == 1:
    return [array]
  stream = io.BytesIO()
  np.save(stream, array, allow_pickle=False)
  raw = np.frombuffer(stream.getbuffer(), np.uint8)
  sizes = meeting.exchange("gathering of what each has", len(raw))
  parts = [[] for _ in sizes]
  for start in range(0, max(sizes), _PIECE):
    piece = np.zeros(min(_PIECE, max(sizes) - start), np.uint8)
    own = raw[start : start + _PIECE]
    piece[: len(own)] = own
    for i, theirs in enumerate(np.asarray(multihost_utils.process_allgather(piece))):
      parts[i].append(theirs[: max(0, sizes[i] - start)])
  return [np.load(io.BytesIO(np.concatenate(part).tobytes()), allow_pickle=False) for part in parts]


def spread(function: Callable[[int, int], np.ndarray], num: int) -> np.ndarray:
  """function(start, stop) of a part of range(num) on each process; all parts, on every process."""
  index, count = process()
  own = function(num * index // count, num * (index + 1) // count)
  return np.concatenate(everyone(own))
