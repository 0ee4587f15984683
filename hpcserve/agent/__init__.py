"""The agent: our process in the job, beside the engine."""
