"""Programs equation by equation, outside of `jit`: what they compute on the way, or in float64.

Each equation knows which module it comes from (networks name what they call, see
`networks.layers.Module`) and whether it is of the backward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import (
  ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage]
  Jaxpr,
  Literal,
)

# place, primitive, outputs of one equation; in the order of the program.
Visit = Callable[[str, str, Sequence[Any]], None]
# equation, its inputs -> its outputs.
Compute = Callable[[Any, list[Any]], Sequence[Any]]

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
  _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), "", visit, _bind)


def _evaluate(
  jaxpr: Jaxpr,
  consts: Sequence[Any],
  args: Sequence[Any],
  scope: str,
  visit: Visit,
  compute: Compute,
) -> list[Any]:
  values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
  read = lambda v: v.val if isinstance(v, Literal) else values[v]
  last_use = {
    v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not isinstance(v, Literal)
  }
  kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
  for i, eqn in enumerate(jaxpr.eqns):
    stack = "/".join(part for part in (scope, str(eqn.source_info.name_stack)) if part)
    outputs = _apply(eqn, [read(v) for v in eqn.invars], stack, visit, compute)
    values |= zip(eqn.outvars, outputs, strict=True)
    for v in eqn.invars:
      if not isinstance(v, Literal) and last_use[v] == i and v not in kept:
        values.pop(v, None)
  return [read(v) for v in jaxpr.outvars]


def _apply(eqn: Any, args: list[Any], stack: str, visit: Visit, compute: Compute) -> Sequence[Any]:
  name = eqn.primitive.name
  inner = next((eqn.params[key] for key in _INNER if key in eqn.params), None)
  if inner is not None and name in _CALLS:
    return _evaluate(*_open(inner), args, stack, visit, compute)
  if name == "scan":
    return _scan(eqn, args, stack, visit, compute)
  outputs = compute(eqn, args)
  visit(_place(stack), name, outputs)
  return outputs


def _bind(eqn: Any, args: list[Any], **changes: Any) -> Sequence[Any]:
  """An equation computed, with some of its parameters changed."""
  bound = eqn.primitive.get_bind_params(eqn.params | changes)
  functions, params = bound if isinstance(bound, tuple) else ((), bound)  # before jax 0.12: both
  with eqn.ctx.manager:
    outputs = eqn.primitive.bind(*functions, *args, **params)
  return outputs if eqn.primitive.multiple_results else [outputs]


def _open(inner: Any) -> tuple[Jaxpr, Sequence[Any]]:
  return (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())


def _scan(eqn: Any, args: list[Any], stack: str, visit: Visit, compute: Compute) -> list[Any]:
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
    outputs = _evaluate(jaxpr, body_consts, each, f"{stack}[{i}]", visit, compute)
    carry, collected[i] = outputs[:num_carry], outputs[num_carry:]
  return [*carry, *(jnp.stack(ys) for ys in zip(*collected, strict=True))]


def _place(stack: str) -> str:
  """transpose(jvp(enc/block))/conv0 as "enc/block/conv0, in the backward pass"."""
  backward = "transpose(" in stack
  for mark in ("transpose(", "jvp(", "vmap(", ")", "rematted_computation", "checkpoint"):
    stack = stack.replace(mark, "")
  place = "/".join(name for name in stack.split("/") if name) or "the loss"
  return f"{place}, in the backward pass" if backward else place


# --- in float64 ---

_DTYPES = ("new_dtype", "dtype", "preferred_element_type")


def in_float64(fn: Callable[..., Any], *args: Any) -> Any:
  """fn(*args), every floating-point number on the way in float64, whatever dtype fn asks for.

  Random bits are drawn as before, so that the noise is that of fn, and what is float16 or bfloat16
  in it is no longer. The result is on the host.
  """
  with jax.enable_x64(False):
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
  with jax.enable_x64(True):
    wide = [_widened(jnp.asarray(x)) for x in jax.tree.leaves(args)]
    run = lambda wide: _evaluate(closed.jaxpr, closed.consts, wide, "", _see_nothing, _compute_wide)
    outputs = jax.device_get(jax.jit(run)(wide))
  return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def _see_nothing(place: str, primitive: str, outputs: Sequence[Any]) -> None:
  pass


def _is_float(dtype: Any) -> bool:
  return jnp.issubdtype(dtype, jnp.floating)


def _widened(x: Any) -> Any:
  # Of what is no array yet, a literal of the program, the dtype is said too.
  is_float = hasattr(x, "dtype") and _is_float(x.dtype)
  return jnp.asarray(x, np.float64) if is_float else x


def _compute_wide(eqn: Any, args: list[Any]) -> Sequence[Any]:
  name, params = eqn.primitive.name, eqn.params
  wide = [_widened(x) for x in args]
  again = lambda inner: (
    lambda *args: _evaluate(*_open(inner), list(args), "", _see_nothing, _compute_wide)
  )
  if name == "cond":
    index, *operands = wide
    return jax.lax.switch(index, [again(branch) for branch in params["branches"]], *operands)
  if name == "while":
    return _while(params, wide, again)
  if name == "linear_call":
    return again(params["callee"])(*wide)
  if name == "reduce_precision":
    return wide
  if name == "bitcast_convert_type":  # bits have the width that they have
    narrow = jnp.asarray(args[0], eqn.invars[0].aval.dtype)
    return [_widened(x) for x in _bind(eqn, [narrow])]
  changes: dict[str, Any] = {
    key: np.dtype(np.float64)
    for key in _DTYPES
    if params.get(key) is not None and _is_float(params[key])
  }
  if (update := params.get("update_jaxpr")) and _is_float(eqn.outvars[0].aval.dtype):  # a scatter's
    numbers = np.zeros(2)
    changes["update_jaxpr"] = jax.make_jaxpr(lambda *xs: again(update)(*xs)[0])(*numbers).jaxpr
  return [_widened(x) for x in _bind(eqn, wide, **changes)]


def _while(params: Mapping[str, Any], args: list[Any], again: Callable[..., Any]) -> list[Any]:
  num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
  of_cond, of_body = args[:num_cond], args[num_cond : num_cond + num_body]
  more, body = again(params["cond_jaxpr"]), again(params["body_jaxpr"])
  return jax.lax.while_loop(
    lambda carry: more(*of_cond, *carry)[0],
    lambda carry: body(*of_body, *carry),
    args[num_cond + num_body :],
  )
