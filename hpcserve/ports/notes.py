"""Names of the notes that processes leave for one another in the ledger (`NoteStore`)."""

from __future__ import annotations

#: the leading controller: who it is, how the scheduler and the models are; `hpcserve status`
CONTROLLER = "controller"
#: an operator: the site is closed, and why (`reason`); empty: it is open
CLOSED = "closed"
#: a gateway: since when agents could be heard without a gap (`since`), and that it lives (`at`)
LISTENING = "listening"
