"""Where ports meet adapters: the real site. Nothing but this package knows both.

`site` is what lies on disk, `system` time and identifiers, `cluster` the scheduler, `processes` the
services, `job` the agent inside a job.
"""
