r"""Real digits, 8x8: multistep sCD with two segments (sCM; the algorithm is our reading).

  python -m cmjax.main --config=configs/digits_scd_multistep.py --workdir=runs/digits_scd_multistep

Needs first: cmjax train --config=digits_teacher --workdir=runs/digits_teacher

The student jumps from any t to the lower end of its segment, so sampling has no noise but the
first; NFE is num_segments.

Why these settings (`benchmarks/comparison/rates.py`, two steps, classifier features, 1.5 as it is):
a fifth of the rate gives 1.9 and no warm-up of the tangent 1.7; five times the rate, which breaks
sCD, gives 1.5 again: a segment is the easier map.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.net.segment = True
  c.loss.update(name="scd", num_segments=2)
  c.teacher.workdir = c.init_from.workdir = "runs/digits_teacher"
  c.samplers = dict(segments=dict(name="segments"))
  c.evals.grid.samplers = c.evals.fd.samplers = c.evals.speed.samplers = ("segments",)
  return c
