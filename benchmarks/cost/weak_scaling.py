"""Weak scaling on paper: one step compiled for 4, 16 and 64 TPU chips, the batch growing with them.

  python benchmarks/cost/weak_scaling.py                      # docs/results/weak_scaling.png
  python benchmarks/cost/weak_scaling.py --layouts data fsdp  # and with a whole state on every chip

sCT of CIFAR-10 with a DiT-B, whose blocks are one scan: a program that compiles in minutes. Of each
compiled step: the least time it can take by `program.plan`, and the bytes that a chip sends to
others, with the state split over all chips (fsdp). Nothing runs on a TPU. It needs libtpu
(pip install 'cmjax[plan]') and matplotlib. Rows that --rows has already are not compiled again.
"""

import argparse
import json
from pathlib import Path

import jax
import matplotlib.pyplot as plt

from cmjax import experiment, pages
from cmjax.program import plan

ROOT = Path(__file__).parents[2]
LAYOUTS = {"data": dict(data=-1, fsdp=1), "fsdp": dict(data=1, fsdp=-1)}
NET = dict(name="dit", resolution=32, in_channels=3, patch=2, scan=True, remat=True,
           attention="xla", dtype="bfloat16")  # fmt: skip


def rows_of(args, known):
  """A row for each topology and layout, as they come."""
  for topology in args.topologies:
    for layout in args.layouts:
      key = {"topology": topology, "layout": layout, "size": args.size}
      key |= {"per_chip": args.per_chip, "jax": jax.__version__}
      row = next((row for row in known if key.items() <= row.items()), None)
      yield row or key | measure(args, topology, layout)


def measure(args, topology, layout):
  config = pages.load("cifar10_sct").unlock()
  chips = len(plan.target(topology).devices)
  config.batch_size = chips * args.per_chip
  config.net, config.mesh = NET | {"size": args.size}, LAYOUTS[layout]
  report = plan.plan(experiment.parse(config), topology)
  step = report["step"]
  sent = {kind: traffic["sent"] for kind, traffic in step["collectives"].items()}
  keys = ("seconds", "estimate", "roofline", "xla_seconds")
  return {"chips": chips, "sent": sent, "compile_seconds": report["attempts"][-1]["seconds"]} | {
    key: step[key] for key in keys
  }


def line(row):
  sent = ", ".join(f"{kind} {size / 1e6:.2f}" for kind, size in row["sent"].items()) or "nothing"
  return (
    f"{row['chips']:5d} {row['layout']:6}{1e3 * row['seconds']:9.3f}"
    f"{1e3 * row['roofline']['links']:9.3f}{sum(row['sent'].values()) / 1e6:10.2f}"
    f"{row['compile_seconds']:10.0f}   {sent}"
  )


def draw(rows, path, title):
  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
  for layout, style in zip(LAYOUTS, ("o-", "s--"), strict=True):
    own = [row for row in rows if row["layout"] == layout]
    if not own:
      continue
    chips = [row["chips"] for row in own]
    left.plot(chips, [1e3 * row["seconds"] for row in own], style, label=f"{layout}, a step")
    links = [1e3 * row["roofline"]["links"] for row in own]
    left.plot(chips, links, style, alpha=0.4, label=f"{layout}, its links alone")
    right.plot(chips, [sum(row["sent"].values()) / 1e6 for row in own], style, label=layout)
  for axes, what in ((left, "ms at best"), (right, "MB that a chip sends a step")):
    axes.set(xscale="log", xlabel="chips", ylabel=what, ylim=(0, None))
    ticks = sorted({row["chips"] for row in rows})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False)
  figure.suptitle(title)
  figure.savefig(path, dpi=120)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", default="B", help="of the DiT")
  parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["fsdp"])
  parser.add_argument("--per_chip", type=int, default=64, help="samples of a chip")
  parser.add_argument("--topologies", nargs="+", default=["v5e:2x2", "v5e:4x4", "v5e:8x8"])
  parser.add_argument("--rows", type=Path, default=ROOT / "docs/results/weak_scaling.json")
  parser.add_argument("--plot", type=Path, default=ROOT / "docs/results/weak_scaling.png")
  args = parser.parse_args()

  rows, known = [], json.loads(args.rows.read_text()) if args.rows.is_file() else []
  print("chips layout  step ms  links ms   MB sent  compile s   MB by kind")
  for row in rows_of(args, known):
    rows.append(row)
    print(line(row), flush=True)
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    args.rows.write_text(json.dumps(rows, indent=2) + "\n")
  draw(
    rows,
    args.plot,
    f"sCT with DiT-{args.size}, {args.per_chip} samples of 32x32x3 a chip, on paper",
  )


if __name__ == "__main__":
  main()
