"""Load as others make it: vLLM's own benchmark client, and an hour of Azure's conversations, through gateway and meter."""

import csv
import datetime as dt
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.gateway.test_live_gateway import front

__all__ = ["front"]
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

TRACES = Path(os.environ.get("TOKEN_FABRIC_TRACES") or Path(__file__).parents[4] / "shared" / "traces")
AZURE = TRACES / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv.gz"
MODULE = (
    "from vllm.benchmarks.serve import add_cli_args, main; from vllm.utils.argparse_utils import FlexibleArgumentParser as P;"
    "parser = P(); add_cli_args(parser); main(parser.parse_args())"
)


def bench(front, model_folder, out, *arguments):
    """`vllm bench serve`, as a module: its command needs a package called vllm."""
    command = [
        sys.executable, "-c", MODULE, "--backend", "openai", "--base-url", front.url, "--endpoint", "/v1/completions",
        "--model", "byte-lm", "--tokenizer", str(model_folder), "--save-result", "--save-detailed", "--result-dir", str(out),
        "--result-filename", "result.json", "--disable-tqdm", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OPENAI_API_KEY": front.key, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    return json.loads((out / "result.json").read_text())


def azure(most, *, shrink, hurry):
    """The first requests of the trace, with lengths and times divided: (seconds, prompt tokens, completion tokens)."""
    if not AZURE.exists():
        pytest.skip(f"Azure's trace is not in {AZURE.parent}: set TOKEN_FABRIC_TRACES to where your copy of it is")
    with gzip.open(AZURE) as packed:
        rows = csv.DictReader(io.TextIOWrapper(packed))
        first = None
        for row, _ in zip(rows, range(most), strict=False):
            at = dt.datetime.fromisoformat(row["TIMESTAMP"][:26])
            first = first or at
            yield (
                (at - first).total_seconds() / hurry,
                max(1, int(row["ContextTokens"]) // shrink),
                max(1, int(row["GeneratedTokens"]) // shrink),
            )


@pytest.mark.soak
def test_vllms_benchmark_client_runs_through_without_an_error(rig, front, model_folder, tmp_path):
    found = bench(
        front, model_folder, tmp_path, "--dataset-name", "random", "--random-input-len", "32", "--random-output-len", "16",
        "--num-prompts", "40", "--max-concurrency", "8", "--ignore-eos",
    )  # fmt: skip
    assert (found["completed"], found["total_output_tokens"]) == (40, 640)


@pytest.mark.soak
def test_an_hour_of_azures_conversations_scaled_down_runs_through_without_an_error(rig, front, model_folder, tmp_path):
    trace = tmp_path / "trace.jsonl"
    asked = list(azure(80, shrink=16, hurry=4))
    lines = [
        {
            "timestamp": at,
            "input_length": prompt,
            "output_length": completion,
            "hash_ids": list(range(n * 100, n * 100 + 40)),
        }
        for n, (at, prompt, completion) in enumerate(asked)
    ]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = bench(
        front, model_folder, tmp_path, "--dataset-name", "timed_trace", "--dataset-path", str(trace), "--self-timed",
        "--num-prompts", str(len(asked)), "--ignore-eos",
    )  # fmt: skip
    assert found["completed"] == len(asked)
    assert found["total_output_tokens"] == sum(completion for _, _, completion in asked)
