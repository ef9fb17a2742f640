"""What only a GPU can show: flash attention by bounds, and the chunked loss, in bf16."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from train import attention
from train.batch import to_micro_batch
from train.data.dataset import Segment
from train.loss import add_loss

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")


def loss_and_gradient(implementation, lengths):
    attention.register()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, attn_implementation=implementation
    ).to(DEVICE)
    add_loss(model)
    generator = np.random.default_rng(0)
    segments = [
        Segment(
            tokens=generator.integers(2, 1000, length).astype(np.int32),
            trained=np.ones(length, dtype=np.uint8),
        )
        for length in lengths
    ]
    loss = model.loss_sum(to_micro_batch(segments, is_last=True).to(DEVICE))
    loss.backward()
    gradient = torch.cat([p.grad.float().flatten() for p in model.parameters()])
    return loss.item(), gradient


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_keeps_samples_apart_as_sdpa_does(implementation):
    lengths = (700, 3, 1200, 145)
    loss, gradient = loss_and_gradient(implementation, lengths)
    expected_loss, expected = loss_and_gradient(attention.NAME, lengths)
    assert loss == pytest.approx(expected_loss, rel=1e-3)
    assert float((gradient - expected).norm() / expected.norm()) < 0.02
