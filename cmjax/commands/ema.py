r"""Averages of any length, after training, of a run with config.snapshots.

  cmjax ema --workdir=runs/teacher --sigma_rel=0.05,0.1,0.15
  cmjax ema --workdir=runs/teacher --sweep=0.01:0.25:0.01

The first writes them into the run, as averages named posthoc_0.050, ...: for --ema of `cmjax
sample`, config.evals.*.emas of `cmjax evaluate`, and the ema of teacher, init_from and
autoguidance. The second only scores them with the run's first Frechet evaluator, and draws the
curve.
"""

import functools
import math
from collections.abc import Sequence

from cmjax.base.ranges import Count, Workdir
from cmjax.commands import common

MAX_LENGTHS = 1000


def lengths(text: str) -> list[float]:
  """The lengths of "0.05,0.1" or, with both ends, of "first:last:step"; rounded to 6 digits.

  >>> lengths("0.05:0.2:0.05")
  [0.05, 0.1, 0.15, 0.2]

  Raises:
    ValueError: it is neither, or a length is not in (0, 12^-0.5).
  """
  try:
    if ":" in text:
      first, last, step = map(float, text.split(":"))
      count = math.floor((last - first) / step + 1e-6) + 1 if step > 0 else 0
      if not 0 < count <= MAX_LENGTHS:
        raise ValueError
      found = [first + i * step for i in range(count)]
    else:
      found = [float(part) for part in text.split(",")]
  except (ValueError, OverflowError):
    raise ValueError(
      f"{text!r} must be lengths such as 0.05,0.1 or first:last:step such as 0.01:0.25:0.01, at "
      f"most {MAX_LENGTHS}."
    ) from None
  from cmjax.ema import power_gamma

  for sigma_rel in found:
    power_gamma(sigma_rel)
  return list(dict.fromkeys(round(sigma_rel, 6) for sigma_rel in found))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; an error is one message, and exit code 1."""
  return common.answered(lambda: _run(argv)) or 0


def _run(argv: Sequence[str] | None) -> int:
  path = functools.partial(common.argument, Workdir)
  parser = common.parser_of("ema", __doc__)
  parser.add_argument("--workdir", required=True, type=path("--workdir"), help="folder of the run")
  task = parser.add_mutually_exclusive_group(required=True)
  task.add_argument("--sigma_rel", help="lengths to write: 0.05,0.1, or first:last:step")
  task.add_argument("--sweep", help="lengths to score, in the same form")
  parser.add_argument(
    "--step",
    type=common.argument(Count, "--step"),
    help="that averages end at; default: the last snapshot's",
  )
  common.add_always(parser)
  args = parser.parse_args(argv)
  common.log_ours()
  # Imported here, so that --help need not wait for jax.
  from cmjax import experiment
  from cmjax.program import averages, stored_runs, sweep

  common.permit(args.allow_parts, args.limits)
  if args.sweep is not None:
    answer = sweep.sweep(args.workdir, lengths(args.sweep), step=args.step)
  else:
    mesh = experiment.make_mesh(stored_runs.read_experiment(args.workdir).run)
    answer = averages.write(args.workdir, lengths(args.sigma_rel), mesh, step=args.step)
  common.say(answer)
  return 0
