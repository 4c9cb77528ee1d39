"""Where the stages of one replica may lie together: nodes that share the value of the label
`placement.topologyKey`.

Stages hand activations on with every token, so a replica that spans racks is as slow as the link between
them. A replica of one stage lies on one node whatever the label says. Only required domains of one level are
offered; preferred levels were left out, because a preference that cannot be told from the status is luck.
"""

from __future__ import annotations

from plimsoll.planning.admission import Admitted
from plimsoll.planning.options import Option
from plimsoll.planning.room import Room
from plimsoll.planning.supply import Pool


def key_of(option: Option) -> str:
    """The label that the option's stages must share; empty where nothing has to be shared."""
    spans = option.config.pipeline_parallel > 1 and not option.one_node
    return option.request.spec.placement.topology_key if spans else ""


def domains(option: Option) -> dict[str, Admitted]:
    """The option's nodes by domain, without those that lack the label."""
    pools: dict[str, list[Pool]] = {}
    for pool in option.admitted.pools:
        # Pools tell nodes apart by every topology key that some deployment names.
        if value := pool.nodes[0].labels.get(key_of(option)):
            pools.setdefault(value, []).append(pool)
    return {value: option.admitted.only(pools[value]) for value in sorted(pools)}


def candidates(option: Option, room: Room) -> list[Admitted]:
    """Where to look for a whole replica, the best first: the domain with the fewest GPUs in slots that are
    large enough, so that roomy domains stay roomy."""
    if not key_of(option):
        return [option.admitted]
    found = domains(option)
    free = {value: slots(admitted, option.config.tensor_parallel, room) for value, admitted in found.items()}
    return [
        found[value] for value in sorted(found, key=lambda value: free[value]) if free[value] >= option.gpus
    ]


def slots(admitted: Admitted, size: int, room: Room) -> int:
    """GPUs that stand together in free slots of `size`."""
    return sum(room.shelf(pool).slots(size) for pool in admitted.pools)


def whole_replicas(option: Option, room: Room) -> int:
    """GPUs that replicas of this option can take, each within one domain, when nothing else is placed."""
    tensor = option.config.tensor_parallel
    return sum(
        slots(admitted, tensor, room) // option.gpus * option.gpus for admitted in domains(option).values()
    )


def unlabelled(option: Option) -> list[str]:
    """Admitted nodes that are in no domain, by name."""
    outside = [pool for pool in option.admitted.pools if not pool.nodes[0].labels.get(key_of(option))]
    return list(option.admitted.only(outside).names())
