"""Files that AWS and Google export their bills to, written here as they document them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.store import open_store
from orchestrator.billing.export_file import read_exports
from orchestrator.billing.kinds import BillKind, kind_of_aws, kind_of_google
from orchestrator.billing.tally import Tally
from orchestrator.errors import InputError

RUN = "demo-1"
CUR = (
    "identity/LineItemId",
    "bill/InvoiceId",
    "lineItem/LineItemType",
    "lineItem/UsageStartDate",
    "lineItem/UsageEndDate",
    "lineItem/ProductCode",
    "lineItem/UsageType",
    "lineItem/UsageAmount",
    "lineItem/CurrencyCode",
    "lineItem/UnblendedCost",
    "product/ProductName",
    "resourceTags/user:orchestrate-run",
)
CUR2 = (
    "bill_invoice_id",
    "line_item_currency_code",
    "line_item_product_code",
    "line_item_unblended_cost",
    "line_item_usage_amount",
    "line_item_usage_start_date",
    "line_item_usage_type",
    "resource_tags",
)
SPOT = "USW2-SpotUsage:p4de.24xlarge"
CORE = "Spot Preemptible A2 Instance Core running in Americas"


def write_csv(header, rows):
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def cur_row(usage_type, usd, *, run=RUN, day="2026-11-22", amount="1", currency="USD", invoice=""):
    start, end = f"{day}T10:00:00Z", f"{day}T11:00:00Z"
    product = "Amazon Elastic Compute Cloud"
    rest = (start, end, "AmazonEC2", usage_type, amount, currency, usd, product, run)
    return ("id", invoice, "Usage", *rest)


def cur2_row(usage_type, usd, tags, day="2026-11-22 10:00:00", amount="1"):
    return ("", "USD", "AmazonEC2", usd, amount, day, usage_type, tags)


def google_line(sku, cost, *, run=RUN, day="2026-11-22", credits=(), currency="USD", **more):
    labels = [{"key": "team", "value": "nlp"}]
    labels += [{"key": "orchestrate-run", "value": run}] if run else []
    return {
        "service": {"id": "6F81-5844-456A", "description": "Compute Engine"},
        "sku": {"id": "1", "description": sku},
        "usage_start_time": f"{day} 10:00:00 UTC",
        "usage_end_time": f"{day} 11:00:00 UTC",
        "labels": labels,
        "cost": cost,
        "currency": currency,
        "credits": [{"name": "x", "amount": one} for one in credits],
        **more,
    }


def json_lines(*lines):
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture
def write(tmp_path):
    def write(data: bytes, name: str = "bill.csv") -> str:
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


def read(*paths) -> Tally:
    (found,) = read_exports(paths, RUN)
    return found


def refusal(*paths) -> str:
    with pytest.raises(InputError) as caught:
        read_exports(paths, RUN)
    assert caught.value.next_step
    assert "\n" not in caught.value.what
    assert caught.value.exit_code == 2
    return caught.value.what


def test_a_cost_and_usage_report_is_added_up_by_kind(write):
    found = read(
        write(
            write_csv(
                CUR,
                [
                    cur_row(SPOT, "8.00000001"),
                    cur_row(SPOT, "0.5", day="2026-11-23"),
                    cur_row("USW2-EBS:VolumeUsage.gp3", "0.25"),
                    cur_row("USW2-USE1-AWS-Out-Bytes", "0.125"),
                    cur_row(SPOT, "99", run="demo-2"),
                    cur_row(SPOT, "99", run="", day="2026-11-29"),
                ],
            )
        )
    )
    assert found.cloud == "aws"
    assert found.usd == {
        BillKind.COMPUTE: Decimal("8.50000001"),
        BillKind.DISKS: Decimal("0.25"),
        BillKind.EGRESS: Decimal("0.125"),
    }
    assert (found.hours, found.num_lines, found.is_final) == (Decimal(2), 4, False)
    # Rows of others show which days the file covers.
    assert (str(found.start), str(found.end)) == ("2026-11-22", "2026-11-30")


def test_a_data_export_holds_its_tags_in_a_map_and_may_be_packed(write):
    ours = json.dumps({"user_team": "nlp", "user_orchestrate_run": RUN})
    spelt = json.dumps({"resourceTags/orchestrate-run": RUN})
    other = json.dumps({"user_orchestrate_run": "demo-2"})
    rows = [cur2_row(SPOT, "8", ours), cur2_row(SPOT, "2", spelt), cur2_row(SPOT, "9", other)]
    rows += [cur2_row(SPOT, "9", "{}"), cur2_row(SPOT, "9", "")]
    found = read(write(gzip.compress(write_csv(CUR2, rows)), "export-00001.csv.gz"))
    assert (found.usd, found.num_lines) == ({BillKind.COMPUTE: Decimal(10)}, 2)


def test_an_account_s_or_a_person_s_tag_of_that_name_is_not_the_nodes(write):
    header = (*CUR2[:-1], "tags")
    tags = json.dumps({"accountTag/orchestrate-run": RUN, "userAttribute/orchestrate-run": RUN})
    assert read(write(write_csv(header, [cur2_row(SPOT, "8", tags)]))).num_lines == 0


def test_google_s_lines_count_credits_beside_what_they_pay_for(write):
    found = read(
        write(
            json_lines(
                google_line(CORE, 4.1, credits=[-0.6, -0.4]),
                google_line("Nvidia Tesla A100 GPU attached to Spot Preemptible VMs", "6"),
                google_line("Network Inter Region Data Transfer Out from Americas", 0.5),
                google_line(CORE, 9, run="demo-2"),
                google_line(CORE, 9, run=None),
            ),
            "bill.jsonl",
        )
    )
    assert found.cloud == "gcp"
    assert found.usd == {
        BillKind.COMPUTE: Decimal("10.1"),
        BillKind.CREDITS: Decimal(-1),
        BillKind.EGRESS: Decimal("0.5"),
    }
    assert (found.num_lines, found.hours) == (3, None)


def test_google_s_export_as_csv_holds_labels_and_credits_as_json(write):
    header = (
        *("service.description", "sku.description", "usage_start_time", "labels"),
        *("cost", "currency", "credits"),
    )
    labels = json.dumps([{"key": "orchestrate-run", "value": RUN}])
    credits = json.dumps([{"name": "x", "amount": -1}])
    day = "2026-11-22T10:00:00Z"
    rows = [
        ("Compute Engine", CORE, day, labels, "4", "USD", credits),
        ("Compute Engine", CORE, day, "[]", "4", "USD", ""),
        ("Compute Engine", CORE, day, json.dumps({"orchestrate-run": RUN}), "1e-7", "USD", ""),
    ]
    found = read(write(write_csv(header, rows)))
    assert found.usd == {BillKind.COMPUTE: Decimal("4.0000001"), BillKind.CREDITS: Decimal(-1)}


def test_lines_that_leave_empty_labels_out_are_read(write):
    bare = google_line(CORE, 1)
    del bare["labels"], bare["credits"]
    assert read(write(json_lines(bare, google_line(CORE, 2)), "b.json")).num_lines == 1


def test_credits_and_refunds_do_not_hide_what_they_pay_for(write):
    found = read(write(write_csv(CUR, [cur_row(SPOT, "8"), cur_row(SPOT, "-8")])))
    assert found.usd == {BillKind.COMPUTE: Decimal(8), BillKind.CREDITS: Decimal(-8)}


def test_lines_with_an_invoice_are_final(write):
    assert read(write(write_csv(CUR, [cur_row(SPOT, "8", invoice="42")]))).is_final


def test_the_pieces_of_an_export_add_up_and_one_given_twice_counts_once(write):
    one = write(write_csv(CUR, [cur_row(SPOT, "8")]), "one.csv")
    two = write(write_csv(CUR, [cur_row(SPOT, "2", day="2026-12-01")]), "two.csv")
    google = write(json_lines(google_line(CORE, 3)), "google.json")
    aws, gcp = read_exports([one, two, google, one], RUN)
    assert (aws.usd[BillKind.COMPUTE], aws.sources) == (Decimal(10), ["one.csv", "two.csv"])
    assert gcp.usd[BillKind.COMPUTE] == Decimal(3)


def test_an_export_is_read_where_it_lies_in_a_bucket():
    store = open_store("memory://billing/cur")
    store.put("bill.csv.gz", gzip.compress(write_csv(CUR, [cur_row(SPOT, "8")] * 1000)))
    assert read("memory://billing/cur/bill.csv.gz").usd[BillKind.COMPUTE] == Decimal(8000)
    assert (
        refusal("memory://billing/cur/other.csv")
        == "There is no other.csv in memory://billing/cur."
    )


amounts = st.decimals(-(10**9), 10**9, allow_nan=False, allow_infinity=False, places=12)
rows = st.lists(
    st.tuples(
        st.sampled_from([SPOT, "EBS:VolumeUsage", "Requests-Tier1", "TimedStorage-ByteHrs", "?"]),
        amounts,
        st.sampled_from([RUN, "demo-2", ""]),
    ),
    max_size=30,
)


@given(rows, st.randoms(use_true_random=False))
def test_kinds_sum_to_the_run_s_rows_whatever_their_order(tmp_path_factory, lines, dice):
    folder = tmp_path_factory.mktemp("bills")

    def tally(of, name) -> Tally:
        path = folder / name
        path.write_bytes(write_csv(CUR, [cur_row(u, str(usd), run=run) for u, usd, run in of]))
        return read(str(path))

    found = tally(lines, "one.csv")
    shuffled = list(lines)
    dice.shuffle(shuffled)
    again = tally(shuffled, "two.csv")
    assert (again.usd, again.num_lines) == (found.usd, found.num_lines)
    expected = sum((usd for _, usd, run in lines if run == RUN), Decimal(0))
    assert sum(found.usd.values(), Decimal(0)) == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither AWS' columns"),
        (b"a,b\n1,2\n", "neither AWS' columns"),
        (write_csv(CUR[:-3], []), "no column lineItem/UnblendedCost"),
        (write_csv(CUR[:-1], []), "no column for the tag: resourceTags/user:orchestrate-run"),
        (b"cost,labels\n1,[]\n", "no column sku.description, nor usage_start_time"),
        (b"cost,sku.description,usage_start_time\n", "no column labels"),
        (b'{"cost": 1, "labels": []}\n', "no column sku.description, nor usage_start_time"),
        (b"[{}]", "one JSON array"),
        (b'{"cost": 1', "line 1 cannot be read"),
        (b"PAR1\x00\x01", "Parquet"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x1f\x8b\x08\x00garbage", "damaged"),
        (gzip.compress(write_csv(CUR, [cur_row(SPOT, "8")]))[:-9], "damaged"),
        (write_csv(CUR, [cur_row(SPOT, "8", currency="EUR")]), "line 2 is in 'EUR'"),
        (write_csv(CUR, [cur_row(SPOT, "eight")]), "line 2: the cost is no amount: 'eight'"),
        (write_csv(CUR, [cur_row(SPOT, "NaN")]), "no amount"),
        (write_csv(CUR, [cur_row(SPOT, "1e999")]), "no amount"),
        (write_csv(CUR, [cur_row(SPOT, "8", day="soon")]), "line 2 has no day: 'soon"),
        (write_csv(CUR, [cur_row(SPOT, "8")[:-1]]), "line 2 is cut off"),
        (write_csv(CUR2, [cur2_row(SPOT, "8", "{orchestrate-run=demo-1}")]), "holds no JSON"),
        (json_lines(google_line(CORE, 1, currency="EUR")), "line 1 is in 'EUR'"),
        (json_lines(google_line(CORE, 1, credits=["much"])), "a credit is no amount"),
        (json_lines(google_line(CORE, 1, labels="x orchestrate-run")), "holds no JSON"),
        (write_csv(CUR, [cur_row(SPOT, "1e9999999")]), "no amount"),
        (write_csv(CUR, [cur_row(SPOT, "8", day="9999-12-31")]), "line 2 has no day"),
        (json_lines(google_line(CORE, 1, labels=5)), "holds no JSON"),
        (b'{"cost": 1e99999999999999999999}\n', "line 1 cannot be read"),
        (b"[" * 100_000, "one JSON array"),
        (b'{"a":' * 100_000, "line 1 cannot be read"),
        (b"cost,labels," + b"x" * (1 << 21), "a line of more than"),
        (write_csv(CUR, [("=" * 140_000, *cur_row(SPOT, "8")[1:])]), "field larger than"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(write, data, words):
    assert words in refusal(write(data))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(list(google_line(CORE, 1))), anything, st.binary(max_size=80))
def test_nothing_in_a_file_breaks_more_than_its_reading(tmp_path_factory, cell, value, garbage):
    folder = tmp_path_factory.mktemp("bills")
    line = {**google_line(CORE, 1), cell: value}
    header = ",".join(CUR).encode()
    for number, data in enumerate((json_lines(line), garbage, header + b"\n" + garbage)):
        path = folder / f"{number}.csv"
        path.write_bytes(data)
        tallies, refused = read_or_refusal(path)
        assert refused is None or refused.startswith(path.name)
        assert all(usd.is_finite() for tally in tallies for usd in tally.usd.values())


def read_or_refusal(path):
    """Return what was read, or the one line that says why it was not."""
    try:
        return read_exports([str(path)], RUN), None
    except InputError as error:
        return [], error.what


def test_a_folder_or_nothing_is_refused_by_name(tmp_path):
    assert refusal(str(tmp_path)).startswith(f"{tmp_path.name} cannot be read")
    assert (
        refusal(str(tmp_path / "gone.csv")) == "gone.csv cannot be read: No such file or directory."
    )


def test_hostile_cells_stay_text(write):
    hostile = '=HYPERLINK("x")\x1b[31m\n'
    rows = [cur_row(hostile, "1"), cur_row(SPOT, hostile, run=hostile)]
    assert read(write(write_csv(CUR, rows))).usd == {BillKind.OTHER: Decimal(1)}
    what = refusal(write(write_csv(CUR, [cur_row(SPOT, hostile)])))
    assert what.isprintable()


def test_a_large_file_takes_no_more_memory_than_a_small_one(write):
    row = [cur_row(SPOT, "0.001", run="demo-2")]
    path = write(gzip.compress(write_csv(CUR, row * 60_000)))
    tracemalloc.start()
    read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("usage_type", "kind"),
    [
        ("BoxUsage:m5.large", "compute"),
        ("EUW1-HeavyUsage:p4d.24xlarge", "compute"),
        ("EBSOptimized:p2.xlarge", "compute"),
        ("EBS:SnapshotUsage", "disks"),
        ("DataTransfer-Regional-Bytes", "egress"),
        ("USE1-DataTransfer-Out-Bytes", "egress"),
        ("NatGateway-Bytes", "egress"),
        ("USW2-Requests-Tier1", "requests"),
        ("USW2-TimedStorage-ByteHrs", "storage"),
        ("USW2-PublicIPv4:InUseAddress", "other"),
    ],
)
def test_usage_types_of_aws_have_kinds(usage_type, kind):
    assert kind_of_aws(usage_type) is BillKind(kind)


@pytest.mark.parametrize(
    ("sku", "kind"),
    [
        (CORE, "compute"),
        ("Spot Preemptible A2 Instance Ram running in Americas", "compute"),
        ("Nvidia Tesla A100 GPU attached to Spot Preemptible VMs running in Iowa", "compute"),
        ("Balanced PD Capacity", "disks"),
        ("SSD backed Local Storage attached to Spot Preemptible VMs", "disks"),
        ("Network Internet Egress from Americas to EMEA", "egress"),
        ("Network Inter Zone Data Transfer Out", "egress"),
        ("Regional Standard Class A Operations", "requests"),
        ("Standard Storage US Regional", "storage"),
        ("External IP Charge on a Spot Preemptible VM", "other"),
    ],
)
def test_skus_of_google_have_kinds(sku, kind):
    assert kind_of_google(sku) is BillKind(kind)
