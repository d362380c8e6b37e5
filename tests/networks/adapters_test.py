import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from cmjax import networks, times, weighting
from cmjax.base import param_names
from cmjax.losses import continuous
from cmjax.training import step

# x, cos t, sin t -> two hidden layers -> F
PAIRS = ((4, 16), (16, 16), (16, 2))
LIBRARIES = pytest.mark.parametrize("library", ["nnx", "linen", "equinox", "equinox_vmapped"])


def features(x, t):
  """x beside cos t and sin t, of a batch or of one sample, in the dtype of x."""
  return jnp.concatenate([x, jnp.stack([jnp.cos(t), jnp.sin(t)], -1).astype(x.dtype)], -1)


# --- one network in three libraries -------------------------------------------------------------


class NnxMLP(nnx.Module):
  float32_paths = (r"layers/2/",)
  inputs = ("guidance",)

  def __init__(self, rate=0.0, remat=False, *, rngs):
    self.layers = nnx.List([nnx.Linear(*io, rngs=rngs) for io in PAIRS])
    self.dropout, self.remat = nnx.Dropout(rate, rngs=rngs), remat

  def __call__(self, x, t, cond):
    h = features(x, t)
    for layer in self.layers[:-1]:
      h = self.dropout(jnp.tanh(layer(h)))
    return self.layers[-1](h)


class LinenMLP(nn.Module):
  rate: float = 0.0
  remat: bool = False
  float32_paths = (r"layers_2/",)
  inputs = ("guidance",)

  def setup(self):
    self.layers = [nn.Dense(n) for _, n in PAIRS]
    self.dropout = nn.Dropout(self.rate)

  def __call__(self, x, t, cond, *, deterministic):
    h = features(x, t)
    for layer in self.layers[:-1]:
      h = self.dropout(jnp.tanh(layer(h)), deterministic=deterministic)
    return self.layers[-1](h)


class EquinoxMLP(eqx.Module):
  """For one sample; EquinoxBatchMLP is for a batch."""

  layers: list
  dropout: eqx.nn.Dropout
  remat: bool
  float32_paths = (r"layers/2/",)
  inputs = ("guidance",)

  def __init__(self, rate=0.0, remat=False, *, key):
    keys = jax.random.split(key, 3)
    self.layers = [eqx.nn.Linear(*io, key=k) for io, k in zip(PAIRS, keys, strict=True)]
    self.dropout, self.remat = eqx.nn.Dropout(rate), remat

  def __call__(self, x, t, cond, *, key=None):
    h = features(x, t)
    keys = (None, None) if key is None else jax.random.split(key)
    for layer, k in zip(self.layers[:-1], keys, strict=True):
      h = self.dropout(jnp.tanh(layer(h)), key=k)
    return self.layers[-1](h)


class EquinoxBatchMLP(EquinoxMLP):
  def __call__(self, x, t, cond, *, key=None):
    h = features(x, t)
    for layer in self.layers[:-1]:
      h = self.dropout(jnp.tanh(jax.vmap(layer)(h)), key=key)
    return jax.vmap(self.layers[-1])(h)


@functools.cache
def build(library, rate=0.0, **options):
  if library == "nnx":
    return networks.from_nnx(functools.partial(NnxMLP, rate=rate), shape=(2,), **options)
  if library == "linen":
    return networks.from_linen(LinenMLP(rate), shape=(2,), **options)
  vmapped = library == "equinox_vmapped"
  make = functools.partial(EquinoxMLP if vmapped else EquinoxBatchMLP, rate)
  return networks.from_equinox(make, shape=(2,), vmapped=vmapped, **options)


def from_library(library, params):
  """The parameters as (kernel [in, out], bias) of each layer."""
  if library == "linen":
    return [(params[f"layers_{i}"]["kernel"], params[f"layers_{i}"]["bias"]) for i in range(3)]
  layers = [params["layers"][str(i)] for i in range(3)]
  if library == "nnx":
    return [(layer["kernel"], layer["bias"]) for layer in layers]
  return [(layer["weight"].T, layer["bias"]) for layer in layers]


def to_library(library, layers):
  """The inverse."""
  if library == "linen":
    return {f"layers_{i}": {"kernel": w, "bias": b} for i, (w, b) in enumerate(layers)}
  if library == "nnx":
    return {"layers": {str(i): {"kernel": w, "bias": b} for i, (w, b) in enumerate(layers)}}
  return {"layers": {str(i): {"weight": w.T, "bias": b} for i, (w, b) in enumerate(layers)}}


def weights():
  rng = np.random.default_rng(0)
  draw = lambda *shape: np.asarray(rng.normal(size=shape) / 2, np.float32)
  return [(draw(i, o), draw(o)) for i, o in PAIRS]


COND = {"guidance": np.ones(8, np.float32)}  # which these networks say they read, and do not


def inputs(dtype=jnp.float32, b=8):
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.normal(size=(b, 2)), dtype), jnp.linspace(0.1, 1.5, b, dtype=dtype)


def by_hand(layers, x, t):
  h = features(x, t)
  for w, b in layers[:-1]:
    h = jnp.tanh(h @ w + b[None])
  return h @ layers[-1][0] + layers[-1][1][None]


@LIBRARIES
def test_output_tangent_and_gradient_are_those_of_the_formula(library):
  net, (x, t) = build(library), inputs()

  def loss(F_of, layers):
    F, dF = jax.jvp(functools.partial(F_of, layers), (x, t), (jnp.sin(3 * x), jnp.cos(t)))
    return jnp.sum(F**2 + F * dF) / 10, (F, dF)

  apply = lambda layers, x, t: net.apply(to_library(library, layers), x, t, COND, None)
  evaluate = lambda F_of: jax.jit(jax.grad(functools.partial(loss, F_of), has_aux=True))(weights())
  (grads, outputs), (expected, exact) = evaluate(apply), evaluate(by_hand)
  jax.tree.map(lambda *a: np.testing.assert_allclose(*a, rtol=1e-6, atol=2e-6), outputs, exact)
  jax.tree.map(lambda *a: np.testing.assert_allclose(*a, rtol=1e-6, atol=2e-6), grads, expected)
  assert np.std(outputs[1]) > 0.1 and all(np.std(g) > 1e-3 for g in jax.tree.leaves(grads))


@functools.cache
def trained(library):
  """The weights after 20 steps of sCT, all libraries starting from the same."""
  net = build(library)
  weight = weighting.learned(channels=16)
  loss_fn = continuous.loss(
    net,
    continuous.data_velocity(),
    times.lognormal(-1.0, 1.4, sigma_data=0.5),
    weight,
    sigma_data=0.5,
    warmup_steps=10,
  )
  start = lambda key: {"net": to_library(library, weights()), "weighting": weight.init(key)}
  tx = optax.adam(1e-3)
  state = jax.jit(step.make_init(start, tx, ()))(jax.random.key(0))
  train_step = jax.jit(step.make_train_step(loss_fn, tx, {}))
  for i in range(20):
    image = 0.5 * jax.random.normal(jax.random.key(i), (32, 2))
    state, _ = train_step(state, {"image": image}, jax.random.key(5))
  return from_library(library, state.params["net"])


@pytest.mark.parametrize("library", ["linen", "equinox", "equinox_vmapped"])
def test_twenty_steps_of_training_lead_to_the_same_weights(library):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), trained(library), trained("nnx")
  )
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), trained("nnx"), weights())
  assert min(jax.tree.leaves(moved)) > 1e-3


# --- randomness ---------------------------------------------------------------------------------


@LIBRARIES
def test_dropout_is_a_function_of_the_key_and_absent_without_one(library):
  net, (x, t) = build(library, rate=0.5), inputs()
  params = to_library(library, weights())
  F = lambda key: np.asarray(net.apply(params, x, t, COND, key))
  np.testing.assert_allclose(F(None), by_hand(weights(), x, t), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(F(jax.random.key(1)), F(jax.random.key(1)))
  assert np.any(F(jax.random.key(1)) != F(jax.random.key(2)))
  # Each sample has a mask of its own.
  one, first = jnp.ones_like(x), jnp.full_like(t, 0.5)
  same = np.asarray(net.apply(params, one, first, COND, jax.random.key(1)))
  assert len(np.unique(same[:, 0])) > 4


@LIBRARIES
def test_a_tangent_has_the_dropout_mask_of_its_primal(library):
  net, (x, t) = build(library, rate=0.5), inputs()
  params = to_library(library, weights())
  F_fn = jax.jit(lambda x, t: net.apply(params, x, t, COND, jax.random.key(3)))
  with jax.enable_x64(True):
    x, t = inputs(np.float64)
    dx, dt, h = jnp.sin(3 * x), jnp.cos(t), 1e-5
    F, dF = jax.jit(lambda *a: jax.jvp(F_fn, a, (dx, dt)))(x, t)
    expected = (F_fn(x + h * dx, t + h * dt) - F_fn(x - h * dx, t - h * dt)) / (2 * h)
    assert F.dtype == dF.dtype == jnp.float64
    np.testing.assert_allclose(dF, expected, rtol=1e-6, atol=1e-7)
    # Another mask, in the difference or in the tangent, would be far off.
    other = net.apply(params, x, t, COND, jax.random.key(4))
    assert np.abs(F - other).max() > 0.1


def test_streams_inside_an_nnx_module_differ_from_each_other_and_from_its_rngs():
  class Streams(nnx.Module):
    def __init__(self, *, rngs):
      self.scale = nnx.Param(jnp.ones(7))
      self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, t, cond, *, rngs=None):
      ones = jnp.ones_like(t)
      drawn = [self.first(ones), self.second(ones), self.second(ones)]
      for _ in range(4):  # streams that are made of another one, as nnx.Dropout makes its own
        fork = None if rngs is None else nnx.Rngs(dropout=rngs.dropout())
        drawn.append(nnx.Dropout(0.5, deterministic=rngs is None)(ones, rngs=fork))
      return jnp.stack(drawn, -1) * self.scale[...][None]

  net = networks.from_nnx(Streams, shape=(7,))
  apply = lambda key: np.asarray(net.apply({"scale": jnp.ones(7)}, x, t, {}, key))
  x, t = jnp.ones((64, 7)), jnp.ones(64)
  F = apply(jax.random.key(0))
  assert len({tuple(column) for column in F.T}) == 7
  np.testing.assert_array_equal(np.unique(F), [0, 2])
  np.testing.assert_array_equal(apply(None), 1)


def test_linen_modules_are_told_to_train():
  class Told(nn.Module):
    @nn.compact
    def __call__(self, x, t, cond, train):
      return nn.Dropout(0.5, deterministic=not train)(nn.Dense(2)(x))

  net, (x, t) = networks.from_linen(Told(), shape=(2,)), inputs()
  params = net.init(jax.random.key(0))
  zeros = [np.mean(net.apply(params, x, t, {}, key) == 0) for key in (None, jax.random.key(0))]
  assert zeros[0] == 0 and zeros[1] > 0.2


# --- the border of precision --------------------------------------------------------------------


@LIBRARIES
def test_the_same_network_at_another_precision(library):
  net, (x, t) = build(library), inputs()
  params = to_library(library, weights())
  F = net.apply(params, x, t, COND, None)
  half = net.at(dtype="bfloat16")
  rounded = half.apply(params, x, t, COND, None)
  assert F.dtype == rounded.dtype == jnp.float32
  assert 1e-4 < np.abs(F - rounded).max() < 0.1
  assert dict(half.options) == dict(net.options) | {"dtype": "bfloat16"}
  assert half._replace(init=0, apply=0, at=0, options=0) == net._replace(
    init=0, apply=0, at=0, options=0
  )
  narrow = build(library, float32_paths=(), dtype="bfloat16")  # to the last layer
  assert narrow.apply(params, x, t, COND, None).dtype == jnp.float32
  # Of the kernels, float32_paths names the last.
  text = str(jax.make_jaxpr(half.apply)(params, x, t, COND, None))
  assert text.count("new_dtype=bfloat16") == 1 + 1 + 4  # x, features of t, two kernels and biases
  assert "f32[8] = cos" in text
  with jax.enable_x64(True):
    exact = net.at(dtype="float64").apply(params, x, t, COND, None)
    assert exact.dtype == jnp.float64
    wide = net.apply(params, *inputs(np.float64), COND, None)
    np.testing.assert_allclose(wide, by_hand(weights(), *inputs(np.float64)), rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(exact, F, rtol=1e-5, atol=1e-5)


@LIBRARIES
def test_init_gives_float32_with_readable_paths(library):
  net = build(library)
  params = net.init(jax.random.key(0))
  shapes = jax.tree.map(np.shape, params)
  assert shapes == jax.tree.map(np.shape, to_library(library, weights()))
  assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(params))
  kernel = {"nnx": "layers/1/kernel", "linen": "layers_1/kernel"}.get(library, "layers/1/weight")
  assert kernel in param_names.by_name(params)
  other = param_names.by_name(net.init(jax.random.key(1)))
  assert np.any(param_names.by_name(params)[kernel] != other[kernel])
  with jax.enable_x64(True):  # Equinox then draws in float64
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(net.init(jax.random.key(0))))


def test_a_module_is_built_once_for_all_that_is_traced_with_its_first_weights():
  seeds = []

  class Counted(NnxMLP):
    def __init__(self, *, rngs):
      seeds.append(rngs)
      super().__init__(rngs=rngs)

  net = networks.from_nnx(Counted, shape=(2,))
  before, key = len(seeds), jax.random.key(0)
  shapes = jax.eval_shape(net.init, key)
  assert jax.eval_shape(lambda key: net.init(key), key) == shapes
  first = jax.jit(lambda key: net.at(dtype="bfloat16").init(key))(key)
  assert len(seeds) == before + 1
  jax.tree.map(np.testing.assert_array_equal, first, net.init(key))


@LIBRARIES
def test_what_is_known_of_a_network(library):
  net = build(library, inputs=("segment",) if library == "linen" else None, name="mine")
  assert dict(net.options) == {"dtype": "float32", "matmul_precision": None, "remat": False}
  assert net.inputs == (("segment",) if library == "linen" else ("guidance",))
  assert len(net.float32_paths) == 1 and net.normalized_paths == () and net.name == "mine"
  assert build(library).name.endswith(
    {"nnx": "adapters_test:NnxMLP", "linen": "adapters_test:LinenMLP"}.get(library, "MLP")
  )
  assert net.at(remat=True).options["remat"] and net.at(remat=True).name == "mine"
  assert not net.at(remat=True).at(remat=False, matmul_precision="high").options["remat"]
  with pytest.raises(ValueError, match="no option depth. It has: dtype, matmul_precision, remat"):
    net.at(depth=2)


def test_rematerialisation_is_what_the_constructor_has():
  blocks = dict(width=16, num_heads=2, depth=2, size=None, resolution=8, in_channels=1)
  net = networks.from_nnx(functools.partial(networks.DiT, **blocks))
  x = jnp.ones((2, 8, 8, 1))

  def checkpoints(net):
    loss = lambda params: jnp.sum(net.apply(params, x, jnp.ones(2), {}, None))
    return str(jax.make_jaxpr(loss)(jax.eval_shape(net.init, jax.random.key(0)))).count("remat")

  assert checkpoints(net) == 0 and checkpoints(net.at(remat=True)) > 0
  plain = networks.from_nnx(functools.partial(networks.MLP, 2, guidance=True))
  assert "remat" not in plain.options and plain.inputs == ("guidance",)
  assert networks.from_nnx(lambda rngs: networks.MLP(2, rngs=rngs)).inputs == ()
  net = networks.from_nnx(
    functools.partial(networks.EDM2, 8, 1, 64, (1,), attn_resolutions=(), remat=True)
  )
  assert net.options["remat"] and net.normalized_paths == (r"kernel$",)


# --- constants ----------------------------------------------------------------------------------


def with_table(draw):
  """A module of NNX and one of Equinox that keep draw(key) outside of their parameters."""

  class Nnx(nnx.Module):
    def __init__(self, *, rngs):
      self.scale, self.table = nnx.Param(jnp.ones(2)), draw(rngs.params())

    def __call__(self, x, t, cond):
      return x * self.scale[...][None] + self.table[None].astype(x.dtype)

  class Equinox(eqx.Module):
    scale: jax.Array
    table: jax.Array

    def __init__(self, *, key):
      self.scale, self.table = jnp.ones(2), draw(key)

    def __call__(self, x, t, cond):
      return x * self.scale[None] + self.table[None].astype(x.dtype)

  return networks.from_nnx, Nnx, networks.from_equinox, Equinox


@pytest.mark.parametrize("array", [jnp, np], ids=["jax", "numpy"])
def test_constants_are_kept_and_are_no_parameters(array):
  from_nnx, Nnx, from_equinox, Equinox = with_table(lambda key: array.arange(2))
  for net in (from_nnx(Nnx, shape=(2,)), from_equinox(Equinox, shape=(2,))):
    params = jax.jit(net.init)(jax.random.key(0))
    assert list(params) == ["scale"]
    F = jax.jit(net.apply)(params, jnp.zeros((3, 2)), jnp.ones(3), {}, None)
    np.testing.assert_array_equal(F, np.tile([0, 1], (3, 1)))


def test_random_constants_are_refused():
  from_nnx, Nnx, from_equinox, Equinox = with_table(
    lambda key: jax.random.randint(key, (2,), 0, 99)
  )
  with pytest.raises(ValueError, match="random numbers in the constant table.*an nnx.Param"):
    from_nnx(Nnx)
  with pytest.raises(ValueError, match="random numbers in the constant table.*floating-point"):
    from_equinox(Equinox)


# --- refusals -----------------------------------------------------------------------------------


def adapt(library, output=lambda w, x: w * x, init=lambda key: jnp.ones((1, 2))):
  """The network, in this library, whose one parameter is init(key) and whose F is output(w, x)."""

  class Nnx(nnx.Module):
    def __init__(self, *, rngs):
      self.w = nnx.Param(init(rngs.params()))

    def __call__(self, x, t, cond):
      return output(self.w[...], x)

  class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, t, cond):
      return output(self.param("w", init), x)

  class Equinox(eqx.Module):
    w: jax.Array

    def __init__(self, *, key):
      self.w = init(key)

    def __call__(self, x, t, cond):
      return output(self.w, x)

  if library == "linen":
    return networks.from_linen(Linen(), shape=(2,))
  if library == "nnx":
    return networks.from_nnx(Nnx, shape=(2,))
  return networks.from_equinox(Equinox, shape=(2,))


THREE = pytest.mark.parametrize("library", ["nnx", "linen", "equinox"])


@THREE
def test_outputs_that_are_no_F_are_refused(library):
  with pytest.raises(ValueError, match=re.escape("returns F [2, 1] for x [2, 2]. F must have")):
    adapt(library, lambda w, x: (w * x)[:, :1])
  with pytest.raises(ValueError, match="returns F of dtype int32. F must be floating-point"):
    adapt(library, lambda w, x: (w * x).astype(jnp.int32))
  with pytest.raises(ValueError, match="returns a tuple. It must return one array"):
    adapt(library, lambda w, x: (w * x, x))


@THREE
def test_parameters_that_are_not_real_are_refused_and_others_are_float32(library):
  with pytest.raises(ValueError, match="parameter w of dtype complex64. Parameters are real"):
    adapt(library, lambda w, x: (w * x).real, lambda key: jnp.ones((1, 2), jnp.complex64))
  net = adapt(library, init=lambda key: jnp.ones((1, 2), jnp.float16))
  assert net.init(jax.random.key(0))["w"].dtype == jnp.float32
  message = "w of dtype int32, which has no gradient. Keep it as a constant"
  if library == "equinox":  # there it is one
    message = "no parameters: there is nothing to train"
  with pytest.raises(ValueError, match=message):
    adapt(library, init=lambda key: jnp.ones((1, 2), jnp.int32))


def test_modules_with_another_signature_are_refused():
  class Two(nnx.Module):
    def __init__(self, *, rngs):
      self.w = nnx.Param(jnp.ones(2))

    def __call__(self, x, t):
      return x

  class Four(nn.Module):
    def __call__(self, x, t, cond, mask):
      return x

  class Silent(eqx.Module):
    w: jax.Array

    def __init__(self, key):
      self.w = jnp.ones(2)

  with pytest.raises(
    ValueError, match=re.escape("Two is called with (x, t), not with (x, t, cond)")
  ):
    networks.from_nnx(Two)
  with pytest.raises(ValueError, match="missing a required argument: 'mask'. Write `def __call__"):
    networks.from_linen(Four(), shape=(2,))
  with pytest.raises(ValueError, match="Silent has no __call__. Write"):
    networks.from_equinox(Silent)


def test_what_builds_no_module_is_refused():
  with pytest.raises(ValueError, match="from_nnx got a NnxMLP. It takes what builds the module"):
    networks.from_nnx(NnxMLP(rngs=nnx.Rngs(0)))
  with pytest.raises(ValueError, match="from_nnx got EquinoxMLP without an argument rngs="):
    networks.from_nnx(EquinoxMLP)
  with pytest.raises(ValueError, match="from_equinox got NnxMLP without an argument key="):
    networks.from_equinox(NnxMLP)
  with pytest.raises(ValueError, match=re.escape("an instance of a Linen module: LinenMLP(...)")):
    networks.from_linen(LinenMLP, shape=(2,))


def test_paths_that_match_nothing_are_refused():
  with pytest.raises(ValueError, match="float32_paths has 'layer9', .*found in no parameter"):
    build("linen", float32_paths=("layer9",))

  class Unit(NnxMLP):
    normalized_paths = (r"weight$",)

  with pytest.raises(ValueError, match=r"normalized_paths has 'weight\$'.*layers/0/bias"):
    networks.from_nnx(Unit)


class NnxBatchNorm(nnx.Module):
  def __init__(self, *, rngs):
    self.blocks = nnx.List([nnx.Linear(2, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs)])

  def __call__(self, x, t, cond):
    return self.blocks[1](self.blocks[0](x))


class LinenBatchNorm(nn.Module):
  @nn.compact
  def __call__(self, x, t, cond, train):
    return nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(2)(x))


class EquinoxBatchNorm(eqx.Module):
  fc: eqx.nn.Linear
  norm: eqx.nn.BatchNorm

  def __init__(self, *, key):
    self.fc = eqx.nn.Linear(2, 2, key=key)
    self.norm = eqx.nn.BatchNorm(2, "batch", mode="batch")

  def __call__(self, x, t, cond):
    return x


def test_batch_normalisation_is_refused_with_advice():
  reason = ".*samples depend on each other. Take {0}.GroupNorm, {0}.LayerNorm or {0}.RMSNorm"
  found = "batch statistics in blocks/1 .BatchNorm."
  with pytest.raises(ValueError, match=found + reason.format("nnx")):
    networks.from_nnx(NnxBatchNorm)
  with pytest.raises(ValueError, match="batch statistics in norm " + reason.format("nn")):
    networks.from_linen(LinenBatchNorm(), shape=(2,))
  with pytest.raises(ValueError, match="batch statistics in norm " + reason.format("eqx.nn")):
    networks.from_equinox(EquinoxBatchNorm)
  with pytest.raises(ValueError, match="gave 2 things.*without eqx.nn.make_with_state"):
    networks.from_equinox(lambda key: eqx.nn.make_with_state(EquinoxBatchNorm)(key=key))


def test_other_state_is_refused():
  class Counter(nnx.Module):
    def __init__(self, *, rngs):
      self.w, self.calls = nnx.Param(jnp.ones(2)), nnx.Variable(jnp.zeros(()))

    def __call__(self, x, t, cond):
      return x

  class Cached(nn.Module):
    @nn.compact
    def __call__(self, x, t, cond):
      self.variable("cache", "calls", jnp.zeros, ())
      return nn.Dense(2)(x)

  class Indexed(eqx.Module):
    calls: eqx.nn.StateIndex

    def __init__(self, *, key):
      self.calls = eqx.nn.StateIndex(jnp.zeros(()))

    def __call__(self, x, t, cond):
      return x

  with pytest.raises(ValueError, match="Counter has state in calls, an nnx.Variable"):
    networks.from_nnx(Counter)
  with pytest.raises(ValueError, match="state in the collection 'cache' .calls.*use self.param"):
    networks.from_linen(Cached(), shape=(2,))
  with pytest.raises(ValueError, match="state in calls, an eqx.nn.StateIndex"):
    networks.from_equinox(Indexed)


def test_linen_dropout_that_ignores_the_key_is_refused():
  class Restless(nn.Module):
    @nn.compact
    def __call__(self, x, t, cond):
      return nn.Dropout(0.5, deterministic=False)(nn.Dense(2)(x))

  with pytest.raises(
    ValueError, match="random numbers where it has none.*Dropout_0.*Take `deterministic`"
  ):
    networks.from_linen(Restless(), shape=(2,))


def test_what_conditions_reaches_the_module():
  class Told(nn.Module):
    inputs = ("guidance",)

    @nn.compact
    def __call__(self, x, t, cond):
      rows = nn.Embed(3, 2)(jnp.maximum(cond["label"], 0))
      return nn.Dense(2)(x) + rows * cond["guidance"][:, None]

  net, (x, t) = networks.from_linen(Told(), shape=(2,), num_classes=3), inputs()
  params = net.init(jax.random.key(0))
  cond = {"label": jnp.arange(8) % 3, "guidance": jnp.linspace(1.0, 2.0, 8)}
  F = net.apply(params, x, t, cond, None)
  twice = net.apply(params, x, t, cond | {"guidance": 2 * cond["guidance"]}, None)
  rows = params["Embed_0"]["embedding"][cond["label"]] * cond["guidance"][:, None]
  np.testing.assert_allclose(twice - F, rows, rtol=1e-4, atol=1e-6)
  with pytest.raises(KeyError, match="label"):
    networks.from_linen(Told(), shape=(2,))
