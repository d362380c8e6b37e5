"""One train step on a loss whose gradient is known: L = c . p, c the mean of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmjax import ema
from cmjax.losses import means
from cmjax.training.step import make_init, make_train_step
from helpers import tiny

LR = 0.1
P0 = np.array([1.0, -2.0, 3.0], np.float32)


def loss_fn(params, batch, key, step):
  c = batch["image"].mean(0)
  value = jnp.sum(c * params["net"]["p"])
  return value, {"loss": means.mean(value), "noise": means.mean(jax.random.normal(key))}


@pytest.fixture(name="run")
def _run():
  tx = optax.trace(0.9)  # momentum: an optimizer with a state
  tx = optax.chain(tx, optax.scale(-LR))
  decays = {"slow": ema.half_life(8, batch_size=4), "fast": ema.half_life(4, batch_size=4)}
  init = jax.jit(make_init(lambda key: {"net": {"p": jnp.asarray(P0)}}, tx, tuple(decays)))
  step = jax.jit(make_train_step(loss_fn, tx, decays), donate_argnums=0)
  return init, lambda state, c: step(state, {"image": jnp.tile(c, (4, 1))}, jax.random.key(1))


def test_a_step_follows_the_gradient_and_counts(run):
  init, step = run
  c = np.array([3.0, 4.0, 0.0], np.float32)
  state, metrics = step(init(jax.random.key(0)), c)
  np.testing.assert_allclose(state.params["net"]["p"], P0 - LR * c, rtol=1e-6)
  state, _ = step(state, c)
  np.testing.assert_allclose(state.params["net"]["p"], P0 - LR * c - LR * 1.9 * c, rtol=1e-6)
  assert state.step == 2
  assert metrics["grad_norm"].total == 5.0
  assert metrics["nonfinite"].total == 0


def test_averages_start_as_copies_and_the_first_update_forgets_the_initial_weights(run):
  init, step = run
  state = init(jax.random.key(0))
  for name in ("slow", "fast"):
    np.testing.assert_array_equal(state.ema[name]["p"], P0)
  state, _ = step(state, np.ones(3, np.float32))
  for name in ("slow", "fast"):
    np.testing.assert_array_equal(state.ema[name]["p"], state.params["net"]["p"])


def test_averages_share_no_buffer_with_the_parameters_so_the_state_can_be_donated(run):
  init, step = run
  state = init(jax.random.key(0))
  arrays = [x for x in jax.tree.leaves(state) if x.size]
  assert len({x.unsafe_buffer_pointer() for x in arrays}) == len(arrays)
  step(state, np.ones(3, np.float32))
  assert all(x.is_deleted() for x in jax.tree.leaves(state))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(run, bad):
  init, step = run
  state, _ = step(init(jax.random.key(0)), np.ones(3, np.float32))
  before = tiny.leaves(state)
  state, metrics = step(state, np.array([1.0, bad, 1.0], np.float32))
  after = tiny.leaves(state)
  assert metrics["nonfinite"].total == 1
  assert (before.pop("step"), after.pop("step")) == (1, 2)
  tiny.assert_same(before, after)
  state, metrics = step(state, np.ones(3, np.float32))
  assert metrics["nonfinite"].total == 0 and np.isfinite(state.params["net"]["p"]).all()


def test_randomness_is_a_function_of_the_step(run):
  init, step = run
  noise = []
  for _ in range(2):
    state = init(jax.random.key(0))
    for _ in range(3):
      state, metrics = step(state, np.ones(3, np.float32))
      noise.append(float(metrics["noise"].total))
  assert noise[:3] == noise[3:]
  assert len(set(noise)) == 3


def test_the_target_is_the_average_of_that_name_and_gets_no_gradient():
  seen = lambda params, batch, key, step: (
    jnp.sum(params["net"]["p"] * params["target"]["p"]),
    {"loss": means.mean(params["target"]["p"])},
  )
  decays = {"main": lambda step: jnp.asarray(0.5), "target": lambda step: jnp.asarray(0.75)}
  tx = optax.sgd(LR)
  init = make_init(lambda key: {"net": {"p": jnp.asarray(P0)}}, tx, tuple(decays))
  step = jax.jit(make_train_step(seen, tx, decays, target="target"))
  state, _ = step(jax.jit(init)(jax.random.key(0)), {}, jax.random.key(1))
  # The gradient of p . target in p alone is target: with it in both it would be twice that.
  np.testing.assert_allclose(state.params["net"]["p"], P0 - LR * P0, rtol=1e-6)
  np.testing.assert_allclose(state.ema["target"]["p"], P0 - 0.25 * LR * P0, rtol=1e-6)
  _, metrics = step(state, {}, jax.random.key(1))
  assert metrics["loss"].total == pytest.approx(float(np.sum(P0 - 0.25 * LR * P0)), rel=1e-5)


def test_loss_scale_saves_what_float16_would_lose_and_changes_nothing_else():
  """L = c (p . x) in float16 with c = 3e-8, the half of the smallest number of float16."""
  x = np.array([0.5, -1.0, 2.0], np.float32)

  def faint(params, batch, key, step):
    product = jnp.sum(params["net"]["p"].astype(jnp.float16) * x.astype(np.float16))
    value = 3e-8 / 4 * product.astype(jnp.float32)
    return value, {"loss": means.mean(value)}

  def gradient(scale):
    tx, decays = optax.sgd(1.0), {"main": ema.half_life(8, batch_size=4)}
    state = make_init(lambda key: {"net": {"p": jnp.zeros(3)}}, tx, ("main",))(None)
    step = make_train_step(faint, tx, decays, loss_scale=scale)
    state, metrics = step(state, {}, jax.random.key(0))
    return -state.params["net"]["p"], metrics["loss"].total

  np.testing.assert_array_equal(gradient(1.0)[0], 0.0)
  np.testing.assert_allclose(gradient(2.0**15)[0], 3e-8 / 4 * x, rtol=1e-3)
  assert gradient(2.0**15)[1] == gradient(1.0)[1]
