"""One runnable module per figure in the README, with what it is compared to beside it.

The modules checkpoint_* are parts of `checkpoints`.
"""
