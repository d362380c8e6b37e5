import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import ema, optim, statistics, times, weighting

KARRAS_18 = [
  80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.400935, 5.315195, 3.256822,
  1.923340, 1.088171, 0.585348, 0.296442, 0.139516, 0.059947, 0.022935, 0.007528, 0.002,
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
  first = statistics.by_time("a", jnp.array([1.0, 3.0, 10.0]), t)
  second = statistics.by_time("a", jnp.array([5.0]), jnp.array([0.05]))
  merged = statistics.merge([first, second])
  assert merged == pytest.approx({"a": 19 / 4, "a/t0.00-0.26": 3.0, "a/t1.31-1.57": 10.0}, rel=1e-6)
  ends = statistics.by_time("a", jnp.array([1.0, 2.0]), jnp.array([0.0, np.pi / 2]))
  assert statistics.merge([ends])["a/t1.31-1.57"] == 2.0
