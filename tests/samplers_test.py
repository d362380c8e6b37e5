import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import samplers, times

import exact
from exact import SIGMA_DATA, S

CONSISTENCY = lambda params, x, t, cond, key: exact.F_consistency(x, t)
DIFFUSION = lambda params, x, t, cond, key: exact.F_diffusion(x, t)


def arbitrary(params, x, t, cond, key):
  """A network of no particular model."""
  return jnp.sin(3 * x + t[:, None]) + 0.5 * x * t[:, None]


def edm_heun(D, x, sigmas):
  """Algorithm 1 of Karras et al. 2022 without churn, in sigma: written from the paper."""
  for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
    d = (x - D(x, sigma)) / sigma
    x_next = x + (following - sigma) * d
    if following > 0:
      d_next = (x_next - D(x_next, following)) / following
      x_next = x + (following - sigma) * (d + d_next) / 2
    x = x_next
  return x


def test_heun_is_edms_heun_in_sigma_for_an_arbitrary_network():
  with jax.enable_x64(True):
    n, shape, key = 18, (5, 4), jax.random.key(0)
    grid = times.ode_times(n, sigma_data=SIGMA_DATA)
    ours = samplers.heun(arbitrary, {}, key, shape, grid, sigma_data=SIGMA_DATA)

    def D(x, sigma):  # the denoiser of the same network, on EDM's x = x_t / cos(t)
      t = np.arctan2(sigma, SIGMA_DATA)
      x_t = np.cos(t) * x
      F = arbitrary({}, x_t / SIGMA_DATA, jnp.full(len(x), t), {}, None)
      return np.cos(t) * x_t - np.sin(t) * SIGMA_DATA * F

    start = SIGMA_DATA * jax.random.normal(key, shape, jnp.float64) / np.cos(grid[0])
    sigmas = np.append(times.karras_sigmas(n), 0.0)
    theirs = edm_heun(D, start, sigmas)
    assert float(jnp.max(jnp.abs(theirs))) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler, order", [(samplers.ddim, 1), (samplers.heun, 2)])
def test_ode_samplers_converge_at_their_order_to_the_exact_flow(sampler, order):
  with jax.enable_x64(True):
    key, shape = jax.random.key(0), (3, 2)
    x = SIGMA_DATA * jax.random.normal(key, shape, jnp.float64)
    errors = []
    for n in (40, 80, 160):
      # Uniform angles, whose first is pi/2 less a little: cos(t) stands in a denominator.
      grid = np.append(np.linspace(1.5, 0.02, n), 0.0)
      last = jnp.full(3, 0.02)
      # All samplers end with the same step, to the posterior mean.
      truth = exact.posterior_mean(exact.flow(x, jnp.full(3, 1.5), last), last)
      got = sampler(DIFFUSION, {}, key, shape, grid, sigma_data=SIGMA_DATA)
      errors.append(float(jnp.max(jnp.abs(got - truth))))
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert slopes[-1] == pytest.approx(order, abs=0.2), (errors, slopes)


def test_one_consistency_step_of_the_exact_model_is_the_exact_flow():
  key, shape = jax.random.key(0), (4, 3)
  grid = times.consistency_times(sigma_data=SIGMA_DATA)
  got = samplers.consistency(CONSISTENCY, {}, key, shape, grid, sigma_data=SIGMA_DATA)
  # As the paper starts, from sigma_data n: the same to 2e-5.
  x = SIGMA_DATA * jax.random.normal(jax.random.split(key, 1)[0], shape)
  truth = exact.consistency(x, jnp.full(4, grid[0]))
  np.testing.assert_allclose(got, truth, atol=2e-4 * S)


def test_more_consistency_steps_with_the_exact_model_keep_the_variance_of_the_data():
  for mid in ((1.1,), (1.3, 0.9, 0.4)):
    grid = times.consistency_times(*mid, sigma_data=SIGMA_DATA)
    x0 = samplers.consistency(
      CONSISTENCY, {}, jax.random.key(1), (200_000, 1), grid, sigma_data=SIGMA_DATA
    )
    assert float(jnp.std(x0)) == pytest.approx(S, rel=0.01)


def test_the_number_of_network_evaluations_is_as_promised():
  count = []

  def counting(params, x, t, cond, key):
    jax.debug.callback(lambda: count.append(1))
    return x

  draw = lambda sampler, grid: jax.block_until_ready(
    sampler(counting, {}, jax.random.key(0), (2, 2), grid, sigma_data=SIGMA_DATA)
  )
  for sampler, grid, nfe in (
    (samplers.heun, times.ode_times(18, sigma_data=SIGMA_DATA), 35),
    (samplers.ddim, times.ode_times(10, sigma_data=SIGMA_DATA), 10),
    (samplers.consistency, times.consistency_times(1.1, sigma_data=SIGMA_DATA), 2),
    (samplers.consistency, times.consistency_times(sigma_data=SIGMA_DATA), 1),
  ):
    count.clear()
    draw(sampler, grid)
    jax.effects_barrier()
    assert len(count) == nfe


def test_conditions_and_parameters_reach_the_network():
  net = lambda params, x, t, cond, key: params * x * cond["label"][:, None]
  grid = [1.2, 0.0]
  key, label = jax.random.key(0), jnp.array([0.0, 1.0])
  x = samplers.ddim(net, 2.0, key, (2, 3), grid, sigma_data=SIGMA_DATA, cond={"label": label})
  start = SIGMA_DATA * jax.random.normal(key, (2, 3))
  factor = np.cos(1.2) - np.sin(1.2) * 2.0 * np.array([[0.0], [1.0]])
  np.testing.assert_allclose(x, factor * start, rtol=1e-5)


@pytest.mark.parametrize(
  "sampler, grid, message",
  [
    (samplers.heun, [1.0, 1.2, 0.0], "must be a decreasing sequence"),
    (samplers.heun, [1.2, 0.5], "must end in 0"),
    (samplers.ddim, [0.0], "must end in 0"),
    (samplers.consistency, [80.0, 1.1], "angles in \\[0, pi/2\\].*sigma_to_t"),
    (samplers.consistency, [1.2, 0.0], "nothing to do at t = 0"),
    (samplers.consistency, [], "must be a decreasing sequence"),
  ],
)
def test_bad_times_are_refused_with_advice(sampler, grid, message):
  with pytest.raises(ValueError, match=message):
    sampler(DIFFUSION, {}, jax.random.key(0), (2, 2), grid, sigma_data=SIGMA_DATA)
