"""Template of the report's page, for Jinja with autoescape: content of a run is text, never markup.

It is a Python string because Flower's app bundles do not include HTML files.
"""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="fed_a2v {{ version }}">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<p class="kicker">fed_a2v report</p>
<h1><bdi>{{ title }}</bdi></h1>
<p>{{ subtitle }}</p>
</header>
<nav aria-label="Sections">
<ul>
{% for link, words in sections %}<li><a href="#{{ link }}">{{ words }}</a></li>
{% endfor %}</ul>
</nav>
<main id="content" tabindex="-1">
<p id="problem" class="notice" role="status" hidden></p>
<noscript><p class="notice">The figures need JavaScript; the tables do not.</p></noscript>
<section aria-labelledby="headline">
<h2 id="headline">At a glance</h2>
<div class="verdict {{ verdict.tone }}"><p>{{ verdict.says }}</p>
{% for words in verdict.next.words %}<p class="advice">{% if loop.first %}<b>What next:</b> {% endif %}\
{{ words }}</p>
{% endfor %}{% if verdict.next.command %}<pre>{{ verdict.next.command }}</pre>
{% endif %}</div>
{% for notice in notices %}<p class="notice">{{ notice }}</p>
{% endfor %}
{% if cards %}<dl class="cards">
{% for card in cards %}<div><dt>{{ card.name }}</dt><dd>{{ card.value }}<small>{{ card.note }}</small></dd></div>
{% endfor %}</dl>{% endif %}
{% for each in exchange %}<p>{% if each.label %}<bdi>{{ each.label }}</bdi>: {% endif %}{{ each.text }}</p>
{% endfor %}{% for arms, covers in crossed %}{{ table(arms, "Cross-validation") }}
<p>{{ covers }}</p>
{% endfor %}{% if summary.rows %}{{ table(summary, "Results") }}{% endif %}
{% if weakest %}<h3>Weakest classes</h3>
<ul class="weak">
{% for each in weakest %}<li><b><bdi>{{ each.name }}</bdi></b> {{ each.figures }}</li>
{% endfor %}</ul>{% endif %}
{% if privacy.rows %}{{ table(privacy, "Differential privacy") }}{% endif %}
</section>
{% for group in groups %}<section aria-labelledby="{{ group.name }}">
<h2 id="{{ group.name }}">{{ group.title }}</h2>
{% if group.name == "generator" and gates.rows %}<h3>Gates</h3>
<p>Samples of a good generator pass all three. The verdict is of the newest validation.</p>
{{ table(gates, "Gates") }}{% endif %}
{% for plot in group.plots %}<figure id="{{ plot.name }}" data-plot="{{ plot.name }}">
<h3>{{ plot.title }}</h3>
{% if plot.views|length > 1 %}<fieldset class="views"><legend class="hidden">Show in {{ plot.title }}</legend>
{% for view in plot.views %}<label><input type="radio" name="view-{{ plot.name }}" value="{{ loop.index0 }}"\
{% if loop.first %} checked{% endif %}><span><bdi>{{ view.label }}</bdi></span></label>
{% endfor %}</fieldset>{% endif %}
{% if plot.classes|length > 1 %}<p class="pick"><label>Highlight <select data-pick="{{ plot.name }}">
<option value="">all classes</option>
{% for name in plot.classes %}<option>{{ name }}</option>
{% endfor %}</select></label></p>{% endif %}
<div class="plot" style="height:{{ plot.height }}px" role="img" tabindex="0" \
 aria-label="{{ plot.title }}. {{ plot.caption }} The numbers are in the table below."></div>
{% if plot.classes|length > 1 %}<ul class="legend" aria-label="Legend"></ul>
{% endif %}<figcaption>{{ plot.caption }}</figcaption>
{% if plot.table.rows %}<div class="numbers"><details><summary>Numbers: {{ plot.title }}</summary>
{{ table(plot.table, plot.title) }}
</details>
<button type="button" data-csv="{{ plot.name }}" aria-label="Download the numbers as CSV: {{ plot.title }}" hidden>\
CSV</button></div>{% endif %}
</figure>
{% endfor %}{% if group.name == "of-sites" and reasons.rows %}<h3>Errors</h3>
{{ table(reasons, "Errors") }}{% endif %}
</section>
{% endfor %}
<section aria-labelledby="settings">
<h2 id="settings">Settings</h2>
{% if differences.rows %}<p>Differences between the runs:</p>
{{ table(differences, "Differences between the runs") }}{% endif %}
{% for run in configs %}<details><summary>All settings of <bdi>{{ run.label }}</bdi></summary>
<pre tabindex="0">{{ run.text }}</pre></details>
{% endfor %}
</section>
<section aria-labelledby="reproduce">
<h2 id="reproduce">How to reproduce</h2>
{% for words in code %}<p class="code">{{ words }}</p>
{% endfor %}{% for run in reproductions %}{% if reproductions|length > 1 %}<h3><bdi>{{ run.label }}</bdi></h3>
{% endif %}{% for words in run.words %}<p class="code">{{ words }}</p>
{% endfor %}{% if run.commands %}<pre tabindex="0">{{ run.commands }}</pre>{% endif %}
{% endfor %}
<p>With the same versions and the same kind of processor, the same settings give identical numbers.</p>
<details{% if reproductions|length == 1 %} open{% endif %}><summary>Versions, processor and start</summary>
{% if environment.rows %}{{ table(environment, "Environment") }}{% else %}<p>Not recorded.</p>{% endif %}
</details>
</section>
</main>
<script type="application/json" id="plots">{{ plots|safe }}</script>
<script type="text/plain" id="library">{{ library|safe }}</script>
<script>{{ script|safe }}</script>
</body>
</html>
"""

TABLE = """\
<div class="table" role="region" aria-label="{{ name }}" tabindex="0"><table>
<thead><tr>
{% for cell in table.header %}<th scope="col"{% if numeric[loop.index0] %} class="n"{% endif %}>\
<bdi>{{ cell }}</bdi></th>{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}<tr>{% for cell in row %}{% if loop.first %}<th scope="row"><bdi>{{ cell }}</bdi></th>\
{% else %}<td{% if numeric[loop.index0] %} class="n"{% endif %}><bdi>{{ cell }}</bdi></td>{% endif %}{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
"""

STYLE = """
:root {
  color-scheme: light dark;
  --back: #ffffff; --card: #f5f6f8; --text: #1c2026; --soft: #575e69; --line: #d9dce1; --accent: #175cab;
  --notice: #fff4d6; --good: #1b7f55; --bad: #b3363c; --scale-none: #f1f3f6; --scale-from: #c5daf2; --scale-to: #175cab;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14171a; --card: #1e2227; --text: #e7e9ec; --soft: #a5acb6; --line: #373d45; --accent: #80b6f2;
    --notice: #3a3113; --good: #45b98a; --bad: #e2757a;
    --scale-none: #1e2227; --scale-from: #34537a; --scale-to: #a5cdfa;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif;
  overflow-wrap: anywhere;
}
header, main { max-width: 1080px; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.5rem; }
header p { margin: 0 0 .5rem; color: var(--soft); }
.kicker { font-size: .85rem; letter-spacing: .04em; text-transform: uppercase; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25; }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.3rem; }
h3 { margin: 0 0 .5rem; font-size: 1.05rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
main:focus { outline: none; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 1rem; top: .5rem; z-index: 10; background: var(--back); padding: .5rem; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
nav {
  position: sticky; top: 0; z-index: 5; background: var(--back); border-bottom: 1px solid var(--line);
  overflow-x: auto; scrollbar-width: thin;
}
nav ul { display: flex; gap: 1.1rem; margin: 0 auto; padding: .55rem 1rem; max-width: 1080px; list-style: none; }
nav li { white-space: nowrap; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.notice { background: var(--notice); padding: .6rem .9rem; border-radius: 6px; }
.verdict { border-inline-start: 5px solid var(--accent); background: var(--card); padding: .8rem 1rem;
  border-radius: 0 8px 8px 0; margin: 0 0 1rem; }
.verdict.good { border-color: var(--good); }
.verdict.bad { border-color: var(--bad); }
.verdict p { margin: 0; font-size: 1.12rem; font-weight: 600; }
.verdict p.advice { margin-top: .5rem; font-size: .95rem; font-weight: 400; }
.verdict p.advice b { font-weight: 600; }
.verdict pre { background: var(--back); margin: .5rem 0 0; padding: .5rem .7rem; }
.weak { margin: 0 0 1rem; padding-inline-start: 1.2rem; }
.code { margin: .2rem 0; }
.code + h3, pre + h3 { margin-top: 1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 0 0 1rem; }
.cards div { background: var(--card); border-radius: 8px; padding: .7rem .9rem; }
.cards dt { color: var(--soft); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.cards small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); }
figure { margin: 0 0 1.2rem; padding: .9rem; border: 1px solid var(--line); border-radius: 10px; }
figcaption { color: var(--soft); font-size: .9rem; margin: .3rem 0 .5rem; }
.plot { width: 100%; }
.plot:focus-within .modebar--hover { opacity: 1 !important; }
fieldset.views { display: flex; flex-wrap: wrap; gap: .35rem; border: 0; margin: 0 0 .5rem; padding: 0; min-width: 0; }
.views label { position: relative; }
.views input { position: absolute; opacity: 0; inset: 0; margin: 0; cursor: pointer; }
.views span {
  display: block; padding: .2rem .65rem; border: 1px solid var(--line); border-radius: 999px; font-size: .88rem;
}
.views input:checked + span { background: var(--accent); border-color: var(--accent); color: var(--back); }
.views input:focus-visible + span { outline: 3px solid var(--accent); outline-offset: 2px; }
.pick { margin: 0 0 .5rem; font-size: .9rem; }
select { font: inherit; max-width: 100%; color: var(--text); background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: .2rem .4rem; }
.numbers { display: flex; flex-wrap: wrap; align-items: flex-start; gap: .2rem .8rem; }
.numbers details { flex: 1; min-width: 0; }
.numbers details[open] { flex-basis: 100%; }
.numbers button, .legend button { font: inherit; font-size: .85rem; color: var(--accent); background: none;
  cursor: pointer; border: 1px solid var(--line); border-radius: 6px; padding: .15rem .6rem; margin: .4rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .3rem; margin: .2rem 0 .6rem; padding: 0; list-style: none; }
.legend button { display: flex; align-items: center; gap: .3rem; margin: 0; padding: .05rem .4rem; color: var(--text);
  border-color: transparent; text-align: start; }
.legend button[aria-pressed=true] { border-color: var(--accent); }
.legend svg { width: 14px; height: 14px; flex: none; }
details { margin: .4rem 0; }
summary { cursor: pointer; color: var(--accent); font-size: .92rem; padding: .2rem 0; }
.table { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; margin: .4rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: start; padding: .3rem .6rem; border-bottom: 1px solid var(--line); max-width: 26rem;
  overflow-wrap: break-word; min-width: 3rem; }
thead th { background: var(--card); font-weight: 600; }
tbody th { font-weight: 500; background: var(--back); }
tr > th:first-child { position: sticky; inset-inline-start: 0; }
tbody tr:last-child > * { border-bottom: 0; }
.n { text-align: end; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; }
pre { background: var(--card); border-radius: 8px; padding: .8rem; overflow: auto; font-size: .85rem;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  header, main { padding: 0 .75rem; }
  figure { padding: .6rem; margin-inline: -.25rem; }
  h1 { font-size: 1.4rem; }
  .verdict p { font-size: 1.02rem; }
  tr > th:first-child { max-width: 8.5rem; }
}
@media print { nav, .views, .pick, .modebar, .numbers button { display: none !important; } }
"""

# The browser unpacks Plotly, which takes a third of the space when packed.
SCRIPT = r"""
"use strict";
(async () => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 600px)");
  const touch = matchMedia("(pointer: coarse)");
  const shown = new Map();
  const root = document.documentElement;
  root.dataset.state = "loading";

  function fail(words) {
    const place = document.getElementById("problem");
    place.textContent = words + " The tables below have all the numbers.";
    place.hidden = false;
    for (const box of document.querySelectorAll(".plot")) box.hidden = true;
    root.dataset.state = "failed";
  }

  async function loadPlotly() {
    const packed = atob(document.getElementById("library").textContent);
    const bytes = new Uint8Array(packed.length);
    for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  function theme() {
    const value = name => getComputedStyle(root).getPropertyValue(name).trim();
    const axis = {
      gridcolor: value("--line"), linecolor: value("--line"), zerolinecolor: value("--line"),
      tickcolor: value("--line"), title: {standoff: 8, font: {size: 13}},
    };
    const bars = {color: value("--text"), thickness: 1};
    return {data: {bar: [{error_x: bars, error_y: bars}]}, layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: {color: value("--text"), family: getComputedStyle(document.body).fontFamily, size: 13},
      xaxis: axis, yaxis: axis,
      hoverlabel: {bgcolor: value("--card"), bordercolor: value("--line"), font: {color: value("--text")}},
      annotationdefaults: {
        font: {color: value("--text"), size: 12}, bgcolor: value("--back") + "a8", arrowcolor: value("--soft"),
        arrowwidth: 1, arrowhead: 0, borderpad: 0,
      },
      modebar: {bgcolor: "rgba(0,0,0,0)", color: value("--soft"), activecolor: value("--accent")},
      colorscale: {sequential: [  // values above zero stand out
        [0, value("--scale-none")], [0.001, value("--scale-none")],
        [0.001, value("--scale-from")], [1, value("--scale-to")],
      ]},
    }};
  }

  function draw(box, name) {
    const state = shown.get(name);
    const {data, layout} = plots[name][state.view];
    const margin = {...layout.margin};
    if (narrow.matches) margin.r = 8;
    const traces = data.map(trace => {
      const picked = !state.pick || trace.meta === state.pick;
      if ("meta" in trace) return {...trace, opacity: picked ? 1 : 0.12, hoverinfo: picked ? "all" : "skip"};
      return trace.type === "heatmap" && narrow.matches ? {...trace, showscale: false} : {...trace};
    });
    const notes = layout.annotations || [];
    const named = notes.some(note => note.name);
    const crowded = narrow.matches && (layout.xaxis?.ticktext?.length || 0) > 20;
    const xaxis = crowded ? {...layout.xaxis, showticklabels: false} : layout.xaxis;
    if (crowded) margin.b = 24;
    // Long names at the left get a smaller font on a phone.
    const small = narrow.matches && margin.l > 110;
    const yaxis = small ? {...layout.yaxis, tickfont: {size: 11}} : layout.yaxis;
    if (small) margin.l *= 0.86;
    // On a phone the legend takes a line for each entry.
    const entries = layout.showlegend === false ? 0 : traces.filter(trace => trace.showlegend !== false).length;
    state.height ??= box.offsetHeight;
    box.style.height = state.height + (narrow.matches ? 20 * Math.max(0, entries - 2) : 0) + "px";
    const drawn = Plotly.react(box, traces, {
      ...layout, margin, annotations: named ? [] : notes, xaxis, yaxis, template: theme(), autosize: true,
      dragmode: touch.matches ? false : "zoom",
    }, {
      responsive: true, displaylogo: false, displayModeBar: touch.matches ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], doubleClick: "reset",
      toImageButtonOptions: {format: "svg", filename: name},
    });
    return named ? drawn.then(() => { label(box, name); legend(box, name); }) : drawn;
  }

  // Names on the map: each beside its point, or with a line to it, where it covers no other name; else left out.
  const pen = document.createElement("canvas").getContext("2d");
  const SPOTS = [];
  for (const [distance, line] of [[14, false], [34, true], [56, true], [80, true]])
    for (const [right, down] of [[0, -1], [0, 1], [1, 0], [-1, 0], [1, -1], [-1, -1], [1, 1], [-1, 1]])
      SPOTS.push({distance, line, right, down});

  function label(box, name) {
    const {view, pick} = shown.get(name), {xaxis, yaxis, font} = box._fullLayout, taken = [];
    pen.font = "12px " + font.family;
    const lines = plots[name][view].layout.annotations.length <= 20;
    const annotations = plots[name][view].layout.annotations.map(note => {
      const wide = pen.measureText(note.text).width + 8, high = 17;
      const x = xaxis.d2p(note.x), y = yaxis.d2p(note.y);
      const inside = x >= 0 && y >= 0 && x <= xaxis._length && y <= yaxis._length;
      for (const spot of (!inside || (pick && note.name !== pick)) ? [] : SPOTS) {
        if (spot.line && !lines && !pick) break;
        const dx = spot.right * (spot.distance - 6 + wide / 2), dy = spot.down * spot.distance;
        const [left, top] = [x + dx - wide / 2, y + dy - high / 2];
        const out = left < 0 || top < 0 || left + wide > xaxis._length || top + high > yaxis._length;
        if (out || taken.some(other => Math.abs(other.x - x - dx) < (other.wide + wide) / 2
          && Math.abs(other.y - y - dy) < high)) continue;
        taken.push({x: x + dx, y: y + dy, wide});
        const moved = spot.line ? {showarrow: true, ax: dx, ay: dy} : {xshift: dx, yshift: -dy};
        return {...note, ...moved, visible: true};
      }
      return {...note, visible: false};
    });
    return Plotly.relayout(box, {annotations});
  }

  // The symbol of each class, copied from the map; a button highlights the class.
  function legend(box, name) {
    const figure = box.closest("figure"), list = figure.querySelector("ul.legend");
    const select = figure.querySelector("select");
    if (!list) return;
    const symbols = new Map();
    for (const node of box.querySelectorAll(".scatterlayer .trace")) {
      const {meta, marker} = node.__data__[0].trace;
      const open = String(marker.symbol).endsWith("-open");
      if (!symbols.has(meta) || symbols.get(meta).open) symbols.set(meta, {open, point: node.querySelector("path")});
    }
    const items = [...symbols].sort(([a], [b]) => (a < b ? -1 : 1)).map(([meta, {point}]) => {
      const button = document.createElement("button"), item = document.createElement("li");
      const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg"), copy = point.cloneNode();
      copy.removeAttribute("transform");
      copy.style.opacity = 1;
      drawing.setAttribute("viewBox", "-8 -8 16 16");
      drawing.setAttribute("aria-hidden", "true");
      drawing.append(copy);
      button.type = "button";
      button.append(drawing, meta);
      button.setAttribute("aria-pressed", shown.get(name).pick === meta);
      button.addEventListener("click", () => {
        select.value = select.value === meta ? "" : meta;
        select.dispatchEvent(new Event("change"));
      });
      item.append(button);
      return item;
    });
    const focused = [...list.querySelectorAll("button")].indexOf(document.activeElement);
    list.replaceChildren(...items);
    if (focused >= 0) list.querySelectorAll("button")[focused]?.focus();
  }

  // The numbers of a figure as a file; cells that a spreadsheet would take for formulas become text.
  function download(name) {
    const rows = [...document.querySelectorAll(`#${name} table tr`)].map(row => [...row.cells].map(each => {
      const text = each.textContent.trim();
      const plain = text === "-" || /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text);
      const safe = plain ? text : text.replace(/(^|;)(\s*[=+\-@\uff1d\uff0b\uff0d\uff20])/g, "$1'$2");
      return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    }).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], {type: "text/csv"}));
    link.download = name + ".csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  // Left and right arrows move along the points of a focused plot, for users without a mouse.
  function walk(box, name, event) {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!step || !box.data) return;
    const curve = Math.max(0, box.data.findIndex(trace => trace.type !== "heatmap" && trace.opacity !== 0.12));
    const trace = box.data[curve], length = (trace.x || trace.y || []).length;
    if (!length || trace.type === "heatmap") return;
    event.preventDefault();
    const state = shown.get(name);
    state.point = ((state.point ?? (step > 0 ? -1 : 0)) + step + length) % length;
    Plotly.Fx.hover(box, [{curveNumber: curve, pointNumber: state.point}]);
  }

  for (const button of document.querySelectorAll("[data-csv]")) {
    button.hidden = false;
    button.addEventListener("click", () => download(button.dataset.csv));
  }

  try {
    await loadPlotly();
    if (!window.Plotly) throw new Error("blocked");
  } catch (error) {
    fail("This browser cannot unpack the figures (" + error.message + ").");
    return;
  }

  const figures = [...document.querySelectorAll("figure[data-plot]")];
  for (const figure of figures) {
    const name = figure.dataset.plot, box = figure.querySelector(".plot");
    shown.set(name, {view: 0, pick: ""});
    for (const input of figure.querySelectorAll("input[type=radio]")) {
      if (input.checked) shown.get(name).view = Number(input.value);
      input.addEventListener("change", () => { shown.get(name).view = Number(input.value); draw(box, name); });
    }
    const pick = figure.querySelector("select");
    pick?.addEventListener("change", () => { shown.get(name).pick = pick.value; draw(box, name); });
    box.addEventListener("keydown", event => walk(box, name, event));
  }

  // One at a time, from the top, so that the page stays usable.
  for (const figure of figures) {
    const box = figure.querySelector(".plot"), name = figure.dataset.plot;
    await draw(box, name);
    if (figure.querySelector("ul.legend")) {  // after a zoom there is room elsewhere
      box.on("plotly_relayout", change => { if (!("annotations" in change)) label(box, name); });
    }
    figure.dataset.drawn = "yes";
    await new Promise(resolve => setTimeout(resolve));
  }
  for (const query of [dark, narrow]) {
    query.addEventListener("change", () => {
      for (const figure of figures) draw(figure.querySelector(".plot"), figure.dataset.plot);
    });
  }
  root.dataset.state = "ready";
})();
"""
