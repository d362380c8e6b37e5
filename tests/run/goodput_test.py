"""Where the time of a run goes: of one kind at a time, all of it, over all sittings."""

import pytest

from cmjax.run import goodput


class Clock:
  now = 1_000.0

  def __call__(self):
    return self.now


@pytest.fixture(name="clock")
def _clock():
  return Clock()


def seconds(ledger):
  """The seconds of each kind that has some; all shares together are 1."""
  found = ledger.scalars()
  whole = found.pop("wall_sec")
  assert sum(found.values()) == pytest.approx(1, abs=1e-12) and len(found) == len(goodput.KINDS)
  return {k.partition("/")[2]: pytest.approx(v * whole) for k, v in found.items() if v}


def record(ledger, clock, step):
  """A record of metrics.jsonl, by a wall clock that is 5,000 s ahead."""
  return ledger.scalars() | {"step": step, "time": clock.now + 5_000}


def spend(ledger, clock, kind, took):
  with ledger.spending(kind):
    clock.now += took


def test_all_time_is_of_one_kind_and_what_is_opened_inside_is_taken_off(clock):
  ledger = goodput.Goodput(clock)
  assert ledger.scalars() == {}
  clock.now += 3  # start
  ledger.begin_steps()
  clock.now += 10
  with ledger.spending("evaluations"):
    clock.now += 2
    spend(ledger, clock, "saves", 4)
    assert ledger.kind == "evaluations"
    clock.now += 1
  clock.now += 5
  ledger.waited_for_data(6.0)
  assert ledger.kind == "steps"
  assert seconds(ledger) == {"start": 3, "steps": 9, "evaluations": 3, "saves": 4, "data": 6}
  assert ledger.scalars()["wall_sec"] == 25


def test_a_wait_is_never_more_than_the_steps_that_it_is_taken_from(clock):
  ledger = goodput.Goodput(clock)
  ledger.begin_steps()
  clock.now += 5
  ledger.waited_for_data(8.0)
  assert seconds(ledger) == {"data": 5}


def test_a_roll_back_loses_the_steps_since_that_checkpoint(clock):
  ledger = goodput.Goodput(clock)
  ledger.begin_steps()
  for step in (10, 20):
    clock.now += 7
    ledger.saved(step)
  clock.now += 2
  spend(ledger, clock, "evaluations", 1)
  ledger.rolled_back(10)
  assert seconds(ledger) == {"steps": 7, "lost": 9, "evaluations": 1}


def test_a_kill_loses_the_steps_since_the_checkpoint_and_the_time_until_the_next_start(clock):
  began, first = clock.now, goodput.Goodput(clock)
  clock.now += 2
  first.begin_steps()
  clock.now += 10
  lines = [record(first, clock, 10)]  # and checkpoint 10
  spend(first, clock, "saves", 1)
  clock.now += 6
  first.waited_for_data(2.0)
  lines.append(record(first, clock, 15))
  clock.now += 40  # killed; nobody knows when

  second = goodput.Goodput(clock)
  clock.now += 3
  second.go_on(lines, 10, clock.now + 5_000)
  second.begin_steps()
  clock.now += 20
  expected = {"start": 5, "steps": 30, "saves": 1, "lost": 6, "away": 40}
  assert seconds(second) == expected
  assert second.scalars()["wall_sec"] == pytest.approx(clock.now - began)

  # Once more, before a checkpoint: what is on record counts again, as lost.
  lines = [lines[0], record(second, clock, 20)]
  clock.now += 100
  third = goodput.Goodput(clock)
  third.go_on(lines, 10, clock.now + 5_000)
  assert seconds(third) == expected | {"steps": 10, "lost": 26, "away": 140}
  assert third.scalars()["wall_sec"] == pytest.approx(clock.now - began)


def test_a_run_that_starts_from_nothing_again_has_lost_all_its_steps(clock):
  first = goodput.Goodput(clock)
  first.begin_steps()
  clock.now += 8
  lines = [record(first, clock, 3)]
  second = goodput.Goodput(clock)
  second.go_on(lines, 0, clock.now + 5_000)
  assert seconds(second) == {"lost": 8}


@pytest.mark.parametrize("behind", [0.0, -9_000.0])
def test_clocks_that_differ_and_histories_of_before_do_no_harm(clock, behind):
  ledger = goodput.Goodput(clock)
  clock.now += 4
  ledger.go_on([{"step": 1, "time": 5.0, "loss": 1.0}], 1, 6.0)
  assert seconds(ledger) == {"start": 4}
  line = {"step": 1, "time": 9_000.0, "wall_sec": 10.0, "goodput/steps": 1.0}
  ledger.go_on([line], 1, 9_000.0 + behind)
  assert seconds(ledger) == {"start": 4, "steps": 10}


def test_what_failed_is_known_until_the_next_step(clock):
  ledger = goodput.Goodput(clock)
  with pytest.raises(ZeroDivisionError), ledger.spending("evaluations"):
    spend(ledger, clock, "saves", 1)
    raise ZeroDivisionError
  assert (ledger.failed_in, ledger.kind) == ("evaluations", "start")
  ledger.begin_steps()
  assert (ledger.failed_in, ledger.kind) == ("", "steps")
