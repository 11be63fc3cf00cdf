"""The example task of lm-evaluation-harness, and the harness itself where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import pytest
import yaml
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from dlm_sglang.bundled.tasks import split_of
from dlm_sglang.errors import SettingsError
from dlm_sglang.measure.client import RequestRefused, ServerGone
from dlm_sglang.measure.harness import _scores, _told_as_ours
from tests.unit.measure.conftest import FakeServer

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "examples" / "lm_eval"


def test_the_example_task_has_held_out_questions_and_local_data() -> None:
    task = yaml.safe_load((FOLDER / "bundled_tasks.yaml").read_text(encoding="utf-8"))
    (data_file,) = task["dataset_kwargs"]["data_files"].values()
    documents = [json.loads(line) for line in (ROOT / data_file).read_text(encoding="utf-8").splitlines()]
    assert len(documents) >= 30
    assert all(split_of(document["question"]) == "held-out" and document["answer"] for document in documents)


def test_scores_are_hits_by_document_in_order() -> None:
    samples = {
        "b": [{"doc_id": 1, "exact_match": 0.0, "resps": [["x"]]}, {"doc_id": 0, "exact_match": 1.0, "resps": [["y"]]}],
        "a": [{"doc_id": 0, "acc": True, "resps": [["z"]]}],
    }
    found = _scores(samples)
    assert (found["hits"], found["by_task"]) == ("110", {"a": 1.0, "b": 0.5})
    with pytest.raises(SettingsError, match="none of the scores"):
        _scores({"c": [{"doc_id": 0, "bleu": 0.3, "resps": [["x"]]}]})


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is optional and not installed")
def test_the_harness_asks_our_server_and_its_costs_are_ours(fake: FakeServer, tmp_path: Path) -> None:
    argv = ["eval", "--url", fake.url, "--tasks", "nld_bundled", "--include-path", str(FOLDER), "--prompts", "4"]
    argv += ["--modes", "ar", "self_speculation", "--block-lengths", "16", "--json", "--out", str(tmp_path / "e.jsonl")]
    # A process of its own: the harness warns a lot while it is loaded.
    done = subprocess.run(
        [sys.executable, "-m", "dlm_sglang.cli.main", *argv],
        cwd=ROOT,
        env={**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [row["numbers"]["tpf"] for row in rows] == [1.0, 1.25]
    assert [row["accuracy"] for row in rows] == [0.0, 0.0]
    assert fake.bodies[-1]["block_length"] == 16
    assert len(fake.bodies) == 8


def test_failures_of_its_client_are_told_as_ours() -> None:
    def response_error(status: int) -> aiohttp.ClientResponseError:
        info = aiohttp.RequestInfo(URL("http://x"), "POST", CIMultiDictProxy(CIMultiDict()), URL("http://x"))
        return aiohttp.ClientResponseError(info, (), status=status, message="no")

    with pytest.raises(RequestRefused, match="400"), _told_as_ours("http://x"):
        raise response_error(400)
    with pytest.raises(ServerGone, match="503"), _told_as_ours("http://x"):
        raise response_error(503)
    with pytest.raises(ServerGone, match="stopped"), _told_as_ours("http://x"):
        raise aiohttp.ServerDisconnectedError
