r"""CIFAR-10, unconditional: multistep sCD with two segments.

  python -m cmjax.main --config=configs/cifar10_scd_multistep.py \
    --workdir=runs/cifar10_scd_multistep

Needs first: cmjax train --config=cifar10_teacher --workdir=runs/cifar10_teacher

The student jumps from any t to the lower end of its segment; NFE is loss.num_segments. The paper
has results and no algorithm: segments of equal angle, one proposal over all of [0, pi/2], the
segment as an extra input that starts at zero (cmjax default, unconfirmed).

The paper's replication (edm2_sCM, TMLR 2026) has ImageNet-64, size S: FID 2.53, 2.26 and 2.08 with
2, 4 and 8 segments. Not run by us.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.net.segment = True
  c.loss.update(name="scd", num_segments=2)
  c.teacher.workdir = c.init_from.workdir = "runs/cifar10_teacher"
  c.samplers = dict(segments=dict(name="segments"))
  c.evals.grid.samplers = c.evals.fid.samplers = ("segments",)
  return c
