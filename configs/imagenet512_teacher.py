r"""ImageNet-512 in latents of 64x64x4: the TrigFlow diffusion teacher, S to XXL (sCM, table 5).

  python -m cmjax.data.prepare ILSVRC/train --out data/imagenet512 --latents=VAE.safetensors \
      --transform=center-crop-dhariwal --resolution=512 --convert=cmyk,alpha
  python -m cmjax.main --config=configs/imagenet512_teacher.py:xxl \
      --workdir=runs/imagenet512_teacher_xxl

Needs first: cmjax prepare ILSVRC/train --out data/imagenet512, with the options of the first line.

The first makes latents of the autoencoder stabilityai/sd-vae-ft-mse (its file
diffusion_pytorch_model.safetensors) by sCM's convention, 168 GB; a set of EDM2's is refused. The
size comes after the colon: s (the default), m, l, xl, xxl; 280 M to 1.5 B parameters. Adam with
EDM2's schedule (t_ref 70000), batch 2048, no flip, a tenth of the labels dropped, so that one
network has the prediction without a class as well; bfloat16, the paper has float16.

  size                  S       M       L       XL      XXL
  net.channels          192     256     320     384     448
  optim.lr              1e-2    9e-3    8e-3    7e-3    6.5e-3
  total_steps           1048k   1048k   696k    598k    376k
  net.dropout           0       0.1     0.1     0.1     0.1
  ema.main.sigma_rel    0.025   0.03    0.015   0.02    0.015
  guidance              1.4     1.2     1.2     1.2     1.2

Published, at NFE 126: FID 2.29 (S), 2.00 (M), 1.87 (L), 1.80 (XL), 1.73 (XXL). Not run by us.
Samples are latents; data.records.vae makes images of them.
"""

import ml_collections as mlc

from cmjax import pages

# size: learning rate, steps, dropout, length of the average, guidance
SIZES = {
  "s": (1.0e-2, 1_048_576, 0.0, 0.025, 1.4),
  "m": (9.0e-3, 1_048_576, 0.1, 0.03, 1.2),
  "l": (8.0e-3, 696_000, 0.1, 0.015, 1.2),
  "xl": (7.0e-3, 598_000, 0.1, 0.02, 1.2),
  "xxl": (6.5e-3, 376_000, 0.1, 0.015, 1.2),
}
VARIANTS = tuple(SIZES)


def get_config(size: str = "s") -> mlc.ConfigDict:
  c = pages.shared(f"imagenet512:{size}")
  c.optim.lr, c.total_steps, c.net.dropout, sigma_rel, scale = SIZES[size]
  c.net.dropout_resolution = 64
  c.loss = dict(name="diffusion", P_mean=-0.4, P_std=1.0, weighting="learned", label_dropout=0.1)
  c.ema = dict(main=dict(name="power", sigma_rel=sigma_rel))
  del c.snapshots
  guidance = dict(name="classifier_free", scale=scale)
  c.samplers = dict(heun=dict(name="heun", num_steps=32, guidance=guidance))  # NFE 126
  c.evals.grid.samplers = c.evals.fid.samplers = ("heun",)
  return c
