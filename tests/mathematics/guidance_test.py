import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import guidance, samplers, times, trigflow
from helpers.exact import SIGMA_DATA

MEANS, STD = jnp.array([-0.4, 0.7]), 0.2  # of the classes
STD_ALL = 0.6  # without a class: a wider Gaussian around 0
T = jnp.array([0.2, 0.7, 1.1, 1.5])
X = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
LABEL = jnp.array([0, 1, 1, 0])


def moments(label, t):
  """Mean and variance of x_t for x_0 of a class, or of none."""
  has_class = label >= 0
  mean = jnp.where(has_class, MEANS[jnp.maximum(label, 0)], 0.0)
  std = jnp.where(has_class, STD, STD_ALL)
  return jnp.cos(t) * mean, jnp.cos(t) ** 2 * std**2 + jnp.sin(t) ** 2 * SIGMA_DATA**2


def gaussian(params, x, t, cond, key):
  """F of the true diffusion model, by its score."""
  assert set(cond) == {"label"}
  mean, variance = moments(cond["label"], t)
  x_t = SIGMA_DATA * x
  score = -(x_t - mean[:, None]) / variance[:, None]
  c, s = trigflow.cos_sin(t, x)
  eps = -(SIGMA_DATA**2) * s * score  # the inverse of trigflow.score
  return (eps - s * x_t) / c / SIGMA_DATA


def score_of(net, x_t, t, cond):
  F = net({}, x_t / SIGMA_DATA, t, cond, None)
  return trigflow.score(x_t, SIGMA_DATA * F, t, sigma_data=SIGMA_DATA)


def test_classifier_free_guidance_has_the_score_of_the_product_of_powers():
  # p(x | class)^w p(x)^(1 - w) of two Gaussians is a Gaussian of precision w / a + (1 - w) / b.
  for w in (0.0, 1.0, 1.7, 3.0):
    got = score_of(guidance.classifier_free(gaussian, w), X, T, {"label": LABEL})
    (mean, a), (_, b) = moments(LABEL, T), moments(jnp.full(4, -1), T)
    precision = w / a + (1 - w) / b
    centre = w * mean / a / precision
    np.testing.assert_allclose(
      got, -precision[:, None] * (X - centre[:, None]), rtol=1e-3, atol=1e-3
    )


def test_guiding_F_is_guiding_the_denoiser():
  D = lambda net, label: trigflow.denoise(
    X, SIGMA_DATA * net({}, X / SIGMA_DATA, T, {"label": label}, None), T
  )
  guided = D(guidance.classifier_free(gaussian, 2.5), LABEL)
  without = D(gaussian, jnp.full(4, -1))
  np.testing.assert_allclose(guided, without + 2.5 * (D(gaussian, LABEL) - without), atol=1e-5)


def test_a_scale_per_sample_is_read_from_cond_and_hidden_from_the_network():
  scales = jnp.array([1.0, 1.5, 2.0, 4.0])
  got = guidance.classifier_free(gaussian)({}, X, T, {"label": LABEL, "guidance": scales}, None)
  for i, w in enumerate(scales):
    one = guidance.classifier_free(gaussian, float(w))({}, X, T, {"label": LABEL}, None)
    np.testing.assert_allclose(got[i], one[i], rtol=1e-5)


def test_a_scale_of_one_is_the_network_itself_and_evaluates_it_once():
  calls = []

  def counting(params, x, t, cond, key):
    calls.append(cond["label"])
    return gaussian(params, x, t, cond, key)

  got = guidance.classifier_free(counting, 1.0)({}, X, T, {"label": LABEL}, None)
  assert len(calls) == 1
  np.testing.assert_array_equal(got, gaussian({}, X, T, {"label": LABEL}, None))


def test_autoguidance_extrapolates_from_the_guide_to_the_network():
  net = lambda params, x, t, cond, key: params * x
  key = jax.random.key(0)
  deterministic = lambda params, x, t, cond, key: params * x if key is None else jnp.nan * x
  guided = guidance.autoguidance(net, deterministic, 3.0, 2.0)
  np.testing.assert_allclose(guided(5.0, X, T, {}, key), (3 + 2 * (5 - 3)) * X, rtol=1e-6)
  by_cond = guidance.autoguidance(net, deterministic, 3.0)
  got = by_cond(5.0, X, T, {"guidance": T}, key)
  np.testing.assert_allclose(got, (3 + T * 2)[:, None] * X, rtol=1e-6)


def test_an_interval_guides_each_sample_by_its_own_time():
  plain, guided = (lambda p, x, t, c, k: 1.0 * x), (lambda p, x, t, c, k: 2.0 * x)
  net = jax.jit(guidance.interval(guided, plain, 0.7, 1.1), static_argnums=4)
  t = jnp.array([0.2, 0.7, 1.1, 1.5])  # both ends are inside
  np.testing.assert_array_equal(net({}, X, t, {}, None), jnp.array([[1.0], [2], [2], [1]]) * X)


def test_outside_of_the_interval_the_guided_network_is_not_evaluated():
  count = []

  def guided(params, x, t, cond, key):
    jax.debug.callback(lambda: count.append(1))
    return x

  net = guidance.interval(guided, lambda params, x, t, cond, key: x, 0.5, 1.2)
  grid = times.ode_times(18, sigma_data=SIGMA_DATA)
  jax.block_until_ready(
    samplers.ddim(net, {}, jax.random.key(0), (2, 2), grid, sigma_data=SIGMA_DATA)
  )
  jax.effects_barrier()
  assert len(count) == np.sum((grid >= 0.5) & (grid <= 1.2)) > 0


def test_guided_networks_sample_differentiate_and_jit():
  net = guidance.interval(guidance.classifier_free(gaussian, 2.0), gaussian, 0.3, 1.3)
  F = lambda x, t: net({}, x, t, {"label": LABEL}, None)
  value, tangent = jax.jit(lambda x, t: jax.jvp(F, (x, t), (x, jnp.ones_like(t))))(X, T)
  h = 1e-2
  difference = (F((1 + h) * X, T + h) - F((1 - h) * X, T - h)) / (2 * h)
  np.testing.assert_allclose(tangent, difference, rtol=2e-2, atol=2e-2)
  assert bool(jnp.all(jnp.isfinite(jax.grad(lambda x: jnp.sum(F(x, T) ** 2))(X))))


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: guidance.classifier_free(gaussian, 2.0)({}, X, T, {}, None), 'needs cond."label"'),
    (lambda: guidance.classifier_free(gaussian)({}, X, T, {"label": LABEL}, None),
     'reads cond."guidance"'),
    (lambda: guidance.autoguidance(gaussian, gaussian, {})({}, X, T, {}, None),
     'reads cond."guidance"'),
    (lambda: guidance.classifier_free(gaussian, float("nan")), "must be finite"),
    (lambda: guidance.interval(gaussian, gaussian, 0.3, 50.0), "t_low < t_high.*sigma_to_t"),
    (lambda: guidance.interval(gaussian, gaussian, 0.9, 0.3), "t_low < t_high"),
  ],
)  # fmt: skip
def test_bad_guidance_is_refused_with_advice(make, message):
  with pytest.raises(ValueError, match=message):
    make()
