import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import tangent, times, trigflow, weighting
from cmjax.losses import continuous, diffusion, means
from cmjax.types import Network
from helpers import exact
from helpers.exact import SIGMA_DATA, S

SAMPLE_T = times.lognormal(-1.0, 1.4, sigma_data=SIGMA_DATA)
D = 6
# Linear in x with a free factor: at 1 the true diffusion or consistency model of Gaussian data.
DIFFUSION = Network(
  lambda key: jnp.ones(()), lambda p, x, t, cond, key: p * exact.F_diffusion(x, t)
)
CONSISTENCY = Network(
  lambda key: jnp.ones(()), lambda p, x, t, cond, key: p * exact.F_consistency(x, t)
)


def batch(n=256):
  return {"image": S * jax.random.normal(jax.random.key(7), (n, D))}


def params(weight, factor=1.0):
  return {"net": jnp.asarray(factor), "weighting": weight.init(jax.random.key(0))}


def make(kind, weight=None):
  weight = weight or weighting.constant()
  if kind == "diffusion":
    return diffusion.loss(DIFFUSION, SAMPLE_T, weight, sigma_data=SIGMA_DATA)
  velocity = continuous.data_velocity()
  if kind == "scd":
    velocity = continuous.teacher_velocity(DIFFUSION, jnp.ones(()), sigma_data=SIGMA_DATA)
  return continuous.loss(
    CONSISTENCY, velocity, SAMPLE_T, weight, sigma_data=SIGMA_DATA, warmup_steps=100
  )


@pytest.mark.parametrize("kind", ["diffusion", "sct", "scd"])
def test_every_loss_is_finite_and_the_same_under_jit(kind):
  weight = weighting.learned()
  loss_fn, p = make(kind, weight), params(weight, 1.3)
  grad = jax.value_and_grad(loss_fn, has_aux=True)
  args = (p, batch(), jax.random.key(1), jnp.int32(50))
  (plain, metrics), grads = grad(*args)
  (jitted, _), jitted_grads = jax.jit(grad)(*args)
  assert np.isfinite(plain) and float(plain) == pytest.approx(float(jitted), rel=1e-5)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(jitted_grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
  assert float(grads["net"]) != 0
  assert float(metrics["loss"].total) == pytest.approx(float(plain))


def test_the_diffusion_loss_is_smallest_at_the_true_model():
  loss_fn = jax.jit(make("diffusion"))
  at = [
    float(loss_fn(params(weighting.constant(), factor), batch(4096), jax.random.key(1), 0)[0])
    for factor in (0.8, 1.0, 1.2)
  ]
  assert at[1] < at[0] and at[1] < at[2]


def test_the_diffusion_loss_is_the_velocity_error_over_sigma_data_squared():
  zero = Network(lambda key: {}, lambda p, x, t, cond, key: jnp.zeros_like(x))
  loss_fn = diffusion.loss(zero, SAMPLE_T, weighting.constant(), sigma_data=SIGMA_DATA)
  x0 = SIGMA_DATA * jax.random.normal(jax.random.key(7), (8192, D))
  value, metrics = jax.jit(loss_fn)(
    {"net": {}, "weighting": {}}, {"image": x0}, jax.random.key(1), 0
  )
  # F = 0 leaves the target, which has unit variance where the data have sigma_data.
  assert float(value) == pytest.approx(1.0, abs=0.02)
  by_bin = [m for name, m in metrics.items() if name.startswith("F_error/")]
  assert sum(float(m.count) for m in by_bin) == 8192
  total = sum(float(m.total) for m in by_bin)
  assert total / 8192 == pytest.approx(float(value), rel=1e-4)


def test_scd_with_the_exact_ode_leaves_the_exact_solution_at_rest():
  loss_fn = make("scd")
  grads = jax.jit(jax.grad(lambda p: loss_fn(p, batch(), jax.random.key(1), 10_000)[0]))
  at_rest, moved = grads(params(weighting.constant())), grads(params(weighting.constant(), 1.1))
  assert abs(float(at_rest["net"])) < 1e-4
  assert float(moved["net"]) > 1e-2  # pulled back, towards 1


@functools.partial(jax.jit, static_argnums=0)
def raw_gradient(velocity, x0, z, t, factor):
  """Per sample, d/dfactor of -F . g: the gradient of the objective without normalisation."""
  x_t = trigflow.interpolate(x0, z, t)
  dxdt = velocity(x0, z, x_t, t, {})
  _, g = tangent.tangent(
    lambda x, t: factor * exact.F_consistency(x, t), x_t, t, dxdt, sigma_data=SIGMA_DATA
  )
  return -jnp.sum(exact.F_consistency(x_t / SIGMA_DATA, t) * g, -1)


def test_the_mean_raw_gradient_of_sct_is_that_of_scd_with_the_exact_posterior_mean():
  with jax.enable_x64(True):
    n = 2_000_000
    key_x, key_z, key_t = jax.random.split(jax.random.key(0), 3)
    x0 = S * jax.random.normal(key_x, (n, 1))
    z = SIGMA_DATA * jax.random.normal(key_z, (n, 1))
    t = SAMPLE_T(key_t, (n,))
    teacher = continuous.teacher_velocity(DIFFUSION, jnp.ones(()), sigma_data=SIGMA_DATA)
    data = continuous.data_velocity()
    draws = ((data, 1.2), (teacher, 1.2), (data, 1.0))
    sct, scd, at_rest = (np.asarray(raw_gradient(v, x0, z, t, factor)) for v, factor in draws)
    standard_error = lambda samples: float(np.std(samples)) / np.sqrt(n)
    assert np.mean(scd) > 0  # back from 1.2 towards the true factor 1
    assert standard_error(sct - scd) < 0.02 * np.mean(scd)  # so the next lines say something
    assert abs(np.mean(sct - scd)) < 4 * standard_error(sct - scd)
    assert abs(np.mean(at_rest)) < 4 * standard_error(at_rest)


def test_algorithm_1_by_hand_gives_the_loss():
  """The paper's lines one by one, in NumPy's float64, with a network of its own derivative."""
  weight = weighting.learned(bias=0.3)
  # F = p x^2 t, so dF/dt = p (2 x t dx/dt / sigma_data + x^2) along the trajectory.
  net = Network(lambda key: {}, lambda p, x, t, cond, key: p * x**2 * t[:, None])
  loss_fn = continuous.loss(
    net, continuous.data_velocity(), SAMPLE_T, weight, sigma_data=SIGMA_DATA, c=0.1, warmup_steps=40
  )
  p = {"net": jnp.float32(0.7), "weighting": weight.init(jax.random.key(0))}
  x0, key = batch(32)["image"], jax.random.key(3)
  value, grads = jax.jit(jax.value_and_grad(lambda q: loss_fn(q, {"image": x0}, key, 10)[0]))(p)

  key_t, key_z, _ = jax.random.split(key, 3)
  t = np.asarray(SAMPLE_T(key_t, (32,)), np.float64)[:, None]
  z = SIGMA_DATA * np.asarray(jax.random.normal(key_z, x0.shape), np.float64)
  x0 = np.asarray(x0, np.float64)
  co, si, r = np.cos(t), np.sin(t), 10 / 40
  x_t, dxdt = co * x0 + si * z, co * z - si * x0
  x = x_t / SIGMA_DATA
  F, dF = 0.7 * x**2 * t, 0.7 * (2 * x * t * dxdt / SIGMA_DATA + x**2)
  g = -(co**2) * (SIGMA_DATA * F - dxdt) - r * co * si * (x_t + SIGMA_DATA * dF)
  g = g / (np.linalg.norm(g, axis=-1, keepdims=True) + 0.1)
  expected = np.mean(np.exp(0.3) / D * np.sum(g**2, -1) - 0.3)
  assert float(value) == pytest.approx(expected, rel=1e-5)
  # d/dp of e^w / D || F - F_- - g ||^2 = - 2 e^w / D sum(dF/dp g).
  expected = np.mean(-2 * np.exp(0.3) / D * np.sum(x**2 * t * g, -1))
  assert float(grads["net"]) == pytest.approx(expected, rel=1e-4)


def test_the_learned_weight_is_at_rest_where_the_weighted_loss_is_one():
  weight = weighting.learned(bias=np.log(D))
  loss_fn = make("sct", weight)
  far = params(weight, 400.0)  # a huge tangent, so that ||g|| / (||g|| + c) is 1
  grads = jax.jit(jax.grad(lambda p: loss_fn(p, batch(), jax.random.key(1), 10_000)[0]))(far)
  assert float(grads["weighting"]["bias"]) == pytest.approx(0.0, abs=0.02)


def test_primal_and_tangent_share_one_call_and_one_key():
  calls = []

  def apply(p, x, t, cond, key):
    calls.append(key)
    return p * x * t[:, None]

  net = Network(lambda key: {}, apply)
  loss_fn = continuous.loss(
    net, continuous.data_velocity(), SAMPLE_T, weighting.constant(), sigma_data=SIGMA_DATA
  )
  loss_fn({"net": jnp.ones(()), "weighting": {}}, batch(4), jax.random.key(0), 0)
  assert len(calls) == 1 and calls[0] is not None


def test_a_tangent_of_its_own_network_gives_g_and_the_other_one_the_gradient():
  """The same lines as in Algorithm 1, with F = p x^3 where the tangent has p x^2 t."""
  keys = []

  def network(F):
    return Network(lambda key: {}, lambda p, x, t, cond, key: keys.append(key) or p * F(x, t))

  loss_fn = continuous.loss(
    network(lambda x, t: x**3),
    continuous.data_velocity(),
    SAMPLE_T,
    weighting.constant(),
    sigma_data=SIGMA_DATA,
    warmup_steps=0,
    tangent_net=network(lambda x, t: x**2 * t[:, None]),
  )
  p, x0, key = {"net": jnp.float32(0.7), "weighting": {}}, batch(32)["image"], jax.random.key(3)
  grads, metrics = jax.grad(loss_fn, has_aux=True)(p, {"image": x0}, key, 0)
  assert len(keys) == 2 and jnp.array_equal(*map(jax.random.key_data, keys))

  key_t, key_z, _ = jax.random.split(key, 3)
  t = np.asarray(SAMPLE_T(key_t, (32,)), np.float64)[:, None]
  z = SIGMA_DATA * np.asarray(jax.random.normal(key_z, x0.shape), np.float64)
  x0 = np.asarray(x0, np.float64)
  x_t = np.cos(t) * x0 + np.sin(t) * z
  dxdt, x = np.cos(t) * z - np.sin(t) * x0, x_t / SIGMA_DATA
  F, dF = 0.7 * x**2 * t, 0.7 * (2 * x * t * dxdt / SIGMA_DATA + x**2)
  g = -(np.cos(t) ** 2) * (SIGMA_DATA * F - dxdt)
  g -= np.cos(t) * np.sin(t) * (x_t + SIGMA_DATA * dF)
  norm = np.linalg.norm(g, axis=-1, keepdims=True)
  expected = np.mean(-2 / D * np.sum(x**3 * g / (norm + 0.1), -1))
  assert float(grads["net"]) == pytest.approx(expected, rel=1e-4)
  assert means.merge([metrics])["tangent_norm"] == pytest.approx(np.mean(norm), rel=1e-5)
  F_error = np.mean((0.7 * x**3 - dxdt / SIGMA_DATA) ** 2)
  assert means.merge([metrics])["F_error"] == pytest.approx(F_error, rel=1e-5)


def test_labels_reach_student_and_teacher_and_the_teacher_has_no_dropout():
  seen = {}

  def apply(name):
    def apply(p, x, t, cond, key):
      seen[name] = (cond["label"].tolist(), key)
      return x

    return apply

  teacher = Network(lambda key: {}, apply("teacher"))
  loss_fn = continuous.loss(
    Network(lambda key: {}, apply("student")),
    continuous.teacher_velocity(teacher, {}, sigma_data=SIGMA_DATA),
    SAMPLE_T,
    weighting.constant(),
    sigma_data=SIGMA_DATA,
  )
  labelled = batch(3) | {"label": jnp.array([2, 0, 1])}
  loss_fn({"net": {}, "weighting": {}}, labelled, jax.random.key(0), 0)
  assert seen["teacher"] == ([2, 0, 1], None)
  assert seen["student"][0] == [2, 0, 1] and seen["student"][1] is not None


def test_no_gradient_goes_through_what_a_loss_reports():
  t = jnp.array([0.1, 1.2])
  total = lambda values: sum(mean.total for mean in means.by_time("a", values, t).values())
  value, slope = jax.value_and_grad(total)(jnp.array([2.0, 3.0]))
  assert value == 2 * 5 and not np.any(slope)  # over all, and in the bins


def test_an_unknown_norm_is_refused():
  with pytest.raises(ValueError, match="Unknown tangent norm 'L2'. Choose from: l2, rms"):
    continuous.loss(
      DIFFUSION, continuous.data_velocity(), SAMPLE_T, weighting.constant(),
      sigma_data=SIGMA_DATA, norm="L2",
    )  # fmt: skip


def below(gap):
  return lambda t: (1 - gap) * t


ESTIMATORS = {
  "exact": tangent.exact(),
  "central": tangent.central(1e-3),
  "semi_continuous": tangent.semi_continuous(1e-2),
  "discrete": tangent.discrete(below(0.002)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_pulls_back_to_the_exact_solution_with_one_dropout_key(name):
  keys = []

  def apply(p, x, t, cond, key):
    keys.append(key)
    return CONSISTENCY.apply(p, x, t, cond, key)

  loss_fn = continuous.loss(
    Network(CONSISTENCY.init, apply),
    continuous.teacher_velocity(DIFFUSION, jnp.ones(()), sigma_data=SIGMA_DATA),
    SAMPLE_T,
    weighting.constant(),
    sigma_data=SIGMA_DATA,
    warmup_steps=0,
    estimator=ESTIMATORS[name],
  )
  grad = jax.jit(jax.grad(lambda p: loss_fn(p, batch(), jax.random.key(1), 0)[0]))
  at_rest, moved = grad(params(weighting.constant())), grad(params(weighting.constant(), 1.1))
  assert abs(float(at_rest["net"])) < 0.03 * float(moved["net"])
  assert all(key is keys[0] for key in keys[: {"exact": 1, "discrete": 2}.get(name, 3)])
  assert keys[0] is not None


def test_segments_begin_at_uniform_times_and_the_last_one_holds_what_is_beyond():
  t_max = np.arctan(80 / SIGMA_DATA)
  width = np.float32(t_max / 4)
  t = jnp.array([1e-6, 0.1, width, 0.4, 0.8, 1.3, t_max, np.pi / 2])
  starts = continuous.segment_starts(t, 4, sigma_data=SIGMA_DATA)
  np.testing.assert_allclose(starts, t_max / 4 * np.array([0, 0, 0, 1, 2, 3, 3, 3]), rtol=1e-6)
  assert bool(jnp.all(starts < t))
  assert not np.any(continuous.segment_starts(t, 1, sigma_data=SIGMA_DATA))


def segmented():
  """The true multistep consistency model of Gaussian data: the ODE's solution at t_k."""

  def apply(p, x, t, cond, key):
    s = cond["segment"]
    x_t = SIGMA_DATA * x
    cosine, sine = trigflow.cos_sin(t - s, x)
    return p * (cosine * x_t - exact.flow(x_t, t, s)) / (SIGMA_DATA * sine)

  return Network(lambda key: jnp.ones(()), apply)


def test_multistep_scd_leaves_the_true_solution_of_each_segment_at_rest():
  def make(num_segments, estimator=tangent.tangent):
    return continuous.loss(
      segmented(),
      continuous.teacher_velocity(DIFFUSION, jnp.ones(()), sigma_data=SIGMA_DATA),
      times.lognormal(-1.0, 0.5, sigma_data=SIGMA_DATA),
      weighting.constant(),
      sigma_data=SIGMA_DATA,
      warmup_steps=0,
      num_segments=num_segments,
      estimator=estimator,
    )

  value = jax.jit(lambda p: make(3)(p, batch(), jax.random.key(1), 0))
  norm = lambda factor: value(params(weighting.constant(), factor))[1]["tangent_norm"].total / 256
  assert float(norm(1.0)) < 1e-3 and float(norm(1.1)) > 1e-2


def test_one_segment_and_no_guidance_are_the_plain_loss_bit_for_bit():
  options = dict(guidance=None, num_segments=1, estimator=tangent.exact())
  make = lambda **options: continuous.loss(
    CONSISTENCY, continuous.data_velocity(), SAMPLE_T, weighting.constant(),
    sigma_data=SIGMA_DATA, **options,
  )  # fmt: skip
  grad = lambda loss_fn: jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
    params(weighting.constant(), 1.2), batch(), jax.random.key(1), jnp.int32(7)
  )
  plain = grad(make())
  jax.tree.map(np.testing.assert_array_equal, plain, grad(make(**options)))
  # These very numbers were those of the loss before it had the options.
  value = float(plain[0][0])
  assert value == pytest.approx(0.09343515336513519, rel=1e-5)


def test_student_and_teacher_get_the_same_guidance_and_the_other_draws_stay():
  seen = {}

  def apply(name):
    def apply(p, x, t, cond, key):
      seen[name] = (np.asarray(x), np.asarray(t), cond)
      return x

    return apply

  def run(guidance):
    loss_fn = continuous.loss(
      Network(lambda key: {}, apply("student")),
      continuous.teacher_velocity(
        Network(lambda key: {}, apply("teacher")), {}, sigma_data=SIGMA_DATA
      ),
      SAMPLE_T,
      weighting.constant(),
      sigma_data=SIGMA_DATA,
      guidance=guidance,
      # Two network calls without a jvp, whose tracers could not be looked at.
      estimator=lambda net, x, t, dxdt, **_: (net(x / SIGMA_DATA, t), x),
    )
    loss_fn({"net": {}, "weighting": {}}, batch(512), jax.random.key(0), 0)
    return dict(seen)

  plain, guided = run(None), run((1.0, 3.0))
  assert "guidance" not in plain["student"][2] and "guidance" not in plain["teacher"][2]
  scale = np.asarray(guided["student"][2]["guidance"])
  np.testing.assert_array_equal(scale, guided["teacher"][2]["guidance"])
  assert scale.min() >= 1 and scale.max() < 3 and scale.mean() == pytest.approx(2, abs=0.1)
  # Independent of t (a key used twice would correlate them), and t and x are as before.
  assert abs(np.corrcoef(scale, guided["student"][1])[0, 1]) < 0.15
  for name in ("student", "teacher"):
    for before, after in zip(plain[name][:2], guided[name][:2], strict=True):
      np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(guidance=(2.0, 1.0)), r"guidance=\(2.0, 1.0\) must be a pair \(low, high\)"),
    (dict(num_segments=0), "num_segments=0 must be at least 1"),
  ],
)
def test_wrong_guidance_and_segments_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    continuous.loss(
      DIFFUSION, continuous.data_velocity(), SAMPLE_T, weighting.constant(),
      sigma_data=SIGMA_DATA, **options,
    )  # fmt: skip
