r"""Lists the runs in a folder, and writes a page that compares them.

  cmjax runs runs/

Prints a line for each run: method, data, steps, state, what to watch, the best score. Then it
prints the path of the page. The page has the scores and pictures of the runs side by side, their
curves over each other, and in what their configs differ. Open it in a browser.
"""

from collections.abc import Sequence

from cmjax.base.ranges import Place, Workdir
from cmjax.commands import common


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; an error is one message, and exit code 1."""
  return common.answered(lambda: _run(argv)) or 0


def _run(argv: Sequence[str] | None) -> int:
  parser = common.parser_of("runs", __doc__)
  parser.add_argument("FOLDER", type=common.argument(Workdir, "FOLDER"), help="that runs are in")
  parser.add_argument(
    "--out", type=common.argument(Place, "--out"), help="the page; default: runs.html in FOLDER"
  )
  common.add_always(parser)
  arguments = parser.parse_args(argv)
  common.permit(arguments.allow_parts, arguments.limits)
  from cmjax.program import run_list  # here, so that --help need not wait for jax

  common.log_ours()
  found = run_list.find(arguments.FOLDER)
  common.say(run_list.table(found))
  common.say(f"\nThe page that compares them: {run_list.write(found, arguments.out)}")
  return 0
