r"""A method of your own: a Lagrangian flow map, trained from data alone.

  python examples/own_loss.py --workdir=runs/own_loss --steps=2000

A flow map X(x_t, t, s) = cos(t - s) x_t - sin(t - s) sigma_data F(x_t, t, s) leads along the
trajectory from t to s. It satisfies d_s X = v(X, s), v the velocity of the trajectory at (X, s),
which is the map's own diagonal, sigma_data F(., s, s). The diagonal is learned by flow matching.
The network is told s as cond["segment"].

From the command line, with this folder on PYTHONPATH and the method named in a config:
  loss.name="own_loss:lagrangian", net.segment=True.
"""

import argparse
import logging

import jax
import jax.numpy as jnp

from cmjax import experiment, pages, times, trigflow
from cmjax.base.parts import part
from cmjax.experiment import Frozen, Method, Scene
from cmjax.losses import means
from cmjax.program import train
from cmjax.types import LossFn, Network


def loss(net: Network, sample_t: times.SampleT, *, sigma_data: float) -> LossFn:
  """E |d_s X - v(X, s)|^2 / sigma_data^2 + E |F(x_t, t, t) - v_t / sigma_data|^2."""

  def loss_fn(params, batch, key, step):
    x0, cond = batch["image"], {k: v for k, v in batch.items() if k != "image"}
    key_t, key_s, key_z, key_net = jax.random.split(key, 4)
    t = sample_t(key_t, (len(x0),))
    s = t * jax.random.uniform(key_s, t.shape)
    z = trigflow.noise(key_z, x0.shape, sigma_data=sigma_data)
    x_t = trigflow.interpolate(x0, z, t)

    def F_at(weights, x, t, s, key=None):
      return net.apply(weights, x / sigma_data, t, cond | {"segment": s}, key)

    F_fn = lambda s: F_at(params["net"], x_t, t, s, key_net)
    F, dF = jax.jvp(F_fn, (s,), (jnp.ones_like(s),))
    cos, sin = trigflow.cos_sin(t - s, x_t)
    X = cos * x_t - sin * sigma_data * F
    dX = sin * x_t + sigma_data * (cos * F - sin * dF)
    v = jax.lax.stop_gradient(sigma_data * F_at(params["net"], X, s, s))
    lagrangian_error = jnp.mean(((dX - v) / sigma_data).reshape(len(x0), -1) ** 2, -1)

    diagonal = F_at(params["net"], x_t, t, t, key_net)
    residual = diagonal - trigflow.velocity(x0, z, t) / sigma_data
    F_error = jnp.mean(residual.reshape(len(x0), -1) ** 2, -1)
    value = jnp.mean(lagrangian_error + F_error)
    return value, {
      "loss": means.mean(value),
      **means.by_time("lagrangian_error", lagrangian_error, t),
      **means.by_time("F_error", F_error, t),
    }

  return loss_fn


@part
def lagrangian(scene: Scene, *, P_mean: float = -1.0, P_std: float = 1.4) -> Method:
  """The method of `loss.name="own_loss:lagrangian"`; a sample is a jump to s = 0."""
  sample_t = times.lognormal(P_mean, P_std, sigma_data=scene.sigma_data)

  def make(net: Network, frozen: Frozen) -> LossFn:
    return loss(net, sample_t, sigma_data=scene.sigma_data)

  def to_zero(apply):
    return lambda params, x, t, cond, key: apply(
      params, x, t, cond | {"segment": jnp.zeros_like(t)}, key
    )

  return Method("lagrangian", make, needs=("segment",), sampled=to_zero)


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", default="runs/own_loss")
  parser.add_argument("--config", default="toy2d_sct", help="a page of points in the plane")
  parser.add_argument("--steps", type=int, default=2_000)
  args = parser.parse_args(argv)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  config = pages.load(args.config).unlock()
  config.total_steps = args.steps
  config.net.segment = True
  e = experiment.parse(config)
  scene = Scene(e.run.sigma_data, e.samples.shape, e.run.total_steps)
  e = e._replace(method=lagrangian(scene))
  return train.train(e, args.workdir)


if __name__ == "__main__":
  main()
