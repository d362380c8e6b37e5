r"""ImageNet-64, class-conditional: the TrigFlow diffusion teacher, size S (sCM, table 4).

  python -m cmjax.main --config=configs/imagenet64_teacher.py --workdir=runs/imagenet64_teacher

Adam 1e-2 with EDM2's schedule (t_ref 35000), batch 2048, 1048k steps, average sigma_rel 0.075, no
flip. EDM2-S with a positional embedding of t and sCM's adaptive double normalisation, 293.9 M
parameters; what the paper counts is nearer to --config.net.modulation=pnorm_scale, 280.2 M.
bfloat16 as in its replication; the paper has float16.

  size                  M       L       XL
  net.channels          256     320     384
  optim.lr              9e-3    8e-3    7e-3
  total_steps           1486k   761k    540k
  net.dropout           0.1     0.1     0.1
  ema.main.sigma_rel    0.06    0.04    0.04

Published: FID 1.70 at NFE 63 (M 1.55, L 1.44, XL 1.38). Not run by us.
"""

import ml_collections as mlc


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke = variant == "smoke"
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else 1_048_576
  c.batch_size = 8 if smoke else 2_048
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.sigma_data = 0.5

  c.data = dict(
    name="tfds", flip=False, tfds=dict(dataset="imagenet_resized/64x64", data_dir=None),
    npz=dict(path=""), folder=dict(path="", held_out=0.0),
  )  # fmt: skip
  c.net = dict(
    name="edm2", resolution=64, in_channels=3, channels=8 if smoke else 192,
    channel_mult=(1, 1, 1, 1) if smoke else (1, 2, 3, 4), num_blocks=1 if smoke else 3,
    attn_resolutions=(16, 8), channels_per_head=8 if smoke else 64, dropout=0.0,
    dropout_resolution=64, num_classes=1000, modulation="pnorm_scale_shift",
    embedding="positional", dtype="bfloat16",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(name="diffusion", P_mean=-0.8, P_std=1.6, weighting="learned")
  c.optim = dict(
    name="adam", lr=1e-2, b1=0.9, b2=0.99, eps=1e-11, clip_norm=None,
    schedule=dict(name="inverse_sqrt", decay_steps=35_000, warmup_steps=4_883),
  )  # fmt: skip
  c.ema = dict(main=dict(name="power", sigma_rel=0.075))
  c.init_from = dict(workdir="", ema="main")
  c.teacher = dict(workdir="", ema="main")

  c.samplers = dict(heun=dict(name="heun", num_steps=3 if smoke else 32))
  c.evals = dict(
    grid=dict(name="samples", samplers=("heun",), emas=("main",),
              every_steps=10_000, num_samples=8 if smoke else 64),
  )  # fmt: skip
  c.log_every_steps = 1 if smoke else 100
  c.checkpoint = dict(every_steps=5_000, keep=3)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
