"""The looks of a page of results: readable at 400 pixels, and on a dark screen."""

STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #595959; --paper: #fff; --panel: #f4f4f4;
        --line: #d8d8d8; --warn: #fff3d6; --edge: #b87900; --up: #0072b2; --down: #d55e00 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem;
       color: var(--ink); background: var(--paper); overflow-wrap: anywhere }
h1 { line-height: 1.2; font-size: 1.7rem; margin-bottom: .3rem }
h2 { margin-top: 2.5rem; font-size: 1.3rem } h3 { font-size: 1.05rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .7rem;
         padding: 0; margin: 1.2rem 0; list-style: none }
.tiles li { background: var(--panel); border-radius: 6px; padding: .6rem .9rem }
.tiles b { display: block; font-size: 1.45rem; line-height: 1.3 }
.tiles span { color: var(--soft); font-size: .88rem; line-height: 1.35; display: block }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem }
th, td { padding: .3rem 0 .3rem .9rem; border-bottom: 1px solid var(--line); text-align: right;
         vertical-align: bottom; white-space: nowrap }
th { font-weight: 600 }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal;
                                 min-width: 9rem; font-weight: normal }
.bar { display: inline-block; position: relative; width: 9rem; height: .8rem; vertical-align: middle;
       background: linear-gradient(var(--soft), var(--soft)) var(--zero) / 1px no-repeat }
.bar i { position: absolute; top: 0; bottom: 0; background: var(--up) }
.bar .negative { background: var(--down) }
img { width: 100%; height: auto; max-width: 40rem } figure { margin: 1.5rem 0 }
figcaption, .soft { color: var(--soft) } .soft { font-size: .88rem }
.note { background: var(--warn); padding: .5rem 1rem; border-left: 4px solid var(--edge) }
summary { cursor: pointer }
details > summary { font-weight: 600; margin: 1.2rem 0 }
pre { background: var(--panel); padding: .8rem 1rem; font-size: 13px; white-space: pre-wrap }
@media (max-width: 600px) {
  h1 { font-size: 1.35rem } th, td { padding-left: .6rem; font-size: 14px }
  table.fold, table.fold tbody, table.fold caption { display: block }
  table.fold tr { display: grid; grid-template-columns: repeat(var(--columns), 1fr);
                  border-bottom: 1px solid var(--line); padding: .3rem 0 }
  table.fold th, table.fold td { border: 0; padding: 0 }
  table.fold td:first-child { grid-column: 1 / -1 }
  table.fold th:first-child { display: none }
  .tiles { grid-template-columns: 1fr 1fr } .tiles b { font-size: 1.2rem }
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --soft: #a9a9a9; --paper: #161616; --panel: #242424; --line: #3c3c3c;
          --warn: #3a2f14; --edge: #e69f00; --up: #56a8dc; --down: #e8833a }
  img { filter: invert(1) hue-rotate(180deg) brightness(1.15); mix-blend-mode: lighten }
}
"""
