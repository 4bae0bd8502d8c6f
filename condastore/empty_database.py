"""Creation of all tables of an empty SQLite database from the final state of the migrations.

Running 60 migrations one after another takes seconds, nearly all of it in Django building the
models of every step. On an empty database only the last step counts: its tables are created, and
all migrations are recorded as applied. Data migrations find no rows in an empty database, so they
are left out; a test compares the outcome with that of `migrate`, rows included.
"""

from __future__ import annotations

from django.apps import apps as installed
from django.core.management.sql import emit_post_migrate_signal, emit_pre_migrate_signal
from django.db import connection
from django.db.migrations import RunPython
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.operations.base import Operation
from django.db.migrations.operations.special import RunSQL, SeparateDatabaseAndState


def create_tables() -> bool:
    """Create the tables in one transaction, with the rows that `migrate` adds for each model.

    Returns:
        False, and nothing is done, where the database is not an empty SQLite, or where a migration
        does what the final state does not show.
    """
    if connection.vendor != "sqlite" or connection.introspection.table_names():
        return False
    executor = MigrationExecutor(connection)
    plan = [migration for migration, _ in executor.migration_plan(
        executor.loader.graph.leaf_nodes(), clean_start=True
    )]  # fmt: skip
    if not all(_shows_in_state(each) for migration in plan for each in migration.operations):
        return False
    state = executor.loader.project_state()
    with connection.schema_editor() as editor:
        emit_pre_migrate_signal(0, False, connection.alias, apps=installed, plan=[])
        for model in state.apps.get_models():
            options = model._meta
            if options.managed and not options.proxy and not options.swapped:
                editor.create_model(model)
        executor.recorder.ensure_schema()
        for migration in plan:
            executor.recorder.record_applied(migration.app_label, migration.name)
        emit_post_migrate_signal(0, False, connection.alias, apps=installed, plan=[])
    return True


def _shows_in_state(operation: Operation) -> bool:
    """Return whether an empty database needs no more than what the operation does to the state."""
    if isinstance(operation, SeparateDatabaseAndState):
        return not operation.database_operations
    if isinstance(operation, RunSQL):
        return False
    return isinstance(operation, RunPython) or operation.reduces_to_sql
