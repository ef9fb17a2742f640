"""Every error of this package; `orchestrator.cli` and the trainer translate them for users.

CheckpointError
├── StoreError
│   ├── StoreUnreachable   no answer, or an answer that does not tell whether the write happened
│   ├── StoreRefused       credentials, permission, read-only or full
│   │   └── BucketMissing  the bucket itself does not exist
│   ├── UnsupportedStore   the URL's scheme is unknown
│   ├── UnfitStore         the store does not honour conditional writes
│   ├── ObjectMissing      no object under this key
│   ├── ObjectExists       `create` found an object
│   └── VersionMismatch    `replace` found another version, or none
├── AddressInvalid         no server's address, or that of a proxy
├── RecordInvalid          a record does not parse, is too new, or does not fit
├── Damaged                bytes differ from their checksum or size
├── Fenced                 a later attempt owns the run
└── SaveFailed             a rank could not write its part, or nobody knows of a commit
"""


class CheckpointError(Exception):
    """Say in one line what happened and in another what to do."""

    def __init__(self, what: str, next_step: str) -> None:
        # Both in args, so that it survives the way between ranks.
        super().__init__(what, next_step)
        self.what = what
        self.next_step = next_step

    def __str__(self) -> str:
        return self.what


class StoreError(CheckpointError):
    """The store did not do what was asked."""


class StoreUnreachable(StoreError):
    """The store gave no answer; a write may or may not have happened."""


class StoreRefused(StoreError):
    """The store is there and says no."""


class BucketMissing(StoreRefused):
    """There is no such bucket, so nothing can be in it."""


class UnsupportedStore(StoreError):
    """No store is known for this URL."""


class UnfitStore(StoreError):
    """The store lets two writers win; nothing here would be safe in it."""


class ObjectMissing(StoreError):
    """No object has this key."""


class ObjectExists(StoreError):
    """An object already has this key."""


class VersionMismatch(StoreError):
    """The object is absent or is not the version that was read."""


class AddressInvalid(CheckpointError):
    """What was given as a server's address, or is set as one, cannot be one."""


class RecordInvalid(CheckpointError):
    """A record cannot be used as it stands."""


class Damaged(CheckpointError):
    """Bytes are not the bytes that were written."""


class Fenced(CheckpointError):
    """A later attempt owns the run; this one must stop."""


class SaveFailed(CheckpointError):
    """A save was given up on every rank alike; the last commit stands."""
