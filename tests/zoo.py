"""Small models with saved values that are hard to move, each as a function of a seed.

Every entry returns (module, inputs); `module(*inputs)` is a scalar loss, and inputs are fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Case = tuple[nn.Module, tuple[Any, ...]]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 8)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().mean()


class TanhLayers(nn.Module):
    """Layers that each save one activation as large as their input. Not one of CASES."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x.square().mean()


class Attention(nn.Module):
    """q, k and v are three chunks of one projection; SDPA returns several tensors."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.project = nn.Linear(32, 96)
        self.output = nn.Linear(32, 32)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, 4, width // 4).transpose(1, 2)
            for part in self.project(self.norm(x)).chunk(3, -1)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = self.output(y.transpose(1, 2).reshape(batch, length, width))
        return functional.dropout(x + y, self.dropout).sin().sum()


class Views(nn.Module):
    """Square transpose, overlapping and strided slices, expand, all of one activation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        h = self.weight(x).tanh()
        square = h @ h.t()
        slices = (h[:, :20].exp() * h[:, 12:].cos()).sum()
        strided = (h[:, ::2].exp() * h[:, 1::2].sin()).sum()
        row = self.weight(x[0]).sigmoid()
        expanded = (row.expand(32, 32) * h.exp()).sin()
        return square.sin().sum() + slices + strided + expanded.sum()


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.hidden = nn.Linear(32, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.hidden(self.embedding(tokens)).relu()
        logits = h @ self.embedding.weight.t()
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3),
            nn.GELU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(8 * 6 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)).square().mean()


class Masked(nn.Module):
    """Saves a bool mask, int64 indices and a complex spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        h = self.weight(x)
        masked = h.masked_fill(h > h.roll(1, 0), 0.5).exp()
        gathered = h.gather(1, h.argsort(1)).sin()
        spectrum = torch.fft.rfft(masked)
        return masked.sum() + gathered.sum() + (spectrum * spectrum.conj()).real.mean()


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x).float().square().sum()


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.25), nn.Linear(64, 32), nn.Dropout(0.25)
        self.first = nn.Sequential(*layers)
        self.second = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.utils.checkpoint.checkpoint(self.first, x, use_reentrant=False)
        return self.second(x).sin().sum()


class GraphBreak(nn.Module):
    """Two graphs: the second gets an activation of the first as an input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).exp().sin()
        torch._dynamo.graph_break()
        return (self.second(h) * h.cos()).tanh().sum()


def make_tokens(batch: int = 2, length: int = 16, vocabulary: int = 50) -> Tensor:
    return torch.randint(0, vocabulary, (batch, length))


class HuggingFace(nn.Module):
    """A transformers model with labels, as a function of its token ids."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, labels=tokens).loss


def make_gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, use_cache=False,
        bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM",
    )  # fmt: skip
    return HuggingFace(GPT2LMHeadModel(config)), (make_tokens(),)


def make_bert() -> Case:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    return HuggingFace(BertForMaskedLM(config)), (make_tokens(),)


def make_t5() -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=1,
        num_heads=2, use_cache=False, decoder_start_token_id=0,
    )  # fmt: skip
    return HuggingFace(T5ForConditionalGeneration(config)), (make_tokens(),)


def make_llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16, use_cache=False,
    )  # fmt: skip
    return HuggingFace(LlamaForCausalLM(config)), (make_tokens(),)


CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: (Mlp(), (torch.randn(16, 24),)),
    "attention": lambda: (Attention(), (torch.randn(2, 16, 32),)),
    "dropout": lambda: (Attention(dropout=0.5), (torch.randn(2, 16, 32),)),
    "views": lambda: (Views(), (torch.randn(32, 32),)),
    "tied_head": lambda: (TiedHead(), (make_tokens(4, 12),)),
    "conv": lambda: (ConvNet(), (torch.randn(2, 3, 16, 16),)),
    "masked": lambda: (Masked(), (torch.randn(32, 32),)),
    "autocast": lambda: (Autocast(), (torch.randn(16, 32),)),
    "checkpoint": lambda: (Checkpointed(), (torch.randn(16, 32),)),
    "graph_break": lambda: (GraphBreak(), (torch.randn(16, 32),)),
    "gpt2": make_gpt2,
    "bert": make_bert,
    "t5": make_t5,
    "llama": make_llama,
}
