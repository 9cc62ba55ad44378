"""A checkpoint becomes a folder that transformers loads to the same bits, or is refused."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fabric.checkpoints import Checkpoints, DirectoryStore, commit_directory
from fabric.errors import CheckpointDamaged, Conflict, InvalidRequest, NotFound
from serving.replica.adapter_files import taken_over
from serving.replica.model_data import check_data
from tests.training.kinds import adapted, bits, built, class_of, same, train
from tests.training.workload import Attempts, running
from training import session
from training.demo.llama import Llama, Shape
from training.export import export, export_checkpoint, main
from training.gang.members import Gang, Seat
from training.pretrained import load_weights
from training.sharded import Sharded, state_of


def test_a_checkpoint_of_parts_is_put_together(tmp_path):
    """As `training.sharded` saves: it says nothing of what the model is, so a folder or the model itself does."""
    model = built("gpt2")
    opt = torch.optim.AdamW(model.parameters())
    model(torch.arange(8)[None]).logits.sum().backward()
    opt.step()
    checkpoints = Checkpoints(DirectoryStore(tmp_path / "run"), prefix="session", epoch=1)
    Sharded(checkpoints, Gang(Seat(), timeout_s=1.0)).save(4, state_of(model, opt))
    with pytest.raises(InvalidRequest) as refused:
        export_checkpoint(tmp_path / "run", tmp_path / "kept")
    assert refused.value.code == "model_unknown"
    assert export_checkpoint(checkpoints, tmp_path / "kept", model=built("gpt2", seed=9)) == 4
    assert same(class_of("gpt2").from_pretrained(tmp_path / "kept"), model)
    assert export_checkpoint(tmp_path / "run", tmp_path / "again", like=tmp_path / "kept") == 4
    assert same(class_of("gpt2").from_pretrained(tmp_path / "again"), model)


def test_older_steps_and_one_of_several_models_can_be_named(tmp_path):
    model, other = built("llama"), built("bert")
    opts = {"a": torch.optim.SGD(model.parameters(), lr=0.1), "b": torch.optim.SGD(other.parameters(), lr=0.1)}
    seen = []
    for steps in (1, 2):
        run = session(model={"a": model, "b": other}, opt=opts, directory=tmp_path / "run", snapshot_every_s=math.inf)
        for _ in run.steps(steps):
            for opt in opts.values():
                for own in opt.param_groups[0]["params"]:
                    own.grad = torch.ones_like(own)
                opt.step()
        seen.append((bits(model), bits(other)))
    with pytest.raises(InvalidRequest, match=r"it has model\.a, model\.b: say by name="):
        export_checkpoint(tmp_path / "run", tmp_path / "kept")
    with pytest.raises(NotFound, match="session 2"):
        export_checkpoint(tmp_path / "run", tmp_path / "kept", session=2, name="a")
    for number in (0, 1):
        assert export_checkpoint(tmp_path / "run", tmp_path / "kept", session=number, name="b") == number + 1
        assert bits(class_of("bert").from_pretrained(tmp_path / "kept")) == seen[number][1]
    with pytest.raises(NotFound) as refused:
        export_checkpoint(tmp_path / "run", tmp_path / "kept", step=7, name="a")
    assert refused.value.code == "no_such_checkpoint"


def test_a_model_of_ones_own_class_is_given(tmp_path):
    torch.manual_seed(1)
    model = Llama(Shape(vocabulary=259))
    train(model, 2, directory=tmp_path / "run")
    with pytest.raises(InvalidRequest) as refused:
        export_checkpoint(tmp_path / "run", tmp_path / "kept")
    assert refused.value.code == "model_unknown"
    export_checkpoint(tmp_path / "run", tmp_path / "kept", model=Llama(Shape(vocabulary=259)))
    theirs = class_of("llama").from_pretrained(tmp_path / "kept")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(Conflict) as another:
        export_checkpoint(tmp_path / "run", tmp_path / "kept", model=Llama(Shape(vocabulary=9)))
    assert another.value.code == "checkpoint_of_another_model"
    with pytest.raises(InvalidRequest) as none:
        export(nn.Linear(2, 2), tmp_path / "linear")
    assert none.value.code == "not_exportable"


def test_a_class_of_the_scripts_own_is_never_taken_for_another(tmp_path):
    theirs = class_of("llama")
    mine = type("LlamaForCausalLM", (theirs,), {"__module__": "__main__"})
    model = mine(built("llama").config)
    train(model, 2, directory=tmp_path / "run")
    export(model, tmp_path / "live")
    with pytest.raises(InvalidRequest) as refused:
        export_checkpoint(tmp_path / "run", tmp_path / "kept")
    assert refused.value.code == "model_unknown"
    export_checkpoint(tmp_path / "run", tmp_path / "kept", model=mine(model.config))
    for folder in ("live", "kept"):
        assert same(mine.from_pretrained(tmp_path / folder), model)


def test_an_average_of_weights_is_exported_as_the_model_that_it_is(tmp_path):
    model = built("llama")
    average = torch.optim.swa_utils.AveragedModel(model)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    run = session(model={"trained": model, "average": average}, opt=opt, directory=tmp_path / "run")
    for _ in run.steps(2):
        for own in model.parameters():
            own.grad = torch.ones_like(own)
        opt.step()
        average.update_parameters(model)
    export_checkpoint(tmp_path / "run", tmp_path / "kept", name="average")
    assert same(class_of("llama").from_pretrained(tmp_path / "kept"), average.module)


def test_what_can_not_be_written_is_refused_before_anything_is(tmp_path):
    (tmp_path / "file").write_text("mine")
    with torch.device("meta"):
        hollow = class_of("llama")(built("llama").config)
    for do, code in (
        (lambda: export(built("llama"), tmp_path / "file"), "not_a_folder"),
        (lambda: export(hollow, tmp_path / "kept"), "not_exportable"),
        (lambda: export(built("llama"), tmp_path / "kept", tokenizer=tmp_path / "gone"), "no_tokenizer"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            do()
        assert refused.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_checkpoint_is_never_exported(tmp_path):
    model = built("llama")
    train(model, 2, directory=tmp_path / "run")
    checkpoints = Checkpoints(DirectoryStore(tmp_path / "run"), prefix="session")
    for manifest in checkpoints.ls():
        for shard in manifest.shards:
            path = tmp_path / "run" / "session" / shard.key
            whole = path.read_bytes()
            path.chmod(0o600)
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointDamaged):
        export_checkpoint(tmp_path / "run", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_the_command_writes_the_folder_or_says_why_not(tmp_path, capsys):
    model = built("vit")
    train(model, 2, directory=tmp_path / "run")
    assert main([str(tmp_path / "run"), str(tmp_path / "kept"), "--step", "2"]) == 0
    assert capsys.readouterr().out == f"step 2 is in {tmp_path / 'kept'}\n"
    assert same(class_of("vit").from_pretrained(tmp_path / "kept"), model)
    capsys.readouterr()
    assert main([str(tmp_path / "nothing"), str(tmp_path / "kept")]) == 1
    assert capsys.readouterr().err.startswith("no_such_checkpoint: ")


@pytest.mark.parametrize("adapts", [False, True])
def test_a_trainers_own_folder_is_taken_without_what_only_it_needs(tmp_path, adapts):
    from transformers import Trainer, TrainingArguments

    from training.integrations.huggingface import train as train_hf

    model = adapted() if adapts else built("bert")
    samples = [{"input_ids": torch.arange(4), "labels": torch.arange(4)}] * 4
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, report_to=[], save_strategy="no",
        use_cpu=True,
    )  # fmt: skip
    train_hf(Trainer(model=model, args=args, train_dataset=samples), directory=tmp_path / "run")
    assert export_checkpoint(tmp_path / "run", tmp_path / "kept") == 2
    files = sorted(path.name for path in (tmp_path / "kept").iterdir())
    if adapts:
        assert files == ["adapter_config.json", "adapter_model.safetensors"]
        export(model, tmp_path / "live")
        weights = [load_file(tmp_path / folder / files[1]) for folder in ("kept", "live")]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    else:
        assert files == ["config.json", "model.safetensors"]
        assert same(class_of("bert").from_pretrained(tmp_path / "kept"), model)


def test_a_checkpoint_of_before_says_not_what_its_model_is(tmp_path):
    """One that was saved by a version that kept no configuration is exported with a folder that has it."""
    from training.state import saver

    model = built("llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saver, "kind_of", lambda _: None)
        train(model, 2, directory=tmp_path / "run")
    export(built("llama", seed=7), tmp_path / "base")
    with pytest.raises(InvalidRequest, match="--like"):
        export_checkpoint(tmp_path / "run", tmp_path / "kept")
    export_checkpoint(tmp_path / "run", tmp_path / "kept", like=tmp_path / "base")
    assert same(class_of("llama").from_pretrained(tmp_path / "kept"), model)


def test_a_checkpoint_makes_no_class_but_those_of_transformers(tmp_path):
    from training.state.model_kind import empty

    said = {"config": json.dumps({"auto_map": {"AutoModel": "evil.Model"}}), "generation": "", "adapters": {}}
    for name in ("AutoTokenizer", "os", "Trainer", "__builtins__", "NoSuchModel"):
        with pytest.raises(InvalidRequest) as refused:
            empty(said | {"class": name})
        assert refused.value.code == "model_unknown"


def test_an_exported_folder_can_begin_another_run(tmp_path):
    model = built("llama")
    train(model, 2, directory=tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "kept")
    other = built("llama", seed=3)
    load_weights(other, tmp_path / "kept")
    assert same(model, other)


def test_a_job_exports_what_its_context_has_kept(tmp_path):
    """Also while the folder of its command is kept beside it, and out of the archive's directory."""
    attempts = Attempts(tmp_path / "archive")
    with running(attempts.next()) as job:
        model = built("llama")
        train(model, 2)
        (tmp_path / "command").mkdir()
        (tmp_path / "command" / "log.txt").write_text("nothing of a model")
        commit_directory(job.checkpoints, tmp_path / "command", step=3)
        assert export_checkpoint(job.checkpoints, tmp_path / "kept") == 2
    assert same(class_of("llama").from_pretrained(tmp_path / "kept"), model)
    said = [str(tmp_path / "archive"), str(tmp_path / "again"), "--prefix", "jobs/ada/j/checkpoint", "--step", "2"]
    assert main(said) == 0
    assert same(class_of("llama").from_pretrained(tmp_path / "again"), model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "archive", "command", "kept"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_what_is_exported_is_taken_by_who_serves_it(tmp_path, kind):
    export(built(kind), tmp_path / kind, shard_bytes_max=20_000)
    assert check_data(tmp_path / kind) == tmp_path / kind
    export(built("llama"), tmp_path / "base")
    export(adapted(), tmp_path / "adapter")
    taken = taken_over(
        tmp_path / "adapter", name="a", parent="base", base=tmp_path / "base", rank_max=8, cache=tmp_path / "cache"
    )
    assert (taken / "adapter_model.safetensors").exists()
