r"""Your own pictures, 64x64 or 32x32: the diffusion teacher (TrigFlow, v-prediction).

  cmjax prepare PHOTOS --out data/own_images64 --transform=center-crop --resolution=64 \
      --convert=palette,alpha,cmyk,16-bit,animated --held_out=0.1
  python -m cmjax.main --config=configs/own_images_teacher.py:64 \
      --workdir=runs/own_images_teacher_64

Needs first: cmjax prepare PHOTOS --out data/own_images64, with the options of the first line.

`cmjax start PHOTOS --out runs/photos` does all of this for you, and writes pages with the numbers
of your pictures. By hand: the side of the pictures comes after the colon, 64 (the default) or 32,
then how many there are for training, 3,000 if unsaid: own_images_teacher.py:64:12000. Steps,
warm-up and average follow that number (configs/shared/own_images.py). `cmjax measure` prints
sigma_data and P_mean for your pictures.

Mirrored pictures count as pictures: of text, --config.data.flip=False. Not run by us at this size.
"""

import ml_collections as mlc

from cmjax import pages

VARIANTS = ("64", "32")


def get_config(size: str = "64", num_images: int = 3_000) -> mlc.ConfigDict:
  c = pages.shared(f"own_images:{size}:{num_images}")
  c.net.dropout = 0.1
  c.loss = dict(name="diffusion", P_mean=-1.2, P_std=1.2, weighting="learned")
  c.optim.lr = 4e-4
  c.optim.schedule.warmup_steps = c.total_steps // 20  # as of CIFAR-10's teacher
  c.samplers = dict(heun=dict(name="heun", num_steps=18))  # 35 evaluations of the network
  c.evals.grid.samplers = c.evals.swd.samplers = c.evals.fid.samplers = ("heun",)
  return c
