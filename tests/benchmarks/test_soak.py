"""The soak's judgement: what counts as a leak."""

import random

from benchmarks.soaking.samples import Sample, slope


def samples(bytes_at):
    return [
        Sample(
            at_s=5.0 * number,
            num_processes=8,
            supervisor_bytes=bytes_at(number),
            supervisor_files=20,
            agent_bytes=0 if number % 3 == 0 else 1000 + number,
            agent_files=0,
            num_facts=number // 2,
            num_temporary=0,
        )
        for number in range(100)
    ]


def test_peaks_and_a_warm_up_are_no_leak_and_steady_growth_is():
    dice = random.Random(1)

    def flat(number):
        warm_up, noise = 1000 * min(number, 10), dice.randrange(-50, 50)
        return 50_000 + warm_up + noise + (30_000 if number % 17 == 0 else 0)

    calm = samples(flat)
    assert abs(slope(calm, "supervisor_bytes")) < 1
    leaking = samples(lambda number: flat(number) + 40 * number)
    assert 7 < slope(leaking, "supervisor_bytes") < 9  # 40 per 5 s


def test_growth_is_told_per_fact_and_absent_processes_do_not_count():
    grown = samples(lambda number: 50_000 + 300 * (number // 2))
    assert slope(grown, "supervisor_bytes", per="num_facts") == 300
    assert 0.19 < slope(grown, "agent_bytes") < 0.21  # 1 per 5 s, zeros left out
