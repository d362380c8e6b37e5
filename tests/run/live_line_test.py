import io
import logging

import numpy as np
import pytest

from cmjax.run import live_line

SCT = {"loss": -3.2, "tangent_norm": 0.8312, "F_error": 0.25, "skipped": 0.0}
PACE = {"steps_per_sec": 10.0, "images_per_sec": 1000.0}


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture(name="opened")
def _opened():
  """Makes lines, which are closed in the end: they listen to the log."""
  made = []

  def make(stream, total_steps=100):
    made.append(live_line.LiveLine(stream, total_steps, 30))
    return made[-1]

  yield make
  for line in made:
    line.close()


def shown(stream):
  """What a terminal shows in the end."""
  rows, row = [], ""
  for piece in stream.getvalue().split("\n"):
    for part in piece.split("\r"):
      row = part.replace("\x1b[K", "")
    rows.append(row)
  return rows


@pytest.mark.parametrize(
  "scalars, said",
  [
    (SCT, "tangent norm 0.8312  F error 0.25"),
    ({"loss": -3.2, "F_error": 0.25}, "F error 0.25"),
    ({"loss": -3.2}, "loss -3.2"),  # where there is nothing better
    ({}, ""),
    ({"tangent_norm": np.float32(np.nan), "skipped": 2.0}, "tangent norm nan  skipped 2"),
  ],
)
def test_the_line_has_what_one_should_watch(opened, scalars, said):
  stream = io.StringIO()
  opened(stream).draw(50, scalars, {})
  assert stream.getvalue() == f"step 50/100  50%  {said}".rstrip() + "\n"


def test_the_score_and_what_matters_come_before_the_pace(opened):
  stream = io.StringIO()
  line = opened(stream)
  line.score = "fd one_step 0.11 (step 40)"
  line.draw(50, SCT, PACE)
  assert stream.getvalue() == (
    "step 50/100  50%  ETA 0:00:05  tangent norm 0.8312  F error 0.25  fd one_step 0.11 (step 40)"
    "  10 step/s  1,000 img/s\n"
  )


def test_a_log_file_has_no_character_that_a_terminal_obeys(opened):
  stream = io.StringIO()
  line = opened(stream)
  line.score = "\x1b[2Jfd\r0.1"
  line.draw(1, SCT, PACE)
  line.say("Drawn: a\x1b[31mb")
  assert all(c.isprintable() or c == "\n" for c in stream.getvalue())
  assert stream.getvalue().splitlines()[1] == r"Drawn: a\x1b[31mb"


def test_what_is_said_or_logged_stands_on_a_line_of_its_own(opened):
  stream = Terminal()
  handler, logger = logging.StreamHandler(stream), logging.getLogger("cmjax")
  logger.addHandler(handler)
  line = opened(stream)
  try:
    line.draw(1, {}, {})
    logger.warning("A spike.")
    line.draw(2, {}, {})
    line.say("Drawn: x.png")
    line.draw(3, {}, {})
    line.close()
    assert shown(stream) == ["A spike.", "Drawn: x.png", "step 3/100   3%", ""]
    logger.warning("After the end.")  # nothing is erased any more
    assert shown(stream)[-2] == "After the end." and stream.getvalue().count("\x1b[K") == 5
  finally:
    logger.removeHandler(handler)


def test_the_line_of_the_last_step_stays(opened):
  stream = Terminal()
  line = opened(stream)
  for step in (99, 100):
    line.draw(step, {}, {})
  line.say("Drawn: x.png")
  line.close()
  assert shown(stream) == ["step 100/100 100%", "Drawn: x.png", ""]


def test_only_a_terminal_listens_to_the_log(opened):
  before = list(logging.getLogger("cmjax").filters)
  opened(io.StringIO())
  assert logging.getLogger("cmjax").filters == before
