"""Where `slurm/setup engine model` put the engine and the models."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = Path(os.environ.get("HPCSERVE_CACHE", "~/.cache/hpcserve")).expanduser()
VLLM = CACHE / "engine" / "bin" / "vllm"
SMOLLM2_WEIGHTS = CACHE / "models" / "smollm2-135m-instruct"
TINY_WEIGHTS = CACHE / "models" / "tiny-llama"
