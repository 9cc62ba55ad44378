"""Where the best model of a Hugging Face trainer is, on another node than it was saved on: nothing else passes for it."""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from training.integrations.huggingface import _bring_back_best, _take_best_along, callback_of

needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="it is not installed")


def saved(folder, *, step, best=None, weights="weights"):
    """A checkpoint as `Trainer` writes it."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(weights)
    (folder / "optimizer.pt").write_text("moments")
    state = {"global_step": step, "best_model_checkpoint": best, "best_metric": 0.5, "best_global_step": 4}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def best_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())["best_model_checkpoint"]


def test_weights_of_another_step_never_pass_for_the_best(tmp_path, capsys):
    """As saved before the best model was kept along: it is gone with its node."""
    resumed = saved(tmp_path / "out" / "checkpoint-fabric", step=7, best="/gone/checkpoint-4", weights="of step 7")
    _bring_back_best(resumed, tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint-4").exists()
    assert best_of(resumed) is None
    assert "checkpoint-4" in capsys.readouterr().err


@pytest.mark.parametrize("along", [True, False])
def test_the_best_is_what_was_kept_along_or_the_resumed_step_itself(tmp_path, along):
    resumed = saved(tmp_path / "out" / "checkpoint-fabric", step=8, best="/gone/checkpoint-8", weights="of step 8")
    if along:
        saved(resumed / "fabric-best", step=8, weights="of step 8")
    _bring_back_best(resumed, tmp_path / "out")
    assert best_of(resumed) == str(tmp_path / "out" / "checkpoint-8")
    assert (tmp_path / "out" / "checkpoint-8" / "model.safetensors").read_text() == "of step 8"


def test_all_ranks_of_a_node_may_bring_the_best_back_at_once(tmp_path):
    resumed = saved(tmp_path / "out" / "checkpoint-fabric", step=9, best="/gone/checkpoint-4")
    for at in range(200):
        (resumed / "fabric-best" / f"part-{at}").mkdir(parents=True)
        (resumed / "fabric-best" / f"part-{at}" / "weights").write_text("whole")
    with ThreadPoolExecutor(8) as ranks:
        list(ranks.map(lambda _rank: _bring_back_best(resumed, tmp_path / "out"), range(8)))
    place = tmp_path / "out" / "checkpoint-4"
    assert best_of(resumed) == str(place)
    assert sorted(path.name for path in place.parent.iterdir()) == ["checkpoint-4", "checkpoint-fabric"]
    assert {path.read_text() for path in place.glob("part-*/weights")} == {"whole"}
    assert len(list(place.iterdir())) == 200


def test_what_is_taken_along_is_linked_and_not_copied(tmp_path):
    best = saved(tmp_path / "checkpoint-4", step=4)
    folder = saved(tmp_path / "checkpoint-7", step=7, best=str(best))
    _take_best_along(folder, str(best))
    assert (folder / "fabric-best" / "model.safetensors").samefile(best / "model.safetensors")
    assert not (folder / "fabric-best" / "optimizer.pt").exists()


@needs_transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("is_kept", "rank", "is_first", "takes"),
    [(True, 0, True, True), (True, 1, True, False), (True, 0, False, False), (False, 0, True, False)],
)
def test_one_rank_takes_the_best_along_and_commits(tmp_path, is_kept, rank, is_first, takes):
    best = saved(tmp_path / "checkpoint-4", step=4)
    folder, kept = saved(tmp_path / "checkpoint-7", step=7, best=str(best)), []
    run = SimpleNamespace(
        is_kept=is_kept, job=SimpleNamespace(rank=rank), leave_if_asked=lambda: None,
        keep=lambda folder, *, step: kept.append(step),
    )  # fmt: skip
    state = SimpleNamespace(global_step=7, best_model_checkpoint=str(best), is_world_process_zero=is_first)
    callback_of(run).on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
    assert (folder / "fabric-best").exists() is takes
    assert kept == ([7] if takes else [])
