"""The pages of runs in a browser: errors, requests, width, dark mode, escaping."""

import json

import pytest

from cmjax.program import run_list, run_report, run_summaries
from cmjax.run import page
from helpers import browser, shown_runs

pytestmark = pytest.mark.slow
TAG = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
LONG = "a_name_without_any_place_to_break_it_" * 5
WIDTHS = (1280, 400)


@pytest.fixture(name="tab", scope="module")
def _tab():
  with browser.Browser() as tab:
    yield tab


@pytest.fixture(name="pages", scope="module")
def _pages(tmp_path_factory):
  """{name: file}: a report and a comparison, of runs with names that would be obeyed, and long."""
  folder = tmp_path_factory.mktemp("runs")
  record = shown_runs.config(samplers=("one_step", "two_step"))
  record["data"] = {"name": TAG, LONG: LONG, "classes": [TAG, LONG]}
  record["evals"][TAG] = record["evals"]["fd"]
  record["samplers"][LONG] = record["samplers"]["one_step"]
  named = "run <script>"
  for name in ("plain", named, LONG):
    workdir = shown_runs.make(folder / name, {"one_step": 0.12, "two_step": 0.09}, record=record)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
      line |= {TAG: 1.0, f"{TAG}/one_step/main": 1.0, f"fd/{LONG}/{LONG}": 1.0}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)
  (folder / f"broken {LONG}").mkdir()
  (folder / f"broken {LONG}" / "config.json").write_text("{")
  summary = run_summaries.read(workdir)
  scores = {score.metric: score.value for score in summary.scores}
  told = page.Told(
    kind="consistency",
    scores=run_report._explained(record, scores) | {f"{TAG}/": TAG},
    terms=[(TAG, LONG), (LONG, TAG)],
    fixed={f"fd/teacher: {TAG}/{LONG}": 0.5},
    notes=[TAG, LONG],
  )
  rows = [{"run": TAG, "score": LONG, "value": 0.5}] * 2
  report = page.report(workdir, title=f"{TAG} {LONG}", config=record, scores=rows, told=told)
  return {"report": report, "comparison": run_list.write(run_list.find(folder))}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_is_whole_in_every_window(tab, pages, name, width, dark):
  tab.open(pages[name], width, dark)
  assert tab.problems == []  # of the console, and requests
  assert tab.value("document.documentElement.scrollWidth") <= width
  assert tab.value(PEEPING) == []
  assert tab.value("document.querySelectorAll('svg').length") >= 4
  assert tab.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
  assert tab.value("document.images.length") >= 3
  # What was meant to be text is text.
  assert tab.value("document.scripts.length + document.querySelectorAll('[onerror]').length") == 0
  assert tab.value("document.title") != "owned"
  assert TAG in tab.value("document.body.textContent")
  background, ink = (tab.value(BRIGHTNESS % what) for what in ("backgroundColor", "color"))
  assert (background < 50 and ink > 200) if dark else (background > 200 and ink < 50)
  cards = tab.value(CARDS)
  assert cards and all(bright < 60 if dark else bright > 200 for bright in cards)


def test_numbers_of_the_time_table_stay_whole_on_a_phone(tab, pages):
  tab.open(pages["report"], 400)
  assert tab.value(LINES_OF_NUMBERS) == [1, 1, 1, 1]


LINES_OF_NUMBERS = """[...document.querySelectorAll('.bar+.scroll .num')].map(e => {
  const range = document.createRange();
  range.selectNodeContents(e);
  return range.getClientRects().length;
})"""


# Elements whose text reaches beyond the window without a box around them that scrolls.
PEEPING = """[...document.querySelectorAll('h1,h2,h3,p,dt,dd,td,th,summary,figcaption,.key')]
  .filter(e => !e.closest('.scroll'))
  .filter(e => getComputedStyle(e).display != 'inline')
  .filter(e => e.scrollWidth > e.clientWidth + 1
               || e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 80))"""
BRIGHTNESS = """Math.max(...getComputedStyle(document.body).%s.match(/\\d+/g).slice(0, 3))"""
CARDS = """[...document.querySelectorAll('.card')]
  .map(e => Math.max(...getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3)))"""


@pytest.mark.parametrize(
  "body, problem",
  [
    ("<script>throw new Error('a')</script>", "an error"),
    ("<script>console.log('a')</script>", "something said"),
    ("<img src='http://127.0.0.1:9/a.png'>", "a request"),
  ],
)
def test_the_browser_notices_what_a_page_should_not_have(tab, tmp_path, body, problem):
  path = tmp_path / "page.html"
  path.write_text(f"<!doctype html><p>Text</p>{body}")
  tab.open(path)
  assert tab.problems, problem


def test_a_script_in_a_page_of_ours_would_be_stopped_by_its_own_policy(tab, pages, tmp_path):
  text = (
    pages["report"].read_text().replace("<h2>", "<script>document.title='owned'</script><h2>", 1)
  )
  (tmp_path / "page.html").write_text(text)
  tab.open(tmp_path / "page.html")
  assert tab.value("document.title") != "owned" and "Content Security" in str(tab.problems)


def test_a_page_that_is_too_wide_is_noticed(tab, tmp_path):
  (tmp_path / "page.html").write_text("<!doctype html><p style='width:900px'>Text</p>")
  tab.open(tmp_path / "page.html", 400)
  assert tab.value("document.documentElement.scrollWidth") > 400 and tab.value(PEEPING)
