"""Whether machines do what a run will ask of them, before it is paid for: a few minutes, one table.

How fast data comes to the devices and goes between them; what a product of float32 really is;
whether ten steps of this experiment give the same bits twice; a trace of three steps; a checkpoint
written and read back in the workdir. Batches and the teacher's weights are random numbers of the
right shapes: neither data nor a teacher is read.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from cmjax import experiment
from cmjax.base import paths, sharding
from cmjax.experiment import Experiment
from cmjax.program import compiled_step, costs, deterministic, out_of_memory, plan, profiling
from cmjax.program.course import key_for
from cmjax.run import checkpoint
from cmjax.training.step import TrainState

FOLDER = "preflight"  # in the workdir; removed in the end, but for the trace
NUM_BYTES = {"cpu": 2**24}  # that each device sends; of others 256 MiB
STEPS, TRACED = 10, 3
# Relative error of a product, root mean square -> what it was computed in. Rounding both inputs to
# 11 bits gives 3e-4, to 8 bits 2.3e-3; three passes of bfloat16 lie between TF32 and float32.
PRECISIONS = ((5e-6, "float32"), (5e-5, "bfloat16 in several passes"), (8e-4, "TF32"))
PRECISIONS += ((1e-2, "bfloat16"),)

OK, NOTE, WRONG = "ok", "note", "WRONG"


class Row(NamedTuple):
  """What one check found."""

  name: str
  found: str
  verdict: str = OK


def preflight(exp: Experiment, workdir: str | os.PathLike[str]) -> tuple[str, bool]:
  """Checks the devices that are here, with the experiment's own step, mesh and workdir.

  Every process of a run must call it.

  Args:
    exp: the experiment.
    workdir: where a run of it would be.

  Returns:
    The table of this process, and whether nothing is wrong on any.

  Raises:
    ValueError: the experiment does not fit the devices.
  """
  began = time.perf_counter()
  experiment.check(exp)
  exp = exp._replace(run=exp.run._replace(steps_per_dispatch=1))
  mesh = experiment.make_mesh(exp.run)
  sharding.check_batch_size(exp.run.batch_size, mesh)
  folder = paths.absolute(paths.place(workdir, "workdir")) / FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  rows = [*_tried("host to devices", lambda: _transfer(mesh))]
  rows += _tried("all-reduce", lambda: _all_reduce(mesh))
  rows += _tried("products", _products)
  rows += _tried("steps", lambda: _of_steps(exp, mesh, folder))
  seconds = time.perf_counter() - began
  _remove(folder)
  passed = all(row.verdict != WRONG for row in rows)
  everywhere = sharding.all_agree(passed)
  end = "Nothing is wrong."
  if not passed:
    end = "Something is wrong: see the lines with WRONG."
  elif not everywhere:
    end = "Something is wrong on another process: its table says what."
  return _table(mesh, rows, f"{end} It took {seconds:.0f} s."), everywhere


def _tried(name: str, check: Callable[[], Iterator[Row]]) -> list[Row]:
  """The rows of a check; one that fails is a row, and the others go on."""
  rows = []
  try:
    rows.extend(check())
  except Exception as error:  # whatever a machine can do to a program
    what = "out of memory" if out_of_memory.is_one(error) else type(error).__name__
    rows.append(Row(name, f"{what}: {' '.join(str(error).split())[:200]}", WRONG))
  return rows


def _table(mesh: Mesh, rows: list[Row], end: str) -> str:
  devices, count = list(mesh.devices.flat), sharding.process()[1]
  shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  where = f"{count} processes" if count > 1 else "one process"
  chips = f"{len(devices)} x {devices[0].device_kind} in {where}"
  head = f"{chips}, mesh {shape}; jax {jax.__version__}"
  lines = [f"{row.name:24}{row.verdict:8}{row.found}" for row in rows]
  return "\n".join([head, "", *lines, "", end])


def _remove(folder: epath.Path) -> None:
  """Removes what was written for the checks; the trace stays."""
  sharding.all_agree(True)  # all have read it
  if sharding.process()[0] == 0:
    for name in ("checkpoints", "autotuned", "broken"):
      with contextlib.suppress(OSError):
        (folder / name).rmtree(missing_ok=True)


# --- between host and devices, and between devices ---


def _num_bytes(mesh: Mesh) -> int:
  return NUM_BYTES.get(mesh.devices.flat[0].platform, 2**28)


def _transfer(mesh: Mesh) -> Iterator[Row]:
  """Bytes a second from the host to its devices and back, and whether they are the same."""
  size = _num_bytes(mesh) // 4
  rows = sharding.local_rows(mesh, mesh.size)
  values = np.random.default_rng(0).integers(0, 2**31, (len(rows), size), np.int32)
  put = lambda: sharding.global_batch({"image": values}, mesh)["image"]
  jax.block_until_ready(put())
  array, there = _seconds(put)
  found, back = _seconds(lambda: sharding.local_values(array)[1])
  same = np.array_equal(found, values)
  rate = lambda seconds: f"{values.nbytes / 1e9 / seconds:.3g} GB/s"
  text = f"{rate(there)} there, {rate(back)} back, {len(rows)} devices of this host"
  yield Row("host to devices", text if same else f"{text}; other bits came back", _verdict(same))


def _all_reduce(mesh: Mesh) -> Iterator[Row]:
  """Bytes a second that each device sends while all add up what they have, and the sum."""
  count, size = mesh.size, _num_bytes(mesh) // 4
  if count == 1:
    yield Row("all-reduce", "one device: there is nothing to add", NOTE)
    return
  split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  make = lambda: jnp.broadcast_to(jnp.arange(1.0, count + 1)[:, None], (count, size))
  array = jax.jit(make, out_shardings=split)()
  add = jax.jit(lambda x: x.sum(0), out_shardings=whole)
  jax.block_until_ready(add(array))
  total, seconds = _seconds(lambda: add(array))
  right = bool(jnp.all(total == count * (count + 1) / 2))
  sent = 2 * (count - 1) / count * 4 * size  # what a ring needs
  text = f"{sent / 1e9 / seconds:.3g} GB/s sent by each of {count} devices ({seconds * 1e3:.3g} ms)"
  yield Row("all-reduce", text if right else f"{text}; the sum is wrong", _verdict(right))


def _seconds(work: Callable[[], Any], times: int = 3) -> tuple[Any, float]:
  """What some work gives, and the seconds of its fastest run."""
  fastest, result = float("inf"), None
  for _ in range(times):
    start = time.perf_counter()
    result = jax.block_until_ready(work())
    fastest = min(fastest, time.perf_counter() - start)
  return result, fastest


def _verdict(right: bool) -> str:
  return OK if right else WRONG


# --- products ---


def precision_of(error: float) -> str | None:
  """What a product with this relative error was computed in; None: in nothing that is known."""
  return next((name for limit, name in PRECISIONS if error < limit), None)


def relative_error(product: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
  """The root mean square of a product's error against float64, over that of the product."""
  exact = a.astype(np.float64) @ b.astype(np.float64)
  return float(np.sqrt(np.mean((product - exact) ** 2) / np.mean(exact**2)))


def _products() -> Iterator[Row]:
  """What a product of float32 is by default here, and with precision="highest"."""
  a, b = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)
  for precision, name in ((None, "by default"), ("highest", "at the highest")):
    product = jax.jit(lambda a, b, p=precision: jnp.matmul(a, b, precision=p))(a, b)
    error = relative_error(np.asarray(product), a, b)
    found = precision_of(error)
    right = found is not None and (precision is None or found == "float32")
    text = f"float32 {name} is {found or 'nothing known'} (relative error {error:.1e})"
    yield Row("products", text, _verdict(right))


# --- the experiment's own step ---


def _of_steps(exp: Experiment, mesh: Mesh, folder: epath.Path) -> Iterator[Row]:
  """Ten steps twice, three that are traced, and their state saved and restored."""
  start = time.perf_counter()
  key = sharding.create(lambda: key_for(exp.run.seed, "train"), mesh)[0]
  frozen, batch = _frozen(exp, mesh), _batch(exp, mesh)
  step_fn = compiled_step.make_step_fn(
    exp, experiment.transformation(exp), plan.teacher_network(exp)
  )
  options = deterministic.options(exp.run, mesh.devices.flat[0].platform, folder)
  state = _first_state(exp, mesh)
  compiled = compiled_step.compile_step(step_fn, mesh, (state, batch, key, frozen), options)
  yield Row("compiling", f"{time.perf_counter() - start:.1f} s, with the first state")

  def run(state: TrainState, count: int = STEPS) -> tuple[TrainState, Any, list[float]]:
    seconds, metrics = [], None
    for _ in range(count):
      begun = time.perf_counter()
      state, metrics = jax.block_until_ready(compiled.program(state, batch, key, frozen))
      seconds.append(time.perf_counter() - begun)
    return state, metrics, seconds

  state, metrics, seconds = run(state)
  first = _checksums(state, mesh)
  yield _step_row(compiled.flops, mesh, float(np.median(seconds)))
  yield from _memory_rows(mesh)
  finite = not metrics["nonfinite"].total
  yield Row("loss of random batches", "finite" if finite else "not finite", _verdict(finite))
  del state
  state, _, _ = run(_first_state(exp, mesh))
  platform = mesh.devices.flat[0].platform
  yield _determinism_row(exp, platform, np.array_equal(first, _checksums(state, mesh)))
  state, row = _traced(state, lambda state: run(state, 1)[0], folder)
  yield row
  yield from _saved(state, mesh, folder)


class StepTime(NamedTuple):
  """A training step: its seconds, and the FLOPs of all devices together."""

  seconds: float
  flops: float


def time_step(exp: Experiment, mesh: Mesh, count: int = 3) -> StepTime:
  """The median of some steps on random data, after one that is not counted."""
  key = sharding.create(lambda: key_for(exp.run.seed, "train"), mesh)[0]
  frozen, batch, state = _frozen(exp, mesh), _batch(exp, mesh), _first_state(exp, mesh)
  step_fn = compiled_step.make_step_fn(
    exp, experiment.transformation(exp), plan.teacher_network(exp)
  )
  compiled = compiled_step.compile_step(step_fn, mesh, (state, batch, key, frozen))
  seconds = []
  for _ in range(1 + count):
    begun = time.perf_counter()
    state, _ = jax.block_until_ready(compiled.program(state, batch, key, frozen))
    seconds.append(time.perf_counter() - begun)
  return StepTime(float(np.median(seconds[1:])), compiled.flops)


def step_flops(exp: Experiment, mesh: Mesh) -> float:
  """The FLOPs of a training step, which is traced and not compiled."""
  return sum(costs.count_flops(plan.trace_step(exp, mesh).jaxpr.jaxpr).values())


def _first_state(exp: Experiment, mesh: Mesh) -> TrainState:
  init = experiment.state_init(exp)
  return sharding.create(init, mesh, key_for(exp.run.seed, "initialise"))[0]


def _frozen(exp: Experiment, mesh: Mesh) -> dict[str, Any]:
  """Random weights in the teacher's place."""
  teacher = plan.teacher_network(exp)
  key = jax.random.key(1)
  weights = sharding.create(teacher.init, mesh, key)[0] if teacher else None
  return {"teacher": weights, "lpips": sharding.gather(exp.method.lpips(), mesh)}


def _batch(exp: Experiment, mesh: Mesh) -> dict[str, jax.Array]:
  """A batch of random numbers, of the shapes that the data would have."""
  shapes = plan.abstract_arguments(exp, mesh)[1]

  def make() -> dict[str, jax.Array]:
    key = jax.random.key(2)
    return {
      name: jax.random.normal(key, x.shape) * exp.run.sigma_data
      if jnp.issubdtype(x.dtype, jnp.floating)
      else jnp.zeros(x.shape, x.dtype)
      for name, x in shapes.items()
    }

  return jax.jit(make, out_shardings={name: x.sharding for name, x in shapes.items()})()


def _step_row(flops: float, mesh: Mesh, seconds: float) -> Row:
  peak = plan.local_chip(list(mesh.devices.flat)).flops * mesh.size
  share = f", {100 * flops / seconds / peak:.3g} % of the chips' peak" if peak else ""
  return Row("a step", f"{seconds * 1e3:.4g} ms, {flops / 1e9:.4g} GFLOP{share}")


def _memory_rows(mesh: Mesh) -> Iterator[Row]:
  device = next(d for d in mesh.devices.flat if d.process_index == sharding.process()[0])
  stats = device.memory_stats() or {}
  if {"peak_bytes_in_use", "bytes_limit"} <= set(stats):
    used, limit = stats["peak_bytes_in_use"], stats["bytes_limit"]
    yield Row("memory of a device", f"{used / 1e9:.3g} of {limit / 1e9:.3g} GB at the fullest")


def _checksum(tree: Any) -> jax.Array:
  """A number of 32 bits for each array of a tree, in which every bit of it counts."""

  def of(x):
    if x.dtype == jnp.bool_:
      x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").ravel()
    places = jax.lax.iota(jnp.uint32, bits.size)
    return jnp.sum(bits.astype(jnp.uint32) * (places * jnp.uint32(2654435761) | jnp.uint32(1)))

  return jnp.stack([of(x) for x in jax.tree.leaves(tree)])


def _checksums(state: TrainState, mesh: Mesh) -> np.ndarray:
  return np.asarray(jax.jit(_checksum, out_shardings=sharding.replicated(mesh))(state))


def _determinism_row(exp: Experiment, platform: str, same: bool) -> Row:
  name = f"{STEPS} steps twice"
  if same:
    return Row(name, "the same state, bit for bit")
  if platform == "gpu" and not exp.run.deterministic:
    text = "other bits, as GPUs may: with --config.deterministic=True they should be the same"
    return Row(name, text, NOTE)
  return Row(name, "other bits: a resumed run would differ from one that never stopped", WRONG)


def _traced(
  state: TrainState, step: Callable[[TrainState], TrainState], folder: epath.Path
) -> tuple[TrainState, Row]:
  """Three steps in a trace, which is read back."""
  profile = profiling.Profile((STEPS, STEPS + TRACED), folder, 0)
  for i in range(STEPS, STEPS + TRACED):
    with profile.step(i):
      state = step(state)
    profile.stop_after(i + 1, state)
  found = profiling.steps_in(profile.traced)
  right = found == list(range(STEPS, STEPS + TRACED))
  return state, Row("a trace", f"{len(found)} steps in {profile.folder}", _verdict(right))


def _saved(state: TrainState, mesh: Mesh, folder: epath.Path) -> Iterator[Row]:
  """The state written to the workdir and read back."""
  before, size = _checksums(state, mesh), checkpoint.num_bytes(state)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  store = checkpoint.Checkpoints(
    folder, keep=1, primary=sharding.process()[0] == 0, agree=sharding.all_agree
  )
  try:
    start = time.perf_counter()
    store.save(STEPS, state, {})
    blocked = time.perf_counter() - start
    store.wait()
    written = time.perf_counter() - start
    del state
    start = time.perf_counter()
    restored = store.restore(lambda _: abstract)
    read = time.perf_counter() - start
  finally:
    store.close()
  same = restored is not None and np.array_equal(before, _checksums(restored.state, mesh))
  text = (
    f"{size / 1e9:.3g} GB written in {written:.2f} s (training waits {blocked:.2f} s), read in "
    f"{read:.2f} s"
  )
  yield Row("a checkpoint", text if same else f"{text}; other bits came back", _verdict(same))
