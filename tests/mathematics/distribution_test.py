import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import networks, times, trigflow, weighting
from cmjax.losses import continuous, diffusion, distribution
from cmjax.types import Network
from helpers import exact
from helpers.exact import SIGMA_DATA, S
from helpers.flops import needed

D = 4
VSD_T = times.lognormal(0.4, 2.0, sigma_data=SIGMA_DATA)
FAKE_T = times.lognormal(-0.8, 1.6, sigma_data=SIGMA_DATA)
T_MAX = np.arctan(80 / SIGMA_DATA)
TEACHER = Network(lambda key: {}, lambda p, x, t, cond, key: exact.F_diffusion(x, t))


def apply(p, x, t, cond, key):
  """Generator and fake of one scale p.

  At t_max, f = p x / sigma_data: samples N(0, p^2). Elsewhere the diffusion model of N(0, p^2).
  """
  c, s = trigflow.cos_sin(t, x)
  x_t = SIGMA_DATA * x
  generator = (c * x_t - p / SIGMA_DATA * x_t) / (SIGMA_DATA * s)
  fake = s * c * (SIGMA_DATA**2 - p**2) / (c**2 * p**2 + s**2 * SIGMA_DATA**2) * x
  return jnp.where((t > T_MAX - 1e-6).reshape(-1, 1), generator, fake)


SCALE = Network(lambda key: jnp.ones(()), apply)


def no_consistency(params, batch, key, step):
  return jnp.zeros(()), {}


def make(consistency=no_consistency, net=SCALE, **options):
  # Times below t_max, where the toy's F would be the generator's.
  below = lambda sample: lambda key, shape: jnp.minimum(sample(key, shape), T_MAX - 1e-3)
  return distribution.loss(
    consistency,
    net,
    continuous.teacher_velocity(TEACHER, {}, sigma_data=SIGMA_DATA),
    below(VSD_T),
    below(FAKE_T),
    weighting.constant(),
    weighting.constant(),
    sigma_data=SIGMA_DATA,
    **options,
  )


def params(generator, fake):
  return {
    "net": jnp.float32(generator),
    "weighting": {},
    "fake": jnp.float32(fake),
    "fake_weighting": {},
    "vsd_weighting": {},
  }


def batch(n=4096):
  return {"image": jnp.zeros((n, D))}


@functools.cache
def step_of(lambda_vsd=1.0):
  return jax.jit(jax.grad(make(lambda_vsd=lambda_vsd), has_aux=True))


def grads(generator, fake, lambda_vsd=1.0):
  return step_of(lambda_vsd)(params(generator, fake), batch(), jax.random.key(1), 0)


def test_where_fake_and_teacher_agree_the_generator_is_at_rest():
  grad, metrics = grads(2 * S, S)
  assert float(grad["net"]) == pytest.approx(0.0, abs=1e-7)
  assert float(metrics["vsd_gap"].total) < 1e-6


@pytest.mark.parametrize("scale, sign", [(2 * S, 1), (0.5 * S, -1)])
def test_the_scale_of_a_generator_moves_to_that_of_the_data(scale, sign):
  grad, metrics = grads(scale, scale)  # the fake is the exact diffusion model of its samples
  assert sign * float(grad["net"]) > 1e-2
  # And that of the fake is at rest, but for the noise of 4096 samples.
  moved, _ = grads(scale, 1.3 * scale)
  assert abs(float(grad["fake"])) < 0.15 * float(moved["fake"])
  step = 1e-2 * scale / abs(float(grad["net"]))
  assert abs(scale - step * float(grad["net"]) - S) < abs(scale - S)


def test_the_gradient_of_vsd_is_that_of_the_gap_at_the_samples():
  """2 / D sum((F_pre - F_fake) dx_0/dtheta), by hand in expectation for Gaussians."""
  p = 2 * S
  grad, _ = grads(p, p)
  # E over x_0 ~ N(0, p^2), per entry: F = k x_t / sigma_data, x_t = c x_0 + s z, dx_0/dp = x_0 / p.
  t = np.minimum(np.asarray(VSD_T(jax.random.key(3), (200_000,)), np.float64), T_MAX - 1e-3)
  c, s = np.cos(t), np.sin(t)
  k = lambda a: s * c * (SIGMA_DATA**2 - a**2) / (c**2 * a**2 + s**2 * SIGMA_DATA**2)
  expected = np.mean(2 * (k(S) - k(p)) / SIGMA_DATA * c * p)
  assert float(grad["net"]) == pytest.approx(expected, rel=0.1)


def test_each_gradient_falls_on_its_own_parameters():
  once, _ = grads(2 * S, 1.5 * S)
  none, _ = grads(2 * S, 1.5 * S, lambda_vsd=0.0)
  twice, _ = grads(2 * S, 1.5 * S, lambda_vsd=2.0)
  # Without L_VSD nothing reaches the generator, though the fake is trained on its samples.
  assert float(none["net"]) == 0 and float(once["net"]) != 0
  assert float(twice["net"]) == pytest.approx(2 * float(once["net"]), rel=1e-5)
  # And L_VSD does not reach the fake, though it is evaluated in it.
  assert float(none["fake"]) != 0
  assert float(none["fake"]) == float(once["fake"]) == float(twice["fake"])


def test_the_total_is_the_sum_and_the_fake_part_is_the_diffusion_loss_of_the_samples():
  def consistency(params, batch, key, step):
    return params["net"] * 3.0, {"loss": (1, 1), "mine": (2, 1)}

  value, metrics = jax.jit(make(consistency, lambda_vsd=0.5))(
    params(S, 1.5 * S), batch(), jax.random.key(1), 0
  )
  mean = lambda name: float(metrics[name].total) / float(metrics[name].count)
  total = 3 * S + 0.5 * mean("vsd_loss") + mean("fake_loss")
  assert float(value) == pytest.approx(total, rel=1e-5) == mean("loss")
  assert metrics["mine"] == (2, 1) and mean("consistency_loss") == pytest.approx(3 * S)
  samples = {"image": S * jax.random.normal(jax.random.key(2), (4096, D))}
  apart = diffusion.loss(SCALE, FAKE_T, weighting.constant(), sigma_data=SIGMA_DATA)
  expected, _ = jax.jit(apart)({"net": 1.5 * S, "weighting": {}}, samples, jax.random.key(4), 0)
  assert mean("fake_loss") == pytest.approx(float(expected), rel=0.05)


def test_generator_teacher_and_fake_see_label_and_guidance_and_only_training_has_dropout():
  seen = []

  def record(name):
    def apply(p, x, t, cond, key):
      seen.append((name or p, cond["label"].tolist(), np.asarray(cond["guidance"]), key))
      return x

    return apply

  net = Network(lambda key: {}, record(""))
  teacher = Network(lambda key: {}, record("teacher"))
  loss_fn = distribution.loss(
    no_consistency, net,
    continuous.teacher_velocity(teacher, {}, sigma_data=SIGMA_DATA),
    VSD_T, FAKE_T, weighting.constant(), weighting.constant(),
    sigma_data=SIGMA_DATA, guidance=(1.0, 2.0),
  )  # fmt: skip
  labelled = batch(3) | {"label": jnp.array([2, 0, 1])}
  p = {"net": "net", "fake": "fake", "fake_weighting": {}, "vsd_weighting": {}}
  loss_fn(p, labelled, jax.random.key(0), 0)
  assert sorted((name, key is not None) for name, _, _, key in seen) == [
    ("fake", False), ("fake", True), ("net", True), ("teacher", False),
  ]  # fmt: skip
  for _, label, guidance, _ in seen:
    assert label == [2, 0, 1]
    np.testing.assert_array_equal(guidance, seen[0][2])
  assert seen[0][2].min() >= 1 and seen[0][2].max() <= 2
  with pytest.raises(ValueError, match="must be a pair"):
    make(guidance=(3.0, 2.0))


def test_a_step_costs_8_passes_beside_the_consistency_loss_and_one_generator_pass():
  net = networks.from_nnx(functools.partial(networks.MLP, dim=2, width=128, depth=3))
  weight = weighting.constant()
  p = net.init(jax.random.key(0))
  velocity = continuous.teacher_velocity(net, net.init(jax.random.key(1)), sigma_data=0.5)
  scd = continuous.loss(net, velocity, FAKE_T, weight, sigma_data=0.5)
  both = distribution.loss(scd, net, velocity, VSD_T, FAKE_T, weight, weight, sigma_data=0.5)
  teacher = diffusion.loss(net, FAKE_T, weight, sigma_data=0.5)
  empty = {"weighting": {}, "fake_weighting": {}, "vsd_weighting": {}}

  def flops(loss_fn):
    args = ({"net": p, "fake": p, **empty}, {"image": jnp.zeros((64, 2))}, jax.random.key(0))
    return needed(jax.grad(loss_fn, has_aux=True), *args, jnp.int32(1))

  unit = flops(teacher) / 3
  assert flops(both) / unit == pytest.approx(5 + 3 + 1 + 1 + 3, rel=0.06)
