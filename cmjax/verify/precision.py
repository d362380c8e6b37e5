"""Rows of one experiment by precision: its derivative, its rounding, and where that comes from."""

import functools
import logging
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import experiment
from cmjax.base import paths
from cmjax.experiment import Experiment, Frozen
from cmjax.losses import means
from cmjax.program import equations, jvp_check, plan, stored_runs
from cmjax.program.jvp_check import PRECISION
from cmjax.types import Network, Params
from cmjax.verify.table import Row

logger = logging.getLogger("cmjax")
# Largest relative error of a loss's gradient in float32, that of dF/dt: with tiny networks the
# methods are below 1e-5, and one product in float16 is above 1e-3.
LOSS_GRADIENT = PRECISION["float32"][1]

# What a config could have instead; on a CPU the products of both float32 are the same.
POLICIES = (
  dict(dtype="float32", matmul_precision="highest"),
  dict(dtype="float32", matmul_precision="default"),
  dict(dtype="bfloat16", matmul_precision="default"),
  dict(dtype="float16", matmul_precision="default"),
)


def network(exp: Experiment, workdir: str | os.PathLike[str] | None = None) -> list[Row]:
  """Rows of an experiment: its network's derivative and rounding, and its loss's gradient.

  Judged are F in the precision of the network, and dF/dt in that of the tangent, which
  `loss.tangent` can set apart. Below them is dF/dt in every other precision that there is
  to choose (`POLICIES`), which no result can make fail.

  The weights are those of the run's first average or, where the run has no checkpoint yet, random
  ones without a zero among them: a layer that starts at 0 would hide all that is before it.

  Then the module is named whose weights, rounded to bfloat16 while all else is exact, disturb
  dF/dt most: the first to keep in float32. (What `float32_paths` keeps anyway is not a candidate.)
  The last row is of the loss: its gradient in float32 against float64.
  """
  net, params = _weights(exp, workdir)
  if net.at is None:
    raise ValueError(
      "verify compares a network with itself in float64, and this network has no `at` to make "
      "that. Make it with an adapter of cmjax.networks."
    )
  at, inputs = net.at, jvp_check.inputs(exp.samples, net.inputs)
  own, of_tangent = jvp_check.policies(net, exp.method.tangent)
  narrow = jvp_check.in_dtype(inputs, np.float32)
  policies = {_label(own): own, _label(of_tangent): of_tangent}
  policies |= {_label(policy): policy for policy in POLICIES}

  def run(policy):
    apply = at(**policy).apply
    return jax.device_get(jax.jit(jvp_check.F_and_slope(apply))(params, *narrow))

  found = {label: run(policy) for label, policy in policies.items()}
  culprit, share = jvp_check.most_sensitive(net, exp.samples, params)
  with jax.enable_x64(True):
    wide = at(dtype="float64").apply
    exact, wide_inputs = jvp_check.in_dtype((params, inputs), np.float64)
    F, dF = jax.device_get(jax.jit(jvp_check.F_and_slope(wide))(exact, *wide_inputs))
    numeric = jax.device_get(jax.jit(jvp_check.central_difference(wide))(exact, *wide_inputs))
  rows = [
    *_per_bin("dF/dt by jvp and by differences, float64", dF, numeric, jvp_check.DIFFERENCE),
    *_per_bin(f"F in {_label(own)}", found[_label(own)][0], F, PRECISION[own["dtype"]][0]),
    *_by_precision(found, dF, _label(of_tangent), PRECISION[of_tangent["dtype"]][1]),
  ]
  name = f"share of {culprit} in the error of dF/dt in bfloat16: the largest"
  rows.append(Row("", name, 0.0, share, share, PRECISION["bfloat16"][1]))
  rows += _loss(exp._replace(network=net), params)
  return [r._replace(group="network") for r in rows]


def _by_precision(
  found: Mapping[str, Any], dF: np.ndarray, judged: str, allowed: float
) -> Iterator[Row]:
  """dF/dt in each precision, the one that is in use first, and only that one judged."""
  for label in (judged, *(label for label in found if label != judged)):
    limit = allowed if label == judged else math.inf
    note = "" if label == judged else "to compare with"
    for r in _per_bin(f"dF/dt in {label}", found[label][1], dF, limit):
      # What overflows is no number, and for a precision that is not in use that is an answer too.
      lost = math.isinf(limit) and math.isnan(r.error)
      yield r._replace(note=note, error=math.inf if lost else r.error)


def _loss(exp: Experiment, net_params: Any) -> Iterator[Row]:
  """The gradient of the loss in float32 against that of the same program in float64.

  With the same noise, at the last step of the training. A loss that distils is given a random
  teacher of the same kind; one that needs a file is left out.
  """
  method, key, num = exp.method, jax.random.key(0), 8
  net, teacher = _single(exp.network), _single(plan.without_inputs(exp.network))
  weights = _random_weights(teacher, seed=1)
  try:
    frozen = {"teacher": weights, "lpips": method.lpips()}
    method.loss(net, Frozen((teacher, weights), frozen["lpips"]))
  except ValueError as error:
    logger.info("The loss is not measured: %s", error)
    return
  params = {"net": net_params, **method.init(key, net_params, net_params)}
  target = {} if method.target is None else {"target": net_params}
  last = jnp.asarray(exp.run.total_steps - 1, jnp.int32)

  def gradient(params, target, frozen, batch):
    loss_fn = method.loss(net, Frozen((teacher, frozen["teacher"]), frozen["lpips"]))
    return jax.grad(lambda p: loss_fn(p | target, batch, key, last)[0])(params)

  arguments = params, target, frozen, _batch(exp, num)
  found, truths = jax.jit(gradient)(*arguments), equations.in_float64(gradient, *arguments)
  name = f"gradient of the loss {method.name} in float32"
  rows = [
    _whole(f"{name}, {part}", found[part], truths[part])
    for part in truths
    if jax.tree.leaves(truths[part])
  ]
  yield max(rows, key=lambda row: row.error)


def _single(network: Network) -> Network:
  """A network in float32, the tangent's pass too."""
  assert network.at is not None, "asked of networks that have it"
  single = network.at(dtype="float32", matmul_precision="highest")
  return single._replace(at=lambda **changes: single)


def _whole(name: str, value: Params, truth: Params) -> Row:
  """The relative L2 error of all numbers of a tree; shown are the norms."""
  flat = lambda tree: np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)], dtype=np.float64)
  v, T = flat(value), flat(truth)
  norm, error = float(np.linalg.norm(T)), float(np.linalg.norm(v - T))
  relative = 0.0 if error == 0 else error / norm if norm and math.isfinite(error) else math.inf
  return Row("", name, norm, float(np.linalg.norm(v)), relative, LOSS_GRADIENT)


def _batch(exp: Experiment, num: int) -> dict[str, Any]:
  """Noise of the scale of data, as a batch of the experiment has it."""
  shape = (num, *exp.samples.shape)
  images = exp.run.sigma_data * np.random.default_rng(0).standard_normal(shape)
  batch: dict[str, Any] = {"image": images.astype(np.float32)}
  if exp.samples.latents:
    batch["image_std"] = np.full(shape, 0.1 * exp.run.sigma_data, np.float32)
  if exp.samples.num_classes:
    batch["label"] = np.arange(num, dtype=np.int32) % exp.samples.num_classes
  return batch


def _label(policy: dict[str, str]) -> str:
  products = policy["matmul_precision"]
  return policy["dtype"] + ("" if products == "default" else f" ({products} products)")


def _weights(exp: Experiment, workdir: str | os.PathLike[str] | None) -> tuple[Network, Any]:
  """The network, and weights of it: those of a run, or random ones."""
  if workdir is not None and any((paths.place(workdir) / "checkpoints").glob("*")):
    first = stored_runs.averages_of(workdir)[0]
    mesh = experiment.make_mesh(exp.run)
    check = functools.partial(_check_scale, exp, workdir)
    described, params, _ = stored_runs.load_average(workdir, first, mesh, exp.network, check)
    return described.network, jax.tree.map(jnp.asarray, jax.device_get(params))
  return exp.network, _random_weights(exp.network, exp.run.seed)


def _check_scale(
  exp: Experiment, workdir: str | os.PathLike[str], stored: Mapping[str, Any]
) -> None:
  """Raises where a run's weights were trained at another scale than the config's."""
  sigma_data = stored["config"]["sigma_data"]
  if sigma_data != exp.run.sigma_data:
    raise ValueError(
      f"The run in {workdir} was made with sigma_data={sigma_data}, the config given has "
      f"{exp.run.sigma_data}. Leave that flag out, or give --workdir alone, without --config."
    )


def _random_weights(network: Network, seed: int) -> Params:
  """Weights without a zero among them."""
  generator = np.random.default_rng(seed)

  def perturbed(a):
    scale = 0.3 / math.sqrt(math.prod(a.shape[:-1]))  # one over the root of the fan-in
    return a + jnp.asarray(scale * generator.standard_normal(a.shape), a.dtype)

  return jax.tree.map(perturbed, jax.jit(network.init)(jax.random.key(seed)))


def _per_bin(name: str, value: np.ndarray, truth: np.ndarray, tolerance: float) -> Iterator[Row]:
  """The relative L2 error of each bin; shown are the norms."""
  wide = np.asarray(value, np.float64), np.asarray(truth, np.float64)
  for label, v, T in zip(means.BINS, *wide, strict=True):
    norm, error = np.linalg.norm(T), np.linalg.norm(v - T)
    relative = float(error / norm) if norm else math.inf
    yield Row("", f"{name}, {label}", float(norm), float(np.linalg.norm(v)), relative, tolerance)
