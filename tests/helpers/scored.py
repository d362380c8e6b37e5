r"""Scores 5,000 images with every score, in batches of several sizes; one of several processes.

  python tests/helpers/scored.py DATA.npz OUT.json [HOST:PORT COUNT ID]

The images are exact functions of their numbers, so that nothing but the way they are split can
change a score.
"""

import json
import sys

import jax
import jax.numpy as jnp

from cmjax import experiment
from cmjax.base import sharding
from cmjax.experiment import evaluation, sampling
from cmjax.types import Network
from helpers import tiny
from helpers.fake_detectors import LINEAR

NUM, BATCH_SIZES = 5_000, (64, 250)
SCORES = ("frechet", "sfid", "kernel", "precision_recall", "density_coverage", "inception_score")


def exact(net, params, key, shape, times, *, sigma_data, cond):
  """A "sampler" of random levels of grey, darker by class."""
  levels = jax.vmap(lambda key: jax.random.bits(key, shape[1:], "uint8"))(key)
  darker = (5 * cond["label"]).reshape(-1, *[1] * (len(shape) - 1))
  return (levels.astype(jnp.int32) // 2 + 20 - darker).astype(jnp.float32) / 127.5 - 1


def configure(data):
  c = tiny.config().unlock()
  c.data = dict(name="npz", flip=False, npz=dict(path=data))
  c.net = dict(
    name="ddpmpp", resolution=4, in_channels=3, channels=4, channel_mult=(1,), num_blocks=1,
    attn_resolutions=(), num_classes=3, dtype="float32",
  )  # fmt: skip
  c.samplers = dict(exact=dict(name="ddim", num_steps=2))
  c.evals = {
    f"batch{size}": dict(
      name="frechet", features="pixels", samplers=("exact",), emas=("main",), every_steps=1,
      num_samples=NUM, batch_size=size, scores=SCORES, subset_size=200, num_subsets=5,
      per_class=True,
    )
    for size in BATCH_SIZES
  }  # fmt: skip
  return c


def main(data, out, coordinator=None, count=None, index=None):
  sharding._PIECE = 2**16  # so that what processes send each other comes in several
  if coordinator:
    sharding.start(coordinator, int(count), int(index))
  sampling.SAMPLERS["ddim"] = sampling.Row(exact)
  evaluation.detector = lambda *args, **kwargs: LINEAR
  net = Network(lambda key: {}, lambda *args: args[1])
  given = experiment.parse(configure(data))._replace(network=net)
  made = experiment.open_evaluators(given, sharding.make_mesh())
  cards = {}
  for label, evaluate in made.items():
    found = dict(evaluate({"main": {}}, jax.random.key(0)))
    cards[label] = found["exact_main"]
  with open(out, "w") as file:
    json.dump(cards, file)


if __name__ == "__main__":
  main(*sys.argv[1:])
