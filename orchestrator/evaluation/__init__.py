"""Questions, answers, a judge's verdicts, and what they add up to."""
