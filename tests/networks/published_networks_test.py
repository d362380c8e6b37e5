"""The networks of Karras et al. 2022: how large they are, their layers, their names in files."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmjax.convert import names
from cmjax.networks import ADM, DDPMpp, from_nnx, layers
from cmjax.networks.run_blocks import dropout_key, run_block
from cmjax.networks.unet import (
  BlockSpec,
  Style,
  UNetBlock,
  decoder_specs,
  encoder_specs,
  rms_norm_qk,
)

NCSNPP = dict(embedding="fourier", noise_mult=2, fir=(1, 3, 3, 1), encoder="residual")
FFHQ = dict(resolution=64, channel_mult=(1, 2, 2, 2))
ddpmpp = functools.partial(DDPMpp, modulation="additive")
conditional_vp = functools.partial(ddpmpp, num_classes=10)
conditional_ve = functools.partial(ddpmpp, **NCSNPP, num_classes=10)

TINY = dict(
  resolution=8, in_channels=1, channels=8, channel_mult=(1, 2, 1), num_blocks=1,
  attn_resolutions=(4,), dropout=0.2, num_classes=3, augment_dim=2,
)  # fmt: skip
tiny_ddpmpp = functools.partial(ddpmpp, **TINY)
tiny_ncsnpp = functools.partial(ddpmpp, **TINY, **NCSNPP)
tiny_adm = functools.partial(ADM, **TINY, channels_per_head=4)
TINY_ONES = pytest.mark.parametrize(
  ("make", "fir"),
  [(tiny_ddpmpp, (1, 1)), (tiny_ncsnpp, (1, 3, 3, 1)), (tiny_adm, (1, 1))],
  ids=["ddpmpp", "ncsnpp", "adm"],
)


@functools.cache
def shapes_of(make):
  module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def draw(shapes, scale=0.2):
  rng = np.random.default_rng(0)
  one = lambda path, a: (path[-1].key == "scale") + scale * rng.normal(size=a.shape)
  return jax.tree_util.tree_map_with_path(lambda *a: jnp.asarray(one(*a), jnp.float32), shapes)


def built(make):
  """The module with parameters that are all different from 0, as after some training."""
  module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
  graphdef, shapes = nnx.split(module, nnx.Param)
  return nnx.merge(graphdef, draw(nnx.to_pure_dict(shapes)))


def inputs(b=3):
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(b, 8, 8, 1)), jnp.float32)
  return x, jnp.linspace(0.1, 1.5, b), {"label": jnp.arange(b) % 3 - 1}


# --- how large they are -------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("make", "labels", "fir", "params", "buffers", "entries"),
  [
    (conditional_vp, False, (1, 1), 55_733_891, 32, 425),
    (conditional_vp, True, (1, 1), 55_735_299, 32, 427),
    (conditional_ve, False, (1, 3, 3, 1), 56_397_827, 288, 432),
    (conditional_ve, True, (1, 3, 3, 1), 56_400_643, 288, 434),
    pytest.param(
      *(functools.partial(ddpmpp, **FFHQ), False, (1, 1), 61_805_571, 48, 553),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      functools.partial(ddpmpp, **FFHQ, **NCSNPP),
      False,
      (1, 3, 3, 1),
      62_761_091,
      368,
      563,
      marks=pytest.mark.slow,
    ),
    pytest.param(ADM, True, (1, 1), 295_899_267, 48, 553, marks=pytest.mark.slow),
  ],
  ids=["cifar_vp", "cifar_vp_cond", "cifar_ve", "cifar_ve_cond", "ffhq_vp", "ffhq_ve", "imagenet"],
)
def test_network_is_as_large_as_published_and_so_is_its_state_dict(
  make, labels, fir, params, buffers, entries
):
  # Without classes a network has no layer for labels, and is the same otherwise: the next test.
  shapes = {name: a for name, a in shapes_of(make).items() if labels or name != "map_label"}
  # There the frequencies of the Fourier embedding count as a buffer.
  freqs = sum(a.size for a in jax.tree.leaves(shapes.get("map_noise", {})))
  constants = names.constants(shapes, "edm", fir=fir)
  assert sum(a.size for a in jax.tree.leaves(shapes)) - freqs == params
  assert sum(a.size for a in constants.values()) + freqs == buffers
  assert len(names.torch_names(shapes, "edm")) + len(constants) == entries


def test_without_classes_a_network_lacks_the_layer_for_labels_alone():
  shapes = shapes_of(tiny_ncsnpp)
  plain = shapes_of(functools.partial(tiny_ncsnpp, num_classes=0))
  assert plain == {name: a for name, a in shapes.items() if name != "map_label"} != shapes


def test_adm_attends_in_every_block_of_its_attention_resolutions():
  plan = ((64, 32, 16, 8), (192, 192, 384, 576, 768), 3, (32, 16, 8))
  enc, dec = encoder_specs(*plan), decoder_specs(*plan, attend_in_all=True)
  assert [s.name for s in enc if s.attention] == [
    f"{res}x{res}_block{i}" for res in (32, 16, 8) for i in range(3)
  ]
  assert [s.name for s in dec if s.attention] == ["8x8_in0"] + [
    f"{res}x{res}_block{i}" for res in (8, 16, 32) for i in range(4)
  ]
  assert [s.cin for s in dec if s.joins] == [
    1536, 1536, 1536, 1344, 1344, 1152, 1152, 960, 960, 768, 768, 576, 576, 384, 384, 384,
  ]  # fmt: skip


# --- resampling ---------------------------------------------------------------------------------

TAPS = (1, 2, 3, 6)  # not symmetric: the direction matters


def images(*shape):
  return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def filtered(padded, stride):
  """sum_ij f_i f_j padded[m + i, n + j] at every `stride`-th place."""
  f = np.outer(TAPS, TAPS) / sum(TAPS) ** 2
  h, w = (size - 3 for size in padded.shape[1:3])
  y = sum(f[i, j] * padded[:, i : i + h, j : j + w] for i in range(4) for j in range(4))
  return y[:, ::stride, ::stride]


def padded(x, pad):
  return np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def test_downsampling_is_a_filter_with_stride_two():
  x = images(2, 6, 8, 3)
  y = layers.downsample(jnp.asarray(x), TAPS)
  assert y.shape == (2, 3, 4, 3)
  np.testing.assert_allclose(y, filtered(padded(x, 1), 2), rtol=1e-5, atol=1e-6)
  # A constant stays what it is inside; (1, 1) by the same rule is the mean of 2 x 2 squares.
  ones = layers.downsample(jnp.ones((1, 8, 8, 1)), (1, 3, 3, 1))[0, :, :, 0]
  np.testing.assert_allclose(ones[1:-1, 1:-1], 1, rtol=1e-6)
  np.testing.assert_allclose(ones[0, 1], 7 / 8, rtol=1e-6)
  same = layers.downsample(jnp.asarray(x), (2, 2))
  np.testing.assert_allclose(same, layers.downsample(jnp.asarray(x)), rtol=1e-5, atol=1e-6)


def test_upsampling_is_the_transpose_of_downsampling_times_four():
  x, y = images(2, 6, 8, 3), images(2, 3, 4, 3)
  up = layers.upsample(jnp.asarray(y), TAPS)
  assert up.shape == x.shape
  down = filtered(padded(x.astype(np.float64), 1), 2)
  np.testing.assert_allclose(np.vdot(np.float64(up), x), 4 * np.vdot(y, down), rtol=1e-5)
  # Pixel [1, 1] of y, alone: four times the filter, from one place before its own square on.
  one = np.zeros((1, 4, 4, 1), np.float32)
  one[0, 1, 1] = 1
  spot = layers.upsample(jnp.asarray(one), TAPS)[0, 1:5, 1:5, 0]
  np.testing.assert_allclose(spot, 4 * np.outer(TAPS, TAPS) / 144, rtol=1e-5)
  same = layers.upsample(jnp.asarray(y), (2, 2))
  np.testing.assert_allclose(same, layers.upsample(jnp.asarray(y)), rtol=1e-5, atol=1e-6)


def test_resampling_keeps_the_dtype():
  x = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.bfloat16)
  for taps in ((1, 1), (1, 3, 3, 1)):
    for change in (layers.downsample, layers.upsample):
      assert jax.eval_shape(functools.partial(change, taps=taps), x).dtype == jnp.bfloat16


def test_fused_convolution_sees_the_padding_of_the_filter_and_is_filtered_afterwards():
  conv = layers.Conv(2, 4, 3, resample="fused_down", fir=TAPS, rngs=nnx.Rngs(0))
  conv.bias[...] = jnp.arange(4.0)
  x = images(2, 6, 8, 2)
  wide, kernel = padded(x, 2), np.asarray(conv.kernel[...])
  y = sum(wide[:, i : i + 8, j : j + 10] @ kernel[i, j] for i in range(3) for j in range(3))
  assert y.shape == (2, 8, 10, 4)
  expected = filtered(y, 2) + np.arange(4.0)
  np.testing.assert_allclose(conv(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)
  # Beside the border: an ordinary convolution, then the filter.
  plain = layers.Conv(2, 4, 3, rngs=nnx.Rngs(0))
  plain.bias[...] = conv.bias[...]
  unfused = layers.downsample(plain(jnp.asarray(x)), TAPS)
  np.testing.assert_allclose(unfused[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], rtol=1e-4, atol=1e-5)


# --- blocks and walks ---------------------------------------------------------------------------


def test_block_that_halves_the_resolution_without_projecting_takes_means():
  style = Style("scale_shift", skip_scale=1.0, eps=1e-5, resample_proj=False)
  make = lambda kind: UNetBlock(BlockSpec("4x4", 8, 8, kind), 16, style, dropout=0.0,
                                rngs=nnx.Rngs(0))  # fmt: skip
  x, e = jnp.asarray(images(2, 8, 8, 8)), jnp.asarray(images(2, 16))
  # The residual branch starts at exactly 0.
  down, up = make("down"), make("up")
  assert down.skip is None and up.skip is None
  both = jax.jit(lambda x, e: (down(x, e, None), up(x, e, None)))(x, e)
  np.testing.assert_allclose(both[0], layers.downsample(x), rtol=1e-6)
  np.testing.assert_array_equal(both[1], layers.upsample(x))


# Of the encoder only the first convolution and the two blocks that halve the resolution.
bare = functools.partial(tiny_ncsnpp, num_blocks=0)


def test_residual_encoder_adds_the_image_and_what_was_added_before():
  net = built(bare)
  x, e = inputs()[0], jnp.asarray(images(3, 32))

  @jax.jit
  def walk(x, e):
    h = net.enc["8x8_conv"](x)
    down = lambda name, h, aux: (
      net.enc[f"{name}_down"](h, e, None) + net.enc[f"{name}_aux_residual"](aux)
    )
    first = down("4x4", h, x) / math.sqrt(2)
    return [h, first, down("2x2", first, first) / math.sqrt(2)]

  got = jax.jit(lambda x, e: net._encode(x, e, None))(x, e)
  for a, b in zip(got, walk(x, e), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  assert got[-1].shape == (3, 2, 2, 8) and np.std(got[-1]) > 0.1


def test_residual_encoder_without_weights_divides_each_lower_level_by_the_root_of_two():
  residual, plain = built(bare), built(functools.partial(bare, encoder="standard"))
  for name, block in plain.enc.items():
    nnx.update(block, nnx.state(residual.enc[name]))
  for name in ("4x4", "2x2"):
    aux = residual.enc[f"{name}_aux_residual"]
    aux.kernel[...], aux.bias[...] = 0 * aux.kernel[...], 0 * aux.bias[...]
    # The output of a block is linear in the layers that end its two paths.
    for layer in (plain.enc[f"{name}_down"].conv1, plain.enc[f"{name}_down"].skip):
      layer.kernel[...], layer.bias[...] = layer.kernel[...] / 2**0.5, layer.bias[...] / 2**0.5
  x, e = inputs()[0], jnp.asarray(images(3, 32))
  encode = lambda net: jax.jit(lambda x, e: net._encode(x, e, None)[-1])(x, e)
  np.testing.assert_allclose(encode(residual), encode(plain), rtol=1e-4, atol=1e-5)


def test_ncsnpp_has_the_same_first_weights_as_ddpmpp_where_it_has_the_same_layers():
  small = functools.partial(ddpmpp, 8, 1, 8, (1, 1), 0, (), augment_dim=0)
  a, b = (
    names.to_torch(nnx.to_pure_dict(nnx.state(small(**more, rngs=nnx.Rngs(0)))), "edm")
    for more in ({}, NCSNPP | dict(noise_mult=1))
  )
  assert set(b) - set(a) == {
    "model.map_noise.freqs",
    *(f"model.enc.4x4_aux_residual.{leaf}" for leaf in ("weight", "bias", "resample_filter")),
  }
  for name, array in a.items():
    np.testing.assert_array_equal(array, b[name])


def test_adm_embeds_without_the_endpoint_and_adds_labels_after_its_two_layers():
  net = built(tiny_adm)
  t, cond = jnp.array([0.4, 1.2]), {"label": jnp.array([2, -1]), "augment": jnp.ones((2, 2))}
  freqs = 10_000 ** (-np.arange(4) / 4)
  angles = np.outer(t, freqs)
  e = np.concatenate([np.cos(angles), np.sin(angles)], 1)
  e = e + np.ones((2, 2)) @ np.asarray(net.map_augment.kernel[...])
  silu = lambda a: a / (1 + np.exp(-a))
  for layer in (net.map_layer0, net.map_layer1):
    e = (silu(e) if layer is net.map_layer1 else e) @ np.asarray(layer.kernel[...])
    e = e + np.asarray(layer.bias[...])
  e = silu(e + np.array([[0, 0, 1], [0, 0, 0]]) @ np.asarray(net.map_label.kernel[...]))
  np.testing.assert_allclose(net._embed(t, cond), e, rtol=1e-4, atol=1e-5)


def test_adm_starts_at_zero_with_the_spread_of_its_weights_and_biases():
  small = dict(embed_mult=1, num_classes=400, channels_per_head=16)
  net = ADM(8, 1, 32, (1,), 0, (8,), **small, rngs=nnx.Rngs(0))
  block = net.dec["8x8_in0"]
  for layer, fan_in in ((block.conv0, 9 * 32), (block.qkv, 32), (net.map_layer1, 32)):
    for values in (layer.kernel[...], layer.bias[...]):
      assert np.abs(values).max() <= fan_in**-0.5
      np.testing.assert_allclose(np.std(values), (3 * fan_in) ** -0.5, rtol=0.25)
  for layer in (block.conv1, block.proj, net.out_conv):  # the last makes F = 0
    assert not np.any(layer.kernel[...]) and not np.any(layer.bias[...])
  np.testing.assert_allclose(np.std(net.map_label.kernel[...]), 1, rtol=0.02)
  assert block.num_heads == 2 and block.norm0.eps == net.out_norm.eps == 1e-5


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    (dict(channels_per_head=80), "32x32_block0 has 384 channels.*channels_per_head=80.*divisor"),
    (dict(attn_resolutions=(64, 7)), r"attn_resolutions has \[7\]"),
    (dict(modulation="none"), "modulation 'none'. Choose from: additive, pnorm_scale, "),
    (dict(channels=190), "GroupNorm cannot divide 190 channels"),
    (dict(resolution=20), "resolution=20 cannot be halved 3 times"),
  ],
)
def test_adm_explains_bad_options(kwargs, message):
  with pytest.raises(ValueError, match=message):
    shapes_of(functools.partial(ADM, **kwargs))


# --- attention with normalised q and k; rematerialisation ----------------------------------------


def test_rms_norm_makes_q_and_k_of_unit_size_in_float32_and_leaves_v():
  qkv = 50 * images(2, 4, 2, 8, 3)
  out = rms_norm_qk(jnp.asarray(qkv))
  for i in range(2):
    part = qkv[..., i]
    rms = np.sqrt(np.mean(part**2, -1, keepdims=True))
    np.testing.assert_allclose(out[..., i], part / rms, rtol=1e-5)
  np.testing.assert_array_equal(out[..., 2], qkv[..., 2])
  half = jnp.asarray(qkv, jnp.bfloat16)
  exact = rms_norm_qk(half.astype(jnp.float32))
  assert rms_norm_qk(half).dtype == jnp.bfloat16
  np.testing.assert_allclose(rms_norm_qk(half).astype(jnp.float32), exact, rtol=2**-8)


def test_qk_norm_makes_attention_blind_to_the_size_of_its_queries():
  x, e = jnp.asarray(images(2, 4, 4, 8)), jnp.zeros((2, 16))
  is_query = jnp.arange(24).reshape(1, 1, 1, 24) % 3 == 0
  change = {}
  for norm in ("none", "rms"):
    style = Style("additive", 1.0, 1e-5, channels_per_head=4, qk_norm=norm)
    spec = BlockSpec("4x4", 8, 8, attention=True)
    block = built(functools.partial(UNetBlock, spec, 16, style, dropout=0.0))
    run = nnx.jit(lambda block, x: block(x, e, None))
    before = run(block, x)
    for leaf in (block.qkv.kernel, block.qkv.bias):
      tenfold = jnp.where(is_query.reshape((1,) * (leaf.ndim - 1) + (24,)), 10.0, 1.0)
      leaf[...] = tenfold * leaf[...]
    change[norm] = np.abs(run(block, x) - before).max()
  assert change["rms"] < 1e-4 < 1e-2 < change["none"]


def test_remat_changes_no_value_no_tangent_and_no_gradient():
  style = Style("pnorm_scale_shift", skip_scale=0.7, eps=1e-5)
  spec = BlockSpec("4x4", 4, 8)
  make = lambda: UNetBlock(spec, 16, style, dropout=0.2, rngs=nnx.Rngs(0))
  graphdef, shapes = nnx.split(nnx.eval_shape(make), nnx.Param)
  params = draw(nnx.to_pure_dict(shapes))
  x, e = jnp.asarray(images(2, 4, 4, 4)), jnp.asarray(images(2, 16))

  def loss(params, remat):
    def fn(x, e):
      rngs = nnx.Rngs(dropout=jax.random.key(3))
      block = nnx.merge(graphdef, params)
      h = run_block(block, x, e, dropout_key(block, rngs), remat=remat)
      # A second draw: a rematerialised block leaves the count of draws as it found it.
      return h + jax.random.uniform(rngs.dropout(), ())

    F, dF = jax.jvp(fn, (x, e), (jnp.cos(x), jnp.ones((2, 16))))
    return jnp.sum((F - jax.lax.stop_gradient(F - dF)) ** 2), (F, dF)

  results = [
    jax.jit(jax.grad(functools.partial(loss, remat=remat), has_aux=True))(params)
    for remat in (False, True)
  ]
  for a, b in zip(*map(jax.tree.leaves, results), strict=True):
    assert np.std(a) > 0.01
    np.testing.assert_allclose(a / np.abs(b).max(), b / np.abs(b).max(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [tiny_ncsnpp, tiny_adm], ids=["ncsnpp", "adm"])
def test_remat_wraps_every_block(make):
  make, count = functools.partial(make, num_blocks=0), []
  for remat in (False, True):
    net = from_nnx(functools.partial(make, remat=remat))
    jaxpr = jax.make_jaxpr(functools.partial(net.apply, key=None))(shapes_of(make), *inputs())
    count.append(sum("prevent_cse" in eqn.params for eqn in jaxpr.eqns))
  assert count == [0, 9]  # of three levels: two down, two in between, three on their own, two up


# --- names and layouts --------------------------------------------------------------------------


@TINY_ONES
def test_weights_come_back_bit_for_bit_from_their_state_dict(make, fir):
  params = draw(shapes_of(make))
  state = names.to_torch(params, "edm", fir=fir)
  assert all(name.startswith("model.") and type(a) is np.ndarray for name, a in state.items())
  back = names.from_torch(state, shapes_of(make), "edm", fir=fir)
  assert jax.tree.structure(back) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, back, params)
  half = {name: a.astype(np.float16) for name, a in state.items()}
  up = names.from_torch(half, shapes_of(make), "edm", fir=fir)
  for a, b in zip(jax.tree.leaves(up), jax.tree.leaves(params), strict=True):
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, np.float32(np.float16(b)))


def test_names_and_layouts_are_those_of_the_published_files():
  params = draw(shapes_of(tiny_ncsnpp))
  state = names.to_torch(params, "edm", fir=(1, 3, 3, 1))
  conv = params["enc"]["8x8_block0"]["conv0"]["kernel"]
  np.testing.assert_array_equal(
    state["model.enc.8x8_block0.conv0.weight"][5, 2, 0, 1], conv[0, 1, 2, 5]
  )
  kernel = params["map_label"]["kernel"]
  np.testing.assert_array_equal(state["model.map_label.weight"], kernel.T)
  scale = params["dec"]["2x2_in0"]["norm2"]["scale"]
  np.testing.assert_array_equal(state["model.dec.2x2_in0.norm2.weight"], scale)
  assert state["model.map_noise.freqs"].shape == (8,)
  assert state["model.map_layer0.weight"].shape == (32, 16)
  assert state["model.enc.2x2_aux_residual.weight"].shape == (16, 8, 3, 3)
  filters = sorted(name for name in state if name.endswith("resample_filter"))
  assert filters == [
    *(
      f"model.dec.{r}x{r}_up.{layer}.resample_filter" for r in (4, 8) for layer in ("conv0", "skip")
    ),
    "model.enc.2x2_aux_residual.resample_filter",
    *(f"model.enc.2x2_down.{layer}.resample_filter" for layer in ("conv0", "skip")),
    "model.enc.4x4_aux_residual.resample_filter",
    *(f"model.enc.4x4_down.{layer}.resample_filter" for layer in ("conv0", "skip")),
  ]
  np.testing.assert_array_equal(
    state[filters[0]], np.outer([1, 3, 3, 1], [1, 3, 3, 1])[None, None] / 64
  )
  assert names.torch_names(params, "edm")["model.dec.8x8_aux_conv.bias"] == "dec/8x8_aux_conv/bias"


def test_state_dict_that_does_not_fit_is_explained_tensor_by_tensor():
  shapes = shapes_of(tiny_adm)
  state = names.to_torch(draw(shapes), "edm")
  read = lambda **changes: names.from_torch(
    {k: v for k, v in (state | changes).items() if v is not None}, shapes, "edm"
  )
  name = "model.enc.8x8_block0.conv0.weight"
  with pytest.raises(
    ValueError, match=r"block0.conv0.weight is \(2, 8, 3, 3\), expected \(8, 8, 3"
  ):
    read(**{name: state[name][:2]})
  with pytest.raises(ValueError, match=r"conv0.weight is missing, expected \(8, 8, 3, 3\)"):
    read(**{name: None})
  with pytest.raises(ValueError, match=r"conv0.weight is int32, expected a floating-point type"):
    read(**{name: state[name].astype(np.int32)})
  with pytest.raises(ValueError, match=r"model.map_noise.freqs \(4,\) is not in this network"):
    read(**{"model.map_noise.freqs": np.zeros(4, np.float32)})
  wide = names.constants(shapes, "edm", fir=(1, 3, 3, 1))
  with pytest.raises(ValueError, match=r"filter of shape \(1, 1, 4, 4\) other than.*fir=\(1, 1\)"):
    read(**wide)
  with pytest.raises(ValueError, match=r"and \d+ more\. Give the network the options"):
    names.from_torch({}, shapes, "edm")
  with pytest.raises(ValueError, match="Unknown family 'edm3'. Choose from: autoencoder_kl, cmjax"):
    names.to_torch({}, "edm3")
  read(**{name: None for name in names.constants(shapes, "edm")})  # constants may be left out
