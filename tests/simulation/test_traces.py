"""Traces of every kind are read, and what is no trace is one sentence."""

import gzip
import tarfile
from io import BytesIO

import pytest

from hpcserve.errors import RequestError
from hpcserve.sim.traces import read_idle, read_rates, read_requests, read_waits


def test_azure(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )
    first, second = read_requests(path)
    assert (first.arrived_s, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.arrived_s == pytest.approx(4.314579)


def test_mooncake(tmp_path):
    path = tmp_path / "mooncake.jsonl"
    path.write_text(
        '{"timestamp": 3000, "input_length": 10, "output_length": 5, "hash_ids": [1]}\n'
        '{"timestamp": 1000, "input_length": 20, "output_length": 6, "hash_ids": []}\n'
    )
    assert [(r.arrived_s, r.prompt_tokens) for r in read_requests(path)] == [(0.0, 20), (2.0, 10)]


def test_ones_own_requests_and_idle_gpus(tmp_path):
    requests, idle = tmp_path / "r.csv", tmp_path / "i.csv"
    requests.write_text("arrived_s,prompt_tokens,output_tokens,user\n5,1,2,a\n7,3,0,b\n")
    idle.write_text("time_s,idle_gpus\n0,4\n60,4\n120,1\n")
    assert [(r.arrived_s, r.output_tokens) for r in read_requests(requests)] == [(0, 2), (2, 1)]
    series = read_idle(idle)
    assert (series.times_s, series.period_s) == ((0.0, 120.0), 180.0)
    assert [series.at(t) for t in (0, 119, 120, 185)] == [4, 4, 1, 4]


def test_helios(tmp_path):
    path = tmp_path / "vc.csv.gz"
    rows = "time,idle_gpu_num,other\n2020-05-01 00:00:00,1,9\n2020-05-01 00:01:00,5,9\n"
    path.write_bytes(gzip.compress(rows.encode()))
    assert read_idle(path).at(61) == 5


def test_servegen_adds_its_clients(tmp_path):
    path = tmp_path / "servegen.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for n, rate in enumerate((1.5, 2.0)):
            raw = f"0,{rate},1.0,Gamma,1,1\n600,0,0,,0,0\n".encode()
            info = tarfile.TarInfo(f"language/m-small/chunk-{n}-trace.csv")
            info.size = len(raw)
            archive.addfile(info, BytesIO(raw))
    assert read_rates(path) == ((600.0, 3.5), (600.0, 0.0))
    with pytest.raises(RequestError, match="no ServeGen workload 'm-huge'"):
        read_rates(path, "m-huge")


def test_rates_by_second(tmp_path):
    path = tmp_path / "rates.txt"
    path.write_text("157\n158\n")
    assert read_rates(path) == ((1.0, 157.0), (1.0, 158.0))


def test_swf(tmp_path):
    path = tmp_path / "log.swf"
    line = "{n} 0 {wait} 100 4 -1 -1 4 {limit} -1 1 1 1 1 1 -1 -1 -1\n"
    path.write_text(
        "; Version: 2.2\n"
        + "".join(line.format(n=n, wait=60 * n, limit=7200) for n in range(1, 11))
        + line.format(n=11, wait=-1, limit=-1)
    )
    wait = read_waits(path)
    assert (wait.p50_s, wait.p90_s, wait.limit_s) == (360.0, 600.0, 7200.0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must name the columns"),
        ("a,b\n1,2\n", "must name the columns"),
        ("arrived_s,prompt_tokens,output_tokens\n1,2,x\n", "line 2: this is no row"),
        ("arrived_s,prompt_tokens,output_tokens\n", "no requests"),
        ('{"timestamp": 1}\n', "line 1: this is no row"),
    ],
)
def test_what_is_no_trace_is_one_sentence(tmp_path, text, why):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(RequestError) as caught:
        read_requests(path)
    assert why in caught.value.message
    assert caught.value.message.startswith(str(path))


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        read_requests(tmp_path / "nowhere.csv")
