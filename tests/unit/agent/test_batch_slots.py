from __future__ import annotations

from pathlib import Path

from hpcserve.agent.batch_slots import BatchSlots
from hpcserve.engines.vllm.plugins.hpcserve_slots import SlotsFile


def test_an_engine_that_reads_no_file_does_not_obey() -> None:
    slots = BatchSlots(None)
    slots.limit(3)
    assert not slots.is_obeyed


def test_the_engine_reads_what_the_agent_writes(tmp_path: Path) -> None:
    slots, engine = BatchSlots(tmp_path / "slots"), SlotsFile(str(tmp_path / "slots"))
    assert not slots.is_obeyed
    for number in (4, 0, 9):
        slots.limit(number)
        assert slots.is_obeyed
        assert engine.read() == number
    assert [path.name for path in tmp_path.iterdir()] == ["slots"]


def test_a_folder_that_is_gone_is_no_obedience(tmp_path: Path) -> None:
    slots = BatchSlots(tmp_path / "absent" / "slots")
    slots.limit(3)
    assert not slots.is_obeyed
