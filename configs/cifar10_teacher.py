r"""CIFAR-10, unconditional: the TrigFlow diffusion teacher of sCM (Lu & Song 2024, appendix G.1).

  python -m cmjax.main --config=configs/cifar10_teacher.py --workdir=runs/cifar10_teacher

Needs first: nothing. CIFAR-10 is downloaded at the first start (170 MB).

CIFAR-10 is kept in ~/.cache/cmjax/datasets; --config.data.cifar10.cache=DIR names another folder.
An .npz with train_images and test_images: --config.data.name=npz --config.data.npz.path=cifar10.npz

The paper: DDPM++ of 60.07 M parameters, 400k steps of 512, FID 2.15 at NFE 35. Not run by us; for
what we ran at a small size: docs/results/cifar10.md. Differences: EDM's augmentation (p = 0.12)
is not there yet, only its horizontal flip; the network has the input for it, so that a run can take
it up.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.data.flip = True
  c.net.dropout = 0.13
  c.loss = dict(name="diffusion", P_mean=-1.2, P_std=1.2, weighting="learned")
  c.optim.update(name="adam", lr=1e-3, b2=0.999)
  c.optim.schedule.warmup_steps = 19_531  # 10 M images
  c.samplers = dict(heun=dict(name="heun", num_steps=18))  # NFE 35
  c.evals.grid.samplers = c.evals.fid.samplers = ("heun",)
  return c
