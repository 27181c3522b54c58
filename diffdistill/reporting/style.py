"""How the page looks: light and dark, on a phone and on a desk."""

# Okabe and Ito's colours, which the colour-blind tell apart, made darker on
# light ground and lighter on dark; yellow, lost on white, is an olive.
STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fdfdfc; --card: #f5f5f2; --line: #dcdcd6; --ink: #1c1e21;
  --muted: #5c6066; --strong: #0a5a8f; --mark: #fff3cd;
  --c0: #0072b2; --c1: #d55e00; --c2: #008560; --c3: #b0528c;
  --c4: #b07c00; --c5: #2a95d0; --c6: #7a7000; --c7: #7d4a2e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15171a; --card: #1e2125; --line: #363b41; --ink: #e6e6e3;
    --muted: #a2a7ad; --strong: #7cc3f2; --mark: #43390f;
    --c0: #4fa9e6; --c1: #ff8b45; --c2: #3cc79b; --c3: #e79cc9;
    --c4: #f0b429; --c5: #9bd8fa; --c6: #d8cf5a; --c7: #d9a184;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem;
  background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
    "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 {
  font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .75rem;
  padding-top: 1rem; border-top: 1px solid var(--line);
}
h3 { font-size: 1.1rem; line-height: 1.3; margin: 2.25rem 0 .5rem; }
h4 { font-size: 1rem; margin: 0; }
p { margin: .5rem 0; max-width: 68ch; }
.muted, figcaption, caption, dt { color: var(--muted); font-size: .875rem; }
.lead { font-size: 1.125rem; line-height: 1.5; }
a { color: var(--strong); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0;
  list-style: none; }
.notes { padding: .6rem 1rem .6rem 1.9rem; margin: 1rem 0; border-radius: 6px;
  background: var(--mark); font-size: .925rem; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 500; }
thead th { white-space: normal; min-width: 4rem; }
th:first-child, .word { text-align: left; }
tr > :first-child { position: sticky; left: 0; background: var(--ground); }
.card tr > :first-child { background: var(--card); }
td strong { color: var(--strong); }
mark { background: var(--mark); color: inherit; }
.values td, .values th { white-space: normal; text-align: left;
  overflow-wrap: anywhere; vertical-align: top; min-width: 6rem; }
@media (max-width: 40rem) {
  th, td { padding: .35rem .5rem; }
  tr > :first-child { max-width: 45vw; white-space: normal; padding-left: 0; }
  tbody > tr > :first-child { min-width: 7.5rem; }
}
.scroll { overflow-x: auto; max-width: 100%; margin: .75rem 0;
  position: relative; }
.heads { display: grid; gap: .75rem; margin: 1rem 0; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); }
.heads > div, .card { background: var(--card); border-radius: 8px;
  padding: .9rem 1rem; min-width: 0; }
.heads dt { font-weight: 600; color: var(--ink); }
.heads dd { margin: 0; font-size: .875rem; color: var(--muted); }
.heads b { display: block; font-size: 1.7rem; line-height: 1.25;
  color: var(--strong); font-weight: 600; font-variant-numeric: tabular-nums; }
.card > dl:first-child { margin-top: 0; }
.card h3, .card h4 { margin: 0; font-size: 1.1rem; }
.card th, .card td { padding: .3rem .45rem; }
.card tr > :first-child { padding-left: 0; }
.cards { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.facts { display: grid; gap: .6rem 1rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 8.5rem), 1fr)); }
.facts dt { font-size: .8rem; line-height: 1.3; }
.facts dd { margin: 0; font-size: .925rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
.pair { display: grid; gap: 1rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 23rem), 1fr)); }
figure { margin: .75rem 0; min-width: 0; }
svg.chart { display: block; width: 100%; max-width: 36rem; height: auto; }
svg text { font-size: 11px; fill: var(--muted); }
svg text.name { font-size: 12px; fill: var(--ink); font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: .75; }
svg .tick, svg .mark { stroke: var(--muted); stroke-width: .75; }
svg .mark { stroke-dasharray: 2 2; }
svg .level { stroke: var(--muted); stroke-dasharray: 6 3; }
.series { stroke: currentColor; fill: none; stroke-width: 1.75;
  stroke-linejoin: round; }
svg .point { fill: currentColor; stroke: none; }
.ink { color: var(--ink); } .c0 { color: var(--c0); } .c1 { color: var(--c1); }
.c2 { color: var(--c2); } .c3 { color: var(--c3); } .c4 { color: var(--c4); }
.c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0;
  margin: .4rem 0; list-style: none; font-size: .875rem; }
.legend svg { vertical-align: middle; }
.sheets { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(46%, 12rem), 1fr)); }
.sheets figure { margin: 0; }
img { background: #fff; border-radius: 4px; }
.sheets img { display: block; width: 100%; height: auto; }
.scroll img { display: block; max-width: none; }
summary { cursor: pointer; color: var(--strong); padding: .3rem 0; }
footer { margin-top: 4rem; }
@media print { details > * { display: block; } }
"""
