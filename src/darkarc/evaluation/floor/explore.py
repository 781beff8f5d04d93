"""Lattices of images refined: one image after the other on a CPU, many abreast on a GPU."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from darkarc.evaluation.floor.bank import Bank, blocks, planes, start
from darkarc.evaluation.floor.crossing import search
from darkarc.evaluation.floor.lattice import Lattice, Request
from darkarc.evaluation.floor.likelihood import PixelLikelihood, stacked
from darkarc.evaluation.floor.nuisance import Reply, fit, joined

ABREAST = {"cpu": 1, "cuda": 64}
"""Images whose lattices ask together. One by one, a CPU's blocks are the same whatever stands beside them."""


@dataclass(frozen=True, eq=False)
class Explored:
    """One image's refined lattice and the likelihood it was refined with."""

    lattice: Lattice
    likelihood: PixelLikelihood


def explored(
    bank: Bank, noise: str, images: Iterable[NDArray[np.generic]], abreast: int = 0
) -> Iterator[Explored]:
    """Refined lattices of images (H, W), in order; `abreast` at a time (0: as suits the device)."""
    iterator = iter(images)
    size = abreast or ABREAST.get(bank.device.type, ABREAST["cuda"])
    while group := list(islice(iterator, size)):
        yield from _abreast(bank, noise, group)


def _abreast(bank: Bank, noise: str, images: Sequence[NDArray[np.generic]]) -> list[Explored]:
    asking, likelihoods = [], []
    for image in images:
        likelihood, guess = start(bank, noise, torch.from_numpy(image.astype(np.float32)).to(bank.device))
        asking.append(search(bank, likelihood, guess))
        likelihoods.append(likelihood)
    together = stacked(likelihoods)
    found: dict[int, Lattice] = {}
    replies: dict[int, Reply | None] = dict.fromkeys(range(len(asking)))
    while replies:
        requests = {}
        for n, reply in replies.items():
            try:
                requests[n] = asking[n].send(reply)  # type: ignore[arg-type]  # None starts a generator
            except StopIteration as ended:
                found[n] = ended.value
        replies = {}
        abreast = {n: request for n, request in requests.items() if request.likelihood is None}
        if together is None:
            abreast = {}
        elif abreast:
            whole = answer(bank, together, list(abreast.values()), list(abreast))
            replies.update(zip(abreast, split(whole, abreast.values()), strict=True))
        for n, request in requests.items():
            if n not in abreast:
                replies[n] = answer(bank, request.likelihood or likelihoods[n], [request])
    return [Explored(found[n], likelihood) for n, likelihood in enumerate(likelihoods)]


def answer(
    bank: Bank, likelihood: PixelLikelihood, requests: Sequence[Request], images: Sequence[int] | None = None
) -> Reply:
    """All nodes of the requests, one after the other; images: which one each request is about."""
    nodes = torch.cat([r.nodes for r in requests]).to(bank.device)
    begin = torch.cat([r.start for r in requests]).to(bank.device)
    bar = torch.cat([r.start.new_full((len(r.nodes),), r.bar) for r in requests]).to(bank.device)
    which: Tensor | None = None
    if images is not None:
        sizes = torch.tensor([len(r.nodes) for r in requests])
        which = torch.tensor(images).repeat_interleave(sizes).to(bank.device)
    parts = []
    for rows in blocks(bank.preset, len(nodes), bank.device, share=3):
        found = fit(
            bank.preset,
            likelihood,
            planes(bank.preset, bank.distances, nodes[rows]),
            begin[rows],
            bar=bar[rows],
            image=None if which is None else which[rows],
        )
        parts.append(found)
    return joined(bank.preset, parts)


def split(reply: Reply, requests: Iterable[Request]) -> list[Reply]:
    """The reply to several requests, each with its own."""
    ends = np.cumsum([len(r.nodes) for r in requests]).tolist()
    return [
        Reply(reply.value[begin:end], reply.parameters[begin:end])
        for begin, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
