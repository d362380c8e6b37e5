"""What EDM2 is built of: layers that keep the mean square of what passes through them at 1.

From Karras et al. 2024 (arXiv 2312.02696, section 2 and appendix B). No layer has a bias, every
weight is normalised where it is used, and sums, concatenations and activations are scaled. That a
normalised weight also stays at its norm in training is `optim.project`'s matter, never a layer's:
a forward pass changes nothing.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from cmjax.networks.layers import Module, standard_normal
from cmjax.types import Time

EPS = 1e-4  # added to a root mean square
SILU_RMS = 0.596  # root mean square of silu(x) for x ~ N(0, 1)


def normalize(x: Array, axis: int | Sequence[int] = -1) -> Array:
  """x / (1e-4 + sqrt(mean(x^2))), with the mean over `axis`.

  EDM2 adds its epsilon to the root, not inside. The root has no derivative where x is all zero;
  here it is 0 there, so the tangent is x'(t) / 1e-4 and not NaN. The mean and the root are in
  float32 at least, the division is in the dtype of x.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  axis = axis if isinstance(axis, int) else tuple(axis)
  square = jnp.mean(jnp.square(wide), axis, keepdims=True)
  zero = square == 0
  rms = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
  return x / (EPS + rms).astype(x.dtype)


def normalize_kernel(kernel: Float[Array, "*window cin cout"]) -> Float[Array, "*window cin cout"]:
  """A kernel with unit mean square towards each output channel (equation 66).

  Its fixed point is a root mean square of 1 - 1e-4.
  """
  return normalize(kernel, range(kernel.ndim - 1))


def mp_silu(x: Array) -> Array:
  """silu(x) / 0.596 (equation 81)."""
  return jax.nn.silu(x) / SILU_RMS


def mp_sum(a: Array, b: Array, t: float = 0.5) -> Array:
  """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (equation 88)."""
  return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Float[Array, "*b m"], b: Float[Array, "*b n"], t: float = 0.5) -> Array:
  """a and b side by side, b with the share t of the whole's influence (equation 103).

  With C = sqrt((m + n) / ((1 - t)^2 + t^2)): C (1 - t) / sqrt(m) a, then C t / sqrt(n) b.
  """
  m, n = a.shape[-1], b.shape[-1]
  whole = math.sqrt((m + n) / ((1 - t) ** 2 + t**2))
  left, right = whole * (1 - t) / math.sqrt(m), whole * t / math.sqrt(n)
  return jnp.concatenate([left * a, right * b], axis=-1)


class MPLinear(Module):
  """y = gain x W / sqrt(cin) over the last axis, with W normalised (equation 47).

  Args:
    cin: width of the input.
    cout: width of the output.
    rngs: where the initial W ~ N(0, 1) comes from.
  """

  def __init__(self, cin: int, cout: int, *, rngs: nnx.Rngs):
    self.kernel = nnx.Param(standard_normal(rngs.params(), (cin, cout)))

  def __call__(
    self, x: Float[Array, "*b cin"], gain: Array | float = 1.0
  ) -> Float[Array, "*b cout"]:
    """Maps the last axis, in the dtype of x."""
    return jnp.matmul(x, _used(self.kernel[...], gain, x))


class MPConv(Module):
  """A square convolution with "same" padding, normalised like `MPLinear`.

  Args:
    cin: channels of the input.
    cout: channels of the output.
    size: side of the kernel, odd.
    rngs: where the initial kernel, from N(0, 1), comes from.
  """

  def __init__(self, cin: int, cout: int, size: int, *, rngs: nnx.Rngs):
    self.kernel = nnx.Param(standard_normal(rngs.params(), (size, size, cin, cout)))

  def __call__(
    self, x: Float[Array, "b h w cin"], gain: Array | float = 1.0
  ) -> Float[Array, "b h w cout"]:
    """Convolves, in the dtype of x."""
    kernel = _used(self.kernel[...], gain, x)
    if kernel.shape[:2] == (1, 1):
      return jnp.matmul(x, kernel[0, 0])
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)


class MPFourier(Module):
  """sqrt(2) cos(f t + p) with random f ~ 2 pi scale N(0, 1) and p ~ 2 pi U(0, 1) (equation 75).

  Both are parameters behind a stop_gradient, as in `layers.Fourier`: checkpoints and averages have
  them, and they are never trained.

  Args:
    channels: width of the embedding.
    scale: of the frequencies; EDM2's bandwidth, 1.
    rngs: where f and p come from.

  Raises:
    ValueError: for a scale that is not positive.
  """

  def __init__(self, channels: int, scale: float = 1.0, *, rngs: nnx.Rngs):
    if not 0 < scale < math.inf:
      raise ValueError(f"fourier_scale={scale} must be positive: it is 1 in EDM2.")
    freqs = jax.random.normal(rngs.params(), (channels,), jnp.float32)
    self.freqs = nnx.Param(2 * math.pi * scale * freqs)
    phases = jax.random.uniform(rngs.params(), (channels,), jnp.float32)
    self.phases = nnx.Param(2 * math.pi * phases)

  def __call__(self, t: Time) -> Float[Array, "b n"]:
    """The embedding, in float32 at least."""
    t = t.astype(jnp.promote_types(t.dtype, jnp.float32))
    f, p = (jax.lax.stop_gradient(a[...]).astype(t.dtype)[None] for a in (self.freqs, self.phases))
    return math.sqrt(2) * jnp.cos(t[:, None] * f + p)


def _used(kernel: Array, gain: Array | float, x: Array) -> Array:
  """gain W / sqrt(fan_in), W normalised: the kernel that x meets, of L2 norm `gain` per output."""
  fan_in = math.prod(kernel.shape[:-1])
  return (normalize_kernel(kernel) * (gain / math.sqrt(fan_in))).astype(x.dtype)
