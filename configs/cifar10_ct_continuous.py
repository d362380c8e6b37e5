r"""CIFAR-10, unconditional: continuous-time CT of 2023 (theorem 6), from the EDM teacher.

  python -m cmjax.main --config=configs/cifar10_ct_continuous.py \
    --workdir=runs/cifar10_ct_continuous

Needs first: cmjax train --config=cifar10_edm_teacher --workdir=runs/cifar10_edm_teacher

RAdam 5e-6, dropout 0.3, batch 512, 800k steps (Song et al. 2023, appendix B and released configs),
starting from runs/cifar10_edm_teacher, without which it does not train (there; iCT trains it from
random weights with a small Fourier scale).

Published as a curve only. Not run by us. The network is its teacher's DDPM++; the paper's is the
NCSN++ of cifar10_ct.py.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.total_steps = 800_000
  c.data.flip = True
  c.net.update(dropout=0.3, modulation="additive", preconditioning="edm")
  c.loss = dict(
    name="ct_continuous", sigma_min=0.002, distance=dict(name="squared_l2"), stop_gradient=True
  )
  c.optim.update(lr=5e-6, b2=0.999)
  c.ema = dict(main=dict(name="constant", beta=0.9999))
  c.init_from.workdir = "runs/cifar10_edm_teacher"
  c.samplers.two_step = dict(name="consistency", mid_sigmas=(0.585,))
  return c
