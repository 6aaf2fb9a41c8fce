"""What does a LLaMA-family decoder compute, written so that an exporter traces it into standard operators?

Module names follow the Hugging Face checkpoints, so that every parameter carries the name of its tensor on disk.
The batch is 1. Shapes below: S new tokens, P cached tokens, H heads, K key/value heads, D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjgc.models.config import DecoderConfig, inverse_frequencies


class Weight(nn.Module):
    """A matrix [N, K] and perhaps a bias [N], kept in the checkpoint's dtype, multiplied in float32."""

    def __init__(self, rows: int, columns: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(rows, dtype=dtype), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.float(), None if self.bias is None else self.bias.float())


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, epsilon: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.float(), self.epsilon)


class Attention(nn.Module):
    def __init__(self, c: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.heads, c.kv_heads, c.head_dim
        self.q_proj = Weight(c.heads * c.head_dim, c.hidden_size, c.qkv_bias, dtype)
        self.k_proj = Weight(c.kv_heads * c.head_dim, c.hidden_size, c.qkv_bias, dtype)
        self.v_proj = Weight(c.kv_heads * c.head_dim, c.hidden_size, c.qkv_bias, dtype)
        self.o_proj = Weight(c.hidden_size, c.heads * c.head_dim, c.output_bias, dtype)
        self.q_norm = RmsNorm(c.head_dim, c.norm_epsilon, dtype) if c.qk_norm else None
        self.k_norm = RmsNorm(c.head_dim, c.norm_epsilon, dtype) if c.qk_norm else None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q_proj(x).view(1, -1, self.heads, self.head_dim)
        k = self.k_proj(x).view(1, -1, self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(1, -1, self.kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = torch.onnx.ops.rotary_embedding(q.transpose(1, 2), cos, sin)
        k = torch.onnx.ops.rotary_embedding(k.transpose(1, 2), cos, sin)
        key = torch.cat((past_key, k), dim=2)
        value = torch.cat((past_value, v.transpose(1, 2)), dim=2)
        grouped = self.heads != self.kv_heads
        y = F.scaled_dot_product_attention(q, key, value, attn_mask=mask, enable_gqa=grouped)
        return self.o_proj(y.transpose(1, 2).reshape(1, -1, self.heads * self.head_dim)), key, value


class Mlp(nn.Module):
    def __init__(self, c: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj = Weight(c.intermediate_size, c.hidden_size, c.mlp_bias, dtype)
        self.up_proj = Weight(c.intermediate_size, c.hidden_size, c.mlp_bias, dtype)
        self.down_proj = Weight(c.hidden_size, c.intermediate_size, c.mlp_bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(c.hidden_size, c.norm_epsilon, dtype)
        self.self_attn = Attention(c, dtype)
        self.post_attention_layernorm = RmsNorm(c.hidden_size, c.norm_epsilon, dtype)
        self.mlp = Mlp(c, dtype)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, key, value = self.self_attn(self.input_layernorm(x), cos, sin, mask, past_key, past_value)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), key, value


class Stack(nn.Module):
    def __init__(self, c: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = Weight(c.vocab_size, c.hidden_size, False, dtype)
        self.layers = nn.ModuleList(Layer(c, dtype) for _ in range(c.layers))
        self.norm = RmsNorm(c.hidden_size, c.norm_epsilon, dtype)


class Decoder(nn.Module):
    """`forward(input_ids [1,S] int64, position_ids [1,S] int64, key_0, value_0, key_1, ... each [1,K,P,D] float32)`
    gives `(logits [1,S,V] float32, key_0, value_0, ... each [1,K,P+S,D] float32)`."""

    inverse_frequencies: Tensor

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.model = Stack(config, dtype)
        tied = config.tied_embeddings
        self.lm_head = None if tied else Weight(config.vocab_size, config.hidden_size, False, dtype)
        self.register_buffer("inverse_frequencies", torch.from_numpy(inverse_frequencies(config)), persistent=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        x = F.embedding(input_ids, self.model.embed_tokens.weight).float()
        angles = position_ids.unsqueeze(2).float() * self.inverse_frequencies
        cos, sin = angles.cos(), angles.sin()
        cached, new = past[0].shape[2], input_ids.shape[1]
        keys, queries = torch.arange(cached + new).unsqueeze(0), torch.arange(cached, cached + new).unsqueeze(1)
        mask = keys <= queries
        if self.config.window:
            mask = mask & (keys > queries - self.config.window)
        present: list[Tensor] = []
        for index, layer in enumerate(self.model.layers):
            x, key, value = layer(x, cos, sin, mask, past[2 * index], past[2 * index + 1])
            present += [key, value]
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return head(self.model.norm(x)), *present
