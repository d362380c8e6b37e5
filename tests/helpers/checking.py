"""Checks of types at run time that are made when a function is first called.

The tests check every function of cmjax (`--jaxtyping-packages` in pyproject.toml). To make a check
takes a millisecond, there are five thousand, and a worker calls a part of them.
"""

import functools

import beartype


def checked(function):
  """`beartype` of a function, at its first call."""
  made = None

  @functools.wraps(function)
  def call(*args, **kwargs):
    nonlocal made
    made = made or beartype.beartype(function)
    return made(*args, **kwargs)

  return call
