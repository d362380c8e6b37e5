r"""ImageNet-512 in latents of 64x64x4: the TrigFlow diffusion teacher, S to XXL (sCM, table 5).

  python -m cmjax.data.prepare ILSVRC/train --out data/imagenet512 --latents=VAE.safetensors \
      --transform=center-crop-dhariwal --resolution=512 --convert=cmyk,alpha
  python -m cmjax.main --config=configs/imagenet512_teacher.py:xxl \
      --workdir=runs/imagenet512_teacher_xxl

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

# size: channels, learning rate, steps, dropout, length of the average, guidance
SIZES = {
  "s": (192, 1.0e-2, 1_048_576, 0.0, 0.025, 1.4),
  "m": (256, 9.0e-3, 1_048_576, 0.1, 0.03, 1.2),
  "l": (320, 8.0e-3, 696_000, 0.1, 0.015, 1.2),
  "xl": (384, 7.0e-3, 598_000, 0.1, 0.02, 1.2),
  "xxl": (448, 6.5e-3, 376_000, 0.1, 0.015, 1.2),
}


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke, size = variant == "smoke", variant if variant in SIZES else "s"
  if variant not in ("", "smoke", *SIZES):
    raise ValueError(f"Unknown variant {variant!r}. Choose from: smoke, {', '.join(SIZES)}.")
  channels, lr, total_steps, dropout, sigma_rel, scale = SIZES[size]
  large = size in ("xl", "xxl")  # of which a chip holds neither a copy nor all activations
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else total_steps
  c.batch_size = 8 if smoke else 2_048
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.sigma_data = 0.5

  c.data = dict(
    name="records", flip=False,
    records=dict(path="data/imagenet512", latents="scm", vae=None, max_corrupt=16,
                 cache="~/.cache/cmjax/records"),
  )  # fmt: skip
  c.net = dict(
    name="edm2", resolution=64, in_channels=4, channels=8 if smoke else channels,
    channel_mult=(1, 1, 1, 1) if smoke else (1, 2, 3, 4), num_blocks=1 if smoke else 3,
    attn_resolutions=(16, 8), channels_per_head=8 if smoke else 64, dropout=dropout,
    dropout_resolution=64, num_classes=1000, modulation="pnorm_scale_shift",
    embedding="positional", remat=large, dtype="bfloat16",
    scan=large,
  )  # fmt: skip
  c.loss = dict(name="diffusion", P_mean=-0.4, P_std=1.0, weighting="learned", label_dropout=0.1)
  c.optim = dict(
    name="adam", lr=lr, b1=0.9, b2=0.99, eps=1e-11, clip_norm=None,
    schedule=dict(name="inverse_sqrt", decay_steps=70_000, warmup_steps=4_883),
  )  # fmt: skip
  c.ema = dict(main=dict(name="power", sigma_rel=sigma_rel))
  c.init_from = dict(workdir="", ema="main")
  c.teacher = dict(workdir="", ema="main")

  c.samplers = dict(
    heun=dict(
      name="heun", num_steps=3 if smoke else 32,
      guidance=dict(name="classifier_free", scale=scale),
    ),
  )  # fmt: skip
  # Off until their files are named: data.records.vae, and evals.fid.weights (docs/metrics.md).
  c.evals = dict(
    grid=dict(name="samples", samplers=("heun",), emas=("main",),
              every_steps=10_000, num_samples=8 if smoke else 16),
    fid=dict(name="frechet", samplers=("heun",), emas=("main",), every_steps=50_000,
             features="inception", variant="edm", weights=None, reference="data/img512.pkl",
             floor=False, num_samples=50_000, batch_size=512),
  )  # fmt: skip
  c.log_every_steps = 1 if smoke else 100
  c.checkpoint = dict(every_steps=5_000, keep=3, asynchronous=True)
  c.mesh = dict(data=1, fsdp=-1) if large else dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
