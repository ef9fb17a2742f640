"""Messages get out once each, whoever dies, and hold nothing up; addresses stay secret."""

from __future__ import annotations

import logging
import threading
import time
from datetime import datetime, timedelta
from email import message_from_string, policy
from itertools import pairwise

import pytest

from checkpoints.errors import StoreUnreachable
from checkpoints.layout import NOTIFIED, event_key, notified_key
from checkpoints.store import check_key, open_store
from orchestrator.attempts import EndReason
from orchestrator.clock import SystemClock
from orchestrator.cloud.skypilot.wheel import with_extras
from orchestrator.errors import UsageError
from orchestrator.ledger.facts import RunLaunched
from orchestrator.news import Level
from orchestrator.notify.addresses import NOTIFY, find_addresses, take_addresses
from orchestrator.notify.claims import Claims
from orchestrator.notify.messenger import open_addresses
from orchestrator.notify.notifier import Notifier, start_notifier
from orchestrator.notify.teller import Teller
from tests.message_service import SECRET, receiving, receiving_mail
from tests.orchestrator.histories import Ledger, at, make_record
from tests.orchestrator.test_cli import assert_two_lines, write_spec

LOG = logging.getLogger("tests.notify")
RECORD = make_record(tracking={"notify": {}})
TOLD = ["demo: attempt 1 was preempted", "demo: attempt 2 goes on", "demo: finished"]


class SetClock:
    """Stands still until it is set; never sleeps."""

    def __init__(self, seconds: float = 100) -> None:
        self.seconds = seconds

    def now(self) -> datetime:
        return at(self.seconds)

    def sleep(self, duration: timedelta) -> None:
        raise NotImplementedError


class FailingStore:
    """A store that does not answer some of its calls."""

    def __init__(self, store, *failing: str) -> None:
        self._store, self.failing = store, set(failing)

    def __getattr__(self, name: str):
        if name in self.failing:

            def fail(*arguments: object) -> object:
                raise StoreUnreachable(f"no answer to {name}", "wait")

            return fail
        return getattr(self._store, name)


@pytest.fixture
def service():
    with receiving() as service:
        yield service


@pytest.fixture
def store(tmp_path):
    """A run that was preempted once and has finished."""
    store = open_store((tmp_path / "run").as_uri())
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 1, until=20, attempt=1)
    ledger.launch("two", 21, until=50, attempt=2, reason=EndReason.SUCCEEDED)
    ledger.commit(49, attempt=2, step=10)
    ledger.ended(51)
    write(store, ledger)
    return store


def write(store, ledger: Ledger, later: int = 0) -> None:
    """Write what a ledger has collected; `later` tells writers' facts from those that are there."""
    for number, entry in enumerate(ledger.entries, start=later):
        key = event_key(f"{entry.writer}-{number}", 0)
        store.create(key, entry.model_copy(update={"number": number}).model_dump_json().encode())


def teller(store, *addresses: str, clock: SetClock | None = None, record=RECORD) -> Teller:
    known = open_addresses(" ".join(addresses))
    return Teller(store, record, known, clock or SetClock(), LOG)


def test_each_fact_is_told_once_in_order_and_by_later_processes_never(store, service):
    first = teller(store, service.address)
    for _ in range(3):
        first.step()
    assert service.titles == TOLD
    assert first.is_done
    teller(store, service.address, clock=SetClock(10**6)).step()
    assert service.titles == TOLD
    assert service.paths == [f"/{SECRET}"] * 3
    assert len(store.list(NOTIFIED)) == 3


def test_many_that_tell_at_once_tell_each_fact_once(store, service):
    tellers = [teller(store, service.address) for _ in range(6)]
    begin = threading.Barrier(len(tellers))

    def tell(one: Teller) -> None:
        begin.wait()
        one.step()

    threads = [threading.Thread(target=tell, args=(one,)) for one in tellers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(service.titles) == sorted(TOLD)


def claim_as_one_that_dies(store, clock: SetClock) -> None:
    """Leave the claims of a process that died before it marked anything as sent."""
    dead = teller(store, "json://127.0.0.1:1/", clock=clock)
    dead._deliver = lambda: None
    dead.step()


def test_a_claim_whose_process_died_is_told_once_more_after_ten_minutes_and_says_so(store, service):
    clock = SetClock()
    claim_as_one_that_dies(store, clock)
    living = teller(store, service.address, clock=clock)
    clock.seconds += 599
    living.step()
    assert service.titles == []
    clock.seconds += 121  # it looks for such every two minutes
    living.step()
    assert sorted(service.titles) == sorted(TOLD)
    assert all("may have been sent before" in text for text in service.texts)
    clock.seconds += 10**6
    living.step()
    teller(store, service.address, clock=clock).step()
    assert len(service.titles) == 3


def test_a_message_that_kills_who_sends_it_is_given_up(store, service):
    clock = SetClock()
    for _ in range(4):
        claim_as_one_that_dies(store, clock)
        clock.seconds += 601
    teller(store, service.address, clock=clock).step()
    assert service.titles == []


def test_a_service_that_is_down_gets_each_message_once_when_it_is_up(store, service):
    clock = SetClock()
    one = teller(store, service.address, clock=clock)
    service.status = 503
    one.step()
    one.step()
    assert service.num_refused == 1  # not asked again before five seconds have passed
    tries = [seconds for seconds in range(1, 3600) if is_tried(one, service, clock)]
    gaps = [after - before for before, after in pairwise(tries)]
    assert gaps[0] == 10
    assert set(gaps[6:]) == {300}
    service.status = 200
    clock.seconds += 300
    one.step()
    one.step()
    assert service.titles == TOLD
    assert "may have been sent before" not in " ".join(service.texts)
    assert one.is_done


def is_tried(one: Teller, service, clock: SetClock) -> bool:
    clock.seconds += 1
    before = service.num_refused
    one.step()
    return service.num_refused > before


def test_a_living_process_keeps_its_claims_however_long_its_service_is_down(store, service):
    clock = SetClock()
    with receiving() as other:
        service.status = 503
        waiting, idle = teller(store, service.address, clock=clock), None
        waiting.step()
        for _ in range(60):
            clock.seconds += 60
            waiting.step()
            idle = idle or teller(store, other.address, clock=clock)
            idle.step()
        assert other.titles == []
        service.status = 200
        clock.seconds += 300
        waiting.step()
        assert service.titles == TOLD


def test_a_claim_that_cannot_be_renewed_is_left_to_others(store, service):
    clock, broken = SetClock(), FailingStore(store)
    one = teller(broken, service.address, clock=clock)
    service.status = 503
    one.step()
    broken.failing = {"replace", "list"}
    service.status = 200
    clock.seconds += 541  # another process may take the claims over from 600 s on
    one.step()
    assert service.titles == []
    with receiving() as other:
        clock.seconds += 60
        teller(store, other.address, clock=clock).step()
        assert sorted(other.titles) == sorted(TOLD)
    broken.failing.clear()
    one.step()
    assert service.titles == []
    assert one.is_done


def test_an_address_that_takes_nothing_keeps_no_message_from_the_others(store, service):
    clock = SetClock()
    with receiving() as dead:
        dead.status = 404
        one = teller(store, dead.address, service.address, clock=clock)
        one.step()
        assert service.titles == TOLD
        assert dead.num_refused == 1
        # Somebody has it, so a process that follows does not send it again.
        clock.seconds += 10**6
        teller(store, service.address, clock=clock).step()
        assert service.titles == TOLD
        dead.status = 200
        one.step()
        assert dead.titles == TOLD


def test_only_what_was_asked_for_is_told_and_nothing_where_nothing_was(store, service):
    only_end = make_record(tracking={"notify": {"on": ["finish"]}})
    teller(store, service.address, record=make_record()).step()
    assert service.titles == []
    teller(store, service.address, record=only_end).step()
    assert service.titles == TOLD[-1:]


def test_an_amendment_says_what_is_told_from_then_on(store, service):
    ledger = Ledger()
    ledger.amended(60, tracking={"notify": {"on": ["preemption"]}})
    write(store, ledger, later=100)
    teller(store, service.address, record=make_record()).step()
    assert service.titles == TOLD[:1]


def test_what_was_not_asked_for_when_it_happened_is_not_told_later(store, service):
    one = teller(store, service.address, record=make_record())
    one.step()
    ledger = Ledger()
    ledger.amended(60, tracking={"notify": {}}, limits={"budget_usd": "9"})
    write(store, ledger, later=100)
    one.step()
    assert service.titles == ["demo: 50% of the budget is used", "demo: 80% of the budget is used"]


def test_an_earlier_launch_is_not_told_by_a_process_of_a_later_one(store, service):
    ledger = Ledger()
    ledger.add(60, RunLaunched(host="laptop"), writer="cli-9")
    write(store, ledger, later=100)
    teller(store, service.address).step()
    assert service.titles == []


@pytest.mark.parametrize("failing", ["list", "create", "get"])
def test_a_store_that_fails_is_tried_again(store, service, failing, caplog):
    broken = FailingStore(store, failing)
    one = teller(broken, service.address)
    one.step()
    assert service.titles == []
    assert "trying again" in caplog.text
    broken.failing.clear()
    one.step()
    assert service.titles == TOLD


def test_a_mark_that_cannot_be_written_is_written_later_and_nothing_sent_again(store, service):
    broken = FailingStore(store, "put")
    one = teller(broken, service.address)
    one.step()
    one.step()
    assert service.titles == TOLD
    assert not one.is_done
    broken.failing.clear()
    one.step()
    assert one.is_done
    teller(store, service.address, clock=SetClock(10**6)).step()
    assert service.titles == TOLD


def test_a_claim_whose_reply_was_lost_is_still_ours(store):
    class Forgetful(FailingStore):
        def create(self, key: str, data: bytes) -> str:
            self._store.create(key, data)
            if "create" in self.failing:
                raise StoreUnreachable("no reply", "wait")
            return self._store.create(key, data)

    broken = Forgetful(store, "create")
    claims = Claims(broken, "teller-1", SetClock(), LOG)
    news = news_of(store)
    with pytest.raises(StoreUnreachable):
        claims.claim(news)
    held = Claims(store, "teller-1", SetClock(), LOG).claim(news)
    assert held is not None
    assert Claims(store, "teller-2", SetClock(), LOG).claim(news) is None


def news_of(store):
    from orchestrator.ledger.fold import fold
    from orchestrator.ledger.journal import LedgerReader
    from orchestrator.news import news
    from orchestrator.view import RunView

    state = fold(RECORD, LedgerReader(store).read())
    return news(RunView(state=state, measured=(), heartbeats=(), as_of=at(100)))[0]


def test_keys_of_claims_are_keys_and_tell_facts_apart():
    names = ["budget 50% of 100", "budget 50% of 1000", "end 2026-11-22T12:00:00+00:00", "x/../y"]
    keys = [check_key(notified_key(name)) for name in names]
    assert len(set(keys)) == len(names)
    assert all(key.startswith(NOTIFIED) and key.count("/") == 1 for key in keys)


def test_no_log_error_or_object_holds_what_is_secret_of_an_address(store, service, caplog):
    caplog.set_level(1)
    for name in ("apprise", "urllib3", "urllib3.connectionpool", "requests"):
        caplog.set_level(1, logger=name)
    refused = f"json://user:{SECRET}@127.0.0.1:1/{SECRET}"
    service.status = 500
    one = teller(store, service.address, service.slack_like, refused)
    one.step()
    service.status = 200
    one.hurry()
    one.step()
    assert service.posted
    said = caplog.text + "".join(store.get(entry.key).data.decode() for entry in store.list(""))
    assert "address 1 (json://) did not take" in said
    assert SECRET not in said + repr(open_addresses(refused))
    assert "z" * 24 not in said


@pytest.mark.parametrize(
    "broken", ["slack://{}", "{}", "https://{}.example/x", "json://", "a://{}"]
)
def test_an_address_that_cannot_be_used_is_named_without_its_secret(broken, service, caplog):
    caplog.set_level(1, logger="apprise")
    with pytest.raises(UsageError, match="address 2") as refused:
        open_addresses(f"{service.address} {broken.format(SECRET)}")
    assert SECRET not in refused.value.what + refused.value.next_step + caplog.text


def test_slack_like_webhooks_get_title_and_text(service):
    (address,) = open_addresses(service.slack_like)
    assert address.send("demo: finished", "all <b>*done*</b>", Level.SUCCESS)
    (posted,) = service.posted
    assert "demo: finished" in posted["text"]
    assert "done" in posted["text"]


def test_mail_has_the_title_as_its_subject_and_the_text_as_its_body():
    with receiving_mail() as (told, mails):
        (address,) = open_addresses(told)
        assert address.send("demo: finished", "SUCCEEDED after 51s", Level.SUCCESS)
    (mail,) = mails
    read = message_from_string(mail, policy=policy.default)
    assert (read["Subject"], read["To"]) == ("demo: finished", "me@example.com")
    assert "SUCCEEDED after 51s" in read.get_body(("plain", "html")).get_content()


@pytest.mark.parametrize(
    "documented",
    [
        "jsons://example.com/path?+Authorization=Bearer%20secret",
        f"slack://T1JJ3T3L2/A1BRTD4JD/{'z' * 24}",
        f"https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/{'z' * 24}",
        f"mmosts://example.com/{'z' * 24}",
        "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js",
        "workflows://prod-1.example.com:443/643e69f83c8944438d68119179a10a64/KODXz3hq5bgnrM4t2",
        "tgram://123456789:abcdefg_hijklmnop/12315544",
        "ntfy://a-topic-of-mine",
        "mailtos://user:password@example.com?to=me@example.com&smtp=mail.example.com",
    ],
)
def test_addresses_of_the_documentation_can_be_used(documented):
    assert len(open_addresses(documented)) == 1


def test_the_variable_goes_before_the_file_and_is_kept_from_child_processes(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("ORCHESTRATE_HOME", str(home))
    monkeypatch.delenv(NOTIFY, raising=False)
    assert find_addresses() is None
    (home / "notify").write_text("# at night\njson://one\n\n  json://two json://three\n")
    assert find_addresses() == "json://one json://two json://three"
    monkeypatch.setenv(NOTIFY, " json://four ")
    assert take_addresses(LOG) == "json://four"
    assert find_addresses() == "json://one json://two json://three"


def test_the_last_messages_get_out_before_a_process_ends(store, service):
    notifier = start_notifier(store, RECORD, service.address, SystemClock(), LOG)
    assert notifier is not None
    notifier.close()
    assert service.titles == TOLD


@pytest.mark.parametrize("trouble", ["hangs", "raises"])
def test_a_process_that_ends_waits_no_longer_than_it_is_to(store, service, caplog, trouble):
    service.hangs = trouble == "hangs"
    one = teller(store, service.address)
    if trouble == "raises":
        one._look = lambda: 1 / 0
    begun_at = time.monotonic()
    notifier = Notifier(one, timedelta(seconds=1), LOG)
    notifier.close(timedelta(seconds=0.5))
    assert 0.4 < time.monotonic() - begun_at < 2
    assert "not every notification could be sent in time" in caplog.text
    assert ("ZeroDivisionError" in caplog.text) == (trouble == "raises")
    service.gone.set()
    one._look = lambda: None
    notifier.close()


def test_nobody_is_told_where_no_address_can_be_used(store, caplog):
    assert start_notifier(store, RECORD, None, SystemClock(), LOG) is None
    assert start_notifier(store, RECORD, "nonsense", SystemClock(), LOG) is None
    assert "address 1" in caplog.text


def test_a_plan_says_that_nobody_would_be_told(orchestrate, tmp_path, monkeypatch, service):
    monkeypatch.delenv(NOTIFY, raising=False)
    spec = write_spec(tmp_path, tracking={"notify": {}})
    code, out, _ = orchestrate("plan", spec)
    assert code == 0
    (line,) = [line for line in out.splitlines() if "notif" in line]
    assert line.startswith("Warning: No address for notifications is known")
    assert NOTIFY in line
    monkeypatch.setenv(NOTIFY, service.address)
    _, out, _ = orchestrate("plan", spec)
    assert "notif" not in out
    monkeypatch.delenv(NOTIFY)
    _, out, _ = orchestrate("plan", write_spec(tmp_path))
    assert "notif" not in out


@pytest.mark.parametrize("command", ["plan", "launch"])
def test_a_broken_address_is_one_line_and_exit_code_2(orchestrate, tmp_path, monkeypatch, command):
    monkeypatch.setenv(NOTIFY, f"slack://{SECRET}")
    spec = write_spec(tmp_path, tracking={"notify": {}})
    code, out, err = orchestrate(command, spec, *(["--yes"] if command == "launch" else []))
    assert code == 2
    assert_two_lines(err, "address 1 (slack://)")
    assert SECRET not in out + err


def test_doctor_checks_addresses_and_sends_a_test(orchestrate, tmp_path, monkeypatch, service):
    monkeypatch.delenv(NOTIFY, raising=False)
    spec = write_spec(tmp_path, tracking={"notify": {}})
    _, out, _ = orchestrate("doctor", spec, "--offline")
    assert "warning  notify" in out
    code, _, err = orchestrate("doctor", "--notify")
    assert code == 2
    assert_two_lines(err, "No address")
    monkeypatch.setenv(NOTIFY, service.address)
    _, out, _ = orchestrate("doctor", spec, "--offline")
    assert "ok       notify    notifications go to address 1 (json://)" in out
    assert service.titles == []
    code, out, err = orchestrate("doctor", "--notify")
    assert code == 0
    assert service.titles == ["orchestrate: a test"]
    service.status = 500
    code, _, err = orchestrate("doctor", "--notify")
    assert code == 3
    assert "Not taken by address 1 (json://)" in err
    assert SECRET not in out + err
    monkeypatch.setenv(NOTIFY, f"slack://{SECRET}")
    code, out, err = orchestrate("doctor", spec, "--offline")
    assert code == 2
    assert SECRET not in out + err


def test_a_controller_s_wheel_requires_what_sends_messages():
    metadata = (
        b"Requires-Dist: httpx>=0.28\n"
        b"Requires-Dist: apprise<3,>=2.2; extra == 'notify'\n"
        b'Requires-Dist: spot-orchestrator[notify]; extra == "dev"\n'
        b"Requires-Dist: torch; extra == 'train'\n"
    )
    required = with_extras(metadata, ["notify"]).splitlines()
    assert required[1] == b"Requires-Dist: apprise<3,>=2.2"
    assert required[:1] + required[2:] == metadata.splitlines()[:1] + metadata.splitlines()[2:]
