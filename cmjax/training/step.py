"""The train state, how it starts, and one step of it: pure functions, jitted by the caller."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from cmjax import ema
from cmjax.losses import means
from cmjax.training import microbatch
from cmjax.types import Array, Batch, LossFn, Metrics, Params


@struct.dataclass
class TrainState:
  """Everything a checkpoint holds, and nothing else."""

  step: Any  # updates so far, int32
  params: Any  # {net: ..., weighting: ..., and what else the method trains}
  ema: Any  # {name: params of the network}
  opt_state: Any


def make_init(
  init_params: Callable[[Array], Params],
  tx: optax.GradientTransformation,
  ema_names: tuple[str, ...],
) -> Callable[[Array], TrainState]:
  """init(key) -> TrainState. Call it under `jit`: outside, averages share buffers with params."""

  def init(key):
    params = init_params(key)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      ema={name: jax.tree.map(jnp.copy, params["net"]) for name in ema_names},
      opt_state=tx.init(params),
    )

  return init


def make_train_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  ema_decays: Mapping[str, ema.Decay],
  *,
  target: str | None = None,
  loss_scale: float = 1.0,
  num_parts: int = 1,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
  """train_step(state, batch, key) -> (state, metrics): pure; the caller jits and shards it.

  With `target`, the average of that name is the target network of a loss that has one: the loss
  finds it in params["target"], and no gradient goes there.

  With `loss_scale` the loss is multiplied before it is differentiated and the gradient divided
  after, both in float32: what is small there would be lost in a float16 body, which has nothing
  below 6e-8. Take a power of two, which rounds nothing.

  With `num_parts` the gradient is accumulated over as many passes of the batch (`microbatch`): the
  same noise and the same result, but for rounding, in the memory of one.

  All randomness is a function of (key, state.step), so a resumed run repeats itself. A step whose
  loss or gradient is not finite changes nothing but the step count, whatever the policy that the
  train loop then follows; metrics["nonfinite"] counts it.

  Metrics: the loss function's, and grad_norm, nonfinite.
  """

  def train_step(state, batch, key):
    key = jax.random.fold_in(key, state.step)
    fixed = {} if target is None else {"target": state.ema[target]}

    @jax.named_scope("loss")
    def scaled(params, batch, key):
      value, metrics = loss_fn(params | fixed, batch, key, state.step)
      return value * loss_scale, metrics

    grad_fn = functools.partial(jax.value_and_grad(scaled, has_aux=True), state.params)
    (value, metrics), grads = microbatch.accumulate(grad_fn, batch, key, num_parts)
    grads = jax.tree.map(lambda g: g / loss_scale, grads)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)

    with jax.named_scope("optimizer"):
      updates, opt_state = tx.update(grads, state.opt_state, state.params)
      params: Any = optax.apply_updates(state.params, updates)
    with jax.named_scope("averages"):
      averages = ema.update(state.ema, params["net"], state.step, ema_decays)

    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    state = TrainState(
      step=state.step + 1,
      params=keep(params, state.params),
      ema=keep(averages, state.ema),
      opt_state=keep(opt_state, state.opt_state),
    )
    metrics |= {
      "grad_norm": means.mean(grad_norm),
      "nonfinite": means.mean(1.0 - finite.astype(jnp.float32)),
    }
    return state, metrics

  return train_step


def several(
  train_step: Callable[..., tuple[TrainState, Metrics]],
) -> Callable[..., tuple[TrainState, Metrics]]:
  """(state, batches, *rest) -> (state, metrics): a step for each batch, in one dispatch.

  For steps so short that to start one costs as much. `batches` is a sequence of n batches, and each
  of the metrics has an axis of n in front.
  """

  def steps(state, batches, *rest):
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *batches)
    return jax.lax.scan(lambda state, batch: train_step(state, batch, *rest), state, stacked)

  return steps
