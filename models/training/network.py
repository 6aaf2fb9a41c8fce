"""What is trained: the LLaMA network over a batch, with dropout, its tensors named as Hugging Face names them?

`models/llama.py` is the same network for a batch of one with a cache; both read one checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjgc.models.config import DecoderConfig, inverse_frequencies

INITIAL_DEVIATION = 0.02


class Attention(nn.Module):
    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.heads, c.kv_heads, c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: DecoderConfig, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.hidden_size, c.norm_epsilon)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, c.norm_epsilon)
        self.mlp = Mlp(c)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Stack(nn.Module):
    def __init__(self, c: DecoderConfig, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, dropout) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden_size, c.norm_epsilon)
        self.dropout = nn.Dropout(dropout)


class TrainableDecoder(nn.Module):
    """`forward(ids [B,S] int64)` gives logits [B,S,V]: causal, no cache, embeddings tied."""

    def __init__(self, config: DecoderConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.model = Stack(config, dropout)
        self.inverse_frequencies: Tensor
        self.register_buffer("inverse_frequencies", torch.from_numpy(inverse_frequencies(config)), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                narrow = name.endswith(("o_proj.weight", "down_proj.weight"))  # they write to the residual stream
                deviation = INITIAL_DEVIATION / (2 * config.layers) ** 0.5 if narrow else INITIAL_DEVIATION
                nn.init.normal_(parameter, std=deviation)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.model.dropout(self.model.embed_tokens(ids))
        positions = torch.arange(ids.shape[1], device=ids.device)
        angles = torch.outer(positions.float(), self.inverse_frequencies)
        cos, sin = angles.cos(), angles.sin()
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: the pair (x[i], x[i + D/2]) turns by the angle of its frequency."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
