"""`cmjax convert`, under the name that it had in the first release."""

import sys

from cmjax.commands import convert

if __name__ == "__main__":
  sys.exit(convert.main())
