"""Your own network in Flax Linen, trained as a consistency model (sCT) on a checkerboard.

  python examples/own_linen.py --workdir=runs/own_linen --steps=200

The workdir then has report.html, a page with curves and samples. The experiment is toy2d_sct, with
this network in the place of its own.
"""

import argparse
import logging

import jax
import jax.numpy as jnp
from flax import linen as nn

from cmjax import embeddings, experiment, networks, pages
from cmjax.program import train


class Block(nn.Module):
  """A residual layer that sees the embedding e of the time."""

  @nn.compact
  def __call__(self, h, e, deterministic):
    """h and its residual branch."""
    width = h.shape[-1]
    inside = nn.Dense(width)(nn.LayerNorm()(h))
    inside = jax.nn.silu(inside + nn.Dense(width, name="time")(e).astype(h.dtype))
    return h + nn.Dense(width)(nn.Dropout(0.05)(inside, deterministic=deterministic))


class Mine(nn.Module):
  """F(x, t) for points in the plane. `deterministic` is asked for where there is dropout."""

  width: int = 128
  depth: int = 3
  # These parameters stay in float32 if the rest is in bfloat16.
  float32_paths = (r"embed", r"/time/")

  @nn.compact
  def __call__(self, x, t, cond, *, deterministic):
    """F [b, 2] of x = x_t / sigma_data [b, 2] and the angle t [b] in [0, pi/2]."""
    e = jax.nn.silu(nn.Dense(self.width, name="embed")(embeddings.positional(t, 32)))
    h = nn.Dense(self.width)(jnp.concatenate([x, jnp.sin(3 * x), jnp.cos(3 * x)], axis=-1))
    for _ in range(self.depth):
      h = Block()(h, e, deterministic)
    return nn.Dense(2, kernel_init=nn.initializers.zeros)(h)


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", default="runs/own_linen")
  parser.add_argument("--config", default="toy2d_sct", help="a page of points in the plane")
  parser.add_argument("--steps", type=int, default=500)
  args = parser.parse_args(argv)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  config = pages.load(args.config).unlock()
  config.total_steps = args.steps
  network = networks.from_linen(Mine(width=128), shape=(2,))
  return train.train(experiment.parse(config)._replace(network=network), args.workdir)


if __name__ == "__main__":
  main()
