"""A mount that renames files but no folder, as goofys and gcsfuse on a flat bucket are.

python tests/helpers/no_folder_renames.py [FLAGS ...]      is cmjax.main on it
"""

import errno
import os


def refuse_renames(setattr=setattr):
  """Has this process refuse to rename folders, in Python, as the kernel would."""
  for name in ("rename", "replace"):
    setattr(os, name, _refusing(getattr(os, name)))


def _refusing(rename):
  def refusing(source, target, **options):
    if os.path.isdir(source):
      raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), os.fspath(source))
    rename(source, target, **options)

  return refusing


if __name__ == "__main__":
  refuse_renames()
  from cmjax import main

  main.main()
