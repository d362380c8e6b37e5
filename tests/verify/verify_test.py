"""The table passes on this library, and every row fails on one with an error planted in it."""

import functools
import inspect
import math
import textwrap

import jax
import jax.numpy as jnp
import pytest

from cmjax import (
  distances,
  editing,
  edm,
  ema,
  embeddings,
  experiment,
  guidance,
  samplers,
  tangent,
  times,
  trigflow,
  verify,
  weighting,
)
from cmjax.losses import continuous, continuous_2023, diffusion, discrete, distribution
from cmjax.program import train
from cmjax.samplers import conventions, few_steps, ode, search_times
from helpers import losses, tiny

MODULES = dict(
  distances=distances, edm=edm, editing=editing, ema=ema, guidance=guidance, samplers=samplers,
  search_times=search_times, conventions=conventions, tangent=tangent, times=times,
  trigflow=trigflow, weighting=weighting, continuous=continuous, continuous_2023=continuous_2023,
  diffusion=diffusion, discrete=discrete, distribution=distribution, few_steps=few_steps, ode=ode,
)  # fmt: skip

# What is wrong: function [groups of rows that must see it] / right => wrong. The first part is the
# mistakes that sCM's ports and CM's, iCT's and ECT's public code made, then what is left of rows.
PLANTS = r"""
tangent lost sigma_data: tangent.tangent [tangent continuous]
  cs * dxdt / sigma_data => cs * dxdt
convention B, and sigma_data again: tangent._assemble [tangent continuous]
  sigma_data * cs_dF => sigma_data**2 * cs_dF
sin for cos: tangent._assemble [tangent continuous]
  -(c**2) => -(s**2)
jvp divided by cos sin again: tangent._assemble [tangent continuous]
  sigma_data * cs_dF => sigma_data * cs_dF / (c * s)
warm-up left out: tangent._assemble [tangent continuous]
  - warmup * => -
velocity matching alone: tangent._assemble [tangent continuous]
  - warmup * => - 0 *
F of another time: tangent.tangent [tangent continuous]
  (x_t / sigma_data, t), tangents => (x_t / sigma_data, 0.9 * t), tangents
norm over the batch: tangent.norm [tangent continuous continuous_2023]
  squares = g.reshape(len(g), -1) ** 2 => squares = 0 * g.reshape(len(g), -1) + jnp.sum(g**2)
no c: tangent.normalize [tangent continuous]
  + c) => + 0 * c)
times clamped: tangent.exact [tangent]
  return tangent => return lambda net, x, t, *a, **k: tangent(net, x, jnp.minimum(t, 1.4), *a, **k)
dsCM with t for t': tangent.discrete [tangent continuous]
  trigflow.cos_sin(t_next - origin, x_t) => trigflow.cos_sin(t - origin, x_t)
dsCM steps off the trajectory: tangent.discrete [tangent continuous]
  trigflow.step(x_t, dxdt, t, t_next) => trigflow.step(x_t, dxdt, t_next, t)
prior weighting twice: continuous.loss [continuous]
  w = weighting.apply(params["weighting"], t) => w = -jnp.log(sigma_data * jnp.tan(t))
no stop-gradient on F_-: continuous.loss [continuous]
  jax.lax.stop_gradient(F) => F
weight without its logarithm: continuous.loss [continuous]
  * squared - w) => * squared)
dropout forgotten: continuous.loss [continuous]
  cond, key_net) => cond, None)
segment hidden from the network: continuous.loss [continuous]
  "segment": origin => "part": origin
guidance hidden from the student: continuous.loss [continuous]
  weights, x, t, cond => weights, x, t, {}
teacher without sigma_data: continuous.teacher_velocity [continuous]
  sigma_data * teacher => teacher
guidance from 0: continuous.draw_guidance [continuous]
  minval=low => minval=0.0
guidance up to 1 more: continuous.draw_guidance [continuous]
  maxval=high => maxval=high + 1
segments of equal number, not of equal length: continuous.segment_starts [continuous]
  jnp.asarray(decreasing[:0:-1], t.dtype) => jnp.asarray(decreasing[:0:-1], t.dtype) ** 2
target not over sigma_data: diffusion.loss [diffusion distribution]
  trigflow.velocity(x0, z, t) / sigma_data => trigflow.velocity(x0, z, t)
diffusion weight not exponential: diffusion.loss [diffusion]
  jnp.exp(w) * squared => w * squared
theorem 3 without its half: continuous_2023._objective [continuous_2023]
  * product(f, v)) / 2 => * product(f, v))
theorem 4 squared: continuous_2023._objective [continuous_2023]
  jnp.abs(v) => v**2
a squared norm: continuous_2023._objective [continuous_2023]
  speed: tangent.norm(v) => speed: tangent.norm(v) ** 2
Hessian without its 2: continuous_2023._objective [continuous_2023]
  2 * v if => v if
no stop-gradient in theorem 5: continuous_2023._objective [continuous_2023]
  jax.lax.stop_gradient(product(jax.lax.stop_gradient(f), v)) => product(f, v)
Hessian at another point: continuous_2023.hessian_product [continuous_2023]
  (f,), (v,) => (f + 1,), (v,)
direction of the ODE times sigma_data: continuous_2023.loss [continuous_2023]
  trigflow.predict_noise(x_t, dxdt, t)) / sigma_data => trigflow.predict_noise(x_t, dxdt, t))
sign of VSD: distribution.loss [distribution]
  jax.lax.stop_gradient(velocity(fixed => jax.lax.stop_gradient(-velocity(fixed
generator not stopped for the fake network: distribution.loss [distribution]
  cond | {"image": jax.lax.stop_gradient(x0)} => cond | {"image": x0}
lambda_vsd forgotten: distribution.loss [distribution]
  lambda_vsd * vsd => vsd
generator starts at 0.8 sigma_data: distribution.loss [distribution]
  [1] * z => [1] * 0.8 * z
fake network learns from the data: distribution.loss [distribution]
  {"image": jax.lax.stop_gradient(x0)} => {"image": batch["image"]}
generator at t_max / 2: distribution.loss [distribution]
  trigflow.sigma_to_t(80.0, => trigflow.sigma_to_t(0.5,
no stop-gradient on the target: discrete.loss [discrete]
  jax.lax.stop_gradient(jnp.where(positive, f_s, x_s)) => jnp.where(positive, f_s, x_s)
average for stop-gradient: discrete.loss [discrete]
  if target == "average" => if "target" in params
stop-gradient for average: discrete.loss [discrete]
  "target" if target == "average" else "net" => "net"
dropout not shared: discrete.loss [discrete]
  t, cond, key_net) => t, cond, jax.random.fold_in(key_net, (t[0] * 1e6).astype(int)))
no weight: discrete.loss [discrete]
  w * d) => d)
loss_scale forgotten: discrete.loss [discrete]
  loss_scale * jnp.mean => jnp.mean
clamp in the training forward: edm.consistency [edm discrete]
  return skip * x_t - sigma_data * d * F => return (skip * x_t - sigma_data * d * F).clip(-1, 1)
r = 0 asks the network: discrete.loss [discrete]
  jnp.where(positive, f_s, x_s) => f_s
weight of the larger level: discrete._weight_fn [discrete]
  sigma if level == "larger" else sigma_next => sigma
weight of the smaller level: discrete._weight_fn [discrete]
  sigma if level == "larger" else sigma_next => sigma_next
uniform is not uniform: discrete._weight_fn [discrete]
  jnp.ones_like(sigma) => 2 * jnp.ones_like(sigma)
weight over the level, not the gap: discrete._weight_fn [discrete]
  1 / (sigma - sigma_next) => 1 / sigma
Heun without its correction: discrete.teacher_step [discrete]
  if solver == "heun" => if solver == "huen"
Euler with half a step: discrete.teacher_step [discrete]
  x_t, velocity(x0, z, x_t, t, cond), t, s) => x_t, velocity(x0, z, x_t, t, cond), t, (t + s) / 2)
noise not shared by the pair: discrete.data_step [discrete]
  trigflow.interpolate(x0, z, s) => trigflow.interpolate(x0, -z, s)
Heun in t: trigflow.heun_step [trigflow discrete samplers]
  change = predict_noise(x_p, v(x_p, s), s) - predict_noise(x_t, v_t, t) => change = v_t - v(x_p, s)
epsilon shift missing: edm.precondition [edm]
  shifted = sigma - sigma_min => shifted = sigma
epsilon shift missing in f: edm.consistency [edm discrete continuous_2023]
  sin - sigma_min / sigma_data * cos => sin
f without sigma_data: edm.consistency [edm discrete continuous_2023]
  sigma_data * d * F => d * F
c_skip without the shift: edm.consistency [edm discrete]
  if sigma_min else cos => if False else cos
c_in without the root: edm.precondition [edm]
  jnp.sqrt(sigma**2 + sigma_data**2) => (sigma**2 + sigma_data**2)
c_out with sigma_data squared: edm.precondition [edm]
  sigma_data * shifted * c_in => sigma_data**2 * shifted * c_in
c_out without sigma_data: edm.precondition [edm]
  sigma_data * shifted * c_in => shifted * c_in
sigma_data 0.5 written out: edm.precondition [edm]
  c_skip=sigma_data**2 => c_skip=0.25
c_in applied twice: edm.as_edm [edm]
  c_in * x_sigma, t => c_in**2 * x_sigma, t
sign of F_EDM: edm.as_trigflow [edm]
  -apply => apply
sign of F in D: edm.as_edm [edm]
  x_sigma - c_out => x_sigma + c_out
raw sigma as the time input: edm.c_noise [edm]
  jnp.log(sigma) / 4 => sigma
shifted, but not its skip: edm.shifted [edm]
  (skip * x + d * F) / sin => (0 * skip * x + d * F) / sin
element-wise Huber: distances.pseudo_huber [distances discrete]
  squares = _sum((a - b) ** 2) => return _sum(jnp.sqrt((a - b) ** 2 + c**2) - c)
no c under the root: distances.pseudo_huber [distances]
  return squares / (jnp.sqrt(squares + width**2) + width) => return jnp.sqrt(squares)
mean for sum: distances._sum [distances discrete]
  jnp.sum(values => jnp.mean(values
l1 squared: distances.l1 [distances]
  jax.lax.stop_gradient(jnp.sign(a - b)) => (a - b)
sign of P_mean: times.lognormal [times]
  P_mean + P_std => -P_mean + P_std
tau is not the log of sigma: times.lognormal [times]
  jnp.exp(tau) => sigma_data * jnp.exp(tau)
sign of P_mean in the pairs: times._lognormal_interval [times]
  - P_mean) / P_std => + P_mean) / P_std
sigma_min missing from the grid: times.karras_sigma [times]
  jnp.asarray(i) / (jnp.asarray(N) - 1) => (jnp.asarray(i) + 1) / jnp.asarray(N)
grid with rho 1: times.karras_sigmas [times]
  high + np.arange(n) / (n - 1) * (low - high)) ** rho => 0 * low + np.linspace(80, 0.002, n))
pairs two levels apart: times.uniform_pairs [times]
  karras_sigma(i + 1, N => karras_sigma(i + 2, N
pairs upside down: times.lognormal_pairs [times]
  karras_sigma(i + 1, N => karras_sigma(i - 1, N
one interval lost: times.uniform_pairs [times]
  0, N - 1) => 1, N - 1)
curriculum frozen: times.uniform_pairs [times]
  N = curriculum(step) => N = curriculum(0)
s1 for s1 + 1: times.square_root [times]
  (s1 + 1) ** 2 - s0**2 => s1**2 - s0**2
no + 1: times.doubling [times]
  s0 * 2**stage, s1) + 1 => s0 * 2**stage, s1)
one level too many: times.fixed [times]
  jnp.shape(step), N => jnp.shape(step), N + 1
gap shrinks a stage late: times.ect_pairs [times]
  stage + 1.0 => stage + 0.0
ECT without its clamp: times.ect_pairs [times]
  jnp.maximum(0.0, sigma * (1 - gap)) => sigma * (1 - gap)
n of the constant mapping: times.ect_pairs [times]
  else 1.0 => else 2.0
levels of dsCM from sigma_min, not 0: times._angles [times]
  np.zeros(1, np.float32), angles[1:] => angles[:1], angles[:-1]
the level itself is below it: times.below [times]
  side="left" => side="right"
two levels below: times.below [times]
  ) - 1\n => ) - 2\n
mid time is a sigma: times.consistency_times [times few_steps]
  *mid]) => *np.arctan2(mid, sigma_data)])
grid without its 0: times.ode_times [times]
  sigma_data), 0.0) => sigma_data), 0.001)
weight 1: weighting.constant [weighting]
  zeros_like => ones_like
sigma for 1 / sigma: weighting.inverse_sigma [weighting diffusion]
  -jnp.log => jnp.log
bias forgotten: weighting.learned [weighting continuous distribution]
  + params["bias"] => 
half-life counted in steps: ema.half_life [ema]
  jnp.exp2(-batch_size / h) => jnp.exp2(-1 / h)
no ramp-up: ema.half_life [ema]
  if rampup_ratio is not None => if False
average and parameters exchanged: ema.update [ema]
  e + weight * (p - e) => p + 0.9 * (e - p)
beta of another run: ema.constant [ema]
  jnp.shape(step), beta => jnp.shape(step), 1 - beta
gamma of the width's square: ema.power_gamma [ema]
  12.0 - t] => 12.0]
one update late: ema.power [ema]
  jnp.float32) + 1) => jnp.float32) + 2)
mu off by one: ema.curriculum [ema]
  int(convention == "openai") => int(convention == "paper")
sigma for 2 pi: trigflow.sigma_to_t [trigflow]
  jnp.arctan2(sigma, sigma_data) => jnp.arctan2(sigma, 1.0)
tan without sigma_data: trigflow.t_to_sigma [trigflow edm]
  sigma_data * jnp.tan => jnp.tan
noise of unit variance: trigflow.noise [trigflow distribution few_steps editing]
  return sigma_data * => return
sin and cos exchanged: trigflow.interpolate [trigflow discrete]
  c * x0 + s * z => s * x0 + c * z
velocity with the sign of DDPM: trigflow.velocity [trigflow diffusion]
  c * z - s * x0 => s * x0 - c * z
step in the wrong direction: trigflow.step [trigflow samplers moments few_steps]
  c * x_t - s * v => c * x_t + s * v
noise estimate without its skip: trigflow.predict_noise [trigflow samplers]
  s * x_t + c * v => c * v
score of the noise, not over its std: trigflow.score [trigflow]
  sigma_data**2 * s => sigma_data * s
Euler for DDIM: ode.ddim [samplers]
  trigflow.step(x, v(x, ts[0]), t, s) => x + (s - t)[:, None, None, None] * v(x, ts[0])
no correction: ode.heun [samplers]
  trigflow.heun_step(v, x, t, s) => trigflow.step(x, v(x, t), t, s)
r of the wrong sign: ode.dpmpp_2m [samplers]
  np.sin(t - s) / (2 * r => -np.sin(t - s) / (2 * r
churn added twice: ode._churn [moments]
  np.cos(t_hat) * added * S_noise => 2 * np.cos(t_hat) * added * S_noise + 0.1
churn scales the mean: ode._churn [moments]
  np.cos(t_hat) / np.cos(times) => 1.05 * np.cos(t_hat) / np.cos(times)
noise variance sigma^2: few_steps.alternate [few_steps]
  1 - ratio**2 => 1 - 0 * ratio**2
noise not at T: few_steps.alternate [editing]
  .at[0].set(1.0) => .at[0].set(0.0)
half of the noise: few_steps.alternate [moments]
  z = scale * => z = 0.5 * scale *
segment is its upper end: few_steps.segments [few_steps]
  "segment": s => "segment": t
segments uniform in sigma: times.segment_times [few_steps]
  np.linspace(np.arctan2(sigma_max, sigma_data), 0.0, => np.geomspace(1.56, 0.001,
positions count upwards: conventions.consistency_times_from_positions [few_steps]
  *sigmas[indices[:-1]] => *sigmas[indices[:-1] + 1]
sigma taken for an angle: conventions.consistency_times_from_sigmas [few_steps]
  np.arctan2(array, sigma_data) => np.minimum(array, 1.5)
the worst probe wins: search_times._add_time [few_steps]
  return min( => return max(
scale off by one: guidance._extrapolate [guidance]
  w * (F - F_guide) => (w - 1) * (F - F_guide)
no-class label is 0: guidance.classifier_free [guidance]
  NO_CLASS) => 0)
w = 1 guides: guidance.classifier_free [guidance]
  if scale == 1:\n => if scale == 1:\n      return 2 * F\n
inside for outside: guidance.interval [guidance]
  (inside, F), F, plain => (~inside, F), F, plain
known for unknown: editing.inpaint [editing]
  jnp.where(mask, 0, x) => jnp.where(mask, x, 0)
known is not put back: editing.edit [editing]
  x - known(x) + y => x
slerp is lerp: editing.slerp [editing]
  jnp.sin(w * safe) / jnp.sin(safe) => w
interpolates data, not noise: editing.interpolate [editing]
  trigflow.interpolate(jnp.zeros_like(z), z, times) => trigflow.interpolate(z, 0 * z, times)
starts without noise: editing.stroke_to_image [editing]
  key, image, times => key, image, (0.1,)
"""


def plants():
  """what -> (function, right, wrong, groups)."""
  lines = PLANTS.strip().split("\n")
  for head, edit in zip(lines[::2], lines[1::2], strict=True):
    what, place = head.rsplit(": ", 1)
    name, groups = place.rstrip("]").split(" [")
    right, wrong = (text.replace("\\n", "\n") for text in edit[2:].split(" =>", 1))
    yield what, (name, right, wrong.removeprefix(" "), groups.split())


def plant(monkeypatch, name, right, wrong):
  """Exchanges a piece of a function's source; everyone who holds the function has the new one."""
  module, attribute = name.split(".")
  function = inspect.unwrap(getattr(MODULES[module], attribute))
  source = textwrap.dedent(inspect.getsource(function))
  assert right in source, f"{name} has no {right!r} any more: plant the error anew."
  made = {}
  exec(compile(source.replace(right, wrong), name, "exec"), function.__globals__, made)
  monkeypatch.setattr(function, "__code__", made[attribute].__code__)


@functools.cache
def clean_rows(group, check):
  """The rows of a check while nothing is wrong."""
  return tuple(row._replace(group=group) for row in verify.caught(check))


@functools.cache
def clean():
  return [
    row for group, checks in verify.CHECKS.items() for c in checks for row in clean_rows(group, c)
  ]


@pytest.fixture(scope="module")
def names():
  return {(r.group, r.name) for r in clean()}


@pytest.mark.slow  # 900 programs of one operation each
def test_every_row_passes_and_there_are_many(names):
  assert not [r for r in clean() if not r.passed]
  assert len(names) == len(clean()) >= 60
  groups = {group for group, _ in names}
  assert groups == set(verify.CHECKS)


# Scanned samplers are compiled anew for each error, and a tangent is a hundred small programs.
COMPILED = {"samplers", "moments", "few_steps", "editing"}
COMPILED |= {"tangent", "diffusion", "continuous_2023"}


@pytest.mark.parametrize(
  "what",
  [
    pytest.param(what, marks=[pytest.mark.slow] if COMPILED & set(groups) else [])
    for what, (*_, groups) in plants()
  ],
)
def test_a_planted_error_is_seen(what):
  *edit, groups = dict(plants())[what]
  with pytest.MonkeyPatch.context() as patch:
    plant(patch, *edit)
    for group in groups:  # only up to the first row that sees it
      found = (r for check in verify.CHECKS[group] for r in verify.caught(check))
      # A check that crashed has seen nothing.
      assert any(not r.passed and not r.name.endswith(": crashed") for r in found), (
        f"No row of {group} saw it."
      )


@pytest.mark.slow
def test_every_row_sees_some_planted_error(names):
  blind = set(names)
  for _, (*edit, groups) in plants():
    with pytest.MonkeyPatch.context() as patch:
      plant(patch, *edit)
      for group, check in ((g, check) for g in groups for check in verify.CHECKS[g]):
        # A check all of whose rows saw an error before has nothing more to show.
        if any((group, row.name) in blind for row in clean_rows(group, check)):
          blind -= {(group, row.name) for row in verify.caught(check) if not row.passed}
  assert not blind


def test_the_table_shows_what_failed_and_a_crash_is_a_row(monkeypatch):
  def wrong(t, *, sigma_data):
    raise KeyError("planted")

  monkeypatch.setattr(trigflow, "t_to_sigma", wrong)
  monkeypatch.setattr(weighting, "constant", lambda: weighting.inverse_sigma(sigma_data=0.5))
  text, passed = verify.verify(groups=["trigflow", "weighting"])
  lines = text.split("\n")
  assert not passed
  assert "KeyError: 'planted'" in text
  summary = next(i for i, line in enumerate(lines) if line.endswith("passed."))
  again = lines[summary + 1 :]
  assert len(again) == 2 and all("FAIL" in line for line in again)
  assert again[1].startswith("weighting: constant weighting: w = 0")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_is_measured_at_its_precision(dtype):
  found = verify.network(tiny.experiment_of(**{"net.dtype": dtype}))
  # By jvp against differences, F, dF/dt at the config's precision and at three others; the
  # culprit; the gradient of the loss.
  assert len(found) == (2 + 4) * 6 + 1 + 1
  assert all(r.passed for r in found)
  F_error = max(r.error for r in found if r.name.startswith(f"F in {dtype}"))
  assert (1e-3 if dtype == "bfloat16" else 1e-9) < F_error < (0.03 if dtype == "bfloat16" else 1e-5)
  # block0/affine and map_layer0 are float32 anyway.
  assert found[-2].name.split()[2] in (
    "fc_in",
    "fc_out",
    "block0/fc0",
    "block0/fc1",
    "blocks/block0",
  )


def test_the_derivative_is_measured_at_every_precision_and_judged_at_the_tangents():
  config = tiny.config(**{"net.dtype": "bfloat16"}).unlock()
  config.loss.tangent = dict(name="exact", dtype="float32", matmul_precision="highest")
  found = verify.network(experiment.parse(config))
  errors = {}
  for r in found:
    if r.name.startswith("dF/dt in "):
      errors.setdefault(r.name.rsplit(",", 1)[0][len("dF/dt in ") :], []).append(r.error)
  judged = {r.name.rsplit(",", 1)[0] for r in found[6:-2] if r.tolerance < math.inf}
  assert judged == {"F in bfloat16", "dF/dt in float32 (highest products)"}
  assert set(errors) == {"float32 (highest products)", "float32", "bfloat16", "float16"}
  worst = {name: max(values) for name, values in errors.items()}
  assert worst["float32 (highest products)"] < 1e-5
  assert 1e-4 < worst["float16"] < worst["bfloat16"] < 0.3
  assert all(len(values) == 6 for values in errors.values())


def test_a_precision_that_is_not_in_use_may_overflow(monkeypatch):
  """The first layer's weights times 1e6 are infinite in float16, and only there."""
  weights = verify.precision._weights

  def large(*args):
    net, params = weights(*args)
    params["fc_in"]["kernel"] = params["fc_in"]["kernel"] * 1e6
    return net, params

  monkeypatch.setattr(verify.precision, "_weights", large)
  rows = {r.name: r for r in verify.network(tiny.experiment_of())}
  half = [r for name, r in rows.items() if name.startswith("dF/dt in float16")]
  assert all(math.isinf(r.error) and r.passed for r in half) and len(half) == 6
  assert all(math.isfinite(r.error) for r in rows.values() if r not in half)


def test_a_network_with_a_wrong_derivative_fails_in_float64(monkeypatch):
  positional = embeddings.positional
  monkeypatch.setattr(
    embeddings, "positional", lambda t, n: positional(jax.lax.stop_gradient(t), n)
  )
  found = verify.network(tiny.experiment_of())
  failed = [r.name for r in found if not r.passed]
  assert len(failed) == 6
  assert all(name.startswith("dF/dt by jvp and by differences, float64") for name in failed)


@pytest.mark.slow
def test_the_network_is_that_of_the_checkpoint(tmp_path):
  given = tiny.experiment_of(evals={}, total_steps=4)
  before = verify.network(given, tmp_path)
  train.train(given, tmp_path)
  trained = verify.network(given, tmp_path)
  assert all(r.passed for r in before + trained)
  assert [r.truth for r in before] != [r.truth for r in trained]


# --- the row of the loss ---


def loss_row(exp):
  """The last row of an experiment: its loss's gradient."""
  (row,) = verify.precision._loss(exp, verify.precision._weights(exp, None)[1])
  return row


@pytest.mark.parametrize(
  "name",
  [
    *("sct", "scd", "ect"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("teacher", "ct", "cd_continuous")),
  ],
)
def test_the_gradient_of_a_method_is_right_in_float32(name):
  row = loss_row(experiment.parse(losses.configure(name)))
  assert row.name.startswith("gradient of the loss ") and " in float32, " in row.name
  assert row.passed and 0 < row.error < 1e-5 and row.truth > 1e-3


def test_a_loss_that_computes_in_bfloat16_fails_and_so_does_one_that_is_not_finite():
  exp = tiny.experiment_of()

  def row(wrong):
    def make(network, frozen):
      apply = lambda params, x, t, cond, key: wrong(network.apply(params, x, t, cond, key))
      return exp.method.loss(network._replace(apply=apply), frozen)

    return loss_row(exp._replace(method=exp.method._replace(loss=make)))

  assert row(lambda F: F).error == loss_row(exp).error
  # As bfloat16 has it; of two conversions XLA may make none.
  assert not row(lambda F: jax.lax.reduce_precision(F, 8, 7)).passed
  lost = row(lambda F: F + 0 * jnp.log(0 * F))
  assert not lost.passed and math.isinf(lost.error)


@pytest.mark.parametrize(
  "name",
  ["scd_vsd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("scd_multistep", "scd_guided"))],
)
def test_inputs_labels_and_what_is_trained_beside_are_part_of_the_loss(name):
  config = losses.configure(name)
  row = loss_row(experiment.parse(config))
  assert row.passed and 0 < row.error < 1e-5


def test_a_loss_of_latents_is_that_of_their_draws(monkeypatch):
  exp = tiny.experiment_of()
  latents = exp._replace(samples=exp.samples._replace(latents="edm2"))
  one, other = loss_row(exp), loss_row(latents)
  assert other.passed and abs(one.truth - other.truth) > 1e-3


def test_a_loss_that_cannot_be_made_here_is_left_out():
  config = losses.configure("ct")
  config.loss.distance = dict(name="lpips", path="none.npz")
  exp = experiment.parse(config)
  assert not [*verify.precision._loss(exp, verify.precision._weights(exp, None)[1])]
