import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmjax import distances, edm, tangent, times, trigflow
from cmjax.losses import continuous, discrete
from cmjax.types import Network
from helpers import exact
from helpers.exact import SIGMA_DATA, S

D = 6
HUBER = distances.pseudo_huber(0.03)
LOGNORMAL = times.lognormal_pairs(times.fixed(18))
TEACHER = Network(lambda key: {}, lambda p, x, t, cond, key: exact.F_diffusion(x, t))
# Linear in x with a free factor: at 1 the true consistency model of Gaussian data.
STUDENT = Network(
  lambda key: jnp.ones(()), lambda p, x, t, cond, key: p * exact.F_consistency(x, t)
)


def of(apply):
  return Network(lambda key: {}, apply)


def batch(n=64):
  return {"image": S * jax.random.normal(jax.random.key(7), (n, D))}


def at(sigma, sigma_next):
  """Always the same pair."""
  # With a dtype: without one, times float32 noise would stay float32 also in 64-bit tests.
  full = lambda shape, level: jnp.full(shape, level, jnp.result_type(float))
  return lambda key, shape, step: (full(shape, sigma), full(shape, sigma_next))


def teacher_step(solver="heun"):
  velocity = continuous.teacher_velocity(TEACHER, {}, sigma_data=SIGMA_DATA)
  return discrete.teacher_step(velocity, solver)


def make(net=STUDENT, step=None, pairs=LOGNORMAL, distance=HUBER, **kwargs):
  step = step or discrete.data_step()
  return discrete.loss(net, step, pairs, distance, sigma_data=SIGMA_DATA, **kwargs)


def value(loss_fn, params, data=None, key=None, step=0):
  key = jax.random.key(1) if key is None else key
  return loss_fn(params, data or batch(), key, step)[0]


# --- laws ---

METHODS = {
  "ct": dict(
    pairs=times.uniform_pairs(times.square_root(100, 2, 20)), sigma_min=0.002, target="average"
  ),
  "cd": dict(step=teacher_step(), pairs=times.uniform_pairs(times.fixed(18)), sigma_min=0.002),
  "ict": dict(
    pairs=times.lognormal_pairs(times.doubling(100, 5, 20)), sigma_min=0.002, weight="inverse_gap"
  ),
  "ect": dict(pairs=times.ect_pairs(), distance=distances.l2(), weight="inverse_gap"),
  "ecd": dict(step=teacher_step(), pairs=times.ect_pairs(), weight="karras", weight_level="larger"),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_finite_the_same_under_jit_and_traced_once(name):
  loss_fn, traces = make(**METHODS[name]), []
  params = {"net": jnp.asarray(1.3), "target": jnp.asarray(1.1)}
  grad = jax.value_and_grad(loss_fn, has_aux=True)
  jitted = jax.jit(lambda *args: traces.append(1) or grad(*args))
  for step in (0, 60):
    args = (params, batch(), jax.random.key(1), jnp.int32(step))
    (compiled, metrics), grads = jitted(*args)
    assert np.isfinite(compiled) and float(metrics["loss"].total) == float(compiled)
    assert float(grads["net"]) != 0 and float(grads["target"]) == 0
  assert len(traces) == 1
  (plain, _), plain_grads = grad(*args)
  assert float(plain) == pytest.approx(float(compiled), rel=1e-4)
  assert float(plain_grads["net"]) == pytest.approx(float(grads["net"]), rel=1e-3)


def test_metrics_show_the_unweighted_distance_and_where_the_curriculum_stands():
  curriculum = times.doubling(100, 10, 40)
  loss_fn = make(
    pairs=times.lognormal_pairs(curriculum), weight="inverse_gap", curriculum=curriculum
  )
  for step, N in ((0, 11), (99, 41)):
    loss, metrics = loss_fn({"net": jnp.asarray(1.3)}, batch(), jax.random.key(1), step)
    mean = {name: float(m.total / m.count) for name, m in metrics.items() if "/" not in name}
    assert mean["num_levels"] == N and mean["loss"] == pytest.approx(float(loss))
    sigma, sigma_next = times.lognormal_pairs(times.fixed(N))(
      jax.random.split(jax.random.key(1), 3)[0], (64,), 0
    )
    assert mean["sigma_gap"] == pytest.approx(float(jnp.mean(sigma - sigma_next)), rel=1e-5)
    assert mean["sigma_ratio"] == pytest.approx(float(jnp.mean(sigma_next / sigma)), rel=1e-5)
    assert mean["weight"] == pytest.approx(float(jnp.mean(1 / (sigma - sigma_next))), rel=1e-4)
    by_bin = [m for name, m in metrics.items() if name.startswith("distance/")]
    assert sum(float(m.count) for m in by_bin) == 64
    total = sum(float(m.total) for m in by_bin)
    assert mean["distance"] == pytest.approx(total / 64, rel=1e-5)
  assert "num_levels" not in make()({"net": jnp.ones(())}, batch(), jax.random.key(1), 0)[1]


# --- the papers' steps, by hand ---


def by_hand(sigma, sigma_next, x0, eps, p, *, sigma_min, c):
  """Residual, distance and its gradient in p of F_EDM = p sin(3 x) ln(sigma) / 4, in float64."""

  def f(x, sigma):
    root = np.sqrt(sigma**2 + SIGMA_DATA**2)
    c_skip = SIGMA_DATA**2 / ((sigma - sigma_min) ** 2 + SIGMA_DATA**2)
    c_out = SIGMA_DATA * (sigma - sigma_min) / root
    df = c_out * np.sin(3 * x / root) * np.log(sigma) / 4
    return c_skip * x + p * df, df

  a, da = f(x0 + sigma * eps, sigma)
  b, _ = f(x0 + sigma_next * eps, np.where(sigma_next > 0, sigma_next, 1))
  b = np.where(sigma_next > 0, b, x0)
  squares = np.sum((a - b) ** 2, -1)
  root = np.sqrt(squares + c**2)
  return root - c, np.sum((a - b) * da, -1) / root


@pytest.mark.parametrize(
  "name, sigma_min, c", [("ict", 0.002, 0.00054 * np.sqrt(D)), ("ect", 0.0, 1e-8)]
)
def test_the_reference_step_in_sigma_by_hand_gives_loss_and_gradient(name, sigma_min, c):
  pairs = {"ict": times.lognormal_pairs(times.doubling(400, 10, 1280)), "ect": times.ect_pairs()}
  distance = {"ict": distances.pseudo_huber(), "ect": distances.l2()}[name]
  apply = lambda p, x, c_noise, cond, key: p * jnp.sin(3 * x) * c_noise[:, None]
  loss_fn = make(
    of(edm.as_trigflow(apply, sigma_data=SIGMA_DATA)), None, pairs[name], distance,
    sigma_min=sigma_min, weight="inverse_gap", loss_scale=0.5,
  )  # fmt: skip
  x0, key = batch()["image"], jax.random.key(3)
  loss, grads = jax.jit(jax.value_and_grad(lambda p: value(loss_fn, {"net": p}, None, key)))(
    jnp.float32(0.7)
  )

  key_t, key_z, _ = jax.random.split(key, 3)
  sigma, sigma_next = (np.asarray(a, np.float64)[:, None] for a in pairs[name](key_t, (64,), 0))
  eps = np.asarray(jax.random.normal(key_z, x0.shape), np.float64)
  d, dd = by_hand(sigma, sigma_next, np.asarray(x0, np.float64), eps, 0.7, sigma_min=sigma_min, c=c)
  assert name == "ict" or 0.2 < np.mean(sigma_next == 0) < 1  # both targets are in use
  gap = (sigma - sigma_next)[:, 0]
  assert float(loss) == pytest.approx(0.5 * np.mean(d / gap), rel=1e-4)
  assert float(grads) == pytest.approx(0.5 * np.mean(dd / gap), rel=1e-4)


def test_weights_are_of_the_level_they_name():
  sigma, below = 0.8, 0.3
  distance = lambda a, b: jnp.ones(len(a))
  get = lambda weight, **kwargs: float(
    value(
      make(pairs=at(sigma, below), distance=distance, weight=weight, **kwargs),
      {"net": jnp.ones(())},
    )
  )
  assert get("uniform") == 1
  assert get("uniform", loss_scale=3.0) == 3
  assert get("inverse_gap") == pytest.approx(1 / 0.5, rel=1e-6)
  assert get("snr") == pytest.approx(1 / 0.09, rel=1e-5)
  assert get("snr_plus_one") == pytest.approx(1 / 0.09 + 1, rel=1e-5)
  assert get("truncated_snr") == pytest.approx(1 / 0.09, rel=1e-5)
  assert get("karras") == pytest.approx(1 / 0.09 + 4, rel=1e-5)
  larger = get("karras", weight_level="larger")
  assert larger == pytest.approx((0.64 + 0.25) / (0.8 * 0.5) ** 2, rel=1e-5)  # ECT's form
  sigma, below = 3.0, 2.0
  assert get("truncated_snr") == 1


# --- the trajectory ---


@pytest.mark.parametrize("solver, order", [("heun", 3), ("euler", 2)])
def test_one_step_of_the_teacher_has_the_local_error_of_its_solver(solver, order):
  with jax.enable_x64(True):
    gaps = np.array([0.08, 0.04, 0.02, 0.01])
    t, s = jnp.full(4, 0.9), jnp.asarray(0.9 - gaps)
    x_t = jnp.ones((4, 1))
    x_s = teacher_step(solver)(None, None, x_t, t, s, {})
    errors = np.abs(np.asarray(x_s - exact.flow(x_t, t, s)))[:, 0]
    slopes = np.diff(np.log(errors)) / np.diff(np.log(gaps))
    np.testing.assert_allclose(slopes[-1], order, atol=0.1)


def test_heun_in_trigflow_is_cms_heun_in_sigma():
  x_sigma, sigma, below = np.array([[0.7, -1.2]]), 3.0, 1.1
  D_fn = lambda x, sigma: S**2 / (S**2 + sigma**2) * x
  v = (x_sigma - D_fn(x_sigma, sigma)) / sigma
  x_p = x_sigma + (below - sigma) * v
  v_p = (x_p - D_fn(x_p, below)) / below
  expected = x_sigma + (below - sigma) / 2 * (v + v_p)
  t, s = (trigflow.sigma_to_t(jnp.full(1, u), sigma_data=SIGMA_DATA) for u in (sigma, below))
  x_s = teacher_step()(None, None, jnp.cos(t)[:, None] * x_sigma, t, s, {})
  np.testing.assert_allclose(x_s / jnp.cos(s)[:, None], expected, rtol=1e-5)


def test_heun_takes_eulers_step_to_zero_and_never_asks_the_teacher_there():
  velocity = lambda x0, z, x_t, t, cond: jnp.where(t == 0, jnp.nan, 1.0)[:, None] * x_t
  x_t, t, s = jnp.ones((2, 3)), jnp.array([0.9, 0.9]), jnp.array([0.0, 0.5])
  heun = discrete.teacher_step(velocity, "heun")(x_t, x_t, x_t, t, s, {})
  euler = discrete.teacher_step(velocity, "euler")(x_t, x_t, x_t, t, s, {})
  np.testing.assert_allclose(heun[0], euler[0], rtol=1e-6)
  assert np.all(np.isfinite(heun)) and np.all(heun[1] != euler[1])


def test_a_heun_step_evaluates_the_teacher_twice_once_compiled():
  kernel = jnp.ones((256, 256))
  velocity = lambda x0, z, x_t, t, cond: jnp.tanh(x_t) @ kernel
  x, t, s = jnp.ones((32, 256)), jnp.full(32, 0.9), jnp.full(32, 0.5)

  def flops(solver):
    step = jax.jit(lambda x, t, s: discrete.teacher_step(velocity, solver)(x, x, x, t, s, {}))
    return step.lower(x, t, s).compile().cost_analysis()["flops"]

  assert flops("heun") / flops("euler") == pytest.approx(2, abs=0.1)


def test_the_datas_step_is_the_rotation_along_its_velocity_and_ends_in_x0_itself():
  x0, z = batch()["image"], trigflow.noise(jax.random.key(2), (64, D), sigma_data=SIGMA_DATA)
  t, s = jnp.full(64, 1.2), jnp.full(64, 0.4)
  x_t = trigflow.interpolate(x0, z, t)
  x_s = discrete.data_step()(x0, z, x_t, t, s, {})
  rotated = trigflow.step(x_t, trigflow.velocity(x0, z, t), t, s)
  np.testing.assert_allclose(x_s, rotated, atol=1e-6)
  np.testing.assert_array_equal(discrete.data_step()(x0, z, x_t, t, 0 * s, {}), x0)


# --- towards continuous time ---


@pytest.mark.parametrize("step", [discrete.data_step(), teacher_step()], ids=["data", "teacher"])
def test_the_gradient_over_the_gap_goes_to_the_continuous_one_at_first_order(step):
  """CM's theorems 5 and 6, with the Karras grid's own neighbours below one fixed level."""
  with jax.enable_x64(True):
    sizes = np.array([32, 64, 128, 256])
    key = jax.random.key(1)
    _, key_z, _ = jax.random.split(key, 3)
    x0 = S * jax.random.normal(jax.random.key(7), (16, D))
    sigma = times.karras_sigma(3, 5)
    t = jnp.full(16, trigflow.sigma_to_t(sigma, sigma_data=SIGMA_DATA), jnp.float64)
    z = trigflow.noise(key_z, x0.shape, sigma_data=SIGMA_DATA)
    x_t = trigflow.interpolate(x0, z, t)
    net = lambda p, x, t, cond, key: jnp.sin(p * x) * (1 + t[:, None])
    near = step(x0, z, x_t, t, t - 1e-6, {})
    dxdt = (x_t - near) / 1e-6
    F_fn = lambda x, t: net(0.7, x, t, {}, None)
    _, g = tangent.tangent(F_fn, x_t, t, dxdt, sigma_data=SIGMA_DATA)
    df = g / jnp.cos(t)[:, None]

    def pseudo_objective(p):
      f = trigflow.denoise(x_t, SIGMA_DATA * net(p, x_t / SIGMA_DATA, t, {}, None), t)
      return jnp.mean(jnp.sum(2 * f * df, -1))

    @jax.jit
    def discrete_gradient(below):
      loss_fn = make(of(net), step, at(sigma, below), distances.squared_l2())
      return jax.grad(loss_fn, has_aux=True)({"net": 0.7}, {"image": x0}, key, 0)[0]["net"]

    limit = float(jax.jit(jax.grad(pseudo_objective))(0.7))
    errors, gaps = [], []
    for n in sizes:
      below = times.karras_sigma(3 * n // 4 - 1, n + 1)
      gap = float(t[0]) - float(trigflow.sigma_to_t(below, sigma_data=SIGMA_DATA))
      errors.append(abs(float(discrete_gradient(below)) / gap - limit))
      gaps.append(gap)
    slopes = np.diff(np.log(errors)) / np.diff(np.log(gaps))
    np.testing.assert_allclose(slopes[-1], 1, atol=0.1)
    assert errors[-1] < 0.05 * abs(limit)


def test_distilling_the_exact_ode_leaves_the_exact_solution_at_rest():
  pairs = times.uniform_pairs(times.fixed(200))
  loss_fn = make(step=teacher_step(), pairs=pairs, distance=distances.squared_l2())
  grad = jax.jit(jax.grad(lambda p: value(loss_fn, {"net": p})))
  moved = float(grad(1.1))
  assert moved > 0 and abs(float(grad(1.0))) < 0.02 * moved


# --- the target ---


def toy(sigma_min):
  """iCT's toy model f = (sigma_min / sigma) x_sigma + (1 - sigma_min / sigma) theta as a net."""

  def apply(theta, x, t, cond, key):
    c, s = trigflow.cos_sin(t, x)
    ratio = sigma_min * c / (SIGMA_DATA * s)
    f = ratio * SIGMA_DATA * x / c + (1 - ratio) * theta
    return (c * SIGMA_DATA * x - f) / (SIGMA_DATA * s)

  return of(apply)


def toy_gradient(theta, xi, gap, target=None):
  kind = "current" if target is None else "average"
  loss_fn = make(
    toy(0.1), None, at(0.6, 0.6 - gap), distances.squared_l2(), weight="inverse_gap", target=kind
  )
  data = {"image": jnp.full((8, 1), xi)}
  return float(
    jax.grad(lambda p: value(loss_fn, {"net": p, "target": target}, data))(jnp.float64(theta))
  )


def test_with_the_students_own_target_the_toy_model_learns_the_data():
  """Data at xi alone (iCT, section 3.2): gradient 2 sigma_min / t^2 (1 - sigma_min / t)."""
  with jax.enable_x64(True):
    limit = 2 * 0.1 / 0.6**2 * (1 - 0.1 / 0.6)
    for xi in (-0.4, 0.5):
      expected = limit * (0.2 - xi) * 0.6 / (0.6 - 1e-3)  # with the gap: 1 / (t s) for 1 / t^2
      assert toy_gradient(0.2, xi, 1e-3) == pytest.approx(expected, rel=1e-6)


def test_with_an_average_for_target_the_toy_model_forgets_the_data():
  with jax.enable_x64(True):
    scaled = [1e-4 * toy_gradient(0.2, xi, 1e-4, 0.1) for xi in (-0.4, 0.5)]
    np.testing.assert_allclose(scaled, 2 * (1 - 0.1 / 0.6) ** 2 * (0.2 - 0.1), rtol=0.01)
    assert scaled[0] == pytest.approx(scaled[1], rel=0.01)  # whatever xi is


def test_the_current_target_is_stopped_and_the_average_is_read_and_stopped():
  params = {"net": jnp.asarray(1.3), "target": jnp.asarray(1.3)}
  grad = lambda target, params: jax.jit(jax.grad(lambda p: value(make(target=target), p)))(params)
  average, current = grad("average", params), grad("current", params)
  assert float(average["target"]) == 0
  assert float(average["net"]) == pytest.approx(float(current["net"]), rel=1e-6)
  other = grad("average", params | {"target": jnp.asarray(1.0)})
  assert abs(float(other["net"]) - float(average["net"])) > 1e-3
  # A target with a gradient would have another slope: that of both ends together.
  h = 1e-2
  both = [float(value(make(), {"net": jnp.asarray(1.3 + d)})) for d in (-h, h)]
  assert abs((both[1] - both[0]) / (2 * h) - float(current["net"])) > 1e-3


def test_student_and_target_share_one_dropout_mask():
  keys = []

  def apply(p, x, t, cond, key):
    keys.append(jax.random.key_data(key).tolist())
    return p * x * jax.random.bernoulli(key, 0.5, x.shape)

  # At two nearly equal levels two masks would lie far apart, one mask does not.
  loss_fn = make(of(apply), pairs=at(1.0, 1.0 - 1e-3), distance=distances.squared_l2())
  shared = float(value(loss_fn, {"net": jnp.ones(())}))
  assert len(keys) == 2 and keys[0] == keys[1]
  assert shared < 1e-4


def test_where_the_next_level_is_zero_the_target_is_x0_and_no_network_is_asked_there():
  asked = []

  def apply(p, x, t, cond, key):
    asked.append(t)
    return p * jnp.log(jnp.tan(t))[:, None] * x

  pairs = lambda key, shape, step: (
    jnp.full(shape, 0.7),
    jnp.where(jnp.arange(shape[0]) < 4, 0, 0.3),
  )
  loss_fn = make(of(apply), pairs=pairs, distance=distances.squared_l2(), weight="inverse_gap")
  key = jax.random.key(1)
  data, p = batch(8), jnp.asarray(0.4)
  grad = jax.grad(lambda p: value(loss_fn, {"net": p}, data, key))(p)
  assert np.isfinite(grad) and all(float(jnp.min(t)) > 0 for t in asked)
  # The first four alone: a denoising loss.
  first = {"image": data["image"]}
  loss = float(value(make(of(apply), pairs=at(0.7, 0.0), distance=distances.squared_l2()),
                     {"net": p}, first, key))  # fmt: skip
  z = trigflow.noise(jax.random.split(key, 3)[1], (8, D), sigma_data=SIGMA_DATA)
  t = trigflow.sigma_to_t(jnp.full(8, 0.7), sigma_data=SIGMA_DATA)
  x_t = trigflow.interpolate(data["image"], z, t)
  f = trigflow.denoise(x_t, SIGMA_DATA * apply(p, x_t / SIGMA_DATA, t, {}, None), t)
  expected = jnp.mean(jnp.sum((f - data["image"]) ** 2, -1))
  assert loss == pytest.approx(float(expected), rel=1e-5)


def test_labels_reach_student_target_and_teacher_and_only_the_teacher_has_no_dropout():
  seen = []

  def apply(p, x, t, cond, key):
    seen.append((p, cond["label"].tolist(), key is None))
    return x * t[:, None]

  velocity = continuous.teacher_velocity(of(apply), "teacher", sigma_data=SIGMA_DATA)
  loss_fn = make(of(apply), discrete.teacher_step(velocity, "euler"), target="average")
  value(loss_fn, {"net": "net", "target": "target"}, batch(3) | {"label": jnp.array([2, 0, 1])})
  assert sorted(seen) == [
    ("net", [2, 0, 1], False), ("target", [2, 0, 1], False), ("teacher", [2, 0, 1], True)
  ]  # fmt: skip


def test_nothing_is_clipped_inside_the_loss():
  apply = lambda p, x, t, cond, key: p * jnp.ones_like(x) * t[:, None]
  loss_fn = make(of(apply), pairs=at(1.0, 0.5), distance=distances.l1())
  small, large = (float(value(loss_fn, {"net": jnp.asarray(p)})) for p in (100.0, 1000.0))
  assert large == pytest.approx(10 * small, rel=0.01)


# --- the optimiser ---


def test_a_scaled_loss_moves_adam_and_rectified_radam_alike():
  """RAdam's first five steps are not rectified with b2 = 0.999, and follow the scale."""
  grads = []
  for scale in (1.0, 100.0):
    loss_fn = make(loss_scale=scale, weight="inverse_gap")
    grad = jax.jit(jax.grad(lambda p, key, f=loss_fn: value(f, {"net": p}, None, key)))
    grads.append([grad(jnp.float32(1.3), jax.random.key(k)) for k in range(8)])
  for make_tx, free in ((optax.adam, 0), (optax.radam, 5)):
    tx, moves = make_tx(1e-4, b1=0.9, b2=0.999, eps=1e-8), []
    update_fn = jax.jit(tx.update)
    for series in grads:
      state, moved = tx.init(jnp.float32(1.3)), []
      for g in series:
        update, state = update_fn(g, state)
        moved.append(float(update))
      moves.append(np.array(moved))
    np.testing.assert_allclose(moves[1][free:], moves[0][free:], rtol=1e-4)
    np.testing.assert_allclose(moves[1][:free], 100 * moves[0][:free], rtol=1e-4)


@pytest.mark.parametrize(
  "make_it, message",
  [
    (lambda: make(target="ema"), "Unknown target 'ema'. Choose from: average, current"),
    (lambda: make(weight="snr1"), "Unknown weight 'snr1'. Choose from: uniform, inverse_gap, snr"),
    (lambda: make(weight="snr", weight_level="t"), "Unknown weight_level 't'"),
    (lambda: discrete.teacher_step(lambda *a: a[2], "rk"), "Unknown solver 'rk'"),
  ],
)
def test_unknown_choices_are_refused(make_it, message):
  with pytest.raises(ValueError, match=message):
    make_it()
