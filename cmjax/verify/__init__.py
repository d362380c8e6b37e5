"""A table of the mathematics: every formula of the library against something true without it.

Closed forms for Gaussian data and mixtures (`oracle`), definitions evaluated in float64 with NumPy,
finite differences, and golden values of the papers' tables. The library's side runs on the default
device in its default precision, which is what a user trains with. With an experiment, its network's
forward pass and derivative at its precision are measured against float64 as well,
and its loss's gradient too.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator

from cmjax.experiment import Experiment
from cmjax.verify import formulas, losses, sampling
from cmjax.verify.precision import network as network
from cmjax.verify.table import Row as Row
from cmjax.verify.table import table as table

# Group -> its checks. The groups are what `verify(groups=...)` can choose from.
CHECKS: dict[str, tuple[Callable[[], Iterable[Row]], ...]] = {
  **formulas.CHECKS,
  **losses.CHECKS,
  **sampling.CHECKS,
}


def rows(groups: Iterable[str] | None = None) -> list[Row]:
  """The rows of some groups, or of all; a check that crashes is one row that fails."""
  found = []
  for group in CHECKS if groups is None else groups:
    for check in CHECKS[group]:
      found += [r._replace(group=group) for r in caught(check)]
  return found


def caught(check: Callable[[], Iterable[Row]]) -> Iterator[Row]:
  """The rows of a check; where it crashes, one that says so and fails."""
  try:
    yield from check()
  except Exception as error:  # whatever is wrong with one formula, the others are still told
    name = f"{check.__name__.strip('_')}: crashed"
    note = f"{type(error).__name__}: {error}".splitlines()[0]
    yield Row("", name, math.nan, math.nan, math.inf, 0.0, note)


def verify(
  exp: Experiment | None = None,
  workdir: str | os.PathLike[str] | None = None,
  groups: Iterable[str] | None = None,
) -> tuple[str, bool]:
  """The table of all checks, with those of one network and loss where an experiment is given.

  Args:
    exp: whose network and loss are measured; None: the mathematics alone.
    workdir: of its run; the weights are those of its newest checkpoint, if there is one.
    groups: names in `CHECKS`; None: all.

  Returns:
    The table, one row a line, and whether every row passed.
  """
  found = rows(groups)
  if exp is not None:
    found += network(exp, workdir)
  return table(found), all(r.passed for r in found)
