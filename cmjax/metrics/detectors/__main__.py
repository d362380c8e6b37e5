"""`cmjax detectors`, under the name that it had in the first release."""

import sys

from cmjax.commands import detectors

if __name__ == "__main__":
  sys.exit(detectors.main())
