"""EDM2 against the published counts, a forward pass in NumPy, and the laws of magnitudes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cmjax import weighting
from cmjax.convert import names
from cmjax.networks import EDM2, from_nnx, grow, magnitude
from cmjax.networks.edm2 import EDM2Block, MPCondition
from cmjax.networks.unet import BlockSpec

SMALL = dict(
  resolution=8,
  in_channels=2,
  channels=8,
  channel_mult=(1, 2),
  num_blocks=1,
  attn_resolutions=(4,),
  num_classes=3,
  channels_per_head=4,
)
small = functools.partial(EDM2, **SMALL)
# Three blocks, the first with attention: for what takes long to compile.
flat = functools.partial(small, resolution=4, channel_mult=(2,), num_blocks=0)
original = functools.partial(small, modulation="edm2", embedding="mp_fourier")
rng = lambda: np.random.default_rng(0)


def paths(params):
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): a for p, a in leaves}


def shaken(make):
  """Parameters far from the initial ones: weights of another norm, and gains that are not 0."""
  shapes = jax.eval_shape(from_nnx(make).init, jax.random.key(0))
  draw, factors = rng(), {"gain": 0.5, "out_gain": 1.0, "emb_gain": 0.5}

  def leaf(path, a):
    scale = factors.get(path[-1].key, 3.0 if path[-1].key == "kernel" else 1.0)
    return jnp.asarray(scale * (1 + draw.normal(size=a.shape) / 4 if a.ndim == 0 else
                                draw.normal(size=a.shape)), jnp.float32)  # fmt: skip

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def inputs(make, dtype=np.float32):
  side = make.keywords["resolution"]
  x = jnp.asarray(rng().normal(size=(3, side, side, 2)), dtype)
  return x, jnp.array([0.1, 0.8, 1.5], dtype), {"label": jnp.array([0, -1, 2])}


# --- magnitudes ---------------------------------------------------------------------------------


def gaussian(*shape):
  return jnp.asarray(rng().normal(size=shape), jnp.float32)


def mean_square(x):
  return float(np.mean(np.square(np.asarray(x, np.float64))))


def test_normalize_adds_its_epsilon_to_the_root():
  x = np.array([[3.0, 4.0], [3e-4, 4e-4], [0.0, 0.0]])
  rms = np.sqrt(np.mean(x**2, axis=1, keepdims=True))
  np.testing.assert_allclose(magnitude.normalize(jnp.asarray(x, "f")), x / (1e-4 + rms), rtol=1e-6)
  # Where the root mean square is epsilon itself, one half is left; sqrt(1/2) if it stood inside.
  np.testing.assert_allclose(magnitude.normalize(jnp.full((1, 7), 1e-4)), 0.5, rtol=1e-6)
  y, dy = jax.jvp(magnitude.normalize, (jnp.zeros(3),), (jnp.ones(3),))
  np.testing.assert_allclose([y, dy], [3 * [0.0], 3 * [1e4]], rtol=1e-6)


def test_a_kernel_is_normalised_towards_each_output_and_stays_at_one_less_epsilon():
  kernel = 5 * rng().normal(size=(3, 3, 4, 6)) * np.arange(1, 7)
  once = magnitude.normalize_kernel(jnp.asarray(kernel, jnp.float32))
  rms = np.sqrt(np.mean(kernel**2, axis=(0, 1, 2)))
  np.testing.assert_allclose(once, kernel / (1e-4 + rms), rtol=1e-5)
  twice = np.asarray(magnitude.normalize_kernel(once), np.float64)
  np.testing.assert_allclose(np.sqrt(np.mean(twice**2, (0, 1, 2))), 1 - 1e-4, atol=2e-7)


def test_the_norm_is_taken_in_float32_and_the_quotient_in_the_dtype_of_the_input():
  x = jnp.asarray(rng().normal(size=(4, 300)), jnp.bfloat16)
  wide = np.asarray(x, np.float32)
  rms = np.sqrt(np.mean(wide**2, axis=1, keepdims=True))
  y = magnitude.normalize(x)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, x / jnp.asarray(1e-4 + rms, jnp.bfloat16))


def test_sums_concatenations_and_activations_keep_the_mean_square():
  a, b = gaussian(2, 200_000)
  assert mean_square(magnitude.mp_silu(a)) == pytest.approx(1, abs=0.01)
  assert mean_square(jax.nn.silu(a)) == pytest.approx(0.596**2, rel=0.01)
  for t in (0.3, 0.5):
    assert mean_square(magnitude.mp_sum(a, b, t)) == pytest.approx(1, abs=0.01)
  wide, narrow = gaussian(5_000, 48), gaussian(5_000, 16)
  for t, share in ((0.5, 1.0), (0.3, (3 / 7) ** 2)):
    y = magnitude.mp_cat(wide, narrow, t)
    assert y.shape == (5_000, 64) and mean_square(y) == pytest.approx(1, abs=0.01)
    # The influence of each half does not depend on how many channels it has.
    ratio = np.sum(np.square(y[:, 48:])) / np.sum(np.square(y[:, :48]))
    assert ratio == pytest.approx(share, rel=0.02)


def test_layers_keep_the_mean_square_and_do_not_care_for_the_size_of_their_weights():
  x, image = gaussian(2_000, 64), gaussian(2, 18, 18, 32)
  linear = magnitude.MPLinear(64, 32, rngs=nnx.Rngs(0))
  conv = magnitude.MPConv(32, 32, 3, rngs=nnx.Rngs(1))
  assert mean_square(linear(x)) == pytest.approx(1, abs=0.03)
  assert mean_square(conv(image)[:, 1:-1, 1:-1]) == pytest.approx(1, abs=0.05)
  assert mean_square(conv.kernel[...]) == pytest.approx(1, abs=0.05)
  before = linear(x)
  kernel = np.asarray(linear.kernel[...])
  rms = np.sqrt(np.mean(kernel**2, axis=0))
  np.testing.assert_allclose(before, x @ (kernel / (1e-4 + rms)) / 8, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(linear(x, jnp.float32(0.3)), 0.3 * before, rtol=1e-4, atol=1e-6)
  linear.kernel[...] = 7 * linear.kernel[...]
  np.testing.assert_allclose(linear(x), before, rtol=2e-4, atol=1e-5)
  fourier = magnitude.MPFourier(2_000, 2.0, rngs=nnx.Rngs(2))
  t = jnp.array([-1.5, 0.0, 0.8])
  assert mean_square(fourier(t)) == pytest.approx(1, abs=0.05)
  freqs, phases = (np.asarray(a[...]) for a in (fourier.freqs, fourier.phases))
  assert freqs.std() == pytest.approx(4 * np.pi, rel=0.05) and abs(freqs.mean()) < 1
  assert phases.min() >= 0 and phases.max() <= 2 * np.pi
  assert phases.mean() == pytest.approx(np.pi, rel=0.05)
  expected = np.sqrt(2) * np.cos(np.outer(t, freqs) + phases)
  np.testing.assert_allclose(fourier(t), expected, atol=1e-4)
  slope = jax.grad(lambda m: jnp.sum(m(t) ** 3))(fourier)
  assert not any(np.any(a) for a in jax.tree.leaves(slope))


@pytest.mark.parametrize("gain", [0.0, 0.4, -3.0])
def test_a_condition_joins_the_embedding_at_the_same_magnitude(gain):
  layer = MPCondition(64, 32, rngs=nnx.Rngs(0))
  assert not np.any(layer.gain[...])
  layer.gain[...] = jnp.float32(gain)
  e, rows = gaussian(20_000, 32), gaussian(20_000, 64)[:, ::-1] / math.sqrt(2)
  joined = layer(e, rows)
  assert mean_square(joined) == pytest.approx(1, abs=0.02)
  # sin / cos of the angle between them.
  a = layer.linear(math.sqrt(2) * rows)
  assert np.mean(joined * e) == pytest.approx(1 / math.sqrt(1 + gain**2), abs=0.03)
  assert np.mean(joined * a) == pytest.approx(gain / math.sqrt(1 + gain**2), abs=0.03)


# --- the published networks ---------------------------------------------------------------------

# C, then the counts of EDM2 at 64x64x4 and 64x64x3 with 1000 classes, at 64x64x4 without; and with
# sCM's double normalisation at 64x64x4. All count the 128 weights of the head for logvar, and the
# last the gains that its blocks have no use for.
SIZES = [
  (64, 31_309_029, 31_307_877, 31_053_029, None),
  (128, 124_713_253, 124_710_949, 124_201_253, None),
  (192, 280_212_837, 280_209_381, 279_444_837, 293_926_245),
  (256, 497_807_781, 497_803_173, 496_783_781, 522_187_173),
  (320, 777_498_085, 777_492_325, 776_218_085, 815_590_885),
  (384, 1_119_283_749, 1_119_276_837, 1_117_747_749, 1_174_137_381),
  (448, 1_523_164_773, 1_523_156_709, 1_521_372_773, 1_597_826_661),
]
HEAD, GAINS = 128, 36
PUBLISHED = dict(in_channels=4, num_classes=1000, modulation="edm2")


@functools.cache
def published(channels, **changes):
  """The shapes of a network as it is published, but for its random frequencies and phases."""
  make = lambda: EDM2(channels=channels, rngs=nnx.Rngs(0), **PUBLISHED | changes)
  return paths(nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param)))


def count(shapes):
  return sum(math.prod(a.shape) for a in shapes.values())


@pytest.mark.parametrize(
  ("channels", "x4", "x3", "unconditional", "double_norm"),
  [pytest.param(*size, marks=[pytest.mark.slow] if size[0] > 192 else []) for size in SIZES],
)
def test_edm2_has_as_many_parameters_as_published(channels, x4, x3, unconditional, double_norm):
  shapes = published(channels)
  assert count(shapes) + HEAD == x4
  # The other columns differ in these arrays alone, as the next test has it.
  size = lambda path: math.prod(shapes[path].shape)
  first, last = size("enc/64x64_conv/kernel"), size("out_conv/kernel")
  assert count(shapes) + HEAD - first // 5 - last // 4 == x3
  assert count(shapes) + HEAD - size("emb_label/kernel") == unconditional
  if double_norm:
    linears = sum(size(path) for path in shapes if path.endswith("emb_linear/kernel"))
    assert linears == 372 * channels**2
    assert count(shapes) + HEAD + linears == double_norm


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    (dict(in_channels=3, modulation="pnorm_scale"), 280_209_381 - GAINS),
    (dict(num_classes=0, embedding="mp_fourier"), 279_444_837 + 2 * 192),
    (dict(modulation="pnorm_scale_shift"), 293_926_245 - GAINS),
    (dict(embedding="mp_fourier"), 280_212_837 + 2 * 192),
  ],
)
def test_edm2_s_with_options_changed_has_as_many_parameters_as_published(changes, expected):
  assert count(published(192, **changes)) + HEAD == expected


def test_parameter_paths_and_widths_are_those_of_edm2():
  shapes = {path: a.shape for path, a in published(192, embedding="mp_fourier").items()}
  assert shapes["emb_fourier/freqs"] == shapes["emb_fourier/phases"] == (192,)
  assert shapes["emb_noise/kernel"] == (192, 768) and shapes["emb_label/kernel"] == (1000, 768)
  assert shapes["enc/64x64_conv/kernel"] == (3, 3, 5, 192)
  assert shapes["out_conv/kernel"] == (3, 3, 192, 4) and shapes["out_gain"] == ()
  assert shapes["enc/32x32_block0/conv_res0/kernel"] == (3, 3, 384, 384)
  assert shapes["enc/32x32_block0/conv_skip/kernel"] == (1, 1, 192, 384)
  assert shapes["dec/8x8_in0/attn_qkv/kernel"] == (1, 1, 768, 2304)
  assert shapes["dec/8x8_in0/attn_proj/kernel"] == (1, 1, 768, 768)
  assert shapes["dec/64x64_block0/emb_linear/kernel"] == (768, 192)
  assert shapes["dec/64x64_block0/emb_gain"] == ()
  blocks = {path.rpartition("/")[0] for path in shapes if path.endswith("emb_gain")}
  assert len(blocks) == 36
  assert sum(shapes[f"{b}/conv_res1/kernel"][3] for b in blocks) == 93 * 192
  attention = sorted(b for b in blocks if f"{b}/attn_qkv/kernel" in shapes)
  assert attention == sorted(
    [f"enc/{r}x{r}_block{i}" for r in (16, 8) for i in range(3)]
    + [f"dec/{r}x{r}_block{i}" for r in (16, 8) for i in range(4)]
    + ["dec/8x8_in0"]
  )
  joined = {
    res: [shapes[f"dec/{res}x{res}_block{i}/conv_res0/kernel"][2] for i in range(4)]
    for res in (8, 16, 32, 64)
  }
  assert joined == {
    8: [1536, 1536, 1536, 1344],
    16: [1344, 1152, 1152, 960],
    32: [960, 768, 768, 576],
    64: [576, 384, 384, 384],
  }


def test_state_dict_has_the_names_and_the_number_of_entries_that_nvidia_publishes():
  state = set(names.torch_names(published(192, embedding="mp_fourier"), "edm2"))
  assert len(state) + 3 == 203  # with the head's weights, frequencies and phases
  assert {
    *("unet.out_gain", "unet.out_conv.weight", "unet.emb_fourier.freqs"),
    *("unet.emb_fourier.phases", "unet.emb_noise.weight", "unet.enc.64x64_conv.weight"),
    *("unet.dec.8x8_in0.emb_gain", "unet.dec.8x8_in0.attn_qkv.weight"),
  } <= state
  shapes = published(192, num_classes=0, embedding="mp_fourier")
  unconditional = set(names.torch_names(shapes, "edm2"))
  assert len(unconditional) + 3 == 202 and state - unconditional == {"unet.emb_label.weight"}


def test_weights_come_back_bit_for_bit_from_their_state_dict_and_the_head_is_not_asked_for():
  params = shaken(original)
  state = names.to_torch(params, "edm2")
  assert state["unet.dec.4x4_in0.attn_qkv.weight"].shape == (48, 16, 1, 1)
  assert state["unet.emb_label.weight"].shape == (32, 3) and state["unet.out_gain"].shape == ()
  kernel = params["enc"]["8x8_block0"]["conv_res0"]["kernel"]
  weight = state["unet.enc.8x8_block0.conv_res0.weight"]
  assert weight[3, 1, 0, 2] == kernel[0, 2, 1, 3]
  state |= {"logvar_linear.weight": np.zeros((1, 128)), "logvar_fourier.freqs": np.zeros(128)}
  back = names.from_torch(state, jax.eval_shape(lambda: params), "edm2")
  jax.tree.map(np.testing.assert_array_equal, back, params)
  state["unet.out_conv.weight"] = np.zeros((3, 8, 3, 3), np.float32)
  with pytest.raises(ValueError, match=r"out_conv.weight is \(3, 8, 3, 3\), expected \(2, 8, 3"):
    names.from_torch(state, params, "edm2")


# --- a forward pass in NumPy --------------------------------------------------------------------


def np_normalize(x, axis):
  return x / (1e-4 + np.sqrt(np.mean(x**2, axis=axis, keepdims=True)))


def np_silu(x):
  return x / (1 + np.exp(-x)) / 0.596


def np_sum(a, b, t):
  return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def np_cat(a, b):
  m, n = a.shape[-1], b.shape[-1]
  return math.sqrt((m + n) / 2) * np.concatenate([a / math.sqrt(m), b / math.sqrt(n)], -1)


def np_conv(kernel, x, gain=1.0):
  *window, cin, cout = kernel.shape
  fan_in = cin * math.prod(window)
  kernel = np_normalize(kernel, tuple(range(kernel.ndim - 1))) * gain / math.sqrt(fan_in)
  if not window:
    return x @ kernel
  pad, side = window[0] // 2, x.shape[1]
  padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  return sum(
    padded[:, i : i + side, j : j + side] @ kernel[i, j]
    for i in range(window[0])
    for j in range(window[1])
  )


def np_pnorm(a):
  return a / np.sqrt(np.mean(a**2, axis=-1, keepdims=True) + 1e-8)


def np_attention(qkv, heads):
  b, h, w, m = qkv.shape
  # Channels are (head, channel, {q, k, v}).
  split = np_normalize(qkv.reshape(b, h * w, heads, m // (3 * heads), 3), 3)
  q, k, v = split[..., 0], split[..., 1], split[..., 2]
  scores = np.einsum("bpnc,bsnc->bnps", q, k) / math.sqrt(q.shape[-1])
  p = np.exp(scores)
  y = np.einsum("bnps,bsnc->bpnc", p / p.sum(-1, keepdims=True), v)
  return y.reshape(b, h, w, m // 3)


def np_block(p, x, e, *, encoder, resample="keep"):
  """One block, from its weights {conv_res0: {kernel: ...}, ...}."""
  if resample == "down":
    x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
  if resample == "up":
    x = x.repeat(2, axis=1).repeat(2, axis=2)
  straight = lambda x: np_conv(p["conv_skip"]["kernel"], x) if "conv_skip" in p else x
  if encoder:
    x = np_normalize(straight(x), -1)
  y = np_conv(p["conv_res0"]["kernel"], np_silu(x))
  a = np_conv(p["emb_linear"]["kernel"], e)[:, None, None]
  if "emb_gain" in p:
    y = y * (1 + p["emb_gain"] * a)
  elif a.shape[-1] == y.shape[-1]:
    y = np_pnorm(y) * np_pnorm(a)
  else:
    scale, shift = np.split(a, 2, -1)
    y = np_pnorm(y) * np_pnorm(scale) + np_pnorm(shift)
  y = np_conv(p["conv_res1"]["kernel"], np_silu(y))
  x = np_sum(x if encoder else straight(x), y, 0.3)
  if "attn_qkv" in p:
    y = np_attention(np_conv(p["attn_qkv"]["kernel"], x), heads=x.shape[-1] // 4)
    x = np_sum(x, np_conv(p["attn_proj"]["kernel"], y), 0.3)
  return x


def embedded(p, t, rows):
  """The embedding of times and labels that the blocks see, its sources of unit size."""
  if "emb_fourier" in p:
    cosines = np.cos(np.outer(t, p["emb_fourier"]["freqs"]) + p["emb_fourier"]["phases"])
  else:
    angles = np.outer(t, 1e4 ** (-np.arange(4) / 3))
    cosines = np.concatenate([np.cos(angles), np.sin(angles)], 1)
  e = np_conv(p["emb_noise"]["kernel"], math.sqrt(2) * cosines)
  return np_silu(np_sum(e, np_conv(p["emb_label"]["kernel"], rows), 0.5))


def with_ones(x):
  return np.concatenate([x, np.ones_like(x[..., :1])], -1)


def np_edm2(p, x, e):
  """The network `small`."""
  enc, dec = p["enc"], p["dec"]
  x0 = np_conv(enc["8x8_conv"]["kernel"], with_ones(x))
  x1 = np_block(enc["8x8_block0"], x0, e, encoder=True)
  x2 = np_block(enc["4x4_down"], x1, e, encoder=True, resample="down")
  x3 = np_block(enc["4x4_block0"], x2, e, encoder=True)
  y = np_block(dec["4x4_in0"], x3, e, encoder=False)
  y = np_block(dec["4x4_in1"], y, e, encoder=False)
  y = np_block(dec["4x4_block0"], np_cat(y, x3), e, encoder=False)
  y = np_block(dec["4x4_block1"], np_cat(y, x2), e, encoder=False)
  y = np_block(dec["8x8_up"], y, e, encoder=False, resample="up")
  y = np_block(dec["8x8_block0"], np_cat(y, x1), e, encoder=False)
  y = np_block(dec["8x8_block1"], np_cat(y, x0), e, encoder=False)
  return np_conv(p["out_conv"]["kernel"], y, p["out_gain"])


def np_flat(p, x, e):
  """The network `flat`."""
  dec = p["dec"]
  x0 = np_conv(p["enc"]["4x4_conv"]["kernel"], with_ones(x))
  y = np_block(dec["4x4_in0"], x0, e, encoder=False)
  y = np_block(dec["4x4_in1"], y, e, encoder=False)
  y = np_block(dec["4x4_block0"], np_cat(y, x0), e, encoder=False)
  return np_conv(p["out_conv"]["kernel"], y, p["out_gain"])


@functools.cache
def built(make):
  """The network with its apply compiled, and shaken parameters."""
  net = from_nnx(make)
  return net._replace(apply=jax.jit(net.apply)), shaken(make)


@pytest.fixture
def drawn_by_numpy(monkeypatch):
  """Initial weights that take no time to compile."""
  draw = rng()
  normal = lambda key, shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
  monkeypatch.setattr(magnitude, "standard_normal", normal)


@pytest.mark.parametrize(
  ("make", "walk"), [(original, np_edm2), (flat, np_flat)], ids=["edm2", "sCM"]
)
def test_edm2_agrees_with_a_forward_pass_in_numpy(make, walk):
  net, params = built(make)
  x, t, cond = inputs(make)
  p, x64, t64 = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x, t))
  rows = math.sqrt(3) * np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1.0]])  # -1 is no condition
  expected = walk(p, x64, embedded(p, t64, rows))
  assert np.abs(expected).max() > 0.5
  error = np.abs(net.apply(params, x, t, cond, None) - expected).max()
  assert error < 1e-5 * np.abs(expected).max()


def block_of(cin, cout, **options):
  """A block and its parameters: (params, x, e) -> y, compiled."""
  kwargs = dict(dropout=0.0, channels_per_head=8, rngs=nnx.Rngs(0))
  block = EDM2Block(BlockSpec("block", cin, cout), 16, **kwargs, **options)
  graphdef, params = nnx.split(block)
  return jax.jit(lambda params, x, e: nnx.merge(graphdef, params)(x, e, None)), params


def test_a_block_can_have_a_scale_alone_and_normalises_pixels_in_the_encoder(drawn_by_numpy):
  run, params = block_of(8, 16, encoder=True, modulation="pnorm_scale")
  x, e = gaussian(2, 4, 4, 8), gaussian(2, 16)
  exact = lambda a: np.asarray(a, np.float64)
  p = jax.tree.map(exact, nnx.to_pure_dict(params))
  expected = np_block(p, exact(x), exact(e), encoder=True)
  np.testing.assert_allclose(run(params, x, e), expected, rtol=1e-4, atol=1e-5)


def test_a_block_limits_what_it_puts_out(drawn_by_numpy):
  run, params = block_of(8, 8, encoder=False, modulation="edm2")
  y = run(params, 1e4 * gaussian(2, 4, 4, 8), gaussian(2, 16))
  assert y.max() == 256 and y.min() == -256


# --- laws ---------------------------------------------------------------------------------------


def test_output_is_zero_at_the_start_where_only_its_gain_has_a_gradient(drawn_by_numpy):
  net = from_nnx(functools.partial(flat, modulation="edm2"))
  params = net.init(jax.random.key(0))
  x, t, cond = inputs(flat)

  F_fn = lambda params: net.apply(params, x, t, cond, None)
  jvp = jax.jit(lambda direction: jax.jvp(F_fn, (params,), (direction,)))
  # Along all weights at once, but for that gain; then along the gain alone.
  others = jax.tree.map(jnp.ones_like, params) | {"out_gain": jnp.zeros(())}
  gain = jax.tree.map(jnp.zeros_like, params) | {"out_gain": jnp.ones(())}
  F, dF = jvp(others)
  assert not np.any(F) and not np.any(dF)
  # F is linear in it, and of about unit size where it is 1: the network keeps magnitudes, but for
  # the zeros around the small images.
  assert 0.2 < mean_square(jvp(gain)[1]) < 1.5


def test_jvp_agrees_with_finite_differences_and_is_finite_at_the_ends():
  with jax.enable_x64(True):
    net, params = from_nnx(flat, dtype=jnp.float64), shaken(flat)
    x, t, cond = inputs(flat, np.float64)
    F_fn = lambda x, t: net.apply(params, x, t, cond, None)
    jvp = jax.jit(lambda x, t, dx, dt: jax.jvp(F_fn, (x, t), (dx, dt)))
    dx, dt = jnp.sin(3 * x), jnp.cos(t)
    F, dF = jvp(x, t, dx, dt)
    h = 1e-5
    ends = (jvp(x + s * dx, t + s * dt, dx, dt)[0] for s in (h, -h))
    expected = np.subtract(*ends) / (2 * h)
    assert F.dtype == dF.dtype == jnp.float64 and np.std(expected) > 0.01
    np.testing.assert_allclose(dF, expected, rtol=1e-5, atol=1e-7)
    # A black image at both ends of time.
    F, dF = jvp(0 * x, jnp.array([0.0, math.pi / 2 - 1e-6, math.pi / 2]), 0 * x, jnp.ones(3))
    assert np.all(np.isfinite(F)) and np.all(np.isfinite(dF)) and np.any(dF)


def derivatives(make):
  """(params, key) -> the gradient of a loss on the primal of a jvp, and the jvp itself."""
  net = from_nnx(make)
  x, t, cond = inputs(make)

  def both(params, key):
    def loss(params):
      F, dF = jax.jvp(lambda x, t: net.apply(params, x, t, cond, key), (x, t), (x, t))
      return jnp.sum((F - jax.lax.stop_gradient(F - dF)) ** 2) / 2, (F, dF)

    return jax.grad(loss, has_aux=True)(params)

  return jax.jit(both)


def test_rematerialisation_is_of_each_block():
  params = jax.eval_shape(from_nnx(flat).init, jax.random.key(0))
  for remat in (False, True):
    again = derivatives(functools.partial(flat, dropout=0.3, remat=remat))
    text = str(jax.make_jaxpr(again)(params, jax.random.key(0)))
    assert text.count("remat2[") >= 3 if remat else "remat2[" not in text


@pytest.mark.slow
def test_rematerialisation_changes_no_derivative_and_no_dropout_mask():
  make, params = functools.partial(flat, dropout=0.3), shaken(flat)
  plain, again = derivatives(make), derivatives(functools.partial(make, remat=True))
  grads, (F, dF) = plain(params, jax.random.key(5))
  same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())
  jax.tree.map(same, again(params, jax.random.key(5)), (grads, (F, dF)))
  assert all(np.any(g) for g in jax.tree.leaves(grads))
  assert np.abs(plain(params, jax.random.key(6))[1][0] - F).max() > 0.01


def dot_dtypes(jaxpr):
  """(primitive, dtypes of its two operands) of every product in a jaxpr and those inside it."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
      yield eqn.primitive.name, {v.aval.dtype.name for v in eqn.invars}
    for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
      sub = getattr(sub, "jaxpr", sub)
      if hasattr(sub, "eqns"):
        yield from dot_dtypes(sub)


def test_body_runs_in_bfloat16_with_embeddings_and_norms_in_float32():
  make = functools.partial(flat, modulation="edm2", embedding="mp_fourier", guidance=True)
  net = from_nnx(make, dtype="bfloat16")
  params = jax.eval_shape(net.init, jax.random.key(0))
  x, t, cond = inputs(flat)
  jaxpr = jax.make_jaxpr(net.apply)(params, x, t, cond | {"guidance": t}, None)
  found = list(dot_dtypes(jaxpr.jaxpr))
  assert all(len(dtypes) == 1 for _, dtypes in found)
  assert sum(dtypes == {"float32"} for _, dtypes in found) == 3 + 3  # emb_*, map_*, emb_linear
  assert all(dtypes == {"bfloat16"} for name, dtypes in found if name != "dot_general")
  # No weight is rounded before it is normalised.
  leaves = {v: v.aval.shape for v in jaxpr.jaxpr.invars[: len(jax.tree.leaves(params))]}
  rounded = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "convert_element_type"
             and e.invars[0] in leaves and e.params["new_dtype"] == jnp.bfloat16]  # fmt: skip
  assert not rounded and jaxpr.out_avals[0].dtype == jnp.float32


def test_a_student_that_is_told_more_starts_as_its_teacher_and_can_listen(drawn_by_numpy):
  told = functools.partial(flat, guidance=True, segment=True)
  (net, params), student = built(flat), from_nnx(told)
  grown = grow(params, student.init(jax.random.key(7)))
  new = {path for path in paths(grown) if path not in paths(params)}
  assert new == {f"map_{name}/{leaf}" for name in ("guidance", "segment")
                 for leaf in ("gain", "linear/kernel")}  # fmt: skip
  x, t, cond = inputs(flat)
  conditions = cond | {"guidance": jnp.array([1.0, 1.5, 2.0]), "segment": 0.3 * t}
  apply = jax.jit(student.apply)
  F = net.apply(params, x, t, cond, None)
  np.testing.assert_array_equal(apply(grown, x, t, conditions, None), F)
  for name in ("guidance", "segment"):
    moved = grown | {f"map_{name}": grown[f"map_{name}"] | {"gain": jnp.float32(0.1)}}
    change = np.abs(apply(moved, x, t, conditions, None) - F).max(axis=(1, 2, 3))
    assert change.min() > 1e-3  # the gain has a gradient from the start


def test_dropout_can_be_kept_to_small_resolutions():
  make = lambda **kwargs: nnx.eval_shape(lambda: small(dropout=0.2, rngs=nnx.Rngs(0), **kwargs))
  rates = {name: b.dropout for name, b in make(dropout_resolution=4).dec.items()}
  assert rates.pop("8x8_up") == rates.pop("8x8_block0") == rates.pop("8x8_block1") == 0
  assert set(rates.values()) == {0.2} and len(rates) == 4
  assert {b.dropout for b in make().dec.values()} == {0.2}


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    (dict(resolution=10, channel_mult=(1, 1, 1)), "resolution=10 cannot be halved 2 times.*: 8"),
    (dict(channel_mult=()), "channel_mult is empty"),
    (dict(attn_resolutions=(7, 4)), r"attn_resolutions has \[7\].*\[8, 4\]"),
    (dict(modulation="additive"), "'additive'. Choose from: edm2, pnorm_scale, pnorm_scale_shift"),
    (dict(embedding="fourier"), "embedding 'fourier'. Choose from: positional, mp_fourier"),
    (dict(embedding="mp_fourier", fourier_scale=-1.0), "fourier_scale=-1.0 must be positive"),
    (dict(attention="flash"), "Unknown attention.*'flash'"),
    (dict(channels_per_head=64), "4x4_block0 has 16 channels.*channels_per_head=64"),
    (dict(dropout=1.0), "dropout=1.0"),
  ],
)
def test_edm2_explains_bad_options(kwargs, message):
  with pytest.raises(ValueError, match=message):
    from_nnx(functools.partial(small, **kwargs))


def test_bad_inputs_are_explained_while_tracing():
  net = from_nnx(functools.partial(flat, guidance=True))
  params = jax.eval_shape(net.init, jax.random.key(0))
  x, t, cond = inputs(flat)
  call = lambda *args: jax.eval_shape(net.apply, params, *args, None)
  with pytest.raises(ValueError, match=r"guidance=True needs cond\['guidance'\]"):
    call(x, t, cond)
  with pytest.raises(ValueError, match=r"num_classes=3 needs cond\['label'\]"):
    call(x, t, {"guidance": t})
  with pytest.raises(ValueError, match=r"The network is for x \[b, 4, 4, 2\]"):
    call(x[:, :3], t, cond | {"guidance": t})


# --- the head for logvar ------------------------------------------------------------------------


def test_the_weighting_of_edm2_is_a_head_of_unit_weights_on_random_features():
  head = weighting.edm2(sigma_data=0.5)
  params = head.init(jax.random.key(0))
  assert sum(a.size for a in jax.tree.leaves(params["logvar_linear"])) == HEAD
  t = jnp.linspace(0.01, 1.56, 50)

  def square(params):
    w = head.apply(params, t)
    return jnp.sum(w**2), w

  grads, w = jax.jit(jax.grad(square, has_aux=True))(params)
  p, angle = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, t))
  angles = np.outer(np.log(0.5 * np.tan(angle)) / 4, p["logvar_fourier"]["freqs"])
  features = math.sqrt(2) * np.cos(angles + p["logvar_fourier"]["phases"])
  logvar = np_conv(p["logvar_linear"]["kernel"], features)[:, 0]
  np.testing.assert_allclose(w, -logvar, atol=1e-3)
  assert np.any(grads["logvar_linear"]["kernel"])
  assert not any(np.any(g) for g in jax.tree.leaves(grads["logvar_fourier"]))
