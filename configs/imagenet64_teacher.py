r"""ImageNet-64, class-conditional: the TrigFlow diffusion teacher, S to XL (sCM, table 4).

  python -m cmjax.data.prepare ILSVRC/train --out data/imagenet64 \
      --transform=center-crop-dhariwal --resolution=64 --convert=cmyk,alpha
  python -m cmjax.main --config=configs/imagenet64_teacher.py:s --workdir=runs/imagenet64_teacher_s

Needs first: cmjax prepare ILSVRC/train --out data/imagenet64, with the options of the first line.

The size comes after the colon: s (the default), m, l, xl. Adam with EDM2's schedule (t_ref 35000),
batch 2048, no flip. EDM2 with a positional embedding of t and sCM's adaptive double normalisation:
S has 293.9 M parameters; what the paper counts is nearer to --config.net.modulation=pnorm_scale,
280.2 M. bfloat16 as in its replication; the paper has float16. tfds's imagenet_resized/64x64 and
EDM's ImageNet-64 were resized otherwise: other pixels, other FID.

  size                  S       M       L       XL
  net.channels          192     256     320     384
  optim.lr              1e-2    9e-3    8e-3    7e-3
  total_steps           1048k   1486k   761k    540k
  net.dropout           0       0.1     0.1     0.1
  ema.main.sigma_rel    0.075   0.06    0.04    0.04

Published, at NFE 63: FID 1.70 (S), 1.55 (M), 1.44 (L), 1.38 (XL). Not run by us.
"""

import ml_collections as mlc

from cmjax import pages

# size: learning rate, steps, dropout, length of the average
SIZES = {
  "s": (1e-2, 1_048_576, 0.0, 0.075),
  "m": (9e-3, 1_486_000, 0.1, 0.06),
  "l": (8e-3, 761_000, 0.1, 0.04),
  "xl": (7e-3, 540_000, 0.1, 0.04),
}
VARIANTS = tuple(SIZES)


def get_config(size: str = "s") -> mlc.ConfigDict:
  c = pages.shared(f"imagenet64:{size}")
  c.optim.lr, c.total_steps, c.net.dropout, c.ema.main.sigma_rel = SIZES[size]
  c.net.dropout_resolution = 64
  c.loss = dict(name="diffusion", P_mean=-0.8, P_std=1.6, weighting="learned")
  c.samplers = dict(heun=dict(name="heun", num_steps=32))  # NFE 63
  c.evals.grid.samplers = c.evals.fid.samplers = ("heun",)
  return c
