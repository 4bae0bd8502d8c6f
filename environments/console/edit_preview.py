"""Preview panel of the editor: what a build would change, verdicts, conflicts and repairs."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from accounts.access import Actor
from environments.console.edit_form import Draft
from environments.domain import diff as differences
from environments.domain.environment_file_edits import join_requirement, split_requirement
from environments.domain.lock import Lock, PlatformLock, required_name
from environments.domain.policy import Effect
from environments.domain.records import Package
from environments.models import Build, Environment, Preview
from environments.models.previews import PreviewState
from environments.services import approval_requests
from environments.services.platforms import own_platform

#: Changes of dependencies that the panel lists at most.
SHOWN = 200
_SIGNS = {
    differences.ChangeKind.UPGRADE: ("up", "upgraded"),
    differences.ChangeKind.DOWNGRADE: ("down", "downgraded"),
    differences.ChangeKind.REBUILD: ("up", "rebuilt"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Change of one requirement that a button makes; `value` is what the button submits."""

    label: str
    value: str

    @classmethod
    def replacing(cls, was: str, becomes: str, label: str) -> Repair:
        return cls(label=label, value=json.dumps([was, becomes]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Requirements without a solution, with the lines of the text that have them."""

    reason: str
    lines: tuple[int, ...]
    requirements: tuple[str, ...]  # as written in the text
    chain: tuple[str, ...] = ()
    repairs: tuple[Repair, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Row of the table of changes."""

    kind: str  # class of the sign: add, del, up, down
    word: str
    name: str
    old: str = ""
    new: str = ""


@dataclass(slots=True, kw_only=True)
class Panel:
    """Content of the panel."""

    pk: str = ""
    pending: bool = False
    message: str = ""  # of a failure that is not a conflict
    hint: str = ""
    conflicts: list[Conflict] = field(default_factory=list)
    denied: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    warned: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # about the text: what was ignored or assumed
    deciders: list[str] = field(default_factory=list)
    requested: list[Change] = field(default_factory=list)
    dependencies: list[Change] = field(default_factory=list)
    more: int = 0
    packages: int = 0
    fetch_bytes: int = 0
    platform: str = ""
    platforms: int = 0
    against: int | None = None
    seconds: float | None = None
    ready: bool = False

    @property
    def warnings(self) -> int:
        return len(self.warned) + len(self.notes)

    @property
    def changes(self) -> int:
        return len(self.requested) + len(self.dependencies) + self.more


def find_preview(actor: Actor, pk: str) -> Preview | None:
    """Return the preview if the actor may see it and it has not expired."""
    try:
        key = uuid.UUID(pk)
    except ValueError:
        return None
    rows = Preview.objects.visible_to(actor).select_related("namespace", "specification", "lock")
    return rows.filter(pk=key).first()


def panel_of(
    actor: Actor, preview: Preview | None, draft: Draft, environment: Environment | None
) -> Panel | None:
    """Return the content of the panel; None without a preview."""
    if preview is None:
        return None
    panel = Panel(pk=str(preview.pk), notes=list(preview.warnings))
    if preview.state in (PreviewState.QUEUED, PreviewState.SOLVING):
        panel.pending = True
        return panel
    if preview.started_at and preview.finished_at:
        panel.seconds = (preview.finished_at - preview.started_at).total_seconds()
    if preview.state == PreviewState.FAILED or preview.lock is None:
        _fill_failure(panel, preview.failure or {}, draft)
    else:
        panel.ready = True
        _fill_changes(panel, actor, preview.lock.value(), preview, environment)
    _fill_verdicts(panel, preview, draft)
    return panel


def _fill_verdicts(panel: Panel, preview: Preview, draft: Draft) -> None:
    kinds = {Effect.ENFORCE: panel.denied, Effect.ASK: panel.asked, Effect.WARN: panel.warned}
    for verdict in preview.verdicts:
        names = [verdict["subject"], *verdict.get("chain", ())[:1]]
        lines = [line for _, line in draft.lines_of([str(name) for name in names])]
        kinds[Effect(verdict["effect"])].append({**verdict, "lines": lines})
    if panel.asked:
        namespace = preview.namespace_id
        panel.deciders = approval_requests.decider_names([namespace])[namespace]


def _fill_failure(panel: Panel, failure: dict[str, Any], draft: Draft) -> None:
    details = failure.get("details") or {}
    for one in details.get("conflicts", ()):
        found = draft.lines_of([str(text) for text in one.get("requirements", ())])
        conflict = Conflict(
            reason=str(one.get("reason", "")),
            lines=tuple(line for _, line in found),
            requirements=tuple(text for text, _ in found),
            chain=tuple(str(name) for name in one.get("chain", ())),
            repairs=tuple(_loosened(text) for text, _ in found if split_requirement(text)[1]),
        )
        if conflict not in panel.conflicts:  # the same on several platforms
            panel.conflicts.append(conflict)
    for one in details.get("missing", ()):
        found = draft.lines_of([str(one.get("requirement", ""))])
        names = [str(name) for name in one.get("similar", ())]
        repairs = [
            Repair.replacing(
                text, join_requirement(name, split_requirement(text)[1], was=text), f"Use {name}"
            )
            for text, _ in found
            for name in names
        ]
        repairs += [Repair.replacing(text, "", f"Remove {text}") for text, _ in found]
        note = str(one.get("note") or "")
        conflict = Conflict(
            reason=f"No channel has {one.get('requirement', '')}{f': {note}' if note else ''}.",
            lines=tuple(line for _, line in found),
            requirements=tuple(text for text, _ in found),
            repairs=tuple(repairs),
        )
        if conflict not in panel.conflicts:
            panel.conflicts.append(conflict)
    if not panel.conflicts:
        panel.message = str(failure.get("message") or "The preview failed.")
    panel.hint = str(failure.get("hint") or "")


def _loosened(requirement: str) -> Repair:
    name = split_requirement(requirement)[0]
    return Repair.replacing(requirement, name, f"Any version of {name}")


def _fill_changes(
    panel: Panel, actor: Actor, lock: Lock, preview: Preview, environment: Environment | None
) -> None:
    current = None
    if environment is not None and environment.current_id:
        visible = Build.objects.visible_to(actor).select_related("lock")
        current = visible.filter(pk=environment.current_id).first()
    known = [part.platform for part in lock]
    prefer = (current.platform if current else "", own_platform(), *known)
    panel.platform = next((name for name in prefer if name in known), "")
    panel.platforms = len(known)
    new = lock.on(panel.platform)
    old = None
    if current is not None and current.lock is not None:
        panel.against = current.number
        old = current.lock.value().on(panel.platform)
    found = differences.diff(old, new)
    panel.packages = len(_packages(new))
    fetched = [*found.added, *(change.new for change in found.changed)]
    panel.fetch_bytes = sum(package.size for package in fetched)
    wanted = preview.specification.value()
    texts = (
        *wanted.dependencies.get(panel.platform, ()),
        *wanted.pip.get(panel.platform, ()),
    )
    names = {required_name(text) for text in texts}
    rows = [Change(kind="add", word="added", name=one.name, new=one.version) for one in found.added]
    for change in found.changed:
        kind, word = _SIGNS[change.kind]
        rebuilt = change.kind == differences.ChangeKind.REBUILD
        rows.append(
            Change(
                kind=kind,
                word=word,
                name=change.name,
                old=_label(change.old, build=rebuilt),
                new=_label(change.new, build=rebuilt),
            )
        )
    rows += [
        Change(kind="del", word="removed", name=one.name, old=one.version) for one in found.removed
    ]
    gone = _requested_before(current)
    panel.requested = [row for row in rows if row.name in names | gone]
    dependencies = [row for row in rows if row.name not in names | gone]
    panel.dependencies = dependencies[:SHOWN]
    panel.more = len(dependencies) - len(panel.dependencies)


def _requested_before(current: Build | None) -> set[str]:
    if current is None:
        return set()
    wanted = current.specification.value()
    return {
        required_name(text)
        for part in (wanted.dependencies, wanted.pip)
        for text in part.get(current.platform, ())
    }


def _packages(part: PlatformLock | None) -> tuple[Package, ...]:
    return (*part.conda, *part.pypi) if part else ()


def _label(package: Package, *, build: bool) -> str:
    own = getattr(package, "build", "")
    return f"{package.version} {own}".strip() if build else package.version
