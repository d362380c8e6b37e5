"""The layers of the detectors, with the names and the layouts that PyTorch gives their tensors.

So the arrays in a file are the parameters, as they are: nothing is transposed or renamed on the
way, and a tensor that is missing can be named as its authors named it. Images are [n, h, w, c].
There is no training mode.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.types import Array


class Conv(nnx.Module):
  """A convolution without bias, or with one.

  Args:
    cin: channels of the input.
    cout: channels of the output.
    size: of the kernel, (height, width).
    stride: of both axes.
    padding: of zeros on either side of (height, width); or "SAME", as TensorFlow pads.
    use_bias: whether it has one.
  """

  def __init__(
    self,
    cin: int,
    cout: int,
    size: tuple[int, int],
    *,
    stride: int = 1,
    padding: tuple[int, int] | str = (0, 0),
    use_bias: bool = False,
  ):
    self.weight = nnx.Param(jnp.zeros((cout, cin, *size)))
    self.bias = nnx.Param(jnp.zeros(cout)) if use_bias else None
    self.stride = stride
    self.padding = padding if isinstance(padding, str) else tuple((p, p) for p in padding)

  def __call__(self, x: Array) -> Array:
    """Convolves, and adds the bias."""
    weight = self.weight[...]
    if weight.shape[2:] == (1, 1) and self.stride == 1:
      y = jnp.matmul(x, weight[:, :, 0, 0].T)
    else:
      y = jax.lax.conv_general_dilated(
        x, weight, (self.stride, self.stride), self.padding,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
      )  # fmt: skip
    return y if self.bias is None else y + self.bias[...][None, None, None]


class BatchNorm(nnx.Module):
  """Batch normalisation (Ioffe and Szegedy 2015) by the statistics of the training, over c."""

  def __init__(self, channels: int, *, eps: float):
    self.weight, self.bias = (nnx.Param(jnp.zeros(channels)) for _ in range(2))
    self.running_mean, self.running_var = (nnx.Param(jnp.zeros(channels)) for _ in range(2))
    self.eps = eps

  def __call__(self, x: Array) -> Array:
    """One factor and one shift a channel."""
    factor = self.weight[...] * jax.lax.rsqrt(self.running_var[...] + self.eps)
    shift = self.bias[...] - self.running_mean[...] * factor
    return x * factor[None, None, None] + shift[None, None, None]


class LayerNorm(nnx.Module):
  """Layer normalisation (Ba et al. 2016) of [n, tokens, c] over c."""

  def __init__(self, channels: int, *, eps: float):
    self.weight, self.bias = (nnx.Param(jnp.zeros(channels)) for _ in range(2))
    self.eps = eps

  def __call__(self, x: Array) -> Array:
    """Normalises each token."""
    centred = x - x.mean(-1, keepdims=True)
    x = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
    return x * self.weight[...][None, None] + self.bias[...][None, None]


class Linear(nnx.Module):
  """y = W x + b over the last axis, with W of shape [out, in]."""

  def __init__(self, cin: int, cout: int):
    self.weight = nnx.Param(jnp.zeros((cout, cin)))
    self.bias = nnx.Param(jnp.zeros(cout))

  def __call__(self, x: Array, *, biased: bool = True) -> Array:
    """Maps the last axis; without b, if that is asked for."""
    y = jnp.matmul(x, self.weight[...].T)
    return y + self.bias[...].reshape((1,) * (y.ndim - 1) + (-1,)) if biased else y
