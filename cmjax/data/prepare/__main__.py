"""`cmjax prepare`, under the name that it had in the first release."""

import sys

from cmjax.commands import prepare

if __name__ == "__main__":
  sys.exit(prepare.main())
