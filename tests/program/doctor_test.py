"""What goes wrong in a run is seen within a step or a probe, and the place is named."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import embeddings, experiment
from cmjax.losses import means
from cmjax.networks import MLP, DDPMpp, from_nnx
from cmjax.program import doctor, first_nonfinite, jvp_check
from helpers import tiny

# --- the first value that is not finite -----------------------------------------------------------


def mlp():
  """A network, its weights, and a function of them with a tangent and a gradient."""
  net = from_nnx(functools.partial(MLP, dim=2, width=8, depth=2, embed_channels=8))
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(net.init, jax.random.key(0))
  params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), shapes)
  x, t = jnp.ones((3, 2)), jnp.ones(3)

  def fn(params):
    def loss(params):
      F, dF = jax.jvp(lambda x, t: net.apply(params, x, t, {}, None), (x, t), (x, t))
      return jnp.mean((F - jax.lax.stop_gradient(F - dF)) ** 2)

    return jax.value_and_grad(loss)(params)

  return params, fn


def test_the_module_that_overflows_is_named():
  params, fn = mlp()
  assert first_nonfinite.first_nonfinite(fn, params=params) is None
  layer = params["blocks"]["block1"]["fc0"]
  layer["kernel"] = jnp.full_like(layer["kernel"], 3e38)
  found = first_nonfinite.first_nonfinite(fn, params=params)
  first = found.after or found
  assert first.where == "MLP/blocks/block1/fc0" and first.operation == "dot_general"
  assert first.shape == (3, 8)


def test_an_infinity_before_the_nan_is_named_too():
  found = first_nonfinite.first_nonfinite(lambda x: jnp.exp(x) * jnp.zeros(3), x=jnp.full(3, 1e3))
  assert str(found) == (
    "the first nan is in the loss (mul), of shape [3]; before that, the first inf is in the loss "
    "(exp), of shape [3]"
  )


def test_blocks_of_a_scan_are_named_by_their_turn():
  net = from_nnx(
    functools.partial(
      DDPMpp, resolution=4, channels=4, channel_mult=(1,), num_blocks=2, attn_resolutions=(),
      augment_dim=0, dropout=0.0, scan=True, remat=True,
    )
  )  # fmt: skip
  params = net.init(jax.random.key(0))
  conv = params["enc"]["4x4_block1"]["conv1"]
  conv["kernel"] = jnp.full_like(conv["kernel"], 3e38)
  found = first_nonfinite.first_nonfinite(
    lambda params: net.apply(params, jnp.ones((1, 4, 4, 3)), jnp.ones(1), {}, None), params=params
  )
  assert (found.after or found).where == "DDPMpp[1]/enc/4x4_block0/conv1"


def test_a_parameter_that_is_not_finite_is_named_before_all_else():
  params, fn = mlp()
  layer = params["blocks"]["block0"]["fc1"]
  layer["bias"] = layer["bias"].at[3].set(math.nan)
  found = first_nonfinite.first_nonfinite(fn, params=params)
  assert (
    str(found) == "the first nan is in the argument params/blocks/block0/fc1/bias, of shape [8]"
  )


def test_the_backward_pass_is_told_from_the_forward_pass():
  grad = jax.grad(lambda x: jnp.sum(jnp.sqrt(x) * 0.0))
  found = first_nonfinite.first_nonfinite(lambda x: grad(x), x=jnp.zeros(3))
  assert found.where == "the loss, in the backward pass" and found.shape == (3,)


def test_every_equation_is_visited_with_the_values_it_has_under_jit():
  def fn(x):
    carry, ys = jax.lax.scan(lambda c, x: (c + jnp.sin(x), c * x), 0.5, x, reverse=True)
    return jax.jit(jnp.cumsum)(ys)[-1] * carry

  seen = []
  first_nonfinite.evaluate(
    fn, lambda place, name, outputs: seen.append((name, outputs)), jnp.arange(4.0)
  )
  assert [name for name, _ in seen].count("sin") == 4
  np.testing.assert_allclose(seen[-1][1][0], jax.jit(fn)(jnp.arange(4.0)), rtol=1e-6)


# --- spikes ---------------------------------------------------------------------------------------


def metrics(grad=1.0, tangent=2.0, late=2.0):
  mean = lambda x: means.Mean(np.float32(3 * x), np.float32(3))
  return {
    "loss": mean(5.0), "grad_norm": mean(grad), "tangent_norm": mean(tangent),
    f"tangent_norm/{means.BINS[0]}": mean(tangent),
    f"tangent_norm/{means.BINS[5]}": mean(late),
    f"tangent_norm/{means.BINS[3]}": means.Mean(np.float32(0), np.float32(0)),
  }  # fmt: skip


def test_a_spike_is_seen_at_its_step_with_its_time_and_is_no_part_of_the_median():
  spikes = doctor.Spikes(10.0)
  rng = np.random.default_rng(0)
  for step in range(40):
    assert not spikes.see(step, metrics(*rng.uniform(0.5, 2.0, 3)))
  for step in (40, 41):
    text = spikes.see(step, metrics(grad=1.0, tangent=50.0, late=400.0))
    assert text.startswith(f"Step {step}: tangent_norm 50 is 3")
    assert f"most in {means.BINS[5]} (400, 2" in text
  assert not spikes.see(42, metrics()) and spikes.count == 2
  assert "grad_norm 30" in spikes.see(43, metrics(grad=30.0))


def test_no_median_no_spike_and_none_where_none_is_looked_for():
  young, off = doctor.Spikes(2.0), doctor.Spikes(None)
  for step in range(doctor.LEAST - 1):
    assert not young.see(step, metrics()) and not off.see(step, metrics())
  assert not young.see(20, metrics(grad=1e6)) and not off.see(20, metrics(grad=1e6))


# --- the probe ------------------------------------------------------------------------------------


def probe(config):
  """The probe of a config's network."""
  given = experiment.parse(config)
  return doctor.Probe(given.network, given.samples, given.method.tangent)


def shaken(config):
  params = experiment.parse(config).network.init(jax.random.key(0))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda a: a + jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), params)


def test_the_jvp_of_a_sound_network_passes_and_its_errors_are_those_of_its_bins():
  config = tiny.config()
  errors, trouble = probe(config)(shaken(config))
  assert not trouble and set(errors) == {"jvp_error", *(f"jvp_error/{b}" for b in means.BINS)}
  assert 0 < errors["jvp_error"] < 1e-4
  assert errors["jvp_error"] == max(errors[f"jvp_error/{b}"] for b in means.BINS)
  fresh = experiment.parse(config).network.init(jax.random.key(0))
  assert probe(config)(fresh)[0]["jvp_error"] == 0  # F is 0 at the start


def test_a_time_in_bfloat16_is_found_where_it_is_rounded(monkeypatch):
  exact = embeddings.positional

  def rounded(t, *args, **kwargs):
    with jax.named_scope("embedding"):
      return exact(t.astype(jnp.bfloat16).astype(t.dtype), *args, **kwargs)

  monkeypatch.setattr(embeddings, "positional", rounded)
  config = tiny.config()
  errors, trouble = probe(config)(shaken(config))
  assert errors["jvp_error"] > 0.1
  assert "the derivative does not match the function, from MLP/embedding (convert_e" in trouble


def test_a_body_in_too_low_a_precision_is_said_to_round_and_where(monkeypatch):
  config = tiny.config(**{"net.dtype": "bfloat16"})
  monkeypatch.setitem(jvp_check.PRECISION, "bfloat16", (0.05, 1e-4))
  errors, trouble = probe(config)(shaken(config))
  assert 1e-4 < errors["jvp_error"] < 0.5
  assert "dF/dt by jvp in bfloat16" in trouble and "rounding, to which the weights of" in trouble
  assert "loss.tangent.dtype='float32'" in trouble


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"nonfinite": "ignore"}, "nonfinite. 'ignore'. Choose from: roll_back, skip, stop"),
    ({"doctor.on_spike": "skip"}, "doctor.on_spike. 'skip'. Choose from: roll_back, stop, warn"),
    ({"doctor.spike_factor": 0.5}, "spike_factor=0.5 must be above 1, or None"),
    ({"doctor.probe_every_steps": 0}, "probe_every_steps=0 must be at least 1, or None"),
  ],
)
def test_policies_that_there_are_not_are_refused(values, message):
  with pytest.raises(ValueError, match=message):
    experiment.parse(tiny.config(**values))


def test_an_option_that_there_is_not_is_refused():
  config = tiny.config()
  with config.unlocked():
    config.doctor.spikes = 3
  with pytest.raises(ValueError, match="config.doctor has spikes. It knows: spike_factor"):
    experiment.parse(config)


def test_to_look_for_the_cause_does_not_hide_the_fault():
  def loss_fn(params, batch, key, step):
    raise MemoryError("no room for this")

  args = ({"net": jnp.ones(2)}, {"image": jnp.ones(2)}, jax.random.key(0), jnp.zeros((), jnp.int32))
  text = doctor.locate(loss_fn, *args)
  assert text == "Where it is was not found out: MemoryError: no room for this."


def test_a_loss_that_is_finite_one_by_one_is_said_to_be():
  loss_fn = lambda params, batch, key, step: (jnp.sum(params["net"] * batch["image"]), {})
  args = ({"net": jnp.ones(2)}, {"image": jnp.ones(2)}, jax.random.key(0), jnp.zeros((), jnp.int32))
  assert "all of it is finite: rounding decides" in doctor.locate(loss_fn, *args)
  bad = {"image": jnp.array([1.0, jnp.nan])}
  assert doctor.locate(loss_fn, args[0], bad, *args[2:]).startswith(
    "The first nan is in the argument batch/image, of shape [2]."
  )
