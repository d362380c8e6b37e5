import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import tangent, trigflow
from helpers import exact
from helpers.exact import SIGMA_DATA


def points(n=64, d=3, seed=0):
  key_x, key_t = jax.random.split(jax.random.key(seed))
  t = jax.random.uniform(key_t, (n,), minval=0.01, maxval=np.pi / 2 - 0.01)
  return jax.random.normal(key_x, (n, d)), t


def net(x, t):
  """Nothing special about it."""
  return jnp.sin(3 * x) * t[:, None] + x**2


def f(x_t, t):
  return trigflow.denoise(x_t, SIGMA_DATA * net(x_t / SIGMA_DATA, t), t)


def test_the_tangent_of_the_true_consistency_function_vanishes():
  with jax.enable_x64(True):
    x, t = points()
    F, g = tangent.tangent(exact.F_consistency, x, t, exact.dxdt(x, t), sigma_data=SIGMA_DATA)
    assert float(jnp.max(jnp.abs(g))) < 1e-5
    np.testing.assert_allclose(F, exact.F_consistency(x / SIGMA_DATA, t))
    # And it is no accident: along another trajectory it does not.
    _, g = tangent.tangent(exact.F_consistency, x, t, 2 * exact.dxdt(x, t), sigma_data=SIGMA_DATA)
    assert float(jnp.max(jnp.abs(g))) > 0.1


def test_the_tangent_is_cos_t_times_the_derivative_of_f_by_finite_differences():
  with jax.enable_x64(True):
    x, t = points()
    dxdt = jnp.cos(5 * x)
    _, g = tangent.tangent(net, x, t, dxdt, sigma_data=SIGMA_DATA)
    h = 1e-6
    df = (f(x + h * dxdt, t + h) - f(x - h * dxdt, t - h)) / (2 * h)
    np.testing.assert_allclose(g, jnp.cos(t)[:, None] * df, rtol=1e-7, atol=1e-7)


def test_both_conventions_for_the_tangents_of_the_jvp_agree():
  x, t = points()
  dxdt = jnp.cos(5 * x)
  c, s = trigflow.cos_sin(t, x)
  # As printed in the paper: both tangents times sigma_data, and the result used as it is.
  F, dF = jax.jvp(net, (x / SIGMA_DATA, t), (c * s * dxdt, jnp.cos(t) * jnp.sin(t) * SIGMA_DATA))
  expected = -(c**2) * (SIGMA_DATA * F - dxdt) - (c * s * x + dF)
  _, g = tangent.tangent(net, x, t, dxdt, sigma_data=SIGMA_DATA)
  np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-5)


def test_without_warmup_only_velocity_matching_is_left():
  x, t = points()
  dxdt = jnp.cos(x)
  F, g = tangent.tangent(net, x, t, dxdt, sigma_data=SIGMA_DATA, warmup=0.0)
  np.testing.assert_allclose(g, -(jnp.cos(t)[:, None] ** 2) * (SIGMA_DATA * F - dxdt), rtol=1e-5)


def test_the_tangent_carries_no_gradient_but_F_does():
  x, t = points()

  def value(scale, pick):
    scaled = lambda x, t: scale * net(x, t)
    return jnp.sum(tangent.tangent(scaled, x, t, scale * x, sigma_data=SIGMA_DATA)[pick])

  assert float(jax.grad(value)(1.0, 1)) == 0.0
  assert float(jax.grad(value)(2.0, 0)) == pytest.approx(
    float(jnp.sum(net(x / SIGMA_DATA, t))), rel=1e-5
  )


def test_the_tangent_is_finite_at_both_ends():
  x = jnp.ones((2, 3))
  _, g = tangent.tangent(net, x, jnp.array([0.0, np.pi / 2]), x, sigma_data=SIGMA_DATA)
  assert bool(jnp.all(jnp.isfinite(g)))


@pytest.mark.parametrize("rms", [False, True])
def test_normalize_scales_each_sample_to_its_norm_over_norm_plus_c(rms):
  g = jax.random.normal(jax.random.key(0), (5, 4, 4, 2)) * jnp.array(
    [1e-6, 0.01, 1.0, 30.0, 1e4]
  ).reshape(5, 1, 1, 1)
  flat = np.asarray(g, np.float64).reshape(5, -1)
  length = np.linalg.norm(flat, axis=-1) / (np.sqrt(32) if rms else 1)
  np.testing.assert_allclose(tangent.norm(g, rms=rms), length, rtol=1e-5)
  normalized = np.asarray(tangent.normalize(g, 0.1, rms=rms)).reshape(5, -1)
  np.testing.assert_allclose(normalized, flat / (length + 0.1)[:, None], rtol=1e-5)
  assert bool(jnp.all(tangent.normalize(jnp.zeros((2, 3)), 0.1) == 0))


def below(gap):
  return lambda t: (1 - gap) * t


def error(estimator, origin=0.0, warmup=1.0):
  """The largest difference from the derivative itself, for a net that is curved in x and t."""
  x, t = points()
  args = (lambda x, t: net(x, t) + jnp.sin(4 * t)[:, None], x, t, jnp.cos(5 * x))
  keywords = dict(sigma_data=SIGMA_DATA, warmup=warmup, origin=origin)
  F, g = estimator(*args, **keywords)
  F_exact, g_exact = tangent.tangent(*args, **keywords)
  np.testing.assert_allclose(F, F_exact, rtol=1e-12)
  return float(jnp.max(jnp.abs(g - g_exact)))


@pytest.mark.parametrize(
  "make, order",
  [
    (tangent.central, 2),
    (tangent.semi_continuous, 2),
    (lambda h: tangent.discrete(below(h)), 1),
  ],
  ids=["central", "semi_continuous", "discrete"],
)
def test_estimators_go_to_the_exact_tangent_with_their_order(make, order):
  with jax.enable_x64(True):
    _, t = points()
    for origin in (0.0, 0.4 * t):
      errors = [error(make(h), origin) for h in (0.02, 0.01, 0.005)]
      slopes = np.log2(np.divide(errors[:-1], errors[1:]))
      np.testing.assert_allclose(slopes, order, atol=0.1)
      assert error(make(1e-5), origin) < 1e-3


@pytest.mark.parametrize(
  "make",
  [tangent.exact, tangent.central, tangent.semi_continuous, lambda: tangent.discrete(below(1e-6))],
  ids=["exact", "central", "semi_continuous", "discrete"],
)
@pytest.mark.parametrize("start", [0.0, 0.3])
def test_every_estimator_vanishes_on_the_true_consistency_function_of_a_segment(make, start):
  with jax.enable_x64(True):
    x, t = points()
    t = start + (1 - start / 1.6) * t
    origin = jnp.full_like(t, start)
    zero = jnp.zeros_like(t)

    def F(x, t):  # (cos x_t - f) / (sigma_data sin) with f the ODE's solution at the start
      c, s = trigflow.cos_sin(t - start, x)
      x_t = SIGMA_DATA * x
      return (c * x_t - exact.flow(x_t, t, zero + start)) / (SIGMA_DATA * s)

    keywords = dict(sigma_data=SIGMA_DATA, origin=origin)
    _, g = make()(F, x, t, exact.dxdt(x, t), **keywords)
    assert float(jnp.max(jnp.abs(g))) < 2e-5
    _, g = make()(F, x, t, 2 * exact.dxdt(x, t), **keywords)
    assert float(jnp.max(jnp.abs(g))) > 0.1


def test_the_tangent_of_a_segment_is_the_derivative_of_its_f_by_finite_differences():
  with jax.enable_x64(True):
    x, t = points()
    origin, dxdt, h = 0.6 * t, jnp.cos(5 * x), 1e-6
    f = lambda x_t, t: trigflow.step(x_t, SIGMA_DATA * net(x_t / SIGMA_DATA, t), t, origin)
    df = (f(x + h * dxdt, t + h) - f(x - h * dxdt, t - h)) / (2 * h)
    _, g = tangent.tangent(net, x, t, dxdt, sigma_data=SIGMA_DATA, origin=origin)
    np.testing.assert_allclose(g, jnp.cos(t - origin)[:, None] * df, rtol=1e-7, atol=1e-7)
    _, zero = tangent.tangent(net, x, t, dxdt, sigma_data=SIGMA_DATA, origin=jnp.zeros_like(t))
    _, plain = tangent.tangent(net, x, t, dxdt, sigma_data=SIGMA_DATA)
    np.testing.assert_array_equal(zero, plain)


def test_central_differences_are_in_float64_inside_a_jitted_float32_step():
  x, t = points()
  dxdt = jnp.cos(5 * x)

  @functools.partial(jax.jit, static_argnums=1)
  def step(scale, estimator):
    def value(scale):
      F, g = estimator(lambda x, t: scale * net(x, t), x, t, dxdt, sigma_data=SIGMA_DATA)
      return jnp.sum(F), g

    return jax.value_and_grad(value, has_aux=True)(scale)

  (_, g), grad = step(jnp.float32(1.5), tangent.central(1e-4))
  (_, expected), grad_exact = step(jnp.float32(1.5), tangent.exact())
  assert g.dtype == jnp.float32 and not jax.config.jax_enable_x64
  assert float(grad) == pytest.approx(float(grad_exact), rel=1e-6)
  np.testing.assert_allclose(g, expected, atol=3e-6)
  # The same step in float32 would be off by a thousand times as much.
  move = (1e-4 * jnp.cos(t) * jnp.sin(t))[:, None]
  F = lambda sign: 1.5 * net((x + sign * move * dxdt) / SIGMA_DATA, t + sign * move[:, 0])
  _, exact_dF = jax.jvp(
    lambda x, t: 1.5 * net(x, t),
    (x / SIGMA_DATA, t),
    (1e4 * move * dxdt / SIGMA_DATA, 1e4 * move[:, 0]),
  )
  assert float(jnp.max(jnp.abs((F(1) - F(-1)) / 2e-4 - exact_dF))) > 1e-3


def test_central_refuses_a_network_that_answers_in_float32():
  x, t = points(4)
  narrow = lambda x, t: net(x.astype(jnp.float32), t.astype(jnp.float32))
  with pytest.raises(ValueError, match="answered in float32.*JAX_ENABLE_X64=1"):
    tangent.central()(narrow, x, t, x, sigma_data=SIGMA_DATA)


@pytest.mark.parametrize("make", [tangent.central, tangent.semi_continuous])
def test_a_step_outside_0_to_1_is_refused(make):
  with pytest.raises(ValueError, match=r"in \(0, 1\), got h=1.5"):
    make(1.5)


def test_the_discrete_tangent_is_the_difference_of_f_over_the_sine_of_the_gap():
  with jax.enable_x64(True):
    x, t = points()
    dxdt = jnp.cos(5 * x)
    t_next = jnp.where(jnp.arange(len(t)) % 2 == 0, 0.0, 0.7 * t)  # half of them at 0
    x_next = trigflow.step(x, dxdt, t, t_next)
    sine = jnp.sin(t - t_next)[:, None]
    delta = (f(x, t) - f(x_next, t_next)) / sine
    estimator = tangent.discrete(lambda t: t_next)
    F, g = estimator(net, x, t, dxdt, sigma_data=SIGMA_DATA)
    np.testing.assert_allclose(g, jnp.cos(t)[:, None] * delta, rtol=1e-9, atol=1e-12)
    # Without warm-up: its first part alone.
    _, g = estimator(net, x, t, dxdt, sigma_data=SIGMA_DATA, warmup=0.0)
    expected = -jnp.cos(t)[:, None] * jnp.cos(t_next)[:, None] * (SIGMA_DATA * F - dxdt)
    np.testing.assert_allclose(g, expected, rtol=1e-9)


def test_the_discrete_tangent_needs_no_network_at_0_and_stops_at_a_segments_start():
  x, t = points()
  log_net = lambda x, t: x * jnp.log(t)[:, None]  # infinite at t = 0
  _, g = tangent.discrete(jnp.zeros_like)(log_net, x, t, x, sigma_data=SIGMA_DATA)
  assert bool(jnp.all(jnp.isfinite(g)))
  seen = []
  record = lambda x, t: seen.append(t) or net(x, t)
  origin = 0.9 * t
  _, g = tangent.discrete(below(0.5))(record, x, t, x, sigma_data=SIGMA_DATA, origin=origin)
  F = net(x / SIGMA_DATA, t)
  # The step ends where f is x, so r and F at t' play no part.
  expected = -jnp.cos(t - origin)[:, None] * (SIGMA_DATA * F - x)
  np.testing.assert_allclose(g, expected, rtol=1e-5)
  np.testing.assert_array_equal(seen[1], t)


@pytest.mark.parametrize(
  "estimator", [tangent.central(), tangent.semi_continuous(), tangent.discrete(below(0.1))]
)
def test_the_g_of_an_estimator_carries_no_gradient_and_is_finite_at_both_ends(estimator):
  x, t = jnp.ones((2, 3)), jnp.array([1e-30, np.pi / 2])

  def value(scale):
    _, g = estimator(lambda x, t: scale * net(x, t), x, t, scale * x, sigma_data=SIGMA_DATA)
    return jnp.sum(g)

  value, grad = jax.value_and_grad(value)(1.3)
  assert np.isfinite(value) and float(grad) == 0
