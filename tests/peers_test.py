"""The same numbers as other people's implementations: `make peers` installs and compares them.

Every network here is one formula, written for NumPy's names that JAX and PyTorch share.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import edm, ema, lpips, samplers, times, trigflow

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
  shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

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


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_lpips_is_that_of_pytorch_and_so_is_its_gradient(pooling):
  rng = np.random.default_rng(4)
  weights = {}
  for name, shape in lpips.shapes().items():
    w = rng.uniform(size=shape) if name.startswith("lin") else 0.1 * rng.normal(size=shape)
    if len(shape) == 4 and not name.startswith("lin"):
      w *= 10 * np.sqrt(2 / np.prod(shape[1:]))
    weights[name] = w.astype("f")
  a, b = rng.uniform(-1, 1, (2, 2, 20, 20, 3)).astype("f")
  d = lpips.distance(weights, pooling=pooling, resize=36)  # 36 -> 18 -> 9 -> 4 -> 2: one odd side
  value, grad = jax.jit(jax.value_and_grad(lambda a: d(a, jnp.asarray(b)).sum()))(a)
  nchw = lambda x: torch.tensor(x).permute(0, 3, 1, 2)
  a = nchw(a).requires_grad_()
  expected = torch_lpips(weights, a, nchw(b), pooling, 36).sum()
  expected.backward()
  assert expected > 0.1
  np.testing.assert_allclose(value, expected.detach(), rtol=1e-4)
  expected = a.grad.permute(0, 2, 3, 1)
  np.testing.assert_allclose(grad, expected, atol=1e-3 * float(expected.abs().max()))
