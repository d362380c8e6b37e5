"""dF/dt of a network along a trajectory: by jvp, by differences, in several precisions.

What the tangent of a continuous-time loss stands on. `verify` makes a table of it, and the doctor
asks for it while a run trains.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.base import param_names
from cmjax.experiment import Samples
from cmjax.losses import means
from cmjax.program import equations
from cmjax.types import NetFn, Network, Params

KEYS = ("dtype", "matmul_precision")
# Largest relative error per time bin, of F and of dF/dt along the trajectory, against float64.
PRECISION = {
  "float64": (1e-12, 1e-10),
  "float32": (1e-4, 1e-3),
  "bfloat16": (0.05, 0.5),
  "float16": (0.01, 0.1),
}
# Of a derivative against a central difference, both in float64.
DIFFERENCE = 1e-6


def policies(network: Network, tangent: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
  """The precision of a network, and that of its tangent."""
  said = lambda options: {k: options[k] for k in KEYS if options.get(k) is not None}
  own = {"dtype": "float32", "matmul_precision": "default"} | said(network.options)
  own["dtype"] = jnp.dtype(own["dtype"]).name
  return own, own | said(tangent)


def inputs(samples: Samples, names: Collection[str]) -> tuple[Any, ...]:
  """x, dx/dt (both over sigma_data), t in the middle of each bin, cond; float32 on the host."""
  shape = samples.shape
  x0, z = np.random.default_rng(1).standard_normal((2, means.NUM_BINS, *shape))
  t = (means.EDGES[:-1] + means.EDGES[1:]) / 2
  c, s = (f(t).reshape(-1, *(1,) * len(shape)) for f in (np.cos, np.sin))
  scales = {"guidance": np.full(len(t), 1.5), "segment": t / 2}
  cond = {name: a for name, a in scales.items() if name in names}
  if samples.num_classes:
    cond["label"] = np.arange(len(t), dtype=np.int32) % samples.num_classes
  narrow = lambda a: a.astype(np.float32) if a.dtype == np.float64 else a
  return jax.tree.map(narrow, (c * x0 + s * z, c * z - s * x0, t, cond))


def in_dtype(tree: Any, dtype: Any) -> Any:
  """On the default device, its floating-point leaves in `dtype`."""
  convert = lambda a: a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a
  return jax.tree.map(lambda a: jnp.asarray(convert(np.asarray(a))), jax.device_get(tree))


def F_and_slope(apply: NetFn) -> Callable[..., Any]:
  """params, x, dx/dt, t, cond -> F, dF/dt, both [b, *d]."""

  def both(params, x, dxdt, t, cond):
    F_fn = lambda x, t: apply(params, x, t, cond, None)
    return jax.jvp(F_fn, (x, t), (dxdt, jnp.ones_like(t)))

  return both


def central_difference(apply: NetFn, h: float = 1e-5) -> Callable[..., Any]:
  """params, x, dx/dt, t, cond -> dF/dt [b, *d] with an error of O(h^2)."""

  def slope(params, x, dxdt, t, cond):
    above = apply(params, x + h * dxdt, t + h, cond, None)
    return (above - apply(params, x - h * dxdt, t - h, cond, None)) / (2 * h)

  return slope


def relative_errors(value: Any, truth: Any) -> np.ndarray:
  """|| value - truth || / || truth || of each sample, float64 [b]; for a truth of 0, 0 or inf."""
  v, T = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (value, truth))
  norm, error = np.linalg.norm(T, axis=-1), np.linalg.norm(v - T, axis=-1)
  return np.where(norm > 0, error / np.where(norm > 0, norm, 1), np.where(error > 0, np.inf, 0.0))


def most_sensitive(network: Network, samples: Samples, params: Params) -> tuple[str, float]:
  """The module whose weights, rounded to bfloat16 while all else is exact, disturb dF/dt most.

  Goes down from the whole network, two levels deep. What `float32_paths` keeps is no candidate.

  Returns:
    Its path, and the relative error of dF/dt that it makes.
  """
  assert network.at is not None, "asked of a network that has other precisions"
  run = jax.jit(F_and_slope(network.at(dtype="float32").apply))
  given = in_dtype(inputs(samples, network.inputs), np.float32)
  slope = lambda params: np.asarray(run(params, *given)[1], np.float64)
  exact, kept = slope(params), network.float32_paths
  paths = [
    path
    for path in param_names.by_name(params)
    if not any(re.search(pattern, path) for pattern in kept)
  ]

  def error(prefix):
    def leaf(path, a):
      inside = param_names.name(path) in paths and param_names.name(path).startswith(prefix)
      return a.astype(jnp.bfloat16).astype(a.dtype) if inside else a

    changed = slope(jax.tree_util.tree_map_with_path(leaf, params))
    return float(np.linalg.norm(changed - exact) / np.linalg.norm(exact))

  prefix = ""
  for depth in (1, 2):
    modules = [path.split("/")[:-1][:depth] for path in paths if path.startswith(prefix)]
    prefix = max(sorted({"/".join([*parts, ""]) for parts in modules}), key=error)
  return prefix.rstrip("/"), error(prefix)


def first_wrong(
  apply: NetFn, params: Params, given: tuple[Any, ...], *, tolerance: float, h: float = 1e-5
) -> str | None:
  """The first place in a network where a jvp and a central difference part; None: they do not.

  A value that was rounded on the way (a time in bfloat16), or a derivative that is not that of its
  function, is found at the equation where it enters.

  Args:
    apply: a network that computes in float64.
    params: its weights, in float64.
    given: x, dx/dt, t, cond of `inputs`, in float64.
    tolerance: largest relative error of a sample.
    h: of the difference.
  """
  x, dxdt, t, cond = given
  places: list[str] = []

  def intermediates(x, t):
    values: list[Any] = []
    places.clear()

    def visit(place, primitive, outputs):
      for y in outputs:
        per_sample = jnp.issubdtype(y.dtype, jnp.floating) and y.shape[:1] == t.shape
        if per_sample and y.size:
          values.append(y)
          places.append(f"{place} ({primitive})")

    equations.evaluate(lambda x, t: apply(params, x, t, cond, None), visit, x, t)
    return values

  _, slopes = jax.jvp(intermediates, (x, t), (dxdt, jnp.ones_like(t)))
  above = intermediates(x + h * dxdt, t + h)
  below = intermediates(x - h * dxdt, t - h)
  for place, *arrays in zip(places, slopes, above, below, strict=True):
    slope, a, b = (np.asarray(y, np.float64).reshape(len(t), -1) for y in arrays)
    numeric = (a - b) / (2 * h)
    norm = lambda y: np.linalg.norm(y, axis=-1)
    larger = np.maximum(norm(slope), norm(numeric))
    # What rounding in float64 makes of a difference says nothing.
    clear = larger > 1e-6 * np.maximum(norm(a), 1e-300)
    if np.any(clear & (norm(slope - numeric) > tolerance * larger)):
      return place
  return None
