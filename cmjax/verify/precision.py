"""Rows of one network by precision: its derivative, its rounding, and where that comes from."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cmjax import experiment
from cmjax.base import sharding
from cmjax.losses import means
from cmjax.program import jvp_check, stored_runs
from cmjax.program.jvp_check import PRECISION
from cmjax.verify.table import Row

# What a config could have instead; on a CPU the products of both float32 are the same.
POLICIES = (
  dict(dtype="float32", matmul_precision="highest"),
  dict(dtype="float32", matmul_precision="default"),
  dict(dtype="bfloat16", matmul_precision="default"),
  dict(dtype="float16", matmul_precision="default"),
)


def network(config: ConfigDict, workdir: str | Path | None = None) -> list[Row]:
  """Rows of the network of a config: its derivative in float64, and its rounding by precision.

  Judged are F in the precision of `config.net`, and dF/dt in that of the tangent, which
  `config.loss.tangent` can set apart. Below them is dF/dt in every other precision that there is
  to choose (`POLICIES`), which no result can make fail.

  Its weights are those of the run's first average or, where the run has no checkpoint yet, random
  ones without a zero among them: a layer that starts at 0 would hide all that is before it.

  The last row names the module whose weights, rounded to bfloat16 while all else is exact, disturb
  dF/dt most: the first to keep in float32. (What `float32_paths` keeps anyway is not a candidate.)
  """
  params, inputs = _weights(config, workdir), jvp_check.inputs(config)
  own, of_tangent = jvp_check.policies(config)
  given = jvp_check.in_dtype(inputs, np.float32)
  policies = {_label(own): own, _label(of_tangent): of_tangent}
  policies |= {_label(policy): policy for policy in POLICIES}

  def run(policy):
    apply = experiment.network(config, policy).apply
    return jax.device_get(jax.jit(jvp_check.F_and_slope(apply))(params, *given))

  found = {label: run(policy) for label, policy in policies.items()}
  culprit, share = jvp_check.most_sensitive(config, params)
  with jax.enable_x64(True):
    wide = experiment.network(config, {"dtype": "float64"}).apply
    params, given = jvp_check.in_dtype((params, inputs), np.float64)
    F, dF = jax.device_get(jax.jit(jvp_check.F_and_slope(wide))(params, *given))
    numeric = jax.device_get(jax.jit(jvp_check.central_difference(wide))(params, *given))
  allowed_F = PRECISION[own["dtype"]][0]
  allowed_dF = {_label(of_tangent): PRECISION[of_tangent["dtype"]][1]}
  rows = [
    *_per_bin("dF/dt by jvp and by differences, float64", dF, numeric, jvp_check.DIFFERENCE),
    *_per_bin(f"F in {_label(own)}", found[_label(own)][0], F, allowed_F),
  ]
  # Those of the config first.
  for label in (*allowed_dF, *(label for label in found if label not in allowed_dF)):
    allowed = allowed_dF.get(label, math.inf)
    note = "" if label in allowed_dF else "to compare with"
    for r in _per_bin(f"dF/dt in {label}", found[label][1], dF, allowed):
      # What overflows is no number, and for a precision that is not in use that is an answer too.
      lost = math.isinf(allowed) and math.isnan(r.error)
      rows.append(r._replace(note=note, error=math.inf if lost else r.error))
  name = f"share of {culprit} in the error of dF/dt in bfloat16: the largest"
  rows.append(Row("", name, 0.0, share, share, PRECISION["bfloat16"][1]))
  return [r._replace(group="network") for r in rows]


def _label(policy: dict[str, str]) -> str:
  products = policy["matmul_precision"]
  return policy["dtype"] + ("" if products == "default" else f" ({products} products)")


def _weights(config: ConfigDict, workdir: str | Path | None) -> Any:
  if workdir is not None and any((Path(workdir).expanduser() / "checkpoints").glob("*")):
    averages = stored_runs.load_network(workdir, sharding.make_mesh(**config.mesh)).averages
    return jax.tree.map(jnp.asarray, jax.device_get(next(iter(averages.values()))))
  generator = np.random.default_rng(0)

  def perturbed(a):
    scale = 0.3 / math.sqrt(math.prod(a.shape[:-1]))  # one over the root of the fan-in
    return a + jnp.asarray(scale * generator.standard_normal(a.shape), a.dtype)

  return jax.tree.map(
    perturbed, jax.jit(experiment.network(config).init)(jax.random.key(config.seed))
  )


def _per_bin(name: str, value: np.ndarray, truth: np.ndarray, tolerance: float) -> Iterator[Row]:
  """The relative L2 error of each bin; shown are the norms."""
  wide = np.asarray(value, np.float64), np.asarray(truth, np.float64)
  for label, v, T in zip(means.BINS, *wide, strict=True):
    norm, error = np.linalg.norm(T), np.linalg.norm(v - T)
    relative = float(error / norm) if norm else math.inf
    yield Row("", f"{name}, {label}", float(norm), float(np.linalg.norm(v)), relative, tolerance)
