"""The style sheet of the HTML report: no script, no network, light and dark, screen and paper."""

from __future__ import annotations

from oakum.report._palette import ALL_INKS

_SHEET = """
*, *::before, *::after { box-sizing: border-box }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; scroll-padding-top: 1.5rem }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 var(--sans);
  font-variant-numeric: tabular-nums; text-rendering: optimizeLegibility }
.page { max-width: 1120px; margin: 0 auto; padding: 3.2rem 2rem 4rem }
h1, h2 { font-family: var(--serif); font-weight: 600; text-wrap: balance; line-height: 1.2 }
h1 { font-size: 2.3rem; letter-spacing: -.015em; margin: 0 }
h2 { font-size: 1.45rem; letter-spacing: -.008em; margin: 0 0 .35rem }
h3 { font-size: .95rem; font-weight: 650; margin: 1.8rem 0 .5rem }
section { margin-top: 3.4rem }
p { margin: .4rem 0 .8rem; max-width: 76ch }
a { color: inherit; text-decoration-color: var(--muted); text-underline-offset: .18em }
a:hover { text-decoration-color: currentColor }
:focus-visible { outline: 2px solid var(--s-0); outline-offset: 2px; border-radius: 2px }
code, pre, .key { font-family: var(--mono); font-size: .86em }
.muted, figcaption, .lead { color: var(--muted) }
.lead { margin-bottom: 1.1rem }
.eyebrow { font-size: .78rem; letter-spacing: .09em; text-transform: uppercase; color: var(--muted); margin: 0 0 .5rem }
.standfirst { font-size: 1.12rem; line-height: 1.5; margin: .7rem 0 0 }
.skip { position: absolute; left: -999px }
.skip:focus { left: 1rem; top: 1rem; background: var(--paper); padding: .5rem }

.facts { display: flex; flex-wrap: wrap; gap: 1rem 2.6rem; margin: 1.7rem 0 0; padding: 1rem 0;
  border-block: 1px solid var(--grid) }
.facts div { min-width: 0 }
.facts dt { font-size: .78rem; color: var(--muted) }
.facts dd { margin: 0; font-weight: 550 }
nav { margin-top: .9rem; font-size: .87rem; display: flex; flex-wrap: wrap; gap: .25rem 1.2rem }
nav a { color: var(--muted); text-decoration: none }
nav a:hover { color: var(--ink); text-decoration: underline }

.notice { margin-top: 1.8rem; padding: .35rem 1.2rem; border: 1px solid var(--warn-line); background: var(--warn-bg);
  border-radius: 6px; font-size: .93rem }
.notice dl { margin: 0 }
.notice dl > div { display: grid; grid-template-columns: 13rem 1fr; gap: .2rem 1.5rem; padding: .6rem 0 }
.notice dl > div + div { border-top: 1px solid var(--warn-line) }
.notice dt { font-weight: 600 } .notice dd { margin: 0; overflow-wrap: anywhere }
.notice p { margin: 0 0 .25rem; max-width: none }

.verdict { border-top: 1px solid var(--grid); padding: 1.25rem 0 1.35rem; break-inside: avoid }
.verdict:last-child { border-bottom: 1px solid var(--grid) }
.verdict > header { display: flex; align-items: baseline; gap: .55rem; flex-wrap: wrap }
.verdict h3 { margin: 0; font-size: 1.06rem; overflow-wrap: anywhere }
.verdict .parameters { color: var(--muted); font-size: .84rem; overflow-wrap: anywhere }
.verdict .headline { font-family: var(--serif); font-size: 1.17rem; line-height: 1.35; margin: .3rem 0 .95rem;
  max-width: none }
.verdict dl { margin: 0; display: grid; gap: 1.1rem 1.8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 205px), 1fr)) }
.verdict dt { font-size: .82rem; color: var(--muted) }
.verdict dd { margin: .25rem 0 0; font-size: .84rem; line-height: 1.42; color: var(--soft); overflow-wrap: anywhere }
.verdict dd.figure { font-size: 1.5rem; font-weight: 600; line-height: 1.25; letter-spacing: -.01em; margin-top: .1rem;
  color: var(--ink) }
.verdict dd.chip { font-weight: 600; margin-top: 0; color: var(--muted) }
.verdict dd.good { color: var(--good) } .verdict dd.bad { color: var(--bad) }
.verdict.baseline { background: var(--shade); border: 0; border-radius: 8px; padding-inline: 1.25rem;
  margin: 0 -1.25rem .4rem }
.verdict.baseline + .verdict { border-top: 0 }
.lines .head, .lines summary { display: flex; flex-wrap: wrap; gap: 0 .9rem; align-items: baseline;
  padding-left: 1.15rem }
.lines .head { font-size: .8rem; color: var(--muted); padding-bottom: .35rem; align-items: flex-end; flex-wrap: nowrap }
.lines .who { flex: 0 1 15rem; min-width: 0; overflow-wrap: anywhere; font-weight: 600 }
.lines .head .who { font-weight: 400 }
.lines .said { flex: 1 1 14rem; min-width: 0; font-weight: 400; font-size: .88rem; color: var(--soft) }
.lines .number { flex: 0 0 6.9rem; text-align: right; white-space: nowrap; font-weight: 600 }
.lines .head .number { white-space: normal; font-weight: 400 }
.lines .number.good { color: var(--good) } .lines .number.bad { color: var(--bad) }
.lines .verdict { padding: .42rem 0; border-bottom: 0 }
.lines .verdict:last-child { border-bottom: 1px solid var(--grid) }
.lines .verdict.baseline { margin-inline: 0; border-radius: 4px }
.lines summary { list-style: none; position: relative }
.lines summary::-webkit-details-marker { display: none }
.lines summary::before { content: "\\25b8"; position: absolute; left: .15rem; color: var(--muted) }
.lines details[open] > summary::before { content: "\\25be" }
.lines details > dl, .lines details > p { padding: .6rem 1.15rem .4rem; margin: 0 }
.mark { width: .78em; height: .78em; flex: none; align-self: center; vertical-align: -.03em }

.scroll { overflow-x: auto; margin-inline: -.2rem; padding-inline: .2rem }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .89rem; line-height: 1.4 }
caption { text-align: left; color: var(--muted); padding-bottom: .5rem; font-size: .87rem }
th, td { padding: .5rem .65rem; text-align: right; vertical-align: top }
th:first-child, td:first-child { padding-left: .1rem }
th:last-child, td:last-child { padding-right: .1rem }
thead th { vertical-align: bottom; font-weight: 600; font-size: .82rem; line-height: 1.3;
  border-bottom: 1.5px solid var(--muted) }
th small, td small { display: block; font-weight: 400; color: var(--muted); font-size: .78rem; line-height: 1.35 }
th.text, td.text { text-align: left }
tbody th { font-weight: 550; text-align: left; overflow-wrap: anywhere; min-width: 8.5rem }
td { white-space: nowrap }
td.wrap, td small.wrap { white-space: normal; overflow-wrap: anywhere }
td .main { font-weight: 550; font-size: .98rem } table.values td .main { font-size: inherit; font-weight: 650 }
td.good .main { color: var(--good) } td.bad .main { color: var(--bad) }
td .none { color: var(--muted); font-style: italic; font-weight: 400; font-size: .87rem }
tbody tr + tr > * { border-top: 1px solid var(--grid) }
tbody tr + tr.group-start > * { border-top-color: var(--muted) }
table { border-bottom: 1.5px solid var(--muted) } table.pictures { border: 0 }
table.values td, table.values tbody th { padding-block: .32rem }
table.values td:first-child { padding-left: .65rem } table.values .key:first-child { padding-left: .1rem }
table.measured tbody code { font-size: .8rem; font-weight: 500 }
table.measured th:first-child { width: 25% }
table.measured th:nth-child(2) { width: 17% }
.strip { display: block; margin: .3rem 0 .1rem auto; width: 104px; height: 15px; overflow: visible }

.matrix-frame { margin: .4rem 0 .3rem; padding: 0 }
.matrix-frame table { width: auto; font-size: .82rem; line-height: 1.25 }
.matrix-frame.wide table { min-width: 100% }
.matrix th, .matrix td { padding: .26rem .38rem }
.matrix td { min-width: 3.1rem }
.matrix thead th { border-bottom: 0; font-size: .76rem; padding-block: .12rem; vertical-align: bottom;
  min-width: 3.2rem }
.matrix thead th.text { vertical-align: bottom }
.matrix thead tr:last-child th, .matrix thead th[rowspan] { border-bottom: 1.5px solid var(--muted) }
.matrix thead th.group { text-align: left; color: var(--muted); font-weight: 550; white-space: nowrap }
.matrix thead th[colspan]:not(.group) { text-align: center }
.matrix th:first-child { position: sticky; left: 0; z-index: 2; background: var(--paper); padding-left: .1rem;
  padding-right: .8rem; min-width: 9rem; max-width: 13rem; border-right: 1px solid var(--grid) }
.matrix thead tr + tr th:first-child { position: static; min-width: 3.2rem; max-width: none; border-right: 0;
  padding-inline: .38rem }
.matrix .first { border-left: 1px solid var(--grid) }
.matrix tbody th { font-weight: 550; line-height: 1.3 }
.matrix td .main { font-size: .86rem; font-weight: 500 }
.matrix td small { font-size: .66rem; line-height: 1.25; white-space: nowrap }
.matrix th small { font-size: .69rem; line-height: 1.25 } .matrix thead small { white-space: nowrap }
.matrix td .none { font-size: .74rem }
.matrix sup { font-size: .7em; line-height: 0; color: var(--muted) }
.matrix .flattered sup, .matrix .inverted sup { color: var(--bad); font-weight: 650 }
.matrix td.vanilla .main { font-size: .74rem; font-weight: 400; color: var(--muted) }
.matrix td.vanilla { padding-left: .1rem; min-width: 2.5rem } .matrix td.vanilla small { display: none }
.matrix td.flattered .main { color: var(--bad); font-weight: 650 }
.matrix td.strongest { box-shadow: inset 0 0 0 1.6px var(--ink); border-radius: 3px }
.matrix td.strongest .main { font-weight: 700 }
.matrix tr.baseline > * { border-bottom: 1px solid var(--muted) }
.matrix tbody tr.baseline + tr > * { border-top: 0 }
.matrix tr.floor > *, .matrix tr.floor td .main { color: var(--muted); font-weight: 400 }
.matrix td[style] { background: color-mix(in srgb, var(--heat) var(--shade-of-cell), transparent) }
.footnote { font-size: .84rem; color: var(--soft); margin: .3rem 0; max-width: 110ch }
@media (min-width: 1240px) {
  .matrix-frame.wide { width: min(100vw - 5rem, 1560px); margin-left: calc(50% - min(50vw - 2.5rem, 780px)) }
}

figure { margin: 1rem 0 0 }
figure .plot { overflow-x: auto }
figure .plot svg { display: block; overflow: visible; width: 100%; min-width: 660px; height: auto }
figure .plot svg text { font-family: var(--sans) !important; font-variant-numeric: tabular-nums }
figure.narrow .plot svg { max-width: 760px }
figcaption { font-size: .87rem; margin-top: .55rem; max-width: 90ch }
.pictures { width: auto }
.pictures th, .pictures td, .pictures tr + tr > * { padding: .22rem; border: 0; text-align: center;
  vertical-align: middle }
.pictures thead th { font-size: .78rem; max-width: 7.5rem; overflow-wrap: anywhere; vertical-align: bottom;
  padding-bottom: .4rem }
.pictures tbody tr > th { text-align: right; padding-right: .7rem; min-width: 0; font-size: .84rem }
.pictures img { display: block; margin: auto; width: 74px; height: 74px; object-fit: contain;
  image-rendering: pixelated; border-radius: 3px; background: var(--shade) }
.pictures .made img { outline: 2px solid transparent; outline-offset: 1px }
.pictures .hit img { outline-color: var(--bad) }
.pictures .doubted img { outline: 2px dotted var(--bad) }
.pictures .miss img { outline: 1.5px dashed var(--muted) }
.pictures tr > .first { padding-left: 1.5rem }

details { border-top: 1px solid var(--grid); padding: .55rem 0 }
details:last-of-type { border-bottom: 1px solid var(--grid) }
summary { cursor: pointer; font-weight: 550 }
pre { background: var(--shade); border-radius: 6px; padding: .85rem 1rem; overflow-x: auto; line-height: 1.5;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .6rem 0 1rem }
dl.pairs { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .3rem 1.4rem;
  margin: .8rem 0 1.4rem }
dl.pairs dt { color: var(--muted) } dl.pairs dd { margin: 0; overflow-wrap: anywhere }
dl.terms { columns: 2 26rem; column-gap: 2.6rem; margin: 1rem 0 0 }
dl.terms div { break-inside: avoid; padding-bottom: .95rem }
dl.terms dt { font-weight: 650 } dl.terms dd { margin: .1rem 0 0; color: var(--soft); font-size: .93rem }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--grid); color: var(--muted);
  font-size: .84rem }

@media (max-width: 640px) {
  .page { padding: 1.8rem 1.1rem 3rem } h1 { font-size: 1.8rem } .notice dl > div { display: block }
  .lines .head { display: none } .lines .who, .lines .said { flex: 1 1 100% }
  .lines .number { flex: 0 1 auto; text-align: left; margin-right: .8rem }
  .lines .number::before { content: attr(title) "  "; font-weight: 400; font-size: .8rem; color: var(--muted) }
  .verdict.baseline { margin-inline: 0 } dl.pairs { grid-template-columns: 1fr; gap: 0 }
  dl.pairs dd { margin-bottom: .5rem }
}
@media print {
  @page { size: A4; margin: 15mm 13mm }
  body { font-size: 9.6pt } .page { max-width: none; padding: 0 } nav, .skip { display: none }
  section { margin-top: 1.6rem } h2, h3 { break-after: avoid } figure, tr, .notice { break-inside: avoid }
  figure .plot svg { min-width: 0 } .scroll, figure .plot { overflow: visible } table { font-size: 8pt }
  @page matrix { size: A4 landscape; margin: 12mm 10mm }
  #matrix, #inversion { page: matrix } #matrix h3 ~ h3 { break-before: page }
  #matrix p, #inversion p { max-width: none; font-size: 8.5pt }
  .matrix-frame.wide { width: auto; margin-left: 0 }
  .lines summary { flex-wrap: nowrap } .lines .number { flex-basis: 5.4rem } .lines .said { font-size: 8.5pt }
  .matrix-frame table { font-size: 6.6pt } .matrix-frame.wide table { min-width: 0 }
  .matrix th, .matrix td { padding: .06rem .16rem; min-width: 0; line-height: 1.2 }
  .matrix thead th, .matrix thead th.group { font-size: 6.2pt; min-width: 0 }
  .matrix tbody th:first-child, .matrix thead th:first-child { position: static; min-width: 4.6rem }
  .matrix thead tr + tr th:first-child { min-width: 0; padding-inline: .16rem }
  .matrix td .main { font-size: 6.8pt } .matrix td .none, .matrix td.vanilla .main { font-size: 6.2pt }
  .matrix td.vanilla { min-width: 0 }
  .wide .matrix td small:not(.seeds) { display: none } .matrix thead small { font-size: 5.4pt }
  .matrix td small, .matrix tbody th small { font-size: 5.8pt }
  details:not(.bulk, .verdict)::details-content { content-visibility: visible; height: auto }
  th, td { padding-inline: .3rem } td { white-space: normal }
  th small, td small { font-size: 6.8pt } td small { white-space: nowrap }
  td .main { font-size: 9pt } thead th { font-size: 7.6pt } .strip { width: 70px } tbody th { min-width: 5.5rem }
  #differences .scroll, #glance .scroll { break-inside: avoid }
  .verdict dl { grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .8rem 1rem }
  .verdict dd.figure { font-size: 13pt }
  body, .verdict.baseline, pre, .notice, img, .matrix td { print-color-adjust: exact;
    -webkit-print-color-adjust: exact }
}
"""

_FONTS = (
    "--sans: ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; "
    "--serif: 'Iowan Old Style', Charter, 'Source Serif 4', 'Palatino Linotype', Georgia, 'DejaVu Serif', serif; "
    "--mono: ui-monospace, 'SF Mono', 'Cascadia Code', Menlo, Consolas, 'DejaVu Sans Mono', monospace; "
)
_LIGHT = (
    "--good: #00714f; --bad: #b3261e; --soft: #3b424d; --warn-bg: #fdf6e3; --warn-line: #e5d3a1; --heat: #c8500b; "
    "color-scheme: light; "
)
_DARK = (
    "--good: #4fcf9f; --bad: #ff8a7a; --soft: #c3c9d2; --warn-bg: #2a2416; --warn-line: #57491f; --heat: #f28a4b; "
    "color-scheme: dark; "
)


def sheet() -> str:
    """Return the whole style sheet; colors of settings come from the palette."""
    light = _FONTS + _LIGHT + "".join(f"--{ink.variable}: {ink.light}; " for ink in ALL_INKS)
    dark = _DARK + "".join(f"--{ink.variable}: {ink.dark}; " for ink in ALL_INKS)
    return f":root {{ {light}}}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n{_SHEET}"
