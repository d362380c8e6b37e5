"""`make quickstart`: cmjax/commands/quickstart.py says what it does, `--help` how."""

from cmjax.commands import quickstart

if __name__ == "__main__":
  quickstart.main()
