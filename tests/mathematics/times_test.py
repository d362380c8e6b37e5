import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import ema, times, weighting
from cmjax.losses import means
from cmjax.training import optim

KARRAS_18 = [
  80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.400935, 5.315195, 3.256822,
  1.923340, 1.088171, 0.585348, 0.296442, 0.139516, 0.059947, 0.022935, 0.007528, 0.002,
]  # fmt: skip
SIGMAS_11 = [
  2.00000000e-03, 1.67207532e-02, 8.50872027e-02, 3.18283289e-01, 9.65416926e-01, 2.51521898e00,
  5.83894763e00, 1.23815761e01, 2.44083418e01, 4.53137341e01, 8.00000000e01,
]  # fmt: skip
PROBABILITIES_11 = [
  0.06263299, 0.18173698, 0.24550142, 0.21349445, 0.14244606,
  0.08060462, 0.04107991, 0.01958009, 0.00894387, 0.00397961,
]  # fmt: skip
WEIGHTS_11 = [
  67.9313065, 14.6270577, 4.28823664, 1.54527588, 0.645243694,
  0.300866919, 0.152843769, 0.0831478744, 0.0478345484, 0.0288298545,
]  # fmt: skip


def test_the_karras_grid_has_its_golden_values():
  np.testing.assert_allclose(times.karras_sigmas(18), KARRAS_18, rtol=1e-4)


def test_sampler_times_are_the_angles_of_their_noise_levels():
  grid = times.ode_times(18, sigma_data=0.5)
  assert grid[-1] == 0 and len(grid) == 19
  np.testing.assert_allclose(0.5 * np.tan(grid[:-1]), KARRAS_18, rtol=1e-4)
  np.testing.assert_allclose(times.consistency_times(1.1, sigma_data=0.5), [1.5645464, 1.1])


@pytest.mark.parametrize(
  "P_mean, P_std, median, above_1_1, above_1_5",
  # The table of the paper's runs (CIFAR-10 sCT, ECT comparison, teacher, ImageNet-512 VSD).
  [(-1.0, 1.4, 0.634, 0.241, 0.017), (-1.0, 1.8, 0.634, 0.293, 0.050),
   (-1.2, 1.2, 0.542, 0.162, 0.004), (0.4, 2.0, 1.247, 0.583, 0.219)],
)  # fmt: skip
def test_the_lognormal_proposal_has_the_quantiles_of_the_papers_runs(
  P_mean, P_std, median, above_1_1, above_1_5
):
  t = times.lognormal(P_mean, P_std, sigma_data=0.5)(jax.random.key(0), (200_000,))
  assert float(jnp.median(t)) == pytest.approx(median, abs=0.01)
  assert float(jnp.mean(t > 1.1)) == pytest.approx(above_1_1, abs=0.005)
  assert float(jnp.mean(t > 1.5)) == pytest.approx(above_1_5, abs=0.003)
  log_sigma = jnp.log(0.5 * jnp.tan(t))
  assert float(jnp.mean(log_sigma)) == pytest.approx(P_mean, abs=0.02)
  assert float(jnp.std(log_sigma)) == pytest.approx(P_std, abs=0.02)


def test_bad_proposals_and_grids_are_refused():
  with pytest.raises(ValueError, match="P_std=0.0 must be positive"):
    times.lognormal(-1.0, 0.0, sigma_data=0.5)
  with pytest.raises(ValueError, match="at least 2 noise levels, got n=1"):
    times.karras_sigmas(1)
  with pytest.raises(ValueError, match="0 < sigma_min < sigma_max, got 2.0 and 1.0"):
    times.karras_sigmas(4, sigma_min=2.0, sigma_max=1.0)


def test_the_half_life_average_halves_the_weight_of_the_past_in_its_half_life():
  decay = ema.half_life(10_000, batch_size=100, rampup_ratio=None)
  averages, zero, one = {"a": {"w": jnp.ones(3)}}, {"w": jnp.zeros(3)}, {"w": jnp.ones(3)}
  for step in range(100):
    averages = ema.update(averages, zero, step, {"a": decay})
  np.testing.assert_allclose(averages["a"]["w"], 0.5, rtol=1e-5)
  averages = ema.update({"a": one, "b": one}, zero, 5, {"a": decay, "b": lambda step: 0.0})
  np.testing.assert_allclose(averages["a"]["w"], 0.5 ** (1 / 100), rtol=1e-6)
  np.testing.assert_allclose(averages["b"]["w"], 0.0)


def test_ramp_up_copies_the_first_update_and_then_follows_edm():
  decay = ema.half_life(500_000, batch_size=512)
  # EDM: h = min(half-life, 5 % of the images before this batch), beta = 0.5^(batch / h).
  for step, h in ((10, 256), (1_000, 25_600), (19_531, 499_993.6), (30_000, 500_000)):
    assert float(decay(jnp.int32(step))) == pytest.approx(0.5 ** (512 / h), rel=1e-5)
  assert float(decay(jnp.int32(0))) == 0.0
  assert float(decay(jnp.int32(10**6))) == pytest.approx(0.99929, abs=5e-6)
  with pytest.raises(ValueError, match="half_life_images=0 must be positive"):
    ema.half_life(0, batch_size=512)


def test_schedules_ramp_up_and_decay():
  rate = optim.constant(1e-3, warmup_steps=100)
  assert [float(rate(s)) for s in (0, 50, 100, 10**6)] == pytest.approx([0, 5e-4, 1e-3, 1e-3])
  assert float(optim.constant(2e-3)(0)) == pytest.approx(2e-3)
  rate = optim.inverse_sqrt(1e-2, decay_steps=400, warmup_steps=4)
  got = [float(rate(s)) for s in (2, 100, 400, 1600, 40_000)]
  assert got == pytest.approx([5e-3, 1e-2, 1e-2, 5e-3, 1e-3])
  with pytest.raises(ValueError, match="decay_steps=0 must be positive"):
    optim.inverse_sqrt(1e-2, decay_steps=0)


def test_optimizers_take_the_first_step_of_their_papers():
  params, grads = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, -0.1])}
  adam = optim.adam(optim.constant(0.1), b1=0.9, b2=0.99, eps=1e-8)
  updates, _ = adam.update(grads, adam.init(params), params)
  np.testing.assert_allclose(updates["w"], [-0.1, 0.1], rtol=1e-4)  # m / sqrt(v) is a sign
  radam = optim.radam(optim.constant(0.1), b1=0.9, b2=0.99, eps=1e-8)
  updates, _ = radam.update(grads, radam.init(params), params)
  np.testing.assert_allclose(updates["w"], [-0.3, 0.01], rtol=1e-4)  # not rectified yet: m alone
  clipped = optim.radam(optim.constant(0.1), b2=0.99, clip_norm=0.5)
  updates, _ = clipped.update(grads, clipped.init(params), params)
  assert float(jnp.linalg.norm(updates["w"])) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_weightings_have_their_values():
  t = jnp.array([0.1, 0.7, 1.5])
  assert weighting.constant().apply({}, t).tolist() == [0, 0, 0]
  w = weighting.inverse_sigma(sigma_data=0.5).apply({}, t)
  np.testing.assert_allclose(jnp.exp(w), 1 / (0.5 * np.tan([0.1, 0.7, 1.5])), rtol=1e-4)
  learned = weighting.learned(bias=np.log(3072))
  params = learned.init(jax.random.key(0))
  np.testing.assert_allclose(learned.apply(params, t), [8.0301] * 3, atol=1e-4)
  assert params["kernel"].shape == (128,)


def test_the_learned_weighting_finds_the_log_of_the_inverse_loss():
  learned = weighting.learned()
  params = learned.init(jax.random.key(0))
  t = jnp.linspace(0.01, 1.55, 64)
  squared = 0.2 + 3 * jnp.sin(t) ** 2

  @jax.jit
  def descend(params):
    def value(params):
      w = learned.apply(params, t)
      return jnp.mean(jnp.exp(w) * squared - w)

    return jax.tree.map(lambda p, g: p - 0.02 * g, params, jax.grad(value)(params))

  for _ in range(10_000):
    params = descend(params)
  np.testing.assert_allclose(learned.apply(params, t), -jnp.log(squared), atol=0.15)


def test_means_by_time_bin_merge_over_steps_and_leave_out_empty_bins():
  t = jnp.array([0.1, 0.2, 1.5])
  first = means.by_time("a", jnp.array([1.0, 3.0, 10.0]), t)
  second = means.by_time("a", jnp.array([5.0]), jnp.array([0.05]))
  merged = means.merge([first, second])
  assert merged == pytest.approx({"a": 19 / 4, "a/t0.00-0.26": 3.0, "a/t1.31-1.57": 10.0}, rel=1e-6)
  ends = means.by_time("a", jnp.array([1.0, 2.0]), jnp.array([0.0, np.pi / 2]))
  assert means.merge([ends])["a/t1.31-1.57"] == 2.0


def erf_law(sigmas, P_mean=-1.1, P_std=2.0):
  """The law of iCT as the paper writes it, in float64."""
  cdf = [math.erf((math.log(sigma) - P_mean) / (math.sqrt(2) * P_std)) for sigma in sigmas]
  return np.diff(cdf) / (cdf[-1] - cdf[0])


def test_the_increasing_grid_is_the_decreasing_one_reversed():
  for N in (11, 18, 1281):
    got = times.karras_sigma(jnp.arange(N), jnp.int32(N))
    np.testing.assert_allclose(got, times.karras_sigmas(N)[::-1], rtol=3e-6)
  np.testing.assert_allclose(times.karras_sigma(jnp.arange(11), 11), SIGMAS_11, rtol=3e-6)
  golden = [0.002, 0.00203909, 0.00207882, 0.8208668413, 1.5257662439, 2.5152189761]
  i = jnp.array([0, 1, 2, 492, 571, 640])
  np.testing.assert_allclose(times.karras_sigma(i, 1281), golden, rtol=3e-6)
  top = times.karras_sigma(jnp.arange(1278, 1281), 1281)
  np.testing.assert_allclose(top, [79.32005202, 79.65940417, 80], rtol=3e-6)


def test_the_square_root_curriculum_has_the_papers_values():
  N = times.square_root(800_000, 2, 150)
  steps = np.array([0, 1, 1000, 123_456, 200_000, 799_999, 800_000, 10**6])
  inside = np.minimum(steps, 800_000) / 800_000 * (151**2 - 2**2) + 2**2
  np.testing.assert_array_equal(N(steps), np.ceil(np.sqrt(inside) - 1) + 1)
  assert N(jnp.asarray([0, 200_000, 800_000])).tolist() == [2, 76, 151]
  assert N(0).dtype == jnp.int32
  assert times.square_root(800_000)(400_000) == N(400_000)  # the defaults are the paper's


def test_the_doubling_curriculum_has_the_papers_values():
  N = times.doubling(400_000, 10, 1280)
  steps = [0, 49_999, 50_000, 350_000, 400_000, 10**9]
  assert N(jnp.array(steps)).tolist() == [11, 11, 21, 1281, 1281, 1281]
  stages = N(50_000 * jnp.arange(8)).tolist()
  assert stages == [11, 21, 41, 81, 161, 321, 641, 1281]
  assert N(0).dtype == jnp.int32
  assert times.doubling(400_000)(0) == 11  # the default s0 is 10, not 20
  assert times.doubling(100, 10, 30)(jnp.array([37, 38, 75, 76])).tolist() == [11, 21, 21, 31]


def test_a_fixed_number_of_levels_stays():
  assert times.fixed(18)(jnp.array([0, 10**6])).tolist() == [18, 18]


def test_the_targets_average_has_the_golden_values_of_both_conventions():
  N = times.square_root(800_000, 2, 150)
  for convention, golden in (
    ("paper", [0.9, 0.997231, 0.998605]),
    ("openai", [0.81, 0.997194, 0.998596]),
  ):
    mu = ema.curriculum(N, 2, 0.9, convention)
    np.testing.assert_allclose([mu(k) for k in (0, 200_000, 800_000)], golden, atol=1e-6)
  with pytest.raises(ValueError, match="Unknown convention 'jcm'. Choose from: paper, openai"):
    ema.curriculum(N, 2, 0.9, "jcm")
  with pytest.raises(ValueError, match="mu0=1.0 must lie between 0 and 1"):
    ema.curriculum(N, 2, 1.0)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: times.doubling(7, 10, 1280), "takes 8 stages, more than total_steps=7"),
    (lambda: times.doubling(100, 20, 10), "s1 >= s0, got s0=20 and s1=10"),
    (lambda: times.doubling(100, 0, 10), "s0 >= 1 to s1 >= s0, got s0=0"),
    (lambda: times.square_root(0), "got total_steps=0"),
    (lambda: times.square_root(100, 1, 150), "s0 >= 2 to s1 >= s0, got s0=1"),
    (lambda: times.fixed(1), "at least 2 noise levels, got N=1"),
    (lambda: times.lognormal_pairs(times.fixed(9), 0.0, 0.0), "P_std=0.0 must be positive"),
    (lambda: times.uniform_pairs(times.fixed(9), sigma_min=0.0), "0 < sigma_min < sigma_max"),
    (lambda: times.ect_pairs(q=1.0), "q=1.0 must be above 1"),
    (lambda: times.ect_pairs(mapping="const"), "Unknown mapping 'const'"),
    (lambda: times.ect_pairs(steps_per_stage=0), "steps_per_stage=0 must be at least 1"),
    (lambda: times.ect_pairs(num_stages=0), "num_stages=0 must be at least 1"),
  ],
)
def test_curricula_and_pairs_refuse_what_cannot_be(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize("make", [times.uniform_pairs, times.lognormal_pairs])
def test_a_growing_number_of_levels_compiles_once(make):
  sample_pair, traces = make(times.doubling(80, 10, 1280)), []
  jitted = jax.jit(lambda *args: traces.append(1) or sample_pair(args[0], (64,), args[1]))
  for step in (0, 25, 79):
    sigma, sigma_next = jitted(jax.random.key(step), jnp.int32(step))
    grid = times.karras_sigmas(10 * 2 ** (step // 10) + 1)[::-1]
    index = np.abs(grid[None] - np.asarray(sigma)[:, None]).argmin(-1)
    np.testing.assert_allclose(sigma, grid[index], rtol=3e-6)
    np.testing.assert_allclose(sigma_next, grid[index - 1], rtol=3e-6)
    assert sigma.dtype == sigma_next.dtype == jnp.float32 and np.all(index > 0)
  assert len(traces) == 1


def histogram(sample_pair, N, n=200_000):
  """How often each of the N - 1 intervals is drawn."""
  _, sigma_next = jax.jit(lambda key: sample_pair(key, (n,), 0))(jax.random.key(0))
  edges = np.log(times.karras_sigmas(N)[::-1])
  middles = np.concatenate([[-np.inf], (edges[:-1] + edges[1:])[:-1] / 2, [np.inf]])
  return np.histogram(np.log(sigma_next), middles)[0] / n


@pytest.mark.parametrize("N", [11, 41, 1281])
def test_the_draw_without_a_table_has_the_papers_law(N):
  p = erf_law(times.karras_sigmas(N)[::-1])
  if N == 11:
    np.testing.assert_allclose(p, PROBABILITIES_11, atol=5e-9)
  n = 200_000
  distance = 0.5 * np.abs(histogram(times.lognormal_pairs(times.fixed(N)), N, n) - p).sum()
  expected = 0.5 * np.sqrt(2 / np.pi) * np.sqrt(p * (1 - p) / n).sum()
  assert distance < 1.5 * expected  # the sampling error of so many draws, and no more
  lost_sign = erf_law(times.karras_sigmas(N)[::-1], P_mean=1.1)
  assert 0.5 * np.abs(lost_sign - p).sum() > 0.3


def test_uniform_pairs_draw_every_interval_down_to_sigma_min_alike():
  p = histogram(times.uniform_pairs(times.fixed(11)), 11)
  np.testing.assert_allclose(p, 0.1, atol=0.004)


def test_gaps_keep_their_digits_in_float32():
  sample_pair = times.lognormal_pairs(times.fixed(11))
  sigma, sigma_next = sample_pair(jax.random.key(0), (4096,), 0)
  weight = np.unique(np.asarray(1 / (sigma - sigma_next)))
  nearest = np.abs(weight[:, None] / np.array(WEIGHTS_11)[None] - 1).min(-1)
  assert nearest.max() < 2e-5 and len(weight) >= 10
  i = jnp.arange(1280)
  gap = times.karras_sigma(i + 1, 1281) - times.karras_sigma(i, 1281)
  np.testing.assert_allclose(gap, np.diff(times.karras_sigmas(1281)[::-1]), rtol=1e-3)
  assert float(1 / gap[0]) == pytest.approx(25_584.7, rel=1e-3)
  assert float(1 / gap[-1]) == pytest.approx(2.936, rel=1e-3)


@pytest.mark.parametrize(
  "stage, golden",
  [(0, [0, 0, 0, 0, 2.366143, 10, 40]),
   (2, [0.003775, 0.039998, 0.248730, 0.606059, 4.341536, 17.5, 70]),
   (7, [0.009805, 0.098125, 0.492148, 0.987689, 4.979423, 19.921875, 79.6875])],
)  # fmt: skip
def test_ects_pairs_have_the_golden_values(stage, golden):
  t = jnp.array([0.01, 0.1, 0.5, 1, 5, 20, 80])
  # P_std of nothing makes the draw a constant: one level after the other.
  at = lambda sigma, step, **kwargs: times.ect_pairs(
    float(jnp.log(sigma)), 1e-9, **kwargs
  )(jax.random.key(0), (1,), step)  # fmt: skip
  for sigma, expected in zip(t, golden, strict=True):
    got, below = at(sigma, 25_000 * stage + 24_999, q=2.0, steps_per_stage=25_000)
    assert float(got[0]) == pytest.approx(float(sigma), rel=1e-5)
    assert float(below[0]) == pytest.approx(expected, abs=2e-6, rel=2e-5)
  _, same = at(t[4], 0, q=2.0 ** (stage + 1))  # no stages: the one-hour recipe
  assert float(same[0]) == pytest.approx(golden[4], rel=2e-5)
  _, held = at(t[4], 10**6, q=2.0, steps_per_stage=25_000, num_stages=stage + 1)
  assert float(held[0]) == pytest.approx(golden[4], rel=2e-5)
  _, constant = at(t[4], 0, q=2.0 ** (stage + 1), mapping="constant")
  assert float(constant[0]) == pytest.approx(5 * (1 - 0.5 ** (stage + 1)), rel=1e-5)


def test_ects_levels_are_a_lognormal_and_their_stages_compile_once():
  sample_pair, traces = times.ect_pairs(-0.8, 1.6, q=4.0, steps_per_stage=10), []
  jitted = jax.jit(lambda step: traces.append(1) or sample_pair(jax.random.key(0), (50_000,), step))
  ratios = []
  for step in (0, 9, 10, 35):
    sigma, sigma_next = jitted(jnp.int32(step))
    assert np.all(sigma > sigma_next) and np.all(sigma_next >= 0)
    ratios.append(float(jnp.mean((sigma - sigma_next) / sigma)))
  assert len(traces) == 1 and ratios[0] == ratios[1]
  assert ratios[0] > ratios[2] and ratios[3] == pytest.approx(ratios[2] / 16, rel=1e-3)
  log_sigma = jnp.log(sigma)
  assert float(jnp.mean(log_sigma)) == pytest.approx(-0.8, abs=0.03)
  assert float(jnp.std(log_sigma)) == pytest.approx(1.6, abs=0.03)


def test_discrete_scm_draws_from_its_grid_by_the_lognormal_and_steps_to_the_next_below():
  n, M = 200_000, 10
  grid = np.arctan2(times.karras_sigmas(M + 1)[::-1], 0.5)
  grid[0] = 0.0
  t = times.binned_lognormal(-1.1, 2.0, sigma_data=0.5, num_levels=M)(jax.random.key(0), (n,))
  index = np.abs(grid[None] - np.asarray(t)[:, None]).argmin(-1)
  np.testing.assert_allclose(t, grid[index], rtol=1e-6)
  p = np.bincount(index, minlength=M + 1) / n
  np.testing.assert_allclose(p, [0, *PROBABILITIES_11], atol=0.004)
  below = jax.jit(lambda t: times.below(t, sigma_data=0.5, num_levels=M))(t)
  np.testing.assert_allclose(below, grid[index - 1], rtol=1e-6)
  assert float(jnp.min(below)) == 0


def test_below_finds_the_neighbour_at_the_best_size_and_off_the_grid():
  grid = jnp.asarray(np.arctan2(times.karras_sigmas(1025)[::-1], 0.5), jnp.float32)
  below = times.below(grid, sigma_data=0.5)  # 1024 levels are the default
  np.testing.assert_array_equal(below[2:], grid[1:-1])
  assert below[:2].tolist() == [0, 0]
  off = times.below(jnp.array([0.0, 1e-6, 1.57]), sigma_data=0.5)
  np.testing.assert_array_equal(off, jnp.array([0, 0, grid[-1]]))
  between = times.below((grid[500:501] + grid[501:502]) / 2, sigma_data=0.5)
  assert between.tolist() == grid[500:501].tolist()
