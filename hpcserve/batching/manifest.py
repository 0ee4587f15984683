"""The manifest beside the results: what a paper's appendix asks for, as far as we know it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from hpcserve.batching.result_file import ResultFile
from hpcserve.domain.batch import Batch, InputFile
from hpcserve.domain.instance import Instance
from hpcserve.domain.lifecycle import Transition


def manifest(
    batch: Batch,
    *,
    story: Sequence[Transition],
    source: InputFile | None,
    output: ResultFile,
    errors: ResultFile,
    instances: Sequence[Instance],
    version: str,
    model: Mapping[str, object],
) -> bytes:
    """Return the manifest as JSON."""
    digests = (str(t.detail["input_sha256"]) for t in story if "input_sha256" in t.detail)
    facts = {
        "batch_id": batch.id,
        "hpcserve_version": version,
        "owner": batch.owner,
        "endpoint": batch.endpoint,
        "model": {"name": batch.model, **model},
        "created_at": batch.created_at,
        "in_progress_at": batch.in_progress_at,
        "first_result_at": batch.first_result_at,
        "finalizing_at": batch.finalizing_at or batch.cancelling_at,
        "completion_window": batch.completion_window,
        "metadata": dict(batch.metadata),
        "input": {
            "file_id": batch.input_file_id,
            "filename": source.filename if source else None,
            "bytes": source.size_bytes if source else None,
            "sha256": next(digests, None),
        },
        "output": _file(output),
        "errors": _file(errors),
        "request_counts": asdict(batch.counts),
        "usage": asdict(batch.usage),
        "instances": [_instance(instance) for instance in instances],
    }
    return json.dumps(facts, indent=2, default=str, ensure_ascii=False).encode() + b"\n"


def _file(file: ResultFile) -> dict[str, object]:
    return {"lines": file.lines, "bytes": file.size_bytes, "sha256": file.sha256}


def _instance(instance: Instance) -> dict[str, object]:
    return {
        "id": instance.id,
        "slurm_job_id": instance.job_id,
        "partition": instance.partition,
        "nodes": list(instance.nodes),
        "gpus": instance.gpus,
        "started_at": instance.started_at,
        "ended_at": instance.ended_at,
        "end_reason": instance.end_reason,
        "log_path": instance.log_path,
    }
