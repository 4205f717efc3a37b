"""A seeded, deterministic world in which the real dispatcher, record and job watch run, several at once.

``world.simulate(seed)`` lives one such world to its end and raises with its history when an invariant breaks. All that
happens follows from the seed: one thread, one clock, one source of chance.

::

    scheduler    time, programs as coroutines that take turns whenever they speak to a service, and what goes wrong then
    queues       W&B: items, leases, claims, runs, agents
    jobs         Vertex AI: CustomJobs, the lives they lead, lists that lag behind
    objects      the bucket: objects with generations
    invariants   what must hold at every step and in the end
    world        deployments, people, other agents, Pub/Sub; puts everything together
    mutations    defects of the product that must be found
"""
