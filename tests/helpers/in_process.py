"""The program in the process of the tests."""

from absl import flags

from cmjax.commands import cli, start


def answer(capsys, run):
  """What a run of the program says: exit code, stdout, stderr."""
  capsys.readouterr()
  try:
    code = run() or 0
  except SystemExit as stop:
    code = stop.code
  return code, *capsys.readouterr()


def mode(*args):
  """Runs `python -m cmjax.main` with these arguments; returns the exit code."""
  return start.run(start.parse(["cmjax", *args], None, flags.FlagValues()))


def verb(name, *args):
  """Runs `cmjax NAME` with these arguments; returns the exit code."""
  if name not in cli.EXPERIMENTS or "--help" in args:
    return cli.main([name, *args])
  words = [f"cmjax {name}", *cli.named(name, args)]
  return start.run(start.parse(words, name, flags.FlagValues()))
