r"""CIFAR-10, unconditional: easy consistency tuning (ECT) of the EDM teacher.

  python -m cmjax.main --config=configs/cifar10_ect.py --workdir=runs/cifar10_ect

Needs first: cmjax train --config=cifar10_edm_teacher --workdir=runs/cifar10_edm_teacher

Starts from runs/cifar10_edm_teacher. Pairs (t, r) whose gap halves every 25k steps (q = 2, 8
stages), l2 distance, weight 1 / (t - r), dropout 0.2, RAdam 1e-4, batch 128, 200k steps, no flip
(Geng et al. 2024). Their training has EDM's unshifted boundary, as here; their sampling shifts it
by 0.003.

Published: FID 3.86 in one step, 2.15 in two after 200k steps. Not run by us.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.total_steps = 200_000
  c.batch_size = 128
  c.net.update(dropout=0.20, modulation="additive", preconditioning="edm")
  c.loss = dict(
    name="ct", sigma_min=0.0, weight="inverse_gap", distance=dict(name="l2"),
    pairs=dict(
      name="ect", P_mean=-1.1, P_std=2.0, q=2.0, k=8.0, b=1.0, mapping="sigmoid",
      num_stages=8, steps_per_stage=25_000,
    ),
    target=dict(name="current"),
  )  # fmt: skip
  c.optim.b2 = 0.999
  c.ema = dict(main=dict(name="constant", beta=0.9999))
  c.init_from.workdir = "runs/cifar10_edm_teacher"
  c.samplers.two_step = dict(name="consistency", mid_sigmas=(0.821,))
  return c
