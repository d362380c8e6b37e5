r"""ImageNet-64, class-conditional: easy consistency tuning (ECT), size S.

  python -m cmjax.main --config=configs/imagenet64_ect.py --workdir=runs/imagenet64_ect

q = 4, pseudo-Huber with c = 0.06, weight 1/t^2 + 1/sigma_data^2, P_mean -0.8, P_std 1.6, Adam 1e-3
with 1/sqrt decay after 2000 steps, dropout 0.4 at 16x16 and below, batch 128, 100k steps (Geng et
al. 2024). Theirs starts from EDM2-S; this from runs/imagenet64_edm_teacher, an ADM.
Data as in imagenet64_teacher.py.

Published, size S: FID 5.51 in one step, 3.18 in two. Not run by us.
"""

import ml_collections as mlc


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke = variant == "smoke"
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else 100_000
  c.batch_size = 8 if smoke else 128
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
    name="adm", resolution=64, in_channels=3, channels=8 if smoke else 192,
    channel_mult=(1, 1, 1, 1) if smoke else (1, 2, 3, 4), num_blocks=1 if smoke else 3,
    attn_resolutions=(32, 16, 8), channels_per_head=8 if smoke else 64, dropout=0.4,
    dropout_resolution=16, num_classes=1000, augment_dim=0, modulation="scale_shift",
    preconditioning="edm", dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="ct", sigma_min=0.0, weight="karras", weight_level="larger",
    distance=dict(name="pseudo_huber", c=0.06),
    pairs=dict(
      name="ect", P_mean=-0.8, P_std=1.6, q=4.0, k=8.0, b=1.0, mapping="sigmoid",
      num_stages=2 if smoke else 4,
      steps_per_stage=1 if smoke else 25_000,
    ),
    target=dict(name="current"),
  )  # fmt: skip
  c.optim = dict(
    name="adam", lr=1e-3, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
    schedule=dict(name="inverse_sqrt", decay_steps=2_000, warmup_steps=0),
  )  # fmt: skip
  c.ema = dict(main=dict(name="power", sigma_rel=0.05))
  c.init_from = dict(workdir="runs/imagenet64_edm_teacher", ema="main")
  c.teacher = dict(workdir="", ema="main")

  c.samplers = dict(
    one_step=dict(name="consistency", mid_times=()),
    two_step=dict(name="consistency", mid_sigmas=(1.526,)),
  )
  c.evals = dict(
    grid=dict(name="samples", samplers=("one_step", "two_step"), emas=("main",),
              every_steps=10_000, num_samples=8 if smoke else 64),
    # FID, once its network is named: --config.evals.fid.weights=FILE (docs/metrics.md).
    fid=dict(name="frechet", samplers=("one_step", "two_step"), emas=("main",), every_steps=50_000,
             features="inception", variant="edm", weights=None, reference="train",
             num_samples=50_000, batch_size=500, floor=False),
  )  # fmt: skip
  c.log_every_steps = 1 if smoke else 100
  c.checkpoint = dict(every_steps=5_000, keep=3, asynchronous=True)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
