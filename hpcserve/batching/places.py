"""Where batch files lie: below one folder that all gateways and controllers share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """The folder of batch files and what lies where in it."""

    root: Path

    @property
    def uploads(self) -> Path:
        """Input files that clients sent."""
        return self.root / "uploads"

    @property
    def segments(self) -> Path:
        """Results in the order of their arrival, many batches in one file."""
        return self.root / "segments"

    @property
    def outputs(self) -> Path:
        """Output files, error files and manifests."""
        return self.root / "outputs"

    def custom_ids(self, batch_id: str) -> Path:
        """Return where the custom_ids of a batch in progress are, one a line of its input."""
        return self.root / "custom_ids" / f"{batch_id}.jsonl"

    def output(self, batch_id: str, kind: str) -> Path:
        """Return the file of one *kind*: `output.jsonl`, `errors.jsonl` or `manifest.json`."""
        return self.outputs / f"{batch_id}.{kind}"

    def make(self) -> None:
        """Create the folders, readable by their owner only."""
        for folder in (self.uploads, self.segments, self.outputs, self.root / "custom_ids"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def publish(temporary: Path, final: Path) -> None:
    """Give a complete, fsynced file its name, durably."""
    temporary.replace(final)
    folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
