"""Types and shapes are checked while tests run: a check that is off would not be noticed."""

import jax.numpy as jnp
import jaxtyping
import pytest
from beartype import roar

from cmjax import trigflow
from cmjax.base import ranges

WRONG = (jaxtyping.TypeCheckError, roar.BeartypeCallHintParamViolation)


@pytest.mark.parametrize(
  "call",
  [
    lambda: trigflow.interpolate(jnp.zeros((2, 3)), jnp.zeros((2, 4)), jnp.zeros(2)),
    lambda: trigflow.interpolate(jnp.zeros((2, 3)), jnp.zeros((2, 3)), "t"),
    lambda: ranges.typed(3, int, "key"),
  ],
  ids=["shapes", "arrays", "others"],
)
def test_a_wrong_argument_is_refused(call):
  for _ in range(2):  # a check is made at the first call
    with pytest.raises(WRONG, match="cmjax.*parameter|parameters of cmjax"):
      call()
