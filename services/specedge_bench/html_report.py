"""The run as one HTML file: no script, no font, no image from elsewhere; wide and narrow, light and dark."""

from collections.abc import Sequence
from html import escape

from specedge_bench.plots import Plot
from specedge_bench.tables import Table

NUM_NAME_COLUMNS = 3

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2027; --soft: #58616c; --page: #ffffff; --card: #f5f7f9; --line: #d7dde3;
  --good: #16704c; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #a2abb5; --page: #14171b; --card: #1d2126; --line: #363d45;
    --good: #5ecf9d; --bad: #ff8a80; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(0.75rem, 3vw, 2.5rem) 4rem; max-width: 92rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 0.25rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 0.25rem; }
p { margin: 0.25rem 0 0.75rem; max-width: 75ch; }
.soft, figcaption { color: var(--soft); }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 0.5rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.7rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; background: var(--card); font-weight: 600; white-space: normal; vertical-align: bottom; }
tbody tr.place th, tbody tr.place td { border-top: 2px solid var(--soft); }
.name { text-align: left; }
tbody th { font-weight: 400; }
@media (min-width: 50rem) { tbody .last-name { position: sticky; left: 0; background: var(--page); } }
@media (max-width: 40rem) { table { font-size: 0.8rem; } th, td { padding: 0.3rem 0.45rem; } }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1.25rem; margin: 0.5rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: 0.4rem; } }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: 0.75rem; background: var(--card); border-radius: 0.5rem; min-width: 0; }
figcaption { font-size: 0.9rem; margin-bottom: 0.25rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, "DejaVu Sans", sans-serif !important; }
"""


def page(
    title: str,
    facts: Sequence[tuple[str, str]],
    verdicts: Sequence[tuple[bool, str]],
    tables: Sequence[Table],
    plots: Sequence[Plot],
    plot_notes: dict[str, str],
) -> str:
    """The whole file.

    Args:
        title: of the page.
        facts: name and value of what holds for the whole run.
        verdicts: whether it is good news, and the sentence.
        tables: the first one comes before the plots, the others after them.
        plots: in the order of their sections.
        plot_notes: what to know when reading a section's plots, by section.
    """
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    said = "".join(f'<p class="{"good" if is_good else "bad"}">{escape(text)}</p>' for is_good, text in verdicts)
    drawn = "".join(
        _plots(section, plot_notes.get(section, ""), [plot for plot in plots if plot.section == section])
        for section in dict.fromkeys(plot.section for plot in plots)
    )
    body = "".join(
        [
            f"<h1>{escape(title)}</h1>",
            said,
            *map(_table, tables[:1]),
            drawn,
            *map(_table, tables[1:]),
            f"<h2>What was run</h2><dl>{listed}</dl>",
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col" class="{_name_class(index)}">{escape(name)}</th>' for index, name in enumerate(table.header)
    )
    rows = []
    place: tuple[str, ...] | None = None
    for row in table.rows:
        # A line above the first row of every network and load keeps the systems that compare together.
        starts_place = place is not None and row[: NUM_NAME_COLUMNS - 1] != place
        place = row[: NUM_NAME_COLUMNS - 1]
        cells = "".join(
            f'<th scope="row" class="{_name_class(index)}">{escape(value)}</th>'
            if index < NUM_NAME_COLUMNS
            else f"<td>{escape(value)}</td>"
            for index, value in enumerate(row)
        )
        rows.append(f"<tr{' class=place' if starts_place else ''}>{cells}</tr>")
    return (
        f'<h2>{escape(table.title)}</h2><p class="soft">{escape(table.note)}</p>'
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _name_class(index: int) -> str:
    if index == NUM_NAME_COLUMNS - 1:
        return "name last-name"
    return "name" if index < NUM_NAME_COLUMNS else ""


def _plots(section: str, note: str, plots: Sequence[Plot]) -> str:
    figures = "".join(f"<figure><figcaption>{escape(plot.title)}</figcaption>{plot.svg}</figure>" for plot in plots)
    return f'<h2>{escape(section)}</h2><p class="soft">{escape(note)}</p><div class="plots">{figures}</div>'
