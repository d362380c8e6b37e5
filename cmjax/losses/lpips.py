"""LPIPS with the VGG16 backbone (Zhang et al. 2018): the distance of CM's best CD and CT runs.

Mathematics only: the weights are an argument, in the layouts and under the names that PyTorch gives
them. They are not ours to ship. From your own copies of torchvision's VGG16 and of the linear
layers in the LPIPS repository (lpips/weights/v0.1/vgg.pth), once, where PyTorch is installed:

    import numpy as np, torch, torchvision
    vgg = torchvision.models.vgg16(weights="IMAGENET1K_V1").features.state_dict()
    lin = torch.load("vgg.pth", map_location="cpu", weights_only=True)
    arrays = {f"features.{name}": a for name, a in vgg.items()} | dict(lin)
    np.savez("lpips_vgg16.npz", **{name: a.numpy() for name, a in arrays.items()})

and then `weights = dict(np.load("lpips_vgg16.npz", allow_pickle=False))`. Both networks come from
ImageNet, as does the FID detector: an FID of a model trained with LPIPS is biased by it.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.base.ranges import Size
from cmjax.types import Array

# Of each stage, torchvision's indices of its convolutions and their width; pooling is in between.
STAGES = (
  ((0, 2), 64),
  ((5, 7), 128),
  ((10, 12, 14), 256),
  ((17, 19, 21), 512),
  ((24, 26, 28), 512),
)
# Mean and std of ImageNet's channels, for images in [-1, 1].
MEAN, STD = 2 * np.array([0.485, 0.456, 0.406]) - 1, 2 * np.array([0.229, 0.224, 0.225])
POOLINGS = {"average": jnp.mean, "max": jnp.max}
# Inside the root, unlike elsewhere: where no channel is active its derivatives are still finite.
NORM_EPS = 1e-10
SMALLEST = 2 ** (len(STAGES) - 1)


def shapes() -> dict[str, tuple[int, ...]]:
  """The name and shape of every array of the weights, in PyTorch's layouts (OIHW)."""
  expected, cin = {}, 3
  for k, (convs, width) in enumerate(STAGES):
    for n in convs:
      expected[f"features.{n}.weight"] = (width, cin, 3, 3)
      expected[f"features.{n}.bias"] = (width,)
      cin = width
    expected[f"lin{k}.model.1.weight"] = (1, width, 1, 1)
  return expected


def check(weights: Mapping[str, Array | np.ndarray]) -> None:
  """Raises ValueError for weights with an array that is missing or has another shape.

  Others, such as the classifier of VGG16, may be there and are not read.
  """
  expected = shapes()
  errors = [f"{name} {shape} is missing" for name, shape in expected.items() if name not in weights]
  errors += [
    f"{name} is {np.shape(weights[name])}, not {shape}"
    for name, shape in expected.items()
    if name in weights and np.shape(weights[name]) != shape
  ]
  if errors:
    raise ValueError(
      f"These are not the weights of LPIPS with VGG16 ({len(errors)} of {len(expected)} arrays): "
      f"{'; '.join(errors)}. The docstring of cmjax.losses.lpips says how to make them."
    )


def distance(
  weights: Mapping[str, Array | np.ndarray], *, pooling: str, resize: Size | None = 224
) -> Callable[[Array, Array], Array]:
  """d(a, b) = sum over five stages of mean over pixels of lin . (y_a - y_b)^2, y = unit features.

  The two official implementations of CM differ in the VGG: pooling="max" is that of the JAX code
  (CIFAR-10) and of the original LPIPS, "average" that of the PyTorch code (ImageNet-64, LSUN). Both
  look at 224 x 224; on 256 x 256 the latter does not resize.

  At a == b distance and gradient are 0 up to rounding, and everything is differentiable twice, in
  forward mode too. Float32 at least, whatever the images are.

  Args:
    weights: arrays by the names of `shapes`.
    pooling: "max" or "average".
    resize: side to which images are resized first, bilinearly; None leaves them as they are.

  Returns:
    (a, b) -> [b] for images [b, h, w, 3] in [-1, 1].

  Raises:
    ValueError: for weights that do not fit, another pooling, a side below 16; from the distance,
      while tracing, for images without three channels or, without `resize`, smaller than 16.
  """
  check(weights)
  if pooling not in POOLINGS:
    raise ValueError(
      f"Unknown pooling {pooling!r}. Choose from: {', '.join(POOLINGS)}: the official codes of CM "
      "have both."
    )
  if resize is not None and resize < SMALLEST:
    raise ValueError(f"resize={resize} is below {SMALLEST}, which four poolings need; try 224.")
  arrays = {name: jnp.asarray(weights[name]) for name in shapes()}

  def lpips(a, b):
    a, b = (_prepare(x, resize) for x in (a, b))
    total = jnp.zeros(len(a), a.dtype)
    pairs = zip(_features(arrays, a, pooling), _features(arrays, b, pooling), strict=True)
    for k, (y_a, y_b) in enumerate(pairs):
      lin = arrays[f"lin{k}.model.1.weight"][0, :, 0, 0].astype(a.dtype)
      total += jnp.einsum("bhwc,c->b", jnp.square(y_a - y_b), lin) / (y_a.shape[1] * y_a.shape[2])
    return total

  return lpips


def _prepare(x: Array, resize: Size | None) -> Array:
  """Images in [-1, 1] at the size and with the moments that VGG16 was trained for."""
  if x.ndim != 4 or x.shape[-1] != 3:
    raise ValueError(f"LPIPS is for images [b, h, w, 3], got {x.shape}: repeat a single channel.")
  if resize is None and min(x.shape[1:3]) < SMALLEST:
    raise ValueError(f"Images {x.shape} are smaller than {SMALLEST} x {SMALLEST}: set resize=224.")
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if resize is not None:
    x = jax.image.resize(x, (len(x), resize, resize, 3), "bilinear")
  mean, std = (jnp.asarray(m, x.dtype).reshape(1, 1, 1, 3) for m in (MEAN, STD))
  return (x - mean) / std


def _features(arrays: Mapping[str, Array], x: Array, pooling: str) -> list[Array]:
  """The output of the last ReLU of each stage, of unit length along the channels."""
  features = []
  for k, (convs, _) in enumerate(STAGES):
    if k:
      b, h, w, c = x.shape
      squares = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
      x = POOLINGS[pooling](squares, axis=(2, 4))
    for n in convs:
      kernel, bias = (arrays[f"features.{n}.{part}"].astype(x.dtype) for part in ("weight", "bias"))
      axes = ("NHWC", "OIHW", "NHWC")
      x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)
      x = jax.nn.relu(x + bias.reshape(1, 1, 1, -1))
    length_squared = jnp.square(x).sum(-1, keepdims=True)
    features.append(x * jax.lax.rsqrt(length_squared + NORM_EPS))
  return features
