"""`cmjax ema`, under the name that it had in the first release."""

import sys

from cmjax.commands import ema

if __name__ == "__main__":
  sys.exit(ema.main())
