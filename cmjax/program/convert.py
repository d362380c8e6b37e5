"""From a foreign file to a run that cmjax can sample from, distil and go on with; and back out."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from jax.sharding import Mesh

from cmjax import edm, experiment, weighting
from cmjax.base import lock, paths, sharding
from cmjax.base.atomic_files import replacing, write_json
from cmjax.convert import detect, files, names
from cmjax.convert.tensors import as_float32
from cmjax.experiment import Experiment
from cmjax.networks import dit
from cmjax.program import searched_times, stored_runs
from cmjax.run import checkpoint
from cmjax.training.step import TrainState
from cmjax.types import Network, Params

PROVENANCE = "provenance.json"
LICENCE = (
  "Converted weights keep the licence of the file they come from. Networks published with EDM and "
  "EDM2 (NVIDIA) are CC BY-NC-SA 4.0: not for commercial use, to be credited, and to be passed on "
  "under the same licence; so is what is converted or distilled from them."
)
LOGVAR = ("logvar_fourier.freqs", "logvar_fourier.phases", "logvar_linear.weight")


def convert(source: str | Path, workdir: str | os.PathLike[str], *, ema: str | None = None) -> str:
  """Writes the network of a foreign file as a run, reads it back and runs it.

  Args:
    source: EDM's or EDM2's pickle, torch's .pt, safetensors, or jcm's msgpack.
    workdir: of the run to write; without checkpoints, but for those of the same call where it was
      stopped midway: then it goes on.
    ema: which network, where the file has several: its place, as an error lists them.

  Returns:
    What was found and how it runs, a few lines.

  Raises:
    ValueError: for a file that is broken, hostile or of an unknown network, in one line; for a
      workdir that has checkpoints, or in which another process writes.
  """
  source, workdir = paths.local(source), paths.place(workdir)
  _check_free(workdir)
  foreign = files.read(source)
  try:
    key = files.choose(foreign.networks, ema)
    found = detect.detect(foreign.networks[key])
    record = run_record(found)
    made = experiment.parse(record)
    params = _params(made, found)
  except ValueError as error:
    raise ValueError(f"{source}: {error}") from None
  except (TypeError, AttributeError, ArithmeticError, LookupError, AssertionError) as error:
    # Of what a file says of its network, in words that no network of ours would be made of.
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise ValueError(
      f"{source}: the network that it describes cannot be built ({reason})"
    ) from error
  provenance = {
    "source": source.name,
    "sha256": files.digest(source),
    "kind": foreign.kind,
    "network": key,
    "class_name": foreign.networks[key].class_name,
    "licence": LICENCE,
  }
  with lock.hold(workdir, "convert"):
    _check_free(workdir, provenance)
    _save(workdir, made, params, provenance)
    checked = check(workdir, params["net"])
    write_json(workdir / PROVENANCE, provenance)
    write_json(workdir / "config.json", record)  # the last: what is without it was stopped midway
  size = sum(a.size for a in jax.tree.leaves(params["net"]))
  lines = [
    f"{foreign.kind}, network {key!r}: net.name={found.net['name']}, {size:,} parameters",
    f"config.net: {json.dumps(found.net)}, sigma_data={found.sigma_data}",
    checked,
    LICENCE,
  ]
  return "\n".join(lines)


def _check_free(workdir: epath.Path, provenance: Mapping[str, Any] | None = None) -> None:
  """Raises if there is a run in a folder, or a conversion that was stopped midway of another file.

  Args:
    workdir: which may not be there.
    provenance: of what is to be written; None: not known yet.
  """
  if not (workdir / "checkpoints").is_dir():
    return
  there = "checkpoints"
  if not (workdir / "config.json").exists():
    with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as stored:
      theirs = [stored.meta(step).get("provenance") for step in stored.steps()]
    if not theirs or (theirs == [provenance] if provenance else None not in theirs):
      return
    there = "checkpoints of another file"
  raise ValueError(f"{workdir} has {there} already: choose another folder, or remove it.")


def run_record(found: detect.Found) -> dict[str, Any]:
  """The config of a run with this network, complete enough to be sampled, distilled, gone on with.

  Its loss is EDM's; where the file has EDM2's logvar head, that is the weighting.
  """
  logvar = all(name in found.tensors for name in LOGVAR)
  theirs = {"name": "edm2", "in_channels": 4, "preconditioning": "edm"}
  data = dict(name="folder", flip=False, folder=dict(path="", held_out=0.0))
  if theirs.items() <= found.net.items():
    # The file does not say it, but EDM2's have no other latents.
    data = dict(name="records", flip=False, records=dict(path="", latents="edm2"))
  return dict(
    seed=0,
    total_steps=0,
    batch_size=8,
    microbatch=None,
    sigma_data=found.sigma_data,
    data=data,
    net=dict(found.net),
    loss=dict(name="diffusion", P_mean=-1.2, P_std=1.2, weighting="edm2" if logvar else "constant"),
    optim=dict(
      name="adam",
      lr=1e-4,
      b1=0.9,
      b2=0.99,
      eps=1e-8,
      clip_norm=None,
      schedule=dict(name="constant", warmup_steps=0),
    ),
    ema=dict(main=dict(name="half_life", half_life_images=500_000, rampup_ratio=0.05)),
    init_from=dict(workdir="", ema="main"),
    teacher=dict(workdir="", ema="main"),
    samplers=dict(heun=dict(name="heun", num_steps=18)),
    evals={},
    log_every_steps=100,
    checkpoint=dict(every_steps=5_000, keep=2, asynchronous=True),
    mesh=dict(data=-1, fsdp=1),
    nonfinite="stop",
  )


def _params(made: Experiment, found: detect.Found) -> Params:
  """{net, weighting} of the run."""
  net = network_params(made, found)
  params = {"net": net, "weighting": {}}
  beside = jax.eval_shape(made.method.init, jax.random.key(0), net, None)["weighting"]
  if "logvar_linear" in beside:
    freqs, phases, weight = (as_float32(name, found.tensors[name]) for name in LOGVAR)
    params["weighting"] = {
      "logvar_fourier": {"freqs": freqs, "phases": phases},
      "logvar_linear": {"kernel": weight.T},
    }
  return params


def network_params(made: Experiment, found: detect.Found) -> Params:
  """The weights of a file as parameters of the network that an experiment has for it, in float32.

  Raises:
    ValueError: they do not fit, in one line.
  """
  state = {name: as_float32(name, array) for name, array in found.tensors.items()}
  stacked, init = _is_stacked(made.record), made.network.init
  in_file = (lambda key: dit.unstack(init(key))) if stacked else init
  shapes = jax.eval_shape(in_file, jax.random.key(0))
  net = names.from_torch(state, shapes, found.family, fir=found.fir)
  return jax.tree.map(np.asarray, dit.stack(net)) if stacked else net


def _is_stacked(record: Mapping[str, Any]) -> bool:
  """Whether the weights of the blocks are one array: a DiT's are with `scan`, a U-Net's never."""
  return record["net"]["name"] == "dit" and record["net"].get("scan", False)


def _save(
  workdir: epath.Path, made: Experiment, params: Params, provenance: dict[str, Any]
) -> None:
  """A checkpoint of step 0: parameters and average are the weights, the optimizer's state is 0."""
  abstract = jax.eval_shape(experiment.state_init(made), jax.random.key(0))
  zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract)
  # By the tree of the state, so that a head of another shape is an error here and not later.
  state = TrainState(
    step=zeros.step,
    params=jax.tree.map(_fitting, zeros.params, params),
    ema={name: params["net"] for name in zeros.ema},
    opt_state=zeros.opt_state,
  )
  checkpoint.check_writable(workdir, checkpoint.num_bytes(state))
  checkpoints = checkpoint.Checkpoints(workdir)
  try:
    checkpoints.save(0, state, made.record, provenance=provenance)
  finally:
    checkpoints.close()


def _fitting(zero: np.ndarray, array: np.ndarray) -> np.ndarray:
  if zero.shape != array.shape:
    raise ValueError(f"a tensor of the logvar head is {array.shape}, expected {zero.shape}")
  return array


def _logvar(head: Params) -> dict[str, np.ndarray]:
  """EDM2's logvar head under its PyTorch names."""
  fourier, kernel = head["logvar_fourier"], head["logvar_linear"]["kernel"]
  arrays = map(np.asarray, (fourier["freqs"], fourier["phases"], kernel.T))
  return dict(zip(LOGVAR, arrays, strict=True))


def _logvar_head(
  workdir: epath.Path, record: Mapping[str, Any], mesh: Mesh
) -> tuple[dict[str, Any], Params | None]:
  """What is beside the newest checkpoint, and the weights of EDM2's logvar head, if it has one."""
  wanted = record["loss"].get("weighting")
  section = wanted if isinstance(wanted, Mapping) else {"name": wanted}
  if section["name"] != "edm2":
    with contextlib.closing(checkpoint.Checkpoints(workdir, read_only=True)) as stored:
      return stored.meta(stored.steps()[0]), None
  channels = {key: section[key] for key in ("channels",) if key in section}
  head = jax.eval_shape(weighting.edm2(sigma_data=1.0, **channels).init, jax.random.key(0))
  layout = lambda meta: {"params": {"weighting": stored_runs.sharded(head, mesh)}}
  restored = checkpoint.read(workdir, layout, partial=True)
  return restored.meta, restored.state["params"]["weighting"]


def check(workdir: str | os.PathLike[str], expected: Params) -> str:
  """Reads a converted run back, compares its weights bit for bit, and runs it.

  Returns:
    One line of what F is at a low, a middle and a high noise level.

  Raises:
    ValueError: if a weight came back different, or the network's output is not finite.
  """
  described, params, _ = stored_runs.load_average(workdir, "main", sharding.make_mesh())
  samples, net = described.samples, described.network
  same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), b), params, expected)
  if not jax.tree.all(same):
    raise ValueError(f"{workdir} does not give back the weights that were written to it.")
  sigmas = jnp.array([0.02, 0.5, 20.0])
  shape = (len(sigmas), *samples.shape)
  noise = jax.random.normal(jax.random.key(0), (int(np.prod(shape)),)).reshape(shape)
  cond = {"label": jnp.zeros(len(sigmas), jnp.int32)} if samples.num_classes else {}
  cond |= {k: jnp.ones(len(sigmas)) for k in net.inputs}
  denoiser = jax.jit(edm.as_edm(net.apply, sigma_data=described.run.sigma_data), static_argnums=4)
  x = noise * sigmas.reshape(-1, *[1] * (len(shape) - 1))
  D = np.asarray(denoiser(params, x, sigmas, cond, None), np.float64)
  sizes = np.sqrt(np.mean(D.reshape(len(sigmas), -1) ** 2, axis=-1))
  if not np.isfinite(sizes).all():
    raise ValueError(f"the network in {workdir} gives values that are not finite: {sizes}.")
  said = ", ".join(f"{s:.3g} at sigma {t:g}" for s, t in zip(sizes, sigmas, strict=True))
  return f"weights read back bit for bit; the size of what it makes of pure noise: {said}"


def export(
  workdir: str | os.PathLike[str],
  target: str | Path,
  *,
  ema: str | None = None,
  dtype: str = "float32",
  network: Network | None = None,
) -> str:
  """Writes an average of a run as safetensors, under the names that PyTorch modules have.

  The metadata hold the config, without evaluators, so that `convert` reads the file back as it was,
  and `cmjax sample FILE` draws from it. Times that were searched for the weights are in it. A
  network with net.preconditioning="edm" is EDM's own function; others are TrigFlow's F, whose sign
  is the opposite and which is told the angle t.

  Args:
    workdir: of the run.
    target: the .safetensors file to write.
    ema: which average, also one made by `python -m cmjax.ema`; default: the first.
    dtype: of the numbers in the file, "float32" or "float16".
    network: the run's own, where it was handed in from Python.

  Raises:
    ValueError: for an unknown average, a file that exists, or numbers that float16 does not hold.
  """
  workdir, target = paths.place(workdir), paths.local(target)
  if target.suffix != ".safetensors":
    raise ValueError(f"--to={target}: the file to export to ends in .safetensors.")
  if target.exists():
    raise ValueError(f"{target} exists: choose another name, or remove it.")
  mesh = sharding.make_mesh()
  name = stored_runs.averages_of(workdir)[0] if ema is None else ema
  described, params, step = stored_runs.load_average(workdir, name, mesh, network)
  record = described.record
  if _is_stacked(record):
    params = dit.unstack(params)  # a file has the same names with and without
  # A network of the user's own keeps the names that it has here.
  family = names.OF_NETWORK.get(record["net"]["name"], "cmjax")
  state = names.to_torch(params, family, fir=tuple(record["net"].get("fir", (1, 1))))
  meta, head = _logvar_head(workdir, record, mesh)
  state |= _logvar(head) if head else {}
  own = {"net": record["net"], "sigma_data": described.run.sigma_data, "ema": name, "step": step}
  own |= {"config": _config_of(workdir, record, step), **_class_names(meta)}
  metadata = {"format": "pt", detect.METADATA: json.dumps(own)}
  if provenance := meta.get("provenance"):
    metadata["provenance"] = json.dumps(provenance)
  # The library writes memory as it lies: views have to be laid out first.
  arrays = {key: np.array(_as(dtype, key, array), order="C") for key, array in state.items()}
  with replacing(target) as file:
    safetensors.numpy.save_file(arrays, file.name, metadata=metadata)
  size = sum(array.size for array in arrays.values())
  numbers = f"{size:,} numbers in {dtype}"
  return f"{target}: {len(arrays)} tensors, {numbers}, average {name!r} of {workdir}"


def _as(dtype: str, name: str, array: np.ndarray) -> np.ndarray:
  """A tensor with its numbers in the type of the file."""
  with np.errstate(over="ignore"):
    cast = np.asarray(array).astype(dtype)
  if lost := int(np.sum(np.isfinite(array) & ~np.isfinite(cast))):
    raise ValueError(f"{lost} numbers of {name} are too large for {dtype}: take float32.")
  return cast


def _config_of(workdir: epath.Path, record: Mapping[str, Any], step: int) -> dict[str, Any]:
  """The config of a run to draw its samples with: times that were searched, and no evaluators.

  Args:
    workdir: of the run.
    record: its config beside the weights; samplers may have changed since.
    step: of the weights.
  """
  if (workdir / "config.json").is_file():
    record = stored_runs.read_trained_record(workdir)
  record = {**record, "evals": {}}
  if (workdir / searched_times.FILE).is_file():
    exp, weights = experiment.parse(record), stored_runs.weights_of(workdir, step)
    used = searched_times.use(exp, workdir, weights).samplers
    record["samplers"] = {key: dict(one.record) for key, one in used.items()}
  return experiment.as_json(record)


def _class_names(meta: Mapping[str, Any]) -> dict[str, Any]:
  """The names of a run's classes, where they are known."""
  known = (meta.get("identity") or {}).get("data") or {}
  return {"class_names": known["class_names"]} if known.get("class_names") else {}
