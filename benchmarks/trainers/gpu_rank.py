"""One rank of one run: `torchrun -m benchmarks.trainers.gpu_rank JOB`; rank 0 prints figures."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from benchmarks.trainers.gpu_jobs import GPU_WARMUP_STEPS, GpuFigures, GpuJob
from benchmarks.trainers.jobs import LEARNING_RATE, MAX_GRAD_NORM, Variant
from benchmarks.trainers.meter import Meter
from benchmarks.trainers.ours import MeteredReport, make_config
from benchmarks.trainers.peers import Steps, count_tokens, pad, read_samples
from train.config import ActivationCheckpointing, Precision, TrainOptions
from train.data.dataset import TRAIN_NAME
from train.loop import train
from train.mfu import ModelSize, flops_per_token, mean_length, peak_flops


def main(text: str) -> None:
    """Run the job; rank 0's last line on standard output is GpuFigures."""
    job = GpuJob.model_validate_json(text)
    tokens_per_s = _ours(job) if job.variant is Variant.OURS else _hf_trainer(job)
    if int(os.environ.get("RANK", "0")) == 0:
        print(_figures(job, tokens_per_s / job.num_gpus).model_dump_json(), flush=True)


def _ours(job: GpuJob) -> float:
    """Return tokens per second over all ranks; the loop waits for its loss at every step."""
    options = TrainOptions(
        num_steps=job.num_steps,
        global_batch=job.micro_batch * job.num_gpus,
        micro_batch=job.micro_batch,
        learning_rate=LEARNING_RATE,
        max_grad_norm=MAX_GRAD_NORM,
        precision=Precision.BF16,
        activation_checkpointing=(
            ActivationCheckpointing.FULL if job.is_checkpointing else ActivationCheckpointing.NONE
        ),
    )
    config = make_config(job.inputs_dir, job.scratch, options, job.max_length)
    report = MeteredReport(config, int(os.environ.get("RANK", "0")), Meter(GPU_WARMUP_STEPS))
    train(config, report)
    return report.meter.figures().tokens_per_s


def _hf_trainer(job: GpuJob) -> float:
    """Return tokens per second over all ranks."""
    is_on_gpu = torch.cuda.is_available()
    arguments: dict[str, Any] = {}
    if job.num_gpus > 1:
        config = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
        config["activation_checkpointing"] = job.is_checkpointing
        arguments = {"fsdp": True, "fsdp_config": config}
    elif job.is_checkpointing:
        arguments = {"gradient_checkpointing": True}
    # Before the model, since it sets this rank's device.
    args = TrainingArguments(
        output_dir=str(job.scratch),
        max_steps=job.num_steps,
        per_device_train_batch_size=job.micro_batch,
        learning_rate=LEARNING_RATE,
        max_grad_norm=MAX_GRAD_NORM,
        lr_scheduler_type="cosine",
        bf16=True,
        use_cpu=not is_on_gpu,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **arguments,
    )
    model = _build(job)
    meter = Meter(GPU_WARMUP_STEPS)
    model.register_forward_pre_hook(count_tokens(meter), with_kwargs=True)
    pad_id = model.config.pad_token_id
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=read_samples(job.inputs_dir / TRAIN_NAME),
        data_collator=lambda batch: pad(batch, pad_id, None),
        callbacks=[_SynchronizedSteps(meter)],
    )
    trainer.train()
    # Ranks go through steps together: their rates add up.
    rate = torch.tensor(meter.figures().tokens_per_s, device=args.device, dtype=torch.float32)
    if dist.is_initialized():
        dist.all_reduce(rate)
    return float(rate.item())


class _SynchronizedSteps(Steps):
    """Waits for the GPU where the meter looks at the clock."""

    def on_step_end(self, *given: Any, **more: Any) -> None:  # noqa: ANN401  # the Trainer's
        """Note one more."""
        _, state, *_ = given
        if state.global_step in (GPU_WARMUP_STEPS, state.max_steps) and torch.cuda.is_available():
            torch.cuda.synchronize()
        super().on_step_end(*given, **more)


def _build(job: GpuJob) -> Any:  # noqa: ANN401  # transformers ships no types
    if any(job.inputs_dir.glob("model*.safetensors")):
        return AutoModelForCausalLM.from_pretrained(job.inputs_dir, dtype=torch.float32)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.inputs_dir))


def _figures(job: GpuJob, tokens_per_s: float) -> GpuFigures:
    config = AutoConfig.from_pretrained(job.inputs_dir)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    size = ModelSize(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_layers=config.num_hidden_layers,
        width=config.hidden_size,
    )
    samples = read_samples(job.inputs_dir / TRAIN_NAME)
    length = mean_length(len(sample["input_ids"]) for sample in samples)
    needed = flops_per_token(size, length)
    is_on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if is_on_gpu else "none"
    peak = peak_flops(name)
    return GpuFigures(
        gpu=name,
        tokens_per_s_per_gpu=tokens_per_s,
        mfu=None if peak is None else needed * tokens_per_s / peak,
        peak_gpu_gb=torch.cuda.max_memory_allocated() / 1e9 if is_on_gpu else 0.0,
    )


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stderr.flush()
    if dist.is_initialized():
        dist.barrier()  # nobody leaves while another may still need it
    os._exit(0)
