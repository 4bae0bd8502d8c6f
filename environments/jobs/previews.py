"""Run one preview: solve a specification and judge the lock, without building it."""

from __future__ import annotations

from functools import partial

import structlog
from django.conf import settings
from dramatiq.middleware import Shutdown

from condastore.errors import StoreError, WorkerLostError
from environments.domain.policy import judge_names
from environments.jobs import fair_previews
from environments.jobs.leased_run import LeasedRun, claim
from environments.models import Preview
from environments.models.leased_work import Lease
from environments.models.previews import PreviewState
from environments.services import hosted_channels
from environments.services.policies import judge, policy_of
from environments.services.solving import solve_or_reuse

logger = structlog.get_logger(__name__)


def run(preview_id: str) -> bool:
    """Run the next attempt of a preview; False if it is not due, or another worker was faster."""
    rows = Preview.objects.select_related("specification", "namespace")
    preview = rows.filter(pk=preview_id).first()
    lease = claim(preview) if preview is not None else None
    if preview is None or lease is None:
        return False
    with fair_previews.hold_slot(preview) as slot, PreviewRun(preview, lease, slot) as attempt:
        attempt.carry_out(attempt.solve)
    return True


class PreviewRun(LeasedRun[Preview]):
    """One attempt of a preview. It may make way for a preview of another namespace."""

    cancellable = True

    def __init__(self, preview: Preview, lease: Lease, slot: fair_previews.PreviewSlot) -> None:
        super().__init__(preview, lease, time_limit=2 * settings.SOLVE_TIME_LIMIT)
        self._slot = slot
        self._made_way = False  # the slot is handed to another namespace

    def solve(self) -> None:
        preview = self.row
        policy = policy_of(preview.namespace)
        specification = preview.specification.value()
        verdicts = list(judge_names(policy, specification))
        answer = solve_or_reuse(
            preview.specification,
            policy=policy,
            namespace=preview.namespace,
            actor=hosted_channels.actor_of_submitter(preview.requested_by),
            force=preview.force_solve,
            lease=self.lease,
            cancelled=self.cancelled,
            log=partial(logger.debug, preview=str(preview.pk)),
        )
        verdicts += judge(policy, answer.lock, specification)
        self.finish(
            PreviewState.READY,
            lock=answer.row,
            verdicts=[verdict.to_json() for verdict in verdicts],
        )

    def cancelled(self) -> bool:
        return self._made_way or super().cancelled()

    def notice(self, state: str) -> None:
        if not self._made_way and self._slot.makes_way():
            self._made_way = True

    def abandon(self) -> None:
        if self._made_way and not self.lost:
            message = "made way for a preview of another namespace"
            self.persist(lambda: self.row.give_back(self.lease, message))
        else:
            super().abandon()

    def interrupted(self, error: BaseException) -> None:
        if isinstance(error, Shutdown):
            super().interrupted(error)
        else:  # the time limit of the actor
            self.deadline = 0.0
            self.abandon()

    def fail(self, error: StoreError) -> None:
        # A person waits for the answer and can ask again, so only a killed program is retried.
        killed = "status" in error.details or isinstance(error, WorkerLostError)
        self.persist(lambda: self.row.fail(error, lease=self.lease, retry=killed))
