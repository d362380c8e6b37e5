r"""CIFAR-10, unconditional: EDM's diffusion teacher, in EDM's preconditioning.

  python -m cmjax.main --config=configs/cifar10_edm_teacher.py --workdir=runs/cifar10_edm_teacher

Needs first: nothing. CIFAR-10 is downloaded at the first start (170 MB).

The network embeds ln(sigma) / 4 and gives EDM's F; cmjax sees it as a TrigFlow network, so it can
teach CD and sCD, and start ECT. EDM's weighting is the constant one: lambda(sigma) c_out^2 = 1.

Published (Karras et al. 2022): FID 1.97 at NFE 35, with an augmentation pipeline that is not here.
Not run by us.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.data.flip = True
  c.net.update(dropout=0.13, modulation="additive", preconditioning="edm")
  c.loss = dict(name="diffusion", P_mean=-1.2, P_std=1.2, weighting="constant")
  c.optim.update(name="adam", lr=1e-3, b2=0.999)
  c.optim.schedule.warmup_steps = 19_531  # 10 M images
  c.samplers = dict(heun=dict(name="heun", num_steps=18))  # NFE 35
  c.evals.grid.samplers = c.evals.fid.samplers = ("heun",)
  return c
