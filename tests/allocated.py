"""Memory that a call takes at its height, as PyTorch's allocator counts it: the same in any process, at any time."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most that tensors on the CPU take while a call runs, beyond what was there before.

    A first call that nobody counts fills what is kept for good. What an operator takes and gives back by itself is not
    seen.
    """
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    held = highest = 0
    for event in sorted(seen.events() or [], key=lambda event: event.time_range.end):
        held += event.self_cpu_memory_usage
        highest = max(highest, held)
    return highest
