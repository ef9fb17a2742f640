"""Errors of the trainer that a user can act on; `orchestrator` shows them as they are.

TrainError
├── ConfigInvalid   the configuration file is not one this version can run
├── DataInvalid     conversations or prepared data that cannot be trained on
├── OutputConflict  the output exists, or another process writes it
├── LibraryMissing  an optional package is not installed
├── EndpointRefused a model's HTTP endpoint says no: its address, the key, the model's name
├── EndpointFailed  a model's HTTP endpoint does not answer; asked again later it may
├── ModelInvalid    a model folder that cannot be loaded
├── SpoolInvalid    a spool record that this version does not understand
└── NotFinite       a loss or a gradient norm that is not a finite number
"""


class TrainError(Exception):
    """What happened, with the offending value, and what to do about it."""

    def __init__(self, what: str, next_step: str) -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step


class ConfigInvalid(TrainError):
    """The configuration file is not one this version can run."""


class DataInvalid(TrainError):
    """Conversations or prepared data that cannot be trained on."""


class OutputConflict(TrainError):
    """The output exists, or another process writes it."""


class LibraryMissing(TrainError):
    """An optional package is not installed."""


class EndpointRefused(TrainError):
    """A model's HTTP endpoint says no: its address, the key, the model's name."""


class EndpointFailed(TrainError):
    """A model's HTTP endpoint does not answer; asked again later it may."""


class ModelInvalid(TrainError):
    """A model folder that cannot be loaded."""


class SpoolInvalid(TrainError):
    """A spool record that this version does not understand."""


class NotFinite(TrainError):
    """A loss or a gradient norm that is not a finite number."""
