"""Create the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
    )
    op.create_table(
        "batch_requests",
        sa.Column("batch_seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("line_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), server_default="waiting", nullable=False),
        sa.Column("handed_back", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("attempts", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("input_length", sa.Integer(), nullable=False),
        sa.Column("input_offset", sa.BigInteger(), nullable=False),
        sa.Column("lease_id", sa.Integer(), nullable=True),
        sa.Column("segment", sa.Integer(), nullable=True),
        sa.Column("result_length", sa.Integer(), nullable=True),
        sa.Column("result_offset", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state IN ('waiting', 'leased', 'completed', 'failed', 'cancelled', 'expired')",
            name=op.f("ck_batch_requests_state"),
        ),
        sa.PrimaryKeyConstraint("batch_seq", "line_no", name=op.f("pk_batch_requests")),
        postgresql_with={"fillfactor": 45},
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_batch_requests_handed_back",
        "batch_requests",
        ["handed_back", "batch_seq", "line_no"],
        sqlite_where=sa.text("handed_back = 1"),
        postgresql_where=sa.text("handed_back"),
    )

    op.create_table(
        "batches",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("input_file_id", sa.Text(), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deadline_at", sa.BigInteger(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("errors", sa.Text(), nullable=False),
        sa.Column("output_file_id", sa.Text(), nullable=True),
        sa.Column("error_file_id", sa.Text(), nullable=True),
        sa.Column("in_progress_at", sa.BigInteger(), nullable=True),
        sa.Column("finalizing_at", sa.BigInteger(), nullable=True),
        sa.Column("completed_at", sa.BigInteger(), nullable=True),
        sa.Column("failed_at", sa.BigInteger(), nullable=True),
        sa.Column("expired_at", sa.BigInteger(), nullable=True),
        sa.Column("cancelling_at", sa.BigInteger(), nullable=True),
        sa.Column("cancelled_at", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "state IN ('validating', 'in_progress', 'finalizing', 'cancelling', "
            "'completed', 'failed', 'expired', 'cancelled')",
            name=op.f("ck_batches_state"),
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_batches")),
        sa.UniqueConstraint("id", name=op.f("uq_batches_id")),
        sa.UniqueConstraint(
            "owner", "idempotency_key", name=op.f("uq_batches_owner_idempotency_key")
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_batches_owner_seq", "batches", ["owner", "seq"])
    op.create_index("ix_batches_state_deadline_at", "batches", ["state", "deadline_at"])

    op.create_table(
        "demand",
        sa.Column("gateway_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("running", sa.Integer(), nullable=False),
        sa.Column("waiting", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("gateway_id", "model", name=op.f("pk_demand")),
    )
    op.create_table(
        "events",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("from_state", sa.Text(), nullable=True),
        sa.Column("to_state", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "subject IN ('instance', 'batch', 'file', 'key', 'model', 'controller')",
            name=op.f("ck_events_subject"),
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_event_subject_id_at", "events", ["event", "subject_id", "at"])
    op.create_index("ix_events_subject_subject_id_seq", "events", ["subject", "subject_id", "seq"])

    op.create_table(
        "files",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("is_ours", sa.Boolean(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_index("ix_files_expires_at", "files", ["expires_at"])
    op.create_index("ix_files_owner_created_at", "files", ["owner", "created_at"])

    op.create_table(
        "instances",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("partition", sa.Text(), nullable=True),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("time_limit_s", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("job_missing_at", sa.BigInteger(), nullable=True),
        sa.Column("job_state", sa.Text(), nullable=False),
        sa.Column("job_reason", sa.Text(), nullable=False),
        sa.Column("expected_start_at", sa.BigInteger(), nullable=True),
        sa.Column("nodes", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("port", sa.Integer(), nullable=True),
        sa.Column("submitted_at", sa.BigInteger(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ready_at", sa.BigInteger(), nullable=True),
        sa.Column("ends_at", sa.BigInteger(), nullable=True),
        sa.Column("heard_at", sa.BigInteger(), nullable=True),
        sa.Column("busy_at", sa.BigInteger(), nullable=True),
        sa.Column("stop_asked_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("ending", sa.Text(), nullable=True),
        sa.Column("end_reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("log_path", sa.Text(), nullable=False),
        sa.Column("load", sa.Text(), nullable=True),
        sa.Column("gpu_load", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "end_reason IN ('scaled_in', 'drained', 'expired', 'preempted', "
            "'node_failed', 'out_of_memory', 'load_failed', 'crashed', "
            "'cancelled_outside', 'rejected', 'lost')",
            name=op.f("ck_instances_end_reason"),
        ),
        sa.CheckConstraint(
            "ending IN ('scaled_in', 'drained', 'expired', 'preempted', "
            "'node_failed', 'out_of_memory', 'load_failed', 'crashed', "
            "'cancelled_outside', 'rejected', 'lost')",
            name=op.f("ck_instances_ending"),
        ),
        sa.CheckConstraint(
            "role IN ('interactive', 'mixed', 'batch')", name=op.f("ck_instances_role")
        ),
        sa.CheckConstraint(
            "state IN ('requested', 'queued', 'allocated', 'loading', 'ready', "
            "'unreachable', 'draining', 'stopping', 'ended')",
            name=op.f("ck_instances_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
        sa.UniqueConstraint("token", name=op.f("uq_instances_token")),
    )
    op.create_index("ix_instances_ended_at", "instances", ["ended_at"])
    op.create_index(
        "ix_instances_live",
        "instances",
        ["requested_at"],
        sqlite_where=sa.text("state <> 'ended'"),
        postgresql_where=sa.text("state <> 'ended'"),
    )

    op.create_table(
        "leadership",
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("slot = 1", name=op.f("ck_leadership_slot")),
        sa.PrimaryKeyConstraint("slot", name=op.f("pk_leadership")),
    )
    op.create_table(
        "notes",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_notes")),
    )
    op.create_table(
        "segments",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_segments")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "batch_counts",
        sa.Column("batch_seq", sa.Integer(), nullable=False),
        sa.Column("next_line", sa.Integer(), server_default="0", nullable=False),
        sa.Column("waiting", sa.Integer(), server_default="0", nullable=False),
        sa.Column("leased", sa.Integer(), server_default="0", nullable=False),
        sa.Column("completed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cancelled", sa.Integer(), server_default="0", nullable=False),
        sa.Column("expired", sa.Integer(), server_default="0", nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("first_result_at", sa.BigInteger(), nullable=True),
        sa.Column("validated_lines", sa.Integer(), server_default="0", nullable=False),
        sa.Column("validated_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("cancelled >= 0", name=op.f("ck_batch_counts_cancelled")),
        sa.CheckConstraint("completed >= 0", name=op.f("ck_batch_counts_completed")),
        sa.CheckConstraint("expired >= 0", name=op.f("ck_batch_counts_expired")),
        sa.CheckConstraint("failed >= 0", name=op.f("ck_batch_counts_failed")),
        sa.CheckConstraint("leased >= 0", name=op.f("ck_batch_counts_leased")),
        sa.CheckConstraint("waiting >= 0", name=op.f("ck_batch_counts_waiting")),
        sa.ForeignKeyConstraint(
            ["batch_seq"], ["batches.seq"], name=op.f("fk_batch_counts_batch_seq")
        ),
        sa.PrimaryKeyConstraint("batch_seq", name=op.f("pk_batch_counts")),
        postgresql_with={"fillfactor": 10},
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("batch_seq", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("granted_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("first_line", sa.Integer(), nullable=False),
        sa.Column("last_line", sa.Integer(), nullable=False),
        sa.Column("open_lines", sa.Integer(), nullable=False),
        sa.Column("lapsed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.CheckConstraint("open_lines >= 0", name=op.f("ck_leases_open_lines")),
        sa.ForeignKeyConstraint(["batch_seq"], ["batches.seq"], name=op.f("fk_leases_batch_seq")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_leases_open",
        "leases",
        ["instance_id"],
        sqlite_where=sa.text("open_lines > 0"),
        postgresql_where=sa.text("open_lines > 0"),
    )


def downgrade() -> None:
    op.drop_table("leases")
    op.drop_table("batch_counts")
    op.drop_table("segments")
    op.drop_table("notes")
    op.drop_table("leadership")
    op.drop_table("instances")
    op.drop_table("files")
    op.drop_table("events")
    op.drop_table("demand")
    op.drop_table("batches")
    op.drop_table("batch_requests")
    op.drop_table("api_keys")
