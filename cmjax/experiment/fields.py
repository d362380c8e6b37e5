"""The Experiment: everything that a program needs, as functions and plain numbers.

`parse` makes one from a config, once. Every field can be replaced by a part of your own:
`experiment._replace(network=mine)`. Nothing below this room sees a config.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from cmjax import ema
from cmjax.base.ranges import Count, CountOrNone, Positive, Range, Seed, SigmaData
from cmjax.data import sources
from cmjax.metrics import evaluators as metrics
from cmjax.run.snapshots import Plan
from cmjax.types import Array, Cond, LossFn, Model, NetFn, Network, Params

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Frozen(NamedTuple):
  """What a loss uses and does not train.

  Attributes:
    teacher: the diffusion model that is distilled; None without.
    lpips: the weights of the LPIPS network, for that distance; None without.
  """

  teacher: Model | None = None
  lpips: Params | None = None


class Stored(NamedTuple):
  """An average of another run: its workdir, and the name of the average."""

  workdir: str
  ema: str


def no_params(key: Array, net: Params, teacher: Params | None) -> Params:
  """Trains nothing beside the network."""
  del key, net, teacher
  return {}


class Method(NamedTuple):
  """What `loss.name` chooses. `Method(name, loss)` is whole.

  Attributes:
    name: of the method, for messages and records.
    loss: network, frozen -> the loss that a train step differentiates.
    init: key, the network's first weights, the teacher's in this network's shape (or None) ->
      what is trained beside the network, {name: params}: a weighting, a fake score.
    distils: whether it needs a teacher.
    starts_from_teacher: whether `init` wants the teacher's weights in this network's shape.
    needs: inputs that the network must have: "guidance", "segment".
    teacher_needs_no_class: whether the teacher must know "no class", for guidance.
    label_dropout: the share of labels that are left out in training.
    target: the decay of the average that is the loss's target network; None: it has none.
    sampled: how samplers see the network.
    optimizer: the optimizer of the network -> that of all that is trained.
    normalized_paths: regular expressions for parameters beside the network that are put back to
      unit norm after each update.
    lpips: reads the weights of the LPIPS network; None for a loss without.
    tangent: in what the tangent's pass is computed, {dtype, matmul_precision}, where it differs.
    evaluations: of networks that a train step cannot do without, where a forward pass counts as 1
      and a backward pass as 2: 3 for a loss of one output. For benchmarks; None: not known.
  """

  name: str
  loss: Callable[[Network, Frozen], LossFn]
  init: Callable[[Array, Params, Params | None], Params] = no_params
  distils: bool = False
  starts_from_teacher: bool = False
  needs: tuple[str, ...] = ()
  teacher_needs_no_class: bool = False
  label_dropout: float = 0.0
  target: ema.Decay | None = None
  sampled: Callable[[NetFn], NetFn] = lambda apply: apply
  optimizer: Callable[[optax.GradientTransformation], optax.GradientTransformation] = lambda tx: tx
  normalized_paths: tuple[str, ...] = ()
  lpips: Callable[[], Params | None] = lambda: None
  tangent: Mapping[str, Any] = _NOTHING
  evaluations: int | None = None


class Samples(NamedTuple):
  """What one sample is.

  Attributes:
    shape: of one sample, as the network takes it.
    num_classes: 0 without labels.
    latents: the name of the convention of latents; None: pixels, or points.
    vae: the file of the autoencoder that makes images of latents; None: none is named.
  """

  shape: tuple[int, ...]
  num_classes: int = 0
  latents: str | None = None
  vae: str | None = None


class Sampler(NamedTuple):
  """One way to draw samples. `Sampler(draw, nfe)` is whole.

  Attributes:
    draw: net, params, keys [n] (one a sample), shape (n, ...), cond -> x_0.
    nfe: network evaluations per sample.
    times: the angles that it visits, for cards.
    guided: network, the weaker model (or None) -> the network under guidance; None: no guidance.
    guide: where the weaker model of autoguidance is; None without.
    evaluations: of the network in one evaluation of the guided one.
    with_times: intermediate times -> this sampler with those; None: it has none to search.
    draw_at: as `draw`, with the angles as a further argument, for a search; None without.
    searched: whether times that were searched for a run take the place of these.
    record: the section of the config, for cards.
  """

  draw: Callable[[NetFn, Params, Array, tuple[int, ...], Cond], Array]
  nfe: int
  times: np.ndarray = np.zeros(0)
  guided: Callable[[NetFn, Model | None], NetFn] | None = None
  guide: Stored | None = None
  with_times: "Callable[[tuple[float, ...]], Sampler] | None" = None
  draw_at: Callable[..., Array] | None = None
  searched: bool = True
  record: Mapping[str, Any] = _NOTHING


class Kept(NamedTuple):
  """Where a run keeps what its evaluators would make anew in each sitting.

  Attributes:
    folder: the workdir of the run.
    data: -> the digest of its training data.
  """

  folder: epath.Path
  data: Callable[[], str]


class Setting(NamedTuple):
  """What an evaluator is told when it is opened.

  Attributes:
    samplers: its samplers, compiled: params, key, numbers -> numbers, samples.
    emas: the averages that it looks at.
    source: opens a split of the data.
    samples: what one sample is.
    mesh: whose devices share the work.
    about: what cards say of samplers and averages.
    data: what cards say of the data.
    ask: is called between batches, equally often on every process, and may raise to end it all.
    kept: where the run keeps what is made once; None: nowhere.
  """

  samplers: Mapping[str, metrics.Sampler]
  emas: tuple[str, ...]
  source: Callable[[str], sources.Source]
  samples: Samples
  mesh: Mesh
  about: metrics.About
  data: Mapping[str, Any]
  ask: Callable[[], None] = lambda: None
  kept: Kept | None = None


class Evaluator(NamedTuple):
  """Something that looks at samples. `Evaluator(open)` is whole.

  Attributes:
    open: setting -> the evaluator: averages, key -> (name, value), value a scalar, an array of
      samples to draw, or a card. Called once, before training.
    samplers: names of the samplers that it draws with.
    emas: names of the averages that it looks at.
    every_steps: when it runs beside the last step.
    at_start: whether at step 0 too.
    scorer: setting, **changes -> how it scores images, where it does; for images that are there
      already, references, and searches.
    scores: which scores it has of images.
    batch_size: samples at a time, in a search.
    num_samples: that it looks at; None: not known.
    measures_speed: whether its scalars are images per second.
    absent: the key of the file without which there is nothing to evaluate; None: it can run.
  """

  open: Callable[[Setting], metrics.Evaluator]
  samplers: tuple[str, ...] = ()
  emas: tuple[str, ...] = ()
  every_steps: int = 1
  at_start: bool = False
  scorer: Callable[..., Any] | None = None
  scores: tuple[str, ...] = ()
  batch_size: int | None = None
  num_samples: int | None = None
  measures_speed: bool = False
  absent: str | None = None


class Run(NamedTuple):
  """The numbers of a run.

  Attributes:
    seed: of all randomness.
    total_steps: of the training; 0 of weights that were converted.
    batch_size: images in the global batch of a step.
    sigma_data: std of data and noise.
    flip: whether images are mirrored at random.
    microbatch: samples in one pass of gradient accumulation; None: the batch in one.
    steps_per_dispatch: steps that are sent to the devices at once.
    loss_scale: by what the loss is multiplied for a body in float16.
    log_every_steps: when metrics are recorded.
    save_every_steps: when checkpoints are written.
    keep: how many of the newest checkpoints stay.
    asynchronous: whether training goes on while a checkpoint is written.
    mesh: arguments of `sharding.make_mesh`: data, fsdp, across_slices.
    nonfinite: "stop", "skip" or "roll_back" where a loss or gradient is not finite.
    spike_factor: a norm this many times its median is a spike; None: none is.
    on_spike: "warn", "stop" or "roll_back".
    probe_every_steps: how often the jvp is compared with a difference; None: never.
    stall_seconds: without the end of a step after which all stacks are written; None: never.
    deterministic: whether GPUs compute each step to the same bits every time, which is slower.
    read_threads: that load whole batches ahead on each host; 0: none beside the loop's own.
    prefetch: batches that may wait to be used.
  """

  seed: Seed
  total_steps: CountOrNone
  batch_size: Count
  sigma_data: SigmaData
  flip: bool = False
  microbatch: Count | None = None
  steps_per_dispatch: Count = 1
  loss_scale: Annotated[float, Range(0, ends="(]", why="For float16 try 32768.")] = 1.0
  log_every_steps: Count = 100
  save_every_steps: Count = 1_000
  keep: Count = 2
  asynchronous: bool = True
  mesh: Mapping[str, Any] = _NOTHING
  nonfinite: str = "stop"
  spike_factor: Annotated[float, Range(1, ends="(]")] | None = 10.0
  on_spike: str = "warn"
  probe_every_steps: Count | None = None
  stall_seconds: Positive | None = 1_800.0
  deterministic: bool = False
  read_threads: Annotated[int, Range(0, 1024)] = 2
  prefetch: Annotated[int, Range(1, 1024)] = 4


class Experiment(NamedTuple):
  """One experiment, made once from a config (`parse`) or by hand.

  Attributes:
    network: the network to train.
    method: what it learns.
    samples: what one sample is.
    source: split ("train", "test") -> the data.
    tx: the optimizer of the network; `transformation` adds what method and network want.
    schedule: step -> learning rate, for the records.
    averages: {name: decay} of the averages of the network's weights.
    samplers: {name: how samples are drawn}.
    evaluators: {label: what looks at them}.
    run: the numbers.
    teacher: where the teacher is, or the model itself; None without.
    init_from: where the first weights are, or a model that has them; None: random ones.
    snapshots: which averages are stored, and when; None: none.
    loggers: objects with write(step, scalars), images(step, name, pixels) and close().
    record: the config, as it is stored beside a checkpoint; nobody reads values from it.
    parsed: {field: what `parse` made}, by which a part that was replaced is known.
  """

  network: Network
  method: Method
  samples: Samples
  source: Callable[[str], sources.Source]
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  averages: Mapping[str, ema.Decay]
  samplers: Mapping[str, Sampler]
  evaluators: Mapping[str, Evaluator]
  run: Run
  teacher: Stored | Model | None = None
  init_from: Stored | Model | None = None
  snapshots: Plan | None = None
  loggers: tuple[Any, ...] = ()
  record: Mapping[str, Any] = _NOTHING
  parsed: Mapping[str, Any] = _NOTHING
