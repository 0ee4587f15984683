"""A stand-in for vLLM's HTTP server: real HTTP and timing, invented text.

Rules: the text is a pure function of the prompt's tokens, so that a generation cut anywhere and
continued from its token ids gives the very same text (as greedy decoding in float32 does). What
vLLM refuses is refused with vLLM's status and words; what it ignores is ignored.
"""
