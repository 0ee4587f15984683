"""vLLM's scheduler, with interactive requests before batch requests in every slot.

`--scheduling-policy priority` alone lets an interactive request jump the queue, but not take a
slot: it waits until a batch request ends. Here a batch request is pushed out at once, by vLLM's own
preemption: its tokens are kept, its KV is computed again later, its client notices nothing.

Rules: this interface of vLLM is not public, so the adapter asks for this module only with releases
that it was tested with (`VLLM_TESTED`). Nothing is decided here; `hpcserve_slots` decides.
"""
# ruff: noqa: INP001 - a folder for PYTHONPATH, no package

from __future__ import annotations

import os
import time
from itertools import takewhile
from typing import Any

from hpcserve_slots import (  # type: ignore[import-not-found] # beside it on vLLM's PYTHONPATH
    INTERACTIVE,
    SLOTS_VARIABLE,
    Room,
    SlotsFile,
    allowed,
    class_of,
    leaving,
)
from vllm.v1.core.sched.async_scheduler import AsyncScheduler


class InteractiveFirst(AsyncScheduler):  # type: ignore[misc] # vLLM lives in another environment
    """For `--scheduler-cls`, with `--scheduling-policy priority`."""

    #: vLLM's own bound on running requests, looked at in each step
    max_num_active_reqs: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - vLLM's, passed on
        """Take what vLLM gives to its own scheduler."""
        super().__init__(*args, **kwargs)
        self._ceiling = self.max_num_active_reqs
        self._slots_file = SlotsFile(os.environ.get(SLOTS_VARIABLE, ""))
        self._groups = max(1, len(self.kv_cache_config.kv_cache_groups))

    def add_request(self, request: Any) -> None:  # noqa: ANN401 - vLLM's Request
        """Put the request into one of the two classes."""
        request.priority = class_of(request.priority)
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - vLLM's, passed on
        """Make room, then let vLLM fill it."""
        batch_slots = self._slots_file.read()
        asking = self._asking()
        if asking or batch_slots is not None:
            self._make_room(asking, batch_slots)
        else:
            self.max_num_active_reqs = self._ceiling
        return super().schedule(*args, **kwargs)

    def _asking(self) -> list[Any]:
        """Return the interactive requests that could run, in their order."""
        if not self.waiting or self.waiting.peek_request().priority != INTERACTIVE:
            return []
        first = takewhile(lambda r: r.priority == INTERACTIVE, self.waiting)
        return [r for r in first if not self._is_blocked_waiting_status(r.status)][: self._ceiling]

    def _make_room(self, asking: list[Any], batch_slots: int | None) -> None:
        cache = self.kv_cache_manager
        free = cache.block_pool.get_num_free_blocks() - cache.watermark_blocks
        room = Room(
            slots=self._ceiling - self.num_waiting_for_streaming_input,
            batch_slots=batch_slots,
            blocks=free // self._groups,
            block_tokens=self.block_size,
        )
        now = time.monotonic()
        for request in leaving(self.running, asking, room):
            if self._request_blocks_can_be_freed(request):
                self.running.remove(request)
                self._preempt_request(request, now)
                # It may come back in this very step, and the worker must take it as new then.
                self.prev_step_scheduled_req_ids.discard(request.request_id)
        self.max_num_active_reqs = allowed(self.running, asking, room)
