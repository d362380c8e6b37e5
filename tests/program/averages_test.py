"""Averages of other lengths: the mathematics, the snapshots they are made of, the command."""

import json
import logging
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cmjax import ema, experiment
from cmjax.base import lock, sharding
from cmjax.commands import ema as program
from cmjax.ema import posthoc
from cmjax.program import averages, sample, stored_runs, sweep
from cmjax.run import checkpoint, snapshots
from helpers import tiny

PAIR = (0.05, 0.10)
pytestmark = pytest.mark.usefixtures("shared_programs")


def copies(num_times, spacing=1):
  """Times and lengths of copies of two lengths at equal spacing."""
  times = np.repeat(spacing * np.arange(1, num_times + 1), 2)
  return times, list(PAIR) * num_times


# --- mathematics ---


@pytest.mark.parametrize(
  ("t_a", "s_a", "t_b", "s_b"),
  [(3.0, 0.05, 5.0, 0.1), (5.0, 0.1, 3.0, 0.05), (4.0, 0.05, 4.0, 0.2), (7.0, 0.25, 2.0, 0.13)],
)
def test_inner_products_are_the_integrals_of_the_products_of_profiles(t_a, s_a, t_b, s_b):
  nodes, w = np.polynomial.legendre.leggauss(60)
  end = min(t_a, t_b)
  t = end * (nodes + 1) / 2
  integral = (w * posthoc.profile(t, t_a, s_a) * posthoc.profile(t, t_b, s_b)).sum() * end / 2
  got = posthoc.inner(t_a, ema.power_gamma(s_a), t_b, ema.power_gamma(s_b))
  np.testing.assert_allclose(got, integral, rtol=1e-9)
  assert posthoc.profile(t_a + 1e-6, t_a, s_a) == 0


@pytest.mark.parametrize(
  ("num_times", "spacing", "condition"),
  [(4, 2**25, 117), (64, 2**25, 1.6e6), (256, 2**23, 4.6e8)],
)
def test_condition_numbers_are_those_measured_on_the_published_code(num_times, spacing, condition):
  times, lengths = copies(num_times, spacing)
  got = posthoc.fit(times, lengths, times[-1], 0.15).condition
  assert float(f"{got:.{2 if condition < 1000 else 1}e}") == condition
  # What the normal equations see does not depend on the unit of time.
  np.testing.assert_allclose(np.linalg.cond(posthoc.gram(times, lengths)), got, rtol=1e-6)


@pytest.mark.parametrize("num_times", [4, 64, 256])
def test_a_stored_length_is_its_own_copy_and_no_other(num_times):
  times, lengths = copies(num_times)
  for i in (2 * num_times - 2, 2 * num_times - 1, 3):  # both at the end, and one of earlier
    expected = np.zeros(len(times))
    expected[i] = 1
    got = posthoc.fit(times, lengths, times[i], lengths[i])
    np.testing.assert_allclose(got.weights, expected, atol=1e-6)
    assert got.residual < 1e-6


@pytest.mark.parametrize("sigma_rel", [0.02, 0.075, 0.15, 0.25])
def test_the_residual_is_the_distance_of_the_profiles_and_no_other_weights_have_less(sigma_rel):
  times, lengths = copies(8)
  t = (np.arange(200_000) + 0.5) / 200_000 * 8
  profiles = np.stack([posthoc.profile(t, *c) for c in zip(times, lengths, strict=True)])
  wanted = posthoc.profile(t, 8.0, sigma_rel)
  norm = lambda p: np.sqrt((p**2).sum())
  fit = posthoc.fit(times, lengths, 8, sigma_rel)
  distance = norm(fit.weights @ profiles - wanted) / norm(wanted)
  np.testing.assert_allclose(fit.residual, distance, rtol=1e-3)
  # The division by the sum moves the optimum, but by little: least squares is hardly better.
  best = np.linalg.lstsq(profiles.T, wanted, rcond=None)[0]
  optimum = norm(best @ profiles - wanted) / norm(wanted)
  assert optimum <= distance * (1 + 1e-6) and distance < 1.5 * optimum
  np.testing.assert_allclose(fit.weights.sum(), 1, rtol=1e-12)


def test_with_copies_as_dense_as_published_the_claimed_range_is_reached():
  times, lengths = copies(64)  # 32 Mi images apart in 2 Gi
  residuals = {s: posthoc.fit(times, lengths, 64, s).residual for s in (0.015, 0.075, 0.15, 0.25)}
  assert max(residuals.values()) < 0.025
  assert residuals[0.075] < 3e-4 and residuals[0.15] < 1e-3


def test_nothing_overflows_for_short_averages_of_long_runs():
  times = np.repeat([1.0, 2.0**33, 2.0**34], 2)
  got = posthoc.fit(times, [0.005, 0.01] * 3, 2.0**34, 0.0075)
  assert np.isfinite(got.weights).all() and got.residual < 0.05
  # Their powers do: t^gamma of an average of 0.01 is 2^(34 * 96).
  assert ema.power_gamma(0.01) * 34 > 1024


def test_copies_of_later_times_do_not_count():
  times, lengths = copies(8)
  got = posthoc.weights(times, lengths, 5, 0.15)
  np.testing.assert_array_equal(got[10:], 0)
  np.testing.assert_allclose(got[:10], posthoc.weights(*copies(5), 5, 0.15), rtol=1e-9)
  # Between two copies the newest training is missing, and the residual tells.
  at, between = (posthoc.fit(times, lengths, t, 0.15).residual for t in (5, 5.5))
  assert between > 10 * at


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (([1], [0.05], 1, 0.1), "1 snapshots: a reconstruction needs at least 2"),
    (([1, 2], [0.05, 0.05], 1, 0.1), "t_r=1 has 1 snapshot up to it: .* at least 2"),
    (([1, 2], [0.05, 0.05], 0.5, 0.1), "t_r=0.5 must be from 1 to 2, the times of the first and"),
    (([1, 2], [0.05, 0.05], 2.5, 0.1), "t_r=2.5 must be from 1 to 2, the times of the first and"),
    (([1, 2], [0.05, 0.05], float("nan"), 0.1), "t_r=nan must be from 1 to 2"),
    (([1, 2], [0.05, 0.05], 2, 0.0), "sigma_rel=0.0 must be between 0 and 0.2886"),
    (([1, 2], [0.05, 0.05], 2, 0.29), "sigma_rel=0.29 must be between 0 and 0.2886"),
    (([1, 2], [0.05, 0.3], 2, 0.1), "sigma_rel=0.3 must be between 0 and 0.2886"),
    (([1, 2, 2], [0.05, 0.1, 0.1], 2, 0.1), "Two snapshots have the same time and length"),
    (([0, 2], [0.05, 0.1], 2, 0.1), "times must be finite and positive, got 0.0 to 2.0"),
    (([1, 2], [0.05], 2, 0.1), r"snapshot_times \(2,\) and snapshot_sigma_rels \(1,\) must be"),
  ],
)
def test_what_no_combination_can_give_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    posthoc.weights(*arguments)


# --- of parameters ---


NUM_STEPS, EVERY = 512, 16
TRACKED = (*PAIR, 0.03, 0.075, 0.13, 0.15, 0.2)


@pytest.fixture(name="walk", scope="module")
def _walk():
  """Averages of a random walk, as training makes them: {step: {sigma_rel: [128, 128]}}."""
  steps = np.random.default_rng(0).normal(size=(NUM_STEPS, 128, 128)).astype(np.float32)
  decays = {str(s): ema.power(s, batch_size=64) for s in TRACKED}

  def body(carry, x):
    params, averages = carry
    params = params + x[1]
    averages = ema.update(averages, params, x[0], decays)
    return (params, averages), averages

  @jax.jit
  def track(steps):
    start = {str(s): jnp.full((128, 128), 100.0) for s in TRACKED}  # which must not count
    many = steps.reshape(-1, EVERY, 128, 128)
    number = jnp.arange(NUM_STEPS).reshape(-1, EVERY)

    def block(carry, xs):
      carry, _ = jax.lax.scan(lambda c, x: (body(c, x)[0], None), carry, xs)
      return carry, carry[1]

    return jax.lax.scan(block, (jnp.zeros((128, 128)), start), (number, many))[1]

  stored = jax.device_get(track(steps))
  return {
    EVERY * (i + 1): {float(s): a[i] for s, a in stored.items()} for i in range(NUM_STEPS // EVERY)
  }


def snapshots_of(walk, dtype, reads=None):
  """The copies of two lengths, as if they were read from a run."""

  def read(step):
    if reads is not None:
      reads.append(step)
    return {f"power_{s}": {"w": jnp.asarray(walk[step][s], dtype)} for s in PAIR}

  emas = {step: {f"power_{s}": s for s in PAIR} for step in walk}
  return stored_runs.Snapshots(None, emas, read)


def made(stored, sigma_rels, step=NUM_STEPS, mesh=None):
  plan = averages.recipe(stored, sigma_rels, step)
  mesh = mesh or sharding.make_mesh()
  return {r.sigma_rel: r.params["w"] for r in averages.reconstruct(stored, plan, mesh)}


def relative_error(got, wanted):
  return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-3), ("float16", 1.3e-3)])
def test_other_lengths_equal_averages_that_were_tracked_all_along(walk, dtype, bound):
  lengths = [s for s in TRACKED if s not in PAIR]
  for sigma_rel, got in made(snapshots_of(walk, dtype), lengths).items():
    assert got.dtype == jnp.float32
    tracked = walk[NUM_STEPS][sigma_rel]
    assert relative_error(got, tracked) < bound, sigma_rel
    nearest = min(relative_error(walk[NUM_STEPS][s], tracked) for s in PAIR)
    assert nearest > 10 * bound  # the lengths do differ


def test_stored_lengths_come_back_at_any_step(walk):
  for dtype, step in (("float32", NUM_STEPS), ("float32", 10 * EVERY), ("float16", NUM_STEPS)):
    for sigma_rel, got in made(snapshots_of(walk, dtype), PAIR, step).items():
      copy = walk[step][sigma_rel].astype(dtype).astype(np.float32)
      assert relative_error(got, copy) < 1e-6


def test_snapshots_are_read_once_for_eight_lengths(walk):
  reads = []
  stored = snapshots_of({step: walk[step] for step in (16, 32, 48)}, "float16", reads)
  made(stored, list(np.linspace(0.05, 0.12, 8)), 48)
  assert reads == [16, 32, 48]
  nine = made(stored, list(np.linspace(0.05, 0.13, 9)), 32)
  assert reads[3:] == [16, 32, 16, 32] and len(nine) == 9


@pytest.mark.devices
def test_sums_are_sharded_as_parameters_are_and_the_same(walk):
  stored = snapshots_of({step: walk[step] for step in (16, 32)}, "float16")
  mesh = sharding.make_mesh(4, 2)
  got = made(stored, [0.075], 32, mesh)[0.075]
  assert got.sharding == sharding.shard_params({"w": got}, mesh)["w"]
  assert not got.sharding.is_fully_replicated
  np.testing.assert_allclose(got, made(stored, [0.075], 32)[0.075], rtol=1e-6)


def test_a_length_that_the_copies_cannot_make_is_warned_of(walk, caplog):
  few = snapshots_of({step: walk[step] for step in (256, 512)}, "float16")
  averages.recipe(few, [0.06, 0.02], 512)
  (message,) = caplog.messages
  assert "sigma_rel 0.020: the profile that the 4 copies give is " in message


# --- config.snapshots ---


def test_the_plan_is_read_from_the_config():
  plan = tiny.experiment_of("snapshots").snapshots
  assert plan == (2, {"power_05": 0.05, "power_10": 0.10}, "float16")
  assert tiny.experiment_of().snapshots is None


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"emas": ("power_05", "main")}, "must name averages of the kind 'power'.*power_05, power_10"),
    ({"emas": ()}, "must name averages of the kind 'power'"),
    ({"emas": ("power_5",)}, "Unknown average .snapshots.emas. 'power_5'. Choose from: main, pow"),
    ({"every_steps": 0}, "snapshots.every_steps=0 must be at least 1"),
    ({"dtype": "bfloat16"}, "Unknown dtype .snapshots.dtype. 'bfloat16'. Choose from: float16, "),
    ({"every": 3}, "snapshots takes no every. It takes: every_steps, emas, dtype"),
  ],
)
def test_a_plan_that_cannot_be_is_refused(values, message):
  config = tiny.config("snapshots")
  config.snapshots.update(values)
  with pytest.raises(ValueError, match=message):
    experiment.parse(config)


def test_two_averages_of_one_length_are_refused():
  config = tiny.config("snapshots", **{"ema.power_10.sigma_rel": 0.05})
  with pytest.raises(ValueError, match="two of one length tell nothing more than one"):
    experiment.parse(config)


# --- snapshots of a run ---

PLAN = snapshots.Plan(10, {"a": 0.05}, "float16")


def opened(directory, plan=PLAN):
  return snapshots.Snapshots(directory, plan, check=lambda meta: None)


def test_without_a_plan_nothing_is_due_and_nothing_is_written(tmp_path):
  off = opened(tmp_path, None)
  assert not off.due(10, last=True)
  off.poll(), off.wait(), off.close()
  assert not list(tmp_path.iterdir())


def test_values_beyond_float16_are_stored_in_float32_with_a_warning(tmp_path, caplog):
  stored = opened(tmp_path)
  fine = {"w": jnp.asarray([1.0, 65504.0]), "v": jnp.asarray([0.1])}
  large = fine | {"w": jnp.asarray([1.0, -70000.0])}
  for step, params in ((10, fine), (20, large)):
    assert stored.due(step, last=False)
    stored.save(step, {"a": params, "not stored": params}, {"seed": 0})
  stored.close()
  assert len(caplog.messages) == 1
  assert "snapshot of step 20 is stored in float32" in caplog.text and "a/w" in caplog.text
  there = checkpoint.Checkpoints(tmp_path, read_only=True, folder="snapshots")
  for step, dtype, params in ((10, "float16", fine), (20, "float32", large)):
    shape = lambda x, dtype=dtype: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
    got = there.load(step, lambda meta, shape=shape: {"a": jax.tree.map(shape, fine)})
    assert got.meta["dtype"] == dtype and got.meta["emas"] == {"a": 0.05}
    wanted = jax.tree.map(lambda x, dtype=dtype: np.asarray(x, dtype), {"a": params})
    tiny.assert_same(tiny.leaves(got.state), tiny.leaves(wanted))
  there.close()


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory):
  """A run with snapshots."""
  workdir = tmp_path_factory.mktemp("run")
  tiny.train(tiny.config("snapshots"), workdir)
  return workdir


@pytest.fixture(name="copy")
def _copy(run, tmp_path):
  """The run's workdir, to change things in."""
  return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture(name="sparse")
def _sparse(copy):
  """The run with half of its snapshots, which are sooner read, and no averages made of them."""
  for step in (2, 6, 10):
    shutil.rmtree(copy / "snapshots" / str(step))
  shutil.rmtree(copy / "posthoc", ignore_errors=True)
  return copy


def snapshot(workdir, step):
  with stored_runs.open_snapshots(workdir, sharding.make_mesh()) as stored:
    return tiny.leaves(stored.read(step))


def steps(workdir, folder="snapshots"):
  return sorted(int(path.name) for path in (workdir / folder).iterdir())


def test_a_run_stores_the_averages_that_were_named_and_keeps_them_all(run):
  assert steps(run) == [2, 4, 6, 8, 10, 12]
  assert steps(run, "checkpoints") == [8, 12]
  state = tiny.state(run)
  last = snapshot(run, 12)
  assert {name.split("/")[0] for name in last} == {"power_05", "power_10"}
  halves = {name: state[f"ema/{name}"].astype(np.float16) for name in last}
  tiny.assert_same(last, halves)


def test_a_resumed_run_writes_what_is_missing_bit_for_bit_and_nothing_twice(run, copy):
  shutil.rmtree(copy / "checkpoints" / "12")
  shutil.rmtree(copy / "snapshots" / "10")  # not the newest
  fingerprint = lambda: {
    path: path.stat().st_mtime_ns
    for path in (copy / "snapshots").rglob("*")
    if path.is_file() and path.relative_to(copy / "snapshots").parts[0] != "10"
  }
  before = fingerprint()
  tiny.train(tiny.config("snapshots", evals={}), copy)
  assert fingerprint() == before
  assert steps(copy) == [2, 4, 6, 8, 10, 12]
  tiny.assert_same(snapshot(copy, 10), snapshot(run, 10))
  tiny.assert_same(tiny.state(copy), tiny.state(run))
  assert (copy / "snapshots" / "10" / checkpoint.DIGESTS).exists()


def test_no_checkpoint_is_begun_before_earlier_snapshots_are_written(run, tmp_path, monkeypatch):
  calls = []
  wait, save = snapshots.Snapshots.wait, checkpoint.Checkpoints.save

  def recorded_save(self, step, *args, **kwargs):
    calls.append((self.directory.name, step))
    save(self, step, *args, **kwargs)

  monkeypatch.setattr(snapshots.Snapshots, "wait", lambda s: calls.append("wait") or wait(s))
  monkeypatch.setattr(checkpoint.Checkpoints, "save", recorded_save)
  config = tiny.config("snapshots", total_steps=5, evals={}, **{"checkpoint.every_steps": 3})
  tiny.train(config, tmp_path)
  assert calls == [
    *(("snapshots", 2), "wait", ("checkpoints", 3), ("snapshots", 4)),
    *("wait", ("checkpoints", 5), ("snapshots", 5)),  # the last step has one, too
  ]


def test_a_step_to_stop_at_does_not_become_a_snapshot(run, tmp_path, monkeypatch):
  original = experiment.batches

  def batches(config, mesh, start, data):
    for i, batch in enumerate(original(config, mesh, start, data), start):
      yield {name: x * float("nan") for name, x in batch.items()} if i == 5 else batch

  monkeypatch.setattr(experiment, "batches", batches)
  config = tiny.config("snapshots", log_every_steps=12, evals={})
  with pytest.raises(FloatingPointError, match="step 6 is not finite"):
    tiny.train(config, tmp_path)
  assert steps(tmp_path) == [2, 4]  # a checkpoint is due only at 4 and 8


def test_snapshots_of_another_run_in_the_workdir_are_refused(copy):
  shutil.rmtree(copy / "checkpoints")
  with pytest.raises(ValueError, match="config does not fit the snapshots.*\n  seed: 0 in the sn"):
    tiny.train(tiny.config("snapshots", seed=1), copy)


def test_how_often_is_free_and_one_lost_at_the_step_of_the_checkpoint_is_made_again(run, copy):
  shutil.rmtree(copy / "snapshots" / "12")
  config = tiny.config("snapshots", total_steps=14, evals={}, **{"snapshots.every_steps": 3})
  tiny.train(config, copy)
  assert steps(copy) == [2, 4, 6, 8, 10, 12, 14]
  tiny.assert_same(snapshot(copy, 12), snapshot(run, 12))


def test_the_room_for_snapshots_is_looked_for_before_training(tmp_path, monkeypatch):
  usage = type("Usage", (), {"free": 600_000})
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  averages = {"a": {"w": jax.ShapeDtypeStruct((1000, 10), jnp.float32)}}
  plan = PLAN._replace(every_steps=7)  # 15 of 20 kB in 100 steps
  snapshots.check_writable(tmp_path, 300_000, plan, 100, averages)
  with pytest.raises(
    ValueError, match="its checkpoints and snapshots need 0.7 MB more.*raise snap"
  ):
    snapshots.check_writable(tmp_path, 400_001, plan, 100, averages)
  snapshots.check_writable(tmp_path, 400_001, None, 100, averages)


# --- python -m cmjax.ema ---


@pytest.fixture(name="command")
def _command(capsys):
  def command(workdir, *args):
    capsys.readouterr()
    code = program.main([f"--workdir={workdir}", *args])
    return code, *capsys.readouterr()

  return command


@pytest.fixture(name="written", scope="module")
def _written(run):
  """The run with averages of three lengths written into it."""
  assert program.main([f"--workdir={run}", "--sigma_rel=0.05,0.1,0.15"]) == 0
  return run


@pytest.fixture(name="average", scope="module")
def _average():
  """(workdir, name) -> the average of that name, and its step."""
  mesh = sharding.make_mesh()

  def average(workdir, name):
    _, params, step = stored_runs.load_average(workdir, name, mesh)
    return tiny.leaves(params), step

  return average


def distance(a, b):
  return np.sqrt(sum(((a[name] - b[name]) ** 2).sum() for name in a))


def test_the_command_writes_averages_that_are_loaded_by_name(written, average):
  stored = snapshot(written, 12)
  for name, ours in (("power_05", "posthoc_0.050"), ("power_10", "posthoc_0.1")):
    got, step = average(written, ours)
    assert step == 12
    for path, x in got.items():
      assert x.dtype == np.float32
      np.testing.assert_allclose(x, stored[f"{name}/{path}"].astype(np.float32), rtol=1e-6)
  # Even 12 copies of a run of 12 steps come near to what was tracked all along.
  wanted, (got, _) = average(written, "power_15")[0], average(written, "posthoc_0.150")
  assert distance(got, wanted) < 0.2 * distance(average(written, "power_10")[0], wanted)


def test_what_an_average_was_made_of_is_beside_it(written):
  folder = stored_runs.posthoc_folder(written, 0.15)
  stored = checkpoint.Checkpoints(folder, read_only=True)
  made_of = stored.meta(12)["made_of"]
  stored.close()
  used = made_of["snapshots"]
  times, lengths = [t for t, _, _, _ in used], [s for _, _, s, _ in used]
  fit = posthoc.fit(times, lengths, 12, 0.15)
  assert made_of["step"] == 12 and made_of["sigma_rel"] == 0.15 and len(used) == 12
  assert (made_of["residual"], made_of["condition"]) == (fit.residual, fit.condition)
  assert [w for *_, w in used] == fit.weights.tolist()


def test_one_that_is_there_is_left_and_an_earlier_step_has_its_own_name(sparse, command, average):
  code, out, _ = command(sparse, "--sigma_rel=0.05", "--step=8")
  assert code == 0 and "posthoc_0.050: step 8, residual 0" in out
  code, out, _ = command(sparse, "--sigma_rel=0.05")
  assert code == 0 and "step 12" in out and "was there already" not in out
  code, out, _ = command(sparse, "--sigma_rel=0.05")
  assert code == 0 and "was there already" in out
  assert average(sparse, "posthoc_0.05")[1] == 12
  got, step = average(sparse, "posthoc_0.050_step8")
  assert step == 8
  half = snapshot(sparse, 8)["power_05/fc_out/kernel"]
  np.testing.assert_allclose(got["fc_out/kernel"], half.astype(np.float32), rtol=1e-6)
  shutil.rmtree(sparse / "snapshots" / "4")
  code, _, err = command(sparse, "--sigma_rel=0.05")
  assert code == 1 and "made of 6 other copies than the 4 that are there now. Move" in err


def test_two_that_make_the_same_average_at_once_lose_nothing(sparse, average, monkeypatch):
  mesh, reconstruct = sharding.make_mesh(), averages.reconstruct

  def interrupted(*args):
    with monkeypatch.context() as patch:  # the other begins later and ends first
      patch.setattr(averages, "reconstruct", reconstruct)
      averages.write(sparse, [0.05, 0.1], mesh)
    yield from reconstruct(*args)

  monkeypatch.setattr(averages, "reconstruct", interrupted)
  said = averages.write(sparse, [0.05, 0.15], mesh)
  assert "posthoc_0.050" in said and "posthoc_0.150" in said
  for name in ("posthoc_0.050", "posthoc_0.100", "posthoc_0.150"):
    assert average(sparse, name)[1] == 12


def test_whoever_writes_averages_waits_for_another_that_does(sparse, monkeypatch, caplog):
  caplog.set_level(logging.INFO, "cmjax")
  threads = [
    threading.Thread(target=averages.write, args=(sparse, [0.05], sharding.make_mesh()))
    for _ in range(2)
  ]
  with lock.hold(sparse, "average"):
    for thread in threads:
      thread.start()
    while caplog.text.count("This one waits for it") < 2:
      time.sleep(0.01)
    assert not (sparse / "posthoc").exists()
  for thread in threads:
    thread.join()
  assert steps(sparse / "posthoc" / "sigma_rel_0.050", "checkpoints") == [12]


def test_an_evaluation_whose_workdir_is_renamed_says_so_and_makes_none_anew(copy, monkeypatch):
  def evaluate(averages, key):
    copy.rename(copy.with_name("away"))
    yield "distance", 1.0

  monkeypatch.setattr(experiment, "open_evaluators", lambda *args, **kwargs: {"fd": evaluate})
  with pytest.raises(OSError, match="The workdir .* was renamed, removed or replaced while"):
    sample.evaluate(tiny.experiment_of("snapshots"), copy)
  assert not copy.exists()


def test_two_sweeps_at_once_keep_the_scores_of_both(tmp_path):
  path, conditions = epath.Path(tmp_path) / "posthoc" / "sweep.json", {"seed": 0}
  together = [
    threading.Thread(
      target=sweep._add,
      args=(epath.Path(tmp_path), path, conditions, {f"0.{i:03d}": {"one_step": i / 8}}),
    )
    for i in range(12)
  ]
  for thread in together:
    thread.start()
  for thread in together:
    thread.join()
  scores = sweep._stored(path, conditions)
  assert scores == {f"0.{i:03d}": {"one_step": i / 8} for i in range(12)}
  with pytest.raises(ValueError, match="cannot be compared with new ones: seed differ"):
    sweep._add(epath.Path(tmp_path), path, {"seed": 1}, {"0.9": {"one_step": 1.0}})


def test_an_average_that_was_not_made_says_how_to_make_it(run, average):
  with pytest.raises(ValueError, match="no average 'posthoc_0.07' in .*-m cmjax.ema .*rel=0.07"):
    average(run, "posthoc_0.07")
  with pytest.raises(ValueError, match="Unknown average .ema. of .* 'posthoc'. Choose from: main"):
    average(run, "posthoc")


def test_samples_and_scores_are_drawn_from_it_by_name(written):
  config = tiny.config("snapshots")
  config.evals.fd.emas = ("posthoc_0.050", "power_05")
  scores = dict(
    line.split(": ") for line in sample.evaluate(experiment.parse(config), written).splitlines()[1:]
  )
  for sampler in ("one_step", "two_steps"):
    ours, tracked = (float(scores[f"fd/{sampler}/{e}"]) for e in config.evals.fd.emas)
    np.testing.assert_allclose(ours, tracked, rtol=1e-2)  # they differ by float16's rounding
  args = dict(num_samples=32, name="one_step", seed=0)
  drawn = {
    e: np.load(sample.sample(experiment.parse(config), written, ema=e, **args)[1])["samples"]
    for e in ("posthoc_0.050", "power_05", "power_15")
  }
  np.testing.assert_allclose(drawn["posthoc_0.050"], drawn["power_05"], atol=5e-3)
  assert np.abs(drawn["power_15"] - drawn["power_05"]).max() > 1e-2


def test_a_run_starts_from_it_and_distils_it(written, average):
  where = {"workdir": str(written), "ema": "posthoc_0.150"}
  given, mesh = tiny.experiment_of(init_from=where, teacher=where), sharding.make_mesh()
  start = stored_runs.first_weights(given, jax.random.key(0), mesh)
  _, teacher = stored_runs.load_teacher(given, mesh).model
  for params in (start, teacher):
    tiny.assert_same(tiny.leaves(params), average(written, "posthoc_0.150")[0])


def test_a_sweep_scores_each_length_once_names_the_best_and_draws(sparse, command, monkeypatch):
  scored = []
  original = experiment.frechet_scores

  def frechet_scores(*args):
    label, score = original(*args)
    return label, lambda params, key: scored.append(1) or score(params, key)

  monkeypatch.setattr(experiment, "frechet_scores", frechet_scores)
  code, out, _ = command(sparse, "--sweep=0.05,0.1")
  assert code == 0 and len(scored) == 2
  code, out, _ = command(sparse, "--sweep=0.05:0.15:0.05")
  assert code == 0 and len(scored) == 3
  path = sparse / "posthoc" / "sweep_fd_step12.json"
  scores = json.loads(path.read_text())["scores"]
  assert list(scores) == ["0.050", "0.100", "0.150"]
  # The same as the evaluators of the run give for the average that it tracked.
  config = tiny.config("snapshots", **{"evals.fd.emas": ("power_10",)})
  lines = dict(
    line.split(": ") for line in sample.evaluate(experiment.parse(config), sparse).splitlines()[1:]
  )
  for sampler in ("one_step", "two_steps"):
    np.testing.assert_allclose(
      scores["0.100"][sampler], float(lines[f"fd/{sampler}/power_10"]), rtol=1e-2
    )
    best = min(scores, key=lambda length: scores[length][sampler])
    assert f"Best of {sampler}: sigma_rel {best}, " in out
  page = path.with_suffix(".html").read_text()
  assert page.count("<polyline") + page.count('<path style="fill:none') == 2
  assert "sigma_rel</text>" in page and "one_step" in page

  config = json.loads((sparse / "config.json").read_text())
  config["evals"]["fd"]["num_samples"] = 32
  (sparse / "config.json").write_text(json.dumps(config))
  code, _, err = command(sparse, "--sweep=0.05")
  assert code == 1 and "cannot be compared with new ones: evaluator differ. Move the" in err


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--sigma_rel=0.3"], "sigma_rel=0.3 must be between 0 and 0.2886"),
    (["--sigma_rel=a"], "'a' must be lengths such as 0.05,0.1 or first:last:step such as"),
    (["--sweep=0.1:0.05:0.01"], "'0.1:0.05:0.01' must be lengths such as"),
    (["--sweep=0.1:0.2:0"], "'0.1:0.2:0' must be lengths such as"),
    (["--sweep=0.1:0.2:1e-9"], "must be lengths .*, at most 1000"),
    (["--sigma_rel=0.05", "--step=7"], "--step=7 has no snapshot: .* Nearest: 6, 8"),
  ],
)
def test_a_mistyped_command_says_what_is_right(run, command, args, message):
  code, out, err = command(run, *args)
  assert code == 1 and not out
  with pytest.raises(ValueError, match=message):
    raise ValueError(err)


def test_a_run_that_cannot_be_used_says_why(copy, command, tmp_path):
  code, _, err = command(tmp_path, "--sigma_rel=0.05")
  assert code == 1 and "No config.json in" in err
  path = max((copy / "snapshots" / "6").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
  path.write_bytes(bytes(path.stat().st_size))
  code, _, err = command(copy, "--sigma_rel=0.07")
  assert code == 1 and "snapshot of step 6 in" in err and "Move it away" in err
  shutil.rmtree(copy / "snapshots")
  code, _, err = command(copy, "--sigma_rel=0.05")
  assert code == 1 and "No snapshots in" in err and "config.snapshots" in err
  config = json.loads((copy / "config.json").read_text())
  (copy / "config.json").write_text(json.dumps(config | {"evals": {}}))
  code, _, err = command(copy, "--sweep=0.05")
  assert code == 1 and "A sweep of averages needs a 'frechet' evaluator" in err
