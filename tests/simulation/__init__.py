"""One run in virtual time: real controller, policy, ledger and commits on a faulty cloud and store.

A seed decides everything: faults, their instants and the order of all that happens at once.
"""
