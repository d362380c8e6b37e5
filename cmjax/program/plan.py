"""What a run will need, before it is paid for: its step compiled for chips that need not exist.

Nothing runs and no data is read. For a TPU topology (v5p:4x4x4) libtpu compiles the very program;
for GPUs (h100:8) the step is compiled for as many CPU devices, and what the chips make of it is an
estimate; `local` compiles for the devices that are here. Times are the least that a step can take.
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import topologies
from jax.sharding import Mesh

from cmjax import experiment
from cmjax.base import paths, sharding
from cmjax.base.atomic_files import write_json
from cmjax.experiment import Experiment, Stored
from cmjax.program import compiled_step, costs
from cmjax.types import Network

logger = logging.getLogger("cmjax")

# O0 takes two thirds of the time of O1, for the same memory, FLOPs and estimate of the time.
TPU_OPTIONS = {"optimization_level": "O0"}

# What JAX calls a device, whole -> its name in `costs.CHIPS`. Of GPUs only the boards that have the
# peaks there: an H100 on PCIe or a 4090 of a laptop is slower, and is none of them.
DEVICE_KINDS = {
  r"TPU v4": "v4",
  r"TPU v5 ?(lite|e)": "v5e",
  r"TPU v5p?": "v5p",
  r"TPU v6 ?(lite|e)": "v6e",
  r"(NVIDIA )?A100[- ](SXM4|PCIE|PG509|\d+GB)[\w -]*": "a100",
  r"NVIDIA H100( 80GB HBM3)?": "h100",
  r"NVIDIA H200": "h200",
  r"NVIDIA L4": "l4",
  r"NVIDIA GeForce RTX 4090": "4090",
}


class Target(NamedTuple):
  """The chips to plan for, and what is compiled in their place.

  Attributes:
    devices: of JAX, existing or not.
    chip: what each can do; rates of 0 where that is not known.
    source: how the numbers come about, for the reader.
    options: of the compiler.
  """

  devices: list[Any]
  chip: costs.Chip
  source: str
  options: dict[str, Any]


class Attempt(NamedTuple):
  """One layout of the run that was tried.

  Attributes:
    changes: {key of the config: value}, from the config as it was given.
    arguments: bytes of a chip for state, frozen weights and batch.
    peak: bytes of a chip at the fullest moment; None where it was not compiled, or refused without
      a number.
    fits: None where the chip's memory is not known.
    seconds: of compilation.
  """

  changes: dict[str, Any]
  arguments: float
  peak: float | None
  fits: bool | None
  seconds: float


def plan(exp: Experiment, topology: str) -> dict[str, Any]:
  """What the run of an experiment needs on a topology, as JSON can hold it.

  Where the step does not fit it is tried with `net.remat`, then with `microbatch` halved again and
  again (where the config has that key), then with `mesh.fsdp` doubled, until it fits; what is
  reported is the first that fits, or else the last that compiled.

  Args:
    exp: the experiment; its data is not looked at.
    topology: local, or TPUs as v5p:4x4x4, or GPUs as h100:8.

  Raises:
    ValueError: for an unknown topology, a missing libtpu, or a batch or mesh that does not fit the
      number of chips.
  """
  aim = target(topology)
  # What is said is of one step, however many are sent off at once.
  experiment.check(exp)
  exp = exp._replace(run=exp.run._replace(steps_per_dispatch=1))
  attempts, best = [], None
  for changes in candidates(exp, aim):
    wanted = changed(exp, changes)
    logger.info("Compiling for %s%s ...", topology, _flags(changes, " with "))
    attempt, compiled = _attempt(wanted, changes, aim)
    attempts.append(attempt)
    if compiled:
      best = wanted, attempt, compiled
    if attempt.fits is not False:
      break
  report = {
    "topology": topology,
    "source": aim.source,
    "chips": len(aim.devices),
    "chip": aim.chip._asdict(),
    "jax": jax.__version__,
    "attempts": [attempt._asdict() for attempt in attempts],
    "fits": attempts[-1].fits,
  }
  return report | (_describe(*best, aim) if best else {})


def target(topology: str) -> Target:
  """The chips that a topology names."""
  kind, _, shape = topology.partition(":")
  if topology == "local":
    devices = list(sharding.make_mesh().devices.flat)
    return Target(devices, local_chip(devices), "compiled for the devices here", {})
  if kind in costs.GPUS and shape.isdecimal() and int(shape) > 0:
    source = "an analytic estimate, from FLOPs and bytes of the step compiled for CPU devices"
    return Target(sharding.cpu_devices(int(shape)), costs.CHIPS[kind], source, {})
  if kind in costs.CHIPS and kind not in costs.GPUS and shape:
    devices = topology_devices(topology)
    return Target(devices, costs.CHIPS[kind], "compiled by the TPU's compiler", TPU_OPTIONS)
  tpus = [kind for kind in costs.CHIPS if kind not in costs.GPUS]
  raise ValueError(
    f"Unknown topology {topology!r}. Choose local; TPUs ({', '.join(tpus)}) with the sides of the "
    f"slice, such as v5e:2x4 or v5p:4x4x4; GPUs ({', '.join(costs.GPUS)}) with their number, such "
    "as h100:8."
  )


def topology_devices(topology: str) -> list[Any]:
  """The chips of a TPU topology such as v5e:2x2 or v5p:4x4x4, none of which need exist.

  Raises:
    ValueError: where libtpu is missing, or knows no such topology.
  """
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
  except Exception as error:  # of libtpu, in many types
    reason = str(error).splitlines()[0]
    raise ValueError(
      f"topology {topology!r} cannot be compiled for: {reason} It needs libtpu "
      "(pip install 'cmjax[plan]'), and a name like v5e:2x2 or v5p:4x4x4."
    ) from error


def local_chip(devices: list[Any]) -> costs.Chip:
  """What the first device here can do, as far as it is known."""
  name = devices[0].device_kind
  known = (kind for pattern, kind in DEVICE_KINDS.items() if re.fullmatch(pattern, name))
  found = [] if " MIG " in name else list(known)  # a part of a board
  chip = costs.CHIPS[found[0]] if found else costs.Chip(name, 0.0, 0.0, 0.0, 0.0)
  if devices[0].platform == "cpu":  # all share the machine's
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
  else:
    memory = (devices[0].memory_stats() or {}).get("bytes_limit", chip.memory)
  return chip._replace(memory=float(memory))


def candidates(exp: Experiment, aim: Target) -> Iterator[dict[str, Any]]:
  """The changes to try, one after the other, from none on: {key of the config: value}."""
  changes, num_chips = {}, len(aim.devices)
  yield changes
  if exp.network.options.get("remat") is False:
    changes = {"net.remat": True}
    yield changes
  if "microbatch" in exp.record and argument_bytes(exp, aim) <= aim.chip.memory:
    # Accumulation leaves the arguments as they are, so that it is no help where they do not fit.
    size = exp.run.microbatch or exp.run.batch_size
    while size % (2 * num_chips) == 0:
      size //= 2
      changes = changes | {"microbatch": size}
      yield changes
  fsdp = _mesh(exp, aim).shape["fsdp"]
  while num_chips % (2 * fsdp) == 0:
    fsdp *= 2
    changes = changes | {"mesh.data": -1, "mesh.fsdp": fsdp}
    yield changes


def changed(exp: Experiment, changes: Mapping[str, Any]) -> Experiment:
  """The experiment with the changes of a candidate."""
  run, network = exp.run, exp.network
  if "net.remat" in changes and network.at is not None:
    network = network.at(remat=changes["net.remat"])
  if "microbatch" in changes:
    run = run._replace(microbatch=changes["microbatch"])
  mesh = {key.removeprefix("mesh."): v for key, v in changes.items() if key.startswith("mesh.")}
  return exp._replace(network=network, run=run._replace(mesh={**run.mesh, **mesh}))


def _mesh(exp: Experiment, aim: Target) -> Mesh:
  mesh = experiment.make_mesh(exp.run, aim.devices)
  sharding.check_batch_size(exp.run.batch_size, mesh)
  return mesh


def teacher_network(exp: Experiment) -> Network | None:
  """The network that a method distils, where no run is read; None if it has no teacher.

  It is the student's, without the inputs that only a student has.
  """
  if exp.teacher is None:
    return None
  if not isinstance(exp.teacher, Stored):
    return exp.teacher[0]
  return without_inputs(exp.network)


def without_inputs(network: Network) -> Network:
  """The network without the inputs that only a student has: guidance, segment.

  A network of the user's own has no such option: its teacher is taken to have the same inputs.
  """
  if not network.inputs or network.at is None:
    return network
  try:
    return network.at(**dict.fromkeys(network.inputs, False))
  except ValueError:
    return network


def abstract_arguments(exp: Experiment, mesh: Mesh) -> tuple[Any, ...]:
  """(state, batch, key, frozen) of the train step: shapes and shardings, no arrays."""
  teacher, key = teacher_network(exp), jax.random.key(0)
  placed = lambda tree, shardings: jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )
  split = lambda tree: placed(tree, sharding.shard_params(tree, mesh))
  state = split(jax.eval_shape(experiment.state_init(exp), key))
  weights = split(jax.eval_shape(teacher.init, key)) if teacher else None
  shape = (exp.run.batch_size, *exp.samples.shape)
  batch = {"image": jax.ShapeDtypeStruct(shape, np.float32)}
  if exp.samples.num_classes:
    batch["label"] = jax.ShapeDtypeStruct(shape[:1], np.int32)
  if exp.samples.latents:
    batch["image_std"] = batch["image"]
  batch = placed(batch, jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch))
  key = placed(jax.eval_shape(lambda: key), sharding.replicated(mesh))
  return state, batch, key, {"teacher": weights, "lpips": None}


def argument_bytes(exp: Experiment, aim: Target) -> int:
  """Bytes of a chip for the arguments of the step, from their shapes alone."""
  leaves = jax.tree.leaves(abstract_arguments(exp, _mesh(exp, aim)))
  shards = [(x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in leaves]
  return sum(int(np.prod(shape)) * itemsize for shape, itemsize in shards)


def trace_step(exp: Experiment, mesh: Mesh) -> Any:
  """The train step, traced for the devices of `mesh`; donates the state, as in use."""
  step = compiled_step.make_step_fn(exp, experiment.transformation(exp), teacher_network(exp))
  return compiled_step.trace(step, mesh, abstract_arguments(exp, mesh))


def compile_step(exp: Experiment, mesh: Mesh) -> Any:
  """The train step of an experiment, compiled for the devices of `mesh`.

  Ask its `memory_analysis()` and `cost_analysis()`: both are of one device.
  """
  return compiled_step.compile_traced(trace_step(exp, mesh), mesh)


def _attempt(
  exp: Experiment, changes: dict[str, Any], aim: Target
) -> tuple[Attempt, tuple[Any, Any] | None]:
  """The step compiled, and whether it fits; (traced, compiled) where it did compile."""
  limit, arguments = aim.chip.memory, argument_bytes(exp, aim)
  if limit and arguments > limit:  # no need to ask the compiler
    return Attempt(changes, arguments, None, False, 0.0), None
  start, mesh = time.perf_counter(), _mesh(exp, aim)
  try:
    traced = trace_step(exp, mesh)
    compiled = compiled_step.compile_traced(traced, mesh, aim.options)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    peak = costs.wanted_memory(str(error))
    return Attempt(changes, arguments, peak, False, time.perf_counter() - start), None
  peak = memory(compiled)["peak"]
  fits = peak <= limit if limit else None
  return Attempt(changes, arguments, peak, fits, time.perf_counter() - start), (traced, compiled)


def memory(compiled: Any) -> dict[str, int]:
  """Bytes of one chip: arguments, temporaries, and the most of all at any time."""
  stats = compiled.memory_analysis()
  arguments, temporary = stats.argument_size_in_bytes, stats.temp_size_in_bytes
  new = stats.output_size_in_bytes - stats.alias_size_in_bytes  # what does not replace an argument
  # All temporaries are one block that is there from start to end; XLA's own peak may leave it out.
  peak = max(stats.peak_memory_in_bytes, arguments + temporary + new)
  return {"arguments": arguments, "temporary": temporary, "outputs": new, "peak": peak}


def _describe(
  exp: Experiment, attempt: Attempt, programs: tuple[Any, Any], aim: Target
) -> dict[str, Any]:
  """The numbers of a step that compiled."""
  (traced, compiled), num_chips = programs, len(aim.devices)
  params = abstract_arguments(exp, _mesh(exp, aim))
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  cost = compiled.cost_analysis() or {}
  flops = costs.count_flops(traced.jaxpr.jaxpr)
  once = costs.count_flops(traced.jaxpr.jaxpr, loops=False)
  loops = sum(flops.values()) / sum(once.values())  # by how much XLA counts too little
  flops = {dtype: value / num_chips for dtype, value in flops.items()}
  collectives = costs.count_collectives(compiled.as_text(), num_chips)
  sent = sum((traffic.sent for traffic in collectives.values()), 0.0)
  moved, by_xla = cost.get("bytes accessed", 0.0), cost.get("optimal_seconds", 0.0)
  step = {"flops": flops, "flops_xla": cost.get("flops", 0.0), "loops": loops}
  step["bytes_accessed"] = moved
  step["collectives"] = {kind: traffic._asdict() for kind, traffic in collectives.items()}
  if aim.chip.flops:
    parts = costs.seconds(aim.chip, flops=flops, moved=moved, sent=sent, num_chips=num_chips)
    step |= {"roofline": parts, "xla_seconds": by_xla} | _estimate(parts, by_xla)
  steps, images = exp.run.total_steps, exp.run.total_steps * exp.run.batch_size
  run = {"steps": steps, "batch_size": exp.run.batch_size, "images": images}
  if aim.chip.flops:
    hours = step["seconds"] * steps / 3600
    run |= {"hours": hours, "chip_hours": hours * num_chips}
  return {
    "method": exp.method.name,
    "network": exp.network.name,
    "changes": attempt.changes,
    "mesh": dict(_mesh(exp, aim).shape),
    "parameters": {"network": count(params[0].params["net"]), "teacher": count(params[3])},
    "memory": memory(compiled),
    "step": step,
    "run": run,
  }


def _estimate(parts: dict[str, float], by_xla: float) -> dict[str, Any]:
  """The seconds of a step and where they come from: the larger, as a step takes no less."""
  longest = max(parts, key=lambda part: parts[part])
  if by_xla >= parts[longest]:
    return {"seconds": by_xla, "estimate": "XLA's"}
  return {"seconds": parts[longest], "estimate": f"roofline, bound by {longest}"}


def write(report: dict[str, Any], workdir: str | os.PathLike[str]) -> epath.Path:
  """Writes plan.json into the workdir, which is made if it is not there."""
  path = paths.place(workdir) / "plan.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  write_json(path, report)
  return path


def table(report: dict[str, Any]) -> str:
  """The report as people read it."""
  chip, attempts = report["chip"], report["attempts"]
  memory = f", {chip['memory'] / 1e9:.0f} GB each" if chip["memory"] else ""
  lines = [f"{report['topology']}: {report['chips']} chips{memory}; {report['source']}", ""]
  lines += _attempt_lines(attempts, chip["memory"])
  if "step" in report:
    lines += ["", *_step_lines(report)]
  return "\n".join(lines + ["", advice(report)])


def _attempt_lines(attempts: list[dict[str, Any]], memory: float) -> Iterator[str]:
  yield f"{'a chip, GB':44}{'arguments':>11}{'peak':>9}  {'fits':6}{'compiled in':>12}"
  for attempt in attempts:
    peak = f"{attempt['peak'] / 1e9:9.2f}" if attempt["peak"] else f"{'-':>9}"
    fits = {True: "yes", False: "no", None: "?"}[attempt["fits"]]
    name = _flags(attempt["changes"]) or "as configured"
    took = f"{attempt['seconds']:10.0f} s" if attempt["seconds"] else f"{'not tried':>12}"
    yield f"{name:44}{attempt['arguments'] / 1e9:11.2f}{peak}  {fits:6}{took}"


def _step_lines(report: dict[str, Any]) -> Iterator[str]:
  memory, step, run = report["memory"], report["step"], report["run"]
  mesh, parameters = report["mesh"], report["parameters"]
  row = lambda name, text: f"{name:14}{text}"
  teacher = f", teacher {parameters['teacher'] / 1e6:.2f} M" if parameters["teacher"] else ""
  yield row("method", f"{report['method']} with {report['network']}")
  yield row("mesh", f"data {mesh['data']}, fsdp {mesh['fsdp']}")
  yield row("parameters", f"{parameters['network'] / 1e6:.2f} M{teacher}")
  gigabytes = ", ".join(f"{name} {size / 1e9:.3f}" for name, size in memory.items())
  yield row("memory", f"{gigabytes} GB a chip")
  flops = sum(step["flops"].values()) / 1e12
  kinds = ", ".join(f"{kind} {value / 1e12:.4g}" for kind, value in step["flops"].items())
  yield row(
    "TFLOP", f"{flops:.4g} a chip and step ({kinds}); by XLA {step['flops_xla'] / 1e12:.4g}"
  )
  for kind, traffic in step["collectives"].items():
    sizes = f"{traffic['bytes'] / 1e9:.4g} GB, of which a chip sends {traffic['sent'] / 1e9:.4g}"
    yield row(kind if len(kind) < 14 else "permute", f"{traffic['number']}: {sizes} GB")
  if not step["collectives"]:
    yield row("collectives", "none")
  if step["loops"] > 1:
    text = f"products run {step['loops']:.2f} times as often as XLA counts, which takes the inside"
    yield row("loops", f"{text} of a loop once: so it does for memory and in its estimate")
  if "seconds" in step:
    parts = ", ".join(f"{part} {seconds:.4f}" for part, seconds in step["roofline"].items())
    by_xla = f"; XLA's estimate {step['xla_seconds']:.4f}" if step["xla_seconds"] else ""
    yield row("roofline", f"{parts} s{by_xla}")
    yield row("step", f"{step['seconds']:.4f} s at best ({step['estimate']})")
  run_text = f"{run['steps']} steps of {run['batch_size']}: {run['images'] / 1e6:.1f} M images"
  if "hours" in run:
    run_text += f", {run['hours']:.1f} hours at best, {run['chip_hours']:.0f} chip-hours"
  yield row("run", run_text)


def advice(report: dict[str, Any]) -> str:
  """What to do now, in a sentence."""
  changes = report["attempts"][-1]["changes"]
  if report["fits"] is None:
    return "The memory of these devices is not known."
  if report["fits"]:
    return f"It fits with {_flags(changes)}." if changes else "It fits as it is."
  return (
    "It fits in none of these ways: take more chips, a smaller batch_size or a smaller network."
  )


def _flags(changes: dict[str, Any], before: str = "") -> str:
  """The changes as options of the command."""
  options = " ".join(f"--config.{key}={value}" for key, value in changes.items())
  return options and before + options
