"""A build from queued to its end, on real packages, as a worker runs it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml
from django.utils import timezone

from environments.domain.lifecycle import BuildState
from environments.domain.lockfiles import read_explicit
from environments.domain.rendering import conda_lock_yml, explicit_txt, lock_json
from environments.engine.system.disk import tree_size
from environments.engine.system.sandbox import can_sandbox
from environments.jobs import builds as building
from environments.jobs import bytecode, cleanup
from environments.models import (
    Build,
    Channel,
    ChannelCredential,
    Environment,
    IndexedPackage,
    Prefix,
    SolveRow,
)
from environments.models.leased_work import Lease
from environments.operations import builds, upkeep
from environments.operations.environments import (
    copy_environment,
    delete_environment,
    move_environment,
    rename_environment,
)
from environments.services import folders
from environments.services.engine_context import get_engine
from tests.channels.server import Fault
from tests.factories import make_namespace

pytestmark = pytest.mark.django_db(transaction=True)
S = BuildState
HELLO = "dependencies: [python, hello-noarch]"


def run(build: Build) -> Build:
    building.run(build.pk)
    return Build.objects.get(pk=build.pk)


def link(environment: Environment) -> Path:
    return folders.link_path(environment.namespace.name, environment.name)


def leftovers(data: Path) -> list[str]:
    """Everything below `prefixes/`, hidden folders too."""
    root = data / folders.PREFIXES
    return sorted(path.name for path in root.glob("*/*")) if root.exists() else []


def test_a_specification_becomes_an_environment_that_runs(submit, environment, data_folder):
    build = run(
        submit(
            "name: x\n"
            "dependencies: [python, hello-noarch, activating]\n"
            "variables: {GREETING: hello}\n"
            "condastore: {tests: {imports: [json], commands: [python --version]}}\n"
        )
    )
    assert build.failure is None, "\n".join(build.log_from())
    assert build.state == S.READY
    environment.refresh_from_db()
    assert environment.current == build
    prefix = link(environment).resolve()
    assert prefix == data_folder / build.prefix.path
    answer = subprocess.run(
        [prefix / "bin/python", "-c", "import sys; print(sys.prefix)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == str(prefix)
    meta = prefix / "conda-meta"
    assert json.loads((meta / "state").read_text())["env_vars"] == {"GREETING": "hello"}
    assert (meta / "frozen").exists()
    assert "hello-noarch" in (meta / "history").read_text()
    assert [event.state for event in build.events.all()] == [
        "QUEUED", "SOLVING", "FETCHING", "LINKING", "CHECKING", "PUBLISHING", "READY",
    ]  # fmt: skip
    assert build.log_archive is not None
    assert any("--- linking" in line for line in build.log_from())
    assert leftovers(data_folder) == [prefix.name]


def test_the_pypi_part_is_locked_by_hash_and_runs(submit):
    build = run(submit("dependencies: [python, pip: ['tinyname ~=1.0']]"))
    assert build.failure is None, build.failure
    [wheel] = build.lock.value().platforms[0].pypi
    assert wheel.name == "tinyname"
    assert len(wheel.sha256) == 64
    python = folders.prefix_path(build) / "bin/python"
    subprocess.run([python, "-c", "import tinyname"], check=True)


def test_the_second_build_of_the_same_specification_is_not_solved_again(submit, channel_server):
    first = run(submit(HELLO))
    second = run(submit(HELLO))
    assert second.lock == first.lock
    assert any("channels unchanged" in line for line in second.log_from())
    forced = run(submit(HELLO, force_solve=True))
    assert forced.lock == first.lock
    assert not any("channels unchanged" in line for line in forced.log_from())


@pytest.fixture
def solving(submit) -> tuple[Build, Lease]:
    """A build that solves `HELLO` in another worker, and the lease of that worker."""
    run(submit(HELLO))
    build = submit(HELLO)
    lease = build.claim("another worker", life=timedelta(seconds=30))
    assert lease is not None
    SolveRow.objects.update(lock=None, lease_owner=lease.owner)
    return build, lease


@contextlib.contextmanager
def waiting_for_the_same_solve(submit, settings):
    """Run a build of `HELLO` in a thread; it waits for the worker that solves the same."""
    settings.BUILD_TIME_LIMIT = timedelta(seconds=60)  # it does not wait for ever
    build = submit(HELLO)
    worker = threading.Thread(target=building.run, args=(build.pk,))
    worker.start()
    try:
        while not build.events.filter(state=S.SOLVING).exists():
            time.sleep(0.05)
        yield build
    finally:
        worker.join()


@pytest.mark.parametrize("end", [-timedelta(hours=2), timedelta(hours=2)])
def test_a_solve_whose_worker_died_is_done_by_the_next_also_after_the_clock_was_set_back(
    submit, settings, solving, end
):
    holder, lease = solving
    with waiting_for_the_same_solve(submit, settings) as second:
        assert SolveRow.objects.get().lease_owner == lease.owner
        Build.objects.filter(pk=holder.pk).update(lease_expires_at=timezone.now() + end)
    second.refresh_from_db()
    assert (second.failure, second.state, second.attempt) == (None, S.READY, 1)
    assert not any("channels unchanged" in line for line in second.log_from())


def test_a_build_that_waited_for_the_same_solve_uses_its_lock(submit, settings, solving):
    _, lease = solving
    lock = Build.objects.exclude(lock=None).get().lock
    with waiting_for_the_same_solve(submit, settings) as second:
        SolveRow.objects.get().finish(lease, lock, seconds=1)
    second.refresh_from_db()
    assert (second.state, second.lock) == (S.READY, lock)
    assert any("channels unchanged" in line for line in second.log_from())


def test_a_build_that_waits_for_the_same_solve_ends_when_it_is_cancelled(
    submit, settings, solving, alice
):
    with waiting_for_the_same_solve(submit, settings) as second:
        builds.cancel_build(actor=alice, build=second)
    second.refresh_from_db()
    assert second.state == S.CANCELLED
    assert SolveRow.objects.get().lock is None, "the other worker solves on"


def test_environments_share_the_files_of_their_packages(submit):
    first, second = run(submit(HELLO)), run(submit(HELLO))
    assert second.prefix.apparent_size > 5_000_000
    assert second.prefix.unique_size < 0.15 * second.prefix.apparent_size
    one, two = folders.prefix_path(first), folders.prefix_path(second)
    name = next(p.relative_to(one) for p in one.rglob("json/decoder.py"))
    assert (one / name).samefile(two / name)


def test_sizes_of_a_build_are_those_that_a_look_at_each_file_finds(submit):
    """No build walks over its prefix, but what is shown must be right."""
    text = "dependencies: [python, hello-noarch, hello-plugin, pip: ['tinyname ~=1.0']]"
    first, second = run(submit(text)), run(submit(text))
    for build in (second, first):  # the first was alone when it was measured
        bytecode.complete(build.pk)
    for build, shares in ((second, True), (first, False)):
        shown = Prefix.objects.get(pk=build.prefix_id)
        found = tree_size(folders.prefix_path(build))
        assert shown.apparent_size == pytest.approx(found.apparent, rel=0.01)
        assert shown.unique_size == pytest.approx(found.unique, rel=0.05)
        assert (shown.share_size == pytest.approx(found.share, rel=0.02)) == shares
    cleanup.measure_again(older=timedelta(0))
    assert Prefix.objects.get(pk=first.prefix_id).share_size == pytest.approx(found.share)


def test_a_failed_request_is_final_and_leaves_no_folder(submit, environment, data_folder):
    build = run(submit("dependencies: [conflict-left, conflict-right]"))
    assert (build.state, build.attempt) == (S.FAILED, 1)
    assert build.failure["code"] == "unsatisfiable"
    assert "conflict-left" in build.failure["message"]
    assert not link(environment).is_symlink()
    assert leftovers(data_folder) == []


def test_a_failed_smoke_test_leaves_the_old_environment_in_place(submit, environment, data_folder):
    first = run(submit(HELLO))
    second = run(submit(HELLO + "\ncondastore: {tests: {imports: [json, no_such_module]}}\n"))
    assert second.failure["code"] == "smoke-test-failed"
    assert "no_such_module" in second.failure["message"]
    assert link(environment).resolve() == folders.prefix_path(first)
    assert leftovers(data_folder) == [folders.prefix_path(first).name]
    assert second.prefix is None


@pytest.mark.skipif(not can_sandbox(), reason="compiles in a sandbox")
def test_what_smoke_tests_import_is_compiled_before_ready_and_the_rest_after_it(
    submit, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bytecode, "MAX_FILES_IN_BUILD", 0)  # as if the packages were large
    get_engine().bytecode.remove(digest for digest, _ in get_engine().packages.entries())
    text = "dependencies: [python, hello-noarch, hello-plugin]\n"
    build = run(submit(f"{text}condastore: {{tests: {{imports: [hello_noarch]}}}}\n"))
    assert build.state == S.READY, build.failure

    def compiled() -> set[str]:
        site_packages = folders.prefix_path(build) / "lib/python3.11/site-packages"
        found = {path.relative_to(site_packages).parts[0] for path in site_packages.rglob("*.pyc")}
        return found - {"pip"}  # compiled where another build needed it

    assert compiled() == {"hello_noarch"}
    bytecode.complete(build.pk)
    assert compiled() == {"hello_noarch", "__pycache__"}  # that of hello_plugin.py


@pytest.mark.skipif(not can_sandbox(), reason="compiles in a sandbox")
def test_a_build_whose_folder_goes_while_it_is_compiled_is_left(
    submit, monkeypatch: pytest.MonkeyPatch
):
    build = run(submit("dependencies: [python, hello-noarch]"))
    prefix = folders.prefix_path(build)
    get_engine().bytecode.remove(digest for digest, _ in get_engine().packages.entries())
    compile_all = get_engine().bytecode.compile

    def archived_meanwhile(*args, **settings):
        compile_all(*args, **settings)
        if prefix.exists():
            prefix.rename(prefix.with_name("thrown-away"))

    monkeypatch.setattr(get_engine().bytecode, "compile", archived_meanwhile)
    bytecode.complete(build.pk)
    assert not prefix.exists()


def test_link_scripts_do_not_run_and_are_named(submit):
    build = run(submit("dependencies: [post-linked]"))
    assert build.state == S.READY
    assert any("post-linked" in package for package in build.link_scripts)


def test_an_older_build_that_finishes_late_does_not_become_current(submit, environment):
    older, newer = submit(HELLO), submit(HELLO)
    newer = run(newer)
    older = run(older)
    environment.refresh_from_db()
    assert older.state == newer.state == S.READY
    assert environment.current == newer
    assert link(environment).resolve() == folders.prefix_path(newer)


def test_a_pinned_environment_stays_until_it_is_unpinned(alice, submit, environment):
    first = run(submit(HELLO))
    second = run(submit("dependencies: [python]"))
    builds.rollback(actor=alice, environment=Environment.objects.get())
    assert link(environment).resolve() == folders.prefix_path(first)
    third = run(submit(HELLO, force_solve=True))
    assert link(environment).resolve() == folders.prefix_path(first)
    builds.unpin(actor=alice, environment=Environment.objects.get())
    assert link(environment).resolve() == folders.prefix_path(third)
    builds.set_current_build(actor=alice, build=second)
    assert link(environment).resolve() == folders.prefix_path(second)


def test_a_cancel_between_two_stages_is_obeyed(alice, submit, monkeypatch, data_folder):
    build = submit(HELLO)
    stages = (
        (S.SOLVING, building.solve),
        (S.FETCHING, lambda run: builds.cancel_build(actor=alice, build=build)),
        (S.LINKING, partial(pytest.fail, "it went on")),
    )
    monkeypatch.setattr(building, "STAGES", stages)
    assert run(build).state == S.CANCELLED
    assert leftovers(data_folder) == []


def test_a_cancel_stops_a_test_that_runs(alice, submit, environment, data_folder):
    build = submit(HELLO + "\ncondastore: {tests: {commands: [sleep 60]}}\n")
    worker = threading.Thread(target=building.run, args=(build.pk,))
    worker.start()
    _until(lambda: Build.objects.get(pk=build.pk).state == S.CHECKING)
    time.sleep(0.3)
    builds.cancel_build(actor=alice, build=Build.objects.get(pk=build.pk))
    worker.join(10)
    assert not worker.is_alive()
    assert Build.objects.get(pk=build.pk).state == S.CANCELLED
    assert leftovers(data_folder) == []


def test_a_queued_build_is_cancelled_at_once_and_never_runs(alice, submit):
    build = submit(HELLO)
    builds.cancel_build(actor=alice, build=build)
    assert run(build).state == S.CANCELLED
    assert build.attempt == 0


def test_the_worlds_failures_are_tried_again(submit, channel_server, settings):
    settings.BACKOFF *= 0
    channel_server.faults.add(Fault("noarch/hello-noarch-*", status=404, times=20))
    build = run(submit(HELLO))
    assert (build.state, build.attempt) == (S.QUEUED, 1)
    channel_server.faults.clear()
    build = run(build)
    assert (build.state, build.attempt) == (S.READY, 2)


def test_attempts_have_an_end(submit, channel_server, settings, data_folder):
    settings.BACKOFF *= 0
    settings.BUILD_ATTEMPTS = 2
    channel_server.faults.add(Fault("noarch/hello-noarch-*", status=404))
    build = run(run(submit(HELLO)))
    assert (build.state, build.attempt) == (S.FAILED, 2)
    assert build.failure["code"] == "download-failed"
    assert leftovers(data_folder) == []


def test_a_build_that_takes_too_long_fails(submit, settings, data_folder):
    settings.BUILD_TIME_LIMIT *= 0
    settings.BUILD_TIME_LIMIT += settings.SWEEP_INTERVAL / 2
    build = run(submit(HELLO + "\ncondastore: {tests: {commands: [sleep 60]}}\n"))
    assert build.state == S.FAILED
    assert build.failure["code"] == "time-limit"
    assert leftovers(data_folder) == []


def test_our_own_fault_is_tried_again_and_shows_no_internals(submit, monkeypatch, settings):
    settings.BUILD_ATTEMPTS = 1

    def broken(run):
        raise ZeroDivisionError("secret internals")

    monkeypatch.setattr(building, "STAGES", ((S.SOLVING, broken),))
    build = run(submit(HELLO))
    assert build.failure["code"] == "internal-error"
    assert "secret internals" not in json.dumps(build.failure)
    assert str(build.pk) in build.failure["message"]


def test_a_worker_that_lost_its_lease_does_no_harm(submit, environment, monkeypatch, data_folder):
    build = submit(HELLO)
    real = building.link

    def overtaken(first_run):
        # Another worker takes the build over while this one is about to link.
        monkeypatch.setattr(
            building, "STAGES", tuple((s, real if s == S.LINKING else f) for s, f in stages)
        )
        Build.objects.filter(pk=build.pk).update(lease_expires_at=build.created_at)
        upkeep.give_up_lost(Build)
        Build.objects.filter(pk=build.pk).update(not_before=build.created_at)
        building.run(build.pk)
        real(first_run)

    stages = building.STAGES
    monkeypatch.setattr(
        building, "STAGES", tuple((s, overtaken if s == S.LINKING else f) for s, f in stages)
    )
    result = run(build)
    assert (result.state, result.attempt) == (S.READY, 2)
    prefix = folders.prefix_path(result)
    assert link(environment).resolve() == prefix
    assert (prefix / "bin/python").exists()
    assert leftovers(data_folder) == [prefix.name]


def test_an_archived_build_is_restored_with_the_same_packages(alice, submit, environment):
    first = run(submit(HELLO))
    run(submit("dependencies: [python]"))
    path = folders.prefix_path(first)
    first.refresh_from_db()
    builds.archive_build(actor=alice, build=first)
    cleanup.tidy()
    assert not path.exists()
    assert not Prefix.objects.filter(path=path.name).exists()
    builds.restore_build(actor=alice, build=Build.objects.get(pk=first.pk))
    restored = run(first)
    assert restored.state == S.READY
    assert restored.lock == first.lock
    assert (folders.prefix_path(restored) / "bin/python").exists()
    environment.refresh_from_db()
    assert environment.current != restored


def test_what_is_current_is_neither_archived_nor_deleted(alice, dora, submit):
    from condastore.errors import ConflictError

    build = run(submit(HELLO))
    with pytest.raises(ConflictError, match="current"):
        builds.archive_build(actor=alice, build=build)
    with pytest.raises(ConflictError, match="current"):
        builds.delete_build(actor=dora, build=build)


def test_an_environment_is_copied_moved_and_renamed_without_copying_bytes(
    alice, dora, submit, environment
):
    first, second = run(submit(HELLO)), run(submit("dependencies: [python]"))
    builds.tag_build(actor=alice, build=first, tag="prod")
    other = make_namespace("team")
    from accounts.roles import Role

    other.grant(Role.ADMIN, dora.account)
    copy = copy_environment(actor=dora, environment=environment, namespace=other, name="shared")
    assert [b.number for b in copy.builds.order_by("number")] == [1, 2]
    assert copy.tags.get().build.number == 1
    assert link(copy).resolve() == folders.prefix_path(second)
    assert copy.builds.get(number=1).log_from() == first.log_from() != []
    environment.refresh_from_db()
    rename_environment(actor=alice, environment=environment, name="renamed")
    assert not folders.link_path("research", "ml").is_symlink()
    assert link(environment).resolve() == folders.prefix_path(second)
    move_environment(actor=dora, environment=environment, namespace=other)
    assert folders.link_path("team", "renamed").resolve() == folders.prefix_path(second)
    delete_environment(actor=dora, environment=environment)
    cleanup.tidy()
    assert not folders.link_path("team", "renamed").is_symlink()
    assert (link(copy) / "bin/python").exists(), "the copy still has its folder"
    delete_environment(actor=dora, environment=copy)
    cleanup.tidy()
    assert not folders.prefix_path(second).exists()


def test_a_name_that_is_used_again_gets_a_folder_of_its_own(alice, submit, environment):
    from environments.operations.environments import create_environment

    first = run(submit(HELLO))
    environment.refresh_from_db()
    rename_environment(actor=alice, environment=environment, name="old")
    again = create_environment(actor=alice, namespace=environment.namespace, name="ml")
    second = run(submit(HELLO, environment=again))
    assert folders.prefix_path(first) != folders.prefix_path(second)
    assert (folders.prefix_path(first) / "bin/python").exists()


def test_folders_that_nobody_knows_go_and_those_in_use_stay(submit, data_folder, settings):
    build = run(submit(HELLO))
    stray = data_folder / "prefixes" / "research" / "99-abc-gone"
    hidden = data_folder / "prefixes" / "research" / ".1-abc-ml.77"
    for path in (stray, hidden):
        path.mkdir(parents=True)
    cleanup.drop_orphans(grace=settings.BACKOFF * 0)
    assert leftovers(data_folder) == [folders.prefix_path(build).name]


def test_a_folder_that_was_tampered_with_follows_the_pointer_again(submit, environment):
    build = run(submit(HELLO))
    link(environment).unlink()
    link(environment).symlink_to("/nowhere")
    cleanup.tidy()
    assert link(environment).resolve() == folders.prefix_path(build)


def test_a_full_disk_is_not_the_builds_end(submit, settings, data_folder):
    settings.DISK_RESERVE = 1 << 60
    build = run(submit(HELLO))
    assert build.state == S.QUEUED
    settings.DISK_RESERVE = 0
    Build.objects.update(not_before=build.created_at)
    assert run(build).state == S.READY


def _until(what, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.mark.filterwarnings("ignore")
def test_a_lock_that_somebody_brings_is_linked_as_it_is(submit):
    first = run(submit(HELLO))
    lock = first.lock.value()
    for text in (conda_lock_yml(lock, first.specification.value()), explicit_txt(lock, "linux-64")):
        again = run(submit(text))
        assert again.failure is None, again.failure
        assert again.lock == first.lock


@pytest.mark.filterwarnings("ignore")
def test_a_lock_is_linked_as_conda_store_stores_it(submit):
    first = run(submit(HELLO))
    lock = yaml.safe_load(conda_lock_yml(first.lock.value(), first.specification.value()))
    unversioned = {key: value for key, value in lock.items() if key != "version"}
    retained = {"name": "ml", "description": "A \U0001f40d.", "lockfile": lock}
    for document in (lock, unversioned, retained):
        for text in (json.dumps(document, indent=4), yaml.safe_dump(document)):
            again = run(submit(text))
            assert again.failure is None, again.failure
            assert again.lock == first.lock


@pytest.mark.filterwarnings("ignore")
def test_a_list_without_hashes_takes_those_that_its_channels_list(submit):
    first = run(submit(HELLO))
    text = explicit_txt(first.lock.value(), "linux-64")
    bare = "".join(line.partition("#")[0] + "\n" for line in text.splitlines() if line[0] != "#")
    build = submit(f"# platform: linux-64\n{bare}")
    again = run(build)
    assert again.failure is None, again.failure
    assert again.lock == first.lock
    log = "\n".join(again.log_from())
    assert "warning: The list has no hash for " in log
    assert "using the hashes that their channels list now" in log
    specification = again.specification.value()
    names = [package.file_name for package in first.lock.value().on("linux-64").conda]
    lock = first.lock.value()
    said = explicit_txt(lock, "linux-64", specification)
    assert all(f"#   {name}" in said for name in names)
    assert read_explicit(said, default_platform="linux-64").digest == lock.digest
    assert "is that of its channel's record" in conda_lock_yml(lock, specification)
    document = json.loads(lock_json(lock, specification, "linux-64"))
    assert sorted(document["hashes_from_channel"]) == sorted(names)
    assert "channel's record" not in explicit_txt(lock, "linux-64", first.specification.value())


def test_a_restore_that_fails_can_be_tried_another_day(alice, submit, settings):
    first = run(submit(HELLO))
    run(submit("dependencies: [python]"))
    builds.archive_build(actor=alice, build=first)
    settings.BUILD_ATTEMPTS = 1
    settings.DISK_RESERVE = 1 << 60
    builds.restore_build(actor=alice, build=Build.objects.get(pk=first.pk))
    failed = run(first)
    assert (failed.state, failed.failure["code"]) == (S.ARCHIVED, "disk-full")
    builds.restore_build(actor=alice, build=failed)
    builds.cancel_build(actor=alice, build=failed)
    assert Build.objects.get(pk=first.pk).state == S.ARCHIVED
    settings.DISK_RESERVE = 0
    builds.restore_build(actor=alice, build=Build.objects.get(pk=first.pk))
    restored = run(first)
    assert restored.state == S.READY
    assert [line for line in restored.log_from() if line == "--- linking"] == ["--- linking"] * 2


def test_a_missing_package_is_looked_for_in_other_channels(submit, environment):
    for name in ("other", "secret"):
        channel = Channel.objects.create(url=f"https://packages.example/{name}")
        IndexedPackage.objects.create(channel=channel, name="only-there")
    ChannelCredential(url_prefix="https://packages.example/secret", kind="token").save()
    build = run(submit("dependencies: [python, only-there >=2]"))
    assert build.failure["code"] == "unsatisfiable"
    assert "only-there is in https://packages.example/other" in build.failure["message"]
    (missing,) = build.failure["details"]["missing"]
    assert "https://packages.example/other" in missing["note"]
    assert "secret" not in json.dumps(build.failure)


def test_a_smoke_test_that_is_killed_once_is_run_again(submit):
    def kill_once() -> None:
        # As the kernel ends a process for lack of memory.
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.cmdline() == ["sleep", "1.7"]:
                        process.kill()
                        return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_once)
    killer.start()
    build = run(submit(HELLO + "\ncondastore: {tests: {commands: ['sleep 1.7']}}\n"))
    killer.join()
    assert (build.state, build.attempt) == (S.READY, 1), build.failure
    assert any("killed by SIGKILL" in line for line in build.log_from())


def test_a_smoke_test_that_is_killed_twice_says_so(submit):
    build = run(submit(HELLO + "\ncondastore: {tests: {commands: ['kill -9 $$']}}\n"))
    assert build.failure["code"] == "smoke-test-killed"
    assert "killed twice by SIGKILL" in build.failure["message"]
    assert "memory" in build.failure["hint"]
