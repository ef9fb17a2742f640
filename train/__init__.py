"""Fine-tune a causal language model with FSDP; knows nothing of clouds, ledgers or W&B."""
