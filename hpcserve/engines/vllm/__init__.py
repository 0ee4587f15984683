"""vLLM: the only place that knows its flags, environment, metrics and log.

Rules: nothing here imports vllm, which takes ten seconds and lives in another environment. What
was learned about its versions stands beside the line that needs it.
"""
