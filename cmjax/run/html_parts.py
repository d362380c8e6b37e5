"""What pages of runs are put together from: one file with inline CSS, tables, figures, paragraphs.

No page has a script or asks the network for anything. It is light or dark, as the reader's system.
"""

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cmjax.run.charts import number

CSS = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b1f27;--soft:#667085;--line:#e3e6ec;
--bad:#c62828}
@media (prefers-color-scheme:dark){:root{--bg:#0f1216;--card:#181c22;--ink:#e7eaf0;--soft:#98a2b3;
--line:#2b313b;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif;
overflow-wrap:anywhere}
main{max-width:1240px;margin:0 auto;padding:32px 24px 64px}
@media (max-width:600px){main{padding:20px 12px 48px}h1{font-size:22px}}
h1{font-size:28px;line-height:1.2;margin:0 0 4px}
h2{font-size:18px;margin:36px 0 12px}
h3{font-size:14px;margin:0}
p{margin:8px 0;max-width:80ch}
.soft,figcaption{color:var(--soft);font-size:13px}.bad{color:var(--bad)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tiles{display:flex;flex-wrap:wrap;gap:12px;margin:20px 0 16px}
.tiles .card{min-width:130px;flex:1}.tiles b{display:block;font-size:22px;line-height:1.3}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,520px),1fr));gap:14px}
.head{display:flex;flex-wrap:wrap;gap:2px 12px;align-items:baseline}
.head h3{margin-right:auto}.key{font-size:12px;color:var(--soft)}
.key.bad{color:var(--bad)}
.key i{display:inline-block;width:12px;height:3px;margin-right:5px;vertical-align:middle}
.charts .card{display:flex;flex-direction:column}
svg{display:block;width:100%;height:auto;margin-top:auto;padding-top:8px}
svg text{fill:var(--soft);font-size:11px}svg .axis{stroke:var(--line);stroke-width:1}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.bar+.scroll td{white-space:normal}.bar+.scroll .num{white-space:nowrap}
th,td{padding:5px 14px 5px 0;text-align:left;border-bottom:1px solid var(--line);
vertical-align:top}
th{color:var(--soft);font-weight:600;font-size:13px}tr:last-child td{border-bottom:0}
.num{text-align:right}.config td{font:13px/1.5 ui-monospace,monospace}
.config td:first-child{color:var(--soft)}
.pictures{display:grid;gap:18px;align-items:start;
grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr))}
.many{margin-top:10px;grid-template-columns:repeat(auto-fill,minmax(min(100%,270px),1fr))}
.past{display:grid;gap:12px;grid-template-columns:repeat(auto-fill,minmax(120px,1fr))}
figure{margin:0;min-width:0}figure img{display:block;max-width:100%;border-radius:4px}
.pictures img{width:100%;image-rendering:pixelated}
.pictures figcaption b{color:var(--ink)}details{margin-top:14px}summary{cursor:pointer}
.bar{display:flex;height:18px;border-radius:5px;overflow:hidden;margin-bottom:10px}
.bar i{display:block;min-width:1px}
i.spot{display:inline-block;width:11px;height:11px;border-radius:3px}
dl{margin:14px 0 0}dt{font-weight:600;font-size:13px}dd{margin:0 0 8px;max-width:80ch}
.scroll td,.scroll th{white-space:nowrap}
.config.scroll td{white-space:normal;max-width:36ch;min-width:16ch}
section>.card+.card{margin-top:14px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:14px}
"""


def document(title: str, head: str, body: str) -> str:
  """A whole page: heading, what is under it, the rest."""
  # The policy makes the browser itself hold the promise of no script and no network.
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none';img-src data:;style-src 'unsafe-inline'">
<title>{html.escape(title)}</title><style>{CSS}</style></head><body><main>
<header><h1>{html.escape(title)}</h1>{head}</header>
{body}</main></body></html>
"""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """A table; the columns are the keys of the rows, in order of appearance."""
  columns = list(dict.fromkeys(key for row in rows for key in row))
  kinds = {
    c: "num" if all(isinstance(r.get(c, 0), int | float | np.number | None) for r in rows) else ""
    for c in columns
  }

  def cell(row, column):
    value = row.get(column)
    bad = isinstance(value, float | np.floating) and not math.isfinite(value)
    return f'<td class="{kinds[column]}{" bad" * bad}">{number(value)}</td>'

  head = "".join(f'<th class="{kinds[c]}">{html.escape(str(c))}</th>' for c in columns)
  body = "".join("<tr>" + "".join(cell(r, c) for c in columns) + "</tr>" for r in rows)
  return f"<table><tr>{head}</tr>{body}</table>"


def pairs(items: Iterable[tuple[str, Any]]) -> str:
  """A table of two columns without a head."""
  text = ((html.escape(str(k)), html.escape(str(v))) for k, v in items)
  return f"<table>{''.join(f'<tr><td>{k}</td><td>{v}</td></tr>' for k, v in text)}</table>"


def paragraphs(texts: Iterable[str], style: str = "") -> str:
  """Paragraphs of plain text."""
  given = f' class="{style}"' if style else ""
  return "".join(f"<p{given}>{html.escape(text)}</p>" for text in texts)


def sections(parts: Iterable[tuple[str, str]]) -> str:
  """(heading, HTML) under each other, without those that are empty."""
  return "".join(
    f"<section><h2>{html.escape(name)}</h2>{part}</section>" for name, part in parts if part
  )


def figure(png: bytes, label: str, caption: str) -> str:
  """A picture with its caption, which is HTML; `label` is its text for those who do not see it."""
  data = base64.b64encode(png).decode()
  return (
    f'<figure><img alt="{html.escape(label)}" src="data:image/png;base64,{data}">'
    f"<figcaption>{caption}</figcaption></figure>"
  )


def definitions(items: Iterable[tuple[str, str]]) -> str:
  """A list of terms, each with what it is."""
  text = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in items)
  return f"<dl>{text}</dl>" if text else ""
