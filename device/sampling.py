"""The definition of sampling, in plain torch: one token for each row of logits. Choices are made in float64.

The order is `device.interface.SampleParams`': mask, bias, penalties, temperature, top-k, top-p, min-p, draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from device import shape_checks as checks
from device.sample_params import SampleParams, SampleResult

INFINITY = float("inf")


def sample(logits: Tensor, params: SampleParams) -> SampleResult:
    """One token for each row of float logits `[rows, vocab]`."""
    checks.check_sample(logits, params)
    logits = logits.float()
    adjusted = adjust(logits, params)
    token_ids = adjusted.argmax(-1)
    random = params.temperature > 0
    if random.any():
        scaled = adjusted[random].double() / params.temperature[random, None].double()
        kept = keep(scaled, params.top_k[random], params.top_p[random], params.min_p[random])
        token_ids[random] = draw(scaled, kept, uniform(params.seeds[random], params.positions[random]))
    return report(logits, token_ids, params.num_logprobs)


def adjust(logits: Tensor, params: SampleParams) -> Tensor:
    """A copy of the logits with mask, bias and penalties applied. Repetition: https://arxiv.org/abs/1909.05858."""
    logits = logits.clone()
    if params.mask is not None:
        bits = (params.mask[..., None] >> torch.arange(32, dtype=torch.int32)) & 1
        logits.masked_fill_(bits.flatten(1)[:, : logits.shape[1]] == 0, -INFINITY)
    if params.bias_rows is not None and params.bias_ids is not None and params.bias_values is not None:
        logits.index_put_((params.bias_rows, params.bias_ids), params.bias_values, accumulate=True)
    rows, ids, counts = params.penalty_rows, params.penalty_ids, params.output_counts
    if rows is None or ids is None or counts is None:
        return logits
    values = logits[rows, ids]
    if params.repetition is not None:
        factor = params.repetition[rows]
        values = torch.where(values > 0, values / factor, values * factor)
    if params.frequency is not None:
        values = values - params.frequency[rows] * counts
    if params.presence is not None:
        values = values - params.presence[rows] * (counts > 0)
    logits[rows, ids] = values
    return logits


def keep(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """bool `[rows, vocab]`: the tokens that may be drawn, from float64 logits divided by temperature.

    top_k keeps the k most probable, lower ids before higher among equals; top_p the fewest most probable of
    those whose probabilities, which sum to 1 over them, reach top_p; min_p those at least min_p times as
    probable as the first.
    """
    values, order = scaled.sort(dim=-1, descending=True, stable=True)
    vocab = values.shape[1]
    limit = torch.where(top_k > 0, top_k, vocab)
    kept = (torch.arange(vocab) < limit[:, None]) & (values > -INFINITY)
    probabilities = values.masked_fill(~kept, -INFINITY).softmax(-1)
    before = torch.zeros_like(probabilities)
    before[:, 1:] = probabilities.cumsum(-1)[:, :-1]
    kept &= (before < top_p[:, None].double()) | (before == 0) | (top_p[:, None] >= 1)
    kept &= probabilities >= min_p[:, None].double() * probabilities[:, :1]
    return torch.zeros_like(kept).scatter_(1, order, kept)


def draw(scaled: Tensor, kept: Tensor, uniforms: Tensor) -> Tensor:
    """Invert the kept tokens' cumulative distribution, in the order of their ids, at uniforms `[rows]`."""
    cumulative = scaled.masked_fill(~kept, -INFINITY).softmax(-1).cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    token_ids = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)  # rounding may lift the target to the total itself
    return torch.minimum(token_ids, last).clamp_max(scaled.shape[1] - 1)[:, 0]


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """One float64 number in [0, 1) for each pair of int64 seed and position.

    A counter-based generator made of splitmix64's finalizer (https://doi.org/10.1145/2714064.2660195).
    """
    bits = _mix(_mix(seeds + _GAMMA) + positions * _GAMMA)
    return _shift(bits, 11).double() * 2.0**-53


def report(logits: Tensor, token_ids: Tensor, num_logprobs: int) -> SampleResult:
    """Add what was asked for about the chosen tokens, under the logits as the model gave them."""
    if num_logprobs < 0:
        return SampleResult(token_ids)
    logprobs = logits.log_softmax(-1)
    chosen = token_ids[:, None]
    ranks = 1 + (logits > logits.gather(1, chosen)).sum(-1)
    top_ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :num_logprobs]
    return SampleResult(token_ids, logprobs.gather(1, chosen)[:, 0], ranks, top_ids, logprobs.gather(1, top_ids))


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(bits: Tensor, places: int) -> Tensor:
    """Logical right shift of int64."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _FIRST
    bits = (bits ^ _shift(bits, 27)) * _SECOND
    return bits ^ _shift(bits, 31)
