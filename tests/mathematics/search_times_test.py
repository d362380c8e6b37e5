import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import samplers, times
from cmjax.samplers import search_times
from helpers import exact
from helpers.exact import SIGMA_DATA, S

log_sigma = lambda t: np.log(np.tan(t))


def bowl(*targets):
  """Smallest where each target has an intermediate time at it, in log sigma."""

  def score(mid):
    return sum(min(abs(log_sigma(t) - log_sigma(target)) for t in mid) for target in targets)

  return score


def test_the_minimum_of_a_unimodal_score_is_found():
  for target in (0.2, 0.8, 1.3):
    found = search_times.search(bowl(target), 2, low=0.01, high=1.56, num_probes=40)
    assert len(found.times) == 1
    # 20 coarse points, then ten thirds: 10.9 / 19 * 2 * (2 / 3)^10 / 2 = 0.01.
    assert log_sigma(found.times[0]) == pytest.approx(log_sigma(target), abs=0.011)


def test_two_and_three_new_times_are_found_one_after_another_in_any_order():
  # The first time goes to the steepest part, the others then above or below it.
  score = lambda mid: sum(
    weight * min((log_sigma(t) - log_sigma(target)) ** 2 for t in mid)
    for target, weight in ((0.4, 1.0), (1.4, 20.0))
  )
  found = search_times.search(score, 3, low=0.05, high=1.56, num_probes=40)
  assert list(found.times) == sorted(found.times, reverse=True) and len(found.times) == 2
  assert found.times[1] < 0.75 and found.times[0] > 1.3
  more = search_times.search(score, 4, low=0.05, high=1.56, num_probes=40)
  assert len(more.times) == 3 and more.score < found.score
  assert set(found.times) <= set(more.times)  # greedy: what was found stays


def test_the_coarse_bracket_keeps_ternary_search_from_a_false_valley():
  # A wide slope towards high sigma, and a deeper narrow valley at low sigma.
  score = lambda mid: min(
    abs(log_sigma(mid[0]) - log_sigma(1.4)) + 0.5, 2 * abs(log_sigma(mid[0]) - log_sigma(0.1))
  )
  found = search_times.search(score, 2, low=0.02, high=1.56, num_probes=40)
  assert found.times[0] == pytest.approx(0.1, rel=0.05)


def test_no_probe_is_evaluated_twice_and_the_history_has_them_all():
  calls = []
  score = lambda mid: calls.append(mid) or bowl(0.4, 1.1)(mid)
  found = search_times.search(score, 3, low=0.05, high=1.5, num_probes=11)
  assert len(calls) == len(set(calls)) <= 2 * 11
  assert [mid for mid, _ in found.history] == calls
  assert found.score == min(value for mid, value in found.history if len(mid) == 2)
  again = search_times.search(bowl(0.4, 1.1), 3, low=0.05, high=1.5, num_probes=11)
  assert again == found
  calls.clear()  # so many that neighbours become the same number
  search_times.search(score, 2, low=0.05, high=1.5, num_probes=400)
  assert len(calls) == len(set(calls)) < 400


def test_the_best_second_step_of_an_imperfect_gaussian_model_is_found():
  # The true f with an error that grows with t: the variance after two steps has a closed form.
  ratio = lambda t: float((1 + 0.3 * np.sin(t) ** 2) * S / np.sqrt(exact.variance(t)))

  def closed_form(mid):
    variance = 0.0
    for t in times.consistency_times(*mid, sigma_data=SIGMA_DATA):
      noisy = np.cos(t) ** 2 * variance + np.sin(t) ** 2 * SIGMA_DATA**2
      variance = ratio(t) ** 2 * noisy
    return abs(np.sqrt(variance) - S - 0.02)

  def imperfect(params, x, t, cond, key):
    c, s = (f(t)[:, None] for f in (jnp.cos, jnp.sin))
    f = (1 + 0.3 * s**2) * exact.consistency(SIGMA_DATA * x, t)
    return (c * SIGMA_DATA * x - f) / (SIGMA_DATA * s)

  # Times are traced here as they are constants: a program per probe, so few probes.
  def sampled(mid):
    grid = times.consistency_times(*mid, sigma_data=SIGMA_DATA)
    x0 = samplers.consistency(
      imperfect, {}, jax.random.key(0), (50_000, 1), grid, sigma_data=SIGMA_DATA
    )
    return abs(float(jnp.std(x0)) - S - 0.02)

  truth = search_times.search(closed_form, 2, low=0.05, high=1.5, num_probes=81)
  found = search_times.search(sampled, 2, low=0.05, high=1.5, num_probes=13)
  dense = min(closed_form((t,)) for t in np.linspace(0.05, 1.5, 2000))
  assert truth.score == pytest.approx(dense, abs=1e-4)
  # The std of 50,000 samples is known to 0.3 % of S.
  assert closed_form(found.times) < dense + 4 * S / np.sqrt(2 * 50_000) + 1e-3


@pytest.mark.parametrize(
  "num_steps, kwargs, message",
  [
    (1, {}, "must be 2, 3 or 4"),
    (5, {}, "must be 2, 3 or 4"),
    (2, dict(low=0.0), "0 < low < high < pi/2"),
    (2, dict(high=80.0), "0 < low < high < pi/2.*sigma_to_t"),
    (2, dict(num_probes=4), "at least 5"),
  ],
)
def test_bad_searches_are_refused_with_advice(num_steps, kwargs, message):
  kwargs = dict(low=0.1, high=1.5, num_probes=9) | kwargs
  with pytest.raises(ValueError, match=message):
    search_times.search(bowl(0.4), num_steps, **kwargs)


def test_a_score_that_is_not_finite_stops_the_search():
  with pytest.raises(ValueError, match=r"score\(\(.*\)\) = nan is not finite"):
    search_times.search(lambda mid: float("nan"), 2, low=0.1, high=1.5, num_probes=9)
