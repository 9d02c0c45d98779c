"""BERT in PyTorch for the case `minilm`, and the names that its published weights have."""

from typing import Any


def bert() -> Any:
    """BERT's encoder with mean pooling and unit length, after Devlin et al. 2019; untrained."""
    import torch
    from torch import nn
    from torch.nn import functional

    width, heads, layers, words, places = 384, 12, 6, 30522, 512

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
            self.mixed, self.after = nn.Linear(width, width), nn.LayerNorm(width, 1e-12)
            self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.end = nn.LayerNorm(width, 1e-12)

        def forward(self, x: Any, mask: Any) -> Any:
            n, length, _ = x.shape

            def split(y: Any) -> Any:
                return y.view(n, length, heads, width // heads).transpose(1, 2)

            q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
            a = torch.softmax(q @ k.transpose(-1, -2) / (width // heads) ** 0.5 + mask, -1)
            a = (a @ v).transpose(1, 2).reshape(n, length, width)
            x = self.after(x + self.mixed(a))
            return self.end(x + self.narrow(functional.gelu(self.wide(x))))

    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(words, width)
            self.places = nn.Embedding(places, width)
            self.kinds = nn.Embedding(2, width)
            self.norm = nn.LayerNorm(width, 1e-12)
            self.layers = nn.ModuleList(Layer() for _ in range(layers))

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            mask = (1 - attention_mask[:, None, None].float()) * torch.finfo(torch.float32).min
            places = self.places(torch.arange(input_ids.shape[1]))
            x = self.norm(self.words(input_ids) + places + self.kinds.weight[0])
            for layer in self.layers:
                x = layer(x, mask)
            kept = attention_mask[..., None].float()
            return functional.normalize((x * kept).sum(1) / kept.sum(1), dim=-1)

    return Bert().eval()


_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "mixed": "attention.output.dense",
    "after": "attention.output.LayerNorm",
    "wide": "intermediate.dense",
    "narrow": "output.dense",
    "end": "output.LayerNorm",
    "words": "word_embeddings",
    "places": "position_embeddings",
    "kinds": "token_type_embeddings",
    "norm": "LayerNorm",
}


def names_of(net: Any) -> dict[str, str]:
    """Names in the published file by names here."""
    found = {}
    for name in net.state_dict():
        *front, part, kind = name.split(".")
        where = f"encoder.layer.{front[1]}" if front else "embeddings"
        found[name] = f"{where}.{_PARTS[part]}.{kind}"
    return found
