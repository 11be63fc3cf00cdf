"""One HTML file with tables and plots inside, that opens without a network."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; max-width: 1240px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 9px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #999; vertical-align: bottom; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; display: block; }
.note { color: #555; font-size: 13px; }
.key { background: #eef6f1; border-left: 4px solid #009E73; padding: .6rem 1rem; }
.warn { background: #fdf3e7; border-left: 4px solid #D55E00; padding: .6rem 1rem; }
"""


@dataclass
class Report:
    """Sections in the order in which they are added."""

    title: str
    _parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str, kind: str = "") -> None:
        """Text; `kind` is empty, `note`, `key` or `warn`."""
        css = f' class="{kind}"' if kind else ""
        self._parts.append(f"<p{css}>{html.escape(text)}</p>")

    def bullets(self, lines: Sequence[str], kind: str = "") -> None:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        css = f' class="{kind}"' if kind else ""
        self._parts.append(f"<div{css}><ul>{items}</ul></div>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        self._parts.append(
            f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'
        )

    def image(self, png: bytes, alt: str) -> None:
        data = base64.b64encode(png).decode("ascii")
        self._parts.append(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">')

    def text(self) -> str:
        """The whole file."""
        title = html.escape(self.title)
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
            f"<body><h1>{title}</h1>{''.join(self._parts)}</body></html>\n"
        )

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text(), encoding="utf-8")
