"""Rows of one network by precision: its derivative, its rounding, and where that comes from."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cmjax import build, naming, runs, sharding, statistics
from cmjax.build import models, sections
from cmjax.types import NetFn
from cmjax.verify.table import Row
from cmjax.verify.truths import along, on_device

# Largest relative error per time bin, of F and of dF/dt along the trajectory, against float64.
PRECISION = {
  "float64": (1e-12, 1e-10),
  "float32": (1e-4, 1e-3),
  "bfloat16": (0.05, 0.5),
  "float16": (0.01, 0.1),
}
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
  params, inputs = _weights(config, workdir), _network_inputs(config)
  own, of_tangent = _policies(config)
  policies = {_label(own): own, _label(of_tangent): of_tangent}
  policies |= {_label(policy): policy for policy in POLICIES}

  def run(policy):
    apply = build.network(config, policy).apply
    return jax.device_get(jax.jit(_F_and_slope(apply))(params, *inputs))

  found = {label: run(policy) for label, policy in policies.items()}
  culprit = _most_sensitive(config, params)
  with jax.enable_x64(True):
    wide = build.network(config, {"dtype": "float64"}).apply
    params, inputs = _float64((params, inputs))
    F, dF = jax.device_get(jax.jit(_F_and_slope(wide))(params, *inputs))
    numeric = jax.device_get(jax.jit(_central_difference(wide))(params, *inputs))
  allowed_F = PRECISION[own["dtype"]][0]
  allowed_dF = {_label(of_tangent): PRECISION[of_tangent["dtype"]][1]}
  rows = [
    *_per_bin("dF/dt by jvp and by differences, float64", dF, numeric, 1e-6),
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
  return [r._replace(group="network") for r in [*rows, culprit]]


def _policies(config: ConfigDict) -> tuple[dict[str, str], dict[str, str]]:
  """The precision of the network, and that of its tangent."""
  own = {"matmul_precision": "default"} | models.precision(config.net)
  own["dtype"] = jnp.dtype(own["dtype"]).name
  return own, own | models.precision(config.loss.get("tangent") or {})


def _label(policy: dict[str, str]) -> str:
  products = policy["matmul_precision"]
  return policy["dtype"] + ("" if products == "default" else f" ({products} products)")


def _float64(tree: Any) -> Any:
  """On the default device, its floating-point leaves in float64."""
  widen = lambda a: a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a
  return jax.tree.map(lambda a: jnp.asarray(widen(a)), jax.device_get(tree))


def _weights(config: ConfigDict, workdir: str | Path | None) -> Any:
  if workdir is not None and any((Path(workdir).expanduser() / "checkpoints").glob("*")):
    averages = runs.load_network(workdir, sharding.make_mesh(**config.mesh)).averages
    return jax.tree.map(jnp.asarray, jax.device_get(next(iter(averages.values()))))
  generator = np.random.default_rng(0)

  def perturbed(a):
    scale = 0.3 / math.sqrt(math.prod(a.shape[:-1]))  # one over the root of the fan-in
    return a + jnp.asarray(scale * generator.standard_normal(a.shape), a.dtype)

  return jax.tree.map(perturbed, jax.jit(build.network(config).init)(jax.random.key(config.seed)))


def _network_inputs(config: ConfigDict) -> tuple[Any, ...]:
  """x, dx/dt (both over sigma_data), t in the middle of each bin, cond."""
  net, shape = config.net, sections.sample_shape(config)
  x0, z = np.random.default_rng(1).standard_normal((2, statistics.NUM_BINS, *shape))
  t = (statistics.EDGES[:-1] + statistics.EDGES[1:]) / 2
  c, s = along(np.cos(t), x0), along(np.sin(t), x0)
  scales = {"guidance": np.full(len(t), 1.5), "segment": t / 2}
  cond = {name: on_device(a)[0] for name, a in scales.items() if net.get(name, False)}
  if num_classes := net.get("num_classes", 0):
    cond["label"] = jnp.arange(len(t)) % num_classes
  return (*on_device(c * x0 + s * z, c * z - s * x0, t), cond)


def _F_and_slope(apply: NetFn) -> Callable[..., Any]:
  """params, x, dx/dt, t, cond -> F, dF/dt, both [b, *d]."""

  def both(params, x, dxdt, t, cond):
    F_fn = lambda x, t: apply(params, x, t, cond, None)
    return jax.jvp(F_fn, (x, t), (dxdt, jnp.ones_like(t)))

  return both


def _central_difference(apply: NetFn, h: float = 1e-5) -> Callable[..., Any]:
  def slope(params, x, dxdt, t, cond):
    above = apply(params, x + h * dxdt, t + h, cond, None)
    return (above - apply(params, x - h * dxdt, t - h, cond, None)) / (2 * h)

  return slope


def _per_bin(name: str, value: np.ndarray, truth: np.ndarray, tolerance: float) -> Iterator[Row]:
  """The relative L2 error of each bin; shown are the norms."""
  wide = np.asarray(value, np.float64), np.asarray(truth, np.float64)
  for label, v, T in zip(statistics.BINS, *wide, strict=True):
    norm, error = np.linalg.norm(T), np.linalg.norm(v - T)
    relative = float(error / norm) if norm else math.inf
    yield Row("", f"{name}, {label}", float(norm), float(np.linalg.norm(v)), relative, tolerance)


def _most_sensitive(config: ConfigDict, params: Any) -> Row:
  """Goes down from the whole network to the part that disturbs dF/dt most, two levels deep."""
  run = jax.jit(_F_and_slope(build.network(config, {"dtype": "float32"}).apply))
  inputs = _network_inputs(config)
  slope = lambda params: np.asarray(run(params, *inputs)[1], np.float64)
  exact, kept = slope(params), getattr(models.NETWORKS[config.net.name], "float32_paths", ())
  paths = [
    path for path in naming.by_name(params) if not any(re.search(pattern, path) for pattern in kept)
  ]

  def error(prefix):
    def leaf(path, a):
      inside = naming.name(path) in paths and naming.name(path).startswith(prefix)
      return a.astype(jnp.bfloat16).astype(a.dtype) if inside else a

    changed = slope(jax.tree_util.tree_map_with_path(leaf, params))
    return float(np.linalg.norm(changed - exact) / np.linalg.norm(exact))

  prefix = ""
  for depth in (1, 2):
    modules = [path.split("/")[:-1][:depth] for path in paths if path.startswith(prefix)]
    prefix = max(sorted({"/".join([*parts, ""]) for parts in modules}), key=error)
  name = f"share of {prefix.rstrip('/')} in the error of dF/dt in bfloat16: the largest"
  return Row("", name, 0.0, error(prefix), error(prefix), PRECISION["bfloat16"][1])
