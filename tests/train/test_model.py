"""The numbers of one micro-batch: packed as unpacked, in chunks as at once, whatever the model."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from train import attention
from train.activations import checkpoint_activations
from train.apart import require_samples_apart
from train.batch import to_micro_batch
from train.config import ActivationCheckpointing, Precision, TrainOptions
from train.data.dataset import Segment
from train.errors import ModelInvalid
from train.loss import add_loss, has_plain_head, summed_cross_entropy

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 101,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    # A window shorter than the samples.
    "mistral": {"sliding_window": 5},
    "olmo2": {},
    "phi3": {},
    "gpt_neox": {},
    # Their logits are scaled or capped.
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.3},
    "gemma2": {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 20.0},
}
PLAIN = {"llama", "qwen2", "qwen3", "mistral", "olmo2", "phi3", "gpt_neox"}
# It caps attention's scores, which sdpa cannot.
EAGER = {"gemma2"}


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    attention.register()
    yield
    dist.destroy_process_group()


def build(kind, implementation=None, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **ARCHITECTURES[kind], **changes})
    implementation = implementation or ("eager" if kind in EAGER else attention.NAME)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=implementation
    )
    perturb(model)
    return model


def perturb(model):
    """Make the weights as different from one another as trained ones are."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)


def segments(*lengths):
    generator = np.random.default_rng(0)
    return [
        Segment(
            tokens=generator.integers(2, 101, length).astype(np.int32),
            trained=(np.arange(length) % 3 > 0).astype(np.uint8),
        )
        for length in lengths
    ]


def plain_loss(model, segment):
    """The textbook's: all logits of one sample, shifted by one, without a word of packing."""
    tokens = torch.from_numpy(segment.tokens).long()[None]
    labels = tokens.masked_fill(torch.from_numpy(segment.trained)[None] == 0, -100)
    logits = model(input_ids=tokens, use_cache=False).logits
    return F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_difference(found, expected):
    difference = sum((found[name] - expected[name]).square().sum() for name in expected)
    return float((difference / sum(one.square().sum() for one in expected.values())).sqrt())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_packed_row_has_the_loss_and_gradient_of_its_samples(kind):
    parts = segments(17, 2, 9, 30)
    reference = build(kind, "eager")
    expected_loss = 0.0
    for part in parts:
        loss = plain_loss(reference, part)
        loss.backward()
        expected_loss += loss.item()
    model = build(kind)
    add_loss(model)
    assert has_plain_head(model) == (kind in PLAIN)
    loss = model.loss_sum(to_micro_batch(parts, is_last=True))
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-6)
    found, expected = gradients(model), gradients(reference)
    assert found.keys() == expected.keys()
    assert relative_difference(found, expected) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_sample_does_not_see_its_neighbours(kind):
    model = build(kind)
    add_loss(model)
    first, second = segments(12, 12)
    other = Segment(tokens=(second.tokens % 90 + 2).astype(np.int32), trained=0 * second.trained)
    silent = Segment(tokens=second.tokens, trained=0 * second.trained)
    with torch.no_grad():
        losses = {
            float(model.loss_sum(to_micro_batch([first, neighbour], is_last=True)))
            for neighbour in (silent, other)
        }
    assert len(losses) == 1


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_loss_in_chunks_equals_that_at_once(chunk, has_bias):
    torch.manual_seed(0)
    hidden = torch.randn(20, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    bias = torch.randn(50, requires_grad=True) if has_bias else None
    labels = torch.randint(0, 50, (20,))
    inputs = [one for one in (hidden, weight, bias) if one is not None]
    at_once = F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum") * 0.3
    expected = torch.autograd.grad(at_once, inputs)
    in_chunks = summed_cross_entropy(hidden, weight, bias, labels, chunk) * 0.3
    found = torch.autograd.grad(in_chunks, inputs)
    torch.testing.assert_close(in_chunks, at_once)
    torch.testing.assert_close(found, expected)


def test_a_loss_of_improbable_labels_is_finite():
    hidden = torch.eye(2, 4)
    weight = 1e4 * torch.eye(4)
    loss = summed_cross_entropy(hidden, weight, None, torch.tensor([3, 1]))
    assert loss.item() == pytest.approx(1e4)


def test_in_half_precision_the_gradient_is_summed_up_in_single():
    torch.manual_seed(0)
    hidden, weight = torch.randn(512, 16), torch.randn(50, 16)
    labels = torch.randint(0, 50, (512,))
    exact = weight.clone().requires_grad_()
    summed_cross_entropy(hidden, exact, None, labels).backward()
    half = weight.bfloat16().requires_grad_()
    summed_cross_entropy(hidden.bfloat16(), half, None, labels, 16).backward()
    assert relative_difference({"w": half.grad.float()}, {"w": exact.grad}) < 0.01


def test_a_row_without_a_label_has_no_loss_and_no_gradient():
    model = build("llama")
    add_loss(model)
    silent = Segment(tokens=np.array([1, 2], dtype=np.int32), trained=np.zeros(2, dtype=np.uint8))
    loss = model.loss_sum(to_micro_batch([silent], is_last=True))
    loss.backward()
    assert loss.item() == 0.0
    assert all(not bool(one.any()) for one in gradients(model).values())


@pytest.mark.parametrize("choice", ["selective", "full", "auto"])
def test_recomputed_activations_give_the_same_bits(choice):
    plain, checkpointed = build("llama"), build("llama")
    mesh = init_device_mesh("cpu", (1,))
    options = TrainOptions(num_steps=1, activation_checkpointing=ActivationCheckpointing(choice))
    checkpoint_activations(checkpointed, options, 64, mesh, torch.device("cpu"))
    batch = to_micro_batch(segments(17, 30), is_last=True)
    for model in (plain, checkpointed):
        model.train()
        add_loss(model)
        model.loss_sum(batch).backward()
    expected = gradients(plain)
    found = gradients(checkpointed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class CountProducts(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.num += operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return operation(*args, **(kwargs or {}))


def test_selective_checkpointing_computes_half_of_the_products_again():
    num = {}
    for choice in ActivationCheckpointing:
        model = build("llama").train()
        options = TrainOptions(num_steps=1, activation_checkpointing=choice)
        mesh = init_device_mesh("cpu", (1,))
        checkpoint_activations(model, options, 64, mesh, torch.device("cpu"))
        add_loss(model)
        loss = model.loss_sum(to_micro_batch(segments(60), is_last=True))
        with CountProducts() as backward:
            loss.backward()
        num[choice.value] = backward.num
    assert num["auto"] == num["none"]  # here, where no GPU's memory is short
    again = num["full"] - num["none"]
    assert again >= 2 * 6  # layers, and products that a gradient needs
    assert num["selective"] - num["none"] == pytest.approx(again / 2, abs=2)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_models_that_keep_samples_apart_pass_the_check(kind):
    model = build(kind)
    add_loss(model)
    require_samples_apart(model, torch.device("cpu"), Precision.FP32)
    assert model.training


def test_a_model_that_lets_a_sample_see_its_neighbour_is_refused():
    config = AutoConfig.for_model(
        "qwen3_next",
        **SMALL,
        layer_types=["linear_attention", "full_attention"],
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention.NAME
    )
    perturb(model)
    add_loss(model)
    with pytest.raises(ModelInvalid, match="before it in its row"):
        require_samples_apart(model, torch.device("cpu"), Precision.FP32)
