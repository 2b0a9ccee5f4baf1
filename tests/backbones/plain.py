"""The networks spelt out, on parameters in the order in which layers take them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Parameters = Iterator[Tensor]
Plain = tuple[Tensor, Tensor]
"""Embedding and scores."""


def randomised(network: nn.Module) -> nn.Module:
    """In double precision, all parameters random: norms start at 1 and 0, which hides mix-ups."""
    generator = torch.Generator().manual_seed(1)
    network.double()
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(noise * 0.3)
    return network


def linear(parameters: Parameters, inputs: Tensor) -> Tensor:
    return inputs @ next(parameters).T + next(parameters)


def instance_norm(parameters: Parameters, maps: Tensor) -> Tensor:
    centred = maps - maps.mean((2, 3), keepdim=True)
    scaled = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    return scaled * next(parameters)[:, None, None] + next(parameters)[:, None, None]


def alexnet(network: nn.Module, images: Tensor) -> Plain:
    p = iter(network.parameters())
    first = 4 if images.shape[1] == 1 else 2
    x = F.max_pool2d(F.relu(F.conv2d(images, next(p), next(p), padding=first)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, next(p), next(p), padding=2)), 2)
    x = F.relu(F.conv2d(x, next(p), next(p), padding=1))
    x = F.relu(F.conv2d(x, next(p), next(p), padding=1))
    x = F.max_pool2d(F.relu(F.conv2d(x, next(p), next(p), padding=1)), 2)
    x = x.flatten(1)
    return x, linear(p, x)


def vgg11(network: nn.Module, images: Tensor) -> Plain:
    p = iter(network.parameters())
    x, padding = images, 3 if images.shape[1] == 1 else 1
    for layer in "CMCMCCMCCMCCM":
        if layer == "M":
            x = F.max_pool2d(x, 2)
        else:
            x = F.relu(instance_norm(p, F.conv2d(x, next(p), next(p), padding=padding)))
            padding = 1
    x = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
    return x, linear(p, x)


def resnet18(network: nn.Module, images: Tensor, pooled: bool) -> Plain:
    p = iter(network.parameters())
    x = F.relu(instance_norm(p, F.conv2d(images, next(p), padding=1)))
    for block in range(8):
        halve = block in (2, 4, 6)
        stride = 2 if halve and not pooled else 1
        y = F.relu(instance_norm(p, F.conv2d(x, next(p), stride=stride, padding=1)))
        if halve and pooled:
            y = F.avg_pool2d(y, 2)
        y = instance_norm(p, F.conv2d(y, next(p), padding=1))
        if halve:
            x = F.conv2d(x, next(p), stride=stride)
            x = instance_norm(p, F.avg_pool2d(x, 2) if pooled else x)
        x = F.relu(x + y)
    x = x.flatten(1) if pooled else x.mean(3).mean(2)
    return x, linear(p, x)


def layer_norm(parameters: Parameters, tokens: Tensor) -> Tensor:
    centred = tokens - tokens.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * next(parameters) + next(parameters)


def transformer(network: nn.Module, images: Tensor, heads: int, depth: int) -> Plain:
    """For images that need no padding."""
    p = iter(network.parameters())
    class_token, positions, kernel, bias = next(p), next(p), next(p), next(p)
    patch = kernel.shape[-1]
    rows, columns = images.shape[2] // patch, images.shape[3] // patch
    tokens = [class_token[0].expand(len(images), -1)]
    for row in range(rows):
        for column in range(columns):
            square = images[:, :, row * patch :, column * patch :][:, :, :patch, :patch]
            tokens.append(square.flatten(1) @ kernel.flatten(1).T + bias)
    x = torch.stack(tokens, 1) + positions
    for _ in range(depth):
        qkv = linear(p, layer_norm(p, x))
        length = qkv.shape[-1] // (3 * heads)
        mixed = []
        for head in range(heads):
            q, k, v = (
                qkv[..., (part * heads + head) * length :][..., :length] for part in range(3)
            )
            similarities = torch.einsum("nid,njd->nij", q, k) / length**0.5
            mixed.append(torch.einsum("nij,njd->nid", similarities.softmax(-1), v))
        x = x + linear(p, torch.cat(mixed, -1))
        hidden = linear(p, layer_norm(p, x))
        x = x + linear(p, hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))
    x = layer_norm(p, x)[:, 0]
    return x, linear(p, x)
