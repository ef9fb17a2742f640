"""The orchestrator's hand on a node: claims the attempt, supervises the trainer, reports."""
