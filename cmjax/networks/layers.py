"""What the networks are built of: linear maps, convolutions, norms, dropout.

Images are [b, h, w, c] and kernels HWIO. Every layer works in the dtype of what it is given: which
dtype that is, `adapters.border` decides.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.custom_derivatives import linear_call
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Float

from cmjax import embeddings
from cmjax.types import Cond, Time


class Module(nnx.Module):
  """An nnx.Module whose calls have its name in the program, as `name_modules` gave it.

  Profilers and error messages (`nonfinite`) then say enc/8x8_block0/conv0, and not convolution 7.
  """

  scope = ""

  @property
  def inputs(self) -> tuple[str, ...]:
    """What a network reads of cond beside the label: what it was built with."""
    return tuple(name for name in ("guidance", "segment") if getattr(self, name, False))

  def __init_subclass__(cls, **kwargs: Any):
    super().__init_subclass__(**kwargs)
    call = vars(cls).get("__call__")
    if call is None:
      return

    @functools.wraps(call)
    def scoped(self, *args, **kwargs):
      with jax.named_scope(self.scope or type(self).__name__):
        return call(self, *args, **kwargs)

    cls.__call__ = scoped  # pyright: ignore[reportAttributeAccessIssue]


def name_modules(root: nnx.Module) -> None:
  """Gives each module below `root` its path as its name, from the nearest one that calls it."""
  paths = {path: m for path, m in nnx.iter_modules(root) if isinstance(m, Module)}
  for path, module in paths.items():
    above = max((n for n in range(len(path)) if path[:n] in paths), default=0)
    module.scope = "/".join(map(str, path[above:])) if path else type(module).__name__


def xavier_uniform(key: Array, shape: tuple[int, ...], gain: float = 1.0) -> Array:
  """gain * U(-a, a) with a = sqrt(6 / (fan_in + fan_out)), in float32; a gain of 0 gives zeros."""
  *window, cin, cout = shape
  limit = math.sqrt(6 / (math.prod(window) * (cin + cout)))
  # Drawn flat: the same numbers, but XLA compiles a 4-D draw on CPU 10 to 50 times as slowly.
  flat = jax.random.uniform(key, (math.prod(shape),), jnp.float32, -limit, limit)
  return gain * flat.reshape(shape)


def kaiming_uniform(
  key: Array, shape: tuple[int, ...], gain: float = 1.0, *, fan_in: int | None = None
) -> Array:
  """gain * U(-a, a) with a = sqrt(3 / fan_in), in float32; a gain of 0 gives zeros.

  `fan_in` is that of the kernel: of `shape` itself, unless it is given, as for a bias.
  """
  limit = math.sqrt(3 / (fan_in or math.prod(shape[:-1])))
  flat = jax.random.uniform(key, (math.prod(shape),), jnp.float32, -limit, limit)
  return gain * flat.reshape(shape)


def standard_normal(key: Array, shape: tuple[int, ...], gain: float = 1.0) -> Array:
  """gain * N(0, 1), in float32."""
  return gain * jax.random.normal(key, (math.prod(shape),), jnp.float32).reshape(shape)


# How a kernel starts. Biases start at 0, but with "kaiming" they are drawn as the kernel is.
INITS = {"xavier": xavier_uniform, "kaiming": kaiming_uniform, "normal": standard_normal}


def _first_bias(init: str, kernel_shape: tuple[int, ...], gain: float, rngs: nnx.Rngs) -> Array:
  *fan_in, cout = kernel_shape
  if init != "kaiming":
    return jnp.zeros(cout)
  return kaiming_uniform(rngs.params(), (cout,), gain, fan_in=math.prod(fan_in))


def along_last(a: Array, like: Array) -> Array:
  """A vector [c] with leading axes of size 1, so that it broadcasts against `like` [..., c]."""
  return a.reshape((1,) * (like.ndim - 1) + a.shape)


class Linear(Module):
  """y = x W + b over the last axis, with W of shape [in, out].

  Args:
    cin: width of the input.
    cout: width of the output.
    use_bias: whether there is a b.
    gain: factor on the initial values; 0 makes the layer start as the zero map.
    init: how it starts, a key of `INITS`.
    rngs: where the initial values come from.
  """

  def __init__(
    self,
    cin: int,
    cout: int,
    *,
    use_bias: bool = True,
    gain: float = 1.0,
    init: str = "xavier",
    rngs: nnx.Rngs,
  ):
    shape = (cin, cout)
    self.kernel = nnx.Param(INITS[init](rngs.params(), shape, gain))
    self.bias = nnx.Param(_first_bias(init, shape, gain, rngs)) if use_bias else None

  def __call__(self, x: Float[Array, "*b cin"]) -> Float[Array, "*b cout"]:
    """Maps the last axis from `cin` to `cout`."""
    y = jnp.matmul(x, self.kernel[...])
    return y if self.bias is None else y + along_last(self.bias[...], y)


class Fourier(Module):
  """`embeddings.fourier` of t, with frequencies drawn once from scale N(0, 1) and never trained.

  They are a parameter, so that checkpoints and averages have them, behind a stop_gradient, so that
  their gradient is exactly 0 (as in the code of Song et al. 2023). An optimizer with weight decay
  would have to leave them out.

  Args:
    channels: width of the embedding; even and at least 2.
    scale: standard deviation of the frequencies; positive.
    rngs: where the frequencies come from.

  Raises:
    ValueError: for another width or scale.
  """

  def __init__(self, channels: int, scale: float, *, rngs: nnx.Rngs):
    if channels < 2 or channels % 2:
      raise ValueError(f"A Fourier embedding needs an even number of channels, got {channels}.")
    if not 0 < scale < math.inf:
      raise ValueError(f"fourier_scale={scale} must be positive: 16 is EDM's and CM's, 0.02 iCT's.")
    self.freqs = nnx.Param(scale * jax.random.normal(rngs.params(), (channels // 2,), jnp.float32))

  def __call__(self, t: Time) -> Float[Array, "b n"]:
    """All cosines, then all sines."""
    return embeddings.fourier(t, jax.lax.stop_gradient(self.freqs[...]))


# Taps of the low-pass filter before a halving of the resolution, and after a doubling.
BOX, BINOMIAL = (1, 1), (1, 3, 3, 1)


def check_fir(taps: tuple[int, ...]) -> None:
  """Raises ValueError for taps that cannot be normalised, or halve and double to other sizes."""
  if len(taps) < 2 or len(taps) % 2 or not sum(taps) > 0:
    raise ValueError(
      f"fir={tuple(taps)} must be an even number of taps with a positive sum: (1, 1) takes means "
      "of 2 x 2 squares (DDPM++, ADM), (1, 3, 3, 1) is NCSN++'s."
    )


def downsample(
  x: Float[Array, "b h w c"], taps: tuple[int, ...] = BOX, *, pad: int | None = None
) -> Float[Array, "b h2 w2 c"]:
  """Every second value of x filtered with `taps` along both axes; with (1, 1) 2 x 2 means.

  Args:
    x: images.
    taps: of the filter; it is divided by its sum.
    pad: zeros around x; by default as many as make the result half as large.
  """
  if tuple(taps) == BOX:
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
  n = len(taps)
  pad = (n - 1) // 2 if pad is None else pad
  for axis in (1, 2):
    padded = _pad(x, axis, pad)
    x = _filter(padded, axis, taps, (padded.shape[axis] - n) // 2 + 1, stride=2)
  return x


def upsample(x: Float[Array, "b h w c"], taps: tuple[int, ...] = BOX) -> Float[Array, "b h2 w2 c"]:
  """x with zeros in between, filtered along both axes: the transpose of `downsample`, times 4.

  With (1, 1) each pixel becomes a 2 x 2 square.
  """
  if tuple(taps) == BOX:
    b, h, w, c = x.shape
    squares = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return squares.reshape(b, 2 * h, 2 * w, c)
  for axis in (1, 2):
    spread = _pad(x, axis, len(taps) // 2, between=1)
    x = 2 * _filter(spread, axis, taps[::-1], 2 * x.shape[axis], stride=1)
  return x


def _pad(x: Array, axis: int, edge: int, between: int = 0) -> Array:
  """x with `edge` zeros at both ends of an axis, and `between` after each value but the last."""
  widths = [(edge, edge, between) if i == axis else (0, 0, 0) for i in range(x.ndim)]
  return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)


def _filter(x: Array, axis: int, taps: tuple[int, ...], size: int, stride: int) -> Array:
  """sum_i taps[i] x[i + stride m] / sum(taps) for m < size, by shifts, which every device fuses."""
  last = stride * (size - 1) + 1
  cuts = (jax.lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(len(taps)))
  terms = ((k / sum(taps)) * cut for k, cut in zip(taps, cuts, strict=True))
  return functools.reduce(jnp.add, terms)


def along_batch(x: Array) -> Array:
  """x itself, laid out along its first axis over all devices of the mesh that is set, if any.

  What a network computes stays where its sample is. Left to themselves, XLA's partitioners also
  split activations the way that sharded weights are, and move them back and forth. (The mesh is
  that of `jax.set_mesh` around the compilation; where it does not divide the batch, as it comes.)
  """
  mesh = _mesh()
  if mesh is None or len(x) % mesh.size:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def whole(params: Any) -> Any:
  """The same weights, each whole on every device of the mesh that is set, if any.

  To be called where they are used, inside of what is rematerialised: a device then has the weights
  of one block at a time. Otherwise XLA may split the block's products as its weights are split, and
  sum activations over the devices, which are many times larger.
  """
  if _mesh() is None:
    return params
  # Of the gradient nothing is said: the transpose of a constraint would make it whole too.
  gather = lambda _, w: jax.lax.with_sharding_constraint(w, PartitionSpec())
  return jax.tree.map(lambda w: linear_call(gather, lambda _, g: g, (), w), params)


def _mesh() -> Any:
  """The mesh of several devices that is set, if the compiler may choose layouts on it."""
  mesh = jax.sharding.get_abstract_mesh()
  auto = all(kind == AxisType.Auto for kind in mesh.axis_types)
  return None if mesh.empty or not auto or mesh.size == 1 else mesh


def resample(
  x: Float[Array, "b h w c"], kind: str, taps: tuple[int, ...] = BOX
) -> Float[Array, "b h2 w2 c"]:
  """x ("keep"), or at half ("down") or twice ("up") the resolution."""
  if kind == "keep":
    return x
  return downsample(x, taps) if kind == "down" else upsample(x, taps)


class Conv(Module):
  """A square convolution with "same" padding, after an optional change of resolution by 2.

  Args:
    cin: channels of the input.
    cout: channels of the output.
    size: side of the kernel, odd.
    resample: "keep", "down" or "up", before the convolution; or "fused_down", after it: the
      convolution is then padded by what the filter needs as well, and the filter by nothing.
    fir: taps of the filter that changes the resolution.
    gain: factor on the initial values; 0 makes the layer start as the zero map.
    init: how it starts, a key of `INITS`.
    rngs: where the initial values come from.
  """

  def __init__(
    self,
    cin: int,
    cout: int,
    size: int,
    *,
    resample: str = "keep",
    fir: tuple[int, ...] = BOX,
    gain: float = 1.0,
    init: str = "xavier",
    rngs: nnx.Rngs,
  ):
    shape = (size, size, cin, cout)
    self.kernel = nnx.Param(INITS[init](rngs.params(), shape, gain))
    self.bias = nnx.Param(_first_bias(init, shape, gain, rngs))
    self.resample, self.fir = resample, tuple(fir)

  def __call__(self, x: Float[Array, "b h w cin"]) -> Float[Array, "b h2 w2 cout"]:
    """Resamples, convolves and adds the bias."""
    kernel = self.kernel[...]
    if self.resample == "fused_down":
      pad = kernel.shape[0] // 2 + (len(self.fir) - 1) // 2
      y = downsample(_convolve(x, kernel, [(pad, pad)] * 2), self.fir, pad=0)
    else:
      y = _convolve(resample(x, self.resample, self.fir), kernel, "SAME")
    return y + along_last(self.bias[...], y)


def _convolve(x: Array, kernel: Array, padding) -> Array:
  if kernel.shape[:2] == (1, 1) and padding == "SAME":
    return jnp.matmul(x, kernel[0, 0])
  axes = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=axes)


class GroupNorm(Module):
  """Group normalisation (Wu and He 2018) with min(32, c // 4) groups, and a scale and a bias.

  The statistics are in float32 at least. eps stands inside the root, so that the derivative
  exists where a group is constant.

  Args:
    channels: c.
    eps: added to the variance.

  Raises:
    ValueError: if the channels do not divide into their groups.
  """

  def __init__(self, channels: int, *, eps: float = 1e-6):
    self.groups, self.eps = min(32, channels // 4), eps
    if self.groups == 0 or channels % self.groups:
      raise ValueError(
        f"GroupNorm cannot divide {channels} channels into min(32, {channels} // 4) groups: "
        "take widths that are multiples of 4, and of 32 above 128."
      )
    self.scale = nnx.Param(jnp.ones(channels))
    self.bias = nnx.Param(jnp.zeros(channels))

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Normalises each sample's groups over pixels and the channels in the group."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = self._group_mean(wide.mean((1, 2)))[:, None, None, :]
    var = self._group_mean(jnp.square(wide - mean).mean((1, 2)))[:, None, None, :]
    # Sums over pixels keep the channels in the last axis, the fastest layout there is; that is
    # why the groups are formed afterwards, on arrays of one number per channel.
    factor = jax.lax.rsqrt(var + self.eps) * along_last(self.scale[...], wide)
    return ((wide - mean) * factor + along_last(self.bias[...], wide)).astype(x.dtype)

  def _group_mean(self, a: Array) -> Array:
    """The mean over the channels of each group, written back to each channel: [b, c] -> [b, c]."""
    per_group = a.reshape(a.shape[0], self.groups, -1)
    mean = per_group.mean(-1, keepdims=True)
    return jnp.broadcast_to(mean, per_group.shape).reshape(a.shape)


def pnorm(a: Float[Array, "*b c"], *, eps: float = 1e-8) -> Float[Array, "*b c"]:
  """a / sqrt(mean_c(a^2) + eps): pixel normalisation (Karras et al. 2018), over the last axis."""
  return a * jax.lax.rsqrt(jnp.square(a).mean(-1, keepdims=True) + eps)


def modulate(
  h: Float[Array, "*b c"], scale: Array, shift: Array | None, *, bounded: bool
) -> Float[Array, "*b c"]:
  """A normalised h with a scale and a shift that broadcast against it, in the dtype of h.

  h (1 + scale) + shift; or `bounded`, h pnorm(scale) + pnorm(shift): sCM's adaptive double
  normalisation (arXiv 2410.11081, sec. 4.1), with scale and not 1 + scale. Without a shift, the
  first term alone.
  """
  h = h * (pnorm(scale) if bounded else 1 + scale).astype(h.dtype)
  if shift is None:
    return h
  return h + (pnorm(shift) if bounded else shift).astype(h.dtype)


def check_dropout(rate: float) -> None:
  """Raises ValueError for a dropout rate outside [0, 1)."""
  if not 0 <= rate < 1:
    raise ValueError(f"dropout={rate} is the share of values set to 0: it must be in [0, 1).")


def dropout(x: Array, rate: float, key: Array | None) -> Array:
  """Zeroes a share `rate` of x and divides the rest by 1 - rate; nothing without a key."""
  if key is None or rate == 0:
    return x
  # Flat for the sake of the compiler, as in `xavier_uniform`.
  # The rate's dtype is that of the draw: with float64 switched on the mask would be another.
  keep = jax.random.bernoulli(key, jnp.float32(1 - rate), (x.size,)).reshape(x.shape)
  return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def label_rows(cond: Cond, num_classes: int, *, scaled: bool = True) -> Float[Array, "b n"]:
  """One-hot rows of cond["label"], times sqrt(num_classes) so that their mean square is 1.

  Not `scaled`, plain one-hot rows, as ADM reads them.

  A label of -1 (as any outside 0 .. num_classes - 1) gives a row of zeros: no condition.

  Raises:
    ValueError: while tracing, if there is no label or it is not a vector of integers.
  """
  if "label" not in cond:
    raise ValueError(
      f"A network with num_classes={num_classes} needs cond['label'], integers [b] with -1 for "
      f"'no condition'; got cond with the keys {sorted(cond)}."
    )
  label = cond["label"]
  if label.ndim != 1 or not jnp.issubdtype(label.dtype, jnp.integer):
    raise ValueError(f"cond['label'] must be integers [b]; got {label.dtype}{list(label.shape)}.")
  rows = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
  return math.sqrt(num_classes) * rows if scaled else rows


def condition_rows(cond: Cond, name: str, t: Time, channels: int) -> Float[Array, "b n"]:
  """The positional embedding of cond[name], one number per sample, for a linear layer to map.

  So sCM reads the scale of the guidance (arXiv 2410.11081), and so do we the angle at
  which a sample's segment starts.

  Args:
    cond: what the network is conditioned on.
    name: "guidance" or "segment", also the name of the network's option.
    t: the network's times, for their shape.
    channels: width of the embedding.

  Raises:
    ValueError: while tracing, if cond has no such entry or it is not one number per sample.
  """
  if name not in cond:
    raise ValueError(
      f"A network with {name}=True needs cond[{name!r}], numbers [b]; got cond with the keys "
      f"{sorted(cond)}."
    )
  a = cond[name]
  if a.shape != t.shape or not jnp.issubdtype(a.dtype, jnp.floating):
    raise ValueError(
      f"cond[{name!r}] must be floating-point {list(t.shape)}, one per sample; got "
      f"{a.dtype}{list(a.shape)}."
    )
  return embeddings.positional(a, channels)
