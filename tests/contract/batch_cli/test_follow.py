"""`hpcserve batch`: wait, results, retry, list, explain, and the site's own command at the end."""

from __future__ import annotations

import json
from pathlib import Path

from tests.contract.batch_cli.conftest import Shell

#: the fake engine makes 1,000 tokens a second in each of 16 slots
LINE = ("--template", "{text}", "--model", "m")


def submitted(hpcserve: Shell, rows: int, *options: str, tokens: int = 2) -> str:
    name = hpcserve.write("data.csv", "text\n" + "".join(f"t{n}\n" for n in range(rows)))
    output, _ = hpcserve("submit", name, *LINE, "--max-tokens", str(tokens), *options)
    return output.split()[0]


def test_a_batch_is_followed_to_its_end(hpcserve: Shell) -> None:
    name = hpcserve.write("data.csv", "text\n" + "".join(f"t{n}\n" for n in range(1500)))
    output, told = hpcserve("submit", name, *LINE, "--max-tokens", "60")
    batch_id = output.strip()
    assert "1500 requests to m, about " in told
    assert "instance-hours, on the partition local of processes on this machine" in told
    assert "(p50), " in told
    assert "before its window closes" in told
    output, _ = hpcserve("status", batch_id)
    assert output.startswith("in_progress: ")
    assert "(p90), " in output
    assert "1 ready; no more because " in output
    output, shown = hpcserve("wait", batch_id)
    assert "1500 done, 0 failed" in output
    assert "lines/s" in shown
    assert "output tokens/s" in shown
    assert batch_id in hpcserve("list")[0]


def test_the_story_has_the_estimates_and_how_good_they_were(hpcserve: Shell) -> None:
    batch_id = submitted(hpcserve, 1500, "--wait", tokens=10)
    site = hpcserve.site
    site.wait("the score", lambda: site.story(batch_id)[-1]["event"] == "estimate_checked", 5)
    output, _ = hpcserve("explain", batch_id)
    assert " requests are open" in output
    assert "its last result came" in output


def test_the_sites_own_command_learns_of_the_end(hpcserve: Shell) -> None:
    batch_id = submitted(hpcserve, 3, "--wait")
    told = hpcserve.site.folder / f"ended.{batch_id}"
    hpcserve.site.wait("the command has run", lambda: told.exists() and told.read_text(), 5)
    assert told.read_text() == "completed 3\n"


def test_the_manifest_says_how_results_came_about(hpcserve: Shell) -> None:
    batch_id = submitted(hpcserve, 3, "--wait")
    path = hpcserve.site.state / "batches" / "outputs" / f"{batch_id}.manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["model"]["name"] == "m"
    assert manifest["request_counts"]["completed"] == 3
    (instance,) = manifest["instances"]
    assert instance["id"] == hpcserve.site.instances("ready")[0]["id"]
    assert instance["slurm_job_id"]


def test_a_download_goes_on_where_it_broke(hpcserve: Shell, tmp_path: Path) -> None:
    batch_id = submitted(hpcserve, 200, "--wait")
    whole = hpcserve("results", batch_id)[0].encode()
    target = tmp_path / "out.jsonl"
    hpcserve("results", batch_id, "-o", "out.jsonl")
    assert target.read_bytes() == whole
    # broken off, inside a line
    target.write_bytes(whole[: len(whole) // 2])
    kept = target.stat()
    _, said = hpcserve("results", batch_id, "-o", "out.jsonl")
    assert f"{len(whole) // 2} bytes were there already" in said
    assert target.read_bytes() == whole
    assert target.stat().st_ino == kept.st_ino
    # complete already
    assert "were there already" in hpcserve("results", batch_id, "-o", "out.jsonl")[1]
    assert target.read_bytes() == whole
    # somebody else's content is no beginning
    target.write_bytes(b"x" * 5000)
    assert hpcserve("results", batch_id, "-o", "out.jsonl")[1] == ""
    assert target.read_bytes() == whole


def test_results_come_while_a_batch_runs(hpcserve: Shell, tmp_path: Path) -> None:
    batch_id = submitted(hpcserve, 3000, tokens=400)
    hpcserve.site.wait_under_way(batch_id, done=20)
    early = hpcserve("results", batch_id, "-o", "out.jsonl")
    some = (tmp_path / "out.jsonl").read_text().splitlines()
    assert early == ("", "")
    assert 20 <= len(some) < 3000
    hpcserve("cancel", batch_id)
    hpcserve("wait", batch_id, code=1)
    hpcserve("results", batch_id, "-o", "out.jsonl")
    ids = [
        json.loads(line)["custom_id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()
    ]
    numbers = [int(id_.removeprefix("row-")) for id_ in ids]
    assert numbers == sorted(set(numbers))
    assert {json.loads(line)["custom_id"] for line in some} <= set(ids)
    # what was cancelled is what a retry asks
    output, _ = hpcserve("retry", batch_id)
    again = hpcserve.bodies(output.strip())
    assert again.keys() == {f"row-{n}" for n in range(1, 3001)} - set(ids)
    hpcserve("cancel", output.strip())


def test_only_failed_lines_are_tried_again(hpcserve: Shell) -> None:
    # the engine takes no negative number of tokens
    name = hpcserve.write(
        "some.jsonl",
        "".join(
            json.dumps(
                {
                    "custom_id": f"l{n}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {
                        "model": "m",
                        "messages": [{"role": "user", "content": "x"}],
                        "max_tokens": -1 if n % 2 else 2,
                    },
                }
            )
            + "\n"
            for n in range(6)
        ),
    )
    output, _ = hpcserve("submit", name, "--wait")
    batch_id = output.split()[0]
    assert "3 done, 3 failed" in output
    failed = hpcserve("results", batch_id, "--errors")[0].splitlines()
    assert [json.loads(line)["custom_id"] for line in failed] == ["l1", "l3", "l5"]
    output, _ = hpcserve("retry", batch_id)
    assert list(hpcserve.bodies(output.strip())) == ["l1", "l3", "l5"]
    assert hpcserve.site.batch(output.strip())["metadata"] == {"hpcserve.retry_of": batch_id}


def test_there_is_nothing_to_retry_of_a_batch_that_did_all(hpcserve: Shell) -> None:
    batch_id = submitted(hpcserve, 3, "--wait")
    _, errors = hpcserve("retry", batch_id, code=1)
    assert f"There is nothing to retry of {batch_id}: all its 3 requests were answered." in errors
