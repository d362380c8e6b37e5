r"""Every method side by side: one network, one batch size, the same compute, the same detector.

  python benchmarks/comparison/methods.py --workdir=runs/methods  # digits, three seeds
  python benchmarks/comparison/methods.py --workdir=runs/methods --data=fashion_mnist --seeds=1
  python benchmarks/comparison/methods.py --workdir=runs/methods --report_only  # only the tables

Fashion-MNIST is the pages of digits with another network, scale of data and proposal (FASHION_MNIST
below), and reads ~/.cache/cmjax/fashion_mnist.npz (train_images, train_labels, test_images,
test_labels).

Compute is counted in FLOPs of the compiled train step, not in steps: a step of sCD costs 5/3 of a
diffusion step, one with VSD more. The budget is that of the teacher's own training and, on top,
--scale times as much for each student; a method that starts from random weights and has no teacher
gets both. Curricula are stretched to the steps that come out.

All distances are Frechet distances in the features of a classifier that is trained first on the
training images (cmjax/metrics/classifier.py), each of the same number of samples. Several averages
of the weights are scored; the one with the best one-step distance, in the mean over seeds, is the
one that the table shows for a method. The second of two steps is at sCM's time for all, and a
second time at the time that --mode=search finds for the run, with other noise than is scored.

Stopped by --budget (in minutes), by SIGTERM or by SIGINT, it goes on where it was when the same
command is started again; each finished run is a row of results.json. The rows behind the tables of
docs/results/methods.md are in docs/results/: --known=docs/results makes those that are missing
there, on another machine too, and trains a teacher again only where a student needs it.
"""

import argparse
import functools
import json
import logging
import os
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np

from cmjax import experiment, pages
from cmjax.base import atomic_files
from cmjax.data import sources
from cmjax.metrics import classifier
from cmjax.program import compiled_step, sample, searched_times, stored_runs, train
from cmjax.program.course import key_for
from cmjax.run import page as report_page

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = "digits_"


def methods():
  """The teacher, then every method that has a page of digits without labels, in METHODS' order."""
  order, found = list(experiment.METHODS), {}
  for name in pages.names():
    if name.startswith(PAGES) and not (config := pages.load(name)).net.num_classes:
      found[name.removeprefix(PAGES)] = order.index(config.loss.name)
  return tuple(sorted(found, key=lambda method: (found[method], method)))


METHODS = methods()
STEPS = (1, 2, 4)
NUM_SAMPLES = 2_000
# The second step is at sCM's 1.1; no paper gives four, these halve the way down from it.
MID_TIMES = {1: (), 2: (1.1,), 4: (1.3, 1.1, 0.6)}
PROBES = 12  # of the second step's time
# Half-lives as a part of the training so far, beside the config's own average.
AVERAGES = {"short": 0.05, "long": 0.3}
NEVER = 10**9
# Most of the network is at 7x7, so that a CPU can train it: 370,000 parameters, 13 GFLOP in a step
# of the teacher. sigma_data and the proposals are those of --mode=measure.
FASHION_MNIST = {
  "data": dict(name="npz", flip=False, npz=dict(path="~/.cache/cmjax/fashion_mnist.npz")),
  "sigma_data": 0.705,
  "net": dict(resolution=28, channels=8, channel_mult=(1, 2, 6), attn_resolutions=(7,)),
  "batch_size": 64,
  "teacher": dict(P_mean=0.0, P_std=1.2),
  "student": dict(P_mean=-0.5, P_std=1.5),
}


def configure(args, data, method, seed, steps=None):
  """A method's page of configs/ with this comparison's averages, samplers and scores."""
  config = pages.load(f"{PAGES}{method}" + (f":{args.variant}" if args.variant else "")).unlock()
  if data == "fashion_mnist":
    move_to_fashion_mnist(config, method, args.variant)
  config.seed = seed
  teacher = str(args.workdir / data / "teacher" / f"seed{seed}")
  for section in (config.teacher, config.init_from):
    section.workdir = teacher if section.workdir else ""
  if steps:
    stretch(config, steps, schedule=args.scale != 1)
  images = config.total_steps * config.batch_size
  for name, part in AVERAGES.items():
    # The ramp keeps it at that part of the training so far: with less, all would be the same.
    config.ema[name] = dict(
      name="half_life", half_life_images=max(1, round(part * images)), rampup_ratio=part
    )
  config.samplers = samplers(config, method)
  smoke = args.variant == "smoke"
  number = 64 if smoke else NUM_SAMPLES
  config.evals = {
    "fd": dict(
      name="frechet", features="classifier", weights=str(detector_path(args, data)),
      samplers=tuple(config.samplers), emas=tuple(config.ema), num_samples=number,
      batch_size=min(number, 500),
      every_steps=max(1, config.total_steps // args.curve) if args.curve else NEVER,
    )
  }  # fmt: skip
  config.checkpoint = dict(every_steps=max(1, config.total_steps // 8), keep=1, asynchronous=True)
  return config


def move_to_fashion_mnist(config, method, variant):
  """The same method on other images; the proposal where it has sCM's, papers keep their own."""
  for key in ("sigma_data", "batch_size"):
    config[key] = FASHION_MNIST[key]
  config.data = FASHION_MNIST["data"]
  config.net.update(FASHION_MNIST["net"])
  if "P_mean" in config.loss:
    config.loss.update(FASHION_MNIST["teacher" if method == "teacher" else "student"])
  if method == "teacher" and not variant:
    stretch(config, 1_500)
  if config.loss.get("vsd"):
    config.loss.vsd.fake.update(FASHION_MNIST["student"])


def samplers(config, method):
  """{'1': ..., '2': ..., '4': ...} for consistency models; a teacher's ODE in as few steps too."""
  if method == "teacher":
    few = {str(n): dict(name="ddim", num_steps=n) for n in STEPS if n > 1}  # a grid has two levels
    return few | {"heun": config.samplers.heun.to_dict()}
  if config.loss.get("num_segments", 1) > 1:
    return {str(config.loss.num_segments): config.samplers.segments.to_dict()}
  one = next(iter(config.samplers.values())).to_dict()
  return {str(n): one | {"mid_times": MID_TIMES[n]} for n in STEPS}


def stretch(config, steps, *, schedule=False):
  """Sets the number of steps, and what depends on it in the page's own proportion.

  With `schedule` the decay of the learning rate as well: a run of many times the page's steps would
  spend most of them at a rate that is nearly nothing.
  """
  ratio, config.total_steps = steps / config.total_steps, steps
  if "curriculum" in config.loss and "total_steps" in config.loss.curriculum:
    config.loss.curriculum.total_steps = steps
  if "pairs" in config.loss and "steps_per_stage" in config.loss.pairs:
    config.loss.pairs.steps_per_stage = max(1, int(config.loss.pairs.steps_per_stage * ratio))
  for optim in optimizers(config) if schedule else ():
    if "decay_steps" in optim.schedule:
      optim.schedule.decay_steps = max(1, round(optim.schedule.decay_steps * ratio))


def optimizers(config):
  """The sections of the optimizers: the network's, and the fake score's where there is one."""
  return [config.optim, *([config.loss.vsd.fake.optim] if config.loss.get("vsd") else [])]


def detector_path(args, data):
  return args.workdir / data / "classifier.npz"


def make_detector(args, data):
  """The classifier of a data set, trained if it is not there."""
  path = detector_path(args, data)
  if not path.exists():
    given = experiment.parse(configure(args, data, "teacher", 0))
    splits = [sources.as_array(experiment.opened(given, split)) for split in sources.SPLITS]
    start = time.monotonic()
    made = classifier.train(
      *splits[0], splits[1], num_steps=20 if args.variant == "smoke" else None
    )
    classifier.save(path, made)
    print(f"{data}: classifier of {made.accuracy:.2%} held-out accuracy "
          f"in {time.monotonic() - start:.0f} s")  # fmt: skip
  return classifier.load(path).accuracy


def count_flops(args, data, method):
  """FLOPs of one train step, compiled; remembered in flops.json."""
  path = args.workdir / data / "flops.json"
  known = json.loads(path.read_text()) if path.exists() else {}
  if method not in known:
    given, key = experiment.parse(configure(args, data, method, 0)), jax.random.key(0)
    frozen, teacher = {"teacher": None, "lpips": given.method.lpips()}, None
    if given.teacher:
      teacher = experiment.parse(configure(args, data, "teacher", 0)).network
      frozen["teacher"] = jax.eval_shape(teacher.init, key)
    tx = experiment.transformation(given)
    step = compiled_step.make_step_fn(given, tx, teacher)
    state = jax.eval_shape(experiment.state_init(given, tx), key)
    shape = (given.run.batch_size, *given.samples.shape)
    batch = {"image": jax.ShapeDtypeStruct(shape, np.float32)}
    compiled = jax.jit(step).lower(state, batch, key, frozen).compile()
    known[method] = compiled.cost_analysis()["flops"]
    write_json(path, known)
    jax.clear_caches()
  return known[method]


def is_alone(config):
  """Whether nothing of a teacher goes into a run."""
  return not (config.teacher.workdir or config.init_from.workdir)


def steps_of(args, data, method):
  """How many steps the budget pays for."""
  base = configure(args, data, "teacher", 0)
  teacher = base.total_steps * count_flops(args, data, "teacher")
  if method == "teacher":
    return base.total_steps
  budget = teacher * (args.scale + is_alone(configure(args, data, method, 0)))
  return max(1, round(budget / count_flops(args, data, method)))


def run(args, data, method, seed):
  """Trains and scores one run, or goes on with it; returns its row."""
  steps = steps_of(args, data, method)
  config = configure(args, data, method, seed, steps)
  workdir = args.workdir / data / method / f"seed{seed}"
  train_teacher(args, data, config, seed)
  start = time.monotonic()
  scores = train_and_score(config, workdir)
  gflop = steps * count_flops(args, data, method) / 1e9
  return {
    "steps": steps, "gflop": gflop, "seconds": time.monotonic() - start,
    "scores": scores, "curve": curve(workdir, gflop / steps) if args.curve else {},
  }  # fmt: skip


def search(args, data, method, seed):
  """The second step's time as searched for a finished run, and the distances with it.

  {} where there is none to choose, or where no more than the run's row is here.
  """
  config = configure(args, data, method, seed, steps_of(args, data, method))
  workdir = args.workdir / data / method / f"seed{seed}"
  two_steps = config.samplers.get("2")
  if not two_steps or two_steps.name != "consistency" or not (workdir / "checkpoints").exists():
    return {}
  number, given = config.evals.fd.num_samples, experiment.parse(config)
  sample.search_times(given, workdir, name="2", num_samples=number, num_probes=PROBES, seed=seed)
  given = searched_times.use(given, workdir, stored_runs.newest_weights(workdir))
  mesh, only = experiment.make_mesh(given.run), given.evaluators["fd"]._replace(samplers=("2",))
  trained = stored_runs.load_network(workdir, mesh)
  scores = experiment.frechet_scores(given._replace(evaluators={"fd": only}), mesh)[1]
  found = {
    f"fd/2/{ema}": scores(params, key_for(seed, "evaluate"))["2"]
    for ema, params in trained.averages.items()
  }
  jax.clear_caches()
  return {"mid_times": list(given.samplers["2"].record["mid_times"]), "scores": found}


def train_teacher(args, data, config, seed):
  """Trains the teacher that a config needs where it is not there: --known may have its row only."""
  teacher = config.teacher.workdir or config.init_from.workdir
  if teacher and not (Path(teacher) / "scores.json").exists():
    train_and_score(configure(args, data, "teacher", seed), Path(teacher))


def train_and_score(config, workdir):
  """The scores of a run, trained as far as that is not done yet."""
  scores = train.train(experiment.parse(config), workdir)
  jax.clear_caches()
  return scores


def adopt(path, known):
  """Takes the rows of earlier sittings, if there are any and none here yet."""
  if known and known.exists() and not path.exists():
    write_json(path, json.loads(known.read_text()))


def fill(path, seeds, makers, stopped, *, diverged=None):
  """Makes the rows that a file of results has not: {name: {seed: row}}.

  Seed by seed, so that a short budget still compares everything.

  Args:
    path: of the file, which is written after each row.
    seeds: how many.
    makers: {name: a function from a seed to the row}.
    stopped: () -> whether to end before the next row.
    diverged: the row of a run that stopped with a FloatingPointError; None: none is kept.
  """
  for seed in range(seeds):
    for name, make in makers.items():
      rows = json.loads(path.read_text()) if path.exists() else {}
      if str(seed) in rows.get(name, {}):
        continue
      if stopped():
        return
      try:
        row = make(seed)
      except FloatingPointError as error:  # a result too, and no reason to lose the others
        print(f"{name}, seed {seed}, diverged: {error}")
        if diverged is None:
          continue
        row = diverged
      rows.setdefault(name, {})[str(seed)] = row
      write_json(path, rows)


def curve(workdir, gflop):
  """{score: [[GFLOP, value], ...]} of a run's metrics."""
  return {
    name: [[step * gflop, value] for step, value in np.stack(series, axis=1).tolist() if step]
    for name, series in report_page.read_metrics(workdir).items()
    if name.startswith("fd/") and name != "fd/floor"
  }


def write_json(path, content):
  """Whole or not at all, and the folder where it is missing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic_files.write_json(path, content, indent=1)


# --- what came out ---


def best_average(rows):
  """The average with the least distance in the fewest steps, in the mean over seeds."""
  names = [name.split("/") for name in rows[0]["scores"] if name.count("/") == 2]
  first = min((n for _, n, _ in names if n.isdigit()), key=int)
  if "heun" in {n for _, n, _ in names}:
    first = "heun"
  mean = lambda ema: np.mean([row["scores"][f"fd/{first}/{ema}"] for row in rows])
  return min(sorted({ema for *_, ema in names}), key=mean)


def values(rows, sampler):
  """The distances of a sampler over seeds, in the method's best average; [] if it has none."""
  key = f"fd/{sampler}/{best_average(rows)}"
  return [row["scores"][key] for row in rows if key in row["scores"]]


def searched(rows):
  """The distances of two steps with the time of the second as searched, and those times."""
  key, found = f"fd/2/{best_average(rows)}", [row["searched"] for row in rows if "searched" in row]
  return [each["scores"][key] for each in found], [each["mid_times"][0] for each in found]


def cell(numbers):
  if not numbers:
    return ""
  spread = f" ± {np.std(numbers, ddof=1):.2g}" if len(numbers) > 1 else ""
  return f"{np.mean(numbers):.3g}{spread}"


def table(results, accuracy, command):
  """The lines of a Markdown table of one data set."""
  seeds = max(len(rows) for rows in results.values())
  lines = [
    f"`{command}`",
    "",
    "| method | 1 step | 2 steps | second searched | at t | 4 steps | average | steps | TFLOP "
    "| minutes |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  for method, by_seed in results.items():
    rows = list(by_seed.values())
    mean = lambda key, rows=rows: np.mean([row[key] for row in rows])
    cells = [cell(values(rows, str(n))) for n in STEPS]
    cells[2:2] = map(cell, searched(rows))
    lines.append(
      f"| {method} | {' | '.join(cells)} | {best_average(rows)} | {mean('steps'):.0f} | "
      f"{mean('gflop') / 1e3:.3g} | {mean('seconds') / 60:.1f} |"
    )
    if method == "teacher":
      nfe = cell(values(rows, "heun"))
      lines.append(
        f"| teacher, Heun's 18 steps (NFE 35) | {nfe} | | | | | {best_average(rows)} | | | |"
      )
  floor = next(iter(next(iter(results.values())).values()))["scores"]["fd/floor"]
  spread = f"mean and standard deviation over up to {seeds} seeds (network, data order, noise)"
  lines += [
    f"| held-out images | {floor:.3g} | | | | | | | | |",
    "",
    f"Fréchet distance in the 64 features of a classifier of {accuracy:.1%} held-out accuracy: "
    + ("one seed, so without a spread." if seeds == 1 else f"{spread}."),
    "TFLOP is the run's own training by the compiled step; methods that need a teacher have its on "
    "top. Minutes are wall time, scoring included, of the last sitting. The second of two steps is "
    f"at t = {MID_TIMES[2][0]}, and where a search of {PROBES} probes with other noise put it.",
  ]
  return lines


def write_results(path, name, title, lines):
  """Replaces what stands between the markers of that name, or adds a section at the end."""
  begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
  text = path.read_text() if path.exists() else "# Results\n"
  block = "\n".join([begin, *lines, end])
  if begin in text and end in text:
    text = text[: text.index(begin)] + block + text[text.index(end) + len(end) :]
  else:
    text = text.rstrip("\n") + f"\n\n## {title}\n\n{block}\n"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def plot(path, results):
  """A panel for each data set: distance of every method in 1, 2 and 4 steps; and the curves."""
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot

  curves = any(row["curve"] for d in results.values() for m in d.values() for row in m.values())
  height = max(len(methods) for methods in results.values()) * 0.32 + 1.2
  figure, axes = pyplot.subplots(
    1 + curves, len(results), figsize=(6 * len(results), height * (1 + curves)), squeeze=False
  )
  for column, (data, methods) in enumerate(results.items()):
    draw_distances(axes[0, column], data, methods)
    if curves:
      draw_curves(axes[1, column], methods)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def draw_distances(axis, data, methods):
  names = [name for name in methods if name != "teacher"]
  for n, marker in zip(STEPS, "os^", strict=True):
    for y, name in enumerate(names):
      found = values(list(methods[name].values()), str(n))
      spread = np.std(found, ddof=1) if len(found) > 1 else 0
      if found:
        axis.errorbar(np.mean(found), y, xerr=spread, fmt=marker, color=f"C{STEPS.index(n)}")
    axis.plot([], [], marker, color=f"C{STEPS.index(n)}", label=f"{n} step{'s' * (n > 1)}")
  hollow = dict(ls="", marker="s", mfc="none", color=f"C{STEPS.index(2)}")
  axis.plot([], [], **hollow, label="2 steps, the second searched")
  for y, name in enumerate(names):
    if found := searched(list(methods[name].values()))[0]:
      axis.plot(np.mean(found), y, **hollow)
  if "teacher" in methods:
    rows = list(methods["teacher"].values())
    axis.axvline(np.mean(values(rows, "heun")), color="k", lw=1, label="teacher, NFE 35")
    axis.axvline(rows[0]["scores"]["fd/floor"], color="k", lw=1, ls=":", label="held-out images")
  axis.set(xscale="log", xlabel="Fréchet distance (classifier features)", title=data)
  plain_numbers(axis.xaxis)
  axis.set_yticks(range(len(names)), names)
  axis.invert_yaxis()
  axis.legend(fontsize=7)


def plain_numbers(axis):
  """2 and not 2 x 10^0 along a logarithmic axis on which all is drawn."""
  from matplotlib import ticker

  low, high = axis.get_view_interval()
  subs = (1, 2, 5) if high > 30 * low else (1, 1.2, 1.5, 2, 3, 5, 7)
  axis.set_major_locator(ticker.LogLocator(subs=subs))
  axis.set_major_formatter("{x:g}")
  axis.set_minor_locator(ticker.NullLocator())


def draw_curves(axis, methods):
  """Distances in one and in two steps along the training of seed 0, beside the teacher's."""
  for i, (name, rows) in enumerate(methods.items()):
    if name == "teacher":
      axis.axhline(np.mean(values(list(rows.values()), "heun")), color="k", lw=1, label="teacher")
      continue
    rows = list(rows.values())
    for steps, style in (("1", "-"), ("2", "--")):
      points = rows[0]["curve"].get(f"fd/{steps}/{best_average(rows)}", [])
      if points:
        gflop, distances = np.array(points).T
        axis.plot(gflop / 1e3, distances, style, color=f"C{i % 10}", lw=1, label=f"{name}, {steps}")
  axis.set(yscale="log", xlabel="TFLOP of training", ylabel="distance in 1 and 2 steps")
  plain_numbers(axis.yaxis)
  axis.legend(fontsize=6, ncols=2)


def load_results(args):
  """{data: {method: {seed: row}}} of all data sets, in the order of METHODS."""
  found = {}
  for path in sorted(args.workdir.glob("*/results.json")):
    stored = json.loads(path.read_text())
    if ordered := {m: stored[m] for m in METHODS if stored.get(m)}:
      found[path.parent.name] = ordered
  return found


def report(args):
  results = load_results(args)
  for data, methods in results.items():
    accuracy = classifier.load(detector_path(args, data)).accuracy
    seeds = max(len(rows) for rows in methods.values())
    command = f"python benchmarks/comparison/methods.py --data={data} --seeds={seeds}"
    command += f" --scale={args.scale:g}"
    lines = table(methods, accuracy, command)
    print("\n".join(["", f"{data}:", *lines]))
    title = f"All methods at equal compute: {data}"
    if args.scale != 1:
      title += f", {args.scale:g} times the teacher's for each student"
    write_results(args.docs / "methods.md", f"methods:{data}{suffix(args)}", title, lines)
    write_json(args.docs / f"methods_{data}{suffix(args)}.json", methods)
  if results:
    plot(args.docs / f"methods{suffix(args)}.png", results)


def suffix(args):
  """Of names of what is written: another scale is another table."""
  return "" if args.scale == 1 else f"_scale{args.scale:g}"


def train_all(args, stopped):
  make_detector(args, args.data)
  makers = {method: functools.partial(run, args, args.data, method) for method in args.methods}
  path = args.workdir / args.data / "results.json"
  adopt(path, args.known and args.known / f"methods_{args.data}{suffix(args)}.json")
  fill(path, args.seeds, makers, stopped)
  search_all(args, path, stopped)


def search_all(args, path, stopped):
  """Adds to each row the second step's time as searched, and the distances with it."""
  for method in args.methods:
    for seed in range(args.seeds):
      rows = json.loads(path.read_text()) if path.exists() else {}
      row = rows.get(method, {}).get(str(seed))
      if not row or "searched" in row:
        continue
      if stopped():
        return
      if found := search(args, args.data, method, seed):
        row["searched"] = found
        write_json(path, rows)


def stopper(minutes):
  """() -> is it time? After `minutes`, or a signal, training is told to save and to end."""
  received, deadline = [], time.monotonic() + 60 * (minutes or NEVER)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: received.append(number))

  def watch():
    while not (received or time.monotonic() > deadline):
      time.sleep(1)
    while True:  # again and again: between two runs nobody listens
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(10)

  threading.Thread(target=watch, daemon=True).start()
  return lambda: bool(received) or time.monotonic() > deadline


def make_parser(doc, workdir, seeds):
  """The flags of a resumable table of runs."""
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=Path, default=workdir)
  parser.add_argument("--data", default="digits", choices=("digits", "fashion_mnist"))
  parser.add_argument("--seeds", type=int, default=seeds)
  parser.add_argument("--scale", type=float, default=1.0, help="of a student: teacher's budgets")
  parser.add_argument("--budget", type=float, default=None, help="minutes, then stop and report")
  parser.add_argument("--curve", type=int, default=0, help="so many scores along each run")
  parser.add_argument("--docs", type=Path, default=RESULTS, help="of methods.md, methods.png")
  parser.add_argument("--known", type=Path, help="folder with rows that need not be made again")
  parser.add_argument("--variant", default="", help="'smoke' for a few steps of each")
  parser.add_argument("--report_only", action="store_true")
  return parser


def start(args, train_all, report):
  """Trains what is missing, then reports all there is."""
  args.workdir = args.workdir.absolute()
  logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
  logging.getLogger("absl").setLevel(logging.ERROR)
  logging.getLogger("cmjax").setLevel(logging.INFO)
  if not args.report_only:
    try:
      train_all(args, stopper(args.budget))
    except train.Interrupted:
      print("Stopped in the middle of a run; the same command goes on from there.")
  report(args)


def main():
  parser = make_parser(__doc__, Path("runs/methods"), seeds=3)
  parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
  start(parser.parse_args(), train_all, report)


if __name__ == "__main__":
  main()
