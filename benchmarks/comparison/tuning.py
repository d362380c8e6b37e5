r"""What P_mean, P_std and sigma_data do to a teacher and to sCD: docs/guides/tuning.md, measured.

  python benchmarks/comparison/tuning.py                       # digits
  python benchmarks/comparison/tuning.py --data=fashion_mnist
  python benchmarks/comparison/tuning.py --report_only

One setting is changed at a time, from what --mode=measure proposes; all else is that of
benchmarks/comparison/methods.py: pages, networks, numbers of steps, classifier, samples and
averages, and the default --workdir too. A student is distilled from the teacher of the proposal,
except where sigma_data is changed, which needs a teacher of its own. It goes on where it was
stopped, and writes a table for each data set into docs/results/tuning.md.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import methods

# What --mode=measure prints: sigma_data, and (P_mean, P_std) of a teacher and of a student.
PROPOSED = {
  "digits": dict(sigma_data=0.752, teacher=(-1.1, 1.3), scd=(-0.7, 1.5)),
  "fashion_mnist": dict(
    sigma_data=methods.FASHION_MNIST["sigma_data"],
    teacher=tuple(methods.FASHION_MNIST["teacher"].values()),
    scd=tuple(methods.FASHION_MNIST["student"].values()),
  ),
}
SHIFTS = (-0.8, 0.0, 0.8)  # of P_mean
FACTORS = (0.6, 1.5)  # of P_std, and of sigma_data


class Setting(NamedTuple):
  """One row of the table."""

  stage: str  # teacher | scd
  changed: str  # P_mean | P_std | sigma_data | "" for the proposal itself
  sigma_data: float
  P_mean: float
  P_std: float

  @property
  def name(self):
    """Of its directory and of its row in tuning.json."""
    return f"{self.stage}_{self.sigma_data:.3f}_{self.P_mean:.2f}_{self.P_std:.2f}"


def settings(data, changed=("P_mean", "P_std", "sigma_data")):
  """All rows, each after those that it needs."""
  rows = []
  for stage in ("teacher", "scd"):
    sigma_data, (mean, std) = PROPOSED[data]["sigma_data"], PROPOSED[data][stage]
    rows += [Setting(stage, "P_mean" if d else "", sigma_data, mean + d, std) for d in SHIFTS]
    rows += [Setting(stage, "P_std", sigma_data, mean, std * f) for f in FACTORS]
    rows += [Setting(stage, "sigma_data", sigma_data * f, mean, std) for f in FACTORS]
  return [row for row in rows if not row.changed or row.changed in changed]


def teacher_of(row, data):
  """The proposed teacher at the row's sigma_data."""
  return Setting("teacher", "", row.sigma_data, *PROPOSED[data]["teacher"])


def configure(args, row, seed):
  """The page of benchmarks/comparison/methods.py with this row's setting."""
  data, method = args.data, row.stage
  config = methods.configure(args, data, method, seed, methods.steps_of(args, data, method))
  config.sigma_data = row.sigma_data
  config.loss.update(P_mean=row.P_mean, P_std=row.P_std)
  if row.stage != "teacher":
    for section in (config.teacher, config.init_from):
      section.workdir = str(workdir(args, teacher_of(row, data), seed))
  return config


def workdir(args, row, seed):
  return args.workdir / args.data / row.name / f"seed{seed}"


def run(args, row, seed):
  """The scores of one run."""
  return {"scores": methods.train_and_score(configure(args, row, seed), workdir(args, row, seed))}


def train_all(args, stopped):
  methods.make_detector(args, args.data)
  rows = settings(args.data, args.changed)
  runs = {row.name: functools.partial(run, args, row) for row in rows}
  path = args.workdir / args.data / "tuning.json"
  methods.adopt(path, args.known and args.known / f"tuning_{args.data}.json")
  methods.fill(path, args.seeds, runs, stopped, diverged={"scores": {}})


def table(data, done):
  """The lines of a Markdown table of one data set."""
  lines = [
    f"`python benchmarks/comparison/tuning.py --data={data}`",
    "",
    "| | changed | sigma_data | P_mean | P_std | NFE 35 | 1 step | 2 steps |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for row in settings(data):
    runs = [run for run in done.get(row.name, {}).values() if run["scores"]]
    columns = ("heun",) if row.stage == "teacher" else ("1", "2")
    cells = dict.fromkeys(("heun", "1", "2"), "")
    if row.name not in done:
      continue
    for name in columns:
      cells[name] = methods.cell(methods.values(runs, name)) if runs else "diverged"
    lines.append(
      f"| {row.stage} | {row.changed or 'proposal'} | {row.sigma_data:.3f} | {row.P_mean:.2f} | "
      f"{row.P_std:.2f} | {' | '.join(cells.values())} |"
    )
  return lines


def report(args):
  for path in sorted(args.workdir.glob("*/tuning.json")):
    data = path.parent.name
    rows = json.loads(path.read_text())
    lines = table(data, rows)
    print("\n".join(["", f"{data}:", *lines]))
    title = f"P_mean, P_std and sigma_data: {data}"
    methods.write_results(args.docs / "tuning.md", f"tuning:{data}", title, lines)
    methods.write_json(args.docs / f"tuning_{data}.json", rows)


def main():
  parser = methods.make_parser(__doc__, Path("runs/methods"), seeds=1)
  parser.add_argument(
    "--changed", nargs="+", default=("P_mean", "P_std", "sigma_data"), help="which rows"
  )
  methods.start(parser.parse_args(), train_all, report)


if __name__ == "__main__":
  main()
