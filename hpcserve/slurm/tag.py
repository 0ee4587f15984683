"""The tag in a job's comment: whose job it is and for which intent, `hpcserve:<site>:<token>`.

It is how a restarted controller finds its jobs again, so it must come through every release of
Slurm unharmed: only letters, digits, `.`, `_` and `-`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcserve.errors import ConfigError

_WORD = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True)
class Tag:
    """The tag of all jobs of one site."""

    site: str

    def __post_init__(self) -> None:
        if not _WORD.fullmatch(self.site):
            raise ConfigError(
                f"the site name {self.site!r} cannot stand in a job's comment;"
                " use up to 100 letters, digits, '.', '_' and '-'"
            )

    def comment(self, token: str) -> str:
        """Return the comment of the job with this token."""
        assert _WORD.fullmatch(token), token
        return f"hpcserve:{self.site}:{token}"

    def token(self, comment: str) -> str | None:
        """Return the token in a comment, or None when the job is not one of ours."""
        head, _, token = comment.rpartition(":")
        return token if head == f"hpcserve:{self.site}" and _WORD.fullmatch(token) else None
