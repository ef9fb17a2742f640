"""One runnable module per figure in the README, with what it is compared to beside it."""
