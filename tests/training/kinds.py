"""Small models of many kinds, as transformers makes them from a configuration alone, and a few steps of training."""

import hashlib
import math

import torch

from training import session

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_CONFIGS = {
    "llama": ("LlamaForCausalLM", _SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 64}),
    "gpt2": (
        "GPT2LMHeadModel",
        {
            "vocab_size": 64,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "bert": ("BertForMaskedLM", _SMALL | {"max_position_embeddings": 64}),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "vit": ("ViTForImageClassification", _SMALL | {"image_size": 16, "patch_size": 4, "num_labels": 3}),
    "mixtral": (
        "MixtralForCausalLM",
        _SMALL | {"num_key_value_heads": 2, "num_local_experts": 4, "max_position_embeddings": 64},
    ),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3},
    ),
}
KINDS = list(_CONFIGS)
"""Untied and tied heads, a shared embedding, experts, buffers that are trained along (ResNet's)."""


def class_of(kind):
    import transformers

    return getattr(transformers, _CONFIGS[kind][0])


def built(kind, *, seed=0):
    name, config = (
        class_of(kind),
        {key: value for key, value in _CONFIGS[kind][1].items() if key != "vocab_size" or kind != "vit"},
    )
    torch.manual_seed(seed)
    model = name(name.config_class(**config))
    with torch.no_grad():  # biases and norms begin as zeros and ones
        for own in model.parameters():
            own.add_(torch.randn_like(own) / 10)
    return model


def adapted(*, seed=0, adapter_seed=None):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(built("llama", seed=seed), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(100 + (seed if adapter_seed is None else adapter_seed))
    with torch.no_grad():
        for own in model.parameters():
            if own.requires_grad:
                own.copy_(torch.randn_like(own))
    return model


def train(model, steps, *, directory=None, run=None, opt=None):
    """A few steps that change every weight that is trained, in a session."""
    trained = [own for own in model.parameters() if own.requires_grad]
    opt = opt or torch.optim.SGD(trained, lr=0.1)
    run = run or session(model=model, opt=opt, directory=directory, snapshot_every_s=math.inf)
    for step in run.steps(steps):
        dice = torch.Generator().manual_seed(step)
        for own in trained:
            own.grad = torch.randn(own.shape, generator=dice).to(own.dtype)
        opt.step()
    return run


def same(one, two):
    """Whether two models have the same weights and buffers, bit for bit and type for type."""
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(
        value.dtype == two[name].dtype and torch.equal(value, two[name]) for name, value in one.items()
    )


def bits(model):
    whole = hashlib.sha256()
    for name, value in model.state_dict().items():
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        whole.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
