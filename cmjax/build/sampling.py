"""Samplers and evaluators of a config."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmjax import edm, guidance, samplers, sharding, step_times, times
from cmjax.build.models import source
from cmjax.build.sections import Section, call, pick, read, sample_shape
from cmjax.data import sources
from cmjax.metrics import classifier, frechet
from cmjax.metrics import evaluators as metrics
from cmjax.types import Array, Cond, Model, NetFn, Network, Params

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
FEATURES = ("pixels", "classifier")
EVALUATORS = ("samples", "frechet", "sliced_wasserstein", "throughput")


def sampling_net(config: ConfigDict, net: Network) -> NetFn:
  """The network as samplers take it: CM's shifted boundary, where the loss has one, is inside."""
  if sigma_min := config.loss.get("sigma_min", 0.0):
    return edm.shifted(net.apply, sigma_data=config.sigma_data, sigma_min=sigma_min)
  return net.apply


FEW_STEPS = ("mid_times", "mid_sigmas", "sigma_max")
GRID = ("num_steps", "sigma_min", "sigma_max", "rho")


def _sampler(
  config: ConfigDict, key: str
) -> tuple[Any, np.ndarray, dict[str, Any], Section | None]:
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
      mid = step_times.consistency_times_from_sigmas(*sigmas, sigma_data=sigma_data)
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


def _conditions(config: ConfigDict, n: int) -> Cond:
  """What n samples are drawn under: the classes in turn, and no guidance."""
  num_classes = config.net.get("num_classes", 0)
  cond = {"label": jnp.arange(n) % num_classes} if num_classes else {}
  return cond | ({"guidance": jnp.ones(n)} if config.net.get("guidance", False) else {})


def sampler(
  config: ConfigDict, key: str, net: Network, mesh: Mesh, guide: Model | None = None
) -> metrics.Sampler:
  """The sampler `config.samplers[key]`, compiled once per number of samples.

  Args:
    config: of the run.
    key: which of its samplers.
    net: the run's network.
    mesh: whose devices share the work.
    guide: the other model, for autoguidance.
  """
  factory, grid, options, guided_by = _sampler(config, key)
  shape, own = sample_shape(config), sampling_net(config, net)
  if guided_by:  # once for nothing, so that what is wrong with it is found at the door
    _guided(config, key, guided_by, own, guide)

  @functools.partial(jax.jit, static_argnums=3)
  def draw(params, guide_params, key_noise, n):
    model = (guide[0], guide_params) if guide else None
    net_fn = _guided(config, key, guided_by, own, model) if guided_by else own
    given = dict(sigma_data=config.sigma_data, cond=_conditions(config, n), **options)
    x0 = factory(net_fn, params, key_noise, (n, *shape), grid, **given)
    # Split over the devices where they divide the batch, then whole everywhere.
    if n % mesh.size == 0:
      x0 = jax.lax.with_sharding_constraint(x0, sharding.batch_sharding(mesh))
    return jax.lax.with_sharding_constraint(x0, sharding.replicated(mesh))

  def sample(params, key, n):
    with jax.set_mesh(mesh):  # kernels of attention have to know what to be split over
      return np.asarray(draw(params, guide[1] if guide else None, key, n))

  return sample


def sampler_nfe(config: ConfigDict, key: str) -> int:
  """Network evaluations per sample of the sampler `config.samplers[key]`.

  Guidance by a second evaluation counts twice, also outside the interval it is limited to.
  """
  _, grid, _, guided_by = _sampler(config, key)
  name, steps = config.samplers[key].name, len(grid) - 1
  twice = (guided_by or {"name": "input"})["name"] != "input"
  counts = {"consistency": steps + 1, "heun": 2 * steps - 1, "stochastic": 2 * steps - 1}
  return counts.get(name, steps) * (2 if twice else 1)


def search_score(
  config: ConfigDict, key: str, net: Network, params: Params, noise_key: Array, num_samples: int
) -> tuple[int, Callable[[tuple[float, ...]], float]]:
  """How many steps the sampler `config.samplers[key]` has, and the score of intermediate times.

  The score is the Frechet distance of `num_samples` samples, from the same noise each time, in the
  features of the first Frechet evaluator of the config. The times are an argument of the compiled
  program, so that it is compiled once for all of them.
  """
  factory, (t_max, *mid), options, guided_by = _sampler(config, key)
  if factory is not samplers.consistency or guided_by:
    raise ValueError(f"samplers.{key}: times are searched for an unguided 'consistency' sampler.")
  label = _first_frechet(config, "A search of times")
  if num_samples < 2:
    raise ValueError(f"A search cannot score on {num_samples} samples: take 1,000 or more.")
  *_, own = read(config.evals[label], f"evals.{label}")
  features = _features(own, f"evals.{label}")
  reference = frechet.streaming(map(features, _image_batches(source(config))))
  shape, net_fn = (num_samples, *sample_shape(config)), sampling_net(config, net)

  @jax.jit
  def draw(params, key, angles):
    return samplers.alternate(
      net_fn,
      params,
      key,
      jnp.zeros(shape),
      angles,
      sigma_data=config.sigma_data,
      cond=_conditions(config, num_samples),
      **options,
    )

  def score(times):
    drawn = draw(params, noise_key, jnp.asarray([t_max, *times], jnp.float32))
    return float(frechet.distance(frechet.moments(features(np.asarray(drawn))), reference))

  return len(mid) + 1, score


def frechet_scores(
  config: ConfigDict, net: Network, mesh: Mesh, guides: Mapping[str, Model] | None = None
) -> tuple[str, Callable[[Params, Array], dict[str, float]]]:
  """The first Frechet evaluator of the config, for any parameters: its label, and the scores.

  The scores are (params, key) -> {sampler: distance}, from the same noise for the same key.
  """
  label = _first_frechet(config, "A sweep of averages")
  only = ConfigDict(config.to_dict())
  only.evals = {label: only.evals[label].to_dict() | {"emas": ("posthoc",)}}
  _, evaluate = evaluators(only, net, mesh, guides, emas=("posthoc",))[label]

  def scores(params, key):
    values = dict(evaluate({"posthoc": params}, key))
    return {name: float(values[f"{name}/posthoc"]) for name in only.evals[label].samplers}

  return label, scores


def _first_frechet(config: ConfigDict, what: str) -> str:
  label = next((k for k, e in config.evals.items() if e.name == "frechet"), None)
  if label is None:
    raise ValueError(f"{what} needs a 'frechet' evaluator in config.evals: its features.")
  return label


def _image_batches(data: sources.Source, batch_size: int = 4096) -> Iterator[np.ndarray]:
  """All samples of a source in [-1, 1], in order, a batch at a time."""
  for start in range(0, len(data), batch_size):
    batch = data.take(np.arange(start, min(start + batch_size, len(data))))["image"]
    yield batch.astype(np.float32) / 127.5 - 1 if batch.dtype == np.uint8 else batch


def _features(kwargs: dict[str, Any], what: str) -> metrics.Features:
  """The features that an evaluator's arguments name; what belongs to them is taken out."""
  name, path = kwargs.pop("features", ""), kwargs.pop("classifier", None)
  pick(FEATURES, name, f"features ({what}.features)")
  if name == "pixels":
    return metrics.pixels
  if not path:
    raise ValueError(f"{what}: features 'classifier' need {what}.classifier, the file of one.")
  return classifier.features(Path(path).expanduser())


def evaluators(
  config: ConfigDict,
  net: Network,
  mesh: Mesh,
  guides: Mapping[str, Model] | None = None,
  *,
  emas: Collection[str] | None = None,
) -> dict[str, tuple[int, metrics.Evaluator]]:
  """{name: (every so many steps, evaluator)} of `config.evals`.

  Args:
    config: of the run.
    net: its network.
    mesh: whose devices share the work.
    guides: the other models, for autoguidance, by the sampler's key.
    emas: the averages that there are; None: those of config.ema.
  """
  guides, known = guides or {}, dict.fromkeys(config.ema if emas is None else emas)
  made = {}
  by_name = functools.cache(lambda key: sampler(config, key, net, mesh, guides.get(key)))
  for label, section in config.evals.items():
    name, every, keys, own_emas, kwargs = read(
      section, f"evals.{label}", "every_steps", "samplers", "emas"
    )
    pick(EVALUATORS, name, f"evaluator (evals.{label}.name)")
    drawn, kwargs = {key: by_name(key) for key in keys}, kwargs | {"emas": own_emas}
    for key in own_emas:
      pick(known, key, f"average (evals.{label}.emas)")
    what = f"evals.{label} ({name})"
    if name in ("samples", "throughput"):
      make = metrics.samples if name == "samples" else metrics.throughput
      made[label] = every, call(make, what, drawn, **kwargs)
      continue
    train, held_out = (_image_batches(source(config, split)) for split in ("train", "test"))
    if name == "frechet":
      features = _features(kwargs, f"evals.{label}")
      moments = [frechet.streaming(map(features, batches)) for batches in (train, held_out)]
      made[label] = every, call(metrics.frechet_distance, what, drawn, features, *moments, **kwargs)
    else:
      points = [np.concatenate(list(batches)) for batches in (train, held_out)]
      made[label] = every, call(metrics.sliced_wasserstein, what, drawn, *points, **kwargs)
  return made
