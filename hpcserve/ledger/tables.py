"""The tables of the ledger, for SQLite and PostgreSQL alike; `migrations/` must end at the same.

Rules: columns have the names of the domain's fields. CHECKs on words come from the life-cycle
tables and enumerations, so that the database refuses what the code does not know. A batch's counts
stand in a narrow table of their own: every commit of results writes them, under no version.

`batch_requests` is the only table that grows by the million. It is written twice for each line (the
lease, the result), and nothing that these two writes change is in an index: PostgreSQL can then
write in place (HOT), SQLite touches one tree. Lines that wait for the first time lie at and behind
`batch_counts.next_line`; only lines that were handed back are found through an index.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from hpcserve.domain.batch import BATCH, BATCH_REQUEST, BatchState, RequestState
from hpcserve.domain.instance import INSTANCE, InstanceState, Role
from hpcserve.domain.job import EndReason
from hpcserve.domain.lifecycle import Subject
from hpcserve.ledger.columns import Gpus, Instant, Json, LineErrors, Load, Names, Prose, Word

#: every schema revision, oldest first; the last one is what this code works with
REVISIONS = ("0001",)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: a growing number; SQLite numbers rows by itself only in INTEGER columns
_BigSerial = BigInteger().with_variant(Integer, "sqlite")


def _words(column: str, words: Iterable[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


instances = Table(
    "instances",
    metadata,
    Column("id", Text, primary_key=True),
    Column("token", Text, nullable=False, unique=True),
    Column("model", Text, nullable=False),
    Column("role", Word(Role), nullable=False),
    Column("state", Word(InstanceState), nullable=False),
    Column("partition", Text),
    Column("gpus", Integer, nullable=False),
    Column("time_limit_s", Integer, nullable=False),
    Column("reason", Prose, nullable=False),
    Column("requested_at", Instant, nullable=False),
    Column("job_id", Text),
    Column("job_missing_at", Instant),
    Column("job_state", Prose, nullable=False),
    Column("job_reason", Prose, nullable=False),
    Column("expected_start_at", Instant),
    Column("nodes", Names, nullable=False),
    Column("host", Text),
    Column("port", Integer),
    Column("submitted_at", Instant),
    Column("started_at", Instant),
    Column("ready_at", Instant),
    Column("ends_at", Instant),
    Column("heard_at", Instant),
    Column("busy_at", Instant),
    Column("stop_asked_at", Instant),
    Column("ended_at", Instant),
    Column("ending", Word(EndReason)),
    Column("end_reason", Word(EndReason)),
    Column("message", Prose, nullable=False),
    Column("log_path", Text, nullable=False),
    Column("load", Load),
    Column("gpu_load", Gpus, nullable=False),
    Column("version", Integer, nullable=False),
    _words("role", Role),
    _words("state", INSTANCE.states),
    _words("ending", EndReason),
    _words("end_reason", EndReason),
    Index(
        "ix_instances_live",
        "requested_at",
        sqlite_where=text("state <> 'ended'"),
        postgresql_where=text("state <> 'ended'"),
    ),
    Index(None, "ended_at"),
)

events = Table(
    "events",
    metadata,
    Column("seq", _BigSerial, primary_key=True, autoincrement=True),
    Column("subject", Word(Subject), nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("event", Text, nullable=False),
    Column("from_state", Text),
    Column("to_state", Text),
    Column("reason", Prose, nullable=False),
    Column("detail", Json, nullable=False),
    _words("subject", Subject),
    Index(None, "subject", "subject_id", "seq"),
    Index(None, "event", "subject_id", "at"),
    sqlite_autoincrement=True,
)

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("path", Text, nullable=False),
    Column("is_ours", Boolean, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Index(None, "owner", "created_at"),
    Index(None, "expires_at"),
)

batches = Table(
    "batches",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("state", Word(BatchState), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("deadline_at", Instant, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("idempotency_key", Text),
    Column("errors", LineErrors, nullable=False),
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    Column("in_progress_at", Instant),
    Column("finalizing_at", Instant),
    Column("completed_at", Instant),
    Column("failed_at", Instant),
    Column("expired_at", Instant),
    Column("cancelling_at", Instant),
    Column("cancelled_at", Instant),
    Column("version", Integer, nullable=False),
    _words("state", BATCH.states),
    UniqueConstraint("owner", "idempotency_key"),
    Index(None, "state", "deadline_at"),
    Index(None, "owner", "seq"),
    sqlite_autoincrement=True,
)

batch_counts = Table(
    "batch_counts",
    metadata,
    Column("batch_seq", Integer, ForeignKey("batches.seq"), primary_key=True),
    #: no line before this one waits for its first lease
    Column("next_line", Integer, nullable=False, server_default="0"),
    *(
        Column(state.value, Integer, nullable=False, server_default="0")
        for state in BATCH_REQUEST.states
    ),
    Column("input_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("output_tokens", BigInteger, nullable=False, server_default="0"),
    Column("first_result_at", Instant),
    Column("validated_lines", Integer, nullable=False, server_default="0"),
    Column("validated_bytes", BigInteger, nullable=False, server_default="0"),
    *(CheckConstraint(f"{state.value} >= 0", name=state.value) for state in BATCH_REQUEST.states),
    # rewritten by every lease and every commit of results
    postgresql_with={"fillfactor": 10},
)

batch_requests = Table(
    "batch_requests",
    metadata,
    # no foreign key: PostgreSQL would queue a check for each of a million lines
    Column("batch_seq", Integer, primary_key=True, autoincrement=False),
    Column("line_no", Integer, primary_key=True, autoincrement=False),
    Column("state", Word(RequestState), nullable=False, server_default=RequestState.WAITING.value),
    #: WAITING again after a lease
    Column("handed_back", Boolean, nullable=False, server_default=false()),
    #: leases that lapsed
    Column("attempts", SmallInteger, nullable=False, server_default="0"),
    Column("input_length", Integer, nullable=False),
    Column("input_offset", BigInteger, nullable=False),
    #: the lease that holds it, or that ended it
    Column("lease_id", Integer),
    Column("segment", Integer),
    Column("result_length", Integer),
    Column("result_offset", BigInteger),
    _words("state", BATCH_REQUEST.states),
    Index(
        "ix_batch_requests_handed_back",
        # a constant there, but it makes the planners see how narrow this index is
        "handed_back",
        "batch_seq",
        "line_no",
        sqlite_where=text("handed_back = 1"),
        postgresql_where=text("handed_back"),
    ),
    sqlite_with_rowid=False,
    # room for the two further versions of each line on its own page
    postgresql_with={"fillfactor": 45},
)

leases = Table(
    "leases",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("batch_seq", Integer, ForeignKey("batches.seq"), nullable=False),
    Column("instance_id", Text, nullable=False),
    Column("granted_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    #: its lines lie between these two, both included
    Column("first_line", Integer, nullable=False),
    Column("last_line", Integer, nullable=False),
    #: lines that it still holds
    Column("open_lines", Integer, nullable=False),
    #: its lines were taken back: its holder is fenced
    Column("lapsed", Boolean, nullable=False, server_default=false()),
    CheckConstraint("open_lines >= 0", name="open_lines"),
    Index(
        "ix_leases_open",
        "instance_id",
        sqlite_where=text("open_lines > 0"),
        postgresql_where=text("open_lines > 0"),
    ),
    sqlite_autoincrement=True,
)

segments = Table(
    "segments",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("path", Text, nullable=False),
    sqlite_autoincrement=True,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False, unique=True),
    Column("prefix", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
)

demand = Table(
    "demand",
    metadata,
    Column("gateway_id", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("asked_at", Instant, nullable=False),
    Column("running", Integer, nullable=False),
    Column("waiting", Integer, nullable=False),
)

leadership = Table(
    "leadership",
    metadata,
    #: there is one
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("holder", Text, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("expires_at", Instant, nullable=False),
    CheckConstraint("slot = 1", name="slot"),
)

notes = Table(
    "notes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Json, nullable=False),
)
