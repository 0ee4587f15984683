"""Names of the notes that processes leave for one another in the ledger (`NoteStore`)."""

from __future__ import annotations

#: the leading controller: who it is, how the scheduler and the models are; `hpcserve status`
CONTROLLER = "controller"
#: an operator: the site is closed, and why (`reason`); empty: it is open
CLOSED = "closed"
#: a gateway: since when agents could be heard without a gap (`since`), and that it lives (`at`)
LISTENING = "listening"
#: the leading controller: when each batch in progress will be done (`batches`, by id)
ESTIMATES = "estimates"
#: what lines of each model have cost, for the estimates of its next batches
COSTS = "costs"
#: how many ended batches had an estimate, and how many ended before its p90, by stage
COVERAGE = "estimate_coverage"
