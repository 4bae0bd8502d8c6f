"""Whatever people of a namespace do, in whatever order: nobody grants what they do not have.

Hypothesis makes sequences of operations by people with roles, tokens with ceilings, and others. The
model beside it knows who was given what by somebody who held it; what the server allows is that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from accounts.access import Actor
from accounts.authentication import actor_with_token
from accounts.models import User
from accounts.roles import ROLES, Perm, Role
from condastore.errors import StoreError
from environments.models import Environment, Namespace
from environments.operations import environments, namespaces, role_mappings, tokens
from tests import factories

pytestmark = pytest.mark.django_db
PEOPLE = ("ann", "ben", "cat", "dan")
PLACES = ("one", "two")
people, places, roles = st.sampled_from(PEOPLE), st.sampled_from(PLACES), st.sampled_from(Role)
Held = dict[tuple[str, str], Role]


class World(RuleBasedStateMachine):
    """`held`: (person, namespace) -> the role that somebody who might has given."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Held = {("ann", "one"): Role.ADMIN, ("ben", "two"): Role.ADMIN}
        self.held[("cat", "one")] = Role.DEVELOPER
        self.shared: set[tuple[str, str]] = set()  # person, namespace of the environment
        self.secrets: list[tuple[str, str, Role | None, tuple[str, ...]]] = []
        for name in PEOPLE:
            factories.make_user(name)
        for location in PLACES:
            created: Any = {
                name: role for (name, where), role in self.held.items() if where == location
            }
            factories.make_environment(factories.make_namespace(location, **created), "ml")

    def actor(self, name: str) -> Actor:
        return factories.actor(User.objects.get(username=name))

    def as_token(self, index: int) -> tuple[Actor, str, frozenset[Perm], tuple[str, ...]] | None:
        if not self.secrets:
            return None
        secret, owner, ceiling, only = self.secrets[index % len(self.secrets)]
        perms = ROLES[ceiling] if ceiling else frozenset(Perm)
        return actor_with_token(secret), owner, perms, only

    def perms(self, name: str, place: str) -> frozenset[Perm]:
        role = self.held.get((name, place))
        return ROLES[role] if role else frozenset()

    def attempt(self, what: Callable[[], Any], *, allowed: bool) -> bool:
        """Do it; it works exactly where the model says so."""
        try:
            with transaction.atomic():
                what()
        except StoreError:
            assert not allowed
            return False
        assert allowed
        return True

    def change_role(
        self, actor: Actor, allowed: bool, place: str, who: str, role: Role | None
    ) -> None:
        namespace = Namespace.objects.get(name=place)
        if role is None:
            change: Callable[[], Any] = lambda: namespaces.revoke_role(  # noqa: E731
                actor=actor, namespace=namespace, user=who
            )
        else:
            change = lambda: namespaces.grant_role(  # noqa: E731
                actor=actor, namespace=namespace, role=role, user=who
            )
        granted = role is not None or (who, place) in self.held
        if self.attempt(change, allowed=allowed and granted):
            self.held.pop((who, place), None)
            if role is not None:
                self.held[(who, place)] = role

    @rule(by=people, place=places, who=people, role=st.none() | roles)
    def grant_or_revoke(self, by: str, place: str, who: str, role: Role | None) -> None:
        allowed = Perm.GRANT in self.perms(by, place)
        self.change_role(self.actor(by), allowed, place, who, role)

    @rule(index=st.integers(0, 9), place=places, who=people, role=st.none() | roles)
    def grant_or_revoke_by_token(self, index: int, place: str, who: str, role: Role | None) -> None:
        if (token := self.as_token(index)) is None:
            return
        actor, owner, ceiling, only = token
        within = not only or place in only
        allowed = within and Perm.GRANT in ceiling & self.perms(owner, place)
        self.change_role(actor, allowed, place, who, role)

    @rule(by=people, role=st.none() | roles, only=st.sets(places, max_size=1))
    def make_token(self, by: str, role: Role | None, only: set[str]) -> None:
        self.new_token(self.actor(by), by, role, tuple(only), frozenset(Perm), ())

    @rule(index=st.integers(0, 9), role=st.none() | roles, only=st.sets(places, max_size=1))
    def make_token_by_token(self, index: int, role: Role | None, only: set[str]) -> None:
        if (token := self.as_token(index)) is not None:
            actor, owner, ceiling, limits = token
            self.new_token(actor, owner, role, tuple(only), ceiling, limits)

    def new_token(
        self,
        actor: Actor,
        owner: str,
        role: Role | None,
        only: tuple[str, ...],
        ceiling: frozenset[Perm],
        limits: tuple[str, ...],
    ) -> None:
        name = f"token-{len(self.secrets)}"
        try:
            created = tokens.create_token(actor=actor, name=name, role=role, namespaces=only)
        except StoreError:
            return
        assert (ROLES[role] if role else frozenset(Perm)) <= ceiling
        assert not limits or (only and set(only) <= set(limits))
        self.secrets.append((created.secret, owner, role, only))

    @rule(by=people, place=places, who=people)
    def share(self, by: str, place: str, who: str) -> None:
        environment = Environment.objects.get(namespace__name=place, name="ml")
        allowed = Perm.GRANT in self.perms(by, place)
        if self.attempt(
            lambda: namespaces.share_environment(
                actor=self.actor(by), environment=environment, user=who
            ),
            allowed=allowed,
        ):
            self.shared.add((who, place))

    @rule(by=people, place=places, to=places)
    def move(self, by: str, place: str, to: str) -> None:
        """An environment takes nobody's rights along; here it goes back, so that each has one."""
        environment = Environment.objects.get(namespace__name=place, name="ml")
        target = Namespace.objects.get(name=to)
        if place == to:
            return
        may_move = Perm.MANAGE in self.perms(by, place) and Perm.BUILD in self.perms(by, to)
        try:
            with transaction.atomic():
                environments.move_environment(
                    actor=self.actor(by), environment=environment, namespace=target
                )
                transaction.set_rollback(True)
        except StoreError:
            return  # the other has one of that name
        assert may_move

    @rule(by=people, name=st.sampled_from(["three", *PEOPLE, *PLACES]))
    def make_namespace(self, by: str, name: str) -> None:
        """Everybody has one of their own name, and nobody another."""
        if self.attempt(
            lambda: namespaces.create_namespace(actor=self.actor(by), name=name),
            allowed=name == by and (by, name) not in self.held,
        ):
            self.held[(by, name)] = Role.ADMIN

    @rule(by=people, place=places, role=roles)
    def map_roles(self, by: str, place: str, role: Role) -> None:
        self.attempt(
            lambda: role_mappings.add_role_mapping(
                actor=self.actor(by), group="ldap:all", namespace=place, role=role
            ),
            allowed=False,
        )

    @rule(by=people)
    def make_service_account(self, by: str) -> None:
        self.attempt(
            lambda: tokens.create_service_account(actor=self.actor(by), name="robot"),
            allowed=False,
        )

    @invariant()
    def everybody_may_what_they_were_given(self) -> None:
        spaces = set(Namespace.objects.values_list("name", flat=True))
        for name in PEOPLE:
            actor = self.actor(name)
            assert not actor.is_superuser
            for perm in (Perm.VIEW, Perm.BUILD, Perm.GRANT):
                mine = {location for location in spaces if perm in self.perms(name, location)}
                listed = Namespace.objects.with_perm(actor, perm).values_list("name", flat=True)
                assert set(listed) == mine, (name, perm)
                rows = Environment.objects.with_perm(actor, perm)
                seen = set(rows.values_list("namespace__name", flat=True))
                more = {location for who, location in self.shared if who == name}
                assert seen == (mine | (more if perm is Perm.VIEW else set())) & set(PLACES)


def test_no_sequence_of_operations_lets_anyone_grant_what_they_do_not_have(db: None) -> None:
    class Isolated(World):
        """Each sequence in a transaction that is undone."""

        def __init__(self) -> None:
            self.undo = transaction.atomic()
            self.undo.__enter__()
            super().__init__()

        def teardown(self) -> None:
            transaction.set_rollback(True)
            self.undo.__exit__(None, None, None)

    run_state_machine_as_test(
        Isolated,
        settings=settings(
            max_examples=6,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            phases=[Phase.generate],  # what fails is short enough; to shrink it takes minutes
        ),
    )
