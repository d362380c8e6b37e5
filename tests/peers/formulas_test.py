"""The same numbers as other people's implementations: `make peers` installs and compares them.

Every network here is one formula, written for NumPy's names that JAX and PyTorch share.
"""

import functools
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from cmjax import edm, ema, latents, samplers, times, trigflow
from cmjax.commands import prepare
from cmjax.convert import autoencoder, files, names
from cmjax.data import records
from cmjax.losses import lpips
from cmjax.networks import DiT, autoencoder_kl, dit, from_nnx
from cmjax.networks.unet import BlockSpec, Style, UNetBlock

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make peers")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: make peers")
ema_pytorch = pytest.importorskip("ema_pytorch", reason="ema-pytorch is not there: make peers")

SIGMA_DATA, SIGMA_MIN, SIGMA_MAX = 0.5, 0.002, 80.0
SHAPE = (5, 6)
W = np.random.default_rng(0).normal(size=(6, 6)).astype("f") / 2


def formula(xp, x, c):
  """A network: x [b, 6] of unit scale and a number per sample."""
  weights = xp.asarray(W)
  return xp.sin(x @ weights + c[:, None]) + xp.tanh(x) / 2


def ours(params, x, t, cond, key):
  return formula(jnp, x, t)


def to_torch(a):
  return torch.tensor(np.asarray(a))


def per_sample(value):
  return torch.full(SHAPE[:1], float(value))


# The formula as an EDM network, which is told c_noise = ln(sigma) / 4.
edm_network = edm.as_trigflow(ours, sigma_data=SIGMA_DATA)


def noises(key, num_steps):
  """The unit noise of each step of `samplers.consistency`."""
  for k in jax.random.split(key, num_steps):
    yield to_torch(trigflow.noise(k, SHAPE, sigma_data=1.0))


# CM's own boundary, and one that is not small beside the last steps.
@pytest.mark.parametrize(
  ("indices", "sigma_min"), [([0], 0.002), ([0, 22], 0.002), ([0, 20, 30, 37], 0.2)]
)
def test_consistency_sampling_is_that_of_diffusers(indices, sigma_min, monkeypatch):
  scheduler = diffusers.CMStochasticIterativeScheduler(
    num_train_timesteps=40,
    sigma_min=sigma_min,
    sigma_max=SIGMA_MAX,
    sigma_data=SIGMA_DATA,
    clip_denoised=False,
  )
  scheduler.set_timesteps(timesteps=indices[::-1])
  key, n = jax.random.key(0), len(indices)
  draws = noises(key, n)
  x = SIGMA_MAX * next(draws)
  fresh = lambda *_, **__: next(draws, torch.zeros(SHAPE))
  monkeypatch.setattr("diffusers.schedulers.scheduling_consistency_models.randn_tensor", fresh)
  sigmas = scheduler.sigmas[:-1].numpy().astype(np.float64)
  for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=True):
    scaled = scheduler.scale_model_input(x, timestep)
    np.testing.assert_allclose(timestep / 1000, np.log(sigma) / 4, rtol=1e-4)
    F = formula(torch, scaled, per_sample(timestep / 1000))
    x = scheduler.step(F, timestep, x).prev_sample
  net = edm.shifted(edm_network, sigma_data=SIGMA_DATA, sigma_min=sigma_min)
  angles = np.arctan2(sigmas, SIGMA_DATA)
  x0 = samplers.consistency(net, {}, key, SHAPE, angles, sigma_data=SIGMA_DATA, sigma_min=sigma_min)
  assert np.std(x0) > 0.1
  np.testing.assert_allclose(x0, x, rtol=1e-3, atol=1e-4)


def test_two_trigflow_steps_are_those_of_diffusers(monkeypatch):
  angles = times.consistency_times(1.1, sigma_data=SIGMA_DATA)
  scheduler = diffusers.SCMScheduler(sigma_data=SIGMA_DATA)
  scheduler.set_timesteps(2, max_timesteps=float(angles[0]), intermediate_timesteps=1.1)
  key = jax.random.key(1)
  draws = noises(key, 2)
  x = np.sin(angles[0]) * SIGMA_DATA * next(draws)
  fresh = lambda *_, **__: next(draws, torch.zeros(SHAPE))
  monkeypatch.setattr("diffusers.schedulers.scheduling_scm.randn_tensor", fresh)
  for t in scheduler.timesteps[:-1]:
    v = SIGMA_DATA * formula(torch, x / SIGMA_DATA, per_sample(t))
    x = scheduler.step(v, t, x).prev_sample
  x0 = samplers.consistency(ours, {}, key, SHAPE, angles, sigma_data=SIGMA_DATA)
  assert np.std(x0) > 0.1
  np.testing.assert_allclose(x0, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_steps", [2, 18])
def test_ddim_is_the_euler_sampler_of_diffusers(num_steps):
  scheduler = diffusers.EDMEulerScheduler(
    sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=SIGMA_DATA, rho=7.0
  )
  scheduler.set_timesteps(num_steps)
  angles = times.ode_times(
    num_steps, sigma_data=SIGMA_DATA, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, rho=7.0
  )
  np.testing.assert_allclose(SIGMA_DATA * np.tan(angles), scheduler.sigmas, rtol=1e-5)
  key = jax.random.key(2)
  x_T = trigflow.noise(key, SHAPE, sigma_data=SIGMA_DATA)
  x = to_torch(x_T) / np.cos(angles[0])
  for timestep in scheduler.timesteps:
    F = formula(torch, scheduler.scale_model_input(x, timestep), per_sample(timestep))
    x = scheduler.step(F, timestep, x).prev_sample
  x0 = samplers.ddim(edm_network, {}, key, SHAPE, angles, sigma_data=SIGMA_DATA)
  assert np.std(x0) > 0.1
  np.testing.assert_allclose(x0, x, rtol=1e-3, atol=1e-4)


def test_power_function_averages_are_those_of_ema_pytorch(tmp_path):
  params = np.random.default_rng(3).normal(size=(50, 4, 3)).astype("f")
  model = torch.nn.Linear(3, 4, bias=False)
  sigma_rels = (0.05, 0.1, 0.2)
  theirs = ema_pytorch.PostHocEMA(
    model, sigma_rels=sigma_rels, update_every=1, checkpoint_folder=str(tmp_path)
  )
  decays = {str(s): ema.power(s, batch_size=32) for s in sigma_rels}
  averages = {name: jnp.full((4, 3), 9.0) for name in decays}
  # Theirs copies the first weights and then averages them in once more: it counts them twice.
  averages = ema.update(averages, jnp.asarray(params[0]), 0, decays)
  for step, p in enumerate(params, start=1):
    with torch.no_grad():
      model.weight.copy_(torch.tensor(p))
    theirs.update()
    averages = ema.update(averages, jnp.asarray(p), step, decays)
  for average, karras, sigma_rel in zip(
    averages.values(), theirs.ema_models, sigma_rels, strict=True
  ):
    expected = karras.ema_model.weight.detach()
    np.testing.assert_allclose(average, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ema.power_gamma(sigma_rel), karras.gamma, rtol=1e-9)


def torch_lpips(weights, a, b, pooling, resize):
  """LPIPS as its authors' PyTorch code computes it, on NCHW images."""
  functional = torch.nn.functional
  pool = functional.max_pool2d if pooling == "max" else functional.avg_pool2d
  shift = torch.tensor([-0.030, -0.088, -0.188], dtype=a.dtype)
  scale = torch.tensor([0.458, 0.448, 0.450], dtype=a.dtype)

  def features(x):
    x = functional.interpolate(x, size=(resize, resize), mode="bilinear", align_corners=False)
    x = (x - shift[:, None, None]) / scale[:, None, None]
    for index in range(30):  # torchvision's vgg16.features without its last pooling
      if f"features.{index}.weight" in weights:
        kernel, bias = (torch.tensor(weights[f"features.{index}.{p}"]) for p in ("weight", "bias"))
        x = functional.conv2d(x, kernel, bias, padding=1)
      elif index in (4, 9, 16, 23):
        x = pool(x, 2)
      else:
        x = functional.relu(x)
      if index in (3, 8, 15, 22, 29):
        yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

  total = 0.0
  for k, (y_a, y_b) in enumerate(zip(features(a), features(b), strict=True)):
    lin = torch.tensor(weights[f"lin{k}.model.1.weight"])
    total = total + functional.conv2d((y_a - y_b) ** 2, lin).mean((1, 2, 3))
  return total


# In float64: a rounding that decides a ReLU or the largest of four moves the gradient by 5e-3.
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_lpips_is_that_of_pytorch_and_so_is_its_gradient(pooling):
  rng = np.random.default_rng(4)
  weights = {}
  for name, shape in lpips.shapes().items():
    w = rng.uniform(size=shape) if name.startswith("lin") else 0.1 * rng.normal(size=shape)
    if len(shape) == 4 and not name.startswith("lin"):
      w *= 10 * np.sqrt(2 / np.prod(shape[1:]))
    weights[name] = w
  a, b = rng.uniform(-1, 1, (2, 2, 20, 20, 3))
  with jax.enable_x64(True):
    d = lpips.distance(weights, pooling=pooling, resize=36)  # 36 -> 18 -> 9 -> 4 -> 2: one odd side
    value, grad = jax.jit(jax.value_and_grad(lambda a: d(a, jnp.asarray(b)).sum()))(a)
  nchw = lambda x: torch.tensor(x).permute(0, 3, 1, 2)
  a = nchw(a).requires_grad_()
  expected = torch_lpips(weights, a, nchw(b), pooling, 36).sum()
  expected.backward()
  assert expected > 0.1
  np.testing.assert_allclose(value, expected.detach(), rtol=1e-9)
  expected = a.grad.permute(0, 2, 3, 1)
  np.testing.assert_allclose(grad, expected, atol=1e-9 * float(expected.abs().max()))


# --- networks under shared random weights -------------------------------------------------------


def randomize(module, seed=5):
  """Weights that keep the size of what passes, and scales and biases that matter."""
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, p in module.named_parameters():
      draw = rng.normal(size=tuple(p.shape)) / np.sqrt(np.prod(p.shape[1:], initial=1.0))
      vector = p.ndim == 1  # the scale of a norm, or a bias
      p.copy_(torch.tensor(0.2 * draw + name.endswith("weight") if vector else draw))
  return module.eval()


def assert_near(got, expected, tolerance=1e-5):
  """The largest difference, relative to the largest value, is below the tolerance."""
  expected = expected.detach().numpy() if torch.is_tensor(expected) else np.asarray(expected)
  assert got.shape == expected.shape and np.std(expected) > 0.01
  error = np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()
  assert error < tolerance, error


def nchw(x):
  return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def torch_vae(widths, num_blocks):
  return diffusers.AutoencoderKL(
    block_out_channels=widths,
    layers_per_block=num_blocks,
    down_block_types=("DownEncoderBlock2D",) * len(widths),
    up_block_types=("UpDecoderBlock2D",) * len(widths),
    latent_channels=4,
    norm_num_groups=32,
  )


def test_autoencoder_is_that_of_diffusers():
  theirs = randomize(torch_vae((128, 160), 1))
  vae = autoencoder_kl(widths=(128, 160), num_blocks=1)
  state = {name: a.numpy() for name, a in theirs.state_dict().items()}
  params = names.from_torch(state, jax.eval_shape(vae.init, jax.random.key(0)), "autoencoder_kl")
  rng = np.random.default_rng(6)
  images, z = (
    rng.uniform(-1, 1, (2, 12, 8, 3)).astype("f"),
    rng.normal(size=(2, 6, 4, 4)).astype("f"),
  )
  with torch.no_grad():
    posterior = theirs.encode(nchw(images)).latent_dist
    decoded = theirs.decode(nchw(z)).sample
  mean, std = jax.jit(vae.encode)(params, images)
  nhwc = lambda a: a.permute(0, 2, 3, 1)
  assert_near(mean, nhwc(posterior.mean))
  assert_near(std, nhwc(posterior.std))
  assert_near(jax.jit(vae.decode)(params, z), nhwc(decoded))


@pytest.mark.parametrize("name", ["scm", "edm2"])
def test_prepared_latents_are_those_of_diffusers(tmp_path, name):
  """Through the command, from files to files: encoded, read back and decoded again."""
  model = randomize(torch_vae((128, 160), 1))
  model.save_pretrained(tmp_path / "vae")
  file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
  (tmp_path / "a").mkdir()
  pixels = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), np.uint8)
  for i, x in enumerate(pixels):
    Image.fromarray(x).save(tmp_path / "a" / f"{i:02d}.png")
  options = ["--workers=0", f"--latents={file}", f"--convention={name}"]
  assert prepare.main([str(tmp_path / "a"), "--out", str(tmp_path / "out"), *options]) == 0
  source = records.records(tmp_path / "out")
  got = source.take(np.arange(11))

  convention = latents.CONVENTIONS[name]
  low, high = convention.input_range
  x = nchw(low + pixels.astype("f") * np.float32((high - low) / 255))
  with torch.no_grad():
    posterior = model.encode(x).latent_dist
    decoded = model.decode(posterior.mean).sample.permute(0, 2, 3, 1).numpy()
  mean, std = (a.permute(0, 2, 3, 1).numpy() for a in (posterior.mean, posterior.std))
  m, s = np.array(convention.mean), np.array(convention.std)
  np.testing.assert_allclose(got["image"], (mean - m) * 0.5 / s, atol=1e-4)
  np.testing.assert_allclose(got["image_std"], std * 0.5 / s, atol=1e-4)
  assert source.latents["vae_sha256"] == files.digest(file)
  latents.check(source.latents, convention)

  vae, params = autoencoder.load(file)
  images = latents.decode(
    functools.partial(vae.decode, params), jnp.asarray(got["image"]), convention
  )
  expected = (decoded - low) * (2 / (high - low)) - 1
  np.testing.assert_allclose(images, expected, atol=1e-4)


def test_sd_vae_has_the_tensors_of_diffusers():
  with torch.device("meta"):
    theirs = torch_vae((128, 256, 512, 512), 2)
  assert sum(p.numel() for p in theirs.parameters()) == 83_653_863
  state = {name: np.broadcast_to(np.float16(0), p.shape) for name, p in theirs.state_dict().items()}
  shapes = jax.eval_shape(autoencoder_kl().init, jax.random.key(0))
  names.from_torch(state, shapes, "autoencoder_kl")  # which checks every name and shape


def linear(layer):
  return {"kernel": layer.weight.detach().numpy().T, "bias": layer.bias.detach().numpy()}


def qkv(q, k, v):
  """One layer for q, k and v in the order of channels that `split_heads` takes apart."""
  layers = [linear(layer) for layer in (q, k, v)]
  join = lambda *a: np.stack(a, -1).reshape(*a[0].shape[:-1], -1)
  return jax.tree.map(join, *layers)


def dit_params(model):
  """Our parameters of diffusers' DiT whose blocks share one embedding of time and label."""
  patch = model.pos_embed.proj
  kernel = patch.weight.detach().permute(2, 3, 1, 0).reshape(-1, patch.weight.shape[0]).numpy()
  emb = model.transformer_blocks[0].norm1.emb
  blocks = {
    f"block{i}": {
      "affine": linear(block.norm1.linear),
      "qkv": qkv(block.attn1.to_q, block.attn1.to_k, block.attn1.to_v),
      "proj": linear(block.attn1.to_out[0]),
      "fc0": linear(block.ff.net[0].proj),
      "fc1": linear(block.ff.net[2]),
    }
    for i, block in enumerate(model.transformer_blocks)
  }
  return {
    "tokens": {"kernel": kernel, "bias": patch.bias.detach().numpy()},
    "map_layer0": linear(emb.timestep_embedder.linear_1),
    "map_layer1": linear(emb.timestep_embedder.linear_2),
    "map_label": {"kernel": emb.class_embedder.embedding_table.weight.detach().numpy()},
    "blocks": blocks,
    "last": {"affine": linear(model.proj_out_1), "linear": linear(model.proj_out_2)},
  }


def test_dit_is_that_of_diffusers():
  model = diffusers.DiTTransformer2DModel(
    num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=4, num_layers=2,
    sample_size=8, num_embeds_ada_norm=5, norm_eps=1e-6,
  )  # fmt: skip
  for block in model.transformer_blocks:  # each has its own there, and DiT one for all
    block.norm1.emb = model.transformer_blocks[0].norm1.emb
  randomize(model)
  make = functools.partial(
    DiT, resolution=8, in_channels=2, size=None, depth=2, width=16, num_heads=2, num_classes=5,
    learn_sigma=True,
  )  # fmt: skip
  x = np.random.default_rng(7).normal(size=(3, 8, 8, 2)).astype("f")
  t, label = np.array([0.1, 0.8, 1.5], "f"), np.array([4, -1, 0])
  with torch.no_grad():
    expected = model(nchw(x), torch.tensor(t), torch.tensor(np.where(label < 0, 5, label))).sample
  params = jax.tree.map(jnp.asarray, dit_params(model))
  net = from_nnx(make)
  shapes = jax.eval_shape(net.init, jax.random.key(0))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  F = jax.jit(net.apply)(params, x, jnp.asarray(t), {"label": jnp.asarray(label)}, None)
  assert_near(F, expected[:, :2].permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", dit.SIZES)
def test_dit_has_as_many_parameters_as_that_of_diffusers(size):
  depth, width, num_heads = dit.SIZES[size]
  with torch.device("meta"):
    model = diffusers.DiTTransformer2DModel(
      num_attention_heads=num_heads, attention_head_dim=width // num_heads, out_channels=8,
      num_layers=depth,
    )  # fmt: skip
  theirs = sum(p.numel() for p in model.parameters())
  copies = sum(p.numel() for p in model.transformer_blocks[0].norm1.emb.parameters())
  make = functools.partial(DiT, size=size, num_classes=1000, learn_sigma=True)
  module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
  ours = sum(np.prod(a.shape) for a in jax.tree.leaves(nnx.state(module, nnx.Param)))
  assert ours == theirs - (depth - 1) * copies  # its blocks each embed time and label anew


# The mathematics of both coincide: a block of DDPM++ (additive) or ADM (scale_shift) is diffusers'
# ResnetBlock2D, and Attention after it; both paths resampled first, sums over sqrt(2) in DDPM++.
@pytest.mark.parametrize(
  ("resample", "modulation", "fir"),
  [
    ("keep", "additive", (1, 1)),
    ("down", "scale_shift", (1, 1)),
    ("up", "additive", (1, 1)),
    ("down", "additive", (1, 3, 3, 1)),
    ("up", "additive", (1, 3, 3, 1)),
  ],
)
def test_unet_block_is_that_of_diffusers(resample, modulation, fir):
  from diffusers.models.attention_processor import Attention
  from diffusers.models.resnet import ResnetBlock2D

  cin, cout, embed = 128, 160, 24
  scale = np.sqrt(2) if modulation == "additive" else 1.0
  resnet = ResnetBlock2D(
    in_channels=cin, out_channels=cout, temb_channels=embed, groups=32, eps=1e-6,
    time_embedding_norm="default" if modulation == "additive" else modulation,
    skip_time_act=True, output_scale_factor=scale, up=resample == "up", down=resample == "down",
    kernel="fir" if len(fir) == 4 else None,
  )  # fmt: skip
  attention = Attention(
    cout, heads=1, dim_head=cout, norm_num_groups=32, eps=1e-6, bias=True,
    residual_connection=True, rescale_output_factor=scale,
  )  # fmt: skip
  randomize(resnet)
  randomize(attention, seed=8)
  rng = np.random.default_rng(9)
  x, e = rng.normal(size=(2, 4, 4, cin)).astype("f"), rng.normal(size=(2, embed)).astype("f")
  with torch.no_grad():
    expected = attention(resnet(nchw(x), torch.tensor(e))).permute(0, 2, 3, 1)

  style = Style(modulation, 1 / scale, 1e-6, fir)
  make = lambda: UNetBlock(
    BlockSpec("4x4_block", cin, cout, resample, attention=True), embed, style, dropout=0.0,
    rngs=nnx.Rngs(0),
  )  # fmt: skip
  conv = lambda layer: {
    "kernel": layer.weight.detach().permute(2, 3, 1, 0).numpy(), "bias": layer.bias.detach().numpy()
  }  # fmt: skip
  norm = lambda layer: {
    n: p.detach().numpy() for n, p in zip(("scale", "bias"), layer.parameters(), strict=True)
  }
  pixelwise = lambda layer: layer | {"kernel": layer["kernel"][None, None]}
  params = {
    "norm0": norm(resnet.norm1), "conv0": conv(resnet.conv1), "norm1": norm(resnet.norm2),
    "conv1": conv(resnet.conv2), "skip": conv(resnet.conv_shortcut),
    "affine": linear(resnet.time_emb_proj), "norm2": norm(attention.group_norm),
    "qkv": pixelwise(qkv(attention.to_q, attention.to_k, attention.to_v)),
    "proj": pixelwise(linear(attention.to_out[0])),
  }  # fmt: skip
  graphdef, shapes = nnx.split(nnx.eval_shape(make), nnx.Param)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, nnx.to_pure_dict(shapes))
  run = jax.jit(lambda params, x, e: nnx.merge(graphdef, params)(x, e, None))
  assert_near(run(jax.tree.map(jnp.asarray, params), x, e), expected)


# --- checkpoints as PyTorch writes them ---------------------------------------------------------


def torch_tensors():
  """Every dtype that weights come in, views of one storage, a parameter, an empty and a scalar."""
  base = torch.arange(24, dtype=torch.float32)
  kinds = ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
  whole = {f"{kind}.weight": (base.reshape(4, 6) - 7).to(getattr(torch, kind)) for kind in kinds}
  parts = {"a.weight": base.reshape(4, 6).T, "b.weight": base[3:9:2], "c.weight": base[5:5]}
  return whole | parts | {"gain": torch.tensor(2.5), "p": torch.nn.Parameter(base.reshape(2, 3, 4))}


def numpy_of(tensor):
  bits = tensor.detach()
  if bits.dtype == torch.bfloat16:
    return np.asarray(bits.view(torch.int16)).view(jnp.bfloat16)
  return np.asarray(bits)


def assert_read(tensors, expected):
  assert tensors.keys() == expected.keys()
  for name, tensor in expected.items():
    assert tensors[name].dtype == numpy_of(tensor).dtype, name
    np.testing.assert_array_equal(tensors[name], numpy_of(tensor), err_msg=name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves_is_read_without_torch(zipped, tmp_path):
  path, saved = tmp_path / "a.pt", torch_tensors()
  torch.save({"ema": saved, "step": 3}, path, _use_new_zipfile_serialization=zipped)
  (found,) = files.read(path).networks.values()
  assert_read(found.tensors, saved)
  net = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4)))
  torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
  (found,) = files.read(path).networks.values()
  assert_read(found.tensors, net.state_dict())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickled_module_of_a_persistent_class_is_read_without_torch(
  protocol, tmp_path, monkeypatch
):
  # Classes that pickle under the names that EDM's have; these are ours and do nothing.
  util, persistence = types.ModuleType("dnnlib.util"), types.ModuleType("torch_utils.persistence")
  util.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
  reconstruct = lambda meta: None
  reconstruct.__module__, reconstruct.__qualname__ = (
    "torch_utils.persistence", "_reconstruct_persistent_obj",
  )  # fmt: skip
  persistence._reconstruct_persistent_obj = reconstruct
  for module in (util, persistence):
    monkeypatch.setitem(sys.modules, module.__name__.split(".")[0], types.ModuleType("parent"))
    monkeypatch.setitem(sys.modules, module.__name__, module)

  class Persistent(torch.nn.Module):
    def __init__(self, **kwargs):
      super().__init__()
      self._init_args, self._init_kwargs = (), util.EasyDict(kwargs)
      self.blocks = torch.nn.ModuleDict({f"{i}": torch.nn.Conv2d(2, 3, 3) for i in range(4)})
      self.register_buffer("freqs", torch.randn(5))
      self.resample_filter, self.sigma_data, self.scale = [1, 1], 0.5, np.float64(0.3)

    def __reduce__(self):
      meta = dict(type="class", version=6, module_src="raise SystemExit", state=self.__dict__)
      return reconstruct, (util.EasyDict(meta, class_name="EDMPrecond"),)

  net = Persistent(img_resolution=8, label_dim=3).eval().requires_grad_(False)
  path = tmp_path / "a.pkl"
  path.write_bytes(pickle.dumps({"ema": net, "loss_fn": None}, protocol))
  found = files.read(path).networks["ema"]
  assert_read(found.tensors, net.state_dict())
  said = {"img_resolution": 8, "label_dim": 3, "sigma_data": 0.5, "scale": 0.3}
  assert found.class_name == "EDMPrecond" and said.items() <= found.options.items()
