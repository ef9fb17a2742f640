"""Launch, supervise and account for training runs on preemptible nodes."""

__version__ = "0.1.0"
