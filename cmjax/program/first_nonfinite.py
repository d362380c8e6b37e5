"""A program equation by equation, outside of `jit`: where a value stops being finite.

Each equation knows which module it comes from (networks name what they call, see
`networks.layers.Module`) and whether it is of the backward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import (
  ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage]
  Jaxpr,
  Literal,
)

from cmjax.base import param_names

# place, primitive, outputs of one equation; in the order of the program.
Visit = Callable[[str, str, Sequence[Any]], None]

# Equations that hold a program of their own, by the parameter that it is in.
_INNER = ("jaxpr", "call_jaxpr")
_CALLS = (
  *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "remat"),
  *("custom_jvp_call", "custom_vjp_call"),
)


def evaluate(fn: Callable[..., Any], visit: Visit, *args: Any) -> None:
  """Computes fn(*args) one equation at a time, and shows each to `visit`.

  Loops are gone through iteration by iteration; rematerialisation and custom derivatives are only
  looked into. Arrays may be traced.
  """
  closed = jax.make_jaxpr(fn)(*args)
  _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), "", visit)


def _evaluate(
  jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], scope: str, visit: Visit
) -> list[Any]:
  values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
  read = lambda v: v.val if isinstance(v, Literal) else values[v]
  last_use = {
    v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not isinstance(v, Literal)
  }
  kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
  for i, eqn in enumerate(jaxpr.eqns):
    stack = "/".join(part for part in (scope, str(eqn.source_info.name_stack)) if part)
    outputs = _apply(eqn, [read(v) for v in eqn.invars], stack, visit)
    values |= zip(eqn.outvars, outputs, strict=True)
    for v in eqn.invars:
      if not isinstance(v, Literal) and last_use[v] == i and v not in kept:
        values.pop(v, None)
  return [read(v) for v in jaxpr.outvars]


def _apply(eqn: Any, args: list[Any], stack: str, visit: Visit) -> Sequence[Any]:
  name = eqn.primitive.name
  inner = next((eqn.params[key] for key in _INNER if key in eqn.params), None)
  if inner is not None and name in _CALLS:
    return _evaluate(*_open(inner), args, stack, visit)
  if name == "scan":
    return _scan(eqn, args, stack, visit)
  bound = eqn.primitive.get_bind_params(eqn.params)
  functions, params = bound if isinstance(bound, tuple) else ((), bound)  # before jax 0.12: both
  with eqn.ctx.manager:
    outputs = eqn.primitive.bind(*functions, *args, **params)
  outputs = outputs if eqn.primitive.multiple_results else [outputs]
  visit(_place(stack), name, outputs)
  return outputs


def _open(inner: Any) -> tuple[Jaxpr, Sequence[Any]]:
  return (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())


def _scan(eqn: Any, args: list[Any], stack: str, visit: Visit) -> list[Any]:
  jaxpr, body_consts = _open(eqn.params["jaxpr"])
  length, backwards = eqn.params["length"], eqn.params["reverse"]
  # What has one axis less inside is a slice of each iteration: so in every version of JAX.
  sliced = lambda outer, inner: len(outer.aval.shape) > len(inner.aval.shape)
  num_inputs = sum(map(sliced, eqn.invars, jaxpr.invars))
  num_carry = len(eqn.outvars) - sum(map(sliced, eqn.outvars, jaxpr.outvars))
  num_consts = len(args) - num_inputs - num_carry
  consts, inputs = args[:num_consts], args[num_consts + num_carry :]
  carry = args[num_consts : num_consts + num_carry]
  collected: list[Any] = [None] * length
  for i in reversed(range(length)) if backwards else range(length):
    each = [*consts, *carry, *(x[i] for x in inputs)]
    outputs = _evaluate(jaxpr, body_consts, each, f"{stack}[{i}]", visit)
    carry, collected[i] = outputs[:num_carry], outputs[num_carry:]
  return [*carry, *(jnp.stack(ys) for ys in zip(*collected, strict=True))]


def _place(stack: str) -> str:
  """transpose(jvp(enc/block))/conv0 as "enc/block/conv0, in the backward pass"."""
  backward = "transpose(" in stack
  for mark in ("transpose(", "jvp(", "vmap(", ")", "rematted_computation", "checkpoint"):
    stack = stack.replace(mark, "")
  place = "/".join(name for name in stack.split("/") if name) or "the loss"
  return f"{place}, in the backward pass" if backward else place


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
