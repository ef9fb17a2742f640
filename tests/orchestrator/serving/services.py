"""Services for tests."""

from __future__ import annotations

from orchestrator.inputs import InputFile
from orchestrator.ledger.facts import QuotedOffer
from orchestrator.serving.service import ServiceRecord, StagedModel
from tests.orchestrator.histories import START, make_offer

WHEEL = InputFile(name="w.whl", sha256="0" * 64, size=1)
WEIGHTS = InputFile(name="model.safetensors", sha256="1" * 64, size=10)


def make_service(*models: StagedModel) -> ServiceRecord:
    return ServiceRecord(
        service="chat",
        service_id="chat-1a2b3c4d",
        created_at=START,
        models=models or (make_staged(),),
        offers=(QuotedOffer.quote(make_offer()),),
        max_concurrent=64,
        max_queued=64,
    )


def make_staged(name: str = "demo", folder: str = "s3://bucket/runs/demo") -> StagedModel:
    return StagedModel(
        name=name,
        folder=folder,
        checkpoint="step-00000010.a001",
        files=(WEIGHTS,),
        is_run=True,
    )
