"""cmjax.main whose second process is late at each save; words of those that wait come soon."""

import time

from cmjax import main
from cmjax.base import meeting, sharding
from cmjax.program import sitting

LATE = 4.0  # seconds

if __name__ == "__main__":
  meeting.FIRST_WORD, meeting.NEXT_WORDS, save = 1.0, 30.0, sitting.Sitting.save

  def late(self):
    if self.last and sharding.process()[0] == 1:
      time.sleep(LATE)
    save(self)

  sitting.Sitting.save = late
  main.main()
