"""Cross-entropy of the trained predictions only, without ever holding all of their logits.

The head's logits are the largest tensor of a step: V is the vocabulary, N the predictions, D the
width. They are computed a chunk at a time, together with the gradients that follow from them.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method

from train import attention
from train.batch import MicroBatch

# Predictions at a time. 512 x 32,000 fp32 logits are 65 MB; 128 or 2048 at a time take as long.
_CHUNK = 512
# How transformers' models end where nothing is done to the logits.
_PLAIN_HEAD = re.compile(
    r"hidden_states = outputs(?:\.last_hidden_state|\[0\])\s+(?:#[^\n]*\s+)*"
    r"slice_indices = [^\n]*\s+"
    r"logits = self\.lm_head\(hidden_states\[:, slice_indices, :\]\)\s+loss = None"
)


def add_loss(model: nn.Module) -> None:
    """Give a (sharded) causal language model the method `loss_sum(batch)`, with FSDP's hooks."""
    compute = _plain_loss if has_plain_head(model) else _any_loss
    model.loss_sum = compute.__get__(model)
    register_fsdp_forward_method(model, "loss_sum")


def has_plain_head(model: Any) -> bool:  # noqa: ANN401  # PreTrainedModel
    """Say whether the logits are the head's output as it is.

    Some models scale or cap them. The source says so; what it does not say is taken for "no", and
    then the model's own forward pass is asked for the logits.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    return _PLAIN_HEAD.search(inspect.getsource(inspect.unwrap(type(model).forward))) is not None


def _inputs(model: Any, batch: MicroBatch) -> dict[str, Any]:  # noqa: ANN401  # PreTrainedModel
    """Return what every model takes, and what its attention needs to keep samples apart."""
    bounds = batch.bounds
    # Ours reads them on the host: from the device, every layer would wait for it.
    if model.config._attn_implementation != attention.NAME:
        bounds = bounds.to(batch.tokens_1T.device, non_blocking=True)
    return {
        "input_ids": batch.tokens_1T,
        "position_ids": batch.positions_1T,
        "use_cache": False,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": batch.longest,
        "max_length_k": batch.longest,
    }


def _plain_loss(model: Any, batch: MicroBatch) -> torch.Tensor:  # noqa: ANN401  # PreTrainedModel
    hidden_1TD = model.base_model(**_inputs(model, batch)).last_hidden_state
    head = model.get_output_embeddings()
    return summed_cross_entropy(
        hidden_1TD[0, batch.trained_N], head.weight, head.bias, batch.labels_N
    )


def _any_loss(model: Any, batch: MicroBatch) -> torch.Tensor:  # noqa: ANN401  # PreTrainedModel
    # Not model(...): FSDP's hooks have run for loss_sum.
    logits_1NV = model.forward(**_inputs(model, batch), logits_to_keep=batch.trained_N).logits
    return F.cross_entropy(logits_1NV[0].float(), batch.labels_N, reduction="sum")


def summed_cross_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    chunk: int = _CHUNK,
) -> torch.Tensor:
    """Return the sum over N of the cross-entropy of `hidden @ weight.T + bias` with the labels.

    Same value and gradients as F.cross_entropy on fp32 logits, to rounding.
    """
    arguments = (hidden_ND, weight_VD, bias_V, labels_N, chunk)
    sum_: torch.Tensor = _SummedCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
    return sum_


class _SummedCrossEntropy(torch.autograd.Function):
    """Computes gradients in the forward pass, where a chunk's logits are at hand.

    Nothing is computed twice: a checkpoint per chunk would multiply by the head once more.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # autograd's context
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        chunk: int,
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        loss = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        # Sums over chunks, in single precision whatever the pass computes in.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        grad_bias_V = None
        if bias_V is not None and needs_bias:
            grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32)
        for start in range(0, len(labels_N), chunk):
            hidden_CD = hidden_ND[start : start + chunk]
            labels_C1 = labels_N[start : start + chunk, None]
            logits_CV = F.linear(hidden_CD, weight_VD, bias_V).float()
            logits_CV -= logits_CV.amax(1, keepdim=True)
            label_logits_C1 = logits_CV.gather(1, labels_C1)
            sums_C1 = logits_CV.exp_().sum(1, keepdim=True)
            loss += (sums_C1.log() - label_logits_C1).sum()
            if not (needs_hidden or needs_weight or needs_bias):
                continue
            # The gradient of the logits: the probabilities, less 1 at the label.
            grad_CV = logits_CV.div_(sums_C1)
            grad_CV.scatter_add_(1, labels_C1, grad_CV.new_full((), -1.0).expand_as(labels_C1))
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0)
            grad_CV = grad_CV.to(weight_VD.dtype)
            if grad_hidden_ND is not None:
                torch.mm(grad_CV, weight_VD, out=grad_hidden_ND[start : start + chunk])
            if grad_weight_VD is not None:
                if grad_CV.dtype is torch.float32:
                    grad_weight_VD.addmm_(grad_CV.T, hidden_CD)
                else:
                    grad_weight_VD += grad_CV.T @ hidden_CD
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD, grad_bias_V)
        ctx.dtype = weight_VD.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        hidden_ND, weight_VD, bias_V = (
            None if saved is None else saved * grad for saved in ctx.saved_tensors
        )
        return (
            hidden_ND,
            None if weight_VD is None else weight_VD.to(ctx.dtype),
            None if bias_V is None else bias_V.to(ctx.dtype),
            None,
            None,
        )
