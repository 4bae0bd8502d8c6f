"""Container images: the bases that are here, and the registries that images are sent to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin

from accounts.access import Actor
from condastore.errors import NotFoundError
from environments.admin.base import Panel, Question, Room, badge, link
from environments.models import BaseImage, Namespace, Push, PushRule
from environments.operations import pushes
from environments.services.image_pushes import expand_target


@admin.register(BaseImage)
class BaseImageRoom(Room):
    """Loaded and pulled by the command `base_image`."""

    title = "Base images"
    list_display = ("name", "platform", "short", "loaded_at")
    search_fields = ("name",)
    facts = ("name", "platform", "digest", "loaded_at", "layers_held")

    @admin.display(description="config")
    def short(self, base: BaseImage) -> str:
        return f"sha256:{base.digest[:12]}"

    @admin.display(description="layers")
    def layers_held(self, base: BaseImage) -> int:
        return base.layers.count()


class PushRuleForm(forms.Form):
    namespace = forms.CharField(max_length=64)
    pattern = forms.CharField(max_length=64, label="Environments", help_text="A name, or ml-*, *.")
    target = forms.CharField(
        max_length=300, help_text="registry.example.org/team/{environment}:{build}"
    )


def _create(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    name = answers["namespace"].strip().lower()
    namespace = Namespace.objects.filter(name=name).first()
    if namespace is None:
        raise NotFoundError(f"There is no namespace {name!r}.", where="namespace")
    rule = pushes.create_push_rule(
        actor=actor,
        namespace=namespace,
        pattern=answers["pattern"].strip(),
        target=answers["target"].strip(),
    )
    return f"{rule}: what is current is on its way."


def _again(actor: Actor, row: PushRule, answers: Mapping[str, Any]) -> str:
    pushes.push_again(actor=actor, rule=row)
    return f"What is current is on its way to {row.target}."


def _delete(actor: Actor, row: PushRule, answers: Mapping[str, Any]) -> None:
    pushes.delete_push_rule(actor=actor, rule=row)


@admin.register(PushRule)
class PushRuleRoom(Room):
    title = "Pushes to registries"
    list_display = ("target", "namespace", "pattern", "created_by", "created_at")
    list_select_related = ("namespace", "created_by")
    search_fields = ("target", "namespace__name")
    facts = ("namespace", "pattern", "target", "created_by", "created_at")
    questions = (
        Question(name="new", title="Add a rule", do=_create, form=PushRuleForm, rows=False),
        Question(
            name="again",
            title="Push again",
            text="Sends what is current, also what was given up.",
            do=_again,
        ),
        Question(
            name="remove",
            title="Remove",
            text="What was sent stays where it is.",
            do=_delete,
            removes=True,
        ),
    )

    def panels(self, actor: Actor, row: PushRule) -> Sequence[Panel]:
        sent = Push.objects.filter(rule=row).select_related("build__environment__namespace")
        return (
            Panel(
                title="Pushes",
                headers=("Build", "To", "State", "Attempts", "Problem"),
                rows=[
                    (
                        link(one.build),
                        expand_target(row.target, one.build.environment.name, one.build.number),
                        badge(one.state),
                        one.attempts,
                        one.problem,
                    )
                    for one in sent.order_by("-pk")[:100]
                ],
            ),
        )
