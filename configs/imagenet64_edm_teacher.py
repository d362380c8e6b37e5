r"""ImageNet-64, class-conditional: EDM's diffusion teacher, in EDM's preconditioning.

  python -m cmjax.main --config=configs/imagenet64_edm_teacher.py \
    --workdir=runs/imagenet64_edm_teacher

Needs first: cmjax prepare ILSVRC/train --out data/imagenet64, whole in imagenet64_teacher.py.

Adam 1e-4, batch 4096, dropout 0.1, average of 50 Mimg, 2500 Mimg (Karras et al. 2022). The network
is the paper's, ADM with 295.9 M parameters, in float32 (theirs: float16 with a scaled loss).
The crop of imagenet64_teacher.py is not EDM's: that is --transform=center-crop.

Published: FID 2.44 at NFE 79. Not run by us.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("imagenet64_adm")
  c.total_steps = 610_352
  c.batch_size = 4_096
  c.net.dropout = 0.1
  c.loss = dict(name="diffusion", P_mean=-1.2, P_std=1.2, weighting="constant")
  c.optim.name = "adam"
  c.optim.schedule.warmup_steps = 2_441
  c.ema = dict(main=dict(name="half_life", half_life_images=50_000_000, rampup_ratio=0.05))
  c.samplers = dict(heun=dict(name="heun", num_steps=40))
  c.evals.grid.samplers = c.evals.fid.samplers = ("heun",)
  return c
