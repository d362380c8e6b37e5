"""From a foreign file to a run that cmjax can sample from, distil and go on with; and back out."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from cmjax import edm, experiment
from cmjax.base import sharding
from cmjax.convert import detect, files, names
from cmjax.convert.tensors import as_float32
from cmjax.experiment import sections
from cmjax.networks import dit
from cmjax.program import stored_runs
from cmjax.run import checkpoint
from cmjax.training.step import TrainState
from cmjax.types import Params

PROVENANCE = "provenance.json"
LICENCE = (
  "Converted weights keep the licence of the file they come from. Networks published with EDM and "
  "EDM2 (NVIDIA) are CC BY-NC-SA 4.0: not for commercial use, to be credited, and to be passed on "
  "under the same licence; so is what is converted or distilled from them."
)
LOGVAR = ("logvar_fourier.freqs", "logvar_fourier.phases", "logvar_linear.weight")


def convert(source: str | Path, workdir: str | Path, *, ema: str | None = None) -> str:
  """Writes the network of a foreign file as a run, reads it back and runs it.

  Args:
    source: EDM's or EDM2's pickle, torch's .pt, safetensors, or jcm's msgpack.
    workdir: of the run to write; without checkpoints.
    ema: which network, where the file has several: its place, as an error lists them.

  Returns:
    What was found and how it runs, a few lines.

  Raises:
    ValueError: for a file that is broken, hostile or of an unknown network, in one line; for a
      workdir that has checkpoints.
  """
  source, workdir = Path(source).expanduser(), Path(workdir).expanduser()
  if (workdir / "checkpoints").exists():
    raise ValueError(f"{workdir} has checkpoints already: choose another folder, or remove it.")
  foreign = files.read(source)
  try:
    key = files.choose(foreign.networks, ema)
    found = detect.detect(foreign.networks[key])
    config = run_config(found)
    params = _params(config, found)
  except ValueError as error:
    raise ValueError(f"{source}: {error}") from None
  provenance = {
    "source": source.name,
    "sha256": files.digest(source),
    "kind": foreign.kind,
    "network": key,
    "class_name": foreign.networks[key].class_name,
    "licence": LICENCE,
  }
  _save(workdir, config, params, provenance)
  for name, value in ((PROVENANCE, provenance), ("config.json", config.to_dict())):
    (workdir / name).write_text(json.dumps(value, indent=2) + "\n")
  size = sum(a.size for a in jax.tree.leaves(params["net"]))
  lines = [
    f"{foreign.kind}, network {key!r}: net.name={found.net['name']}, {size:,} parameters",
    f"config.net: {json.dumps(found.net)}, sigma_data={found.sigma_data}",
    check(workdir, params["net"]),
    LICENCE,
  ]
  return "\n".join(lines)


def run_config(found: detect.Found) -> ConfigDict:
  """The config of a run with this network, complete enough to be sampled, distilled, gone on with.

  Its loss is EDM's; where the file has EDM2's logvar head, that is the weighting.
  """
  logvar = all(name in found.tensors for name in LOGVAR)
  c = ConfigDict()
  c.seed, c.total_steps, c.batch_size, c.microbatch = 0, 0, 8, None
  c.sigma_data = found.sigma_data
  c.data = dict(name="folder", flip=False, folder=dict(path="", held_out=0.0))
  theirs = {"name": "edm2", "in_channels": 4, "preconditioning": "edm"}
  if theirs.items() <= found.net.items():
    # The file does not say it, but EDM2's have no other latents.
    c.data = dict(name="records", flip=False, records=dict(path="", latents="edm2"))
  c.net = dict(found.net)
  c.loss = dict(
    name="diffusion", P_mean=-1.2, P_std=1.2, weighting="edm2" if logvar else "constant"
  )
  c.optim = dict(
    name="adam", lr=1e-4, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  c.ema = dict(main=dict(name="half_life", half_life_images=500_000, rampup_ratio=0.05))
  c.init_from = dict(workdir="", ema="main")
  c.teacher = dict(workdir="", ema="main")
  c.samplers = dict(heun=dict(name="heun", num_steps=18))
  c.evals = {}
  c.log_every_steps = 100
  c.checkpoint = dict(every_steps=5_000, keep=2, asynchronous=True)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  return c


def _params(config: ConfigDict, found: detect.Found) -> Params:
  """{net, weighting} of the run."""
  state = {name: as_float32(name, array) for name, array in found.tensors.items()}
  stacked, init = _is_stacked(config), experiment.network(config).init
  in_file = (lambda key: dit.unstack(init(key))) if stacked else init
  shapes = jax.eval_shape(in_file, jax.random.key(0))
  net = names.from_torch(state, shapes, found.family, fir=found.fir)
  if stacked:
    net = jax.tree.map(np.asarray, dit.stack(net))
  params = {"net": net, "weighting": {}}
  if config.loss.weighting == "edm2":
    freqs, phases, weight = (state[name] for name in LOGVAR)
    params["weighting"] = {
      "logvar_fourier": {"freqs": freqs, "phases": phases},
      "logvar_linear": {"kernel": weight.T},
    }
  return params


def _is_stacked(config: ConfigDict) -> bool:
  """Whether the weights of the blocks are one array: a DiT's are with `scan`, a U-Net's never."""
  return config.net.name == "dit" and config.net.get("scan", False)


def _save(workdir: Path, config: ConfigDict, params: Params, provenance: dict[str, Any]) -> None:
  """A checkpoint of step 0: parameters and average are the weights, the optimizer's state is 0."""
  init = experiment.state_init(config, experiment.network(config))
  abstract = jax.eval_shape(init, jax.random.key(0))
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
    checkpoints.save(0, state, config.to_dict(), provenance=provenance)
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


def check(workdir: str | Path, expected: Params) -> str:
  """Reads a converted run back, compares its weights bit for bit, and runs it.

  Returns:
    One line of what F is at a low, a middle and a high noise level.

  Raises:
    ValueError: if a weight came back different, or the network's output is not finite.
  """
  config, net, averages, _ = stored_runs.load_network(workdir, sharding.make_mesh())
  params = averages["main"]
  same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), b), params, expected)
  if not jax.tree.all(same):
    raise ValueError(f"{workdir} does not give back the weights that were written to it.")
  sigmas = jnp.array([0.02, 0.5, 20.0])
  shape = (len(sigmas), *sections.sample_shape(config))
  noise = jax.random.normal(jax.random.key(0), (int(np.prod(shape)),)).reshape(shape)
  cond = {"label": jnp.zeros(len(sigmas), jnp.int32)} if config.net.get("num_classes") else {}
  cond |= {k: jnp.ones(len(sigmas)) for k in ("guidance", "segment") if config.net.get(k)}
  denoiser = jax.jit(edm.as_edm(net.apply, sigma_data=config.sigma_data), static_argnums=4)
  x = noise * sigmas.reshape(-1, *[1] * (len(shape) - 1))
  D = np.asarray(denoiser(params, x, sigmas, cond, None), np.float64)
  sizes = np.sqrt(np.mean(D.reshape(len(sigmas), -1) ** 2, axis=-1))
  if not np.isfinite(sizes).all():
    raise ValueError(f"the network in {workdir} gives values that are not finite: {sizes}.")
  said = ", ".join(f"{s:.3g} at sigma {t:g}" for s, t in zip(sizes, sigmas, strict=True))
  return f"weights read back bit for bit; the size of what it makes of pure noise: {said}"


def export(workdir: str | Path, target: str | Path, *, ema: str | None = None) -> str:
  """Writes an average of a run as safetensors, under the names that PyTorch modules have.

  The metadata holds config.net and sigma_data, so that `convert` reads the file back as it was. A
  network with net.preconditioning="edm" is EDM's own function; others are TrigFlow's F, whose sign
  is the opposite and which is told the angle t.

  Args:
    workdir: of the run.
    target: the .safetensors file to write.
    ema: which average, also one made by `python -m cmjax.ema`; default: the first.

  Raises:
    ValueError: for a network that has no such names, an unknown average, a file that exists.
  """
  workdir, target = Path(workdir).expanduser(), Path(target).expanduser()
  if target.suffix != ".safetensors":
    raise ValueError(f"--to={target}: the file to export to ends in .safetensors.")
  if target.exists():
    raise ValueError(f"{target} exists: choose another name, or remove it.")
  mesh = sharding.make_mesh()
  restored = stored_runs.load_state(workdir, mesh)
  config, averages = ConfigDict(restored.meta["config"]), restored.state.ema
  family = experiment.pick(
    names.OF_NETWORK, config.net.name, "network with PyTorch names (net.name)"
  )
  trained = stored_runs.Trained(config, experiment.network(config), averages, restored.step)
  name = next(iter(config.ema)) if ema is None else ema
  params, step = stored_runs.load_average(trained, workdir, name, mesh)
  if _is_stacked(config):
    params = dit.unstack(params)  # a file has the same names with and without
  state = names.to_torch(params, family, fir=tuple(config.net.get("fir", (1, 1))))
  if config.loss.get("weighting") == "edm2":
    state |= _logvar(restored.state.params["weighting"])
  own = {"net": config.net.to_dict(), "sigma_data": config.sigma_data, "ema": name, "step": step}
  metadata = {"format": "pt", detect.METADATA: json.dumps(own)}
  if provenance := restored.meta.get("provenance"):
    metadata["provenance"] = json.dumps(provenance)
  # The library writes memory as it lies: views have to be laid out first.
  arrays = {key: np.array(array, order="C") for key, array in state.items()}
  safetensors.numpy.save_file(arrays, target, metadata=metadata)
  size = sum(array.size for array in arrays.values())
  return f"{target}: {len(arrays)} tensors, {size:,} numbers, average {name!r} of {workdir}"
