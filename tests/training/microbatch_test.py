"""A batch in several passes has the noise of one pass to the bit, and its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import experiment
from cmjax.base import sharding
from cmjax.training import microbatch
from helpers import tiny

PARTS, SIZE = 4, 3
KEY = jax.random.key(3)

DRAWS = {
  "normal": lambda key, b: jax.random.normal(key, (b * 5,)).reshape(b, 5),
  "uniform of a folded key": lambda key, b: jax.random.uniform(jax.random.fold_in(key, 3), (b,)),
  "integers of a split key": lambda key, b: jax.random.randint(
    jax.random.split(key, 3)[1], (b,), 0, 10_000
  ),
  "coins": lambda key, b: jax.random.bernoulli(key, 0.3, (b, 7, 2)),
  "bytes": lambda key, b: jax.random.bits(key, (b, 9), jnp.uint8),
  "split within a split": lambda key, b: jax.random.normal(
    jax.random.split(jax.random.split(key)[0])[1], (b, 2)
  ),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_part_draws_its_samples_numbers_of_the_whole_draw(draw):
  whole = draw(KEY, PARTS * SIZE)
  part = jax.jit(lambda m: draw(microbatch.part_key(KEY, m, PARTS, SIZE), SIZE))
  for m in range(PARTS):
    np.testing.assert_array_equal(part(m), whole[m::PARTS])


def test_a_part_draws_them_in_float64_too():
  with jax.enable_x64(True):
    draw = lambda key, b: jax.random.normal(key, (b, 5), jnp.float64)
    part = draw(microbatch.part_key(KEY, 2, PARTS, SIZE), SIZE)
    np.testing.assert_array_equal(part, draw(KEY, PARTS * SIZE)[2::PARTS])


def places(m, parts, size, width):
  high, low = microbatch._counts(jnp.uint32(m), parts, size, width)
  return np.asarray(high, np.uint64) << 32 | np.asarray(low, np.uint64)


@pytest.mark.parametrize(("m", "parts", "size", "width"), [(1, 2, 2, 3), (6, 7, 5, 1_234_567)])
def test_places_are_counted_in_64_bits(m, parts, size, width):
  # Past 2^32 they cannot be drawn here: of the last rows, the words are what Python's integers say.
  stride = 1 if width < 10 else 2_345  # a row of so many numbers is looked at in some places
  rows = (np.arange(size) * parts + m) * width
  expected = rows[:, None] + np.arange(0, width, stride)[None]
  np.testing.assert_array_equal(places(m, parts, size, width)[:, ::stride], expected)


def test_carries_reach_the_high_word():
  parts, size, width = 60_000, 1, 100_003
  m = 42_948  # 2^32 lies within its row
  first = m * width
  assert first < 2**32 < first + width
  np.testing.assert_array_equal(places(m, parts, size, width)[0], first + np.arange(width))


def test_a_draw_that_is_not_one_per_sample_is_refused():
  key = microbatch.part_key(KEY, 0, PARTS, SIZE)
  for shape in [(), (4,), (2, SIZE)]:
    with pytest.raises(ValueError, match=r"is not one of 3 samples.*first axis"):
      jax.random.normal(key, shape)


def test_a_key_of_another_generator_is_refused():
  with pytest.raises(ValueError, match=r"threefry2x32 .*got rbg.*microbatch=None"):
    microbatch.part_key(jax.random.key(0, impl="rbg"), 0, PARTS, SIZE)


@pytest.mark.parametrize(
  ("wanted", "devices", "passes"), [(None, 8, 1), (16, 8, 1), (8, 8, 2), (4, 2, 4), (1, 1, 16)]
)
def test_passes_of_a_batch(wanted, devices, passes):
  assert microbatch.check(16, wanted, devices) == passes


@pytest.mark.parametrize(("wanted", "devices", "good"), [(3, 1, "1, 2, 4, 8, 16"), (4, 8, "8, 16")])
def test_a_microbatch_that_does_not_fit_says_which_would(wanted, devices, good):
  with pytest.raises(ValueError, match=f"microbatch={wanted} must divide batch_size=16.*{good};"):
    microbatch.check(16, wanted, devices)


def test_one_pass_is_the_function_itself():
  batch = {"image": jnp.arange(2.0)}
  (value, metrics), key = microbatch.accumulate(
    lambda batch, key: ((batch["image"][1], {}), key), batch, KEY, 1
  )
  assert (value, metrics, key) == (1, {}, KEY)


# --- of real losses, with dropout ----------------------------------------------------------------

VSD = {
  "vsd": dict(
    P_mean=0.4, P_std=2.0,
    fake=dict(P_mean=-0.8, P_std=1.6, optim=dict(
      name="adam", lr=1e-3, b1=0.0, b2=0.99, eps=1e-8, clip_norm=None,
      schedule=dict(name="constant", warmup_steps=0))),
  )
}  # fmt: skip
LOSSES = {
  "diffusion": dict(
    name="diffusion", P_mean=-1.0, P_std=1.4, weighting="learned", label_dropout=0.5
  ),
  "sct": dict(name="sct", P_mean=-1.0, P_std=1.4, weighting="learned"),
  "scd with VSD and guidance": dict(
    name="scd", P_mean=-1.0, P_std=1.4, weighting="learned", guidance=(1.0, 2.0), **VSD
  ),
  "ct": dict(
    name="ct", pairs=dict(name="lognormal"), distance=dict(name="pseudo_huber", c=0.03),
    curriculum=dict(name="doubling", s0=10, s1=20, total_steps=12), weight="inverse_gap",
    target=dict(name="current"), sigma_min=0.002,
  ),
  "cd_continuous": dict(name="cd_continuous", distance=dict(name="squared_l2")),
}  # fmt: skip


def gradient(loss, mesh, parts):
  """((value, metrics), gradients) of a batch of 16 with labels, on a mesh."""
  guided = "guidance" in loss
  config = tiny.config(**{"net.dropout": 0.3, "net.num_classes": 3})
  with config.unlocked():
    config.loss = loss
    config.net.guidance = guided
  if loss["name"].startswith(("scd", "cd")):
    config.teacher.workdir = "teacher"
  given = experiment.parse(config)
  teacher = given.network.at(guidance=False)
  weights = shaken(jax.device_get(jax.jit(teacher.init)(jax.random.key(1))), 1)
  state = jax.jit(experiment.state_init(given))(jax.random.key(0))
  params = shaken(jax.device_get(state.params), 2)
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.normal(size=(16, 2)).astype(np.float32),
    "label": rng.integers(0, 3, 16).astype(np.int32),
  }
  frozen = experiment.Frozen((teacher, weights) if config.teacher.workdir else None)
  loss_fn = given.method.loss(given.network, frozen)

  @jax.jit
  def run(params, batch, key):
    grad_fn = jax.value_and_grad(
      lambda params, batch, key: loss_fn(params, batch, key, 5), has_aux=True
    )
    return microbatch.accumulate(functools.partial(grad_fn, params), batch, key, parts)

  placed = jax.device_put(params, sharding.shard_params(params, mesh, min_size=16))
  with jax.set_mesh(mesh):
    return run(placed, sharding.global_batch(batch, mesh), jax.random.key(7))


def shaken(params, seed):
  rng = np.random.default_rng(seed)
  moved = jax.tree.map(lambda a: a + (0.1 * rng.normal(size=a.shape)).astype(a.dtype), params)
  return jax.device_put(moved)


SLOW = ("diffusion", "scd with VSD and guidance", "ct", "cd_continuous")
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in LOSSES]


@pytest.mark.parametrize("name", NAMES)
def test_gradient_and_metrics_are_those_of_one_pass(name):
  mesh = sharding.make_mesh()
  (value, metrics), grads = gradient(LOSSES[name], mesh, 1)
  (value_4, metrics_4), grads_4 = gradient(LOSSES[name], mesh, 4)
  np.testing.assert_allclose(value_4, value, rtol=1e-5)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * np.abs(b).max())
  jax.tree.map(near, grads_4, grads)
  assert metrics.keys() == metrics_4.keys()
  for key in metrics:
    if not key.endswith(("weight_min", "weight_max")):  # of which it is the mean over passes
      mean, mean_4 = (m.total / max(1, m.count) for m in (metrics[key], metrics_4[key]))
      np.testing.assert_allclose(mean_4, mean, rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.devices
def test_gradient_is_the_same_on_a_mesh_and_samples_stay_on_their_devices():
  mesh = sharding.make_mesh(2, 2, devices=jax.devices()[:4])
  _, expected = gradient(LOSSES["sct"], sharding.make_mesh(devices=jax.devices()[:1]), 1)
  _, got = gradient(LOSSES["sct"], mesh, 4)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * np.abs(b).max())
  jax.tree.map(near, jax.device_get(got), jax.device_get(expected))


@pytest.mark.slow
def test_a_run_ends_as_without(tmp_path):
  ends = []
  for microbatch_size in (None, 8):
    config = tiny.config(microbatch=microbatch_size, total_steps=3)
    config.evals = {}
    tiny.train(config, tmp_path / str(microbatch_size))
    ends.append(tiny.state(tmp_path / str(microbatch_size)))
  for name, array in ends[0].items():
    np.testing.assert_allclose(ends[1][name], array, rtol=2e-4, atol=1e-5, err_msg=name)


def test_a_run_that_cannot_be_split_is_refused_at_the_door(tmp_path):
  with pytest.raises(ValueError, match="microbatch=3 must divide batch_size=16"):
    tiny.train(tiny.config(microbatch=3), tmp_path)
