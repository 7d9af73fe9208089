"""Each notice on histories that must raise it and on histories that must not."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from localdpo.objective.notices import RunFacts, new_notices

STEPS = 200
FACTS = RunFacts(pairs_per_step=16, pairs_per_eval=128, total_steps=STEPS, warmup_steps=10)


def notices(train, evals, facts):
    """Everything that a history raises, record after record; the evaluation at a step follows its step."""
    train_seen, evals_seen, found = [], [], []
    arrivals = [(r[0], train_seen, r) for r in train] + [(r[0], evals_seen, r) for r in evals]
    for _, seen, record in sorted(arrivals, key=lambda arrival: arrival[0]):
        seen.append(record)
        found += new_notices([(n.name, n.level) for n in found], train_seen, evals_seen, facts)
    return found


def healthy_train(**columns):
    """A run as it should be: KL and margin grow slowly, accuracy climbs to 0.8, chosen stays put."""
    noise = random.Random(0)
    records = []
    for step in range(1, STEPS + 1):
        done = step / STEPS
        metrics = {
            "loss": 0.693 - 0.25 * done + noise.uniform(-0.05, 0.05),
            "rewards/accuracies": 0.5 + 0.3 * min(1.0, 3 * done) + noise.uniform(-0.1, 0.1),
            "rewards/ties": 0.0,
            "rewards/margins": done + noise.uniform(-0.1, 0.1),
            "logratio_per_token/chosen": -0.01 * done + noise.uniform(-0.005, 0.005),
            "grad_norm": 2.0 + noise.uniform(-1, 1),
        }
        if step % 5 == 0:
            metrics["kl"] = 0.2 * done * noise.uniform(0.7, 1.3)
        metrics |= {name: column(step) for name, column in columns.items() if column(step) != "absent"}
        records.append((step, metrics))
    return records


def healthy_evals(**columns):
    records = []
    for step in range(0, STEPS + 1, 25):
        metrics = {
            "loss": 0.693 - 0.2 * step / STEPS,
            "rewards/accuracies": 0.0 if step == 0 else 0.55 + 0.2 * step / STEPS,
            "rewards/ties": 1.0 if step == 0 else 0.0,
            "samples/response_tokens": 60.0 + 10.0 * math.sin(step),
        }
        records.append((step, metrics | {name: column(step) for name, column in columns.items()}))
    return records


def raised(train=None, evals=None, facts=FACTS):
    found = notices(
        healthy_train() if train is None else train, healthy_evals() if evals is None else evals, facts
    )
    return [(n.name, n.level, n.step) for n in found]


def names(*args, **kwargs):
    return [name for name, _, _ in raised(*args, **kwargs)]


def test_a_healthy_run_raises_nothing():
    assert raised() == []


def test_an_empty_history_and_an_sft_history_raise_nothing():
    assert notices([], [], FACTS) == []
    losses = [(step, {"loss": 2.0 / step, "grad_norm": 1.0}) for step in range(1, STEPS)]
    assert notices(losses, [(0, {"loss": 2.0}), (100, {"loss": 0.1})], FACTS) == []


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_nan_is_critical_at_once(name, value):
    train = healthy_train(**{name: lambda step: value if step == 37 else 1.0})
    (found,) = [n for n in notices(train, [], FACTS) if n.name == "nan"]
    assert (found.level, found.step) == ("critical", 37)
    assert name in found.message


def test_nan_in_an_evaluation():
    assert ("nan", "critical", 50) in raised(
        evals=healthy_evals(loss=lambda step: None if step == 50 else 0.6)
    )


def kl_that_jumps(factor, logs, from_step=120):
    def column(step):
        if step % 5:
            return "absent"
        jumped = from_step <= step < from_step + 5 * logs
        return 0.1 * (factor if jumped else 1.0)

    return healthy_train(kl=column)


@pytest.mark.parametrize(("factor", "level"), [(4.0, "warning"), (12.0, "critical")])
def test_kl_spike_fires_at_the_fifth_log(factor, level):
    assert raised(kl_that_jumps(factor, logs=8)) == [("kl-spike", level, 140)]


@pytest.mark.parametrize(("factor", "logs"), [(2.5, 8), (4.0, 4), (50.0, 1)])
def test_kl_that_is_not_a_spike(factor, logs):
    assert raised(kl_that_jumps(factor, logs)) == []


def test_kl_below_the_floor_or_growing_steadily_is_not_a_spike():
    tiny = healthy_train(kl=lambda step: "absent" if step % 5 else (1e-6 if step < 100 else 0.09))
    steady = healthy_train(kl=lambda step: "absent" if step % 5 else 0.01 * step)
    assert names(tiny) == names(steady) == []


def test_a_notice_comes_again_only_at_a_higher_level():
    def column(step):
        if step % 5:
            return "absent"
        return 0.1 if step < 100 else 0.4 if step < 130 else 3.0

    assert [(n, level) for n, level, _ in raised(healthy_train(kl=column))] == [
        ("kl-spike", "warning"),
        ("kl-spike", "critical"),
    ]


def test_accuracy_stuck_near_one_half():
    coin = random.Random(1)
    train = healthy_train(
        **{"rewards/accuracies": lambda step: sum(coin.random() < 0.5 for _ in range(16)) / 16}
    )
    found = raised(train)
    assert ("accuracy-stuck", "warning") in [(n, level) for n, level, _ in found]
    # Not before a quarter of the steps after warm-up.
    assert min(step for _, _, step in found) >= 10 + (STEPS - 10) // 4


def test_ties_are_half_a_point():
    # Frozen weights: every pair ties, accuracy is 0, and that is no sign of swapped labels.
    frozen = {"rewards/accuracies": lambda step: 0.0, "rewards/ties": lambda step: 1.0}
    assert names(healthy_train(**frozen), healthy_evals(**frozen)) == ["accuracy-stuck"]


def test_accuracy_stuck_in_evaluations_alone():
    near = healthy_evals(**{"rewards/accuracies": lambda step: 0.55, "rewards/ties": lambda step: 0.0})
    assert names(evals=near) == ["accuracy-stuck"]
    # 0.6 of 128 pairs is outside 0.5 +- 0.088, of 32 pairs inside 0.5 +- 0.177.
    better = healthy_evals(**{"rewards/accuracies": lambda step: 0.6, "rewards/ties": lambda step: 0.0})
    assert names(evals=better) == []
    assert names(evals=better, facts=RunFacts(16, 32, STEPS, 10)) == ["accuracy-stuck"]


def test_labels_swapped_in_validation_or_training():
    below = healthy_evals(**{"rewards/accuracies": lambda step: 0.3, "rewards/ties": lambda step: 0.0})
    assert names(evals=below) == ["labels-swapped"]
    assert "labels-swapped" in names(healthy_train(**{"rewards/accuracies": lambda step: 0.35}))


def test_a_bad_start_is_not_judged():
    early = {"rewards/accuracies": lambda step: 0.3 if step < 30 else 0.8, "rewards/ties": lambda step: 0.0}
    assert names(healthy_train(**early), healthy_evals(**early)) == []


def falling(rate, margin_rises=True):
    return healthy_train(
        **{
            "logratio_per_token/chosen": lambda step: -rate * step / STEPS,
            "rewards/margins": lambda step: step / STEPS if margin_rises else 1 - step / STEPS,
        }
    )


def test_displacement_is_an_info_and_then_a_warning():
    found = raised(falling(rate=0.2))
    assert [(name, level) for name, level, _ in found] == [
        ("displacement", "info"),
        ("displacement", "warning"),
    ]
    assert names(falling(rate=0.06)) == ["displacement"]


def test_what_is_not_displacement():
    assert names(falling(rate=0.02)) == []  # too little
    assert names(falling(rate=0.06, margin_rises=False)) == []
    recovering = healthy_train(**{"logratio_per_token/chosen": lambda step: -0.06 + 0.05 * step / STEPS})
    assert names(recovering) == []
    rising = healthy_train(**{"logratio_per_token/chosen": lambda step: 0.3 * step / STEPS})
    assert names(rising) == []


def memorising(from_step):
    return healthy_train(
        **{
            "rewards/accuracies": lambda step: 1.0 if step >= from_step else 0.7,
            "loss": lambda step: 0.01 if step >= from_step else 0.693,
        }
    )


def test_memorised_early_and_not_late():
    assert raised(memorising(from_step=40)) == [("memorised", "warning", 59)]
    assert names(memorising(from_step=110)) == []


def test_high_accuracy_with_a_living_loss_is_not_memorised():
    assert names(healthy_train(**{"rewards/accuracies": lambda step: 1.0})) == []


def test_responses_growing():
    growing = healthy_evals(**{"samples/response_tokens": lambda step: 60.0 + step / 2})
    # 1.5 times 60 tokens is reached at step 75 (97), and again at step 100.
    assert raised(evals=growing) == [("responses-growing", "warning", 100)]
    once = healthy_evals(**{"samples/response_tokens": lambda step: 200.0 if step == 100 else 60.0})
    assert names(evals=once) == []
    short = healthy_evals(**{"samples/response_tokens": lambda step: 4.0 if step == 0 else 9.0})
    assert names(evals=short) == []


def test_every_notice_explains_itself():
    histories = [
        (kl_that_jumps(12.0, 8), []),
        (falling(0.2), []),
        (memorising(40), healthy_evals()),
        (healthy_train(loss=lambda step: None), []),
        (
            healthy_train(),
            healthy_evals(**{"rewards/accuracies": lambda s: 0.3, "rewards/ties": lambda s: 0.0}),
        ),
        (
            healthy_train(),
            healthy_evals(**{"rewards/accuracies": lambda s: 0.5, "rewards/ties": lambda s: 0.0}),
        ),
        (healthy_train(), healthy_evals(**{"samples/response_tokens": lambda s: 60.0 + s})),
    ]
    found = [notice for train, evals in histories for notice in notices(train, evals, FACTS)]
    assert len({n.name for n in found}) == 7
    for notice in found:
        assert set(notice.fields()) == {"level", "name", "message", "why", "try"}
        assert all(notice.fields().values())


@pytest.mark.long
def test_long_histories_are_read_in_reasonable_time():
    # Rules look at a bounded tail: 20,000 records replayed one by one would take minutes if they did not.
    record = {
        "loss": 0.5,
        "rewards/accuracies": 0.7,
        "rewards/margins": 1.0,
        "logratio_per_token/chosen": 0.0,
    }
    train = [(step, {**record, "kl": 0.1}) for step in range(1, 5001)]
    assert notices(train, [], RunFacts(16, 128, 5000)) == []


def memory_facts(limit):
    return dataclasses.replace(FACTS, memory_limit_gb=limit)


@pytest.mark.parametrize(("limit", "fires"), [(36.0, True), (39.0, True), (40.5, False), (None, False)])
def test_memory_past_nine_tenths_of_the_limit(limit, fires):
    train = healthy_train(peak_memory_gb=lambda step: min(36.0, float(step)))
    assert ("memory" in names(train, facts=memory_facts(limit))) is fires


def test_memory_is_counted_with_the_cache_where_the_log_has_it():
    train = healthy_train(peak_memory_gb=lambda step: 20.0, memory_gb=lambda step: 35.0)
    assert "memory" in names(train, facts=memory_facts(36.0))


def test_memory_is_told_without_pairs():
    train = [(1, {"loss": 2.0, "peak_memory_gb": 35.0})]
    found = new_notices([], train, [], memory_facts(36.0), "demonstrations")
    assert [notice.name for notice in found] == ["memory"]
    assert new_notices([("memory", "warning")], train, [], memory_facts(36.0), "demonstrations") == []


@pytest.mark.parametrize(("factor", "fires"), [(0.5, True), (0.65, True), (0.75, False), (1.3, False)])
def test_steps_that_became_slower(factor, fires):
    noise = random.Random(3)

    def speed(step):
        return 1000.0 * noise.uniform(0.8, 1.2) * (factor if step > 120 else 1.0)

    assert ("slower" in names(healthy_train(tokens_per_second=speed))) is fires


def test_a_few_slow_steps_and_the_first_ones_are_not_told():
    def speed(step):
        return 100.0 if step < 8 or 100 < step < 110 else 1000.0

    assert "slower" not in names(healthy_train(tokens_per_second=speed))
