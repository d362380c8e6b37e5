"""What people type: values and paths of flags, and how every error ends."""

import functools
import json
import operator
import pathlib
import sys
import types

import pytest
from absl import flags

from cmjax import pages
from cmjax.commands import common, start
from cmjax.data import published_sets
from cmjax.experiment import declared
from cmjax.program import sample, train
from helpers import in_process, tiny

CONFIG = "--config=tests/helpers/tiny.py"


def parsed(*args, verb="train"):
  """The config and the flags of a command line."""
  workdir = ["--workdir=w"] if verb in ("train", "sample", "evaluate") else []
  command = start.parse([f"cmjax {verb}", CONFIG, *workdir, *args], verb, flags.FlagValues())
  assert command.config is not None
  return command.config, command.values


OF_IMAGES = [
  name for name in pages.names() if not name.startswith(("imagenet512", "toy2d"))
]  # fmt: skip


@pytest.mark.parametrize("page", OF_IMAGES)
def test_every_page_of_images_reads_every_source(page):
  for name, key in (
    *(("folder", "path"), ("npz", "path"), ("records", "path"), ("tfds", "dataset")),
    *((name, "cache") for name in published_sets.SOURCES),
  ):
    words = [f"--config={page}", f"--config.data.{name}.{key}=there", "--workdir=w"]
    words.insert(1 if key == "path" else 2, f"--config.data.name={name}")
    config = start.parse(["cmjax train", *words], "train", flags.FlagValues()).config
    assert config.data.name == name and config.data[name][key] == "there"


def test_a_source_that_was_not_chosen_is_told_how(capsys):
  code, _, err = in_process.answer(
    capsys, lambda: in_process.verb("train", CONFIG, "--config.data.folder.path=a", "--workdir=w")
  )
  assert code == 1 and "To read from folder, set --config.data.name=folder as well." in err
  code, _, err = in_process.answer(
    capsys,
    lambda: in_process.verb(
      *("train", CONFIG, "--config.data.name=folder", "--config.data.folder.paths=a", "--workdir=w")
    ),
  )
  assert code == 1 and "--config.data.folder.paths: config.data.folder takes: channels, " in err


def at(config, path):
  return functools.reduce(operator.getitem, path.split("."), config)


@pytest.fixture(name="told")
def _told(capsys):
  """What a verb says in this process: exit code, stdout, stderr."""
  return lambda *args: in_process.answer(capsys, lambda: in_process.verb(*args))


@pytest.mark.parametrize(
  ("key", "text", "value"),
  [
    *(("optim.clip_norm", text, None) for text in ("none", "None", "null", "off", "False", "no")),
    ("optim.clip_norm", "0.5", 0.5),
    ("optim.clip_norm", "1", 1),
    ("optim.lr", "1", 1),
    ("optim.lr", "1_0.5e-1", 1.05),
    *(("total_steps", text, 1000) for text in ("1e3", "1_000", "1000.0", "+1000")),
    ("seed", "4294967295", 2**32 - 1),
    ("microbatch", "none", None),
    ("microbatch", "8", 8),
    ("doctor.spike_factor", "off", None),
    ("doctor.probe_every_steps", "1e2", 100),
    ("doctor.stall_seconds", "off", None),
    ("doctor.stall_seconds", "600", 600),
    ("deterministic", "true", True),
    *(("data.flip", text, True) for text in ("true", "True", "on", "yes", "1")),
    *(("data.flip", text, False) for text in ("false", "off", "no", "0")),
    *(("samplers.two_steps.mid_times", text, (0.9,)) for text in ("0.9", "(0.9,)", "[0.9]")),
    ("samplers.two_steps.mid_times", "1.2, 0.9", (1.2, 0.9)),
    ("samplers.two_steps.mid_times", "()", ()),
    ("evals.swd.samplers", "one_step,two_steps", ("one_step", "two_steps")),
    ("evals.swd.emas", "('short',)", ("short",)),
    ("mesh.data", "-1", -1),
    ("teacher.workdir", "~/runs/a", "~/runs/a"),
    ("teacher.workdir", "", ""),
    ("net.dtype", "'bfloat16'", "bfloat16"),
  ],
)
def test_a_value_is_read_by_what_its_key_may_be(key, text, value):
  taken = at(parsed(f"--config.{key}={text}")[0], key)
  assert taken == value and isinstance(taken, bool) == isinstance(value, bool)


@pytest.mark.parametrize(
  ("key", "text"),
  [
    *(("optim.clip_norm", text) for text in ("true", "on", "-1", "0", "nan", "inf", "")),
    *(("total_steps", text) for text in ("1e-3", "1.5", "many", "none", "-1", "1e400", "2**10")),
    *(("seed", text) for text in ("4294967296", "9223372036854775808", "-1", "none")),
    *(("data.flip", text) for text in ("maybe", "2", "none", "")),
    *(("optim.lr", text) for text in ("fast", "1/3", "off", "-1", "1e39")),
    *(("samplers.two_steps.mid_times", text) for text in ("80", "none", "a", "0.0")),
    *(("teacher.workdir", text) for text in ("az://b/x", "a\x1b[31m", "file:///x", "a\nb")),
    ("evals.swd", "3"),
    ("evals", "none"),
  ],
)
def test_a_value_that_cannot_be_is_one_line_that_names_its_flag(told, key, text):
  code, out, err = told("show", CONFIG, f"--config.{key}={text}")
  assert (code, out, err.count("\n")) == (1, "", 1)
  assert err.startswith(f"cmjax: --config.{key}") and "\x1b" not in err


@pytest.mark.parametrize(
  ("key", "text", "value"),
  [
    ("data.toy2d.seed", "1e2", 100),
    ("net.dropout", "0.25", 0.25),
    ("samplers.two_steps.mid_sigmas", "0.8", (0.8,)),
  ],
)
def test_a_setting_that_is_left_at_its_default_can_be_set(key, text, value):
  assert key not in declared.hints(tiny.config())
  assert at(parsed(f"--config.{key}={text}")[0], key) == value


def test_only_what_a_section_can_have_is_set(told):
  for key in ("data.folder.split=test", "loss.tangent_net=a", "net.sigma_data=1", "optim.lrr=1"):
    code, out, err = told("show", CONFIG, f"--config.{key}")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"cmjax: --config.{key.split('=')[0]}: ") and "It has: " in err


def test_what_a_section_names_decides_however_the_flags_are_ordered():
  given = ["--config.ema.main.sigma_rel=0.1", "--config.ema.main={'name':'power','sigma_rel':0.05}"]
  for args in (given, given[::-1]):
    assert parsed(*args)[0].ema.main.to_dict() == {"name": "power", "sigma_rel": 0.1}


def test_flags_may_have_a_space_a_single_hyphen_or_no_value():
  config, values = parsed("--config.seed", "3", "-config.batch_size=32", "--noconfig.data.flip")
  assert (config.seed, config.batch_size, config.data.flip, values.workdir) == (3, 32, False, "w")
  assert parsed("--config.data.flip", "--workdir=v")[0].data.flip is True


def test_setting_a_value_leaves_the_config_locked_and_its_other_values():
  config, _ = parsed("--config.optim.clip_norm=0.5")
  assert config.is_locked
  changed = tiny.config()
  changed.optim.clip_norm = 0.5
  assert config.to_dict() == changed.to_dict()


PATHS = [("train", "workdir"), ("sample", "workdir"), ("evaluate", "images"), ("reference", "to")]
PATHS += [("plan", "workdir"), ("train", "compile_cache")]


@pytest.mark.parametrize(("verb", "flag"), PATHS)
def test_a_path_is_a_path_in_every_verb(verb, flag, monkeypatch, told, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  values = parsed(f"--{flag}=~/x", verb=verb)[1]
  assert values[flag].value == str(tmp_path / "x")
  for wrong in ("az://b/run", "https://x", "a\x1b[2Jb", "~nobody_of_that_name/x", "a\tb"):
    code, out, err = told(verb, CONFIG, f"--{flag}={wrong}")
    assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith(f"cmjax: --{flag}=")
  if flag != "compile_cache":
    assert f"--{flag}='' must be a text that is not empty" in told(verb, CONFIG, f"--{flag}=")[2]


TOOLS = [
  ("convert", ("f.pt", "--to=gs://b")), ("convert", ("s3://b/f.pt", "--to=x")),
  ("convert", ("--export=a\x1b[0m", "--to=x")), ("detectors", ("f.pth", "--to=https://x")),
  ("ema", ("--workdir=az://b", "--sigma_rel=0.1")), ("prepare", ("a", "--out=gs://b")),
  ("prepare", ("--validate=~nobody_of_that_name",)), ("prepare", ("a", "--out=b", "--workers=-1")),
  ("prepare", ("a", "--out=b", "--held_out=1.5")), ("prepare", ("a", "--out=b", "--max_bad=x")),
  ("ema", ("--workdir=w", "--sigma_rel=0.1", "--step=0")),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "args"), TOOLS)
def test_a_tool_reads_paths_and_numbers_as_the_verbs_do(verb, args, told):
  code, out, err = told(verb, *args)
  assert (code, out) == (2, "") and "\x1b" not in err and "Traceback" not in err
  said = err.splitlines()[-1]
  assert said.startswith(f"cmjax {verb}: error: argument ") and "invalid" not in said


def test_a_workdir_below_home_is_trained_there_and_no_folder_is_called_so(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)
  folder = tmp_path / "home" / "x"
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(tiny.config(seed=7).to_dict()))
  command = start.parse(["cmjax sample", "--workdir=~/x"], "sample", flags.FlagValues())
  assert command.config is not None and command.config.seed == 7
  with pytest.raises(ValueError, match="workdir='az://b' is a URL"):
    train.train(tiny.experiment_of(), "az://b")
  with pytest.raises(ValueError, match="no complete checkpoint|No checkpoints"):
    sample.sample(tiny.experiment_of(), "~/x", num_samples=1, name=None, seed=0, ema="main")
  assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
  ("verb", "args"),
  [
    ("sample", "--num_samples=0"),
    ("sample", "--num_samples=-3"),
    ("sample", "--seed=4294967296"),
    ("sample", "--seed=-1"),
    ("sample", "--num_samples=many"),
    ("search", "--num_probes=4"),
    ("train", "--num_processes=0"),
    ("train", "--process_id=-1"),
    ("train", "--allow_config_change=maybe"),
  ],
)
def test_a_number_of_a_flag_has_a_range_too(verb, args, told):
  code, out, err = told(verb, CONFIG, "--workdir=w", args)
  assert (code, out, err.count("\n")) == (1, "", 1)
  assert err.startswith(f"cmjax: {args.partition('=')[0]}=") and " must be " in err


def test_numbers_of_flags_are_spelled_as_in_a_config():
  values = parsed("--num_samples=1e3", "--seed=1_0", "--workdir=w", verb="sample")[1]
  assert (values.num_samples, values.seed) == (1000, 10)
  assert parsed("--allow_config_change=on")[1].allow_config_change is True
  assert parsed("--noallow_config_change")[1].allow_config_change is False


# --- how errors end ---


def raises(error):
  def work(*args, **kwargs):
    raise error

  return work


@pytest.mark.parametrize(
  ("error", "code", "words"),
  [
    (ValueError("two words"), 1, "two words"),
    (OSError(28, "No space left on device"), 1, "No space left"),
    (FloatingPointError("not finite"), 1, "not finite"),
    (MemoryError(), 1, "The memory is not enough (of the host). Lower batch_size"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"), 1, "(RESOURCE_EXHAUSTED: Out of mem"),
    (ModuleNotFoundError("No module named 'nowhere'", name="nowhere"), 1, "install it with pip"),
    (KeyboardInterrupt(), 130, "Interrupted."),
    (ValueError("a\x1b[2Jb"), 1, r"a\x1b[2Jb"),
  ],
)
def test_what_the_user_can_mend_is_one_line(error, code, words, told, monkeypatch):
  monkeypatch.setattr(train, "train", raises(error))
  got, out, err = told("train", CONFIG, "--workdir=w")
  assert (got, out, err.count("\n")) == (code, "", 1)
  assert err.startswith("cmjax: ") and words in err


@pytest.mark.parametrize(
  "fault", [{}.__getitem__, "".join, int.__add__, functools.partial(next, iter(()))]
)
def test_a_fault_of_ours_says_so_below_its_traceback(fault, told, monkeypatch):
  monkeypatch.setattr(train, "train", fault)
  code, out, err = told("train", CONFIG, "--workdir=w")
  *above, said = err.splitlines()
  assert (code, out) == (1, "") and above[0].startswith("Traceback")
  assert said.startswith("cmjax: TypeError: ") and said.endswith(common.REPORT)


def test_a_fault_in_the_user_s_own_code_names_its_line(told, monkeypatch):
  monkeypatch.setattr(train, "train", raises(KeyError("mine")))
  code, _, err = told("train", CONFIG, "--workdir=w")
  said = err.splitlines()[-1]
  assert code == 1 and common.REPORT not in said
  assert said.startswith("cmjax: KeyError: 'mine' It came through your own code, ")
  assert f"{pathlib.Path(__file__).name}:" in said


@pytest.mark.parametrize("verb", ["convert", "detectors", "ema", "prepare"])
def test_the_tools_answer_in_the_same_way(verb, told, monkeypatch):
  args = {
    "convert": ("f", "--to=x"), "detectors": ("f", "--to=x"),
    "ema": ("--workdir=w", "--sigma_rel=0.1"), "prepare": ("--validate=w",),
  }[verb]  # fmt: skip
  monkeypatch.setattr(common, "answered", lambda work: 7)
  assert told(verb, *args)[0] == 7


def test_what_a_failed_save_repeats_for_every_array_is_kept_quiet(capsys, monkeypatch):
  seen = []
  monkeypatch.setattr(sys, "unraisablehook", lambda one: seen.append(str(one.exc_value)))
  before = sys.unraisablehook

  def work():
    for text in ("Event loop is closed", "Event loop is closed", "Something else"):
      sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text)))
    raise OSError("The checkpoint could not be written.")

  assert common.answered(work) == 1 and sys.unraisablehook is before
  assert seen == ["Something else"]
  assert capsys.readouterr().err == "cmjax: The checkpoint could not be written.\n"
