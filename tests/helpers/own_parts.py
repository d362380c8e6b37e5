"""Parts of a user's own package, as a config names them: `helpers.own_parts:Net`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from cmjax import networks, times, trigflow, weighting
from cmjax.base.parts import part
from cmjax.data import sources
from cmjax.experiment import Method, Sampler
from cmjax.losses import diffusion
from cmjax.metrics.detectors import Detector
from helpers.fake_detectors import DIM, linear

NAME = "helpers.own_parts"


@part
class Net(nnx.Module):
  """A linear map of x and t whose kernel is held at unit norm."""

  normalized_paths = ("^linear/kernel$",)

  def __init__(self, dim: int, *, offset: float = 0.0, rngs: nnx.Rngs):
    self.offset = offset
    self.linear = nnx.Linear(dim + 1, dim, rngs=rngs)

  def __call__(self, x, t, cond):
    return self.linear(jnp.concatenate([x, t[:, None].astype(x.dtype)], -1)) + self.offset


@part
class LinenNet(linen.Module):
  """The like, in Linen."""

  dim: int

  @linen.compact
  def __call__(self, x, t, cond):
    return linen.Dense(self.dim)(jnp.concatenate([x, t[:, None].astype(x.dtype)], -1))


@part
def network(*, dim: int, offset: float = 1.0):
  """A factory of a Network."""
  return networks.from_nnx(functools.partial(Net, dim, offset=offset), shape=(dim,))


@part
def source(*, split: str, num: int):
  """A grid on the circle; other points of it are held out."""
  angles = 2 * np.pi * (np.arange(num) + (split == "test") / 2) / num
  points = 0.7 * np.stack([np.cos(angles), np.sin(angles)], -1)
  return sources.ArraySource(points.astype(np.float32))


@part
def method(scene, *, P_mean: float = 0.0):
  """A diffusion model."""
  sigma = dict(sigma_data=scene.sigma_data)
  draw = times.lognormal(P_mean, 1.0, **sigma)
  made = lambda net, frozen: diffusion.loss(net, draw, weighting.constant(), **sigma)
  return Method("of mine", made, lambda key, net, teacher: {"weighting": {}})


@part
def sampler(*, sigma_data: float, scale: float = 1.0):
  """x_0 in one step from pure noise, times `scale`."""

  def draw(net, params, keys, shape, cond):
    z = jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)
    t = jnp.full(shape[0], jnp.pi / 2)
    x0 = trigflow.denoise(sigma_data * z, sigma_data * net(params, z, t, cond, None), t)
    return scale * x0

  return Sampler(draw, 1)


@part
def evaluator(setting, *, num: int):
  """The mean square of `num` samples."""

  def evaluate(averages, key):
    for name, draw in setting.samplers.items():
      for ema in setting.emas:
        yield f"{name}/{ema}", float(np.mean(draw(averages[ema], key, np.arange(num))[1] ** 2))

  return evaluate


@part
def detector(*, shape):
  """Projections of pixels, or of points."""
  record = {"name": "of mine", "shape": list(shape)}
  return Detector("of mine", "FD-mine", DIM, linear, record)


@part
def optimizer(rate, *, momentum: float = 0.0):
  """Plain gradient descent."""
  return optax.sgd(rate, momentum)


@part
class NoModule:
  """Marked, but of no library of networks."""


def unmarked(*args, **kwargs):
  """What its author did not mean for configs."""
  raise AssertionError("it was called")


class Unmarked(Net):
  """A subclass is not marked by its parent."""
