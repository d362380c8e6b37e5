"""Your own network in Equinox, trained as a consistency model (sCT) on a checkerboard.

  pip install equinox
  python examples/own_equinox.py --workdir=runs/own_equinox --steps=200

The workdir then has report.html, a page with curves and samples. The experiment is toy2d_sct, with
this network in the place of its own.
"""

import argparse
import functools
import logging

import equinox as eqx
import jax
import jax.numpy as jnp

from cmjax import embeddings, experiment, networks, pages
from cmjax.program import train


class Block(eqx.Module):
  """A residual layer that sees the embedding e of the time."""

  norm: eqx.nn.LayerNorm
  fc0: eqx.nn.Linear
  time: eqx.nn.Linear
  dropout: eqx.nn.Dropout
  fc1: eqx.nn.Linear

  def __init__(self, width: int, *, key):
    keys = jax.random.split(key, 3)
    self.norm = eqx.nn.LayerNorm(width)
    self.fc0, self.time, self.fc1 = (eqx.nn.Linear(width, width, key=k) for k in keys)
    self.dropout = eqx.nn.Dropout(0.05)

  def __call__(self, h, e, key):
    """h and its residual branch."""
    inside = jax.nn.silu(self.fc0(self.norm(h)) + self.time(e).astype(h.dtype))
    return h + self.fc1(self.dropout(inside, key=key))


class Mine(eqx.Module):
  """F(x, t) for one point of the plane; `vmapped=True` maps it over the batch."""

  embed: eqx.nn.Linear
  fc_in: eqx.nn.Linear
  blocks: list[Block]
  fc_out: eqx.nn.Linear
  # These parameters stay in float32 if the rest is in bfloat16.
  float32_paths = (r"embed", r"/time/")

  def __init__(self, width: int = 128, depth: int = 3, *, key):
    key_embed, key_in, key_out, *keys = jax.random.split(key, 3 + depth)
    self.embed = eqx.nn.Linear(32, width, key=key_embed)
    self.fc_in = eqx.nn.Linear(6, width, key=key_in)
    self.blocks = [Block(width, key=k) for k in keys]
    self.fc_out = eqx.nn.Linear(width, 2, key=key_out)

  def __call__(self, x, t, cond, *, key=None):
    """F [2] of x = x_t / sigma_data [2] and the angle t [] in [0, pi/2]; no dropout without key."""
    keys = [None] * len(self.blocks) if key is None else jax.random.split(key, len(self.blocks))
    e = jax.nn.silu(self.embed(embeddings.positional(t[None], 32)[0]))
    h = self.fc_in(jnp.concatenate([x, jnp.sin(3 * x), jnp.cos(3 * x)]))
    for block, key in zip(self.blocks, keys, strict=True):
      h = block(h, e, key)
    return self.fc_out(h)


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", default="runs/own_equinox")
  parser.add_argument("--config", default="toy2d_sct", help="a page of points in the plane")
  parser.add_argument("--steps", type=int, default=500)
  args = parser.parse_args(argv)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  config = pages.load(args.config).unlock()
  config.total_steps = args.steps
  network = networks.from_equinox(functools.partial(Mine, width=128), shape=(2,), vmapped=True)
  return train.train(experiment.parse(config)._replace(network=network), args.workdir)


if __name__ == "__main__":
  main()
