"""Recognises a request whose head is that of the one before, but for its length.

A client on a kept-alive connection repeats itself: of two heads, often only the digits of
`content-length` differ. Such a request need not be parsed again; what the parser made of the first
holds for it, since the same bytes mean the same. Rules:

- Only a request that arrives whole in one read, with nothing behind it, is recognised.
- The bytes before and behind the digits must be equal, and between them stand one to ten digits.
- Everything else goes to the parser, which alone decides what is well-formed.
"""

from __future__ import annotations

import re

#: the last line of a head may be this one, so its end is left to the comparison of what follows
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,10})(?=\r\n)")
_END = b"\r\n\r\n"


class HeadMemo:
    """The head of the last request of a connection."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        #: from the line end of the length on, to the end of the head
        self._after = after

    @classmethod
    def of(cls, data: bytes) -> HeadMemo | None:
        """Return the memo of a whole request that *data* is; None when it is not one."""
        end = data.find(_END)
        length = _LENGTH.search(data, 0, end + 2) if end >= 0 else None
        if length is None or len(data) != end + len(_END) + int(length[1]):
            return None
        return cls(data[: length.start(1)], data[length.end(1) : end + len(_END)])

    def body_of(self, data: bytes) -> bytes | None:
        """Return the body of *data* when it is a whole request with the same head, else None."""
        if not data.startswith(self._before):
            return None
        begin = len(self._before)
        end = data.find(b"\r", begin, begin + 11)
        digits = data[begin:end]
        if not digits.isdigit() or not data.startswith(self._after, end):
            return None
        body = end + len(self._after)
        return data[body:] if len(data) - body == int(digits) else None
