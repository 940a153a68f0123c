"""What pages of results share: the document, its tables, its legends. One file that asks the network for nothing.

Texts, file names and notes come from elsewhere: whoever calls escapes what is to be HTML, and the page's policy allows
no request and no script but its own, by digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files

from nopad.charts.document import html_document
from nopad.charts.svg import escaped, key, style_sheet

Section = tuple[str, str, str]  # id, title, content


def document(
    *, title: str, heading: str, header: str, sections: Sequence[Section], footer: str, command: str = "nopad bench"
) -> str:
    """A page. `title`, `heading` and `footer` are text, `header` and the sections' contents are HTML."""
    own, script = (
        files("nopad.bench.report").joinpath("templates", name).read_text("utf-8")
        for name in ("report.css", "report.js")
    )
    style = style_sheet() + own
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{content}</section>'
        for name, title, content in sections
    )
    parts = f"""<header>
<h1>{escaped(command)} <span>· {escaped(heading)}</span></h1>
{header}
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
</main>
<footer><p>{escaped(footer)}</p></footer>"""
    return html_document(title=title, style=style, body=parts, script=script)


def verdict(text: str, *, loud: str = "") -> str:
    """A line below the result; with a word in `loud`, a warning."""
    if not loud:
        return f'<p class="verdict">{escaped(text)}</p>'
    return f'<p class="verdict warn" role="note"><strong>{escaped(loud)}</strong> {escaped(text)}</p>'


def table(caption: str, head: str, bodies: Iterable[str], *, name: str = "") -> str:
    """A table of HTML rows, which scrolls by itself where it is too wide."""
    attribute = f' class="{name}"' if name else ""
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    body = "".join(f"<tbody>{rows}</tbody>" for rows in bodies)
    # What scrolls must be reachable by keyboard, and so needs a name.
    return (
        f'<div class="scroll" role="group" aria-label="{escaped(caption)}" tabindex="0"><table{attribute}>'
        f"<caption><span>{escaped(caption)}</span></caption>{top}{body}</table></div>"
    )


def heads(titles: Iterable[str], *, text: bool = False) -> str:
    """The heads of columns; a column without a name has none."""
    attribute = ' class="text"' if text else ""
    return "".join(f'<th scope="col"{attribute}>{escaped(one)}</th>' if one else "<td></td>" for one in titles)


def legend(names: Sequence[str]) -> str:
    """The series of the plots below, in the order of their styles; pressing one dims the others."""
    items = "".join(
        f'<li><button type="button" aria-pressed="false" data-s="{style}">{key(style)}{escaped(name)}</button></li>'
        for style, name in enumerate(names)
    )
    return f'<ul class="legend" aria-label="Subjects">{items}</ul>'


def figure(title: str, remark: str, svg: str) -> str:
    """A plot with its heading."""
    return (
        f"<figure><figcaption>{escaped(title)}<small>{escaped(remark)}</small></figcaption>"
        f'<div class="fit">{svg}</div></figure>'
    )
