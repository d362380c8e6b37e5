import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import times, trigflow
from cmjax.losses import continuous, continuous_2023
from cmjax.types import Network
from helpers import exact
from helpers.exact import SIGMA_DATA, S

D = 3
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
TEACHER = Network(lambda key: jnp.ones(()), lambda p, x, t, cond, key: exact.F_diffusion(x, t))
TEACHER_VELOCITY = continuous.teacher_velocity(TEACHER, jnp.ones(()), sigma_data=SIGMA_DATA)
ZERO = Network(lambda key: {}, lambda p, x, t, cond, key: 0 * x)


def curved(p, x, t, cond, key):
  """F of a network that is nothing special."""
  return p * (jnp.sin(3 * x) * t[:, None] + x**2)


def true_consistency(p, x, t, cond, key):
  """F, times p, of f(x, sigma) = x sqrt((s^2 + sigma_min^2) / (s^2 + sigma^2))."""
  sigma = SIGMA_DATA * jnp.tan(t)[:, None]
  x_sigma = SIGMA_DATA * x / jnp.cos(t)[:, None]
  f = x_sigma * jnp.sqrt((S**2 + SIGMA_MIN**2) / (S**2 + sigma**2))
  gap = sigma - SIGMA_MIN
  c_skip = SIGMA_DATA**2 / (gap**2 + SIGMA_DATA**2)
  c_out = SIGMA_DATA * gap / jnp.sqrt(sigma**2 + SIGMA_DATA**2)
  return p * (c_skip * x_sigma - f) / c_out


def batch(n=64):
  return {"image": S * jax.random.normal(jax.random.key(7), (n, D))}


def network(apply):
  return Network(lambda key: jnp.ones(()), apply)


def pseudo_huber(a, b, c=0.3):
  return jnp.sqrt(jnp.sum((a - b) ** 2, -1) + c**2) - c


def squared_l2(a, b):
  return jnp.sum((a - b) ** 2, -1)


def draws(key, x0):
  """sigma, dsigma/du, eps of a loss's key."""
  key_t, key_z, _ = jax.random.split(key, 3)
  u = jax.random.uniform(key_t, (len(x0),))
  low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
  root = low + u * (high - low)
  z = trigflow.noise(key_z, x0.shape, sigma_data=SIGMA_DATA)
  return root**RHO, RHO * root ** (RHO - 1) * (high - low), z / SIGMA_DATA


def f_of(apply, p, x, sigma):
  """CM's f from its own formulas."""
  t, s = jnp.arctan(sigma / SIGMA_DATA), sigma[:, None]
  F = apply(p, x / jnp.sqrt(s**2 + SIGMA_DATA**2), t, {}, None)
  c_skip = SIGMA_DATA**2 / ((s - SIGMA_MIN) ** 2 + SIGMA_DATA**2)
  c_out = SIGMA_DATA * (s - SIGMA_MIN) / jnp.sqrt(s**2 + SIGMA_DATA**2)
  return c_skip * x - c_out * F


def step_up(kind, x0, eps, x, sigma, h):
  """x at sigma + h on the trajectory through x at sigma."""
  if kind == "ct":
    return x0 + (sigma + h)[:, None] * eps
  return x * jnp.sqrt((S**2 + (sigma + h) ** 2) / (S**2 + sigma**2))[:, None]


@pytest.mark.parametrize("kind", ["ct", "cd"])
@pytest.mark.parametrize("distance", ["squared_l2", pseudo_huber])
def test_the_gradient_is_the_limit_of_the_discrete_gradient_over_the_step(kind, distance):
  """Theorems 5 and 6, with the gradient of CT and CD by hand."""
  with jax.enable_x64(True):
    x0, key = batch()["image"], jax.random.key(1)
    sigma, _, eps = draws(key, x0)
    x, p = x0 + sigma[:, None] * eps, jnp.float64(0.7)
    d = squared_l2 if distance == "squared_l2" else distance

    def discrete(p, h):
      h = h * sigma
      x_up = step_up(kind, x0, eps, x, sigma, h)
      target = jax.lax.stop_gradient(f_of(curved, p, x, sigma))
      return jnp.mean(d(f_of(curved, p, x_up, sigma + h), target) / h)

    velocity = continuous.data_velocity() if kind == "ct" else TEACHER_VELOCITY
    loss_fn = continuous_2023.loss(network(curved), velocity, distance, sigma_data=SIGMA_DATA)
    limit = jax.jit(jax.grad(lambda p: loss_fn({"net": p}, {"image": x0}, key, 0)[0]))(p)
    grad = jax.jit(jax.grad(discrete))
    errors = [abs(float(grad(p, h) - limit)) for h in (1e-3, 5e-4, 2.5e-4)]
    assert abs(float(limit)) > 0.02 and errors[-1] < 5e-3 * abs(float(limit))
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 1, atol=0.1)


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("distance", ["squared_l2", pseudo_huber])
def test_distillation_along_the_exact_ode_leaves_the_true_model_at_rest(stop_gradient, distance):
  with jax.enable_x64(True):
    loss_fn = continuous_2023.loss(
      network(true_consistency), TEACHER_VELOCITY, distance,
      sigma_data=SIGMA_DATA, stop_gradient=stop_gradient,
    )  # fmt: skip
    grad = jax.jit(jax.grad(lambda p: loss_fn({"net": p}, batch(), jax.random.key(1), 0)[0]))
    metrics = jax.jit(lambda p: loss_fn({"net": p}, batch(), jax.random.key(1), 0)[1])
    norm = lambda p: metrics(p)["tangent_norm"].total
    at_rest, below, above = (float(grad(jnp.float64(p))) for p in (1.0, 0.9, 1.1))
    assert abs(at_rest) < 1e-5 and below < -1e-3 and above > 1e-3
    assert float(norm(1.0)) < 1e-4 and float(norm(1.1)) > 1e-1


def test_the_forms_of_the_paper_by_hand_for_a_network_of_zeros():
  """F = 0 leaves f = c_skip x, of which everything is known; in NumPy's float64."""
  x0, key = batch()["image"], jax.random.key(1)
  sigma, speed, eps = (np.asarray(a, np.float64) for a in draws(key, x0))
  x0 = np.asarray(x0, np.float64)
  s = sigma[:, None]
  x = x0 + s * eps
  gap = s - SIGMA_MIN
  c_skip = SIGMA_DATA**2 / (gap**2 + SIGMA_DATA**2)
  f, v = c_skip * x, -2 * gap * c_skip**2 / SIGMA_DATA**2 * x + c_skip * eps

  def value(distance="squared_l2", **options):
    loss_fn = continuous_2023.loss(
      ZERO, continuous.data_velocity(), distance, sigma_data=SIGMA_DATA, **options
    )
    return float(loss_fn({"net": {}}, {"image": jnp.float32(x0)}, key, 0)[0])

  squares = np.sum(v**2, -1)
  through = dict(stop_gradient=False)
  assert value(**through) == pytest.approx(np.mean(speed * squares), rel=1e-3)  # theorem 3
  assert value(squared_l2, **through) == pytest.approx(np.mean(speed * squares), rel=1e-3)
  # Half of v^T G v, and G = 1 / c for the pseudo-Huber distance.
  expected = np.mean(speed * squares) / 2 / 0.3
  assert value(pseudo_huber, **through) == pytest.approx(expected, rel=1e-3)
  assert value("l1", **through) == pytest.approx(np.mean(np.sum(abs(v), -1)), rel=1e-3)  # 4
  assert value(norm_form=True, **through) == pytest.approx(np.mean(np.sqrt(squares)), rel=1e-3)
  expected = np.mean(np.sum(f * v, -1))
  assert value() == pytest.approx(2 * expected, rel=1e-3)  # theorem 6
  assert value(pseudo_huber) == pytest.approx(expected / 0.3, rel=1e-3)


def test_theorem_3_is_what_theorem_5_has_between_f_and_v_with_v_on_both_sides():
  """1/2 v^T G v dsigma/du against f^T H v: at f = v they differ by the factor alone."""
  f, v = jax.random.normal(jax.random.key(0), (2, 5, D))
  H = lambda a: continuous_2023.hessian_product(pseudo_huber, f, a)
  np.testing.assert_allclose(H(v), v / 0.3, rtol=1e-4)
  # A Hessian is symmetric, and theorem 3's own is half of the second derivative along v.
  np.testing.assert_allclose(jnp.sum(f * H(v), -1), jnp.sum(v * H(f), -1), rtol=1e-4)
  h = 1e-2
  np.testing.assert_allclose(
    pseudo_huber(f, f + h * v) / h**2, jnp.sum(v * H(v), -1) / 2, rtol=5e-3
  )


def test_noise_levels_are_those_of_the_karras_grid_at_uniform_places():
  u = jnp.linspace(0, 1, 18)
  sigma, speed = continuous_2023._karras(u, SIGMA_MIN, SIGMA_MAX, RHO)
  np.testing.assert_allclose(sigma[::-1], times.karras_sigmas(18), rtol=1e-5)
  _, derivative = jax.jvp(
    lambda u: continuous_2023._karras(u, SIGMA_MIN, SIGMA_MAX, RHO)[0], (u,), (jnp.ones_like(u),)
  )
  np.testing.assert_allclose(speed, derivative, rtol=1e-5)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_f_and_v_share_one_call_and_one_key_and_metrics_are_binned(stop_gradient):
  keys = []

  def apply(p, x, t, cond, key):
    keys.append(key)
    return curved(p, x, t, cond, key)

  loss_fn = continuous_2023.loss(
    network(apply), continuous.data_velocity(), sigma_data=SIGMA_DATA, stop_gradient=stop_gradient
  )
  _, metrics = loss_fn({"net": jnp.ones(())}, batch(), jax.random.key(0), 0)
  assert len(keys) == 1 and keys[0] is not None
  by_bin = [m for name, m in metrics.items() if name.startswith("tangent_norm/")]
  assert sum(float(m.count) for m in by_bin) == 64


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(distance="l2"), "Unknown distance 'l2'. Choose from: squared_l2, l1, or a function"),
    (dict(distance="l1"), "no second derivative.*stop_gradient=False"),
    (dict(norm_form=True), "norm_form=True is for"),
    (dict(norm_form=True, stop_gradient=False, distance="l1"), "norm_form=True is for"),
  ],
)
def test_what_has_no_theorem_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    continuous_2023.loss(ZERO, continuous.data_velocity(), sigma_data=SIGMA_DATA, **options)
