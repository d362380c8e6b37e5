"""`python -m cmjax`: the program `cmjax`, where it is not on the path."""

import sys

from cmjax.commands import cli

if __name__ == "__main__":
  sys.exit(cli.main())
