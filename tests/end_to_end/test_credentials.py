"""A run whose key of the store ends and is renewed in the file that it was read from."""

from __future__ import annotations

import re
import threading

import pytest

from checkpoints.fence import read_head
from checkpoints.store import open_store
from orchestrator.cloud.local.s3_server import BUCKET
from orchestrator.iam import aws_policy
from tests.end_to_end.conftest import Workplace
from tests.end_to_end.losses import NOTHING, losses
from tests.fault_record import record_fault
from tests.faulty_proxy import Act, Fault, faulty_proxy
from tests.iam_server import iam_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.xdist_group("s3")]
STORE = f"s3://{BUCKET}/rotated"
TRAIN = {"num_steps": 1000, "global_batch": 4, "precision": "fp32"}


def write_key(path, user):
    """Put a user's key in place of the one before, as whoever renews keys does."""
    fields = ("aws_access_key_id", "aws_secret_access_key")
    lines = [f"{field} = {user[field.upper()]}\n" for field in fields]
    fresh = path.with_suffix(".new")
    fresh.write_text(f"[default]\n{''.join(lines)}")
    fresh.replace(path)


def test_saves_are_skipped_while_a_key_is_refused_and_commit_once_it_is_renewed(
    tmp_path, monkeypatch
):
    ended, key_file = threading.Event(), tmp_path / "credentials"
    (tmp_path / "iam").mkdir()
    with iam_server(tmp_path / "iam") as server:
        old, new = (server.add_user(aws_policy([STORE])) for _ in range(2))
        for name, value in new.items():  # of this test, which looks on
            monkeypatch.setenv(name, value)

        def is_expired(request):
            signed = f"{request.headers.get('Authorization', '')}{request.query}"
            return ended.is_set() and old["AWS_ACCESS_KEY_ID"] in signed

        expired = Fault(act=Act.REFUSE, when=is_expired, status=403, code="ExpiredToken")
        with faulty_proxy(new["AWS_ENDPOINT_URL"], expired) as proxy:
            write_key(key_file, old)
            place = Workplace(tmp_path)
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                del place.environment[name]
            place.environment |= {
                "AWS_ENDPOINT_URL": proxy.endpoint,
                "AWS_SHARED_CREDENTIALS_FILE": str(key_file),
            }
            spec = place.write_spec(store=STORE, train=TRAIN)
            launch = place.start("launch", spec, "--yes")
            place.wait_for(lambda: head_step() > 0)
            ended.set()
            place.wait_for(lambda: expired.num_fired > 5)  # what was on its way has arrived
            before = head_step()
            place.wait_for(lambda: expired.num_fired > 30, seconds=15)
            assert head_step() == before
            write_key(key_file, new)
            place.wait_for(lambda: head_step() > before, seconds=30)
            assert place.run("stop", "small", "--yes").returncode == 0
            launch.communicate(timeout=60)
        place.environment["AWS_ENDPOINT_URL"] = new["AWS_ENDPOINT_URL"]
        status = place.document("status", "small")
        assert [one["end_reason"] for one in status["attempts"]] == ["stopped"]
        log = place.run("logs", "small").stdout
        assert re.search(r"save of step \d+ failed: .*refused access", log), log
        found = losses(place, STORE)
        assert found == NOTHING
    what = "a key ends within a run, and its file is rotated"
    record_fault("F7", what, injected=expired.num_fired, **found.row())


def head_step() -> int:
    head = read_head(open_store(f"{STORE}/small"))
    return head[0].step if head else 0
