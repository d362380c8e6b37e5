r"""CIFAR-10, class-conditional: a TrigFlow diffusion teacher for guided distillation.

  python -m cmjax.main --config=configs/cifar10_cond_teacher.py --workdir=runs/cifar10_cond_teacher

Needs first: nothing. CIFAR-10 is downloaded at the first start (170 MB).

CIFAR-10 is kept in ~/.cache/cmjax/datasets; --config.data.cifar10.cache=DIR names another folder.
An .npz with train_images and test_images: --config.data.name=npz --config.data.npz.path=cifar10.npz

As cifar10_teacher.py with classes, a tenth of the labels dropped, so that classifier-free guidance
can ask it for a prediction without one: cifar10_scd_guided.py distils it. No paper has this; not
run by us.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.data.flip = True
  c.net.update(dropout=0.13, num_classes=10)
  c.loss = dict(name="diffusion", P_mean=-1.2, P_std=1.2, weighting="learned", label_dropout=0.1)
  c.optim.update(name="adam", lr=1e-3, b2=0.999)
  c.optim.schedule.warmup_steps = 19_531  # 10 M images
  c.samplers = dict(heun=dict(name="heun", num_steps=18))  # NFE 35
  c.evals.grid.samplers = c.evals.fid.samplers = ("heun",)
  return c
