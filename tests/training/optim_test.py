"""Forced weight normalisation: where it holds the weights, and what happens without it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from cmjax import experiment
from cmjax.base import sharding
from cmjax.networks import normalize_kernel
from cmjax.program import stored_runs
from cmjax.training import optim
from helpers import tiny

NET = ConfigDict(
  dict(
    name="edm2", resolution=4, in_channels=1, channels=8, channel_mult=(1,), num_blocks=0,
    attn_resolutions=(), channels_per_head=8, num_classes=0, dtype="float32",
  )
)  # fmt: skip
SCM = dict(P_mean=-1.0, P_std=1.4, weighting="learned", c=0.1, warmup_steps=10, norm="l2")
FAKE = dict(
  P_mean=-0.8, P_std=1.6,
  optim=dict(name="adam", lr=0.3, schedule=dict(name="constant", warmup_steps=0)),
)  # fmt: skip


def draw(tree, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), tree)


def rms(kernel):
  """Root mean square towards each output."""
  kernel = np.asarray(kernel, np.float64)
  return np.sqrt(np.mean(kernel**2, axis=tuple(range(kernel.ndim - 1))))


def test_an_update_ends_where_it_is_projected_to_and_elsewhere_it_is_left_alone():
  params = draw({"net": {"conv": {"kernel": jnp.zeros((3, 3, 4, 5))}, "gain": jnp.zeros(())},
                 "weighting": {"kernel": jnp.zeros(7)}})  # fmt: skip
  updates = draw(params, seed=1)
  tx = optim.project(normalize_kernel, ["^net/.*kernel$"])
  projected, state = tx.update(updates, tx.init(params), params)
  assert state == tx.init(params) == optax.EmptyState()
  after = optax.apply_updates(params, projected)
  moved = np.asarray(params["net"]["conv"]["kernel"] + updates["net"]["conv"]["kernel"], "d")
  expected = moved / (1e-4 + rms(moved))
  np.testing.assert_allclose(after["net"]["conv"]["kernel"], expected, atol=1e-6)
  for path in (("net", "gain"), ("weighting", "kernel")):
    old, new = (tree[path[0]][path[1]] for tree in (updates, projected))
    np.testing.assert_array_equal(new, old)
  with pytest.raises(ValueError, match="needs the params"):
    tx.update(updates, state)


def test_held_weights_keep_their_norm_and_free_ones_grow():
  # A loss that does not care for the norm of w, as that of a layer which normalises it.
  target = draw(jnp.zeros((16, 4)))

  def loss(params):
    return jnp.sum((normalize_kernel(params["w"]["kernel"]) - target) ** 2)

  def train(tx, num_steps):
    @jax.jit
    def step(params, state):
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return optax.apply_updates(params, updates), state

    params = {"w": {"kernel": normalize_kernel(draw(target, seed=1))}}
    state, norms = tx.init(params), []
    for _ in range(num_steps):
      params, state = step(params, state)
      norms.append(rms(params["w"]["kernel"]))
    return np.array(norms), float(loss(params))

  free, _ = train(optax.sgd(0.05), 20)
  tx = optax.chain(optax.sgd(0.05), optim.project(normalize_kernel, ["kernel$"]))
  held, value = train(tx, 80)
  # The gradient is orthogonal to the weights, so free ones can only become longer.
  assert np.all(np.diff(free, axis=0) > 0) and np.all(free[-1] > 1.02)
  np.testing.assert_allclose(held, 1 - 1e-4, atol=2e-6)
  best = np.sum((np.asarray(target) * (1 / rms(target) - 1)) ** 2)  # the same directions
  assert value == pytest.approx(best, rel=0.01)


@pytest.mark.devices
def test_a_sharded_kernel_is_projected_like_a_whole_one():
  mesh = sharding.make_mesh(1, 8)
  kernel, update = draw([jnp.zeros((3, 3, 16, 8))] * 2)
  tx = optim.project(normalize_kernel, ["kernel$"])
  run = jax.jit(lambda u, p: tx.update({"kernel": u}, tx.init(p), {"kernel": p})[0]["kernel"])
  whole = run(update, kernel)
  for spec in (PartitionSpec(None, None, None, "fsdp"), PartitionSpec(None, None, "fsdp")):
    put = lambda a, spec=spec: jax.device_put(a, NamedSharding(mesh, spec))
    np.testing.assert_allclose(run(put(update), put(kernel)), whole, atol=1e-6)


def config(**loss):
  c = tiny.config().unlock()
  c.net, c.loss = NET, loss
  c.optim.lr = 0.3
  return c


@pytest.fixture(name="updated", scope="module")
def _updated():
  """Parameters of sCD with VSD before and after one large update."""
  vsd = dict(P_mean=0.4, P_std=2.0, fake=FAKE)
  c = config(name="scd", vsd=vsd, **SCM)
  given = experiment.parse(c)
  tx, shapes = (
    experiment.transformation(given),
    jax.eval_shape(given.network.init, jax.random.key(0)),
  )
  start, fake = (jax.tree.map(lambda a: 5 * a, draw(shapes, seed)) for seed in (0, 1))
  state = jax.jit(experiment.state_init(given))(jax.random.key(0), start, fake)

  @jax.jit
  def update(state):
    updates, _ = tx.update(draw(state.params, seed=2), state.opt_state, state.params)
    return optax.apply_updates(state.params, updates)

  return start, state, update(state)


def test_all_kernels_of_network_and_fake_are_held_from_the_start_on(updated):
  start, state, after = updated
  for params in (state.params, after):
    for part in ("net", "fake"):
      kernels = {k: a for k, a in tiny.leaves(params[part]).items() if k.endswith("kernel")}
      assert len(kernels) == 3 + 3 * 3 + 2 + 1  # in and out; in each block; attention; a skip
      for name, a in kernels.items():
        # r / (r + 1e-4), where r is what was to be projected.
        np.testing.assert_allclose(rms(a), 1, atol=1.5e-4, err_msg=name)
  a, b = start["out_conv"]["kernel"], state.params["net"]["out_conv"]["kernel"]
  np.testing.assert_allclose(b, np.asarray(a) / (1e-4 + rms(a)), atol=1e-5)
  assert np.abs(after["net"]["out_conv"]["kernel"] - b).max() > 0.1


def test_what_has_no_norm_to_keep_moves_as_the_optimizer_says(updated):
  _, state, after = updated
  # Adam's first step is the learning rate, whatever the gradient.
  for path in (("net", "out_gain"), ("weighting", "kernel"), ("vsd_weighting", "kernel")):
    change = np.abs(after[path[0]][path[1]] - state.params[path[0]][path[1]])
    np.testing.assert_allclose(change, 0.3, rtol=1e-4)
  for average in state.ema.values():
    tiny.assert_same(tiny.leaves(average), tiny.leaves(state.params["net"]))


def test_the_head_for_logvar_is_held_as_well_and_other_networks_are_not():
  c = config(name="diffusion", P_mean=-0.8, P_std=1.6, weighting="edm2")
  given = experiment.parse(c)
  state = experiment.state_init(given)
  head = jax.eval_shape(state, jax.random.key(0)).params["weighting"]
  params = {"weighting": draw(head)}
  tx = experiment.transformation(given)
  updates, _ = tx.update(draw(params, seed=1), tx.init(params), params)
  after = optax.apply_updates(params, updates)["weighting"]["logvar_linear"]["kernel"]
  np.testing.assert_allclose(rms(after), 1 - 1e-4, atol=2e-4)
  params = {"net": {"fc_in": {"kernel": jnp.full((2, 3), 5.0)}}}
  tx = experiment.transformation(tiny.experiment_of())
  updates, _ = tx.update(params, tx.init(params), params)
  np.testing.assert_allclose(updates["net"]["fc_in"]["kernel"], -1e-2, rtol=1e-4)


@pytest.mark.slow
def test_edm2_trains_and_is_distilled_with_all_its_weights_at_their_norm(tmp_path):
  c = config(name="diffusion", P_mean=-0.8, P_std=1.6, weighting="edm2", label_dropout=0.1)
  c.net = dict(NET) | dict(resolution=8, num_classes=10, dtype="bfloat16", remat=True)
  c.data, c.optim.lr = dict(name="digits", flip=False), 1e-2
  c.samplers, c.evals, c.total_steps = dict(heun=dict(name="heun", num_steps=3)), {}, 3
  tiny.train(c, tmp_path / "teacher")
  student = config(
    name="scd", guidance=(1.0, 2.0), vsd=dict(P_mean=0.4, P_std=2.0, fake=FAKE), **SCM
  )
  student.net, student.data, student.evals = dict(c.net) | dict(guidance=True), c.data, {}
  student.samplers, student.total_steps = dict(one_step=dict(name="consistency")), 3
  student.teacher.workdir = student.init_from.workdir = str(tmp_path / "teacher")
  tiny.train(student, tmp_path / "student")
  for workdir, parts in (("teacher", ["net"]), ("student", ["net", "fake"])):
    state = stored_runs.load_state(tmp_path / workdir, sharding.make_mesh()).state
    for part in parts:
      leaves = tiny.leaves(state.params[part])
      kernels = [a for name, a in leaves.items() if name.endswith("kernel")]
      assert len(kernels) > 15 and np.any(leaves["out_gain"])
      assert all(np.abs(rms(a) - 1).max() < 1.5e-4 for a in kernels)
