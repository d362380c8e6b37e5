"""A part that a config names, as a Network: a class of any of the three libraries, or a factory."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import linen, nnx

from cmjax.networks.adapters.equinox_modules import from_equinox
from cmjax.networks.adapters.linen_modules import from_linen
from cmjax.networks.adapters.nnx_modules import from_nnx
from cmjax.types import Network


def from_part(
  part: Any,
  make: Callable[..., Any],
  kwargs: Mapping[str, Any],
  *,
  shape: Sequence[int],
  num_classes: int,
  dtype: Any,
  matmul_precision: str | None,
) -> Network:
  """The network of an NNX, Linen or Equinox class, or of a factory of a `Network`.

  Args:
    part: the class or factory.
    make: calls it, with checked arguments.
    kwargs: its arguments, from the config.
    shape: of one sample.
    num_classes: of the labels; 0 without.
    dtype: of the body of the network.
    matmul_precision: of its products.
  """
  precision = dict(dtype=dtype, matmul_precision=matmul_precision)
  example = dict(shape=tuple(shape), num_classes=num_classes)
  if not inspect.isclass(part):
    network = make(**kwargs)
    if not isinstance(network, Network):
      raise ValueError(
        f"{part.__qualname__} gives a {type(network).__name__}. A factory of networks gives a "
        "cmjax.types.Network: networks.from_nnx, from_linen or from_equinox makes one of a module."
      )
    return network if network.at is None else network.at(**precision)
  if issubclass(part, nnx.Module):
    return from_nnx(functools.partial(make, **kwargs), **example, **precision)
  if issubclass(part, linen.Module):
    return from_linen(make(**kwargs), **example, **precision)
  if any(base.__module__.startswith("equinox") for base in part.__mro__):
    return from_equinox(functools.partial(make, **kwargs), **example, **precision)
  raise ValueError(
    f"{part.__qualname__} is a class of no library that cmjax knows. Take an NNX, Linen or Equinox "
    "module, or a function that gives a cmjax.types.Network."
  )
