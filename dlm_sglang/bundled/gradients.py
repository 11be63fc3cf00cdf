"""Gradients of several batches at once, one single-threaded graph per core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from dlm_sglang.bundled.batches import Batch

BATCHES_PER_STEP = 2
LossFunction = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]


class ParallelGradients:
    """Mean gradients over the batches of a step, one thread a batch.

    The barriers inside a multi-threaded operation wait for the slowest core every time, which on a
    busy machine costs a factor of five; two independent graphs meet once a step.
    """

    def __init__(
        self, loss_function: LossFunction, parameters: Sequence[Tensor], masters: Sequence[Tensor] | None = None
    ) -> None:
        """Gradients of `parameters`, given to their float32 `masters` where these are apart."""
        torch.set_num_threads(1)
        self._loss_function, self._parameters = loss_function, list(parameters)
        self._masters = list(masters or parameters)
        self._pool = ThreadPoolExecutor(BATCHES_PER_STEP)

    def step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Set `.grad` of every master; returns the mean of each named number of the loss function."""
        results = list(self._pool.map(self._one, batches))
        for i, master in enumerate(self._masters):
            master.grad = torch.stack([gradients[i].float() for gradients, _ in results]).mean(0)
        names = results[0][1]
        return {name: sum(numbers[name] for _, numbers in results) / len(results) for name in names}

    def _one(self, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        loss, numbers = self._loss_function(batch)
        gradients = torch.autograd.grad(loss, self._parameters)
        return gradients, {name: number.item() for name, number in numbers.items()}
