import json
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from cmjax import latents
from cmjax.convert import autoencoder as weights
from cmjax.convert import names as torch_names
from cmjax.networks import autoencoder, autoencoder_kl
from helpers.small_autoencoder import small


def names(shapes):
  flat = jax.tree_util.tree_leaves_with_path(shapes)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): a for p, a in flat}


def images(b=2, side=8):
  return np.random.default_rng(1).uniform(-1, 1, (b, side, side, 3)).astype("f")


def torch_state(params, dtype=np.float32, old=False):
  """The state_dict of diffusers' AutoencoderKL with these weights."""
  state = {}
  for path, a in names(params).items():
    name = path.replace("/", ".").replace(".kernel", ".weight").replace(".scale", ".weight")
    if old:
      for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value"), ("out.0", "proj_attn")):
        name = name.replace(f".to_{ours}.", f".{theirs}.")
    a = a.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(a.ndim, range(a.ndim)))
    state[name] = np.ascontiguousarray(a.astype(dtype))
  return state


# --- the network --------------------------------------------------------------------------------


def test_sd_vae_has_as_many_parameters_as_published_under_its_names():
  shapes = names(jax.eval_shape(autoencoder_kl().init, jax.random.key(0)))
  assert sum(math.prod(a.shape) for a in shapes.values()) == 83_653_863
  assert len(shapes) == 248 and all(a.dtype == jnp.float32 for a in shapes.values())
  assert shapes["encoder/conv_in/kernel"].shape == (3, 3, 3, 128)
  assert shapes["encoder/down_blocks/1/resnets/0/conv_shortcut/kernel"].shape == (1, 1, 128, 256)
  assert shapes["encoder/down_blocks/2/downsamplers/0/conv/kernel"].shape == (3, 3, 512, 512)
  assert "encoder/down_blocks/3/downsamplers/0/conv/kernel" not in shapes
  assert shapes["encoder/mid_block/attentions/0/to_out/0/kernel"].shape == (512, 512)
  assert shapes["decoder/up_blocks/3/resnets/2/norm1/scale"].shape == (128,)
  assert shapes["decoder/up_blocks/2/upsamplers/0/conv/bias"].shape == (256,)
  assert shapes["quant_conv/kernel"].shape == (1, 1, 8, 8)


def test_sd_vae_makes_latents_of_an_eighth_of_the_side():
  vae = autoencoder_kl(dtype="bfloat16")
  params = jax.eval_shape(vae.init, jax.random.key(0))
  mean, std = jax.eval_shape(vae.encode, params, jnp.zeros((2, 64, 32, 3)))
  assert mean.shape == std.shape == (2, 8, 4, 4) and mean.dtype == std.dtype == jnp.float32
  decoded = jax.eval_shape(vae.decode, params, mean)
  assert decoded.shape == (2, 64, 32, 3) and decoded.dtype == jnp.float32


def test_encoder_halves_with_zeros_below_and_to_the_right_only():
  conv = autoencoder.StridedConv(2, rngs=nnx.Rngs(0))
  conv.bias[...] = jnp.array([1.0, -2.0])
  x = np.random.default_rng(0).normal(size=(2, 4, 6, 2)).astype("f")
  padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
  expected = np.array([1.0, -2.0]) + sum(
    padded[:, i : i + 4 : 2, j : j + 6 : 2] @ np.asarray(conv.kernel[...])[i, j]
    for i in range(3)
    for j in range(3)
  )
  np.testing.assert_allclose(conv(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["xla", "blockwise"])
def test_attention_block_is_one_head_over_all_pixels(attention):
  block = autoencoder.AttentionBlock(8, attention=attention, rngs=nnx.Rngs(0))
  block.to_v.bias[...] = jnp.arange(8.0)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3, 8)), jnp.float32)
  h = np.asarray(block.group_norm(x)).reshape(2, 6, 8)
  q, k, v = (h @ np.asarray(m.kernel[...]) for m in (block.to_q, block.to_k, block.to_v))
  weights = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(8))
  y = weights / weights.sum(-1, keepdims=True) @ (v + np.arange(8.0))
  expected = x + (y @ np.asarray(block.to_out["0"].kernel[...])).reshape(x.shape)
  np.testing.assert_allclose(block(x), expected, rtol=1e-4, atol=1e-5)


def test_std_is_the_root_of_the_exponential_of_a_limited_log_variance():
  vae, _, params = small()
  shut = jax.tree.map(jnp.zeros_like, params["quant_conv"])
  bias = jnp.array([1.0, 2.0, 3.0, 4.0, -100.0, 100.0, -2.0, 0.0])
  params = params | {"quant_conv": shut | {"bias": bias}}
  mean, std = vae.encode(params, images())
  np.testing.assert_allclose(mean[0, 0, 0], [1, 2, 3, 4])
  np.testing.assert_allclose(std[0, 0, 0], np.exp([-15.0, 10.0, -1.0, 0.0]), rtol=1e-6)


def test_images_of_a_batch_do_not_see_each_other():
  vae, _, params = small()
  mean, std = vae.encode(params, images())
  swapped = vae.encode(params, images()[::-1])
  np.testing.assert_allclose(swapped[0], mean[::-1], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(swapped[1], std[::-1], rtol=1e-4, atol=1e-5)
  assert np.std(mean) > 0.1 and np.abs(mean[0] - mean[1]).max() > 0.1 and np.all(std > 0)


def test_both_ways_run_in_bfloat16():
  vae, _, params = small(dtype="bfloat16")
  for f, x in ((vae.encode, jnp.zeros((1, 8, 8, 3))), (vae.decode, jnp.zeros((1, 4, 4, 4)))):
    jaxpr = jax.make_jaxpr(f)(params, x).jaxpr
    jaxpr = jaxpr.eqns[0].params["jaxpr"].jaxpr if len(jaxpr.eqns) == 1 else jaxpr
    convs = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    assert len(convs) > 5
    assert all(v.aval.dtype == jnp.bfloat16 for e in convs for v in e.invars)


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((2, 8, 8, 1), r"images \[b, h, w, 3\].*got \(2, 8, 8, 1\)"),
    ((2, 9, 8, 3), "sides that 2 divides; got"),
  ],
)
def test_images_that_do_not_fit_are_explained_while_tracing(shape, message):
  vae, _, params = small()
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(vae.encode, params, jnp.zeros(shape))
  with pytest.raises(ValueError, match=r"latents \[b, h, w, 4\]; got \(2, 4, 4, 3\)"):
    jax.eval_shape(vae.decode, params, jnp.zeros((2, 4, 4, 3)))


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    (dict(widths=()), r"widths=\(\).*one width per level"),
    (dict(widths=(130,)), "cannot divide 130 channels"),
    (dict(dtype="int32"), "int32 is not floating-point"),
    (dict(attention="flash"), "Unknown attention 'flash'"),
  ],
)
def test_bad_options_are_explained(kwargs, message):
  with pytest.raises(ValueError, match=message):
    autoencoder_kl(**kwargs)


# --- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["to_q", "query"])
def test_weights_of_a_file_are_those_that_were_written(tmp_path, old):
  _, shapes, params = small()
  path = tmp_path / "vae.safetensors"
  safetensors.numpy.save_file(torch_state(params, np.float16, old), path)
  got = weights.read(path, shapes)
  half = jax.tree.map(lambda a: a.astype(np.float16).astype(np.float32), params)
  jax.tree.map(np.testing.assert_array_equal, got, half)
  assert all(a.dtype == np.float32 for a in jax.tree.leaves(got))
  assert jax.tree.structure(got) == jax.tree.structure(shapes)


def test_bfloat16_weights_are_read_exactly(tmp_path):
  _, shapes, params = small()
  path = tmp_path / "vae.safetensors"
  safetensors.numpy.save_file(torch_state(params, ml_dtypes.bfloat16), path)
  expected = jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16).astype(np.float32), params)
  jax.tree.map(np.testing.assert_array_equal, weights.read(path, shapes), expected)


def test_one_error_names_every_tensor_that_does_not_fit():
  _, shapes, params = small()
  state = torch_state(params)
  del state["encoder.conv_in.bias"]
  state["decoder.conv_in.weight"] = np.zeros((16, 3, 3, 3), "f")
  state["quant_conv.bias"] = np.zeros(8, np.int32)
  state["loss.logvar"] = np.zeros(())
  with pytest.raises(ValueError) as error:
    torch_names.from_torch(state, shapes, weights.FAMILY)
  message = str(error.value)
  assert "encoder.conv_in.bias is missing, expected (8,)" in message
  assert "decoder.conv_in.weight is (16, 3, 3, 3), expected (16, 4, 3, 3)" in message
  assert "quant_conv.bias is int32, expected a floating-point type" in message
  assert "loss.logvar () is not in this network" in message and "\n" not in message
  with pytest.raises(ValueError, match=r"and \d+ more\. Give a file of diffusers' AutoencoderKL"):
    torch_names.from_torch({}, shapes, weights.FAMILY)


def test_what_is_no_file_of_weights_is_explained(tmp_path):
  with pytest.raises(ValueError, match=r"nowhere.safetensors does not exist"):
    weights.read(tmp_path / "nowhere.safetensors")
  path = tmp_path / "page.safetensors"
  path.write_text("<html>404</html>")
  with pytest.raises(ValueError, match=r"page.safetensors: it is a web page"):
    weights.read(path)
  with pytest.raises(ValueError, match="is a folder"):
    weights.read(tmp_path)
  _, shapes, params = small()
  state = torch_state(params)
  del state["decoder.conv_out.bias"]
  safetensors.numpy.save_file(state, path)
  with pytest.raises(ValueError, match=r"page.safetensors: .*conv_out.bias is missing.*\(3,\)"):
    weights.read(path, shapes)


def test_weights_are_written_as_diffusers_names_them_and_read_back(tmp_path):
  _, shapes, params = small()
  path = tmp_path / "vae.safetensors"
  weights.write(path, params)
  state, expected = safetensors.numpy.load_file(path), torch_state(params)
  assert set(state) == set(expected)
  jax.tree.map(np.testing.assert_array_equal, state, expected)
  jax.tree.map(np.testing.assert_array_equal, weights.read(path, shapes), params)


# --- latents ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "scale", "bias"),
  [
    ("edm2", [0.119904, 0.108225, 0.134771, 0.152439], [-0.696643, -0.351732, -0.016173, 0.327744]),
    ("scm", [0.094877, 0.084602, 0.118765, 0.116009], [-0.148008, 0.058799, -0.057363, -0.084571]),
  ],
)
def test_latents_are_the_affine_maps_of_edm2_and_scm(name, scale, bias):
  convention = latents.CONVENTIONS[name]
  z = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype("f")
  got = latents.normalize(jnp.asarray(z), convention)
  np.testing.assert_allclose(got, z * scale + bias, atol=1e-5)
  np.testing.assert_allclose(latents.denormalize(got, convention), z, rtol=1e-4, atol=1e-4)


def test_latents_are_those_of_scm_unless_one_says_otherwise():
  z = jnp.ones((1, 4))
  np.testing.assert_array_equal(latents.normalize(z), latents.normalize(z, latents.SCM))
  assert np.abs(latents.normalize(z) - latents.normalize(z, latents.EDM2)).min() > 0.01


@pytest.mark.parametrize("name", ["edm2", "scm"])
def test_encoder_sees_the_range_it_is_said_to_and_images_come_back(name):
  convention = latents.CONVENTIONS[name]
  x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 4)), jnp.float32)
  x = x.at[0, 0, 0].set(jnp.array([-1.0, 1.0, -1.0, 1.0]))
  seen = []
  vae_encode = lambda images: (seen.append(images) or images, jnp.zeros_like(images))
  encoded = latents.encode(vae_encode, x, jax.random.key(0), convention)
  assert (float(seen[0].min()), float(seen[0].max())) == convention.input_range
  decoded = latents.decode(lambda z: z, encoded, convention)
  np.testing.assert_allclose(decoded, x, atol=1e-5)


def test_latents_are_drawn_with_the_std_of_the_encoder():
  mean, std = jnp.arange(4.0), jnp.array([0.0, 1.0, 2.0, 3.0])
  shape = (1, 64, 64, 4)
  wide = lambda a: jnp.broadcast_to(a.reshape(1, 1, 1, 4), shape)
  vae_encode = lambda images: (wide(mean), wide(std))
  draw = lambda key: latents.encode(vae_encode, jnp.zeros(shape), key)
  z = latents.denormalize(draw(jax.random.key(0)))
  np.testing.assert_allclose(z.mean((0, 1, 2)), mean, atol=0.15)
  np.testing.assert_allclose(z.std((0, 1, 2)), std, rtol=0.05, atol=1e-5)
  assert np.any(draw(jax.random.key(1)) != draw(jax.random.key(2)))
  np.testing.assert_allclose(latents.denormalize(draw(None)), wide(mean), atol=1e-5)


def test_another_convention_than_the_recorded_one_is_an_error():
  recorded = json.loads(json.dumps(latents.record(latents.SCM)))
  latents.check(recorded | {"images": 50_000}, latents.SCM)
  with pytest.raises(ValueError) as error:
    latents.check(recorded, latents.EDM2)
  message = str(error.value)
  assert "name 'scm' (expected 'edm2')" in message
  assert "input_range [-1.0, 1.0] (expected [0.0, 1.0])" in message
  assert "mean [1.56" in message and "std [5.27" in message and "vae" not in message
  with pytest.raises(ValueError, match="vae 'another'"):
    latents.check(recorded | {"vae": "another"}, latents.SCM)
  with pytest.raises(ValueError, match=r"no std \(expected \[5.27"):
    latents.check({k: v for k, v in recorded.items() if k != "std"}, latents.SCM)


def test_latents_of_another_number_of_channels_are_refused():
  with pytest.raises(ValueError, match=r"'scm' is for latents of 4 channels; got \(2, 3\)"):
    latents.normalize(jnp.zeros((2, 3)))
