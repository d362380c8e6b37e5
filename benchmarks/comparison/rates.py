r"""What each method needs to be stable: its learning rate, its warm-up, its average.

  python benchmarks/comparison/rates.py                        # digits, one seed
  python benchmarks/comparison/rates.py --methods sct scd --variants "rate x 5"
  python benchmarks/comparison/rates.py --report_only

Each method of benchmarks/comparison/methods.py with a fifth of the learning rate of its page, twice
and five times as much, and without the warm-up of the tangent where it has one; all else, the
number of steps too, is as there, and so is the teacher. The row with the page's own values is that
of methods.py's results, which have the distances of three averages of the weights. It goes on where
it was stopped, and writes a table into docs/results/rates.md.
"""

import functools
import json
from pathlib import Path

import methods

FACTORS = {"rate / 5": 0.2, "rate x 2": 2.0, "rate x 5": 5.0}
NO_WARMUP = "no warm-up"
VARIANTS = (*FACTORS, NO_WARMUP)
STUDENTS = tuple(method for method in methods.METHODS if method != "teacher")


def variants(args, method):
  """What is changed in a method, one at a time."""
  has_warmup = methods.configure(args, args.data, method, 0).loss.get("warmup_steps")
  return tuple(variant for variant in args.variants if variant in FACTORS or has_warmup)


def configure(args, method, variant, seed):
  """The page of benchmarks/comparison/methods.py with one thing changed."""
  config = methods.configure(
    args, args.data, method, seed, methods.steps_of(args, args.data, method)
  )
  if variant == NO_WARMUP:
    config.loss.warmup_steps = 0
    return config
  for optim in methods.optimizers(config):
    optim.lr *= FACTORS[variant]
  return config


def run(args, method, variant, seed):
  """The scores of one run."""
  config = configure(args, method, variant, seed)
  stem = variant.replace("/", "over").replace(" ", "_")
  methods.train_teacher(args, args.data, config, seed)
  workdir = args.workdir / args.data / f"{method}_{stem}" / f"seed{seed}"
  return {"scores": methods.train_and_score(config, workdir)}


def train_all(args, stopped):
  methods.make_detector(args, args.data)
  runs = {
    f"{method}, {variant}": functools.partial(run, args, method, variant)
    for method in args.methods
    for variant in variants(args, method)
  }
  path = args.workdir / args.data / "rates.json"
  methods.adopt(path, args.known and args.known / f"rates_{args.data}.json")
  methods.fill(path, args.seeds, runs, stopped, diverged={"scores": {}})


def shown(runs):
  """The distance in the fewest steps of the best average; in brackets those of all, short first."""
  if not runs:
    return ""
  if not all(run["scores"] for run in runs):
    return "diverged"
  scores = [run["scores"] for run in runs]
  # Of multistep sCD there is none in one step; seed 0 of the comparison holds one average.
  steps = min((name.split("/")[1] for name in scores[0] if name.count("/") == 2), key=int)
  names = [f"fd/{steps}/{ema}" for ema in ("short", "main", "long")]
  each = [methods.cell([s[name] for s in scores]) for name in names if name in scores[0]]
  return f"{methods.cell(methods.values(runs, steps))} ({', '.join(each)})"


def table(args, done, known):
  """The lines of a Markdown table of one data set."""
  lines = [
    f"`python benchmarks/comparison/rates.py --data={args.data}`",
    "",
    f"| method | rate of the page | as it is | {' | '.join(VARIANTS)} |",
    "|---|---|---|" + "---|" * len(VARIANTS),
  ]
  for method in STUDENTS:
    cells = [shown(list(done.get(f"{method}, {column}", {}).values())) for column in VARIANTS]
    if any(cells):
      rate = methods.configure(args, args.data, method, 0).optim.lr
      own = [row for seed, row in known.get(method, {}).items() if int(seed) < args.seeds]
      lines.append(f"| {method} | {rate:g} | {shown(own)} | {' | '.join(cells)} |")
  return lines


def report(args):
  path = args.workdir / args.data / "rates.json"
  if not path.exists():
    return
  done = json.loads(path.read_text())
  known = args.workdir / args.data / "results.json"
  if not known.exists():
    known = methods.ROOT / "docs" / "results" / f"methods_{args.data}.json"
  lines = table(args, done, json.loads(known.read_text()))
  print("\n".join(lines))
  title = f"What each method needs to be stable: {args.data}"
  methods.write_results(args.docs / "rates.md", f"rates:{args.data}", title, lines)
  methods.write_json(args.docs / f"rates_{args.data}.json", done)


def main():
  parser = methods.make_parser(__doc__, Path("runs/methods"), seeds=1)
  parser.add_argument("--methods", nargs="+", default=STUDENTS, choices=STUDENTS)
  parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
  methods.start(parser.parse_args(), train_all, report)


if __name__ == "__main__":
  main()
