"""A headless Chromium that opens a page of disk, spoken to over a pipe in its DevTools protocol."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
  *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
  *("--disable-dev-shm-usage", "--disable-background-networking", "--remote-debugging-pipe"),
)
PATIENCE = 60.0  # seconds


def found():
  """The program; skips where none is installed."""
  path = next(filter(None, map(shutil.which, NAMES)), None)
  if path is None:
    pytest.skip(f"No browser on PATH (one of {', '.join(NAMES)}): apt-get install chromium.")
  return path


class Browser:
  """One tab. Use it as a context."""

  def __enter__(self):
    program = found()
    self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    from_us, self._to = os.pipe()
    self._from, to_us = os.pipe()
    # The browser reads file descriptor 3 and writes 4, whatever numbers they have here.
    shell = f'exec "$@" 3<&{from_us} 4>&{to_us}'
    self._process = subprocess.Popen(
      ["bash", "-c", shell, "-", program, *FLAGS, f"--user-data-dir={self._profile.name}"],
      pass_fds=(from_us, to_us),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(from_us), os.close(to_us)
    self._unread, self._number, self._session, self.problems = b"", 0, None, []
    target = self._ask("Target.createTarget", url="about:blank")["targetId"]
    attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self._ask(f"{domain}.enable")
    return self

  def __exit__(self, *error):
    with contextlib.suppress(OSError):
      self._ask("Browser.close")
    os.close(self._to), os.close(self._from)
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._profile.cleanup()

  def open(self, path, width=1280, dark=False):
    """Opens a page; `problems` has what the console says from then on, and what it asks for."""
    self._ask(
      "Emulation.setDeviceMetricsOverride",
      width=width, height=800, deviceScaleFactor=1, mobile=False,
    )  # fmt: skip
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self._ask("Emulation.setEmulatedMedia", features=[scheme])
    self.problems = []
    self._ask("Page.navigate", url=pathlib.Path(path).absolute().as_uri())
    deadline = time.monotonic() + PATIENCE
    while self.value("document.readyState") != "complete":
      assert time.monotonic() < deadline, "the page does not load"
      time.sleep(0.05)

  def value(self, expression):
    """What an expression of JavaScript is in the page."""
    found = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
    assert "exceptionDetails" not in found, found
    return found["result"].get("value")

  def picture(self, path):
    """Saves the whole page as a PNG."""
    shot = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
    pathlib.Path(path).write_bytes(base64.b64decode(shot["data"]))

  def _ask(self, method, **params):
    self._number += 1
    message = {"id": self._number, "method": method, "params": params}
    message |= {"sessionId": self._session} if self._session else {}
    os.write(self._to, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._next()
      if answer.get("id") == self._number:
        assert "error" not in answer, answer
        return answer["result"]
      self._note(answer)

  def _next(self):
    while b"\0" not in self._unread:
      data = os.read(self._from, 2**20)
      if not data:
        raise OSError("the browser has ended")
      self._unread += data
    message, self._unread = self._unread.split(b"\0", 1)
    return json.loads(message)

  def _note(self, event):
    method, params = event.get("method"), event.get("params", {})
    if method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
      self.problems.append(params)
    if method == "Network.requestWillBeSent":
      url = params["request"]["url"]
      if not url.startswith(("file:", "data:")):
        self.problems.append(url)
