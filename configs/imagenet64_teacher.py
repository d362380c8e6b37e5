r"""ImageNet-64, class-conditional: the TrigFlow diffusion teacher, S to XL (sCM, table 4).

  python -m cmjax.data.prepare ILSVRC/train --out data/imagenet64 \
      --transform=center-crop-dhariwal --resolution=64 --convert=cmyk,alpha
  python -m cmjax.main --config=configs/imagenet64_teacher.py:s --workdir=runs/imagenet64_teacher_s

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

# size: channels, learning rate, steps, dropout, length of the average
SIZES = {
  "s": (192, 1e-2, 1_048_576, 0.0, 0.075),
  "m": (256, 9e-3, 1_486_000, 0.1, 0.06),
  "l": (320, 8e-3, 761_000, 0.1, 0.04),
  "xl": (384, 7e-3, 540_000, 0.1, 0.04),
}


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke, size = variant == "smoke", variant if variant in SIZES else "s"
  if variant not in ("", "smoke", *SIZES):
    raise ValueError(f"Unknown variant {variant!r}. Choose from: smoke, {', '.join(SIZES)}.")
  channels, lr, total_steps, dropout, sigma_rel = SIZES[size]
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else total_steps
  c.batch_size = 8 if smoke else 2_048
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.sigma_data = 0.5

  c.data = dict(
    name="records", flip=False,
    records=dict(path="data/imagenet64", max_corrupt=16, cache="~/.cache/cmjax/records"),
    npz=dict(path=""), folder=dict(path="", held_out=0.0),
    tfds=dict(dataset="imagenet_resized/64x64", data_dir=None),  # other pixels: see the teacher's
  )  # fmt: skip
  c.net = dict(
    name="edm2", resolution=64, in_channels=3, channels=8 if smoke else channels,
    channel_mult=(1, 1, 1, 1) if smoke else (1, 2, 3, 4), num_blocks=1 if smoke else 3,
    attn_resolutions=(16, 8), channels_per_head=8 if smoke else 64, dropout=dropout,
    dropout_resolution=64, num_classes=1000, modulation="pnorm_scale_shift",
    embedding="positional", dtype="bfloat16",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(name="diffusion", P_mean=-0.8, P_std=1.6, weighting="learned")
  c.optim = dict(
    name="adam", lr=lr, b1=0.9, b2=0.99, eps=1e-11, clip_norm=None,
    schedule=dict(name="inverse_sqrt", decay_steps=35_000, warmup_steps=4_883),
  )  # fmt: skip
  c.ema = dict(main=dict(name="power", sigma_rel=sigma_rel))
  c.init_from = dict(workdir="", ema="main")
  c.teacher = dict(workdir="", ema="main")

  c.samplers = dict(heun=dict(name="heun", num_steps=3 if smoke else 32))
  c.evals = dict(
    grid=dict(name="samples", samplers=("heun",), emas=("main",),
              every_steps=10_000, num_samples=8 if smoke else 64),
    # FID, once its network is named: --config.evals.fid.weights=FILE (docs/metrics.md).
    fid=dict(name="frechet", samplers=("heun",), emas=("main",), every_steps=50_000,
             features="inception", variant="edm", weights=None, reference="train",
             num_samples=50_000, batch_size=500, floor=False),
  )  # fmt: skip
  c.log_every_steps = 1 if smoke else 100
  c.checkpoint = dict(every_steps=5_000, keep=3, asynchronous=True)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
