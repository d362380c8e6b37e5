"""From a config to functions: the only place where strings choose.

A section of a config is a `name` and the keyword arguments of what it names. Everything a user can
get wrong in one is found here, before anything is compiled.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmjax import ema, networks, optim, samplers, sharding, times, weighting
from cmjax.data import pipeline, sources
from cmjax.losses import continuous, diffusion
from cmjax.metrics import evaluators as metrics
from cmjax.metrics import frechet
from cmjax.train_step import TrainState, make_init
from cmjax.types import Batch, LossFn, Network, Params

SOURCES = {
  "digits": sources.digits,
  "npz": sources.npz,
  "folder": sources.folder,
  "tfds": sources.tfds,
  "toy2d": sources.toy2d,
}
NETWORKS = {"mlp": networks.MLP, "ddpmpp": networks.DDPMpp}
METHODS = ("diffusion", "sct", "scd")
WEIGHTINGS = ("learned", "constant", "inverse_sigma")
SCHEDULES = {"constant": optim.constant, "inverse_sqrt": optim.inverse_sqrt}
OPTIMIZERS = {"adam": optim.adam, "radam": optim.radam}
SAMPLERS = {
  "consistency": samplers.consistency,
  "heun": samplers.heun,
  "ddim": samplers.ddim,
}
FEATURES = {"pixels": metrics.pixels}
EVALUATORS = ("samples", "frechet", "sliced_wasserstein", "throughput")


def pick(table: Any, name: str, what: str) -> Any:
  """table[name] (or the name itself, of a tuple of names), or an error that lists the choices."""
  if name not in table:
    raise ValueError(f"Unknown {what} {name!r}. Choose from: {', '.join(sorted(table))}.")
  return table[name] if isinstance(table, Mapping) else name


def call(factory: Callable[..., Any], what: str, *args: Any, **kwargs: Any) -> Any:
  """factory(*args, **kwargs), or an error that lists the arguments it takes."""
  # Of a class, the signature that its metaclass hides.
  parameters = inspect.signature(
    functools.partial(factory.__init__, None) if inspect.isclass(factory) else factory
  ).parameters.values()
  named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
  accepted = [p.name for p in named[len(args) :]]
  required = [p.name for p in named[len(args) :] if p.default is p.empty]
  if unknown := sorted(set(kwargs) - set(accepted)):
    raise ValueError(f"{what} takes no {', '.join(unknown)}. It takes: {', '.join(accepted)}.")
  if missing := sorted(set(required) - set(kwargs)):
    raise ValueError(f"{what} needs {', '.join(missing)}. It takes: {', '.join(accepted)}.")
  return factory(*args, **kwargs)


def _section(section: ConfigDict, what: str, *own: str) -> list[Any]:
  """[name, *values of `own`, the keyword arguments of what the section names]."""
  # A config that was stored beside a checkpoint has lists for tuples: JSON knows no other.
  kwargs = {key: tuple(v) if isinstance(v, list) else v for key, v in section.items()}
  own = ("name", *own)
  if missing := [key for key in own if key not in kwargs]:
    raise ValueError(f"config.{what} needs {', '.join(own)}; not there: {', '.join(missing)}.")
  return [*map(kwargs.pop, own), kwargs]


def network(config: ConfigDict) -> Network:
  """The network of `config.net`; `dtype` is that of its body."""
  name, dtype, kwargs = _section(config.net, "net", "dtype")
  module = pick(NETWORKS, name, "network (net.name)")
  make = lambda rngs: call(module, f"net ({name})", rngs=rngs, **kwargs)
  return networks.as_network(make, dtype=dtype)


def source(config: ConfigDict, split: str = "train") -> sources.Source:
  """A split of the data that `config.data` names, checked against the network.

  `config.data[name]`, where it is there, holds the arguments of that source: a config can have
  several ready, to be chosen by `--config.data.name`.
  """
  name, _, sections = _section(config.data, "data", "flip")
  factory = pick(SOURCES, name, "data set (data.name)")
  data = call(factory, f"data.{name}", split=split, **dict(sections.get(name, {})))
  expected = _sample_shape(config)
  if tuple(data.shape) != expected:
    raise ValueError(
      f"data {name!r} has samples of shape {tuple(data.shape)}, but net takes {expected}. Set "
      "net.resolution and net.in_channels (net.dim for points) to those of the data."
    )
  num_classes = config.net.get("num_classes", 0)
  if num_classes and data.num_classes != num_classes:
    raise ValueError(
      f"net.num_classes={num_classes} but data {name!r} has {data.num_classes or 'no'} classes. "
      f"Set net.num_classes={data.num_classes}, or take data with labels."
    )
  return data


def batches(config: ConfigDict, mesh: Mesh, start: int) -> Generator[Batch]:
  """The global batches from step `start` on, laid out on the mesh; close it when done."""
  sharding.check_batch_size(config.batch_size, mesh)
  index, count = sharding.process()
  dataset = pipeline.dataset(
    source(config),
    batch_size=config.batch_size,
    seed=config.seed,
    flip=config.data.flip,
    process_index=index,
    process_count=count,
  )
  keys = ("image", "label") if config.net.get("num_classes", 0) else ("image",)
  host_batches = pipeline.batches(dataset, start=start)

  def to_mesh():
    with contextlib.closing(host_batches):
      for batch in host_batches:
        yield sharding.global_batch({key: batch[key] for key in keys}, mesh)

  return to_mesh()


def _weighting(config: ConfigDict) -> weighting.Weighting:
  name = pick(WEIGHTINGS, config.loss.get("weighting", ""), "weighting (loss.weighting)")
  if name == "constant":
    return weighting.constant()
  if name == "inverse_sigma":
    return weighting.inverse_sigma(sigma_data=config.sigma_data)
  # A tangent of unit L2 norm has a mean square of 1/D, so that is where w = log D starts.
  unit_l2 = config.loss.name != "diffusion" and config.loss.norm == "l2"
  return weighting.learned(bias=float(np.log(np.prod(_sample_shape(config)))) if unit_l2 else 0.0)


def _sample_shape(config: ConfigDict) -> tuple[int, ...]:
  """The shape of one sample, as the network takes it."""
  net = config.net
  return (net.resolution, net.resolution, net.in_channels) if "resolution" in net else (net.dim,)


def loss(config: ConfigDict, net: Network, teacher: tuple[Network, Params] | None = None) -> LossFn:
  """The loss of `config.loss`; `teacher` is the frozen diffusion model that scd distils."""
  name, P_mean, P_std, _, kwargs = _section(config.loss, "loss", "P_mean", "P_std", "weighting")
  pick(METHODS, name, "method (loss.name)")
  sigma_data, weight = config.sigma_data, _weighting(config)
  sample_t = times.lognormal(P_mean, P_std, sigma_data=sigma_data)
  if name == "diffusion":
    return call(
      diffusion.loss, "loss (diffusion)", net, sample_t, weight, sigma_data=sigma_data, **kwargs
    )
  if name == "scd" and teacher is None:
    raise ValueError("loss.name='scd' distils a teacher: set teacher.workdir to its workdir.")
  velocity = (
    continuous.teacher_velocity(*teacher, sigma_data=sigma_data)
    if name == "scd" and teacher is not None
    else continuous.data_velocity()
  )
  return call(
    continuous.loss,
    f"loss ({name})",
    net,
    velocity,
    sample_t,
    weight,
    sigma_data=sigma_data,
    **kwargs,
  )


def schedule(config: ConfigDict) -> optax.Schedule:
  """The learning rate by step."""
  name, kwargs = _section(config.optim.schedule, "optim.schedule")
  factory = pick(SCHEDULES, name, "schedule (optim.schedule.name)")
  return call(factory, f"optim.schedule ({name})", config.optim.lr, **kwargs)


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """The optax chain of `config.optim`."""
  name, _, _, kwargs = _section(config.optim, "optim", "lr", "schedule")
  factory = pick(OPTIMIZERS, name, "optimizer (optim.name)")
  return call(factory, f"optim ({name})", schedule(config), **kwargs)


def ema_decays(config: ConfigDict) -> dict[str, ema.Decay]:
  """The averages of `config.ema`, by name."""
  if not config.ema:
    raise ValueError("config.ema needs at least one average: samples are drawn from averages.")
  return {
    name: call(ema.half_life, f"ema.{name}", batch_size=config.batch_size, **dict(section))
    for name, section in config.ema.items()
  }


def state_init(config: ConfigDict, net: Network) -> Callable[..., TrainState]:
  """(key, start=None) -> the TrainState of step 0; `start` are the network's first weights."""
  weight, tx, names = _weighting(config), optimizer(config), tuple(config.ema)

  def init(key, start=None):
    def init_params(key):
      key_net, key_weighting = jax.random.split(key)
      params = net.init(key_net) if start is None else start
      return {"net": params, "weighting": weight.init(key_weighting)}

    return make_init(init_params, tx, names)(key)

  return init


def _sampler_times(config: ConfigDict, name: str, kwargs: dict[str, Any]) -> np.ndarray:
  sigma_data = config.sigma_data
  if name == "consistency":
    mid = kwargs.pop("mid_times", ())
    make = lambda *mid, sigma_max=80.0: times.consistency_times(
      *mid, sigma_data=sigma_data, sigma_max=sigma_max
    )
    return call(make, "sampler (consistency)", *mid, **kwargs)
  make = lambda num_steps, sigma_min=0.002, sigma_max=80.0, rho=7.0: times.ode_times(
    num_steps, sigma_data=sigma_data, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho
  )
  return call(make, f"sampler ({name})", **kwargs)


def sampler(config: ConfigDict, key: str, net: Network, mesh: Mesh) -> metrics.Sampler:
  """The sampler `config.samplers[key]`, compiled once per number of samples."""
  section = pick(dict(config.samplers), key, "sampler (of config.samplers)")
  name, kwargs = _section(section, f"samplers.{key}")
  factory = pick(SAMPLERS, name, f"sampler (samplers.{key}.name)")
  grid = _sampler_times(config, name, kwargs)
  shape, num_classes = _sample_shape(config), config.net.get("num_classes", 0)

  @functools.partial(jax.jit, static_argnums=2)
  def draw(params, key, n):
    cond = {"label": jnp.arange(n) % num_classes} if num_classes else {}
    x0 = factory(net.apply, params, key, (n, *shape), grid, sigma_data=config.sigma_data, cond=cond)
    # Split over the devices where they divide the batch, then whole everywhere.
    if n % mesh.size == 0:
      x0 = jax.lax.with_sharding_constraint(x0, sharding.batch_sharding(mesh))
    return jax.lax.with_sharding_constraint(x0, sharding.replicated(mesh))

  return lambda params, key, n: np.asarray(draw(params, key, n))


def sampler_nfe(config: ConfigDict, key: str) -> int:
  """Network evaluations per sample of the sampler `config.samplers[key]`."""
  name, kwargs = _section(config.samplers[key], f"samplers.{key}")
  num_times = len(_sampler_times(config, name, kwargs))
  return {"consistency": num_times, "ddim": num_times - 1, "heun": 2 * num_times - 3}[name]


def _image_batches(data: sources.Source, batch_size: int = 4096) -> Iterator[np.ndarray]:
  """All samples of a source in [-1, 1], in order, a batch at a time."""
  for start in range(0, len(data), batch_size):
    batch = data.take(np.arange(start, min(start + batch_size, len(data))))["image"]
    yield batch.astype(np.float32) / 127.5 - 1 if batch.dtype == np.uint8 else batch


def evaluators(
  config: ConfigDict, net: Network, mesh: Mesh
) -> dict[str, tuple[int, metrics.Evaluator]]:
  """{name: (every so many steps, evaluator)} of `config.evals`."""
  made, by_name = {}, functools.cache(lambda key: sampler(config, key, net, mesh))
  for label, section in config.evals.items():
    name, every, keys, emas, kwargs = _section(
      section, f"evals.{label}", "every_steps", "samplers", "emas"
    )
    pick(EVALUATORS, name, f"evaluator (evals.{label}.name)")
    drawn, kwargs = {key: by_name(key) for key in keys}, kwargs | {"emas": emas}
    for key in emas:
      pick(dict(config.ema), key, f"average (evals.{label}.emas)")
    what = f"evals.{label} ({name})"
    if name in ("samples", "throughput"):
      make = metrics.samples if name == "samples" else metrics.throughput
      made[label] = every, call(make, what, drawn, **kwargs)
      continue
    train, held_out = (_image_batches(source(config, split)) for split in ("train", "test"))
    if name == "frechet":
      features = pick(FEATURES, kwargs.pop("features", None), f"features (evals.{label}.features)")
      moments = [frechet.streaming(map(features, batches)) for batches in (train, held_out)]
      made[label] = every, call(metrics.frechet_distance, what, drawn, features, *moments, **kwargs)
    else:
      points = [np.concatenate(list(batches)) for batches in (train, held_out)]
      made[label] = every, call(metrics.sliced_wasserstein, what, drawn, *points, **kwargs)
  return made
