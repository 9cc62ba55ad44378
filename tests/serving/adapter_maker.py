"""LoRA adapters for the small model of the tests, in the form that peft saves."""

import json

import numpy as np
from safetensors.numpy import save_file

MODULES = ("q_proj", "v_proj")


def make_adapter(
    place, *, model=None, rank=4, said=None, seed=1, strength=1.0, without=(), more=None, width=None, **config
):
    """A folder with an adapter of `rank`; its configuration says `said`, where that is another."""
    place.mkdir(parents=True, exist_ok=True)
    shape = json.loads((model / "config.json").read_text()) if model else {"hidden_size": 8, "num_hidden_layers": 1}
    hidden, rng = width or shape["hidden_size"], np.random.default_rng(seed)
    heads = shape.get("num_attention_heads", 1)
    out = {
        "q_proj": hidden,
        "v_proj": hidden * shape.get("num_key_value_heads", heads) // heads,
    }
    tensors = {}
    for layer in range(shape["num_hidden_layers"]):
        for module in MODULES:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = rng.normal(size=(rank, hidden), scale=strength).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = rng.normal(size=(out[module], rank), scale=strength).astype(np.float32)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in without} | (more or {})
    save_file(tensors, place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank if said is None else said, "lora_alpha": 8,
                "target_modules": list(MODULES), "bias": "none", "modules_to_save": None, **config,
            }
        )
    )  # fmt: skip
    return place
