"""A run that is lost at the same place each time is not started for ever."""

import pytest
from etils import epath

from cmjax.base.atomic_files import write_json, write_text
from cmjax.program import sitting, starts, train
from helpers import tiny


@pytest.fixture(name="tmp_path")
def _tmp_path(tmp_path):
  return epath.Path(tmp_path)  # as `paths.place` gives it


class Lost(BaseException):
  """The process is killed."""


def test_a_run_that_makes_no_new_checkpoint_is_refused_until_somebody_starts_it_by_hand(
  tmp_path, monkeypatch, shared_programs
):
  made, take_step = tiny.experiment_of(evals={}), sitting.Sitting.take_step

  def start(lost_at=None, **options):
    """What becomes of a start that is lost before it takes this step."""

    def taking(self):
      if self.step == lost_at:
        raise Lost
      take_step(self)

    with monkeypatch.context() as patch, pytest.raises(Lost):
      patch.setattr(sitting.Sitting, "take_step", taking)
      train.train(made, tmp_path, tries=2, **options)

  start(lost_at=2)
  start(lost_at=3)
  with pytest.raises(ValueError, match=r"^2 starts in a row .* \(no checkpoint yet\)") as error:
    train.train(made, tmp_path, tries=2)
  assert "\n" not in str(error.value) and "starts.json" in str(error.value)
  (tmp_path / starts.STARTS).unlink()  # as the message says
  start(lost_at=6)
  for _ in range(2):
    start(lost_at=5)  # from the checkpoint of step 4: counted anew
  with pytest.raises(ValueError, match="the newest is of step 4"):
    train.train(made, tmp_path, tries=2)
  train.train(made, tmp_path)  # by hand
  assert not (tmp_path / starts.STARTS).exists()
  for _ in range(4):  # one that has ended may be called as often as one likes
    train.train(made, tmp_path, tries=2)


@pytest.mark.parametrize("text", ["", "[]", '{"step": 4}', '{"step": 4, "starts": -1}', "{" * 999])
def test_a_file_that_is_no_count_counts_nothing(tmp_path, monkeypatch, text):
  monkeypatch.setattr(starts, "_newest", lambda workdir: 4)
  write_text(tmp_path / starts.STARTS, text)
  starts.count(tmp_path, 1)
  with pytest.raises(ValueError, match="1 starts in a row"):
    starts.count(tmp_path, 1)
  write_json(tmp_path / starts.STARTS, {"step": 3, "starts": 7})  # of another checkpoint
  starts.count(tmp_path, 1)
