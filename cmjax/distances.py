"""How far two images are apart: the d(a, b) of discrete-time consistency losses.

Sums over all axes of one sample, as the papers write them (released code often takes means, which
differ by the number of dimensions). Each has a finite gradient also where a = b.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cmjax.base.ranges import Positive
from cmjax.types import Array, Data, Time

# a, b [b, *d] -> [b]
Distance = Callable[[Array, Array], Array]


def _sum(values: Data) -> Time:
  return jnp.sum(values.reshape(len(values), -1), -1)


def squared_l2() -> Distance:
  """||a - b||^2 (CM's l2)."""
  return lambda a, b: _sum((a - b) ** 2)


def l1() -> Distance:
  """||a - b||_1."""
  # The gradient of jnp.abs at 0 is 1; that of this is 0.
  return lambda a, b: _sum((a - b) * jax.lax.stop_gradient(jnp.sign(a - b)))


def l2(eps: Positive = 1e-8) -> Distance:
  """||a - b||, not squared (ECT on CIFAR-10), up to eps.

  The root itself has no gradient at a = b, so this is the pseudo-Huber distance with a tiny c.

  Args:
    eps: below this norm the distance is quadratic.
  """
  if eps <= 0:
    raise ValueError(f"eps={eps} must be positive: a plain root has no gradient at a = b.")
  return pseudo_huber(eps)


def pseudo_huber(c: Positive | None = None) -> Distance:
  """sqrt(||a - b||^2 + c^2) - c (iCT, section 3.3): one norm over the whole image.

  Applied to each pixel it is another distance; several ports do that, with this c.

  Args:
    c: where it turns from quadratic to linear. None: iCT's 0.00054 sqrt(D), D the dimensions of a
      sample (0.0299 for CIFAR-10). ECT takes 0.06 on ImageNet 64x64.
  """
  if c is not None and c <= 0:
    raise ValueError(f"c={c} must be positive: for the norm itself take `l2`.")

  def distance(a, b):
    squares = _sum((a - b) ** 2)
    width = 0.00054 * (a.size / len(a)) ** 0.5 if c is None else c
    # The same as root - c, without its cancellation where a is near b.
    return squares / (jnp.sqrt(squares + width**2) + width)

  return distance
