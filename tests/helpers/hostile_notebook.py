"""Every way by which a value gets into a page, and what of a page a browser might run or fetch."""

import re
from typing import Any

import pandas as pd
from bs4 import BeautifulSoup
from nbformat import NotebookNode, v4

from nbs_lib.pages import blocks, plots

MARK = "document.documentElement.setAttribute('pwned','1')"
HOSTILE = [
    f"</script><script>{MARK}</script>",
    f'<img src=x onerror="{MARK}">',
    f'"><svg onload="{MARK}"><style><img src=x onerror={MARK}>',
    f"[x](javascript:{MARK})",
    f'<a href="java\tscript:{MARK}">x</a><iframe srcdoc="<script>parent.{MARK}</script>"></iframe>',
    f"<math><mtext></table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror={MARK}&gt;'>",
    "![p](http://127.0.0.1:1/p.png) <http://127.0.0.1:1/q> https://127.0.0.1:1/r",
    "$\\frac{a}{b}$ and $x",
    "n" * 300,
    "שלום \u202egnihsihp",
    "a|b\n\n# c\n\x00\x1b[31m`d`",
]


def output(data: dict[str, str], **metadata: str) -> NotebookNode:
    return v4.new_output("display_data", data=data, metadata=metadata)


def notebook(*outputs: NotebookNode, prose: str = "# Title\n\n> Summary.") -> NotebookNode:
    return v4.new_notebook(cells=[v4.new_markdown_cell(prose), v4.new_code_cell("show()", outputs=list(outputs))])


def figure_of(fig: Any, caption: str = "") -> NotebookNode:
    return output(plots.mime_bundle(fig), caption=caption)


def hostile_notebook() -> NotebookNode:
    """Every way by which a value gets into a page."""
    table = pd.DataFrame(dict.fromkeys(HOSTILE[:4], HOSTILE), index=HOSTILE)
    drawn = plots.interval_plot(HOSTILE, range(11), range(11), range(1, 12), HOSTILE[0])
    foreign = (
        f'<svg xmlns="http://www.w3.org/2000/svg"><script>{MARK}</script><image href="http://127.0.0.1:1/s"/></svg>'
    )
    return notebook(
        output({"text/html": table.to_html()}),
        output({"text/html": table.to_html(escape=False)}),
        output({"text/html": table.style.to_html()}),
        *[output({"text/html": value}) for value in HOSTILE],
        *[output({"text/markdown": value}) for value in HOSTILE],
        *[output({"text/latex": value}) for value in HOSTILE],
        output({"text/html": blocks.table_block(HOSTILE, [HOSTILE]).code}),
        output({"text/html": blocks.callout(blocks.BAD, HOSTILE[0], HOSTILE[1], [HOSTILE], HOSTILE).code}),
        output({"text/html": blocks.metric_tiles([(HOSTILE[0], HOSTILE[1], HOSTILE[2])]).code}),
        output({"image/svg+xml": foreign}, caption=HOSTILE[2]),
        output({"image/png": f'"><script>{MARK}</script>'}),
        output({"application/javascript": MARK, "text/plain": HOSTILE[0]}),
        figure_of(drawn, HOSTILE[2]),
        v4.new_output("stream", text="\n".join(HOSTILE)),
        v4.new_output("error", ename=HOSTILE[0], evalue=HOSTILE[1], traceback=HOSTILE),
        prose="# " + HOSTILE[0] + "\n\n> " + "\n\n".join(HOSTILE),
    )


def live(page: str, parser: str = "html.parser") -> list[str]:
    """What a browser might run or fetch."""
    found = []
    for tag in BeautifulSoup(page, parser).find_all(True):
        allowed = {
            "meta": {"http-equiv", "content", "charset", "name"},
            "a": {"href"},
            "source": {"srcset"},
            "img": {"src"},
        }
        for name, value in tag.attrs.items():
            text = " ".join(value) if isinstance(value, list) else value
            if name.startswith("on") or name in ("style", "srcdoc", "action", "formaction", "background", "poster"):
                found.append(f"{tag.name} {name}")
            elif name in ("src", "srcset") and not text.startswith("data:image/"):
                found.append(f"{tag.name} {name}={text[:40]}")
            elif name in ("src", "srcset", "href") and name not in allowed.get(tag.name, ()):
                found.append(f"{tag.name} {name}")
            elif name == "href" and re.match(r"\s*[a-z\s]*(script|data)\s*:", text, re.IGNORECASE):
                found.append(f"{tag.name} href={text[:40]}")
    inert = BeautifulSoup(page, parser)
    found += [
        t.name
        for t in inert(["script", "iframe", "object", "embed", "svg", "math", "form", "link", "base", "template"])
    ]
    found += ["style"] * (len(inert("style")) - 1)
    return found
