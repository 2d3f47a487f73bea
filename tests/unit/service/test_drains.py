"""Which draining targets are idle, by readings of their packet counts."""

from lbguard.service.drains import DrainWatch


def test_a_drain_is_idle_after_the_time_without_a_packet_and_that_is_told_once() -> None:
    watch = DrainWatch(30.0)
    assert watch.observe([1, 2], {1: 5, 2: 5}, 100.0) == ()
    assert watch.observe([1, 2], {1: 5, 2: 6}, 129.9) == ()
    assert watch.observe([1, 2], {1: 5, 2: 6}, 130.0) == (1,)
    assert watch.observe([1, 2], {1: 5, 2: 6}, 159.8) == ()
    assert watch.observe([1, 2], {1: 5, 2: 6}, 160.0) == (2,)
    assert watch.observe([1, 2], {1: 5, 2: 6}, 1000.0) == ()


def test_each_packet_begins_the_time_anew_also_after_it_was_told() -> None:
    watch = DrainWatch(10.0)
    watch.observe([1], {1: 0}, 0.0)
    assert watch.observe([1], {1: 0}, 10.0) == (1,)
    assert watch.observe([1], {1: 1}, 11.0) == ()
    assert watch.observe([1], {1: 1}, 20.0) == ()
    assert watch.observe([1], {1: 1}, 21.0) == (1,)


def test_a_count_that_was_reset_begins_the_time_anew() -> None:
    watch = DrainWatch(10.0)
    watch.observe([1], {1: 50}, 0.0)
    assert watch.observe([1], {1: 0}, 9.0) == ()
    assert watch.observe([1], {1: 0}, 18.0) == ()
    assert watch.observe([1], {1: 0}, 19.0) == (1,)


def test_a_target_that_is_not_counted_is_never_idle() -> None:
    watch = DrainWatch(10.0)
    assert watch.observe([1], {}, 0.0) == ()
    assert watch.observe([1], {}, 100.0) == ()
    assert watch.observe([1], {1: 0}, 200.0) == ()
    assert watch.observe([1], {}, 205.0) == ()
    assert watch.observe([1], {1: 0}, 211.0) == (), "the time that nobody counted does not count"


def test_a_later_drain_of_the_same_target_is_a_new_one() -> None:
    watch = DrainWatch(10.0)
    watch.observe([1], {1: 5}, 0.0)
    assert watch.observe([1], {1: 5}, 10.0) == (1,)
    assert watch.observe([], {1: 5}, 11.0) == ()
    assert watch.observe([1], {1: 5}, 12.0) == ()
    assert watch.observe([1], {1: 5}, 22.0) == (1,)


def test_another_time_counts_for_the_drains_that_go_on() -> None:
    watch = DrainWatch(30.0)
    watch.observe([1], {1: 5}, 100.0)
    assert watch.observe([1], {1: 5}, 110.0) == ()
    watch.configure(5.0)
    assert watch.observe([1], {1: 5}, 111.0) == (1,)
