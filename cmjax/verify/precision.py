"""Rows of one network at one precision: its derivative, its rounding, and where that comes from."""

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


def network(config: ConfigDict, workdir: str | Path | None = None) -> list[Row]:
  """Rows of the network of a config: its derivative in float64, and its rounding in its own dtype.

  Its weights are those of the run's first average or, where the run has no checkpoint yet, random
  ones without a zero among them: a layer that starts at 0 would hide all that is before it.

  The last row names the module whose weights, rounded to bfloat16 while all else is exact, disturb
  dF/dt most: the first to keep in float32. (What `float32_paths` keeps anyway is not a candidate.)
  """
  dtype = jnp.dtype(config.net.dtype).name
  own = build.network(config).apply
  params = _weights(config, workdir)
  F_own, dF_own = jax.device_get(jax.jit(_F_and_slope(own))(params, *_network_inputs(config)))
  culprit = _most_sensitive(config, params)
  with jax.enable_x64(True):
    wide = build.network(_with_dtype(config, "float64")).apply
    params, inputs = _float64(params), _float64(_network_inputs(config))
    F, dF = jax.device_get(jax.jit(_F_and_slope(wide))(params, *inputs))
    numeric = jax.device_get(jax.jit(_central_difference(wide))(params, *inputs))
  tolerance_F, tolerance_dF = PRECISION[dtype]
  found = [
    *_per_bin("dF/dt by jvp and by differences, float64", dF, numeric, 1e-6),
    *_per_bin(f"F in {dtype}", F_own, F, tolerance_F),
    *_per_bin(f"dF/dt in {dtype}", dF_own, dF, tolerance_dF),
    culprit,
  ]
  return [r._replace(group="network") for r in found]


def _with_dtype(config: ConfigDict, dtype: str) -> ConfigDict:
  copy = config.copy_and_resolve_references()
  copy.net.dtype = dtype
  return copy


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
  run = jax.jit(_F_and_slope(build.network(_with_dtype(config, "float32")).apply))
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
