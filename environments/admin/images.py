"""Container images: base images, and rules that push images to registries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin

from accounts.access import Actor
from condastore.admin_site import ConsoleGroup
from environments.admin.base import ReadOnlyAdmin
from environments.admin.confirmed_actions import ConfirmedAction
from environments.admin.display import RelatedTable, badge, link, relative_time
from environments.admin.filters import date_range
from environments.models import BaseImage, Namespace, Push, PushRule
from environments.operations import pushes
from environments.services.image_pushes import expand_target


@admin.register(BaseImage)
class BaseImageAdmin(ReadOnlyAdmin):
    """Base images are loaded and pulled by the command `base_image`."""

    title = "Base images"
    console_group, console_position = ConsoleGroup.IMAGES, 1
    list_display = ("name", "platform", "short_digest", "loaded")
    list_filter = (date_range("loaded_at", "loading date"),)
    search_fields = ("name",)
    fields = ("name", "platform", "digest", "loaded_at", "layer_count")

    @admin.display(description="loaded")
    def loaded(self, base: BaseImage) -> object:
        return relative_time(base.loaded_at)

    @admin.display(description="config digest")
    def short_digest(self, base: BaseImage) -> str:
        return f"sha256:{base.digest[:12]}"

    @admin.display(description="layers")
    def layer_count(self, base: BaseImage) -> int:
        return base.layers.count()


class PushRuleForm(forms.Form):
    namespace = forms.ModelChoiceField(Namespace.objects.order_by("name"))
    pattern = forms.CharField(
        max_length=64,
        label="Environments",
        help_text="A name or a pattern: ml-* or, for all of them, *.",
    )
    target = forms.CharField(
        max_length=300, help_text="registry.example.org/team/{environment}:{build}"
    )


def _create(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    rule = pushes.create_push_rule(
        actor=actor,
        namespace=answers["namespace"],
        pattern=answers["pattern"].strip(),
        target=answers["target"].strip(),
    )
    return f"{rule}: the current builds are being pushed."


def _push_again(actor: Actor, row: PushRule, answers: Mapping[str, Any]) -> str:
    pushes.push_again(actor=actor, rule=row)
    return f"The current builds are being pushed to {row.target}."


def _delete(actor: Actor, row: PushRule, answers: Mapping[str, Any]) -> None:
    pushes.delete_push_rule(actor=actor, rule=row)


@admin.register(PushRule)
class PushRuleAdmin(ReadOnlyAdmin):
    title = "Push rules"
    console_group, console_position = ConsoleGroup.IMAGES, 2
    list_display = ("target", "namespace", "pattern", "created_by", "created")
    list_filter = (date_range("created_at", "creation"),)
    list_select_related = ("namespace", "created_by")
    search_fields = ("target", "namespace__name")
    fields = ("namespace", "pattern", "target", "created_by", "created_at")
    confirmed_actions = (
        ConfirmedAction(name="new", title="Add a rule", run=_create, form=PushRuleForm, rows=False),
        ConfirmedAction(
            name="again",
            title="Push again",
            text="Pushes the current builds, including pushes that were given up.",
            run=_push_again,
        ),
        ConfirmedAction(
            name="remove",
            title="Remove",
            text="Images that were pushed stay in the registry.",
            run=_delete,
            deletes=True,
        ),
    )

    @admin.display(description="created")
    def created(self, rule: PushRule) -> object:
        return relative_time(rule.created_at)

    def related_tables(self, actor: Actor, row: PushRule) -> Sequence[RelatedTable]:
        sent = Push.objects.filter(rule=row).select_related("build__environment__namespace")
        return (
            RelatedTable(
                title="Pushes",
                headers=("Build", "To", "State", "Attempts", "Problem"),
                rows=[
                    (
                        link(one.build),
                        expand_target(row.target, one.build.environment.name, one.build.number),
                        badge(one.state),
                        one.attempt,
                        one.problem,
                    )
                    for one in sent.order_by("-pk")[:100]
                ],
            ),
        )
