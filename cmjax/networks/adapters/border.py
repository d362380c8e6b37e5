"""The border of precision, and the checks at the door: shared by the adapters of all libraries.

An adapter says how a module is built and called (`Body`); everything else about a `Network` is
here, once.
"""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from cmjax.base import param_names
from cmjax.networks.layers import along_batch
from cmjax.types import Array, Cond, Network, Params

PRECISIONS = ("default", "high", "highest")


class Body(NamedTuple):
  """A module as two pure functions, in which nothing is said of precision.

  Attributes:
    init: key -> params, a nested dict of arrays.
    call: params, x, t, cond, key -> F, computed in the dtype of params and x.
    shapes: the shapes and dtypes of what `init` gives.
    name: of the module, for messages and records.
    inputs: what it reads of cond beside the label.
    normalized_paths: as in `Network`.
    float32_paths: as in `Network`.
    remat: whether a gradient computes activations again; None where the module has no such option.
    rebuild: the same module with another `remat`.
  """

  init: Callable[[Array], Params]
  call: Callable[[Params, Array, Array, Cond, Array | None], Array]
  shapes: Params
  name: str
  inputs: tuple[str, ...] = ()
  normalized_paths: tuple[str, ...] = ()
  float32_paths: tuple[str, ...] = ()
  remat: bool | None = None
  rebuild: Callable[[bool], Any] | None = None


def network(body: Body, *, dtype: Any, matmul_precision: str | None) -> Network:
  """The Network of a module, computed in `dtype`.

  `apply` casts x and the parameters to `dtype` and F back to float32. Where x is float64, all is
  float64. Nothing else is cast. t is passed on as it is: embeddings of t in bfloat16 make
  consistency training collapse after a while (arXiv 2510.08431, sec. 4.2).

  Raises:
    ValueError: if `dtype` is no floating-point type, `matmul_precision` none of the three, a
      parameter no real number, or an expression matches no parameter.
  """
  dtype = jnp.dtype(dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"dtype={dtype.name} is not floating-point. Try float32 or bfloat16.")
  if matmul_precision not in (None, *PRECISIONS):
    raise ValueError(
      f"Unknown matmul_precision {matmul_precision!r}. Choose from: {', '.join(PRECISIONS)}."
    )
  _check_parameters(body)
  # To build a module takes up to a second, and one program after the other has it built: its first
  # weights are traced once. Outside of a program each operation runs as it comes, as ever.
  first_weights = jax.jit(body.init, inline=True)

  def init(key):
    weights = (first_weights if isinstance(key, Tracer) else body.init)(key)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), weights)

  def apply(params, x, t, cond, key):
    # Who has float64 asks for it: finite differences of a network that trains in another dtype.
    inside = x.dtype if x.dtype == jnp.float64 else dtype
    weights = _cast(params, inside, body.float32_paths)
    with _products(matmul_precision):
      F = body.call(weights, along_batch(x.astype(inside)), along_batch(t), cond, key)
    _check_output(F, x, body.name)
    return along_batch(F).astype(_at_least_float32(inside))

  options = {"dtype": dtype.name, "matmul_precision": matmul_precision}
  if body.remat is not None:
    options["remat"] = body.remat

  def at(**changes: Any) -> Network:
    if unknown := sorted(set(changes) - set(options)):
      raise ValueError(
        f"{body.name} has no option {', '.join(unknown)}. It has: {', '.join(options)}."
      )
    how = options | changes
    remat = how.pop("remat", None)
    rebuild = body.rebuild if remat != body.remat else None
    return network(rebuild(remat) if rebuild else body, **how)

  return Network(
    init,
    apply,
    at=at,
    options=MappingProxyType(options),
    inputs=body.inputs,
    normalized_paths=body.normalized_paths,
    float32_paths=body.float32_paths,
    name=body.name,
  )


def _products(precision: str | None) -> contextlib.AbstractContextManager[Any]:
  """In which products and convolutions have this precision."""
  return jax.default_matmul_precision(precision) if precision else contextlib.nullcontext()


def _at_least_float32(dtype):
  return jnp.promote_types(dtype, jnp.float32)


def _cast(params: Params, dtype, patterns: Sequence[str]) -> Params:
  """The parameters in `dtype`, those that a pattern names in float32 at least."""

  def leaf(path, a):
    stays = any(re.search(pattern, param_names.name(path)) for pattern in patterns)
    return a.astype(_at_least_float32(dtype) if stays else dtype)

  return jax.tree_util.tree_map_with_path(leaf, params)


# --- what is refused ----------------------------------------------------------------------------


def _check_parameters(body: Body) -> None:
  shapes = param_names.by_name(body.shapes)
  if not shapes:
    raise ValueError(f"{body.name} has no parameters: there is nothing to train.")
  for path, a in shapes.items():
    if jnp.issubdtype(a.dtype, jnp.complexfloating):
      raise ValueError(
        f"{body.name} has the parameter {path} of dtype {a.dtype}. Parameters are real: keep its "
        "real and its imaginary part as two of them."
      )
    if not jnp.issubdtype(a.dtype, jnp.floating):
      raise ValueError(
        f"{body.name} has the parameter {path} of dtype {a.dtype}, which has no gradient. Keep it "
        "as a constant: a plain attribute of the module, not a parameter."
      )
  for kind in ("float32_paths", "normalized_paths"):
    for pattern in getattr(body, kind):
      if not any(re.search(pattern, path) for path in shapes):
        raise ValueError(
          f"{kind} has {pattern!r}, which is found in no parameter of this network. "
          f"Its parameters: {', '.join(list(shapes)[:8])}, ..."
        )


def _check_output(F: Any, x: Array, name: str) -> None:
  """While tracing: F is one floating-point array of the shape of x."""
  if not isinstance(F, jax.Array):
    raise ValueError(f"{name} returns a {type(F).__name__}. It must return one array, F.")
  if F.shape != x.shape:
    raise ValueError(
      f"{name} returns F {list(F.shape)} for x {list(x.shape)}. F must have the shape of x."
    )
  if not jnp.issubdtype(F.dtype, jnp.floating):
    raise ValueError(f"{name} returns F of dtype {F.dtype}. F must be floating-point.")


def batch_statistics(name: str, path: str, kind: str, instead: str) -> ValueError:
  """What to say of a module with batch normalisation in `path`."""
  return ValueError(
    f"{name} keeps batch statistics in {path} ({kind}). A network here is a pure function of x "
    "and t, sample by sample: consistency training differentiates it with a jvp. Batch statistics "
    f"are state, and they make samples depend on each other. Take {instead} instead."
  )


def random_constant(name: str, path: str, instead: str) -> ValueError:
  """What to say of a module whose constant `path` was drawn at random."""
  return ValueError(
    f"{name} has random numbers in the constant {path}: no checkpoint or average would hold them. "
    f"Make it {instead}; if it is not trained, use it as jax.lax.stop_gradient({path})."
  )


# --- how a module is called ---------------------------------------------------------------------


def name_of(module: Any) -> str:
  """my_package.networks:Mine, of a module of that class."""
  return f"{type(module).__module__}:{type(module).__qualname__}"


def call_keywords(module: Any, name: str, known: Sequence[str]) -> tuple[str, ...]:
  """Those of the `known` keywords that the module takes when it is called.

  Raises:
    ValueError: if it cannot be called as module(x, t, cond).
  """
  if not callable(module):
    raise ValueError(f"{name} has no __call__. Write `def __call__(self, x, t, cond)`.")
  signature = inspect.signature(module.__call__)
  taken = tuple(keyword for keyword in known if keyword in signature.parameters)
  try:
    signature.bind(None, None, None, **dict.fromkeys(taken))
  except TypeError as error:
    raise ValueError(
      f"{name} is called with {signature}, not with (x, t, cond): {error}. Write "
      "`def __call__(self, x, t, cond)`; cond is a dict, empty where nothing conditions."
    ) from None
  return taken


def flags(keywords: Sequence[str], key: Array | None) -> dict[str, bool]:
  """The values of `deterministic` and `train`, of a module that takes them: the key decides."""
  values = {"deterministic": key is None, "train": key is not None}
  return {keyword: value for keyword, value in values.items() if keyword in keywords}


def maker_parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
  """The parameters of a class, a function or a `functools.partial` of one, but for those given."""
  inner, args, keywords = make, (), {}
  if isinstance(make, functools.partial):
    inner, args, keywords = make.func, make.args, make.keywords
  if inspect.isclass(inner):  # a metaclass may hide the signature
    inner, args = inner.__init__, (None, *args)
  return inspect.signature(functools.partial(inner, *args, **keywords)).parameters


def check_maker(make: Any, keyword: str, function: str) -> None:
  """Raises ValueError if `make` is nothing that builds a module from `keyword`."""
  if inspect.isclass(make) or isinstance(make, functools.partial) or inspect.isroutine(make):
    parameters = maker_parameters(make).values()
    if any(p.name == keyword or p.kind == p.VAR_KEYWORD for p in parameters):
      return
    got = f"{getattr(make, '__name__', 'a partial')} without an argument {keyword}="
  else:
    got = f"a {type(make).__name__}"
  raise ValueError(
    f"{function} got {got}. It takes what builds the module, a class or a function that is called "
    f"with {keyword}=, such as functools.partial(Mine, width=64): `init` draws the weights."
  )


def remat_of(make: Callable[..., Any]) -> bool | None:
  """What `make` says of its argument `remat`; None where it has none."""
  parameter = maker_parameters(make).get("remat")
  return parameter.default if parameter and isinstance(parameter.default, bool) else None


def inputs_of(module: Any, inputs: Sequence[str] | None) -> tuple[str, ...]:
  """What was said, or else what the module says itself."""
  return tuple(getattr(module, "inputs", ()) if inputs is None else inputs)


def paths_of(module: Any, float32_paths: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
  """The two kinds of paths, as fields of a `Body`."""
  own = getattr(module, "float32_paths", ())
  return {
    "float32_paths": tuple(own if float32_paths is None else float32_paths),
    "normalized_paths": tuple(getattr(module, "normalized_paths", ())),
  }


# --- trying it out ------------------------------------------------------------------------------


def example(
  shape: Sequence[int], num_classes: int, inputs: Sequence[str]
) -> tuple[Array, Array, Cond]:
  """x, t and cond of two samples, all 0."""
  cond = {"label": jnp.zeros(2, jnp.int32)} if num_classes else {}
  cond |= {name: jnp.zeros(2, jnp.float32) for name in inputs}
  return jnp.zeros((2, *shape), jnp.float32), jnp.zeros(2, jnp.float32), cond


def tried(net: Network, shapes: Params, shape: Sequence[int] | None, num_classes: int) -> Network:
  """The network, once its output is known to be right, with and without randomness.

  Nothing is computed. Without a `shape` nothing is tried: what is wrong comes out at the first use.
  """
  if shape is not None:
    trial = functools.partial(example, tuple(shape), num_classes, net.inputs)
    for key in (None, jax.random.key(0)):
      jax.eval_shape(lambda params, key=key: net.apply(params, *trial(), key), shapes)
  return net
