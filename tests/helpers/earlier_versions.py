"""What versions before have left in a workdir."""

import json

from cmjax.run import checkpoint


def as_before(workdir, step, *, sealed):
  """Makes a checkpoint one with digests in `seals`, or one whose run was stopped before them."""
  folder, seals = workdir / "checkpoints" / str(step), workdir / "seals"
  (folder / checkpoint.DIGESTS).unlink()
  meta = json.loads((folder / "meta" / "metadata").read_text())
  del meta["digests"]
  (folder / "meta" / "metadata").write_text(json.dumps(meta))
  seals.mkdir(exist_ok=True)
  if sealed:
    (seals / f"{step}.json").write_text(json.dumps(checkpoint._digests(folder)))
