"""The forward pass of the BERT family for a cross-encoder, in which the last layer computes the first token alone.

A sequence classifier reads nothing but the first token's last hidden state, so in the last layer only that token needs
a query, an output projection and a feed-forward: the same logit for one layer's work less. What attends to what is the
business of a *layout*, so that the same pass runs over padded rows and over packed tokens.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

VariableLengthAttention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]


class Layout(Protocol):
    """How the tokens of a batch lie in a tensor [..., H]; heads are split as [..., heads, H / heads]."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Every token attends to every token of its own pair."""
        ...

    def attend_first(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The first token of each pair attends to every token of its pair; ``query`` comes from :meth:`first`."""
        ...

    def first(self, hidden: Tensor) -> Tensor:
        """The first token of each pair."""
        ...


class PaddedLayout:
    """Pairs as rows [B, L, ...] of one width.

    Args:
        mask: bool [B, L], true where there is a token.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask[:, None, None, :]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See :class:`Layout`."""
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        return scaled_dot_product_attention(query, key, value, attn_mask=self.mask).transpose(1, 2)

    def attend_first(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See :class:`Layout`."""
        return self.attend(query, key, value)

    def first(self, hidden: Tensor) -> Tensor:
        """See :class:`Layout`; [B, 1, H]."""
        return hidden[:, :1]


class PackedLayout:
    """Pairs one after another [T, ...], without padding.

    Args:
        offsets: int32 [B + 1]; pair i has the tokens ``offsets[i]`` to ``offsets[i + 1]``.
        longest: tokens of the longest pair.
        attention: (query [Tq, h, d], key [Tk, h, d], value, query offsets, key offsets, longest query, longest key)
            -> [Tq, h, d]; torch's ``varlen_attn`` on CUDA.
    """

    def __init__(self, offsets: Tensor, longest: int, attention: VariableLengthAttention) -> None:
        self.offsets = offsets
        self.longest = longest
        self.attention = attention

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See :class:`Layout`."""
        return self.attention(query, key, value, self.offsets, self.offsets, self.longest, self.longest)

    def attend_first(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See :class:`Layout`."""
        single = torch.arange(len(self.offsets), dtype=self.offsets.dtype, device=self.offsets.device)
        return self.attention(query, key, value, single, self.offsets, 1, self.longest)

    def first(self, hidden: Tensor) -> Tensor:
        """See :class:`Layout`; [B, H]."""
        return hidden[self.offsets[:-1].long()]


class BertPairForward(nn.Module):
    """Logits of a BERT, RoBERTa or XLM-RoBERTa sequence classifier with one output.

    Args:
        model: a model for which :meth:`supports` holds; its weights are shared, but for query, key and value, which
            are merged into one matrix.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        backbone = _backbone(model)
        config = model.config
        embeddings = backbone.embeddings
        self.words = embeddings.word_embeddings
        self.places = embeddings.position_embeddings
        self.types = embeddings.token_type_embeddings
        self.norm = embeddings.LayerNorm
        # RoBERTa counts positions from the padding token's id + 1.
        self.first_place = 0 if config.model_type == "bert" else int(config.pad_token_id) + 1
        heads = int(config.num_attention_heads)
        self.layers = nn.ModuleList(_Layer(layer, heads) for layer in backbone.encoder.layer)
        if config.model_type == "bert":
            self.head = nn.Sequential(backbone.pooler.dense, nn.Tanh(), model.classifier)
        else:
            self.head = nn.Sequential(model.classifier.dense, nn.Tanh(), model.classifier.out_proj)

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether this pass computes what ``model`` does."""
        config = model.config
        if type(model).__name__ not in {
            "BertForSequenceClassification",
            "RobertaForSequenceClassification",
            "XLMRobertaForSequenceClassification",
            "CamembertForSequenceClassification",
        }:
            return False
        absolute = getattr(config, "position_embedding_type", None) in (None, "absolute")
        return absolute and not getattr(config, "is_decoder", False)

    def forward(self, ids: Tensor, places: Tensor, types: Tensor | None, layout: Layout) -> Tensor:
        """Logits float [B].

        Args:
            ids: token ids, [B, L] or [T].
            places: position of each token in its pair, from 0; broadcastable to ``ids``.
            types: token types; ``None`` where the tokenizer knows none.
            layout: how the tokens lie.
        """
        kinds = self.types.weight[0] if types is None else self.types(types)
        hidden = self.norm(self.words(ids) + kinds + self.places(places + self.first_place))
        for layer in self.layers[:-1]:
            hidden = layer(hidden, layout)
        last: Any = self.layers[-1]
        # The head may have more bits than the layers, so that close scores stay apart.
        logits: Tensor = self.head(last.first(hidden, layout).to(self.head[0].weight.dtype))
        return logits.reshape(-1)


class _Layer(nn.Module):
    def __init__(self, layer: Any, heads: int) -> None:
        super().__init__()
        attention = layer.attention
        parts = (attention.self.query, attention.self.key, attention.self.value)
        self.heads = heads
        self.width = int(parts[0].out_features)
        self.merged = nn.Linear(parts[0].in_features, 3 * self.width)
        with torch.no_grad():
            self.merged.weight.copy_(torch.cat([part.weight for part in parts]))
            self.merged.bias.copy_(torch.cat([part.bias for part in parts]))
        self.output, self.output_norm = attention.output.dense, attention.output.LayerNorm
        self.up, self.activation = layer.intermediate.dense, layer.intermediate.intermediate_act_fn
        self.down, self.down_norm = layer.output.dense, layer.output.LayerNorm

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        query, key, value = (self._heads(part) for part in torch.split(self.merged(hidden), self.width, dim=-1))
        return self._rest(hidden, layout.attend(query, key, value))

    def first(self, hidden: Tensor, layout: Layout) -> Tensor:
        """The same for the first token of each pair."""
        first = layout.first(hidden)
        weight, bias = self.merged.weight, self.merged.bias
        query = nn.functional.linear(first, weight[: self.width], bias[: self.width])
        rest = nn.functional.linear(hidden, weight[self.width :], bias[self.width :])
        key, value = torch.split(rest, self.width, dim=-1)
        return self._rest(first, layout.attend_first(self._heads(query), self._heads(key), self._heads(value)))

    def _heads(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(*tensor.shape[:-1], self.heads, self.width // self.heads)

    def _rest(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = self.output_norm(self.output(attended.flatten(-2)) + hidden)
        return self.down_norm(self.down(self.activation(self.up(hidden))) + hidden)  # type: ignore[no-any-return]


def _backbone(model: Any) -> Any:
    return model.bert if model.config.model_type == "bert" else model.roberta
