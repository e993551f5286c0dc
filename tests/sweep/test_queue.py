"""Which configuration a worker takes next."""

from __future__ import annotations

from accel_search.storage.keys import Configuration
from accel_search.sweep.queue import Queue

SECONDS = {"SD1.5": 1.0, "SD2.1": 2.0, "SDXL": 4.0}


def table(models=("SD1.5", "SD2.1", "SDXL"), steps=(20, 50), methods=("deepcache", "tome")):
    return [
        Configuration(model, sched, count, method)
        for model in models
        for sched in ("DDIM", "UniPC")
        for count in steps
        for method in methods
    ]


def expected(each):
    return SECONDS[each.model] * each.steps


def work_off(queue, workers, seconds=expected):
    """Return what each worker explores, in order, and when it is through."""
    free = [(0.0, number, None) for number in range(workers)]
    done = [[] for _ in range(workers)]
    ends = [0.0] * workers
    while free:
        at, number, latest = min(free, key=lambda each: each[:2])
        free.remove((at, number, latest))
        if latest is not None:
            queue.finish(latest)
        taken = queue.take(None if latest is None else latest.model, latest)
        if taken is not None:
            done[number].append(taken)
            ends[number] = at + seconds(taken)
            free.append((ends[number], number, taken))
    return done, ends


def changes(explored, key):
    return sum(key(a) != key(b) for a, b in zip(explored, explored[1:]))


def workload(each):
    return each.model, each.sched, each.steps


def test_one_worker_goes_through_the_table_in_its_order():
    (explored,), _ = work_off(Queue(table()), 1)
    assert explored == table()


def test_several_end_together_keep_to_a_model_and_share_no_baseline_but_at_the_end():
    (one, other), ends = work_off(Queue(table(), expected), 2)
    assert sorted(map(str, one + other)) == sorted(map(str, table()))
    assert one[0].model == "SDXL" and one[0].steps == 50
    assert changes(one, lambda each: each.model) <= 1
    assert changes(other, lambda each: each.model) <= 2
    longest = max(expected(each) for each in table())
    assert abs(ends[0] - ends[1]) <= longest
    shared = {*map(workload, one)} & {*map(workload, other)}
    assert len(shared) <= 1


def test_a_workload_is_shared_rather_than_that_a_worker_waits():
    queue = Queue(table(models=("SDXL",), steps=(20,))[:2], expected)
    first = queue.take(None, None)
    assert queue.take(None, None) is not None
    queue.finish(first)
    assert queue.take("SDXL", first) is None


def test_a_worker_goes_on_with_its_own_workload_first():
    queue = Queue(table(models=("SDXL",)), expected)
    mine, others = queue.take(None, None), queue.take(None, None)
    assert workload(mine) != workload(others)
    queue.finish(mine)
    assert workload(queue.take("SDXL", mine)) == workload(mine)


def test_a_worker_that_has_lost_its_process_does_not_claim_its_workload():
    queue = Queue(table(), expected)
    mine = queue.take(None, None)
    other = queue.take(None, None)
    queue.finish(mine)
    taken = queue.take(None, mine)
    assert taken.model not in (other.model,)


def test_what_is_left_of_a_model_is_withdrawn():
    queue = Queue(table())
    first = queue.take(None, None)
    gone = queue.withdraw(first.model)
    assert len(gone) == 7 and {each.model for each in gone} == {"SD1.5"}
    assert queue.take("SD1.5", first).model == "SD2.1"
