import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import samplers, times, trigflow
from cmjax.samplers import conventions
from helpers import exact
from helpers.exact import SIGMA_DATA, S

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


def edm_stochastic(D, x, sigmas, eps, *, S_churn, S_min, S_max, S_noise):
  """Algorithm 2 of Karras et al. 2022, in sigma: written from the paper."""
  n = len(sigmas) - 1
  for i in range(n):
    gamma = min(S_churn / n, np.sqrt(2) - 1) if S_min <= sigmas[i] <= S_max else 0.0
    sigma_hat = sigmas[i] + gamma * sigmas[i]
    x_hat = x + np.sqrt(sigma_hat**2 - sigmas[i] ** 2) * S_noise * eps[i]
    d = (x_hat - D(x_hat, sigma_hat)) / sigma_hat
    x = x_hat + (sigmas[i + 1] - sigma_hat) * d
    if sigmas[i + 1] > 0:
      d_next = (x - D(x, sigmas[i + 1])) / sigmas[i + 1]
      x = x_hat + (sigmas[i + 1] - sigma_hat) * (d + d_next) / 2
  return x


def dpmpp_2m_in_sigma(D, x, sigmas):
  """DPM-Solver++(2M) of Lu et al. 2022, alpha = 1, lambda = -log sigma; first order at the ends."""
  lam = lambda sigma: -np.log(sigma)
  before = None
  for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
    D_i = D(x, sigma)
    if following == 0:
      return D_i
    h = lam(following) - lam(sigma)
    mixed = D_i
    if before is not None:
      ratio = (lam(sigma) - lam(sigmas[i - 1])) / h
      mixed = (1 + 1 / (2 * ratio)) * D_i - 1 / (2 * ratio) * before
    x = following / sigma * x - np.expm1(-h) * mixed
    before = D_i


def arbitrary_D(x, sigma):
  """The denoiser of the same network, on EDM's x = x_t / cos(t)."""
  t = np.arctan2(sigma, SIGMA_DATA)
  x_t = np.cos(t) * x
  F = arbitrary({}, x_t / SIGMA_DATA, jnp.full(len(x), t), {}, None)
  return np.cos(t) * x_t - np.sin(t) * SIGMA_DATA * F


def test_heun_is_edms_heun_in_sigma_for_an_arbitrary_network():
  with jax.enable_x64(True):
    n, shape, key = 18, (5, 4), jax.random.key(0)
    grid = times.ode_times(n, sigma_data=SIGMA_DATA)
    ours = samplers.heun(arbitrary, {}, key, shape, grid, sigma_data=SIGMA_DATA)

    start = SIGMA_DATA * jax.random.normal(key, shape, jnp.float64) / np.cos(grid[0])
    sigmas = np.append(times.karras_sigmas(n), 0.0)
    theirs = edm_heun(arbitrary_D, start, sigmas)
    assert float(jnp.max(jnp.abs(theirs))) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


def test_dpmpp_2m_is_the_solver_in_log_snr_for_an_arbitrary_network():
  with jax.enable_x64(True):
    key, shape, n = jax.random.key(0), (5, 4), 12
    grid = times.ode_times(n, sigma_data=SIGMA_DATA)
    ours = samplers.dpmpp_2m(arbitrary, {}, key, shape, grid, sigma_data=SIGMA_DATA)
    start = SIGMA_DATA * jax.random.normal(key, shape, jnp.float64) / np.cos(grid[0])
    theirs = dpmpp_2m_in_sigma(arbitrary_D, start, np.append(times.karras_sigmas(n), 0.0))
    assert float(jnp.max(jnp.abs(theirs))) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_dpmpp_2m_with_one_or_two_steps_is_ddim():
  key, shape = jax.random.key(0), (5, 4)
  for grid in ([1.5, 0.0], [1.5, 0.8, 0.0]):
    ours = samplers.dpmpp_2m(arbitrary, {}, key, shape, grid, sigma_data=SIGMA_DATA)
    ddim = samplers.ddim(arbitrary, {}, key, shape, grid, sigma_data=SIGMA_DATA)
    np.testing.assert_allclose(ours, ddim, atol=1e-6)


def test_stochastic_is_edms_algorithm_2_in_sigma_given_the_same_noise():
  with jax.enable_x64(True):
    n, shape, key = 10, (5, 4), jax.random.key(0)
    churn = dict(S_churn=3.0, S_min=0.05, S_max=50.0, S_noise=1.1)
    grid = times.ode_times(n, sigma_data=SIGMA_DATA)
    ours = samplers.stochastic(arbitrary, {}, key, shape, grid, sigma_data=SIGMA_DATA, **churn)
    keys = jax.random.split(jax.random.fold_in(key, 1), n)
    eps = [jax.random.normal(k, shape, jnp.float64) for k in keys]
    start = SIGMA_DATA * jax.random.normal(key, shape, jnp.float64) / np.cos(grid[0])
    sigmas = np.append(times.karras_sigmas(n), 0.0)
    theirs = edm_stochastic(arbitrary_D, start, sigmas, eps, **churn)
    heun = edm_heun(arbitrary_D, start, sigmas)
    assert float(jnp.max(jnp.abs(theirs - heun))) > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_stochastic_without_churn_is_heun():
  key, shape = jax.random.key(3), (5, 4)
  grid = times.ode_times(7, sigma_data=SIGMA_DATA)
  for kwargs in (dict(S_churn=0.0), dict(S_min=100.0, S_max=200.0)):
    ours = samplers.stochastic(arbitrary, {}, key, shape, grid, sigma_data=SIGMA_DATA, **kwargs)
    heun = samplers.heun(arbitrary, {}, key, shape, grid, sigma_data=SIGMA_DATA)
    np.testing.assert_allclose(ours, heun, atol=1e-6)


@pytest.mark.heavy
def test_churn_keeps_the_variance_of_the_data():
  n = 100_000
  key, grid = jax.random.key(1), times.ode_times(256, sigma_data=SIGMA_DATA)
  x0 = samplers.stochastic(
    DIFFUSION, {}, key, (n, 1), grid, sigma_data=SIGMA_DATA, S_churn=20.0, S_noise=1.0
  )
  # The standard error of a Gaussian's std, relative, is 1 / sqrt(2 n) = 0.22 %; the discretisation
  # adds 0.13 % by the recursion of the variance (2 % with 64 steps).
  assert float(jnp.std(x0)) == pytest.approx(S, rel=4 / np.sqrt(2 * n))
  start = SIGMA_DATA * jax.random.normal(key, (n, 1))
  assert abs(float(jnp.corrcoef(start[:, 0], x0[:, 0])[0, 1])) < 0.2  # the churn forgets the start


@pytest.mark.parametrize(
  "sampler, order", [(samplers.ddim, 1), (samplers.heun, 2), (samplers.dpmpp_2m, 2)]
)
def test_ode_samplers_converge_at_their_order_to_the_exact_flow(sampler, order):
  with jax.enable_x64(True):
    key, shape = jax.random.key(0), (3, 2)
    x = SIGMA_DATA * jax.random.normal(key, shape, jnp.float64)
    errors = []
    for n in (80, 160):
      # Uniform angles, whose first is pi/2 less a little: cos(t) stands in a denominator.
      grid = np.append(np.linspace(1.5, 0.02, n), 0.0)
      last = jnp.full(3, 0.02)
      # All samplers end with the same step, to the posterior mean.
      truth = exact.posterior_mean(exact.flow(x, jnp.full(3, 1.5), last), last)
      got = sampler(DIFFUSION, {}, key, shape, grid, sigma_data=SIGMA_DATA)
      errors.append(float(jnp.max(jnp.abs(got - truth))))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2), errors


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


def test_consistency_adds_noise_of_variance_sigma_squared_less_sigma_min_squared():
  identity = lambda params, x, t, cond, key: -x * jnp.tan(t)[:, None]  # f = x_t / cos t: all noise
  sigmas, sigma_min = (3.0, 1.0, 0.6), 0.5
  grid = conventions.consistency_times_from_sigmas(*sigmas, sigma_data=SIGMA_DATA)
  for eps, variance in ((0.0, 9 + 1 + 0.36), (sigma_min, 9 + 0.75 + 0.11)):
    x0 = samplers.consistency(
      identity, {}, jax.random.key(0), (100_000, 1), grid, sigma_data=SIGMA_DATA, sigma_min=eps
    )
    assert float(jnp.var(x0)) == pytest.approx(variance, rel=4 * np.sqrt(2 / 100_000))


def test_a_last_step_at_sigma_min_adds_no_noise():
  seen = lambda params, x, t, cond, key: -x * jnp.tan(t)[:, None]
  draw = lambda *sigmas: samplers.consistency(
    seen, {}, jax.random.key(0), (4, 3),
    conventions.consistency_times_from_sigmas(*sigmas, sigma_data=SIGMA_DATA),
    sigma_data=SIGMA_DATA, sigma_min=0.002,
  )  # fmt: skip
  key = jax.random.split(jax.random.key(0), 2)[0]
  np.testing.assert_allclose(draw(5.0, 0.002), 5 * jax.random.normal(key, (4, 3)), rtol=1e-4)
  with pytest.raises(ValueError, match="sigma_min=0.002 must be in .*drop the steps below"):
    draw(5.0, 0.001)


def test_segments_with_the_exact_flow_are_the_exact_flow():
  def jump(params, x, t, cond, key):
    # F of x_s = cos(t - s) x_t - sin(t - s) sigma_data F for the true flow from t to s.
    s = cond["segment"]
    target = exact.flow(SIGMA_DATA * x, t, s)
    c, sine = (f(t - s)[:, None] for f in (jnp.cos, jnp.sin))
    return (c * SIGMA_DATA * x - target) / (SIGMA_DATA * sine)

  key, shape = jax.random.key(0), (4, 3)
  x = SIGMA_DATA * jax.random.normal(key, shape)
  for num in (1, 2, 5):
    grid = times.segment_times(num, sigma_data=SIGMA_DATA)
    got = samplers.segments(jump, {}, key, shape, grid, sigma_data=SIGMA_DATA)
    np.testing.assert_allclose(got, exact.consistency(x, jnp.full(4, grid[0])), rtol=1e-4)


def test_segments_tell_the_network_the_lower_end_and_keep_other_conditions():
  net = lambda params, x, t, cond, key: (
    jnp.zeros_like(x) + (10 * cond["label"] + cond["segment"])[:, None]
  )
  key, label = jax.random.key(0), jnp.array([0.0, 1.0])
  got = samplers.segments(
    net, {}, key, (2, 3), [1.2, 0.7, 0.0], sigma_data=SIGMA_DATA, cond={"label": label}
  )
  x = SIGMA_DATA * jax.random.normal(key, (2, 3))
  for angle, s in ((0.5, 0.7), (0.7, 0.0)):
    x = np.cos(angle) * x - np.sin(angle) * SIGMA_DATA * (10 * label + s)[:, None]
  np.testing.assert_allclose(got, x, rtol=1e-5)
  with pytest.raises(ValueError, match="set by the sampler"):
    samplers.segments(
      net, {}, key, (2, 3), [1.2, 0.0], sigma_data=SIGMA_DATA, cond={"segment": label}
    )


def test_sigmas_become_angles_high_to_low():
  got = conventions.consistency_times_from_sigmas(80.0, 0.5, sigma_data=0.5)
  np.testing.assert_allclose(got, [np.arctan(160), np.pi / 4])


@pytest.mark.parametrize(
  "position, steps, sigma",
  [(11, 18, 0.585), (22, 40, 1.382), (106, 201, 1.913), (17, 40, 4.366), (18, 40, 3.520),
   (67, 151, 3.991), (62, 151, 5.249)],
)  # fmt: skip
def test_positions_of_released_models_are_the_published_sigmas(position, steps, sigma):
  got = conventions.consistency_times_from_positions(
    [0, position, steps - 1], steps, sigma_data=SIGMA_DATA
  )
  np.testing.assert_allclose(SIGMA_DATA * np.tan(got), [80.0, sigma], atol=5e-4)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: conventions.consistency_times_from_sigmas(0.5, 80.0, sigma_data=0.5), "decrease"),
    (lambda: conventions.consistency_times_from_sigmas(80.0, 0.0, sigma_data=0.5), "positive"),
    (lambda: conventions.consistency_times_from_sigmas(sigma_data=0.5), "positive"),
    (lambda: conventions.consistency_times_from_positions([0, 11], 18, sigma_data=0.5),
     "end in steps - 1 = 17"),
    (lambda: conventions.consistency_times_from_positions([0, 18], 18, sigma_data=0.5),
     r"within \[0, 17\]"),
    (lambda: conventions.consistency_times_from_positions(np.array([0, 0.585]), 18, sigma_data=0.5),
     "integers"),
    (lambda: times.segment_times(0, sigma_data=0.5), "at least one"),
  ],
)  # fmt: skip
def test_bad_steps_are_refused_with_advice(make, message):
  with pytest.raises(ValueError, match=message):
    make()


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
    (samplers.dpmpp_2m, times.ode_times(10, sigma_data=SIGMA_DATA), 10),
    (samplers.stochastic, times.ode_times(10, sigma_data=SIGMA_DATA), 19),
    (samplers.segments, times.segment_times(4, sigma_data=SIGMA_DATA), 4),
    (samplers.consistency, times.consistency_times(1.1, sigma_data=SIGMA_DATA), 2),
    (samplers.consistency, times.consistency_times(sigma_data=SIGMA_DATA), 1),
  ):
    count.clear()
    draw(sampler, grid)
    jax.effects_barrier()
    assert len(count) == nfe


@pytest.mark.parametrize(
  ("sampler", "grid"),
  [
    (samplers.consistency, times.consistency_times(1.1, sigma_data=SIGMA_DATA)),
    (samplers.segments, times.segment_times(2, sigma_data=SIGMA_DATA)),
    (samplers.ddim, times.ode_times(3, sigma_data=SIGMA_DATA)),
    (samplers.dpmpp_2m, times.ode_times(3, sigma_data=SIGMA_DATA)),
    (samplers.heun, times.ode_times(3, sigma_data=SIGMA_DATA)),
    (samplers.stochastic, times.ode_times(3, sigma_data=SIGMA_DATA)),
  ],
)
def test_with_a_key_for_each_sample_a_sample_is_a_function_of_its_key(sampler, grid):
  draw = jax.jit(lambda keys: sampler(arbitrary, {}, keys, (len(keys), 4), grid, sigma_data=0.5))
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(9))
  whole = np.asarray(draw(keys))
  assert len(np.unique(whole[:, 0])) == 9
  chosen = np.array([7, 0, 4])
  np.testing.assert_allclose(draw(keys[chosen]), whole[chosen], rtol=1e-6, atol=1e-6)


def test_the_noise_of_one_sample_is_that_of_its_own_key():
  keys = jax.random.split(jax.random.key(1), 5)
  z = trigflow.noise(keys, (5, 2, 3), sigma_data=SIGMA_DATA)
  for i, key in enumerate(keys):
    alone = trigflow.noise(key, (2, 3), sigma_data=SIGMA_DATA)
    np.testing.assert_array_equal(z[i], alone)


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
    (samplers.consistency, [1.2, np.nan], "must be a decreasing sequence"),
    (samplers.heun, [np.pi / 2, 0.5, 0.0], "cannot start at pi/2.*ddim"),
    (samplers.dpmpp_2m, [np.pi / 2, 0.5, 0.0], "cannot start at pi/2"),
    (samplers.stochastic, [np.pi / 2, 0.5, 0.0], "cannot start at pi/2"),
    (samplers.segments, [1.2, 0.5], "must end in 0"),
  ],
)
def test_bad_times_are_refused_with_advice(sampler, grid, message):
  with pytest.raises(ValueError, match=message):
    sampler(DIFFUSION, {}, jax.random.key(0), (2, 2), grid, sigma_data=SIGMA_DATA)


@pytest.mark.parametrize(
  "churn", [dict(S_churn=-1.0), dict(S_min=2.0, S_max=1.0), dict(S_noise=0.0)]
)
def test_bad_churn_is_refused(churn):
  with pytest.raises(ValueError, match="Churn needs S_churn >= 0"):
    samplers.stochastic(
      DIFFUSION, {}, jax.random.key(0), (2, 2), [1.2, 0.0], sigma_data=SIGMA_DATA, **churn
    )
