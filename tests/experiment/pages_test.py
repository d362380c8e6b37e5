"""Pages are found, shown, compared and made small; what is wrong with one is said in one line."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest
from ml_collections import ConfigDict

from cmjax import pages
from cmjax.experiment import models
from cmjax.metrics import scoring
from helpers import tiny

ROOT = pathlib.Path(__file__).parents[2]
OWN = """
import ml_collections as mlc

VARIANTS = ("wide", "deep")

def get_config(variant="plain"):
  return mlc.ConfigDict(dict(variant=variant, total_steps=1_000, batch_size=64))
"""


@pytest.fixture
def page(tmp_path):
  """Writes a page: its path."""

  def write(text, name="own.py"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)

  return write


def message(spec):
  """What `load` says of a spec that it refuses: one line."""
  with pytest.raises(ValueError) as raised:
    pages.load(spec)
  assert "\n" not in str(raised.value)
  return str(raised.value)


def test_a_page_is_found_by_its_name_and_by_its_path(monkeypatch, tmp_path):
  config = pages.load("cifar10_sct").to_dict()
  assert config["data"]["tfds"]["dataset"] == "cifar10"
  for spec in ("cifar10_sct.py", ROOT / "configs" / "cifar10_sct.py"):
    assert pages.load(spec).to_dict() == config
  monkeypatch.chdir(tmp_path)  # where there is no folder configs
  assert pages.load("configs/cifar10_sct.py").to_dict() == config


def test_a_file_of_ones_own_comes_before_a_page_of_the_same_name(monkeypatch, page):
  monkeypatch.chdir(pathlib.Path(page(OWN, "cifar10_sct.py")).parent)
  assert pages.load("cifar10_sct.py").variant == "plain"
  assert "variant" not in pages.load("cifar10_sct")


def test_an_installed_package_has_its_pages_inside(monkeypatch, tmp_path):
  shutil.copytree(ROOT / "configs", tmp_path / "configs")
  (tmp_path / "configs" / "cifar10_sct.py").write_text(OWN)
  assert "variant" not in pages.load("cifar10_sct")
  monkeypatch.setattr(pages, "PACKAGE", tmp_path)
  assert pages.load("cifar10_sct").variant == "plain"
  assert pages.load("cifar10_scd").loss.name == "scd"  # with what it shares


def test_a_config_is_locked_and_each_load_makes_a_new_one():
  first = pages.load("digits_sct")
  with pytest.raises((AttributeError, KeyError)):
    first.no_such_setting = 1
  first.seed = 7
  assert pages.load("digits_sct").seed == 0


def test_pages_load_without_jax():
  code = (
    "import sys; from cmjax import pages; pages.load('digits_sct'); print('jax' in sys.modules)"
  )
  ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
  assert ran.stdout == b"False\n"


def test_a_stored_config_is_read_as_data(tmp_path):
  settings = {"total_steps": 100, "net": {"name": "mlp", "channel_mult": [1, 2]}}
  (tmp_path / "config.json").write_text(json.dumps(settings))
  spec = str(tmp_path / "config.json")
  config = pages.load(spec)
  assert config.to_dict() == ConfigDict(settings).to_dict() == settings and config.is_locked
  assert pages.load(f"{spec}:smoke").total_steps == pages.STEPS
  assert message(f"{spec}:xl") == "Unknown variant 'xl'. Choose from: smoke."


@pytest.mark.parametrize(
  "text, why",
  [
    ('{"seed": 0', "delimiter"),
    ("[1, 2]", "got list"),
    ("[" * 100_000, "nested too deep"),
    ('{"a.b": 1}', "dots"),
    ("\udcff", "utf-8"),
  ],
)
def test_broken_json_is_refused_with_its_file(tmp_path, text, why):
  path = tmp_path / "config.json"
  path.write_bytes(text.encode("utf-8", "surrogateescape"))
  said = message(str(path))
  assert said.startswith(f"{path} is no config in JSON: ") and why in said


@pytest.mark.parametrize(
  "spec, words",
  [
    ("cifar10_stc", "Nearest of cmjax's: cifar10_sct, "),
    ("configs/imagenet64_sdc.py", "Nearest of cmjax's: imagenet64_sct, imagenet64_scd, "),
    ("elsewhere/cifar10_sct.py", "Nearest of cmjax's: cifar10_sct, "),
    ("xyz", f"cmjax's are in {ROOT / 'configs'}. Name a page of your own by its path"),
    ("runs/none/config.json", "nor a file"),
    ("../configs/shared/base", "nor a file"),
    ("", "nor a file"),
  ],
)
def test_an_unknown_page_is_named_with_the_nearest(spec, words):
  said = message(spec)
  assert said.startswith(f"No config page {spec!r}") and words in said
  assert "path/to/page.py" in said


def test_a_file_that_is_no_page_is_refused():
  assert message(str(ROOT / "README.md")).endswith("take a page, .py, or a run's config.json.")


@pytest.mark.parametrize(
  "spec, choices",
  [
    ("imagenet512_scd:xxs", "smoke, s, m, l, xl, xxl."),
    ("imagenet64_sct:xxl", "smoke, s, m, l, xl."),
    ("cifar10_ct:smal", "smoke, lpips."),
    ("cifar10_sct:xl", "smoke, scratch."),
  ],
)
def test_an_unknown_variant_is_refused(spec, choices):
  variant = spec.partition(":")[2]
  assert message(spec) == f"Unknown variant {variant!r}. Choose from: {choices}"


def test_a_page_of_ones_own_lists_its_variants(page):
  spec = page(OWN)
  assert pages.load(spec).variant == pages.load(f"{spec}:smoke").variant == "plain"
  assert pages.load(f"{spec}:deep").variant == "deep"
  assert message(f"{spec}:depe") == "Unknown variant 'depe'. Choose from: smoke, wide, deep."
  assert pages.load(f"{spec}:smoke").total_steps == pages.STEPS


def test_a_page_may_make_itself_small(page):
  spec = page(OWN.replace('"deep")', '"smoke")'))
  config = pages.load(f"{spec}:smoke")
  assert config.variant == "smoke" and config.total_steps == 1_000
  assert message(f"{spec}:deep") == "Unknown variant 'deep'. Choose from: smoke, wide."


def test_a_page_without_a_list_is_handed_every_variant(page):
  spec = page(OWN.replace("VARIANTS", "OTHERS"))
  assert [pages.load(f"{spec}{v}").variant for v in ("", ":smoke", ":x")] == ["plain", "smoke", "x"]


@pytest.mark.parametrize(
  "wrong, words",
  [
    ("c.net = dict(\n", "SyntaxError: '(' was never closed"),
    ("c.lr = 1 / 0", "ZeroDivisionError: division by zero"),
    ("c.optim.lr = 1.0", "AttributeError: "),
    ("c.lock().lr = 1.0", "AttributeError: 'Key \"lr\" does not exist and cannot be added"),
    ("raise ValueError('two\\n lines')", "two lines"),
    ("mlc.ConfigDict({'a.b': 1})", "dots"),
    ("pages.shared('cifar1O')", "No shared page 'cifar1O'. Choose from: base, cifar10, "),
    ("pages.shared('imagenet64:xxl')", "Unknown variant 'xxl'. Choose from: smoke, s, m, l, xl."),
    ("import cmjax_nowhere", "ModuleNotFoundError: No module named 'cmjax_nowhere'"),
  ],
)  # fmt: skip
def test_an_error_inside_a_page_is_one_line_with_its_place(page, wrong, words):
  spec = page(
    "import ml_collections as mlc\nfrom cmjax import pages\ndef get_config():\n"
    f"  c = mlc.ConfigDict()\n  {wrong}\n  return c\n"
  )
  said = message(spec)
  assert said.startswith(f"{spec}, line 5: ") and words in said and "Traceback" not in said


def test_a_page_that_returns_nothing_or_has_no_get_config_is_refused(page):
  said = message(page("def get_config():\n  pass\n"))
  assert "get_config() returned NoneType, not a ConfigDict: does it end with `return`?" in said
  assert "has no function get_config()" in message(page("x = 1\n"))


def test_what_pages_share_is_open_to_changes_and_new_each_time():
  c = pages.shared("cifar10")
  c.net.new, c.batch_size = 1, 1
  assert "new" not in pages.shared("cifar10").net and pages.shared("cifar10").batch_size == 512
  assert pages.shared("imagenet512:xl").net.channels == 384
  assert pages.shared("imagenet512").net.channels == 192


def test_sct_and_scd_of_cifar10_differ_in_three_settings():
  rows = pages.differences(pages.load("cifar10_sct"), pages.load("cifar10_scd")).splitlines()
  assert [row.split() for row in rows] == [
    ["loss.name", "'sct'", "'scd'"],
    ["net.dropout", "0.2", "0.0"],
    ["teacher.workdir", "''", "'runs/cifar10_teacher'"],
  ]


def test_differences_are_of_values_and_not_of_how_they_were_stored():
  a = ConfigDict(dict(mult=(1, (2,)), lr=1, flip=1, only=(), evals={}, same=None))
  b = ConfigDict(dict(mult=[1, [2]], lr=1.0, flip=True, evals=dict(fid=dict(k=3)), same=None))
  assert [row.split() for row in pages.differences(a, b).splitlines()] == [
    ["evals", "{}", "-"], ["evals.fid.k", "-", "3"], ["flip", "1", "True"], ["only", "()", "-"]
  ]  # fmt: skip
  assert pages.differences(a, a) == ""


def test_all_settings_are_shown_one_a_line_in_order():
  config = ConfigDict(dict(net=dict(mult=[1, 2], name="mlp"), lr=1e-4, evals={}, clip=None))
  assert pages.show(config).splitlines() == [
    "clip = None", "evals = {}", "lr = 0.0001", "net.mult = (1, 2)", "net.name = 'mlp'"
  ]  # fmt: skip
  shown = pages.show(pages.load("cifar10_sct"))
  assert "loss.name = 'sct'" in shown.splitlines() and len(shown.splitlines()) > 70


# What `smoke` makes of configs that no page of cmjax is like; the pages are in configs_test.py.


def test_smoke_leaves_the_config_it_is_given_as_it_is():
  config = tiny.get_config("snapshots").lock()
  before = config.to_dict()
  small = pages.smoke(config)
  assert config.to_dict() == before and not small.is_locked
  assert small.snapshots.every_steps == small.checkpoint.every_steps == pages.EVERY


def test_smoke_makes_no_number_larger():
  config = tiny.config(batch_size=4, microbatch=2, **{"evals.swd.num_samples": 3})
  small = pages.smoke(config)
  assert (small.batch_size, small.microbatch, small.evals.swd.num_samples) == (4, 2, 3)
  assert small.loss.warmup_steps == pages.STEPS // 2 and small.optim.schedule.warmup_steps == 0


def test_smoke_keeps_to_what_divides_what():
  config = tiny.config(batch_size=96, microbatch=48, steps_per_dispatch=10, total_steps=1_000)
  small = pages.smoke(config)
  assert small.batch_size % small.microbatch == 0 and small.microbatch % 8 == 0
  every = [small.checkpoint.every_steps, *(e.every_steps for e in small.evals.values())]
  assert all(n % small.steps_per_dispatch == 0 for n in (small.total_steps, *every))


def test_smoke_leaves_a_network_from_elsewhere_as_it_is():
  config = tiny.config(**{"net.name": "mine.networks:Mine", "net.width": 512})
  assert pages.smoke(config).net.to_dict() == config.net.to_dict()


def test_smoke_leaves_each_score_as_many_samples_as_it_needs():
  scores = dict(name="frechet", scores=tuple(scoring.SCORES), num_samples=50_000, batch_size=500)
  options = dict(num_splits=100, k=200, k_density=200, subset_size=500)
  config = tiny.config(evals=dict(all=scores, options=scores | options))
  for section in pages.smoke(config).evals.values():
    known = {key: section[key] for key in scoring.Options._fields if key in section}
    options = scoring.Options()._replace(**known)
    scoring.check_numbers(section.num_samples, section.scores, options, "smoke")
    assert section.num_samples == pages.NUM_SAMPLES and section.batch_size == pages.BATCH_SIZE


def test_smoke_takes_few_steps_of_a_solver():
  config = tiny.config(samplers=dict(heun=dict(name="heun", num_steps=256), one=dict(name="ddim")))
  small = pages.smoke(config).samplers
  assert small.heun.num_steps == 3 and "num_steps" not in small.one


@pytest.mark.parametrize(
  "net", [dict(name="dit", size="XL"), dict(name="ddpmpp"), dict(name="mlp", dim=2)]
)
def test_smoke_makes_a_small_network_of_one_that_says_little(net):
  config = pages.smoke(tiny.config(net=net | dict(dtype="float32")))
  params = jax.eval_shape(models.network(config.net, 0.5).init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(params)) < 150_000
