"""Contact sheet of a gallery: an HTML page in the folder of the images, without network access."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Images of {{ run }}, round {{ round }}</title>
<style>
:root { color-scheme: light dark; --line: light-dark(#d0d4da, #3a3f47); --quiet: light-dark(#57606a, #9aa4b0); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem;
  background: light-dark(#fff, #14171b); color: light-dark(#1c2126, #e6e9ec); }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 1.5rem 0 .5rem; }
p.facts, figcaption, .empty { color: var(--quiet); }
.subject { border-top: 1px solid var(--line); padding: 1rem 0; }
.subject header { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin-bottom: .5rem; }
.subject h2 { margin: 0; overflow-wrap: anywhere; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(14rem, 45%), 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: .25rem; background: var(--line); }
audio { height: 2.25rem; max-width: 100%; }
.table { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem .75rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; }
td small { color: var(--quiet); white-space: nowrap; }
</style>
</head>
<body>
<h1>Images of {{ run }}, round {{ round }}</h1>
<p class="facts">{{ images.model }}, {{ images.steps }} steps, guidance {{ images.guidance }}, seed {{ images.seed }}.
All images in a row start from the same noise.</p>
{% if evaluation %}
<h2>CLIP's classification</h2>
<div class="table"><table>
<tr><th scope="col">Images from</th>{% for figure in figures %}<th scope="col">{{ figure[1] }}</th>{% endfor %}</tr>
{% for name, column in evaluation.columns.items() %}
<tr><th scope="row">{{ columns[name] }} ({{ column.pictures }})</th>
{% for key, _ in figures %}<td>{{ "%.3f"|format(column[key].value) }}
{% if column[key].interval %}<br><small>{{ "%.3f"|format(column[key].interval[0]) }} to
{{ "%.3f"|format(column[key].interval[1]) }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<p class="facts">{{ evaluation.clip }} chooses among {{ evaluation.classes|length }} class names; 95 % intervals.</p>
{% endif %}
<main>
{% for subject in subjects %}
<article class="subject">
<header><h2>{{ subject.name }}</h2>
{% if subject.class and subject.class != subject.name %}<span>{{ subject.class }}</span>{% endif %}
{% if subject.audio %}<audio controls preload="metadata" src="{{ subject.audio|urlencode }}"
 aria-label="Sound of {{ subject.name }}"></audio>{% endif %}
</header>
<div class="pictures">
{% for name, title in columns.items() if name in subject.pictures %}
<figure><img src="{{ subject.pictures[name]|urlencode }}" loading="lazy"
 alt="{{ title }}: image of {{ subject.name }}{% if subject.class and subject.class != subject.name %} \
({{ subject.class }}){% endif %}">
<figcaption>{{ title }}</figcaption></figure>
{% endfor %}
</div>
</article>
{% else %}
<p class="empty">No images.</p>
{% endfor %}
</main>
</body>
</html>
"""

# Keys of the evaluation, with their titles.
FIGURES = (
    ("accuracy", "Accuracy"),
    ("balanced_accuracy", "Balanced accuracy"),
    ("macro_f1", "Macro F1"),
    ("clip_score", "CLIPScore"),
)


def contact_sheet(gallery: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """HTML of a gallery (the content of `pictures.json`) and its evaluation, empty if there is none."""
    # Names of files and classes are untrusted: everything is escaped.
    template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE)
    return template.render(**gallery, evaluation=evaluation, figures=FIGURES)
