"""Several processes start again: what they read, what they compiled, and whom they wait for."""

import platform
import re

import pytest

from helpers.processes import ROOT, TINY, Processes


def flip_a_bit(folder):
  path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  return path.name


@pytest.mark.slow
def test_two_processes_find_damage_together_and_one_says_whom_it_waits_for(tmp_path):
  """The first sitting has a late process, the second a checkpoint with another bit."""
  workdir = tmp_path / "runs" / "two"

  def sitting(total_steps, **program):
    values = {"total_steps": total_steps, "checkpoint.every_steps": 4, "net.width": 128}
    arguments = [f"--config.{key}={value}" for key, value in values.items()]
    arguments += [f"--config={TINY}:long", f"--workdir={workdir}"]
    with Processes(
      tmp_path / f"logs{total_steps}", 2, *arguments, JAX_COMPILATION_CACHE_DIR=None, **program
    ) as both:
      assert both.exit_codes() == [0, 0], both.said()
      return both.said(0), both.said(1)

  first, _ = sitting(8, program=(str(ROOT / "tests" / "helpers" / "late.py"),))
  host = re.escape(platform.node())
  said = rf"Process 0 on {host} waits at '.*checkpoint 8: .*', for \d+ s now, for process 1 "
  assert re.search(said, first), first
  assert any(path.is_file() for path in (workdir.parent / ".compiled").rglob("*"))

  name = flip_a_bit(workdir / "checkpoints" / "8")
  for log in sitting(12):
    assert re.search(rf"checkpoint of step 8 in .* is broken .*{name}", log), log
    assert "Starting at step 4 of 12" in log
  assert [path.name.split(".")[0] for path in (workdir / "broken").iterdir()] == ["8"]
