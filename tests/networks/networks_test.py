import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmjax import embeddings
from cmjax.networks import MLP, DDPMpp, from_nnx, grow, layers
from cmjax.networks.attention import attend, split_heads
from cmjax.networks.unet import (
  MODULATIONS,
  BlockSpec,
  Style,
  UNetBlock,
  decoder_specs,
  encoder_specs,
)

SMALL = dict(
  resolution=8,
  in_channels=1,
  channels=8,
  channel_mult=(1, 2),
  num_blocks=1,
  attn_resolutions=(4,),
  dropout=0.2,
  num_classes=3,
  augment_dim=2,
)
NUM_BLOCKS = 10  # enc: block0, down, block0; dec: in0, in1, block0-1, up, block0-1
unet = functools.partial(DDPMpp, **SMALL)
# One level, its blocks with attention: traced and compiled in half the time.
flat = functools.partial(DDPMpp, **SMALL | dict(channel_mult=(2,), attn_resolutions=(8,)))
mlp = functools.partial(MLP, dim=2, width=16, depth=2, embed_channels=8, num_classes=3, dropout=0.2)
MODULES = pytest.mark.parametrize("make", [mlp, flat], ids=["mlp", "ddpmpp"])
# Their derivatives take longest to compile.
DERIVED = pytest.mark.parametrize(
  "make", [pytest.param(mlp, id="mlp"), pytest.param(flat, id="ddpmpp", marks=pytest.mark.slow)]
)
# With levels above each other, and so with what halves and doubles the resolution.
ALL_LEVELS = pytest.mark.parametrize(
  "make", [pytest.param(mlp, id="mlp"), pytest.param(unet, id="ddpmpp", marks=pytest.mark.slow)]
)

network = functools.cache(from_nnx)


@functools.cache
def shapes_of(make):
  return jax.eval_shape(network(make).init, jax.random.key(0))


@functools.cache
def fresh(make, seed=0):
  """Its first weights."""
  return network(make).init(jax.random.key(seed))


@functools.cache
def shaken(make, scale=0.2):
  """Parameters that are all different from 0, as after some training."""
  rng = np.random.default_rng(0)
  draw = lambda path, a: (path[-1].key == "scale") + scale * rng.normal(size=a.shape)
  leaf = lambda *a: jnp.asarray(draw(*a), jnp.float32)
  return jax.tree_util.tree_map_with_path(leaf, shapes_of(make))


def inputs(make, b=3, dtype=np.float32):
  shape = (2,) if make is mlp else (8, 8, 1)
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(b, *shape)), dtype)
  return x, jnp.linspace(0.1, 1.5, b, dtype=dtype), {"label": jnp.arange(b) % 3}


@functools.cache
def built(make):
  """The network in float32 with its apply compiled, and shaken parameters."""
  net = network(make)
  return net._replace(apply=jax.jit(net.apply)), shaken(make)


def count(**kwargs):
  module = nnx.eval_shape(lambda: DDPMpp(**kwargs, rngs=nnx.Rngs(0)))
  shapes = jax.tree.leaves(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
  return sum(math.prod(a.shape) for a in shapes), len(shapes)


# --- the published networks ---------------------------------------------------------------------


# The networks of EDM: published_networks_test.py.
def test_ddpmpp_with_the_double_normalisation_has_as_many_parameters_as_derived():
  assert count(modulation="pnorm_scale_shift") == (60_067_715, 417)
  assert count(**SMALL, modulation="pnorm_scale") == count(**SMALL, modulation="additive")


def test_unet_walks_through_the_channels_of_edm():
  plan = ((32, 16, 8), (128, 256, 256, 256), 4, (16,))
  enc, dec = encoder_specs(*plan), decoder_specs(*plan)
  assert [s.cin for s in enc] == [128] + 13 * [256]
  assert [s.cin for s in dec if s.joins] == 14 * [512] + [384]
  assert {s.cout for s in enc + dec} == {256} and len(enc + dec) == 33
  assert [s.name for s in dec if s.attention] == ["8x8_in0", "16x16_block4"]
  assert [s.name for s in enc if s.attention] == [f"16x16_block{i}" for i in range(4)]


def test_parameter_paths_follow_the_names_of_edm():
  flat = jax.tree_util.tree_leaves_with_path(shapes_of(functools.partial(DDPMpp, num_classes=10)))
  paths = {jax.tree_util.keystr(p, simple=True, separator="/"): a.shape for p, a in flat}
  assert all(type(k.key) is str for p, _ in flat for k in p)
  assert paths["map_label/kernel"] == (10, 128) and paths["map_augment/kernel"] == (9, 128)
  assert paths["map_layer0/kernel"] == (128, 512) and paths["map_layer1/bias"] == (512,)
  assert paths["enc/32x32_conv/kernel"] == (3, 3, 3, 128)
  assert paths["enc/32x32_block0/skip/kernel"] == (1, 1, 128, 256)
  assert paths["enc/16x16_down/conv0/kernel"] == (3, 3, 256, 256)
  assert paths["enc/16x16_block0/qkv/kernel"] == (1, 1, 256, 768)
  assert paths["dec/16x16_block4/norm2/scale"] == (256,)
  assert paths["dec/8x8_in0/affine/kernel"] == (512, 512)
  assert paths["dec/32x32_aux_conv/kernel"] == (3, 3, 256, 3)


@pytest.mark.parametrize("size", [(8, 1), (28, 1), (32, 3)])
def test_ddpmpp_keeps_the_shape_of_the_image(size):
  resolution, in_channels = size
  make = functools.partial(
    DDPMpp, resolution, in_channels, 32, (1, 2), num_blocks=1, attn_resolutions=(resolution // 2,)
  )
  x = jnp.zeros((5, resolution, resolution, in_channels))
  args = shapes_of(make), x, jnp.zeros(5), {}, jax.random.key(1)
  F = jax.eval_shape(network(make).apply, *args)
  assert F.shape == x.shape and F.dtype == jnp.float32


# --- laws of every network ----------------------------------------------------------------------


@MODULES
def test_output_is_zero_at_the_start_and_not_later(make):
  net, params = built(make)
  assert not np.any(net.apply(fresh(make), *inputs(make), None))
  assert np.std(net.apply(params, *inputs(make), None)) > 0.01


@MODULES
def test_dropout_is_a_function_of_the_key(make):
  net, params = built(make)
  F = lambda key: np.asarray(net.apply(params, *inputs(make), key))
  np.testing.assert_array_equal(F(None), F(None))
  np.testing.assert_array_equal(F(jax.random.key(1)), F(jax.random.key(1)))
  assert np.any(F(jax.random.key(1)) != F(jax.random.key(2)))
  assert np.any(F(jax.random.key(1)) != F(None))


@MODULES
def test_label_changes_the_output(make):
  net, params = built(make)
  x, t, _ = inputs(make)
  F = [np.asarray(net.apply(params, x, t, {"label": jnp.full(3, i)}, None)) for i in (-1, 0, 1, 7)]
  assert np.abs(F[0] - F[1]).max() > 1e-3 and np.abs(F[1] - F[2]).max() > 1e-3
  np.testing.assert_array_equal(F[0], F[3])  # -1 and beyond the classes: no condition


@MODULES
def test_samples_of_a_batch_do_not_see_each_other(make):
  net, params = built(make)
  x, t, cond = inputs(make)
  order = jnp.array([2, 0, 1])
  F = net.apply(params, x, t, cond, None)
  moved = net.apply(params, x[order], t[order], {"label": cond["label"][order]}, None)
  np.testing.assert_allclose(moved, F[order], rtol=1e-4, atol=1e-5)


@ALL_LEVELS
def test_jvp_agrees_with_finite_differences(make):
  with jax.enable_x64(True):
    net, params = network(make).at(dtype="float64"), shaken(make)
    x, t, cond = inputs(make, dtype=np.float64)
    dx, dt = jnp.sin(3 * x), jnp.cos(t)
    # With a key: the finite difference shares one dropout mask, so the tangent has to as well.
    F_fn = jax.jit(lambda x, t: net.apply(params, x, t, cond, jax.random.key(3)))
    F, dF = jax.jit(lambda *a: jax.jvp(F_fn, a, (dx, dt)))(x, t)
    h = 1e-5
    expected = (F_fn(x + h * dx, t + h * dt) - F_fn(x - h * dx, t - h * dt)) / (2 * h)
    assert F.dtype == dF.dtype == jnp.float64
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(dF, expected, rtol=1e-6, atol=1e-7)


@DERIVED
def test_gradient_runs_through_the_primal_of_a_jvp(make):
  net, params = network(make), shaken(make)
  x, t, cond = inputs(make)
  key = jax.random.key(5)

  @jax.jit
  def both(params):
    def loss(params):
      F, dF = jax.jvp(lambda x, t: net.apply(params, x, t, cond, key), (x, t), (x, t))
      target = jax.lax.stop_gradient(F - dF)
      return jnp.sum((F - target) ** 2) / 2, dF

    grads, dF = jax.grad(loss, has_aux=True)(params)
    _, pull = jax.vjp(lambda params: net.apply(params, x, t, cond, key), params)
    return grads, pull(dF)[0]

  grads, expected = both(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), grads, expected)
  assert all(np.any(g) for g in jax.tree.leaves(grads["map_layer0"]))
  if make is flat:
    assert np.abs(grads["enc"]["8x8_block0"]["qkv"]["kernel"]).max() > 1e-4


@MODULES
def test_tangent_is_finite_on_a_constant_image_and_at_both_ends(make):
  net, params = network(make), shaken(make)
  x, _, cond = inputs(make)
  t = jnp.array([0.0, math.pi / 2 - 1e-6, math.pi / 2])
  F_fn = lambda x, t: net.apply(params, x, t, cond, None)
  F, dF = jax.jit(lambda x: jax.jvp(F_fn, (x, t), (x, jnp.ones(3))))(jnp.zeros_like(x))
  assert np.all(np.isfinite(F)) and np.all(np.isfinite(dF)) and np.any(dF)


def dot_dtypes(jaxpr):
  """(primitive, dtypes of its two operands) of every product in a jaxpr and those inside it."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
      yield eqn.primitive.name, {v.aval.dtype.name for v in eqn.invars}
    for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
      sub = getattr(sub, "jaxpr", sub)
      if hasattr(sub, "eqns"):
        yield from dot_dtypes(sub)


@pytest.mark.parametrize(("make", "mapping"), [(mlp, 3 + 2), (unet, 3 + NUM_BLOCKS)])
def test_body_runs_in_bfloat16_and_embeddings_in_float32(make, mapping):
  net = network(make).at(dtype="bfloat16")
  jaxpr = jax.make_jaxpr(net.apply)(shapes_of(make), *inputs(make), jax.random.key(0))
  found = list(dot_dtypes(jaxpr.jaxpr))
  assert all(len(dtypes) == 1 for _, dtypes in found)
  assert sum(dtypes == {"float32"} for _, dtypes in found) == mapping  # map_* and affine
  assert sum(dtypes == {"bfloat16"} for _, dtypes in found) == len(found) - mapping
  assert not any("float32" in dtypes for name, dtypes in found if name != "dot_general")
  assert jaxpr.out_avals[0].dtype == jnp.float32


# --- the adapter --------------------------------------------------------------------------------


def test_init_is_a_function_of_the_key_and_gives_float32():
  a, b, c = (network(mlp).init(jax.random.key(i)) for i in (0, 0, 1))
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(a))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert np.any(a["fc_in"]["kernel"] != c["fc_in"]["kernel"])
  assert np.any(a["blocks"]["block0"]["fc0"]["kernel"] != a["blocks"]["block1"]["fc0"]["kernel"])


@pytest.mark.parametrize("make", [mlp, flat])
def test_products_have_their_precision_in_every_derivative(make):
  """Of the jvp, and of the gradient of its primal: the network's own, whatever the context says."""

  def step(net, params, x, t, cond):
    def value(params):
      F, dF = jax.jvp(lambda x, t: net.apply(params, x, t, cond, None), (x, t), (x, t))
      return jnp.sum((F - jax.lax.stop_gradient(dF)) ** 2)

    return jax.grad(value)(params)

  def precisions(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
        yield eqn.params["precision"]
      for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
        sub = getattr(sub, "jaxpr", sub)
        if hasattr(sub, "eqns"):
          yield from precisions(sub)

  found = {}
  for name in ("highest", "default"):
    net = network(make).at(matmul_precision=name)
    with jax.default_matmul_precision("high"):
      jaxpr = jax.make_jaxpr(functools.partial(step, net))(shapes_of(make), *inputs(make))
    found[name] = list(precisions(jaxpr.jaxpr))
  highest = (jax.lax.Precision.HIGHEST,) * 2
  assert len(found["highest"]) == len(found["default"]) > 12
  assert set(found["highest"]) == {highest}
  assert all(p != highest and p != (jax.lax.Precision.HIGH,) * 2 for p in found["default"])


def test_adapter_refuses_what_it_cannot_carry():
  with pytest.raises(ValueError, match="int32 is not floating-point"):
    from_nnx(mlp, dtype="int32")
  with pytest.raises(ValueError, match="'best'. Choose from: default, high, highest"):
    from_nnx(mlp, matmul_precision="best")
  with pytest.raises(ValueError, match="'mapp', .*found in no parameter.*blocks/block0"):
    from_nnx(mlp, float32_paths=("mapp",))

  class Counter(nnx.Module):
    float32_paths = ()

    def __init__(self, *, rngs):
      self.calls = nnx.Variable(jnp.zeros(()))

  with pytest.raises(ValueError, match="(?i)variable"):
    from_nnx(Counter)


# --- layers -------------------------------------------------------------------------------------


def test_positional_embedding_has_its_endpoint_frequencies():
  # d/dt sin(t f) at 0 is f.
  _, slopes = jax.jvp(lambda t: embeddings.positional(t, 128), (jnp.zeros(1),), (jnp.ones(1),))
  np.testing.assert_array_equal(slopes[0, :64], 0)
  freqs = slopes[0, 64:]
  np.testing.assert_allclose([freqs[0], freqs[63]], [1, 1e-4], rtol=1e-6)
  np.testing.assert_allclose(freqs[1:] / freqs[:-1], 10_000 ** (-1 / 63), rtol=1e-5)
  np.testing.assert_allclose(freqs.mean(), 0.1149, atol=5e-5)


def test_positional_embedding_is_cosines_then_sines_of_t_itself():
  t = jnp.array([0.3, 1.5])
  emb = embeddings.positional(t, 6, max_period=100.0)
  f = np.array([1.0, 0.1, 0.01])
  angles = np.outer(t, f)
  expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
  np.testing.assert_allclose(emb, expected, rtol=1e-6)
  assert embeddings.positional(t.astype(jnp.bfloat16), 4).dtype == jnp.float32
  with jax.enable_x64(True):
    assert embeddings.positional(jnp.ones(2, jnp.float64), 4).dtype == jnp.float64


@pytest.mark.parametrize(("channels", "nearest"), [(7, 8), (2, 4), (0, 4)])
def test_positional_embedding_needs_an_even_width(channels, nearest):
  with pytest.raises(ValueError, match=f"got {channels}.*Nearest: {nearest}"):
    embeddings.positional(jnp.zeros(1), channels)


def test_downsampling_is_the_mean_of_squares_and_upsampling_its_right_inverse():
  x = jnp.arange(2 * 4 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 4, 3)
  small = layers.downsample(x)
  np.testing.assert_allclose(small[1, 0, 1, 2], x[1, :2, 2:, 2].mean())
  large = layers.upsample(small)
  assert large.shape == x.shape
  np.testing.assert_allclose(large[1, :2, 2:, 2], np.full((2, 2), small[1, 0, 1, 2]))
  np.testing.assert_allclose(layers.downsample(large), small)


@pytest.mark.parametrize("size", [1, 3])
def test_convolution_is_the_sum_of_shifted_products(size):
  conv = layers.Conv(2, 4, size, rngs=nnx.Rngs(0))
  conv.bias[...] = jnp.arange(4.0)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 2)), jnp.float32)
  pad = size // 2
  padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  expected = np.arange(4.0) + sum(
    padded[:, i : i + 5, j : j + 5] @ np.asarray(conv.kernel[...])[i, j]
    for i in range(size)
    for j in range(size)
  )
  np.testing.assert_allclose(conv(x), expected, rtol=1e-4, atol=1e-5)


def test_group_norm_has_unit_groups_and_float32_statistics():
  norm = layers.GroupNorm(16)  # four groups of four
  x = 100 + np.random.default_rng(0).normal(size=(2, 8, 8, 16))
  groups = np.asarray(norm(jnp.asarray(x, jnp.float32))).reshape(2, 64, 4, 4)
  np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-4)
  np.testing.assert_allclose(groups.std((1, 3)), 1, rtol=1e-4)
  half = jnp.asarray(x, jnp.bfloat16)
  exact = norm(half.astype(jnp.float32))
  assert norm(half).dtype == jnp.bfloat16
  np.testing.assert_allclose(norm(half).astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_group_norm_applies_its_scale_and_bias_per_channel():
  norm = layers.GroupNorm(8)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 8)), jnp.float32)
  plain = np.asarray(norm(x))
  norm.scale[...], norm.bias[...] = jnp.arange(8.0), -jnp.arange(8.0)
  np.testing.assert_allclose(norm(x), plain * np.arange(8.0) - np.arange(8.0), atol=1e-5)


@pytest.mark.parametrize("channels", [3, 10 * 4 + 2, 136])
def test_group_norm_explains_widths_it_cannot_divide(channels):
  with pytest.raises(ValueError, match=f"cannot divide {channels} channels"):
    layers.GroupNorm(channels)


def test_pnorm_divides_by_the_root_mean_square():
  np.testing.assert_allclose(
    layers.pnorm(jnp.array([[3.0, 4.0]])), [[3 / 12.5**0.5, 4 / 12.5**0.5]]
  )
  # eps = 1e-8 is inside the root: at 0 the derivative is 1e4, not infinite.
  y, dy = jax.jvp(layers.pnorm, (jnp.zeros(4),), (jnp.ones(4),))
  np.testing.assert_allclose([y, dy], [4 * [0.0], 4 * [1e4]], rtol=1e-5)


def test_xavier_uniform_has_its_width():
  w = layers.xavier_uniform(jax.random.key(0), (3, 3, 20, 40), gain=0.5)
  limit = 0.5 * math.sqrt(6 / (9 * 60))
  assert np.abs(w).max() <= limit
  np.testing.assert_allclose(np.std(w), limit / math.sqrt(3), rtol=0.02)
  assert not np.any(layers.xavier_uniform(jax.random.key(0), (4, 4), gain=0.0))


def test_dropout_keeps_the_mean_and_the_share():
  y = layers.dropout(jnp.full(100_000, 3.0), 0.25, jax.random.key(0))
  np.testing.assert_allclose(np.unique(y), [0, 4])
  np.testing.assert_allclose(y.mean(), 3, rtol=0.01)


def test_label_rows_have_unit_mean_square_and_none_for_no_condition():
  rows = layers.label_rows({"label": jnp.array([2, -1, 0])}, 4)
  np.testing.assert_array_equal(rows, [[0, 0, 2, 0], [0, 0, 0, 0], [2, 0, 0, 0]])


def test_attention_equals_a_handwritten_softmax():
  b, h, w, heads, c = 2, 2, 3, 2, 4
  qkv = np.random.default_rng(0).normal(size=(b, h, w, heads * c * 3)).astype("f")
  expected = np.zeros((b, h * w, heads * c))
  for n in range(heads):
    # Channel (head, channel, {q, k, v}): q, k and v are neighbours.
    q, k, v = (
      qkv.reshape(b, h * w, -1)[..., n * c * 3 + i : (n + 1) * c * 3 : 3] for i in range(3)
    )
    scores = np.einsum("bpc,bsc->bps", q, k) / math.sqrt(c)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    expected[..., n * c : (n + 1) * c] = p / p.sum(-1, keepdims=True) @ v
  np.testing.assert_allclose(attend(split_heads(jnp.asarray(qkv), heads)), expected, atol=1e-5)


def test_attention_equals_the_one_of_jax_in_every_derivative():
  rng = np.random.default_rng(0)
  qkv, tangent = jnp.asarray(rng.normal(size=(2, 2, 6, 2, 4, 3)), jnp.float32)
  ours = lambda a: jnp.sum(jnp.sin(attend(a)))
  theirs = lambda a: jnp.sum(jnp.sin(jax.nn.dot_product_attention(*jnp.moveaxis(a, -1, 0))))

  def derivatives(f, a, da):
    primal = lambda a: jax.jvp(f, (a,), (da.astype(a.dtype),))[0]
    return [*jax.jvp(f, (a,), (da,)), jax.grad(primal)(a)]

  expected = jax.jit(functools.partial(derivatives, theirs))(qkv, tangent)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    jax.jit(functools.partial(derivatives, ours))(qkv, tangent),
    expected,
  )
  half = (qkv.astype(jnp.bfloat16), tangent.astype(jnp.bfloat16))
  for a, b in zip(jax.jit(functools.partial(derivatives, ours))(*half), expected, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("modulation", sorted(MODULATIONS))
def test_block_modulates_as_its_formula_says(modulation):
  style = Style(modulation, skip_scale=0.5, eps=1e-6)
  block = UNetBlock(BlockSpec("block", 8, 8), 16, style, dropout=0.5, rngs=nnx.Rngs(0))
  block.conv1.kernel[...] = block.conv0.kernel[...] + 0.1
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 4, 4, 8)), jnp.float32)
  e = jnp.asarray(rng.normal(size=(2, 16)), jnp.float32)
  h = block.conv0(jax.nn.silu(block.norm0(x)))
  a = np.asarray(e @ block.affine.kernel[...])[:, None, None]
  if modulation == "additive":
    h = block.norm1(h + a)
  elif modulation == "scale_shift":
    h = block.norm1(h) * (1 + a[..., :8]) + a[..., 8:]
  else:
    s, *b = np.split(a, a.shape[-1] // 8, axis=-1)
    rms = lambda a: np.sqrt(np.mean(a**2, -1, keepdims=True))
    h = block.norm1(h) * (s / rms(s)) + sum(b / rms(b) for b in b)
    assert len(b) == (modulation == "pnorm_scale_shift")
  expected = (x + block.conv1(jax.nn.silu(h))) / 2
  np.testing.assert_allclose(block(x, e, None), expected, rtol=1e-4, atol=1e-5)


# --- guidance, segment and Fourier features ------------------------------------------------------

TOLD = dict(guidance=True, segment=True)
told_mlp = functools.partial(mlp, **TOLD)
told_flat = functools.partial(flat, **TOLD, embedding="fourier", fourier_scale=0.5)
# With the same embedding of time: only guidance and segment may be added.
student_flat = functools.partial(flat, **TOLD)
TOLD_MODULES = pytest.mark.parametrize(
  ("make", "plain"), [(told_mlp, mlp), (told_flat, flat)], ids=["mlp", "ddpmpp"]
)


def told_inputs(plain, b=3):
  x, t, cond = inputs(plain, b)
  return x, t, cond | {"guidance": jnp.linspace(1, 2, b), "segment": 0.3 * jnp.arange(b)}


def leaves(params):
  flat, _ = jax.tree_util.tree_flatten_with_path(params)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): a for p, a in flat}


@TOLD_MODULES
def test_new_layers_start_at_zero_and_leave_the_other_initial_weights_alone(make, plain):
  told, untold = leaves(fresh(make)), leaves(fresh(plain))
  for path, a in untold.items():
    np.testing.assert_array_equal(told[path], a)
  new = {path: a for path, a in told.items() if path not in untold}
  width = 8
  assert {path: a.shape for path, a in new.items() if path != "map_noise/freqs"} == {
    "map_guidance/kernel": (width, width),
    "map_guidance/bias": (width,),
    "map_segment/kernel": (width, width),
    "map_segment/bias": (width,),
  }
  assert not any(np.any(a) for path, a in new.items() if path != "map_noise/freqs")
  assert ("map_noise/freqs" in new) == (plain is flat)


@TOLD_MODULES
def test_guidance_and_segment_are_added_to_the_embedding_as_their_formula_says(make, plain):
  net, params = built(make)
  x, t, cond = told_inputs(plain)
  F = net.apply(params, x, t, cond, None)
  for name in TOLD:
    moved = net.apply(params, x, t, cond | {name: cond[name] + 0.2}, None)
    assert np.abs(moved - F).max(axis=tuple(range(1, x.ndim))).min() > 1e-4
    # The same change of the embedding, made through the label's bias: the position is the same.
    one = {key: a[:1] for key, a in cond.items()}
    before, after = (embeddings.positional(one[name] + change, 8) for change in (0, 0.2))
    shift = (after - before) @ params[f"map_{name}"]["kernel"]
    bias = params["map_label"]["bias"] + shift[0]
    biased = params | {"map_label": params["map_label"] | {"bias": bias}}
    np.testing.assert_allclose(
      net.apply(biased, x[:1], t[:1], one, None), moved[:1], rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize(
  ("student", "plain"), [(told_mlp, mlp), (student_flat, flat)], ids=["mlp", "ddpmpp"]
)
def test_a_student_that_is_told_more_starts_as_its_teacher(student, plain):
  net, teacher = built(plain)
  first = fresh(student, seed=7)
  params = grow(teacher, first)
  assert jax.tree.structure(params) == jax.tree.structure(first)
  x, t, cond = told_inputs(plain)
  expected = net.apply(teacher, x, t, cond, None)
  np.testing.assert_array_equal(built(student)[0].apply(params, x, t, cond, None), expected)
  assert np.std(expected) > 0.01
  if plain is flat:
    return  # what follows is the same there, and takes long to compile
  # The new layers have a gradient: the student can learn to listen.
  loss = lambda new: jnp.sum(built(student)[0].apply(params | new, x, t, cond, None) ** 2)
  grads = jax.grad(loss)({f"map_{name}": params[f"map_{name}"] for name in TOLD})
  assert all(np.any(g) for g in jax.tree.leaves(grads))


def test_grow_names_every_weight_that_does_not_fit():
  student, teacher = fresh(told_mlp), fresh(mlp, seed=1)
  narrow = teacher | {"fc_in": teacher["fc_in"] | {"kernel": jnp.zeros((9, 16))}}
  with pytest.raises(ValueError, match=r"fc_in/kernel is \(9, 16\), this network's \(14, 16\)"):
    grow(narrow, student)
  headless = {key: a for key, a in teacher.items() if key != "map_label"}
  with pytest.raises(ValueError, match="map_label/bias is missing; map_label/kernel is missing"):
    grow(headless, student)
  with pytest.raises(ValueError, match="map_guidance/bias is not in this network"):
    grow(student, teacher)
  with pytest.raises(ValueError, match=r"blocks/.* and 14 more\. Give both networks"):
    grow({}, teacher)


@TOLD_MODULES
def test_missing_guidance_and_segment_are_explained_while_tracing(make, plain):
  net, params = built(make)
  x, t, cond = told_inputs(plain)
  call = lambda cond: jax.eval_shape(net.apply, params, x, t, cond, None)
  without = lambda name: {key: a for key, a in cond.items() if key != name}
  with pytest.raises(ValueError, match=r"guidance=True needs cond\['guidance'\].*'label', 'seg"):
    call(without("guidance"))
  with pytest.raises(ValueError, match=r"segment=True needs cond\['segment'\]"):
    call(without("segment"))
  with pytest.raises(ValueError, match=r"cond\['guidance'\] must be floating-point \[3\].*int32"):
    call(cond | {"guidance": jnp.arange(3)})
  with pytest.raises(ValueError, match=r"cond\['segment'\] must be .* got float32\[3, 1\]"):
    call(cond | {"segment": jnp.zeros((3, 1))})


def test_fourier_frequencies_are_a_parameter_that_is_never_trained():
  graphdef, params = nnx.split(layers.Fourier(8, 16.0, rngs=nnx.Rngs(0)), nnx.Param)
  t = jnp.array([0.3, -0.2])
  emb = lambda params, t: jnp.sum(nnx.merge(graphdef, params)(t) ** 3)
  grads, slope = jax.grad(emb, argnums=(0, 1))(params, t)
  assert params["freqs"].shape == (4,) and not np.any(grads["freqs"])
  assert np.all(np.abs(slope) > 0.1)
  net, params = built(told_flat)
  x, t, cond = told_inputs(flat)
  changed = params | {"map_noise": {"freqs": params["map_noise"]["freqs"] + 0.1}}
  F, moved = (net.apply(p, x, t, cond, None) for p in (params, changed))
  assert np.abs(F - moved).max() > 1e-4


@pytest.mark.parametrize("scale", [16.0, 0.02])
def test_fourier_frequencies_have_their_scale(scale):
  freqs = layers.Fourier(20_000, scale, rngs=nnx.Rngs(0)).freqs[...]
  assert freqs.shape == (10_000,)
  np.testing.assert_allclose([freqs.mean() / scale, freqs.std() / scale], [0, 1], atol=0.03)


def test_fourier_embedding_is_cosines_then_sines_of_full_turns():
  t, freqs = np.array([-1.55, 0.0, 1.1]), np.array([0.25, 3.0])
  angles = 2 * np.pi * np.outer(t, freqs)
  emb = embeddings.fourier(jnp.asarray(t, jnp.float32), jnp.asarray(freqs, jnp.float32))
  np.testing.assert_allclose(emb, np.concatenate([np.cos(angles), np.sin(angles)], 1), atol=1e-5)
  assert embeddings.fourier(jnp.ones(2, jnp.bfloat16), jnp.ones(2)).dtype == jnp.float32
  with jax.enable_x64(True):
    assert embeddings.fourier(jnp.ones(2, jnp.float64), jnp.ones(2, jnp.float32)).dtype == "float64"


def test_fourier_embedding_stays_in_float32_in_a_bfloat16_network():
  net, params = network(told_flat).at(dtype="bfloat16"), shapes_of(told_flat)
  jaxpr = jax.make_jaxpr(net.apply)(params, *told_inputs(flat), None)
  found = [dtypes for _, dtypes in dot_dtypes(jaxpr.jaxpr)]
  affine = sum(path.endswith("affine/kernel") for path in leaves(params))
  assert sum(dtypes == {"float32"} for dtypes in found) == 3 + 2 + affine  # the first are map_*


@MODULES
def test_networks_take_times_of_both_signs(make):
  # c_noise = ln(sigma) / 4 runs from -1.55 to 1.10.
  net, params = built(make)
  x, _, cond = inputs(make)
  t = jnp.array([-1.55, 0.0, 1.1])
  F_fn = lambda t: net.apply(params, x, t, cond, None)
  F, mirrored = F_fn(t), F_fn(-t)
  assert np.all(np.isfinite(F))
  np.testing.assert_array_equal(F[1], mirrored[1])
  assert min(np.abs(F - mirrored)[i].max() for i in (0, 2)) > 3e-5


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    (dict(resolution=30), "resolution=30 cannot be halved 2 times.*Nearest: 32"),
    (dict(resolution=1), "Nearest: 4"),
    (dict(channel_mult=()), "channel_mult is empty"),
    (dict(attn_resolutions=(7, 16)), r"attn_resolutions has \[7\].*\[32, 16, 8\]"),
    (
      dict(modulation="adagn"),
      "modulation 'adagn'. Choose from: additive, pnorm_scale, pnorm_scale_shift",
    ),
    (dict(dropout=1.0), "dropout=1.0"),
    (dict(embedding="sine"), "embedding 'sine'. Choose from: fourier, positional"),
    (dict(encoder="skip"), "encoder 'skip'. Choose from: standard, residual"),
    (dict(qk_norm="layer"), "qk_norm 'layer'. Choose from: none, rms"),
    (dict(fir=(1, 2, 1)), r"fir=\(1, 2, 1\) must be an even number of taps"),
    (SMALL | dict(embedding="fourier", fourier_scale=0.0), "fourier_scale=0.0 must be positive"),
  ],
)
def test_ddpmpp_explains_bad_options(kwargs, message):
  with pytest.raises(ValueError, match=message):
    from_nnx(functools.partial(DDPMpp, **kwargs))


@MODULES
def test_bad_inputs_are_explained_while_tracing(make):
  net, params = built(make)
  x, t, cond = inputs(make)
  call = lambda *args: jax.eval_shape(net.apply, params, *args, None)
  with pytest.raises(ValueError, match=r"num_classes=3 needs cond\['label'\].*\['augmented'\]"):
    call(x, t, {"augmented": t})
  with pytest.raises(ValueError, match=r"integers \[b\]; got float32\[3\]"):
    call(x, t, {"label": t})
  with pytest.raises(ValueError, match="The network is for x"):
    call(x[:, :1], t, cond)


def test_augmentation_is_told_to_the_network_or_refused():
  net, params = built(flat)
  x, t, cond = inputs(flat)
  told = cond | {"augment": jnp.ones((3, 2))}
  assert (
    np.abs(net.apply(params, x, t, told, None) - net.apply(params, x, t, cond, None)).max() > 1e-3
  )
  with pytest.raises(ValueError, match="augment_dim=2: leave it out"):
    jax.eval_shape(net.apply, params, x, t, cond | {"augment": jnp.ones((3, 9))}, None)


def test_a_network_without_classes_ignores_labels():
  net, params = built(functools.partial(MLP, 2, 8, 1, 4))
  x, t, cond = inputs(mlp)
  np.testing.assert_array_equal(
    net.apply(params, x, t, cond, None), net.apply(params, x, t, {}, None)
  )


def test_mlp_that_sees_only_waves_is_periodic():
  net, params = built(functools.partial(MLP, 2, 8, 1, 4, frequencies=(2.0, 4.0)))
  x, t, _ = inputs(mlp)
  kernel = params["fc_in"]["kernel"]
  assert kernel.shape == (2 + 8, 8)  # x itself, and a sine and a cosine of each
  blind = params | {"fc_in": params["fc_in"] | {"kernel": kernel.at[:2].set(0.0)}}
  F = net.apply(blind, x, t, {}, None)
  np.testing.assert_allclose(net.apply(blind, x + np.pi, t, {}, None), F, rtol=1e-5, atol=1e-5)
  assert np.abs(net.apply(blind, x + 1.0, t, {}, None) - F).max() > 0.01
  assert np.abs(net.apply(params, x + np.pi, t, {}, None) - F).max() > 0.01


def test_dropout_can_be_kept_to_small_resolutions():
  blocks = lambda **kwargs: nnx.eval_shape(
    lambda: DDPMpp(16, 1, 8, (1, 1), 1, (8,), dropout=0.2, rngs=nnx.Rngs(0), **kwargs)
  )
  rates = {name: block.dropout for name, block in blocks(dropout_resolution=8).dec.items()
           if hasattr(block, "dropout")}  # fmt: skip
  assert {rate for name, rate in rates.items() if name.startswith("16x16")} == {0.0}
  assert {rate for name, rate in rates.items() if name.startswith("8x8")} == {0.2}
  assert all(b.dropout == 0.2 for b in blocks().enc.values() if hasattr(b, "dropout"))


def test_float64_input_means_float64_inside_whatever_the_network_trains_in():
  with jax.enable_x64(True):
    make = functools.partial(MLP, 2, 8, 1, 16)
    net, exact = from_nnx(make, dtype="bfloat16"), network(make).at(dtype="float64")
    params = jax.tree.map(lambda a: a + 0.1, net.init(jax.random.key(0)))
    x, t = jnp.ones((3, 2), jnp.float64), jnp.full(3, 0.7, jnp.float64)
    F = net.apply(params, x, t, {}, None)
    assert F.dtype == jnp.float64
    np.testing.assert_array_equal(F, exact.apply(params, x, t, {}, None))
    assert net.apply(params, x.astype("float32"), t.astype("float32"), {}, None).dtype == "float32"
