"""Two hosts with a disk each at one path: they say so at once, instead of waiting for ever."""

import os
import subprocess
import time

import pytest

from helpers.processes import TINY, Processes


def _can_mount(folder):
  command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", str(folder)]
  return (
    os.geteuid() == 0 and not subprocess.run(command, capture_output=True, check=False).returncode
  )


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "sample"])
def test_two_disks_at_one_path_are_an_error_on_every_process_within_seconds(tmp_path, verb):
  disk = tmp_path / "disk"
  disk.mkdir()
  if not _can_mount(disk):
    pytest.skip("needs root, and a kernel that lets it mount")
  alone = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs none {disk}; mkdir {disk}/run; "$0" "$@"')
  started = time.monotonic()
  workdir = f"--workdir={disk / 'run'}"
  arguments = (f"--config={TINY}:long", f"--mode={verb}", workdir)
  with Processes(tmp_path / "logs", 2, *arguments, before=lambda i: alone) as both:
    codes = both.exit_codes(seconds=60)
    seconds = time.monotonic() - started
    assert codes == [1, 1], both.said()
    for i in range(2):
      assert "Not every process sees the same workdir" in both.said(i)
      assert "process 1 (host " in both.said(i) and "Traceback" not in both.said(i)
  assert seconds < 30
