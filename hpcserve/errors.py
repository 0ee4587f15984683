"""Every error that hpcserve raises, sorted by whose fault it is.

::

    HpcserveError
    ├── RequestError            the client's: HTTP status 4xx, OpenAI's `code` and `param`
    ├── RefusedError            policy said no: quota, rate, full queue; says when to try again
    ├── ConfigError             the configuration's: names file, key and the nearest known key
    ├── BackendError            Slurm, an engine, the database, the file system: may be `retryable`
    ├── ConflictError           a row changed since it was read: read it again
    ├── FencedError             the caller's lease or leadership is no longer its own: stop
    └── InvalidTransitionError  ours: an event that a life cycle does not know

Rules: the message is one sentence that says what, where, and what to do. Adapters translate foreign
exceptions at the edge with `raise ... from`; nothing above an adapter catches a foreign one.
Expected outcomes (a refusal by quota, nothing to lease) are values, not exceptions, inside the
policies; RefusedError carries such a value across HTTP.
"""

from __future__ import annotations


class HpcserveError(Exception):
    """Base of the tree; raise one of its children."""

    def __init__(self, message: str) -> None:
        """Take the one sentence that a user reads."""
        if type(self) is HpcserveError:
            raise TypeError("raise a child of HpcserveError that says whose fault it is")
        super().__init__(message)

    @property
    def message(self) -> str:
        """The sentence."""
        return str(self.args[0])


class RequestError(HpcserveError):
    """The client asked for something that cannot be done as asked."""

    def __init__(
        self,
        message: str,
        *,
        http_status: int = 400,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        """Take the HTTP status (4xx) and OpenAI's machine-readable `code` and `param`."""
        super().__init__(message)
        self.http_status = http_status
        self.code = code
        self.param = param


class RefusedError(HpcserveError):
    """Policy refuses the request as things stand; the same request may pass later."""

    def __init__(
        self,
        message: str,
        *,
        http_status: int = 429,
        code: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool = True,
    ) -> None:
        """Take when to try again (seconds), or None when waiting does not help."""
        super().__init__(message)
        self.http_status = http_status
        self.code = code
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry


class ConfigError(HpcserveError):
    """The configuration or the model catalog cannot be used as it stands."""


class BackendError(HpcserveError):
    """A part that we depend on (Slurm, engine, database, files) failed."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        """Take whether the same call can succeed later without anyone's doing."""
        super().__init__(message)
        self.retryable = retryable


class ConflictError(HpcserveError):
    """Somebody else changed the row since it was read; the transaction is to be run again."""


class FencedError(HpcserveError):
    """The caller acts on a lease or leadership that has passed to another; it must stop."""


class InvalidTransitionError(HpcserveError):
    """A life cycle got an event that its table does not list: a bug of ours."""

    def __init__(self, subject: str, state: str, event: str) -> None:
        """Take the subject (`instance inst-3`), the state it is in, and the event."""
        super().__init__(f"{subject} is {state} and has no transition on {event}; this is a bug")
        self.subject = subject
        self.state = state
        self.event = event
