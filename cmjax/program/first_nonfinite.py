"""Where a value of a program stops being finite."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from cmjax.base import param_names
from cmjax.program.equations import evaluate


class Found(NamedTuple):
  """The first value that is not finite."""

  where: str  # "the argument params/net/fc_in/kernel", "DDPMpp/enc/8x8_block0/conv0"
  what: str  # "nan" or "inf"
  operation: str  # the primitive; empty for an argument
  shape: tuple[int, ...]
  after: "Found | None" = None  # of a nan: the first inf, where there was one before

  def __str__(self):
    by = f" ({self.operation})" if self.operation else ""
    text = f"the first {self.what} is in {self.where}{by}, of shape {list(self.shape)}"
    return f"{text}; before that, {self.after}" if self.after else text


class _Stop(Exception):
  def __init__(self, found: Found):
    self.found = found


def first_nonfinite(fn: Callable[..., Any], **arguments: Any) -> Found | None:
  """The first nan that fn(**arguments) computes, or else the first inf; None if all is finite.

  An infinity that comes to nothing (a mask, log(0) that is not selected) is no fault where the
  result is finite; so ask only about a result that is not.

  Args:
    fn: a function of arrays, as it would be jitted.
    **arguments: pytrees, which are looked at first, by their names.
  """
  for name, leaf in param_names.by_name(arguments).items():
    if what := _trouble(leaf):
      return Found(f"the argument {name}", what, "", leaf.shape)
  infinite: list[Found] = []

  def visit(place, primitive, outputs):
    for x in outputs:
      if what := _trouble(x):
        found = Found(place, what, primitive, x.shape)
        if what == "nan":
          raise _Stop(found._replace(after=infinite[0] if infinite else None))
        infinite.append(found)

  try:
    evaluate(lambda arguments: fn(**arguments), visit, arguments)
  except _Stop as stop:
    return stop.found
  return infinite[0] if infinite else None


def _trouble(x: Any) -> str:
  """nan, inf or nothing."""
  if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating) or not x.size:
    return ""
  if jnp.isfinite(x).all():
    return ""
  return "nan" if jnp.isnan(x).any() else "inf"
