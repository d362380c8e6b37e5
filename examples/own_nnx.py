"""Your own network in Flax NNX, trained as a consistency model (sCT) on a checkerboard.

  python examples/own_nnx.py --workdir=runs/own_nnx --steps=200

The workdir then has report.html, a page with curves and samples. The experiment is toy2d_sct, with
this network in the place of its own.
"""

import argparse
import functools
import logging

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax import embeddings, experiment, networks, pages
from cmjax.program import train


class Block(nnx.Module):
  """A residual layer that sees the embedding e of the time."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.fc0 = nnx.Linear(width, width, rngs=rngs)
    self.time = nnx.Linear(width, width, rngs=rngs)
    self.dropout = nnx.Dropout(0.05, rngs=rngs)
    self.fc1 = nnx.Linear(width, width, rngs=rngs)

  def __call__(self, h, e):
    """h and its residual branch."""
    inside = jax.nn.silu(self.fc0(self.norm(h)) + self.time(e).astype(h.dtype))
    return h + self.fc1(self.dropout(inside))


class Mine(nnx.Module):
  """F(x, t) for points in the plane. Inside, only `__call__(x, t, cond)` is asked for."""

  # These parameters stay in float32 if the rest is in bfloat16.
  float32_paths = (r"embed", r"/time/")

  def __init__(self, width: int = 128, depth: int = 3, *, rngs: nnx.Rngs):
    self.embed = nnx.Linear(32, width, rngs=rngs)
    self.fc_in = nnx.Linear(6, width, rngs=rngs)
    self.blocks = nnx.List([Block(width, rngs=rngs) for _ in range(depth)])
    self.fc_out = nnx.Linear(width, 2, kernel_init=nnx.initializers.zeros, rngs=rngs)

  def __call__(self, x, t, cond):
    """F [b, 2] of x = x_t / sigma_data [b, 2] and the angle t [b] in [0, pi/2]."""
    e = jax.nn.silu(self.embed(embeddings.positional(t, 32)))
    h = self.fc_in(jnp.concatenate([x, jnp.sin(3 * x), jnp.cos(3 * x)], axis=-1))
    for block in self.blocks:
      h = block(h, e)
    return self.fc_out(h)


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", default="runs/own_nnx")
  parser.add_argument("--config", default="toy2d_sct", help="a page of points in the plane")
  parser.add_argument("--steps", type=int, default=500)
  args = parser.parse_args(argv)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  config = pages.load(args.config).unlock()
  config.total_steps = args.steps
  network = networks.from_nnx(functools.partial(Mine, width=128), shape=(2,))
  return train.train(experiment.parse(config)._replace(network=network), args.workdir)


if __name__ == "__main__":
  main()
