r"""The program: trains, samples, scores, makes references, searches, measures, verifies, plans.

  python -m cmjax.main --config=configs/digits_sct.py --workdir=runs/digits_sct

Every value of the config can be set: --config.optim.lr=3e-4. The same command goes on with a run
that was interrupted. Exit codes: 0 done; 75 interrupted by a signal, state saved, start
the same command again; 1 an error. Each --mode is a verb of the program `cmjax`, by the same code.
"""

import sys
from collections.abc import Sequence

from cmjax.commands import start


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the mode that the flags say, and ends the process; argv[0] is the program's name."""
  start.start(sys.argv if argv is None else argv)


if __name__ == "__main__":
  main()
