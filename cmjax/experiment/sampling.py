"""Samplers of a config."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmjax import edm, guidance, samplers, times
from cmjax.base import sharding
from cmjax.experiment.sections import Section, call, pick, read, sample_shape
from cmjax.metrics import evaluators as metrics
from cmjax.samplers import conventions
from cmjax.types import Array, Cond, Model, NetFn, Network

SAMPLERS = {
  "consistency": samplers.consistency,
  "segments": samplers.segments,
  "ddim": samplers.ddim,
  "heun": samplers.heun,
  "dpmpp_2m": samplers.dpmpp_2m,
  "stochastic": samplers.stochastic,
}
GUIDANCE = {  # name -> its arguments
  "input": ("scale",),
  "classifier_free": ("scale", "interval"),
  "autoguidance": ("scale", "interval", "workdir", "ema"),
}


def sampling_net(config: ConfigDict, net: Network) -> NetFn:
  """The network as samplers take it: CM's shifted boundary, where the loss has one, is inside."""
  if sigma_min := config.loss.get("sigma_min", 0.0):
    return edm.shifted(net.apply, sigma_data=config.sigma_data, sigma_min=sigma_min)
  return net.apply


FEW_STEPS = ("mid_times", "mid_sigmas", "sigma_max")
GRID = ("num_steps", "sigma_min", "sigma_max", "rho")


def parts(config: ConfigDict, key: str) -> tuple[Any, np.ndarray, dict[str, Any], Section | None]:
  """The sampler `config.samplers[key]`, its times, its own arguments and its guidance."""
  name, kwargs = read(pick(dict(config.samplers), key, "sampler"), f"samplers.{key}")
  factory = pick(SAMPLERS, name, f"sampler (samplers.{key}.name)")
  grid = {"consistency": FEW_STEPS, "segments": ()}.get(name, GRID)
  own = [p.name for p in inspect.signature(factory).parameters.values() if p.kind == p.KEYWORD_ONLY]
  own = [key for key in own if key not in ("sigma_data", "cond", *grid)]
  allowed = (*grid, *own, "guidance", "searched")
  if unknown := sorted(set(kwargs) - set(allowed)):
    raise ValueError(
      f"sampler ({name}) takes no {', '.join(unknown)}. It takes: {', '.join(allowed)}."
    )
  times_of = {key: kwargs[key] for key in grid if key in kwargs}
  options = {key: kwargs[key] for key in own if key in kwargs}
  if name == "consistency":
    options.setdefault("sigma_min", config.loss.get("sigma_min", 0.0))
  return factory, _sampler_times(config, name, times_of), options, kwargs.get("guidance")


def _sampler_times(config: ConfigDict, name: str, grid: dict[str, Any]) -> np.ndarray:
  what, sigma_data = f"sampler ({name})", config.sigma_data
  if name == "segments":
    if not config.net.get("segment", False):
      raise ValueError("sampler (segments) is for multistep sCD: loss.num_segments, net.segment.")
    return times.segment_times(config.loss.get("num_segments", 1), sigma_data=sigma_data)
  if name == "consistency":
    mid, sigmas = grid.pop("mid_times", ()), grid.pop("mid_sigmas", ())
    if mid and sigmas:
      raise ValueError(f"{what} takes mid_times (angles) or mid_sigmas (noise levels), not both.")
    if sigmas:
      mid = conventions.consistency_times_from_sigmas(*sigmas, sigma_data=sigma_data)
    return times.consistency_times(*mid, sigma_data=sigma_data, **grid)
  make = lambda num_steps, sigma_min=0.002, sigma_max=80.0, rho=7.0: times.ode_times(
    num_steps, sigma_data=sigma_data, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho
  )
  return call(make, what, **grid)


def _guided(
  config: ConfigDict, key: str, section: Section, net: NetFn, guide: Model | None
) -> NetFn:
  """The network of a sampler under the guidance of its section."""
  name, scale, kwargs = read(section, f"samplers.{key}.guidance", "scale")
  allowed = pick(GUIDANCE, name, f"guidance (samplers.{key}.guidance.name)")
  if unknown := sorted(set(kwargs) - set(allowed)):
    raise ValueError(
      f"samplers.{key}.guidance ({name}) takes no {', '.join(unknown)}. It takes: name, "
      f"{', '.join(allowed)}."
    )
  low_high = kwargs.get("interval")
  if name == "input":
    if not config.net.get("guidance", False):
      raise ValueError(f"samplers.{key}: guidance 'input' needs a net with net.guidance=True.")
    return lambda params, x, t, cond, key: net(
      params, x, t, cond | {"guidance": jnp.full(len(x), scale, jnp.float32)}, key
    )
  if name == "classifier_free":
    if not config.net.get("num_classes", 0):
      raise ValueError(f"samplers.{key}: guidance 'classifier_free' needs net.num_classes.")
    if not config.loss.get("label_dropout", 0.0):
      raise ValueError(
        f"samplers.{key}: classifier-free guidance needs a network that also knows 'no class', but "
        "loss.label_dropout is 0: train with label_dropout=0.1, or drop the guidance."
      )
    guided = guidance.classifier_free(net, scale)
  else:
    if guide is None:
      raise ValueError(f"samplers.{key}: 'autoguidance' needs guidance.workdir, a weaker model's.")
    guided = guidance.autoguidance(net, guide[0].apply, guide[1], scale)
  return guidance.interval(guided, net, *low_high) if low_high else guided


def conditions(config: ConfigDict, numbers: Array) -> Cond:
  """What the samples of these numbers [n] are drawn under: the classes in turn, no guidance."""
  num_classes = config.net.get("num_classes", 0)
  cond = {"label": numbers % num_classes} if num_classes else {}
  return cond | ({"guidance": jnp.ones(len(numbers))} if config.net.get("guidance", False) else {})


def sampler(
  config: ConfigDict, key: str, net: Network, mesh: Mesh, guide: Model | None = None
) -> metrics.Sampler:
  """The sampler `config.samplers[key]`, compiled once per number of samples.

  The noise of sample i is a function of the key and of i: of no batch, device or process.

  Args:
    config: of the run.
    key: which of its samplers.
    net: the run's network.
    mesh: whose devices share the work.
    guide: the other model, for autoguidance.
  """
  factory, grid, options, guided_by = parts(config, key)
  shape, own = sample_shape(config), sampling_net(config, net)
  if guided_by:  # once for nothing, so that what is wrong with it is found at the door
    _guided(config, key, guided_by, own, guide)

  def draw(numbers, keys, params, guide_params):
    model = (guide[0], guide_params) if guide else None
    net_fn = _guided(config, key, guided_by, own, model) if guided_by else own
    given = dict(sigma_data=config.sigma_data, cond=conditions(config, numbers), **options)
    return factory(net_fn, params, keys, (len(numbers), *shape), grid, **given)

  drawn = _shared(draw, mesh)
  return lambda params, key, numbers: drawn(numbers, key, params, guide[1] if guide else None)


def timed_sampler(
  config: ConfigDict, key: str, net: Network, mesh: Mesh
) -> tuple[int, Callable[[tuple[float, ...]], metrics.Sampler]]:
  """How many steps `config.samplers[key]` has, and: intermediate times -> its sampler with those.

  The times are an argument of the compiled program, so that it is compiled once for all of them.
  The noise is that of `sampler`.
  """
  factory, (t_max, *mid), options, guided_by = parts(config, key)
  if factory is not samplers.consistency or guided_by:
    raise ValueError(f"samplers.{key}: times are searched for an unguided 'consistency' sampler.")
  shape, own = sample_shape(config), sampling_net(config, net)

  def draw(numbers, keys, params, angles):
    given = dict(sigma_data=config.sigma_data, cond=conditions(config, numbers), **options)
    return samplers.alternate(own, params, keys, jnp.zeros((len(numbers), *shape)), angles, **given)

  drawn = _shared(draw, mesh)

  def at(times):
    angles = np.asarray([t_max, *times], np.float32)
    return lambda params, key, numbers: drawn(numbers, key, params, angles)

  return len(mid) + 1, at


def _shared(draw: Callable[..., Array], mesh: Mesh) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
  """draw(numbers, keys, ...) by all devices: (numbers, key, ...) -> own numbers, their samples."""
  split = sharding.batch_sharding(mesh)

  @jax.jit
  def compiled(numbers, key, *given):
    numbers = jax.lax.with_sharding_constraint(numbers, split)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    return jax.lax.with_sharding_constraint(draw(numbers, keys, *given), split)

  def own(numbers, key, *given):
    # As many as the devices divide; what is too much is drawn and left out.
    padded = np.pad(numbers.astype(np.int32), (0, -len(numbers) % mesh.size), mode="edge")
    with jax.set_mesh(mesh):  # kernels of attention have to know what to be split over
      drawn = compiled(padded, key, *given)
    rows, values = sharding.local_values(drawn)
    wanted = rows < len(numbers)
    return numbers[rows[wanted]], values[wanted]

  return own


def sampler_nfe(config: ConfigDict, key: str) -> int:
  """Network evaluations per sample of the sampler `config.samplers[key]`.

  Guidance by a second evaluation counts twice, also outside the interval it is limited to.
  """
  _, grid, _, guided_by = parts(config, key)
  name, steps = config.samplers[key].name, len(grid) - 1
  twice = (guided_by or {"name": "input"})["name"] != "input"
  counts = {"consistency": steps + 1, "heun": 2 * steps - 1, "stochastic": 2 * steps - 1}
  return counts.get(name, steps) * (2 if twice else 1)
