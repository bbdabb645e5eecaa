"""The cost of planning a step, alone: requests running and waiting, blocks in the pool. Prints one table."""

from __future__ import annotations

import statistics
import time

from sophserve.engine.request import Request
from sophserve.engine.scheduler import Limits, Scheduler
from sophserve.sampling import SamplingParams

BLOCK_SIZE = 16
STEPS = 300


def make_request(number: int, length: int) -> Request:
    prompt = [number % 1000, *range(length - 1)]
    return Request(number, prompt, SamplingParams(max_tokens=10**6), 0, 10**6, [])


def run(running: int, waiting: int, num_blocks: int, length: int = 500) -> tuple[float, float]:
    """Median microseconds of schedule() and of the update of all its tokens, while all running requests decode."""
    scheduler = Scheduler(Limits(running, max(2048, running), BLOCK_SIZE), num_blocks)
    requests = {number: make_request(number, length) for number in range(running + waiting)}
    for request in requests.values():
        scheduler.add(request)
    while len(scheduler.running) < running or any(r.to_compute > 1 for r in scheduler.running.values()):
        plan = scheduler.schedule()
        assert plan is not None
        update(scheduler, requests, plan)
    schedule_times, update_times = [], []
    for _ in range(STEPS):
        start = time.perf_counter()
        plan = scheduler.schedule()
        middle = time.perf_counter()
        assert plan is not None and len(plan.scheduled) == running
        update(scheduler, requests, plan)
        schedule_times.append(middle - start)
        update_times.append(time.perf_counter() - middle)
    return statistics.median(schedule_times) * 1e6, statistics.median(update_times) * 1e6


def update(scheduler: Scheduler, requests: dict[int, Request], plan: object) -> None:
    ids = [entry.id for entry in plan.scheduled]  # type: ignore[attr-defined]
    scheduler.update({number: [7] for number in ids if requests[number].pending})


def arrivals(waiting: int, num_blocks: int) -> tuple[float, float]:
    """Median microseconds to queue and to cancel one request while so many wait."""
    scheduler = Scheduler(Limits(1, 2048, BLOCK_SIZE), num_blocks)
    for number in range(waiting):
        scheduler.add(make_request(number, 100))
    scheduler.schedule()
    adds, cancels = [], []
    for number in range(waiting, waiting + STEPS):
        request = make_request(number, 100)
        start = time.perf_counter()
        scheduler.add(request)
        middle = time.perf_counter()
        scheduler.finish(request)
        adds.append(middle - start)
        cancels.append(time.perf_counter() - middle)
    return statistics.median(adds) * 1e6, statistics.median(cancels) * 1e6


def main() -> None:
    print("| running | waiting | blocks | schedule, µs | update, µs |")
    print("|---|---|---|---|---|")
    for running, waiting, num_blocks in [
        (1, 0, 100_000),
        (64, 0, 100_000),
        (256, 0, 100_000),
        (256, 10_000, 100_000),
        (256, 10_000, 1_000_000),
    ]:
        plan, tokens = run(running, waiting, num_blocks)
        print(f"| {running} | {waiting} | {num_blocks} | {plan:.0f} | {tokens:.0f} |")
    print()
    print("| waiting | add, µs | cancel, µs |")
    print("|---|---|---|")
    for waiting in (10, 10_000):
        add, cancel = arrivals(waiting, 1_000_000)
        print(f"| {waiting} | {add:.1f} | {cancel:.1f} |")
    start = time.perf_counter()
    Scheduler(Limits(256, 2048, BLOCK_SIZE), 1_000_000)
    print(f"\nA pool of 1,000,000 blocks is made in {(time.perf_counter() - start) * 1e3:.1f} ms.")


if __name__ == "__main__":
    main()
