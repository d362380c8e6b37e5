"""Samplers of a config, and how they are shared by the devices of a mesh."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cmjax import guidance, samplers, times
from cmjax.base import parts, sharding
from cmjax.base.ranges import Angle, Exponent, InnerAngle, Range, Scale, Sigma, WorkdirOrNone
from cmjax.experiment.fields import Experiment, Method, Sampler, Samples, Stored
from cmjax.experiment.sections import Section, arguments, call, lacks_input, pick, pick_part, read
from cmjax.metrics import evaluators as metrics
from cmjax.samplers import conventions
from cmjax.types import Array, Cond, Model, NetFn

_INTERVAL = tuple[Angle, Angle] | None
GUIDANCE: dict[str, dict[str, Any]] = {  # name -> its arguments
  "input": {"scale": Scale},
  "classifier_free": {"scale": Scale, "interval": _INTERVAL},
  "autoguidance": {"scale": Scale, "interval": _INTERVAL, "workdir": WorkdirOrNone, "ema": str},
}
ABOUT_SAMPLER: dict[str, Any] = {"name": str, "searched": bool}  # whatever the sampler


class Trained(NamedTuple):
  """What samplers are told of the network that they sample.

  Attributes:
    sigma_data: std of data and noise.
    samples: what one sample is.
    inputs: what the network reads beside the label.
    method: how it was trained.
    sigma_min: where a consistency function is the identity.
    num_segments: of multistep sCD.
  """

  sigma_data: float
  samples: Samples
  inputs: tuple[str, ...]
  method: Method
  sigma_min: float = 0.0
  num_segments: int = 1


def _ode_times(
  trained: Trained,
  *,
  num_steps: Annotated[int, Range(2, 2**16)],
  sigma_min: Sigma = 0.002,
  sigma_max: Sigma = 80.0,
  rho: Exponent = 7.0,
) -> np.ndarray:
  sigmas = dict(sigma_data=trained.sigma_data, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
  return times.ode_times(num_steps, **sigmas)


def _few_times(
  trained: Trained,
  *,
  mid_times: tuple[InnerAngle, ...] = (),
  mid_sigmas: tuple[Sigma, ...] = (),
  sigma_max: Sigma = 80.0,
) -> np.ndarray:
  sigma_data = trained.sigma_data
  if mid_times and mid_sigmas:
    raise ValueError(
      "sampler (consistency) takes mid_times (angles) or mid_sigmas (noise levels), not both."
    )
  of_sigmas = functools.partial(conventions.consistency_times_from_sigmas, sigma_data=sigma_data)
  mid = of_sigmas(*mid_sigmas) if mid_sigmas else mid_times
  return times.consistency_times(*mid, sigma_data=sigma_data, sigma_max=sigma_max)


def _segment_times(trained: Trained) -> np.ndarray:
  if "segment" not in trained.inputs:
    if "segment" in trained.method.needs:
      raise lacks_input("segment")
    raise ValueError("sampler (segments) is for multistep sCD: loss.num_segments, net.segment.")
  return times.segment_times(trained.num_segments, sigma_data=trained.sigma_data)


class Row(NamedTuple):
  """A sampler of ours.

  Attributes:
    draw: (net, params, keys, shape, times, *, cond, sigma_data, ...) -> x_0.
    times: (trained, ...) -> the angles that it goes through; a section may have its arguments.
    nfe: number of steps -> network evaluations.
  """

  draw: Callable[..., Array]
  times: Callable[..., np.ndarray] = _ode_times
  nfe: Callable[[int], int] = lambda steps: steps


SAMPLERS = {
  "consistency": Row(samplers.consistency, _few_times, lambda steps: steps + 1),
  "segments": Row(samplers.segments, _segment_times),
  "ddim": Row(samplers.ddim),
  "heun": Row(samplers.heun, nfe=lambda steps: 2 * steps - 1),
  "dpmpp_2m": Row(samplers.dpmpp_2m),
  "stochastic": Row(samplers.stochastic, nfe=lambda steps: 2 * steps - 1),
}


def sampler(trained: Trained, key: str, section: Section) -> Sampler:
  """The sampler of a section of `config.samplers`, checked.

  One of your own is a factory of a `Sampler`, marked with `cmjax.base.parts.part`: it is called
  with the section's other keys, and with `sigma_data` if it takes that.
  """
  if parts.was_handed_in(section.get("name")):
    refuse = parts.missing(section["name"], "samplers", f"sampler {key}")
    return Sampler(refuse, 0, record=dict(section))
  name, kwargs = read(section, f"samplers.{key}")
  guided_by, searched = kwargs.get("guidance"), kwargs.pop("searched", True)
  factory = pick_part(SAMPLERS, name, f"sampler (samplers.{key}.name)")
  if name in SAMPLERS:
    made = _of_ours(trained, name, kwargs)
  else:
    kwargs.pop("guidance", None)
    if "sigma_data" in inspect.signature(factory).parameters:
      kwargs["sigma_data"] = trained.sigma_data
    made = call(factory, f"sampler ({name})", **kwargs)
  made = made._replace(searched=searched, record=dict(section))
  if made.draw_at:
    base = {k: v for k, v in dict(section).items() if k != "mid_sigmas"}
    with_times = lambda mid: sampler(trained, key, base | {"mid_times": tuple(mid)})
    made = made._replace(with_times=with_times)
  return _under_guidance(trained, key, guided_by, made) if guided_by else made


def _of_ours(trained: Trained, name: str, kwargs: dict[str, Any]) -> Sampler:
  what, row = f"sampler ({name})", SAMPLERS[name]
  grid = [p.name for p in arguments(row.times)][1:]
  own = [
    p.name for p in inspect.signature(row.draw).parameters.values() if p.kind == p.KEYWORD_ONLY
  ]
  own = [key for key in own if key not in ("sigma_data", "cond", *grid)]
  allowed = (*grid, *own, "guidance", "searched")
  if unknown := sorted(set(kwargs) - set(allowed)):
    raise ValueError(f"{what} takes no {', '.join(unknown)}. It takes: {', '.join(allowed)}.")
  options = {key: kwargs[key] for key in own if key in kwargs}
  if "sigma_min" in own:
    options.setdefault("sigma_min", trained.sigma_min)
  options["sigma_data"] = trained.sigma_data
  angles = call(row.times, what, trained, **{key: kwargs[key] for key in grid if key in kwargs})

  def draw(net, params, keys, shape, cond):
    return row.draw(net, params, keys, shape, angles, cond=cond, **options)

  def draw_at(net, params, keys, shape, cond, angles):
    return samplers.alternate(net, params, keys, jnp.zeros(shape), angles, cond=cond, **options)

  return Sampler(
    draw,
    row.nfe(len(angles) - 1),
    times=angles,
    draw_at=draw_at if name == "consistency" else None,
  )


def _under_guidance(trained: Trained, key: str, section: Section, made: Sampler) -> Sampler:
  """A sampler whose network is under the guidance of a section.

  Guidance by a second evaluation counts twice, also outside the interval it is limited to.
  """
  name, scale, kwargs = read(section, f"samplers.{key}.guidance", "scale")
  allowed = pick(GUIDANCE, name, f"guidance (samplers.{key}.guidance.name)")
  if unknown := sorted(set(kwargs) - set(allowed)):
    raise ValueError(
      f"samplers.{key}.guidance ({name}) takes no {', '.join(unknown)}. It takes: name, "
      f"{', '.join(allowed)}."
    )
  _check_guidance(trained, key, name, kwargs)
  guided = functools.partial(_guided, name, scale, kwargs.get("interval"))
  nothing = lambda *args: jnp.zeros(())
  guided(nothing, (nothing, None))  # a wrong scale or interval is found here
  guide = Stored(kwargs["workdir"], kwargs.get("ema", "main")) if name == "autoguidance" else None
  nfe = made.nfe * (1 if name == "input" else 2)
  return made._replace(guided=guided, guide=guide, nfe=nfe)


def _check_guidance(trained: Trained, key: str, name: str, kwargs: Mapping[str, Any]) -> None:
  if name == "input" and "guidance" not in trained.inputs:
    raise ValueError(f"samplers.{key}: guidance 'input' needs a net with net.guidance=True.")
  if name == "classifier_free" and not trained.samples.num_classes:
    raise ValueError(f"samplers.{key}: guidance 'classifier_free' needs net.num_classes.")
  if name == "classifier_free" and not trained.method.label_dropout:
    raise ValueError(
      f"samplers.{key}: classifier-free guidance needs a network that also knows 'no class', but "
      "loss.label_dropout is 0: train with label_dropout=0.1, or drop the guidance."
    )
  if name == "autoguidance" and not kwargs.get("workdir"):
    raise ValueError(f"samplers.{key}: 'autoguidance' needs guidance.workdir, a weaker model's.")


def _guided(
  name: str,
  scale: float,
  low_high: tuple[float, float] | None,
  net: NetFn,
  guide: tuple[Any, Any] | None,
) -> NetFn:
  """The network under guidance; `guide` is the weaker network's apply function and weights."""
  if name == "input":
    return lambda params, x, t, cond, key: net(
      params, x, t, cond | {"guidance": jnp.full(len(x), scale, jnp.float32)}, key
    )
  if name == "classifier_free":
    guided = guidance.classifier_free(net, scale)
  else:
    assert guide is not None, "autoguidance is given its weaker model"
    guided = guidance.autoguidance(net, *guide, scale)
  return guidance.interval(guided, net, *low_high) if low_high else guided


def conditions(samples: Samples, inputs: tuple[str, ...], numbers: Array) -> Cond:
  """What the samples of these numbers [n] are drawn under: the classes in turn, no guidance."""
  cond = {"label": numbers % samples.num_classes} if samples.num_classes else {}
  return cond | ({"guidance": jnp.ones(len(numbers))} if "guidance" in inputs else {})


def compiled_sampler(
  experiment: Experiment, key: str, mesh: Mesh, guide: Model | None = None
) -> metrics.Sampler:
  """The sampler `experiment.samplers[key]`, compiled once per number of samples.

  The noise of sample i is a function of the key and of i: of no batch, device or process.

  Args:
    experiment: whose network and sampler.
    key: which of its samplers.
    mesh: whose devices share the work.
    guide: the weaker model, for autoguidance.
  """
  chosen = pick(experiment.samplers, key, "sampler")
  net, samples = experiment.network, experiment.samples
  own = experiment.method.sampled(net.apply)

  def draw(numbers, keys, params, guide_params):
    weaker = (guide[0].apply, guide_params) if guide else None
    net_fn = chosen.guided(own, weaker) if chosen.guided else own
    cond = conditions(samples, net.inputs, numbers)
    return chosen.draw(net_fn, params, keys, (len(numbers), *samples.shape), cond)

  drawn = _shared(draw, mesh)
  return lambda params, key, numbers: drawn(numbers, key, params, guide[1] if guide else None)


def timed_sampler(
  experiment: Experiment, key: str, mesh: Mesh
) -> tuple[int, Callable[[tuple[float, ...]], metrics.Sampler]]:
  """How many steps a sampler has, and: intermediate times -> the sampler with those.

  The times are an argument of the compiled program, so that it is compiled once for all of them.
  The noise is that of `compiled_sampler`.
  """
  chosen = pick(experiment.samplers, key, "sampler")
  if chosen.draw_at is None or chosen.guided:
    raise ValueError(f"samplers.{key}: times are searched for an unguided 'consistency' sampler.")
  (t_max, *mid), draw_at = chosen.times, chosen.draw_at
  net, samples = experiment.network, experiment.samples
  own = experiment.method.sampled(net.apply)

  def draw(numbers, keys, params, angles):
    cond = conditions(samples, net.inputs, numbers)
    return draw_at(own, params, keys, (len(numbers), *samples.shape), cond, angles)

  drawn = _shared(draw, mesh)

  def at(times):
    angles = np.asarray([t_max, *times], np.float32)
    return lambda params, key, numbers: drawn(numbers, key, params, angles)

  return len(mid) + 1, at


def _shared(draw: Callable[..., Array], mesh: Mesh) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
  """draw(numbers, keys, ...) by all devices: (numbers, key, ...) -> own numbers, their samples."""
  split = sharding.batch_sharding(mesh)

  @jax.jit
  def program(numbers, key, *given):
    numbers = jax.lax.with_sharding_constraint(numbers, split)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    return jax.lax.with_sharding_constraint(draw(numbers, keys, *given), split)

  def own(numbers, key, *given):
    # As many as the devices divide; what is too much is drawn and left out.
    padded = np.pad(numbers.astype(np.int32), (0, -len(numbers) % mesh.size), mode="edge")
    with jax.set_mesh(mesh):  # kernels of attention have to know what to be split over
      drawn = program(padded, key, *given)
    rows, values = sharding.local_values(drawn)
    wanted = rows < len(numbers)
    return numbers[rows[wanted]], values[wanted]

  return own
