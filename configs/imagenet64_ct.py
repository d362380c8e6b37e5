r"""ImageNet-64, class-conditional: consistency training in discrete time (CT).

  python -m cmjax.main --config=configs/imagenet64_ct.py --workdir=runs/imagenet64_ct

N(k) from 2 to 200, mu0 = 0.95, RAdam 8e-6, batch 2048, 800k steps, average 0.999943, from random
weights (Song et al. 2023, table 3; the released script has lr 1e-4 and starts from the teacher).
The network is the paper's ADM, in float32 (theirs: float16 with a scaled loss). iCT found its scale
and shift unstable and does without: --config.net.modulation=additive. imagenet64_ct.py:lpips takes
LPIPS, as the paper does.
Data as in imagenet64_teacher.py.

Published, with LPIPS: FID 13.0 in one step, 11.1 in two. Not run by us.
"""

import ml_collections as mlc


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke = variant == "smoke"
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else 800_000
  c.batch_size = 8 if smoke else 2_048
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.sigma_data = 0.5

  c.data = dict(
    name="records", flip=True,
    records=dict(path="data/imagenet64", max_corrupt=16, cache="~/.cache/cmjax/records"),
    npz=dict(path=""), folder=dict(path="", held_out=0.0),
    tfds=dict(dataset="imagenet_resized/64x64", data_dir=None),  # other pixels: see the teacher's
  )  # fmt: skip
  c.net = dict(
    name="adm", resolution=64, in_channels=3, channels=8 if smoke else 192,
    channel_mult=(1, 1, 1, 1) if smoke else (1, 2, 3, 4), num_blocks=1 if smoke else 3,
    attn_resolutions=(32, 16, 8), channels_per_head=8 if smoke else 64, dropout=0.0,
    dropout_resolution=64, num_classes=1000, augment_dim=0, modulation="scale_shift",
    preconditioning="edm", dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="ct", sigma_min=0.002, weight="uniform", distance=dict(name="squared_l2"),
    pairs=dict(name="uniform"),
    curriculum=dict(name="square_root", total_steps=c.total_steps, s0=2, s1=200),
    target=dict(name="curriculum", mu0=0.95, convention="paper"),
  )  # fmt: skip
  if (
    variant == "lpips"
  ):  # the paper's best; the weights are a file of yours, see cmjax/losses/lpips.py
    c.loss.distance = dict(
      name="lpips", path="~/.cache/cmjax/lpips_vgg16.npz", pooling="max", resize=224,
    )  # fmt: skip
  c.optim = dict(
    name="radam", lr=8e-6, b1=0.9, b2=0.999, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  c.ema = dict(main=dict(name="constant", beta=0.999943))
  c.init_from = dict(workdir="", ema="main")
  c.teacher = dict(workdir="", ema="main")

  c.samplers = dict(
    one_step=dict(name="consistency", mid_times=()),
    two_step=dict(name="consistency", mid_sigmas=(1.913,)),
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
