"""Desired against actual, against a world that carries out what is asked, loses some of it and changes by itself."""

from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.delta import Delta
from tests.effort import examples

keys = st.sampled_from("abc")
values = st.integers(0, 3)
steps = st.one_of(
    st.tuples(st.just("want"), keys, values),
    st.tuples(st.just("absent"), keys, st.none()),
    st.tuples(st.just("release"), keys, st.none()),
    st.tuples(st.just("world_sets"), keys, values),
    st.tuples(st.just("world_drops"), keys, st.none()),
    st.tuples(st.just("silent_drop"), keys, st.none()),
    st.tuples(st.just("carry_out"), st.none(), st.none()),
    st.tuples(st.just("lose_what_is_asked"), st.none(), st.none()),
    st.tuples(st.just("full_view"), st.none(), st.none()),
)


class World:
    """Keys are letters, values are (key, number), so that a value tells its key."""

    def __init__(self) -> None:
        self.delta: Delta[str, tuple[str, int]] = Delta()
        self.actual: dict[str, tuple[str, int]] = {}
        self.desired: dict[str, tuple[str, int] | None] = {}
        self.lost: set[str] = set()
        self.touched: list[str] = []

    def step(self, what: str, key: str | None, number: int | None) -> None:
        if what == "carry_out" or what == "lose_what_is_asked":
            self.carry_out(lose=what != "carry_out")
        elif what == "full_view":
            self.delta.replace_actual(self.actual)
        else:
            assert key is not None
            self.keyed(what, key, (key, number if number is not None else 0))

    def keyed(self, what: str, key: str, value: tuple[str, int]) -> None:
        if what == "want":
            self.desired[key] = value
            self.delta.want(key, value)
        elif what == "absent":
            self.desired[key] = None
            self.delta.want_absent(key)
        elif what == "release":
            self.desired.pop(key, None)
            self.delta.release(key)
        elif what == "world_sets":
            self.actual[key] = value
            self.delta.saw(key, value)
        elif key in self.actual:
            old = self.actual.pop(key)
            if what == "world_drops":
                self.delta.gone(key, old)

    def carry_out(self, *, lose: bool) -> None:
        changes = self.delta.take_changes()
        for key, number in changes.put:
            self.touched.append(key)
            assert self.desired.get(key) == (key, number), "what nobody desires is put"
            if not lose:
                self.actual[key] = (key, number)
                self.delta.saw(key, (key, number))
        for key, number in changes.delete:
            self.touched.append(key)
            assert self.desired.get(key, "?") is None, "what nobody wants away is deleted"
            if not lose:
                self.actual.pop(key, None)
                self.delta.gone(key, (key, number))


@examples(400)
@given(st.lists(steps, max_size=30))
def test_after_a_full_view_and_one_round_everything_is_as_desired(
    sequence: list[tuple[str, str | None, int | None]],
) -> None:
    world = World()
    for what, key, number in sequence:
        world.step(what, key, number)
        if what == "full_view":
            # A key whose absence was reached is nobody's again.
            for gone in [k for k, wanted in world.desired.items() if wanted is None and k not in world.actual]:
                del world.desired[gone]
    world.delta.replace_actual(world.actual)
    world.carry_out(lose=False)
    for key, wanted in world.desired.items():
        if wanted is not None:
            assert world.actual.get(key) == wanted
            assert world.delta.satisfied(key)
    assert world.delta.take_changes() == ([], [])


def test_nothing_unmanaged_is_ever_asked_for() -> None:
    delta: Delta[str, int] = Delta()
    delta.saw("a", 1)
    delta.replace_actual({"a": 2, "b": 3})
    assert delta.take_changes() == ([], [])
    delta.want("a", 5)
    delta.release("a")
    assert delta.take_changes() == ([], [])


def test_what_was_asked_for_is_asked_again_only_on_news_or_retry() -> None:
    delta: Delta[str, int] = Delta()
    delta.want("a", 1)
    assert delta.take_changes() == ([1], [])
    delta.want("a", 1)
    assert delta.take_changes() == ([], [])
    delta.retry("a")
    assert delta.take_changes() == ([1], [])
    delta.saw("a", 1)
    delta.retry("a")
    assert delta.take_changes() == ([], [])


def test_the_loss_of_an_older_value_is_no_loss() -> None:
    delta: Delta[str, int] = Delta()
    delta.want("a", 2)
    delta.saw("a", 1)
    delta.saw("a", 2)
    assert not delta.gone("a", 1)
    assert delta.satisfied("a")


def test_an_absence_that_is_reached_leaves_the_key_to_others() -> None:
    delta: Delta[str, int] = Delta()
    delta.saw("a", 1)
    delta.want_absent("a")
    assert delta.take_changes() == ([], [1])
    delta.gone("a", 1)
    delta.saw("a", 7)
    assert delta.take_changes() == ([], [])
