"""A Llama in plain torch: RMSNorm, rotary positions, SwiGLU; causal, any length up to its context.

The same arithmetic and the same names of weights as Hugging Face's `LlamaForCausalLM`, so that what was trained here is
served by any engine that knows Llama (`training.demo.llama_export` writes the folder; a test compares the logits). It knows
neither data nor training.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a model: `width` = `heads` × head size; `inner` is the width within the feed-forward part."""

    vocabulary: int
    width: int = 96
    inner: int = 256
    layers: int = 2
    heads: int = 3
    context: int = 1024
    theta: float = 10_000.0
    epsilon: float = 1e-6

    @property
    def head_size(self) -> int:
        return self.width // self.heads


class Llama(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """Logits of the next token from the tokens before. `state_dict()` has Hugging Face's names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Body(shape)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        frequencies = shape.theta ** -(torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size)
        angles = torch.outer(torch.arange(shape.context, dtype=torch.float32), frequencies)
        turned = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", turned.cos(), persistent=False)
        self.register_buffer("sin", turned.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, length, vocabulary) from token ids (batch, length ≤ context)."""
        length = tokens.shape[1]
        return self.lm_head(self.model(tokens, self.cos[:length], self.sin[:length]))

    def begin(self, *, std: float = 0.05) -> None:
        """Draw the first weights from torch's generator: those that write into the stream smaller, by its depth."""
        for name, weight in self.named_parameters():
            if name == "lm_head.weight":
                nn.init.normal_(weight, std=std / 5)
            elif weight.dim() > 1:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=std / math.sqrt(2 * self.shape.layers) if writes else std)


class _Body(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = _RmsNorm(shape)

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        state = self.embed_tokens(tokens)
        for layer in self.layers:
            state = layer(state, cos, sin)
        return self.norm(state)


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = _RmsNorm(shape), _RmsNorm(shape)
        self.self_attn, self.mlp = _Attention(shape), _FeedForward(shape)

    def forward(self, state: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        state = state + self.self_attn(self.input_layernorm(state), cos, sin)
        return state + self.mlp(self.post_attention_layernorm(state))


class _Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._heads = shape.heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(shape.width, shape.width, bias=False) for _ in range(4)
        )

    def forward(self, state: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = state.shape
        query, key, value = (
            project(state).view(batch, length, self._heads, width // self._heads).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = _turned(query, cos, sin), _turned(key, cos, sin)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(seen.transpose(1, 2).reshape(batch, length, width))


class _FeedForward(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(shape.width, shape.inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(shape.inner, shape.width, bias=False)

    def forward(self, state: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(state)) * self.up_proj(state))


class _RmsNorm(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.width))
        self._epsilon = shape.epsilon

    def forward(self, state: Tensor) -> Tensor:
        return self.weight * state * torch.rsqrt(state.square().mean(-1, keepdim=True) + self._epsilon)


def _turned(state: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: each pair (i, i + half) turned by its position's angle."""
    left, right = state.chunk(2, dim=-1)
    return state * cos + torch.cat((-right, left), dim=-1) * sin
