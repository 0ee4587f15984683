"""Compressed node lists."""

import pytest

from hpcserve.errors import BackendError
from hpcserve.slurm.nodelist import expand


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("", ()),
        ("(null)", ()),
        ("None assigned", ()),
        ("gpu01", ("gpu01",)),
        ("gpu[01-03,07]", ("gpu01", "gpu02", "gpu03", "gpu07")),
        ("gpu[08-11]", ("gpu08", "gpu09", "gpu10", "gpu11")),
        ("gpu[8-11]", ("gpu8", "gpu9", "gpu10", "gpu11")),
        ("gpu[098-101]", ("gpu098", "gpu099", "gpu100", "gpu101")),
        ("a1,b[2-3],c4", ("a1", "b2", "b3", "c4")),
        ("rack[1-2]n[01-02]", ("rack1n01", "rack1n02", "rack2n01", "rack2n02")),
        ("n[1-2]-ib", ("n1-ib", "n2-ib")),
        ("login-1.example.org", ("login-1.example.org",)),
    ],
)
def test_names_are_written_out_in_order(nodelist: str, names: tuple[str, ...]) -> None:
    assert expand(nodelist) == names


@pytest.mark.parametrize("nodelist", ["gpu[01-", "gpu[3-1]", "gpu[a-b]", "gpu]1[", "a,,b", "n[]"])
def test_what_is_no_node_list_is_named(nodelist: str) -> None:
    with pytest.raises(BackendError, match="is no node list"):
        expand(nodelist)


def test_a_typing_error_cannot_fill_the_memory() -> None:
    with pytest.raises(BackendError, match="is no node list"):
        expand("gpu[1-9999999999]")
