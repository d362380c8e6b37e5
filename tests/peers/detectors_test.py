"""The detectors against PyTorch's: the same random weights, the same images, the same features.

Inception-v3 and its resizes are those of torch-fidelity, pytorch-fid and clean-fid, EfficientNet
that of the package its weights come with; DINOv2 is written out here, after the paper and the
names in its file. `make peers` installs them.
"""

import functools
import importlib
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from cmjax.metrics import detectors
from cmjax.metrics.detectors import dinov2, weights
from helpers.detector_weights import random_weights

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make peers")
F = torch.nn.functional

# What the peers warn of when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def peer(module):
  """A module of a peer; imported in a test, where its warnings are let through."""
  try:
    return importlib.import_module(module)
  except ImportError:
    pytest.skip(f"{module} is not installed: make peers")


def images(n=2, height=32, width=48):
  """Smooth with some noise: photos rather than noise alone."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:height, :width][..., None] / 10
  waves = np.sin(y * rng.uniform(0, 3, (n, 1, 1, 3)) + x * rng.uniform(0, 3, (n, 1, 1, 3)))
  noisy = 128 + 90 * waves + 20 * rng.normal(size=waves.shape)
  return np.clip(noisy, 0, 255).astype(np.uint8)


def nchw(x):
  return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())


def assert_close(ours, theirs, rtol=1e-4):
  """Each row to rtol of its length."""
  theirs = theirs.detach().numpy()
  assert ours.shape == theirs.shape
  error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
  assert error.max() < rtol, error


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  """name, variant, ... -> (the detector, its weights), from a file of random weights."""
  folder = tmp_path_factory.mktemp("weights")

  @functools.cache
  def state(name):
    tensors = random_weights(detectors.DETECTORS[name].module)
    weights.write(folder / f"{name}.npz", tensors)
    return tensors

  def load(name, variant):
    tensors = state(name)
    return detectors.load(name, folder / f"{name}.npz", variant=variant, batch_size=2), tensors

  return load


# --- Inception-v3 ---------------------------------------------------------------------------------


@functools.cache
def fidelity(folder):
  """torch-fidelity's network, and a list that its hook puts the spatial features into."""
  extractor = peer("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
  network = extractor(
    "inception-v3-compat", ["2048", "logits_unbiased", "logits"],
    feature_extractor_weights_path=str(folder / "inception.pth"),
  )  # fmt: skip
  seen = []
  network.Mixed_6d.branch1x1.register_forward_hook(lambda module, x, y: seen.append(y[:, :7]))
  return network, seen


@pytest.fixture(scope="module")
def inception_file(loaded, tmp_path_factory):
  folder = tmp_path_factory.mktemp("torch")
  _, tensors = loaded("inception", "tf_legacy")
  torch.save({k: torch.tensor(a) for k, a in tensors.items()}, folder / "inception.pth")
  return folder


def clean(x):
  resizer = peer("cleanfid.resize").build_resizer("clean")
  return nchw(np.stack([resizer(image) for image in x]))


def stylegan(x):
  """As StyleGAN3's detector samples: shifted by the difference of the pixels' halves."""
  x, (height, width) = nchw(x).float(), x.shape[1:3]
  theta = torch.eye(2, 3)
  theta[0, 2] += 1 / width - 1 / 299
  theta[1, 2] += 1 / height - 1 / 299
  grid = F.affine_grid(theta[None].repeat(len(x), 1, 1), [len(x), 3, 299, 299], align_corners=False)
  return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


@pytest.mark.parametrize("variant, fit", [("tf_legacy", None), ("clean", clean), ("edm", stylegan)])
def test_inception_is_torch_fidelitys(loaded, inception_file, monkeypatch, variant, fit):
  x = images()
  network, seen = fidelity(inception_file)
  if fit is not None:
    module = peer("torch_fidelity.feature_extractor_inceptionv3")
    resized = fit(x)
    monkeypatch.setattr(
      module, "interpolate_bilinear_2d_like_tensorflow1x", lambda *a, **k: resized
    )
  features, unbiased, biased = network(nchw(x))
  detector, tensors = loaded("inception", variant)
  outputs = detector.apply(x)
  assert_close(outputs.features, features)
  assert_close(outputs.logits, unbiased)
  assert_close(outputs.logits + tensors["fc.bias"], biased)
  assert_close(outputs.spatial, seen[-1].permute(0, 2, 3, 1).reshape(2, -1))
  # Random images, and features that tell them apart.
  assert np.linalg.norm(outputs.features[0] - outputs.features[1]) > 0.01 * np.linalg.norm(features)


def test_inception_is_pytorch_fids(loaded, inception_file, monkeypatch):
  module = peer("pytorch_fid.inception")
  state = torch.load(inception_file / "inception.pth", weights_only=True)
  monkeypatch.setattr(module, "load_state_dict_from_url", lambda *a, **k: state)
  network = module.InceptionV3([3]).eval()
  x = images()
  (features,) = network(nchw(x).float() / 255)
  assert_close(loaded("inception", "pytorch_fid")[0].apply(x).features, features[..., 0, 0])


def test_variants_of_inception_differ(loaded):
  x = images()
  outputs = {v: loaded("inception", v)[0].apply(x).features for v in ("tf_legacy", "edm", "clean")}
  far = lambda a, b: np.linalg.norm(outputs[a] - outputs[b]) / np.linalg.norm(outputs[b])
  assert far("edm", "tf_legacy") < 1e-4 < 10 * 1e-4 < far("clean", "tf_legacy")


# --- DINOv2 ---------------------------------------------------------------------------------------


def torch_dinov2(state, x, *, depth, num_heads):
  """The class token of images [n, 3, 224, 224]."""
  w = {name: torch.tensor(a) for name, a in state.items()}
  width = w["cls_token"].shape[-1]
  norm = lambda x, name: F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)
  linear = lambda x, name: F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])
  patches = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
  n, side = len(x), patches.shape[-1]
  grid = w["pos_embed"][:, 1:].reshape(1, 37, 37, width).permute(0, 3, 1, 2)
  scale = (side + 0.1) / 37
  grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
  positions = torch.cat([w["pos_embed"][:, :1], grid.flatten(2).transpose(1, 2)], 1)
  x = torch.cat([w["cls_token"].expand(n, 1, width), patches.flatten(2).transpose(1, 2)], 1)
  x = x + positions
  for i in range(depth):
    block = f"blocks.{i}"
    qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
    q, k, v = qkv.reshape(n, -1, 3, num_heads, width // num_heads).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, -1, width)
    x = x + w[f"{block}.ls1.gamma"] * linear(y, f"{block}.attn.proj")
    y = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
    x = x + w[f"{block}.ls2.gamma"] * linear(y, f"{block}.mlp.fc2")
  return norm(x, "norm")[:, 0]


def antialiased(x):
  return F.interpolate(nchw(x).float(), (224, 224), mode="bicubic", antialias=True)


def pillow(x):
  resized = [Image.fromarray(a).resize((224, 224), Image.Resampling.BICUBIC) for a in x]
  return nchw(np.stack([np.asarray(a) for a in resized])).float()


def tensorflow(x):
  resize = peer("torch_fidelity.interpolate_compat_tensorflow")
  return resize.interpolate_bilinear_2d_like_tensorflow1x(
    nchw(x).float(), (224, 224), align_corners=False
  )


FITS = {"torch": antialiased, "pil": pillow, "torch_fidelity": tensorflow}


def compare_dinov2(module, state, path, variant, *, depth, num_heads):
  x = images(height=250, width=300)
  pretrained = detectors.DETECTORS["dinov2"]
  mean, std = (
    torch.tensor(v, dtype=torch.float32)[:, None, None]
    for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
  )
  normalised = (FITS[variant](x) / 255 - mean) / std
  expected = torch_dinov2(state, normalised, depth=depth, num_heads=num_heads)
  assert pretrained.module is module
  outputs = detectors.load("dinov2", path, variant=variant, batch_size=2).apply(x)
  assert_close(outputs.features, expected)
  assert outputs.spatial is None and outputs.logits is None


SHALLOW = functools.partial(dinov2.DINOv2, width=96, depth=2, num_heads=6)


@pytest.mark.parametrize("variant", FITS)
def test_dinov2_is_pytorchs(monkeypatch, tmp_path, variant):
  pretrained = dinov2.PRETRAINED._replace(module=SHALLOW, dim=96)
  monkeypatch.setitem(detectors.DETECTORS, "dinov2", pretrained)
  state = random_weights(SHALLOW)
  weights.write(tmp_path / "dinov2.npz", state)
  compare_dinov2(SHALLOW, state, tmp_path / "dinov2.npz", variant, depth=2, num_heads=6)


@pytest.mark.slow
def test_dinov2_at_its_full_size_is_pytorchs(tmp_path):
  module = dinov2.DINOv2
  state = random_weights(module)
  weights.write(tmp_path / "dinov2.npz", state)
  compare_dinov2(module, state, tmp_path / "dinov2.npz", "torch", depth=24, num_heads=16)


# --- EfficientNet-Lite0 ---------------------------------------------------------------------------


# Compiled for each size: the one is enough by default.
SIZES = pytest.mark.parametrize("variant", ["128", pytest.param("224", marks=pytest.mark.slow)])


def compare_efficientnet(detector, state, variant):
  x = images(height=32, width=32)
  size = int(variant)
  make = peer("efficientnet_lite_pytorch").EfficientNet.from_name
  network = make("efficientnet-lite0", image_size=size).eval()
  network.load_state_dict({name: torch.tensor(a) for name, a in state.items()})
  channel = lambda a: np.asarray(Image.fromarray(a).resize((size, size), Image.Resampling.BICUBIC))
  resized = [np.stack([channel(a.astype("f")) for a in np.moveaxis(i, -1, 0)]) for i in x]
  z = (torch.tensor(np.stack(resized)) - 127) / 128
  outputs = detector.apply(x)
  assert_close(outputs.features, network.extract_features(z).mean((2, 3)))
  assert_close(outputs.logits, network(z))


@SIZES
def test_efficientnet_is_pytorchs(loaded, variant):
  compare_efficientnet(*loaded("efficientnet_lite0", variant), variant)


@SIZES
def test_efficientnet_is_pytorchs_with_the_weights_that_were_trained(variant):
  folder = pathlib.Path(os.environ.get("CMJAX_DATA", "~/.cache/cmjax")).expanduser()
  path = folder / "efficientnet_lite0.npz"
  if not path.is_file():
    pytest.skip(f"{path} is not there: docs/guides/detectors.md says how to get it")
  detector = detectors.load("efficientnet_lite0", path, variant=variant, batch_size=2)
  with np.load(path, allow_pickle=False) as file:
    compare_efficientnet(detector, {name: file[name] for name in file}, variant)
