"""The HTTP front: the interactive data plane, OpenAI's API, the control API of the agents."""
