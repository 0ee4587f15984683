"""Sources of the configuration, and their mistakes."""

import pytest

from hpcserve.config import Config, load_catalog, load_config
from hpcserve.config.catalog import read_model
from hpcserve.domain.model import EngineKind
from hpcserve.errors import ConfigError


def written(tmp_path, text, name="hpcserve.toml"):
    """Return a file with *text*."""
    path = tmp_path / name
    path.write_text(text)
    return path


def test_without_sources_the_defaults_hold(tmp_path):
    assert load_config(env={"HOME": str(tmp_path)}) == Config()


def test_later_sources_win(tmp_path):
    file = written(tmp_path, "[gateway]\nport = 1\nhost = 'file'\nqueue_max = 7\n")
    env = {"HPCSERVE_GATEWAY_PORT": "2", "HPCSERVE_GATEWAY_HOST": "env"}
    gateway = load_config(file=file, env=env, flags={"gateway": {"port": 3}}).gateway
    assert (gateway.port, gateway.host, gateway.queue_max) == (3, "env", 7)


def test_the_user_file_is_found(tmp_path):
    folder = tmp_path / ".config" / "hpcserve"
    folder.mkdir(parents=True)
    written(folder, "[site]\nname = 'mine'\n")
    assert load_config(env={"HOME": str(tmp_path)}).site.name == "mine"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[gatway]\nport = 1", r"unknown section \[gatway\]; did you mean 'gateway'\?"),
        ("[gateway]\nprot = 1", r"\[gateway\]: unknown key 'prot'; did you mean 'port'\?"),
        ("[gateway]\nport = 'x'", "port must be a whole number, not 'x'"),
        ("[gateway]\nport = true", "port must be a whole number, not True"),
        ("[engine]\nallow_downloads = 'maybe'", "allow_downloads must be true or false"),
        ("[slurm]\nsetup = [1]", "setup must be a list of texts"),
        ("gateway = 1", r"\[gateway\] must be a section, not a value"),
        ("[gateway", "is not valid TOML"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_file_and_key(tmp_path, text, sentence):
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(file=file, env={})
    assert str(file) in str(caught.value)


def test_a_mistake_in_the_environment_is_named_too():
    with pytest.raises(ConfigError, match=r"the environment: .*unknown key 'prt'"):
        load_config(env={"HPCSERVE_GATEWAY_PRT": "1", "HOME": "/nowhere"})


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(file=tmp_path / "none.toml", env={})


def test_a_model_is_read_and_its_relative_weights_lie_beside_the_file(tmp_path):
    path = written(
        tmp_path,
        'name = "tiny"\nweights = "./w"\nengine = "fake"\nengine_args = ["--a", "1"]\n'
        '[engine_env]\nX = "1"\n',
        "tiny.toml",
    )
    model = read_model(path)
    assert model.weights == str(tmp_path / "w")
    assert (model.engine, model.engine_args, model.engine_env) == (
        EngineKind.FAKE,
        ("--a", "1"),
        {"X": "1"},
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('name = "x"', "weights is missing"),
        ('weights = "x"', "name is missing"),
        ('name = "x"\nweights = "w"\nengine = "tgi"', "engine must be vllm or fake, not 'tgi'"),
        ('name = "x"\nweight = "w"', "unknown key 'weight'; did you mean 'weights'"),
    ],
)
def test_a_mistake_in_the_catalog_names_file_and_key(tmp_path, text, sentence):
    path = written(tmp_path, text, "x.toml")
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_catalog([tmp_path])
    assert str(path) in str(caught.value)


def test_a_later_folder_wins_and_a_missing_one_is_empty(tmp_path):
    for folder, limit in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        written(
            tmp_path / folder,
            f'name = "x"\nweights = "w"\nmax_instances = {limit}',
            "x.toml",
        )
    models = load_catalog([tmp_path / "none", tmp_path / "a", tmp_path / "b"])
    assert models["x"].max_instances == 2


def test_a_folder_with_one_model_twice_is_a_mistake(tmp_path):
    for name in ("x.toml", "y.toml"):
        written(tmp_path, 'name = "x"\nweights = "w"', name)
    with pytest.raises(ConfigError, match="stands in this folder already"):
        load_catalog([tmp_path])
