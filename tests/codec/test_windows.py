from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from worker.codec.windows import Window, plan

CONTEXT = 3
LENGTHS = st.lists(st.integers(0, 40), max_size=8)
LIMITS = st.none() | st.integers(2 * CONTEXT + 1, 60)
PADDINGS = st.none() | st.integers(0, 50)


@given(LENGTHS, LIMITS, PADDINGS)
def test_every_frame_of_every_row_is_kept_once(
    lengths: list[int], limit: int | None, padding: int | None
) -> None:
    kept = Counter(
        (window.row, frame)
        for batch in plan(lengths, CONTEXT, limit, padding)
        for window in batch
        for frame in range(window.first, window.last)
    )
    assert kept == Counter((row, frame) for row, n in enumerate(lengths) for frame in range(n))


@given(LENGTHS, LIMITS, PADDINGS)
def test_what_is_kept_of_a_frame_has_seen_its_context_and_no_padding(
    lengths: list[int], limit: int | None, padding: int | None
) -> None:
    for batch in plan(lengths, CONTEXT, limit, padding):
        for row, start, end, first, last in batch:
            assert 0 <= start <= first < last <= end <= lengths[row]
            assert start == 0 or first - start >= CONTEXT
            closed = end == lengths[row] and end - start == batch[0].frames
            assert closed or end - last >= CONTEXT


@given(LENGTHS, LIMITS, PADDINGS)
def test_no_batch_exceeds_the_bound_and_no_row_is_padded_further_than_allowed(
    lengths: list[int], limit: int | None, padding: int | None
) -> None:
    for batch in plan(lengths, CONTEXT, limit, padding):
        longest, shortest = batch[0].frames, min(window.frames for window in batch)
        assert limit is None or len(batch) * longest <= limit
        assert longest - shortest <= (padding or 0)
        assert padding is not None or len(batch) == 1


def test_rows_of_one_length_are_decoded_together_without_more() -> None:
    assert plan([20, 20], CONTEXT, padding=0) == [
        [Window(0, 0, 20, 0, 20), Window(1, 0, 20, 0, 20)]
    ]


def test_rows_of_unequal_lengths_are_decoded_together_and_then_their_ends() -> None:
    first, ends = plan([20, 18, 17], CONTEXT, padding=15)
    assert [window.frames for window in first] == [20, 18, 17]
    assert ends == [Window(1, 12, 18, 15, 18), Window(2, 11, 17, 14, 17)]


def test_a_row_of_little_more_than_its_end_comes_with_the_ends() -> None:
    first, *ends = plan([20, 18, 3], CONTEXT, padding=17)
    assert [window.row for window in first] == [0, 1]
    assert [window for batch in ends for window in batch] == [
        Window(1, 12, 18, 15, 18),
        Window(2, 0, 3, 0, 3),
    ]


def test_two_rows_of_unequal_lengths_are_not_padded() -> None:
    assert [len(batch) for batch in plan([20, 18], CONTEXT, padding=15)] == [1, 1]
