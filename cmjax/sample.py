"""What a finished run is used for: samples, scores; and what a data set measures."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cmjax import build, reporting, sharding, train
from cmjax.data import sources


def sample(
  config: ConfigDict, workdir: str | Path, *, num_samples: int, name: str | None, seed: int
) -> list[Path]:
  """Draws samples from the averages of the newest good checkpoint.

  Args:
    config: its samplers are used, and its first average.
    workdir: of the run.
    num_samples: how many of each sampler.
    name: one of config.samplers; None: each of them.
    seed: of the noise.

  Returns:
    The files written to workdir/samples: a picture, and an .npz with `samples` [n, *d] in [-1, 1].
  """
  if num_samples < 1:
    raise ValueError(f"--num_samples={num_samples} must be at least 1.")
  mesh = sharding.make_mesh(**config.mesh)
  stored, net, averages, step = train.load_network(workdir, mesh)
  ema = next(iter(stored.ema))
  folder = Path(workdir).absolute() / "samples"
  folder.mkdir(exist_ok=True)
  paths = []
  for key in [name] if name else list(config.samplers):
    sampler = build.sampler(config, key, net, mesh)
    x0 = sampler(averages[ema], jax.random.key(seed), num_samples)
    stem = f"{key}_{ema}_step{step}_seed{seed}"
    picture, arrays = folder / f"{stem}.png", folder / f"{stem}.npz"
    reporting.save_png(picture, reporting.picture(x0))
    np.savez(arrays, samples=x0)
    paths += [picture, arrays]
  return paths


def evaluate(config: ConfigDict, workdir: str | Path) -> str:
  """Runs config.evals on the newest good checkpoint, rewrites scores.json and the report.

  Returns:
    The scores, one a line.
  """
  mesh = sharding.make_mesh(**config.mesh)
  _, net, averages, step = train.load_network(workdir, mesh)
  scores = {}
  for label, (_, evaluator) in build.evaluators(config, net, mesh).items():
    for name, value in evaluator(averages, train.eval_key(config)):
      if not jnp.ndim(value):
        scores[f"{label}/{name}"] = float(value)
  train.finish(config, Path(workdir).absolute(), scores)
  return f"step {step}\n" + "\n".join(f"{name}: {value:.5g}" for name, value in scores.items())


def measure(config: ConfigDict) -> str:
  """Mean and std of the data in [-1, 1], to choose config.sigma_data by."""
  found = sources.statistics(build.source(config), max_items=50_000)
  found["shape"] = list(found["shape"])
  return json.dumps(found) + (
    f"\nconfig.sigma_data is {config.sigma_data}; the std of the data is {found['std']:.4f}."
  )
