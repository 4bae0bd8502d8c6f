"""Draw the diagrams of the documentation as SVG: `python -m docs.pictures.draw`.

A diagram is boxes on a grid, frames around some of them, and arrows between them. The files are
committed, so that the pages show them without any program.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path

FOLDER = Path(__file__).parent
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 136, 46, 46, 34, 26  # pixels
HEAD = (
    '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0L8 4L0 8z" fill="#37475a"/></marker>'
)
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1b2733}.small{font-size:11px;fill:#3d4d5c}"
    ".box{fill:#eef4fb;stroke:#37618e;stroke-width:1.3}.store{fill:#fdf5e2;stroke:#8a6414}"
    ".code{fill:#fdeceb;stroke:#a63a33}.done{fill:#e9f6ec;stroke:#2f7a43}"
    ".frame{fill:none;stroke:#8593a1;stroke-dasharray:5 4}"
    ".arrow{fill:none;stroke:#37475a;stroke-width:1.4;marker-end:url(#head)}"
    ".back{fill:#fff}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A labeled box in one cell of the grid, or several cells wide."""

    column: float
    row: float
    label: str
    note: str = ""
    kind: str = ""
    columns: float = 1

    @property
    def left(self) -> float:
        return MARGIN + self.column * (WIDTH + GAP_X)

    @property
    def top(self) -> float:
        return MARGIN + self.row * (HEIGHT + GAP_Y)

    @property
    def width(self) -> float:
        return self.columns * WIDTH + (self.columns - 1) * GAP_X

    @property
    def center(self) -> tuple[float, float]:
        return self.left + self.width / 2, self.top + HEIGHT / 2

    def svg(self) -> str:
        x, y = self.center
        lines = self.label.split("\n")
        total = len(lines) * 15 + (13 if self.note else 0)
        location = f'x="{self.left:g}" y="{self.top:g}" width="{self.width:g}" height="{HEIGHT}"'
        parts = [f'<rect class="box {self.kind}" rx="6" {location}/>']
        line = y - total / 2 + 12
        for text in lines:
            parts.append(f'<text x="{x:g}" y="{line:g}" text-anchor="middle">{escape(text)}</text>')
            line += 15
        if self.note:
            parts.append(
                f'<text class="small" x="{x:g}" y="{line - 1:g}" text-anchor="middle">'
                f"{escape(self.note)}</text>"
            )
        return "".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A dashed frame around a block of cells, with a title."""

    column: float
    row: float
    columns: float
    rows: float
    title: str

    def svg(self) -> str:
        left = MARGIN + self.column * (WIDTH + GAP_X) - 14
        top = MARGIN + self.row * (HEIGHT + GAP_Y) - 20
        width = self.columns * WIDTH + (self.columns - 1) * GAP_X + 28
        height = self.rows * HEIGHT + (self.rows - 1) * GAP_Y + 32
        return (
            f'<rect class="frame" x="{left:g}" y="{top:g}" rx="9" width="{width:g}" '
            f'height="{height:g}"/><text class="small" x="{left + 8:g}" y="{top + 14:g}">'
            f"{escape(self.title)}</text>"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagram:
    """One file: boxes by name, frames, and arrows as `(from, to, label)`."""

    title: str
    boxes: dict[str, Box]
    arrows: list[tuple[str, str, str]] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)

    def svg(self) -> str:
        right = max(box.left + box.width for box in self.boxes.values()) + MARGIN
        bottom = max(box.top for box in self.boxes.values()) + HEIGHT + MARGIN
        size = f'viewBox="0 0 {right:g} {bottom:g}" width="{right:g}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(self.title)}</title>",
            f"<style>{STYLE}</style>",
            f"<defs>{HEAD}</defs>",
            f'<rect class="back" width="{right:g}" height="{bottom:g}"/>',
            *(frame.svg() for frame in self.frames),
            *(self._arrow(*arrow) for arrow in self.arrows),
            *(box.svg() for box in self.boxes.values()),
            *(self._label(*arrow) for arrow in self.arrows if arrow[2]),
            "</svg>\n",
        ]
        return "\n".join(parts)

    def _ends(self, start: str, end: str) -> tuple[float, float, float, float]:
        one, two = self.boxes[start], self.boxes[end]
        (x1, y1), (x2, y2) = one.center, two.center
        if one.row == two.row:
            side = 1 if x2 > x1 else -1
            return x1 + side * one.width / 2, y1, x2 - side * two.width / 2, y2
        side = 1 if y2 > y1 else -1
        # Straight down if the boxes overlap, else to the middle of the other one.
        low, high = max(one.left, two.left), min(one.left + one.width, two.left + two.width)
        if high - low > 20:
            x1 = x2 = (low + high) / 2
        return x1, y1 + side * HEIGHT / 2, x2, y2 - side * HEIGHT / 2

    def _arrow(self, start: str, end: str, label: str) -> str:
        x1, y1, x2, y2 = self._ends(start, end)
        return f'<path class="arrow" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"/>'

    def _label(self, start: str, end: str, label: str) -> str:
        x1, y1, x2, y2 = self._ends(start, end)
        offset, anchor = (0, "middle") if y1 == y2 else (5, "start")
        x, y = (x1 + x2) / 2 + offset, (y1 + y2) / 2 - 4
        location = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
        return f'<text class="small" {location}>{escape(label)}</text>'


def row(names: str, row: float, *, column: float = 0, kind: str = "") -> dict[str, Box]:
    """Return boxes side by side; names are separated by `;`, label and note by `|`."""
    boxes = {}
    for number, text in enumerate(names.split(";")):
        label, _, note = text.strip().partition("|")
        boxes[label] = Box(column=column + number, row=row, label=label, note=note, kind=kind)
    return boxes


def chain(*names: str) -> list[tuple[str, str, str]]:
    return [(one, two, "") for one, two in pairwise(names)]


def overview() -> Diagram:
    boxes = {
        **row("environment.yml;specification|normalized;solve|under rules;lock|sha256", 0),
        **row("fetch, link, check;prefix|hard links;envs/team/ml|switched at once", 1, column=1),
        **row(
            "lock files;archives|tar, squashfs, sif;container image;conda channel", 2, kind="done"
        ),
    }
    boxes["channels"] = Box(column=4, row=0, label="channels", note="conda, PyPI", kind="store")
    arrows = [
        *chain("environment.yml", "specification", "solve", "lock"),
        ("lock", "envs/team/ml", ""),
        *chain("fetch, link, check", "prefix", "envs/team/ml"),
    ]
    arrows[3] = ("lock", "fetch, link, check", "")
    arrows += [("prefix", "archives", ""), ("prefix", "container image", "")]
    arrows += [("fetch, link, check", "lock files", ""), ("envs/team/ml", "conda channel", "")]
    arrows += [("channels", "lock", "")]
    return Diagram(
        title="From an environment file to everything that is served", boxes=boxes, arrows=arrows
    )


def build() -> Diagram:
    boxes = {
        **row("specification|QUEUED;solve|SOLVING;lock|judged by rules;fetch|FETCHING", 0),
        **row("READY|envs/ switched;publish|PUBLISHING;check|CHECKING;link|LINKING", 2),
    }
    boxes["decision"] = Box(column=2, row=1, label="wait for decision", note="HELD", kind="store")
    boxes["READY"] = Box(column=0, row=2, label="READY", note="envs/ switched", kind="done")
    arrows = [
        *chain("specification", "solve", "lock", "fetch", "link", "check", "publish", "READY"),
        ("lock", "decision", "ask"),
        ("decision", "fetch", "approved"),
    ]
    return Diagram(title="States of a build", boxes=boxes, arrows=arrows)


def layers() -> Diagram:
    names = [
        ("registry", "registry   management"),
        ("interfaces", "graphql   rest   console   admin"),
        ("operations", "operations: access check, rows, audit"),
        ("tasks", "tasks: Dramatiq actors"),
        ("jobs", "jobs: long, leased, restartable"),
        ("services", "services: rows and files, short"),
        ("models", "models: rows, constraints"),
        ("engine", "engine: network, disk, processes"),
        ("domain", "domain: values and decisions"),
    ]
    boxes = {
        name: Box(column=0, row=number * 0.8, label=label, columns=2.4)
        for number, (name, label) in enumerate(names)
    }
    return Diagram(
        title="Layers of environments/: imports point down",
        boxes=boxes,
        arrows=chain(*(name for name, _ in names)),
    )


def system() -> Diagram:
    boxes = {
        "people": Box(column=0, row=0, label="browser, conda,\ndocker"),
        "nginx": Box(column=0, row=1, label="nginx", note="optional"),
        "web": Box(column=1, row=1, label="web", note="GraphQL REST registry"),
        "database": Box(column=2, row=0, label="database", note="the truth", kind="store"),
        "queue": Box(column=2, row=1, label="queue", note="hints, may be lost", kind="store"),
        "scheduler": Box(column=3, row=0, label="scheduler", note="sweeps leases"),
        "worker": Box(column=3, row=1, label="workers"),
        "store": Box(column=1, row=2, label="blob store", note="files or S3", kind="store"),
        "folder": Box(
            column=2, row=2, label="data folder", note="cache prefixes envs", kind="store"
        ),
        "children": Box(column=3, row=2, label="solver, extraction,\nuv: confined", kind="code"),
        "channels": Box(column=4, row=2, label="channels, indexes", kind="code"),
        "sandbox": Box(column=4, row=1, label="bubblewrap", note="code of packages", kind="code"),
    }
    arrows = [
        *chain("people", "nginx", "web", "queue"),
        ("web", "database", ""),
        ("web", "store", ""),
        ("scheduler", "database", ""),
        ("queue", "worker", ""),
        ("worker", "database", ""),
        ("worker", "children", ""),
        ("worker", "sandbox", ""),
        ("worker", "folder", ""),
        ("children", "channels", ""),
    ]
    return Diagram(title="Processes and stores of an installation", boxes=boxes, arrows=arrows)


def blob() -> Diagram:
    boxes = {
        **row("bytes written|no row;stored|row;in use|used_at", 0),
        **row("removed;marked|removing_at", 1, column=0),
    }
    boxes["marked"] = Box(column=2, row=1, label="marked", note="removing_at", kind="store")
    boxes["removed"] = Box(column=0, row=1, label="removed", note="row, then bytes", kind="code")
    arrows = [
        *chain("bytes written", "stored", "in use"),
        ("in use", "marked", "unreferenced"),
        ("marked", "removed", "an hour later"),
    ]
    return Diagram(title="Life cycle of a blob", boxes=boxes, arrows=arrows)


def trust() -> Diagram:
    boxes = {
        "accounts": Box(column=0, row=0, label="accounts, tokens", kind="code"),
        "web": Box(column=1, row=0, label="web", note="access check (1)"),
        "worker": Box(column=2, row=0, label="workers", note="policy (3)"),
        "parsers": Box(
            column=3, row=0, label="confined parsers (6)", note="solver, uv, extraction"
        ),
        "guard": Box(column=3, row=1, label="request guard (4)", note="forward proxy"),
        "channels": Box(column=4, row=1, label="channels, indexes,\nregistries", kind="code"),
        "sandbox": Box(column=2, row=1, label="sandbox (5)", note="no network", kind="code"),
        "private": Box(
            column=1, row=2, label="secrets, database", note="cache, blobs: 0700", kind="store"
        ),
        "prefixes": Box(column=2, row=2, label="prefixes, envs", kind="store"),
        "users": Box(column=4, row=2, label="local users", kind="code"),
    }
    arrows = [
        ("accounts", "web", ""),
        ("web", "worker", ""),
        ("worker", "parsers", ""),
        ("worker", "sandbox", ""),
        ("parsers", "guard", ""),
        ("guard", "channels", ""),
        ("web", "private", "(2)"),
        ("sandbox", "prefixes", "read-only"),
        ("users", "prefixes", "(7)"),
    ]
    frames = [Frame(column=1, row=0, columns=3, rows=3, title="account of the service")]
    return Diagram(
        title="Trust boundaries; numbers are sections of the threat model",
        boxes=boxes,
        arrows=arrows,
        frames=frames,
    )


DIAGRAMS = {
    "overview": overview,
    "build": build,
    "layers": layers,
    "system": system,
    "blob": blob,
    "trust": trust,
}

if __name__ == "__main__":
    for name, diagram in DIAGRAMS.items():
        (FOLDER / f"{name}.svg").write_text(diagram().svg())
