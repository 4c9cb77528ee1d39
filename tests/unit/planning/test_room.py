"""Shelves say the same as counting anew, whatever was taken and given back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.planning.builders import GPU, gpu_node, pod

from plimsoll.inventory.capacity import free_by_node
from plimsoll.inventory.views import Resources
from plimsoll.planning.room import Room, Shelf
from plimsoll.planning.supply import Supply

MOVES = st.tuples(st.sampled_from("abcd"), st.integers(0, 4), st.sampled_from([0, 1500, 9000]))


@settings(max_examples=100, deadline=None)
@given(st.lists(MOVES, max_size=12), st.integers(0, 12))
def test_a_shelf_follows_what_is_taken_and_given_back(
    moves: list[tuple[str, int, int]], returned: int
) -> None:
    nodes = [gpu_node(name, gpus=8) for name in "abcd"]
    supply = Supply(nodes)
    (pool,) = supply.gpu_pools
    room = Room(supply.by_name, [pod("x", "a", gpus=3)])
    shelf = room.shelf(pool)
    taken = [(name, Resources(cpu_millis=cpu, pods=1, extended={GPU: gpus})) for name, gpus, cpu in moves]
    for name, amount in taken:
        room.take(name, amount)
    for name, amount in taken[:returned]:
        room.give_back(name, amount)
    free = {name: room.free(name) for name in "abcd"}
    anew = Shelf((one.extended[GPU], one.cpu_millis, name) for name, one in free.items())
    least = min(one.extended[GPU] for one in free.values())
    assert list(shelf.upwards(least)) == list(anew.upwards(least))
    assert shelf.levels(least) == sorted({one.extended[GPU] for one in free.values()})
    assert shelf.free == anew.free
    if not moves:
        assert free == free_by_node(nodes, [pod("x", "a", gpus=3)])


def test_a_node_that_is_not_there_has_nothing_and_takes_nothing() -> None:
    room = Room({}, [pod("x", "gone", gpus=1)])
    room.take("gone", Resources(extended={GPU: 1}))
    assert room.free("gone") == Resources()
