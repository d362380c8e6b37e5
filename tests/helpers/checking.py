"""Checks of types at run time that are made when a function is first called.

The tests check every function of cmjax (`--jaxtyping-packages` in pyproject.toml). To make a check
takes a millisecond, there are five thousand, and a worker calls a part of them. jaxtyping's own
check, which compares the axes of all arrays of a call, takes ten microseconds at each call, and a
run of the tests has millions: functions without such arrays get beartype's alone.
"""

import functools
import typing

import beartype
import jaxtyping

with_axes = jaxtyping.jaxtyped


def checked(function):
  """`beartype` of a function, at its first call."""
  made = None

  @functools.wraps(function)
  def call(*args, **kwargs):
    nonlocal made
    made = made or beartype.beartype(function)
    return made(*args, **kwargs)

  # In a traceback this is a library's line, as the check's own are, and no user's.
  call.__code__ = call.__code__.replace(co_filename=beartype.__file__)
  return call


def install():
  """Takes the place of `jaxtyping.jaxtyped` in all modules that are imported from now on."""
  jaxtyping.jaxtyped = lambda *, typechecker: functools.partial(_jaxtyped, typechecker)


def _jaxtyped(typechecker, thing):
  """The check with axes for classes and where a hint has any, else `checked`."""
  if isinstance(thing, type) or any(map(_has_axes, thing.__annotations__.values())):
    return with_axes(thing, typechecker=typechecker)
  return checked(thing)


def _has_axes(hint):
  if isinstance(hint, str):  # of what is defined below: it is not known yet
    return True
  if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
    return True
  parts = hint if isinstance(hint, list) else typing.get_args(hint)  # a list: of a Callable
  return typing.get_origin(hint) is not typing.Literal and any(map(_has_axes, parts))
