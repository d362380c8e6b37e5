import json
import pathlib
import runpy

import numpy as np
import pytest

EXAMPLES = sorted((pathlib.Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_trains(path, tmp_path):
  runpy.run_path(str(path))["main"](str(tmp_path), steps=4)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert rows and all(np.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))
  assert (tmp_path / "report.html").exists()
